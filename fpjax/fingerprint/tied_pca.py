"""The published bases for latent diffusion: principal components whose symbols are repeated.

Nie et al. 2023 fingerprint the latent (64, 64, 3) of a VQ-f4 first stage in two ways. Per channel:
each channel has its own principal components (4096), and the same symbols are written in all three.
Joint: all 12288 values have one set of components, and each symbol is written on three consecutive
ones. Here a symbol is one coordinate that owns the rows it is written on, so that a scheme has as
many fingerprint directions as symbols, as everywhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from jaxtyping import Float

from fpjax.errors import InputError
from fpjax.fingerprint.block_basis import BlockBasis, check_grid
from fpjax.fingerprint.large_pca import large_pca

REPEATS = 3
"""Consecutive components that carry a symbol in the published joint basis."""

JOINT_SHIFT = 4000
"""Index of the first of them, as published."""

BATCH = 500


def channel_pca(
    latents: Float[np.ndarray, "num size"],
    grid: tuple[int, ...],
    key_length: int = 64,
    shift: int | None = None,
    **options: Any,
) -> tuple[BlockBasis, int]:
    """Principal components of each channel, the same symbols in all of them.

    Args:
      latents: (N, D) natural latents, or a memory-mapped file of them; read in batches.
      grid: (H, W, C) of a latent.
      key_length: bits L.
      shift: index, among a channel's components, of the first that carries a symbol; by default the
        last L carry them.
      options: of `large_pca`: num_components (of a channel), method, memory, seed.

    Returns:
      (basis, shift): the basis of C (K' - L) + L coordinates for K' components a channel, and the
      shift that `Scheme.create` takes.

    Raises:
      InputError: if the components do not reach so far.

    >>> latents = np.random.default_rng(0).normal(size=(60, 32))
    >>> basis, shift = channel_pca(latents, (4, 4, 2), key_length=3)
    >>> len(basis), shift
    (29, 26)
    """
    grid = check_grid(grid)
    channels = grid[2]
    found = [
        large_pca(_batches(latents, lambda part, c=c: part[:, c::channels]), **options)
        for c in range(channels)
    ]
    rows = min(len(basis) for basis in found)
    first = _check(rows, key_length, shift, 1)
    # Coordinates: by component, then channel; a component with a symbol is one for all channels.
    index = np.arange(rows)
    owners = []
    for c in range(channels):
        before = index * channels + c
        symbol = first * channels + (index - first)
        after = first * channels + key_length + (index - first - key_length) * channels + c
        later = np.where(index < first + key_length, symbol, after)
        owners.append(np.where(index < first, before, later))
    blocks = np.stack([basis.directions[:rows] for basis in found])
    spread = np.stack([basis.std[:rows] for basis in found])
    mean = np.stack([basis.mean for basis in found], axis=-1).reshape(-1)
    basis = _tied(mean, blocks, np.concatenate(owners), spread, grid, "channels", len(latents))
    return basis, first * channels


def joint_pca(
    latents: Float[np.ndarray, "num size"],
    grid: tuple[int, ...],
    key_length: int = 64,
    shift: int = JOINT_SHIFT,
    repeats: int = REPEATS,
    **options: Any,
) -> tuple[BlockBasis, int]:
    """Principal components of whole latents, each symbol on `repeats` consecutive ones.

    Args:
      latents: (N, D) natural latents, or a memory-mapped file of them; read in batches.
      grid: (H, W, C) of a latent.
      key_length: bits L.
      shift: index of the first component that carries a symbol.
      repeats: components a symbol is written on.
      options: of `large_pca`: num_components, method, memory, seed. All components of 12288 values
        take 600 MB; fewer do, if they reach beyond the symbols.

    Returns:
      (basis, shift): the basis of K' - (repeats - 1) L coordinates for K' components, and the shift
      that `Scheme.create` takes.

    Raises:
      InputError: if the components do not reach so far.

    >>> latents = np.random.default_rng(0).normal(size=(60, 32))
    >>> basis, shift = joint_pca(latents, (4, 4, 2), key_length=3, shift=10)
    >>> len(basis), shift
    (26, 10)
    """
    grid = check_grid(grid)
    found = large_pca(_batches(latents, lambda part: part), **options)
    first = _check(len(found), key_length, shift, repeats)
    index = np.arange(len(found))
    symbol = first + (index - first) // repeats
    owner = np.where(
        index < first,
        index,
        np.where(index < first + repeats * key_length, symbol, index - (repeats - 1) * key_length),
    )
    basis = _tied(
        found.mean, found.directions[None], owner, found.std[None], grid, "none", len(latents)
    )
    return basis, first


def _batches(
    latents: np.ndarray, part: Callable[[np.ndarray], np.ndarray]
) -> Callable[[], Iterable[np.ndarray]]:
    if latents.ndim != 2:
        raise InputError(f"latents have shape {latents.shape}: expected (N, D)")
    return lambda: (part(latents[i : i + BATCH]) for i in range(0, len(latents), BATCH))


def _check(rows: int, key_length: int, shift: int | None, repeats: int) -> int:
    first = rows - repeats * key_length if shift is None else shift
    if key_length < 1 or first < 0 or first + repeats * key_length > rows:
        raise InputError(
            f"{key_length} symbols on {repeats} components each from {first} on do not fit "
            f"{rows} components: draw more latents, or choose another shift"
        )
    return first


def _tied(mean, blocks, owner, spread, grid, transform, samples) -> BlockBasis:
    count = int(owner.max()) + 1
    # Of a symbol's rows, the root of the mean square; nothing depends on it.
    square = np.bincount(owner, spread.reshape(-1).astype(np.float64) ** 2, count)
    std = np.sqrt(square / np.bincount(owner, minlength=count))
    return BlockBasis(
        mean=mean.astype(np.float32),
        blocks=blocks,
        dual_blocks=blocks,
        owner=owner.astype(np.int32),
        std=std.astype(np.float32),
        grid=grid,
        transform=transform,
        num_samples=samples,
    )
