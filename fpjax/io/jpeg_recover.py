"""Stored coefficients of a JPEG file out of its decoded pixels, where the file itself is gone.

Pixels were interpolated (chroma), rounded and clipped after decoding. Coefficients lie on multiples
of their steps, so the right ones are found exactly where rounding is all that happened. Clipped
pixels say "at least this": they are filled in from the coefficients found so far, and the search is
repeated. Coefficients that do not give the pixels back are said to be uncertain.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from fpjax.io.jpeg_dct import (
    JpegLayout,
    coefficient_noise_std,
    jpeg_coefficients,
    jpeg_pixels,
    quantisation_steps,
    triangle_upsampling,
)

_ROUNDS = 30

_AGREES = 2.5
"""Levels by which decoding may miss a pixel: its rounding, and that of luma and chroma."""


class Recovered(NamedTuple):
    """Coefficients that pixels were decoded from."""

    coefficients: np.ndarray
    """(layout.num_coefficients,) float32, as `jpeg_coefficients` gives them."""
    std: np.ndarray
    """(layout.num_coefficients,) float32, noise in 8-bit levels, larger where uncertain."""
    agreeing: float
    """Share of the pixels that decoding them gives back."""


def recover_coefficients(pixels: np.ndarray, layout: JpegLayout, tables) -> Recovered:
    """Finds the coefficients that a JPEG file's pixels were decoded from.

    Args:
      pixels: uint8, (H, W, C), decoded by libjpeg's usual decoder.
      layout: that of the file.
      tables: (components, 8, 8), whole numbers; 0 where a step is unknown.

    Returns:
      `Recovered`.

    >>> layout = JpegLayout.of(16, 16, "grey")
    >>> pixels = np.full((16, 16, 1), 100, np.uint8)
    >>> recover_coefficients(pixels, layout, np.full((1, 8, 8), 8)).agreeing
    1.0
    """
    tables = np.asarray(tables)
    steps = quantisation_steps(layout, np.maximum(tables, 1))
    known = quantisation_steps(layout, tables) > 0
    # Files count luma from 128, our coefficients from 127.5.
    origin = np.zeros_like(steps)
    parts = layout.split(origin)
    for index, part in enumerate(parts):
        if index == 0 or layout.colour == "rgb":
            part[..., 0, 0] += 4
    origin = np.concatenate([part.reshape(-1) for part in parts])

    file = pixels.astype(np.float32)
    low, high = pixels == 0, pixels == 255
    filled = file
    for _ in range(_ROUNDS if (low | high).any() else 1):
        measured = _measured(filled, layout)
        snapped = np.rint((measured - origin) / steps) * steps + origin
        found = np.where(known, snapped, measured)
        decoded = np.asarray(
            jax.device_get(jpeg_pixels(jax.device_put(found), layout, pixels.shape[-1]))
        )
        decoded = decoded * 127.5 + 127.5
        before, filled = filled, np.where(high, np.maximum(decoded, 255), file)
        filled = np.where(low, np.minimum(decoded, 0), filled)
        if np.array_equal(before, filled):
            break
    error = np.abs(np.clip(decoded, 0, 255) - file).max(-1)
    std = coefficient_noise_std(layout, np.maximum(tables, 1))
    missed = _of_blocks(np.where(error > _AGREES, error, 0), layout)
    # An error of e levels in the pixels of a block is one of up to 8 e in a coefficient.
    std = np.sqrt(std**2 + (4 * missed) ** 2).astype(np.float32)
    return Recovered(found.astype(np.float32), std, float((error <= _AGREES).mean()))


def _measured(values: np.ndarray, layout: JpegLayout) -> np.ndarray:
    """Coefficients of pixels (H, W, C) in 8-bit levels, with the decoder's interpolation undone."""
    picture = jax.device_put((values / 127.5 - 1).astype(np.float32))
    measured = np.array(jax.device_get(jpeg_coefficients(picture, layout)))
    if layout.upsampling != "triangle" or values.shape[-1] != 3:
        return measured
    # The means that chroma was interpolated from, repeated so that averaging gives them back.
    plain = values
    for axis, factor in ((1, layout.reductions[1][0]), (0, layout.reductions[1][1])):
        if factor == 2:
            length = values.shape[axis]
            inverse = np.linalg.pinv(triangle_upsampling(length)).astype(np.float32)
            plain = np.moveaxis(np.tensordot(inverse, plain, (1, axis)), 0, axis)
            plain = np.repeat(plain, 2, axis).take(np.arange(length), axis)
    picture = jax.device_put((plain / 127.5 - 1).astype(np.float32))
    chroma = np.asarray(jax.device_get(jpeg_coefficients(picture, layout)))
    luma = 64 * layout.block_grids[0][0] * layout.block_grids[0][1]
    return np.concatenate([measured[:luma], chroma[luma:]])


def _of_blocks(error: np.ndarray, layout: JpegLayout) -> np.ndarray:
    """The largest error (H, W) within reach of each coefficient's block, (num_coefficients,)."""
    parts = []
    for (horizontal, vertical), (rows, columns) in zip(
        layout.reductions, layout.block_grids, strict=True
    ):
        tall, wide = 8 * vertical, 8 * horizontal
        padded = np.zeros((rows * tall, columns * wide), np.float32)
        height, width = (min(a, b) for a, b in zip(padded.shape, error.shape, strict=True))
        padded[:height, :width] = error[:height, :width]
        worst = padded.reshape(rows, tall, columns, wide).max((1, 3))
        parts.append(np.repeat(worst.reshape(-1), 64))
    return np.concatenate(parts)
