"""What an image says about the symbols: the Fisher information once alpha is profiled out.

With the residual's Jacobian J = (J_a, J_k) in units of the noise and alpha's prior precision P,

    S = J_k^T J_k - J_k^T J_a (J_a^T J_a + P)^-1 J_a^T J_k

and near the solution the negative log-likelihood of any symbols k, alpha at its best for each, is
k^T S k / 2 - h^T k up to a constant. No prior on the symbols is in it, so that a verdict weighs
the picture alone.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jaxtyping import Float, Shaped

from fpjax.fingerprint.keys import Levels, level_range
from fpjax.inversion.prior import GaussianPrior
from fpjax.inversion.problem import Problem, check_images
from fpjax.models.jacobian import DEFAULT_MEMORY, jacobian_rows, tangent_bytes, tangents_at_once
from fpjax.precision import full_precision
from fpjax.programs import program

Array = jax.Array

JITTER = 2e-6
"""Added to scaled curvatures (unit diagonal): what single precision cannot tell from zero."""


class KeyInformation(NamedTuple):
    """Quadratic model of the negative log-likelihood of the symbols.

    >>> said = KeyInformation(jnp.eye(2) * 4, jnp.asarray([4.0, -4.0]))
    >>> jnp.linalg.solve(said.information, said.linear).tolist()  # the best symbols
    [1.0, -1.0]
    """

    information: Array
    """S, (L, L)."""
    linear: Array
    """h, (L,)."""


def profile(
    curvature: Array, gradient: Array, symbols: Array, num_nuisances: int
) -> KeyInformation:
    """Profiles all but the symbols out of a quadratic model around a point.

    Args:
      curvature: (K, K) of the negative log-likelihood and the prior; none for the symbols.
      gradient: (K,) of the same, at the point.
      symbols: (L,) at the point.
      num_nuisances: K - L.

    >>> profile(jnp.diag(jnp.array([4.0, 2.0])), jnp.zeros(2), jnp.ones(1), 1).linear.round(3)
    Array([2.], dtype=float32)
    """
    scale = jax.lax.rsqrt(jnp.maximum(jnp.diag(curvature), 1e-30))
    scaled = curvature * scale[:, None] * scale[None]
    free = slice(0, num_nuisances)
    fingerprint = slice(num_nuisances, None)
    alpha = scaled[free, free] + JITTER * jnp.eye(num_nuisances, dtype=scaled.dtype)
    factor = jnp.linalg.cholesky(alpha)
    half = solve_triangular(factor, scaled[free, fingerprint], lower=True)
    schur = scaled[fingerprint, fingerprint] - half.T @ half
    pull = solve_triangular(factor, (gradient * scale)[free], lower=True)
    slope = (gradient * scale)[fingerprint] - half.T @ pull
    outer = scale[fingerprint]
    information = schur / (outer[:, None] * outer[None])
    information = (information + information.T) / 2
    return KeyInformation(information, information @ symbols - slope / outer)


def linearise(
    problem: Problem, unknowns: Array, target: Array, leak: Array | float, block: int, dtype: str
) -> tuple[Array, Array]:
    """Residual (M,) of one image, and its derivatives by the unknowns as rows (K, M)."""

    def residual(point):
        return problem.residual(point, target, leak)

    tangents = jnp.eye(problem.num_unknowns, dtype=jnp.float32)
    return jacobian_rows(residual, unknowns, tangents, block=block, dtype=dtype)


def bytes_of_tangent(problem: Problem) -> int:
    """Estimated bytes that one tangent of a problem takes on its way."""
    point = jax.ShapeDtypeStruct((problem.num_unknowns,), jnp.float32)
    target = jax.ShapeDtypeStruct(problem.scheme.generator.image_shape, jnp.float32)
    return tangent_bytes(lambda x, problem, y: problem.residual(x, y), point, problem, target)


def tangents_in_block(problem: Problem, memory: int = DEFAULT_MEMORY) -> int:
    """How many tangents of a problem go through at a time within a memory budget."""
    return tangents_at_once(problem.num_unknowns, bytes_of_tangent(problem), memory)


def alpha_precision(problem: Problem) -> Array:
    """Prior precision of the unknowns, (K,), zero for the symbols."""
    if not isinstance(problem.prior, GaussianPrior):
        raise TypeError("information needs a Gaussian prior on alpha")
    _, std = problem.mean_and_std()
    free = jnp.arange(problem.num_unknowns) < problem.num_nuisances
    return jnp.where(free, 1 / std**2, jnp.zeros_like(std))


@program(static_argnums=3)
@full_precision
def _key_information(problem: Problem, unknowns: Array, targets: Array, block: int):
    precision = alpha_precision(problem)
    num_nuisances = problem.num_nuisances

    def one(operands):
        point, target = operands
        residual, rows = linearise(problem, point, target, 0.0, block, "float32")
        gradient = rows @ residual + precision * point
        curvature = rows @ rows.T + jnp.diag(precision)
        return profile(curvature, gradient, point[num_nuisances:], num_nuisances)

    return jax.lax.map(one, (unknowns, targets))


def key_information(
    problem: Problem,
    unknowns: Float[Array | np.ndarray, "batch unknowns"],
    images: Shaped[Array | np.ndarray, "batch height width channels"],
    *,
    memory: int = DEFAULT_MEMORY,
) -> KeyInformation:
    """Information about the symbols at given unknowns.

    Args:
      problem: relaxed symbols, a Gaussian prior, an observation whose residual is a likelihood's.
      unknowns: (B, K), alpha first: a solution's, or the truth.
      images: (B, H, W, C) files, uint8 or float in [-1, 1].
      memory: bytes that tangents may take at a time.

    Returns:
      S (B, L, L) and h (B, L), NumPy float32.

    >>> import fpjax
    >>> from fpjax.models.linear import linear_generator
    >>> generator = linear_generator()
    >>> basis = fpjax.fit_basis(generator, jax.random.key(0), 100, metric="latent")
    >>> scheme = fpjax.Scheme.create(generator, basis, key_length=4, strength=0.5)
    >>> made = fpjax.generate(scheme, jax.random.key(1), np.ones((1, 4), np.uint8))
    >>> truth = np.concatenate([made.alpha, np.ones((1, 4), np.float32)], axis=1)
    >>> key_information(fpjax.Problem(scheme), truth, made.images).information.shape
    (1, 4, 4)
    """
    problem = problem.prepared()
    targets = check_images(problem, images)
    block = tangents_in_block(problem, memory)
    operands = jax.device_put((problem, np.asarray(unknowns, np.float32), targets))
    found = jax.device_get(_key_information(*operands, block))
    return jax.tree.map(np.asarray, found)


def channel_bits(
    information: Float[np.ndarray, "batch symbols symbols"], levels: Levels = "binary"
) -> Float[np.ndarray, " batch"]:
    """Bits (B,) that an image can tell of its key at most: what symbols of the levels' variance
    tell through Gaussian noise (Shannon 1948). Infinite where the information is not finite.

    Args:
      information: (B, L, L), without a prior on the symbols.
      levels: what symbols it is about.

    >>> channel_bits(np.array([np.zeros((2, 2)), 12 * np.eye(2)])).tolist()
    [0.0, 2.0]
    """
    _, half = level_range(levels)
    usable = np.asarray(np.isfinite(information).all(axis=(1, 2)))
    given = np.where(usable[:, None, None], information, 0).astype(np.float64)
    values = np.linalg.eigvalsh((given + given.swapaxes(1, 2)) / 2) * half**2
    # What single precision made negative is nothing.
    bits = 0.5 * np.log2(1 + np.maximum(values, 0)).sum(axis=1)
    return np.where(usable, bits, np.inf)


def decide_bits(soft_bits: np.ndarray, information: np.ndarray) -> np.ndarray:
    """Bits by decision feedback: the surest first, each correcting the others.

    The errors of the relaxed symbols are correlated (their covariance is the inverse of the
    information), so a bit that is decided tells about those that are not. At each step the bit that
    is furthest from undecided, in its own standard deviations, is fixed, and the rest are
    conditioned on it. The same in a radio receiver is V-BLAST (Wolniansky 1998).

    Args:
      soft_bits: (B, L) relaxed bits, 0 and 1 being the two levels.
      information: (B, L, L) about the soft bits, with their prior.

    Returns:
      (B, L) uint8.

    >>> decide_bits(np.array([[0.9, 0.45]]), np.array([[[100.0, 80.0], [80.0, 100.0]]])).tolist()
    [[1, 0]]
    """
    mean = np.array(soft_bits, np.float64)
    information = np.asarray(information, np.float64)
    values, vectors = np.linalg.eigh((information + information.swapaxes(1, 2)) / 2)
    # The prior alone gives at least this much; single precision may lose it.
    spread = vectors / np.maximum(values, _PRIOR_INFORMATION)[:, None]
    covariance = spread @ vectors.swapaxes(1, 2)
    count, length = mean.shape
    rows = np.arange(count)
    bits = np.zeros((count, length), np.uint8)
    left = np.ones((count, length), bool)
    for _ in range(length):
        variance = np.maximum(np.einsum("bii->bi", covariance), 1e-30)
        certainty = np.where(left, np.abs(mean - 0.5) / np.sqrt(variance), -1)
        surest = certainty.argmax(axis=1)
        bits[rows, surest] = mean[rows, surest] > 0.5
        column = covariance[rows, :, surest] / variance[rows, surest][:, None]
        mean += column * (bits[rows, surest] - mean[rows, surest])[:, None]
        covariance -= column[:, :, None] * covariance[rows, surest][:, None, :]
        left[rows, surest] = False
    return bits


_PRIOR_INFORMATION = 4.0
"""About a bit whose prior has mean and standard deviation one half."""
