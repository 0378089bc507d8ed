"""Perceptual networks: torchvision backbones, LPIPS v0.1, the FID Inception."""

from __future__ import annotations

from checkpoints_convert.mappings import perceptual
from checkpoints_convert.mappings.table import ConversionError
from checkpoints_convert.readers import read
from checkpoints_convert.sources.found import (
    Found,
    Recognised,
    Request,
    at,
    describe,
    recognised,
    tensors_of,
)


def from_lpips(found: Found, request: Request) -> Recognised | None:
    """LPIPS with its backbone in one file."""
    here = at(found, "ema", "lin0.model.1.weight") or at(
        found, "ema", "NetLinLayer_0.Conv_0.kernel"
    )
    if here is None:
        return None
    if not any(name.startswith(("net.", "VGG16_0.", "AlexNet_0.")) for name in here.tensors):
        raise ConversionError(
            "LPIPS heads alone: give torchvision's backbone as FILE and these with --heads"
        )
    return recognised("LPIPS v0.1", here, perceptual.convert_lpips(here.tensors))


def from_backbone(found: Found, request: Request) -> Recognised | None:
    """A torchvision VGG16 or AlexNet, with the LPIPS heads if they are given."""
    for anchor, kind, convert in (
        ("features.28.weight", "VGG16, torchvision", perceptual.convert_vgg16),
        ("features.10.weight", "AlexNet, torchvision", perceptual.convert_alexnet),
    ):
        here = at(found, "ema", anchor, "features.0.weight")
        if here is None:
            continue
        if request.heads is None:
            return recognised(kind, here, convert(here.tensors))
        file = read(request.heads)
        heads = at(Found(file, tensors_of(file)), "ema", "lin0.model.1.weight")
        if heads is None:
            raise ConversionError(f"{request.heads}: no LPIPS heads: {describe(file)}")
        tensors, origins = {**here.tensors, **heads.tensors}, {**here.origins, **heads.origins}
        conversion = perceptual.convert_lpips(tensors)
        return recognised("LPIPS v0.1", here, conversion, (), (heads,), origins)
    return None


def from_inception(found: Found, request: Request) -> Recognised | None:
    """The FID Inception-v3 in the PyTorch port's names."""
    here = at(found, "ema", "Mixed_7c.branch_pool.conv.weight")
    if here is None:
        return None
    return recognised("FID Inception-v3", here, perceptual.convert_inception(here.tensors))
