"""What a checkpoint file is: names decide, whatever the file is called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from checkpoints_convert.mappings.table import ConversionError
from checkpoints_convert.readers import read
from checkpoints_convert.sources import compvis, diffusers, perceptual, stylegan2, taesd
from checkpoints_convert.sources.found import Found, Recognised, Request, describe, tensors_of

KNOWN = (
    "StyleGAN2 (rosinality .pt; NVIDIA PyTorch or TensorFlow .pkl), CompVis latent diffusion, its "
    "first stages and U-Nets, diffusers AutoencoderKL, VQModel, AutoencoderTiny and UNet2DModel, "
    "the TAESD family, VGG16, AlexNet, LPIPS v0.1 and the FID Inception"
)

FROM_OBJECTS = (stylegan2.from_tensorflow, stylegan2.from_persistent)
"""Sources whose files hold objects, not named tensors."""

FROM_NAMES = (
    stylegan2.from_rosinality,
    stylegan2.from_nvidia,
    compvis.from_whole,
    compvis.from_first_stage,
    compvis.from_unet,
    diffusers.from_file,
    taesd.from_files,
    perceptual.from_lpips,
    perceptual.from_backbone,
    perceptual.from_inception,
)
"""Sources told by names; each returns None for names that are not its own."""


def recognise(path: Path, request: Request) -> Recognised:
    """Reads a file, or a diffusers folder, finds what it is and plans its conversion.

    Raises:
        CheckpointError: for a file that cannot be read.
        ConversionError: for one that no mapping fits; it says what is in the file.
    """
    if path.is_dir():
        return diffusers.from_folder(path, request)
    file = read(path)
    try:
        recognised = _first(FROM_OBJECTS, file, request)
        if recognised is None:
            recognised = _first(FROM_NAMES, Found(file, tensors_of(file)), request)
    except (ArithmeticError, LookupError, TypeError, AttributeError) as error:
        # Names of a known network, but tensors without its axes or settings of another type.
        reason = f"{type(error).__name__}: {error}"
        raise ConversionError(
            f"{path}: the tensors or settings are not those of the network their names say "
            f"({reason}): {describe(file)}"
        ) from error
    if recognised is None:
        raise ConversionError(f"{path}: nothing known: {describe(file)}. Known are {KNOWN}")
    return recognised


def _first(sources: Sequence[Callable], found: Any, request: Request) -> Recognised | None:
    recognised = (source(found, request) for source in sources)
    return next((made for made in recognised if made is not None), None)
