"""FIR resampling and the 3x3 convolutions that change resolution, in polyphase form.

An up-sampling layer of StyleGAN2 inserts zeros, convolves with a 3x3 kernel and smooths with a FIR
filter. Three quarters of those products are with zeros, and a convolution of a dilated image has no
fast path on CPU. Here each phase of the output (its even or odd rows, its even or odd columns) is
convolved with the taps that it meets, and the filter combines the phases: the same numbers from the
fewest products, and every derivative is again a dense convolution. Down-sampling is the mirror
image.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jax import lax

from fpjax.models.layers import convolve
from fpjax.models.parameters import Array


def _taps(fir: Sequence[float], gain: float) -> list[float]:
    # Python numbers, which take the type of the arrays they multiply.
    return [gain * float(tap) / float(sum(fir)) for tap in fir]


def _weighted_sum(taps: Sequence[float], term: Callable[[int, int], Array]) -> Array:
    """Sum of taps[s] * taps[t] * term(s, t): both passes of a separable filter in one."""
    pairs = itertools.product(enumerate(taps), repeat=2)
    return functools.reduce(operator.add, [a * b * term(s, t) for (s, a), (t, b) in pairs])


def _interleave(phases: Sequence[Sequence[Array]]) -> Array:
    """Two by two images (B, H, W, C), by parity of row and column, as one (B, 2H, 2W, C)."""
    batch, height, width, channels = phases[0][0].shape
    rows = [jnp.stack(columns, axis=3) for columns in phases]
    return jnp.stack(rows, axis=2).reshape(batch, 2 * height, 2 * width, channels)


def conv2d_up(x: Array, weight: Array, fir: Sequence[float]) -> Array:
    """Up-samples by 2 while convolving: zero insertion, 3x3 true convolution, FIR of gain 4.

    Args:
      x: (B, H, W, C_in).
      weight: (3, 3, C_in, C_out), applied as a transposed convolution (stride 2).
      fir: 4 taps of the separable filter; its sum does not matter.

    Returns:
      (B, 2H, 2W, C_out).

    >>> conv2d_up(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 5)), (1, 3, 3, 1)).shape
    (1, 8, 8, 5)
    """
    height, width = x.shape[1:3]
    # Row 2i of the convolution meets the outer taps (pixels i - 1 and i), row 2i + 1 the middle
    # one. Padded by one pixel, even rows are 0 to 2H and odd ones -1 to 2H + 1.
    pad = ((1, 1), (1, 1))
    phases = [
        [convolve(x, kernel, padding=pad) for kernel in (rows[:, ::-2], rows[:, 1:2])]
        for rows in (weight[::-2], weight[1:2])
    ]
    taps = _taps(fir, gain=2.0)[::-1]

    def term(i, j):
        top, left = (i + 1) // 2, (j + 1) // 2
        return phases[i % 2][j % 2][:, top : top + height, left : left + width]

    def smooth(row, column):
        return _weighted_sum(taps, lambda s, t: term(row - 1 + s, column - 1 + t))

    return _interleave([[smooth(row, column) for column in (0, 1)] for row in (0, 1)])


def conv2d_down(x: Array, weight: Array, fir: Sequence[float]) -> Array:
    """Smooths with a FIR filter, then convolves 3x3 with stride 2: (B, 2H, 2W, C) to (B, H, W, D).

    >>> conv2d_down(jnp.ones((1, 8, 8, 2)), jnp.ones((3, 3, 2, 5)), (1, 3, 3, 1)).shape
    (1, 4, 4, 5)
    """
    height, width = x.shape[1] // 2, x.shape[2] // 2
    padded = jnp.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))
    taps = _taps(fir, gain=1.0)

    def smooth(row, column):
        # Of the smoothed image, the rows 2i + row and the columns 2j + column that are needed.
        rows, columns = 2 * (height - row) + 1, 2 * (width - column) + 1

        def term(s, t):
            i, j = row + s, column + t
            return padded[:, i : i + rows : 2, j : j + columns : 2]

        return _weighted_sum(taps, term)

    # Even rows meet the outer taps of the kernel, odd ones the middle tap; columns likewise.
    parts = [
        convolve(smooth(row, column), weight[row::2, column::2], padding="VALID")
        for row, column in itertools.product((0, 1), repeat=2)
    ]
    return functools.reduce(operator.add, parts)


def upsample_2d(x: Array, fir: Sequence[float]) -> Array:
    """Doubles the size of (B, H, W, C) images with a separable 4-tap FIR filter of gain 4.

    >>> upsample_2d(jnp.ones((1, 4, 4, 3)), (1, 3, 3, 1)).shape
    (1, 8, 8, 3)
    """
    taps = _taps(fir, gain=2.0)[::-1]
    for axis in (1, 2):
        pad = [(1, 1) if a == axis else (0, 0) for a in range(4)]
        before, centre, after = (
            lax.slice_in_dim(jnp.pad(x, pad), t, t + x.shape[axis], axis=axis) for t in range(3)
        )
        even = taps[0] * before + taps[2] * centre
        odd = taps[1] * centre + taps[3] * after
        shape = list(x.shape)
        shape[axis] *= 2
        x = jnp.stack([even, odd], axis=axis + 1).reshape(shape)
    return x


def downsample_2d(x: Array, fir: Sequence[float]) -> Array:
    """Halves the size of (B, 2H, 2W, C) images with a separable 4-tap FIR filter of gain 1.

    >>> downsample_2d(jnp.ones((1, 8, 8, 3)), (1, 3, 3, 1)).shape
    (1, 4, 4, 3)
    """
    taps = _taps(fir, gain=1.0)[::-1]
    for axis in (1, 2):
        pad = [(1, 1) if a == axis else (0, 0) for a in range(4)]
        padded, size = jnp.pad(x, pad), x.shape[axis]
        terms = [
            taps[t] * lax.slice_in_dim(padded, t, t + size - 1, stride=2, axis=axis)
            for t in range(4)
        ]
        x = functools.reduce(operator.add, terms)
    return x
