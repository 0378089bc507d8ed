"""What a checkpoint file is: names decide, whatever the file is called."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from checkpoints_convert.found import describe_file, tensors_of
from checkpoints_convert.printable import printable
from checkpoints_convert.publishers import (
    basicsr,
    compvis,
    diffusers,
    genforce,
    nvidia,
    nvidia_tf,
    perceptual,
    rosinality,
    strangers,
    taesd,
)
from checkpoints_convert.readers import CheckpointError, read
from checkpoints_convert.recognised import Recognised
from checkpoints_convert.request import Request
from checkpoints_convert.table import ConversionError

KNOWN = (
    "StyleGAN2 (rosinality, pSp, BasicSR and GenForce; NVIDIA PyTorch or TensorFlow .pkl), CompVis "
    "latent diffusion, its first stages and U-Nets, diffusers AutoencoderKL, VQModel, "
    "AutoencoderTiny and UNet2DModel, the TAESD family, VGG16, AlexNet, LPIPS v0.1 and the FID "
    "Inception"
)

FROM_OBJECTS = (nvidia_tf.from_networks, nvidia.from_persistent)
"""Publishers whose files hold objects, not named tensors."""

FROM_NAMES = (
    rosinality.from_names,
    basicsr.from_names,
    genforce.from_names,
    nvidia.from_names,
    compvis.from_whole,
    compvis.from_first_stage,
    compvis.from_unet,
    diffusers.from_file,
    taesd.from_files,
    perceptual.from_lpips,
    perceptual.from_backbone,
    perceptual.from_inception,
)
"""Publishers told by names; each returns None for names that are not its own."""


def recognise(path: Path, request: Request) -> Recognised:
    """Reads a file, or a diffusers folder, finds what it is and plans its conversion.

    Raises:
        CheckpointError: for a file that cannot be read.
        ConversionError: for one that no mapping fits; it says what is in the file.
    """
    try:
        if path.is_dir():
            return diffusers.from_folder(path, request)
        return _from_file(path, request)
    except (CheckpointError, ConversionError):
        raise
    except (
        ArithmeticError,
        LookupError,
        TypeError,
        AttributeError,
        ValueError,
        RecursionError,
        MemoryError,
    ) as error:
        # Names of a known network, but tensors or settings that no check above had foreseen.
        reason = printable(f"{type(error).__name__}: {str(error)[:1000]}", 300)
        raise ConversionError(
            f"{printable(path)}: the tensors or settings are not those of the network their names "
            f"say ({reason})"
        ) from error


def _from_file(path: Path, request: Request) -> Recognised:
    if re.search(r"\.index(\.\w+)?\.json$", path.name) and path.is_file():
        return diffusers.from_folder(path.parent, request)
    file = read(path)
    if (made := _first(FROM_OBJECTS, file, request)) is not None:
        return made
    found = tensors_of(file)
    if (made := _first(FROM_NAMES, found, request)) is not None:
        return made
    strangers.refuse(found)
    raise ConversionError(
        f"{printable(path)}: nothing known: {describe_file(file)}. Known are {KNOWN}"
    )


def _first(publishers: tuple[Callable, ...], found, request: Request) -> Recognised | None:
    made = (publisher(found, request) for publisher in publishers)
    return next((one for one in made if one is not None), None)
