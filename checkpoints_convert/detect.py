"""What a checkpoint file is: names decide, whatever the file is called."""

from __future__ import annotations

from pathlib import Path

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
    for recogniser in FROM_OBJECTS:
        if (recognised := recogniser(file, request)) is not None:
            return recognised
    found = Found(file, tensors_of(file))
    for recogniser in FROM_NAMES:
        if (recognised := recogniser(found, request)) is not None:
            return recognised
    raise ConversionError(f"{path}: nothing known: {describe(file)}. Known are {KNOWN}")
