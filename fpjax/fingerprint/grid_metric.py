"""The image metric of latents with a picture's shape, one small block for each spatial frequency.

A first stage is a convolutional network: what it does to a latent is nearly the same everywhere,
and so are the statistics of natural latents. Metric and covariance are then nearly block-diagonal
in a 2-D cosine transform over the latent's sides, with one (C, C) block for each frequency. The
generalised eigenproblem of `image_metric.py` is solved for each block on its own.

The metric's blocks come from random probes: for a random g, J^T (J g) costs one product with the
Jacobian and one with its transpose, and by least squares over many g the part of it that is
explained by g's own frequency is the block. What other frequencies put there averages out.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from fpjax.errors import InputError
from fpjax.fingerprint.basis import centre
from fpjax.fingerprint.block_basis import BlockBasis, blocks_of, check_grid, from_blocks, to_blocks
from fpjax.models.canonical import canonical_convolutions
from fpjax.models.generator import Generator
from fpjax.precision import full_precision
from fpjax.programs import program

Array = jax.Array

NUM_PROBES = 512
"""Random products by default."""

FLOOR = 1e-2
"""Least eigenvalue of a block, as a share of the mean over the neighbourhood's: what probes cannot
tell from nothing gets a finite length."""

_PROBES_AT_ONCE = 8


def check_probes(generator: Generator, num_probes: int) -> None:
    """Raises InputError for fewer probes than blocks of a generator's latents can be told from."""
    least = 4 * check_grid(generator.latent_shape)[2]
    if num_probes < least:
        raise InputError(
            f"{num_probes} probes for blocks of {least // 4} channels: take at least {least}"
        )


