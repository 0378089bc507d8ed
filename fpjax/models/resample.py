"""FIR resampling and the 3x3 convolutions that change resolution, in polyphase form.

An up-sampling layer of StyleGAN2 inserts zeros, convolves with a 3x3 kernel and smooths with a FIR
filter. Three quarters of those products are with zeros, and the gradient of a dilated convolution
has no fast path on CPU. Here the two kernels are composed into one, split by output phase, and
applied as a single dense 3x3 convolution followed by a pixel shuffle: the same numbers, and every
derivative is again a dense convolution. Down-sampling is the mirror image.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax

from fpjax.models.layers import convolve
from fpjax.models.parameters import Array


def pixel_shuffle(x: Array) -> Array:
    """Spreads (B, H, W, 4C), phases (row, column) outermost in the channels, to (B, 2H, 2W, C).

    >>> pixel_shuffle(jnp.arange(4.0).reshape(1, 1, 1, 4))[0, :, :, 0].tolist()
    [[0.0, 1.0], [2.0, 3.0]]
    """
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, 2, 2, channels // 4)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, 2 * height, 2 * width, channels // 4)


def pixel_unshuffle(x: Array) -> Array:
    """Gathers (B, 2H, 2W, C) to (B, H, W, 4C); the inverse of `pixel_shuffle`.

    >>> pixel_unshuffle(jnp.arange(4.0).reshape(1, 2, 2, 1)).tolist()
    [[[[0.0, 1.0, 2.0, 3.0]]]]
    """
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // 2, width // 2, 4 * channels)


def _taps(fir: Sequence[float], gain: float) -> list[float]:
    # Python numbers, which take the type of the arrays they multiply.
    return [gain * float(tap) / float(sum(fir)) for tap in fir]


def _compose(weight: Array, fir: Sequence[float], gain: float) -> Array:
    """Full convolution of each 3x3 kernel (HWIO) with the outer product of a 4-tap filter: 6x6."""
    fir = _taps(fir, gain)
    for axis in (0, 1):
        taps = [
            jnp.pad(weight, [(t, 3 - t) if a == axis else (0, 0) for a in range(4)])
            for t in range(4)
        ]
        weight = sum(fir[t] * taps[t] for t in range(4))
    return weight


def conv2d_up(x: Array, weight: Array, fir: Sequence[float]) -> Array:
    """Up-samples by 2 while convolving: zero insertion, 3x3 true convolution, FIR of gain 4.

    Args:
      x: (B, H, W, C_in).
      weight: (3, 3, C_in, C_out), applied as a transposed convolution (stride 2).
      fir: (4,) taps of the separable filter; its sum does not matter.

    Returns:
      (B, 2H, 2W, C_out).

    >>> conv2d_up(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 5)), (1, 3, 3, 1)).shape
    (1, 8, 8, 5)
    """
    kernel = _compose(weight[::-1, ::-1], fir[::-1], gain=2.0)
    # Output row 2i sees the odd taps (inputs i-1, i, i+1), row 2i+1 the even ones.
    phases = [kernel[1 - row :: 2, 1 - col :: 2] for row in (0, 1) for col in (0, 1)]
    return pixel_shuffle(convolve(x, jnp.concatenate(phases, axis=-1)))


def conv2d_down(x: Array, weight: Array, fir: Sequence[float]) -> Array:
    """Smooths with a FIR filter, then convolves 3x3 with stride 2: (B, 2H, 2W, C) to (B, H, W, D).

    >>> conv2d_down(jnp.ones((1, 8, 8, 2)), jnp.ones((3, 3, 2, 5)), (1, 3, 3, 1)).shape
    (1, 4, 4, 5)
    """
    kernel = _compose(weight, fir, gain=1.0)
    c_in, c_out = kernel.shape[2:]
    kernel = kernel.reshape(3, 2, 3, 2, c_in, c_out).transpose(0, 2, 1, 3, 4, 5)
    return convolve(pixel_unshuffle(x), kernel.reshape(3, 3, 4 * c_in, c_out))


def upsample_2d(x: Array, fir: Sequence[float]) -> Array:
    """Doubles the size of (B, H, W, C) images with a separable 4-tap FIR filter of gain 4.

    >>> upsample_2d(jnp.ones((1, 4, 4, 3)), (1, 3, 3, 1)).shape
    (1, 8, 8, 3)
    """
    fir = _taps(fir, gain=2.0)[::-1]
    for axis in (1, 2):
        pad = [(1, 1) if a == axis else (0, 0) for a in range(4)]
        before, centre, after = (
            lax.slice_in_dim(jnp.pad(x, pad), t, t + x.shape[axis], axis=axis) for t in range(3)
        )
        even = fir[0] * before + fir[2] * centre
        odd = fir[1] * centre + fir[3] * after
        shape = list(x.shape)
        shape[axis] *= 2
        x = jnp.stack([even, odd], axis=axis + 1).reshape(shape)
    return x


def downsample_2d(x: Array, fir: Sequence[float]) -> Array:
    """Halves the size of (B, 2H, 2W, C) images with a separable 4-tap FIR filter of gain 1.

    >>> downsample_2d(jnp.ones((1, 8, 8, 3)), (1, 3, 3, 1)).shape
    (1, 4, 4, 3)
    """
    fir = _taps(fir, gain=1.0)[::-1]
    for axis in (1, 2):
        pad = [(1, 1) if a == axis else (0, 0) for a in range(4)]
        padded, size = jnp.pad(x, pad), x.shape[axis]
        x = sum(
            fir[t] * lax.slice_in_dim(padded, t, t + size - 1, stride=2, axis=axis)
            for t in range(4)
        )
    return x
