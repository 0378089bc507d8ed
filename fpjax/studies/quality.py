"""How far fingerprinted pictures are from their originals: PSNR and LPIPS of 8-bit images."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import numpy as np

from fpjax.errors import InputError
from fpjax.io.images import from_uint8

Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(N, H, W, C) uint8, twice -> (N,)."""

_BATCH = 16
_LEAST_SIDE = 16


def psnr_db(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of uint8 images (B, H, W, C) in decibels, (B,).

    >>> psnr_db(np.zeros((1, 2, 2, 3), np.uint8), np.full((1, 2, 2, 3), 255, np.uint8))
    array([0.])
    """
    error = np.mean((a.astype(np.float64) - b) ** 2, axis=(1, 2, 3))
    return 20 * np.log10(255) - 10 * np.log10(np.maximum(error, 1e-12))


def lpips_distance(image_shape: tuple[int, int, int]) -> Distance:
    """LPIPS (VGG16, version 0.1) as a function of two batches of uint8 images.

    Args:
      image_shape: (height, width, channels) of the images; grey ones are compared as colour.

    Raises:
      InputError: if the images are too small for the network, or the weights are not installed.
    """
    from fpjax.perceptual import load_lpips

    if min(image_shape[:2]) < _LEAST_SIDE:
        raise InputError(
            f"images of {image_shape[0]} x {image_shape[1]} pixels: LPIPS needs at least "
            f"{_LEAST_SIDE} a side"
        )
    try:
        params = load_lpips("vgg")
    except ModuleNotFoundError as error:
        raise InputError(str(error)) from error
    return functools.partial(_lpips, params)


def _lpips(params, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    count = len(a)
    batch = min(_BATCH, count)
    rows = np.arange(count + -count % batch) % count
    parts = []
    for first in range(0, len(rows), batch):
        some = rows[first : first + batch]
        operands = jax.device_put((params, _colour(a[some]), _colour(b[some])))
        parts.append(np.asarray(jax.device_get(_compare(*operands))))
    return np.concatenate(parts)[:count]


def _colour(images: np.ndarray) -> np.ndarray:
    return np.broadcast_to(from_uint8(images), (*images.shape[:3], 3))


@jax.jit
def _compare(params, a, b):
    from fpjax.perceptual import lpips

    return lpips(params, a, b)