def grid_metric(
    generator: Generator,
    latents: Float[np.ndarray, "num size"],
    key: PRNGKeyArray,
    num_probes: int = NUM_PROBES,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Float[np.ndarray, "frequencies channels channels"]:
    """Blocks of H = E[J^T J] in the cosine transform of the latent's sides.

    Args:
      generator: what makes the images; its latents have a picture's shape (H, W, C).
      latents: (N, D) natural latents to average over; probe i takes the (i modulo N)-th.
      key: PRNG key of the probes.
      num_probes: products with the Jacobian and with its transpose.
      progress: called with (probes done, in all).

    Returns:
      (H W, C, C) float64, symmetric, frequencies in row-major order; not necessarily positive, as
      probes have noise.

    Raises:
      InputError: for other latents, or fewer probes than 4 C.
    """
    check_probes(generator, num_probes)
    grid = check_grid(generator.latent_shape)
    channels = grid[2]
    count = grid[0] * grid[1]
    answered = np.zeros((count, channels, channels))
    asked = np.zeros((count, channels, channels))
    for first in range(0, num_probes, _PROBES_AT_ONCE):
        size = min(_PROBES_AT_ONCE, num_probes - first)
        chosen = latents[np.arange(first, first + _PROBES_AT_ONCE) % len(latents)]
        operands = jax.device_put((generator, chosen, jax.random.fold_in(key, first)))
        probes, answers = jax.device_get(_probe(*operands))
        probes, answers = (np.asarray(x[:size], np.float64) for x in (probes, answers))
        answered += np.einsum("mnc,mnd->ncd", answers, probes)
        asked += np.einsum("mnc,mnd->ncd", probes, probes)
        if progress is not None:
            progress(first + size, num_probes)
    # Least squares: answers = block @ probe, for each frequency.
    blocks = np.linalg.solve(asked, answered.swapaxes(1, 2)).swapaxes(1, 2)
    return (blocks + blocks.swapaxes(1, 2)) / 2


@program()
@full_precision
def _probe(generator: Generator, latents: Array, key: Array) -> tuple[Array, Array]:
    grid = check_grid(generator.latent_shape)
    shape = (latents.shape[0], grid[0] * grid[1], grid[2])
    probes = jax.random.rademacher(key, shape, jnp.float32)

    def one(operands):
        latent, probe = operands

        def picture(flat):
            return generator.decode(generator.params, flat.reshape(1, *grid))[0].reshape(-1)

        _, push = jax.linearize(picture, latent)
        pull = canonical_convolutions(jax.linear_transpose(push, latent))
        seen = push(from_blocks("dct", grid, probe[None])[0])
        return to_blocks("dct", grid, pull(seen)[0][None])[0]

    return probes, jax.lax.map(one, (latents, probes))


def smoothed(blocks: np.ndarray, grid: tuple[int, int, int], weight: float = 0.5) -> np.ndarray:
    """Blocks (H W, C, C), each mixed with its four neighbours in frequency.

    The metric changes slowly with frequency; the probes' noise does not.

    >>> smoothed(np.ones((4, 1, 1)), (2, 2, 1)).ravel().tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    height, width, channels = grid
    x = np.pad(
        blocks.reshape(height, width, channels, channels),
        ((1, 1), (1, 1), (0, 0), (0, 0)),
        mode="edge",
    )
    around = (x[:-2, 1:-1] + x[2:, 1:-1] + x[1:-1, :-2] + x[1:-1, 2:]) / 4
    mixed = (1 - weight) * x[1:-1, 1:-1] + weight * around
    return mixed.reshape(blocks.shape)


def positive(blocks: np.ndarray, grid: tuple[int, int, int]) -> np.ndarray:
    """Blocks with their eigenvalues raised to `FLOOR` times the neighbourhood's mean."""
    level = np.trace(smoothed(blocks, grid, 0.8), axis1=1, axis2=2) / blocks.shape[1]
    level = np.maximum(level, 1e-3 * max(float(level.mean()), 1e-30))
    values, vectors = np.linalg.eigh(blocks)
    values = np.maximum(values, FLOOR * level[:, None])
    return np.einsum("nij,nj,nkj->nik", vectors, values, vectors)


def grid_covariance(
    latents: Float[np.ndarray, "num size"], grid: tuple[int, int, int], batch: int = 1000
) -> tuple[np.ndarray, np.ndarray]:
    """Blocks (H W, C, C) of the covariance of latents (N, D), and their mean (D,), both float64."""
    centred, mean = centre(latents)
    count, channels = grid[0] * grid[1], grid[2]
    total = np.zeros((count, channels, channels))
    for first in range(0, len(centred), batch):
        part = jax.device_put(centred[first : first + batch].astype(np.float32))
        values = np.asarray(jax.device_get(blocks_of("dct", grid, part)), np.float64)
        total += np.einsum("bnc,bnd->ncd", values, values)
    return total / (len(centred) - 1), mean


def grid_basis(
    latents: Float[np.ndarray, "num size"],
    metric: Float[np.ndarray, "frequencies channels channels"],
    grid: tuple[int, ...],
) -> BlockBasis:
    """The basis of natural latents in a metric of blocks; see the module's text.

    Args:
      latents: (N, D) natural latents; a block needs more than C of them.
      metric: (H W, C, C), such as `grid_metric` gives.
      grid: (H, W, C) of a latent.

    Returns:
      The `BlockBasis` of D directions, by descending natural standard deviation in image units.

    >>> latents = np.random.default_rng(0).normal(size=(400, 8)).astype(np.float32)
    >>> basis = grid_basis(latents, np.broadcast_to(np.eye(2) * 4.0, (4, 2, 2)), (2, 2, 2))
    >>> basis.std.shape, bool(abs(basis.std - 2).max() < 0.2)
    ((8,), True)
    """
    grid = check_grid(grid)
    covariance, mean = grid_covariance(latents, grid)
    lower = np.linalg.cholesky(positive(np.asarray(metric, np.float64), grid))
    upper = lower.swapaxes(1, 2)
    variances, vectors = np.linalg.eigh(upper @ covariance @ lower)
    # Columns of a block: direction = lower^-T vector, dual = lower vector.
    directions = np.linalg.solve(upper, vectors).swapaxes(1, 2)
    dual = (lower @ vectors).swapaxes(1, 2)
    largest = np.abs(directions).argmax(axis=2)[..., None]
    signs = np.sign(np.take_along_axis(directions, largest, axis=2))
    order = np.argsort(-variances.reshape(-1), kind="stable")
    owner = np.empty(order.size, np.int32)
    owner[order] = np.arange(order.size, dtype=np.int32)
    return BlockBasis(
        mean=mean.astype(np.float32),
        blocks=(directions * signs).astype(np.float32),
        dual_blocks=(dual * signs).astype(np.float32),
        owner=owner,
        std=np.sqrt(np.maximum(variances.reshape(-1)[order], 0)).astype(np.float32),
        grid=grid,
        transform="dct",
        num_samples=len(latents),
        metric="image",
    )
