"""Linear attacks in JAX with a traced parameter: blur, resize, crop, shift, rotation, gain.

An observation whose blur width, scale or offset is unknown needs the derivative with respect to it.
These functions are linear in the images and differentiable in images and parameter. They neither
clip nor round, and are compiled. Images are floating point in [-1, 1], (..., H, W, C), and keep
their dtype; a batch with a parameter for each image goes through `jax.vmap`.

A blur, a change of size and a shift act on rows and columns separately: each is a matrix made from
the parameter, applied to one axis and then to the other.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from fpjax.attacks.base import AttackError
from fpjax.precision import full_precision

_HIGHEST = jax.lax.Precision.HIGHEST


def _check(images) -> jax.Array:
    images = jnp.asarray(images)
    if images.ndim < 3 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise AttackError(
            f"images are {images.dtype} {images.shape}, expected floating point (..., H, W, C)"
        )
    return images


def _apply(rows: jax.Array, columns: jax.Array, images: jax.Array) -> jax.Array:
    """Rows (H', H) and columns (W', W) applied to images (..., H, W, C)."""
    images = jnp.einsum("ih,...hwc->...iwc", rows, images, precision=_HIGHEST)
    return jnp.einsum("jw,...iwc->...ijc", columns, images, precision=_HIGHEST)


def gain_offset(images, gain, offset) -> jax.Array:
    """`gain * images + offset`, each a scalar or one value a channel (C,).

    A brightness factor f is gain f and offset f - 1; a contrast factor f about the grey m is gain f
    and offset (1 - f) m, both for images in [-1, 1].

    >>> gain_offset(jnp.zeros((2, 2, 3)), 1.1, 0.1)[0, 0]
    Array([0.1, 0.1, 0.1], dtype=float32)
    """
    images = _check(images)
    gain, offset = (
        jnp.broadcast_to(jnp.asarray(value, images.dtype), images.shape) for value in (gain, offset)
    )
    return images * gain + offset


@functools.partial(jax.jit, static_argnames="size")
@full_precision
def gaussian_blur(images, sigma, size: int = 25) -> jax.Array:
    """Convolution with `size` x `size` samples of a Gaussian, edges mirrored without repetition.

    The same as the attack `GaussianBlur`.

    Args:
      images: (..., H, W, C).
      sigma: scalar, pixels, above 0; traced.
      size: odd, static.

    Raises:
      AttackError: for an even size, or images of another kind.

    >>> blurred = gaussian_blur(jnp.zeros((5, 5, 1)).at[2, 2].set(1.0), 0.5)
    >>> round(float(blurred[2, 2, 0]), 3)
    0.619
    """
    images = _check(images)
    if size < 1 or size % 2 == 0:
        raise AttackError(f"gaussian_blur: size is {size}, expected an odd number")
    sigma = jnp.asarray(sigma, images.dtype)
    tap = jnp.arange(size) - size // 2
    weights = jnp.exp(-0.5 * jnp.square(tap.astype(images.dtype) / sigma))
    weights = weights / weights.sum()

    def matrix(length: int) -> jax.Array:
        place = jnp.arange(length)[:, None] + tap[None, :]
        if length == 1:
            source = jnp.zeros_like(place)
        else:
            period = 2 * (length - 1)
            folded = jnp.mod(place, period)
            source = jnp.minimum(folded, period - folded)
        return _scatter(source, jnp.broadcast_to(weights[None, :], source.shape), length)

    return _apply(matrix(images.shape[-3]), matrix(images.shape[-2]), images)


def _scatter(source: jax.Array, weights: jax.Array, length: int) -> jax.Array:
    """The matrix whose row i adds weights[i, t] to column source[i, t]."""
    rows = jnp.broadcast_to(jnp.arange(source.shape[0])[:, None], source.shape)
    return jnp.zeros((source.shape[0], length), weights.dtype).at[rows, source].add(weights)


def cubic(x, a: float = -0.5):
    """The cubic convolution kernel of Keys (1981) with slope `a` at 1."""
    x = jnp.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return jnp.where(x < 1, near, jnp.where(x < 2, far, jnp.zeros_like(x)))


def _hamming(x):
    window = 0.54 + 0.46 * jnp.cos(math.pi * x)
    return jnp.where(jnp.abs(x) < 1, jnp.sinc(x) * window, jnp.zeros_like(x))


def _lanczos(x):
    return jnp.where(jnp.abs(x) < 3, jnp.sinc(x) * jnp.sinc(x / 3), jnp.zeros_like(x))


# Pillow's filters.
KERNELS = {
    "box": lambda x: ((x > -0.5) & (x <= 0.5)).astype(x.dtype),
    "bilinear": lambda x: jnp.maximum(1 - jnp.abs(x), 0),
    "hamming": _hamming,
    "bicubic": cubic,
    "lanczos": _lanczos,
}


@functools.partial(jax.jit, static_argnames=("shape", "filter"))
@full_precision
def resize(images, shape: tuple[int, int], filter: str = "bicubic", box=None) -> jax.Array:
    """Resizes a window of the images to `shape`, antialiased where it shrinks, as Pillow does.

    Args:
      images: (..., H, W, C).
      shape: (height, width) of the result; static.
      filter: "box", "bilinear", "hamming", "bicubic" or "lanczos".
      box: the window as (top, left, bottom, right) in pixels, fractions allowed, within
        0 .. H and 0 .. W; traced, and the result is differentiable in it (a crop of unknown place
        and size). All of the picture by default.

    Raises:
      AttackError: for another filter, an empty shape, or images of another kind.

    >>> resize(jnp.ones((8, 6, 3)), (4, 3), "lanczos").shape
    (4, 3, 3)
    """
    images = _check(images)
    if filter not in KERNELS:
        raise AttackError(f"resize: filter is {filter!r}, expected one of {', '.join(KERNELS)}")
    if min(shape) < 1:
        raise AttackError(f"resize: shape is {shape}, expected at least one pixel a side")
    height, width = images.shape[-3:-1]
    box = (0.0, 0.0, float(height), float(width)) if box is None else box
    top, left, bottom, right = (jnp.asarray(edge, images.dtype) for edge in box)
    rows = _resampling(height, shape[0], top, bottom, filter)
    columns = _resampling(width, shape[1], left, right, filter)
    return _apply(rows, columns, images)


def _resampling(length: int, count: int, start, stop, filter: str) -> jax.Array:
    """(count, length): weights of the pixels of an axis in `count` samples of [start, stop]."""
    step = (stop - start) / count
    width = jnp.maximum(step, 1)
    centre = start + (jnp.arange(count).astype(step.dtype) + 0.5) * step
    pixel = jnp.arange(length).astype(step.dtype) + 0.5
    weights = KERNELS[filter]((pixel[None, :] - centre[:, None]) / width)
    return weights / weights.sum(1, keepdims=True)


@jax.jit
@full_precision
def shift(images, down, right) -> jax.Array:
    """Moves the images by any fraction of pixels; what comes in repeats the edge.

    Cubic convolution (Keys, "Cubic convolution interpolation for digital image processing", IEEE
    TASSP 1981). Whole shifts are exact, and equal the attack `Shift`.

    Args:
      images: (..., H, W, C).
      down, right: scalars, pixels; traced.

    >>> shift(jnp.arange(4.0).reshape(1, 4, 1), 0.0, 1.0).ravel()
    Array([0., 0., 1., 2.], dtype=float32)
    """
    images = _check(images)

    def matrix(length: int, distance) -> jax.Array:
        place = jnp.arange(length).astype(images.dtype) - jnp.asarray(distance, images.dtype)
        first = jnp.floor(place)
        fraction = place - first
        tap = jnp.arange(-1, 3, dtype=jnp.int32)
        weights = cubic(tap.astype(images.dtype)[None, :] - fraction[:, None])
        source = jnp.clip(first.astype(jnp.int32)[:, None] + tap[None, :], 0, length - 1)
        return _scatter(source, weights, length)

    return _apply(matrix(images.shape[-3], down), matrix(images.shape[-2], right), images)


@jax.jit
@full_precision
def rotate(images, degrees, fill: float | None = -1.0) -> jax.Array:
    """Rotates counter-clockwise about the centre, as the attack `Rotate` with "bicubic".

    Pillow cuts off fractions of a level when it rotates, so the attack is darker by half a level.

    The result is differentiable in the angle except where a pixel enters or leaves the picture.

    Args:
      images: (..., H, W, C).
      degrees: scalar; traced.
      fill: value of pixels that come from outside; None repeats the edge.

    >>> turned = rotate(jnp.arange(9.0).reshape(3, 3, 1), 90.0)
    >>> turned[..., 0].round().astype(int).tolist()
    [[2, 5, 8], [1, 4, 7], [0, 3, 6]]
    """
    images = _check(images)
    height, width, channels = images.shape[-3:]
    angle = jnp.asarray(degrees, images.dtype) * (math.pi / 180)
    y, x = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    y = y.astype(images.dtype) + (0.5 - height / 2)
    x = x.astype(images.dtype) + (0.5 - width / 2)
    # The place in the source of the centre of each pixel of the result.
    row = jnp.sin(angle) * x + jnp.cos(angle) * y + height / 2
    column = jnp.cos(angle) * x - jnp.sin(angle) * y + width / 2
    # Half of a rounding error, so that a turn by a whole angle keeps its edge.
    slack = 64 * float(jnp.finfo(images.dtype).eps) * max(height, width)
    inside = (row > -slack) & (row < height + slack) & (column > -slack) & (column < width + slack)

    flat = images.reshape(*images.shape[:-3], height * width, channels)
    out = jnp.zeros_like(images)
    first_row, first_column = jnp.floor(row - 0.5), jnp.floor(column - 0.5)
    # Pillow's transformations take slope -1, its changes of size -1/2.
    across = jnp.stack([first_column + dx for dx in range(-1, 3)], axis=-1)  # (H, W, 4)
    across_weight = cubic(across - (column[..., None] - 0.5), -1.0)
    source_columns = jnp.clip(across.astype(jnp.int32), 0, width - 1)
    for dy in range(-1, 3):
        weight = across_weight * cubic(first_row + dy - (row - 0.5), -1.0)[..., None]
        source_row = jnp.clip(first_row.astype(jnp.int32) + dy, 0, height - 1)
        sources = (source_row[..., None] * width + source_columns).reshape(-1)
        taken = jnp.take(flat, sources, axis=-2)
        taken = taken.reshape(*images.shape[:-1], 4, channels)
        out = out + jnp.einsum("hwj,...hwjc->...hwc", weight, taken, precision="highest")
    if fill is None:
        return out
    inside = jnp.broadcast_to(inside[..., None], images.shape)
    return jnp.where(inside, out, jnp.asarray(fill, images.dtype))
