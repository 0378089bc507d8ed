"""Is it one of these keys? Exact profile likelihoods of many candidate keys in one inversion.

The linearised score of a key, k^T S k / 2 - h^T k, extrapolates from where an inversion ended. Here
alpha is optimised again for each candidate, its symbols held at that candidate's levels, so that
curvature is paid for where the candidate is. One Jacobian an image, at the inversion's solution, is
shared by all candidates: it gives each its first alpha and the metric of its steps. A step costs
one forward pass; Broyden's rule keeps each candidate's own changes of the Jacobian as vectors
beside the shared one. Then a few steps by the exact gradient, a forward and a backward pass each,
finish the candidates, and say what is left to gain.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve
from jaxtyping import Float, Int, Shaped

from fpjax.errors import InputError
from fpjax.fingerprint.keys import as_bits
from fpjax.inversion.driver import invert
from fpjax.inversion.information import JITTER, linearise, tangents_in_block
from fpjax.inversion.observation import noise_ratio
from fpjax.inversion.prior import GaussianPrior
from fpjax.inversion.problem import Problem, check_images
from fpjax.inversion.solution import Solution
from fpjax.models.canonical import canonical_convolutions
from fpjax.models.jacobian import DEFAULT_MEMORY, tangent_bytes
from fpjax.parallel import one_blas_thread
from fpjax.precision import full_precision
from fpjax.programs import program

Array = jax.Array

_CPU_LANES = 32
"""Candidates that a CPU refines together: they wait for the slowest of them."""
_MOST_LANES = 1024
_SHORTEST = 1e-3
"""Share of a full step below which a candidate is left where it is."""


@dataclasses.dataclass(frozen=True, eq=False)
class CandidateFits:
    """How well each of C candidate keys explains each of B images.

    Attributes:
      cost: (B, C) float32, negative log-likelihood in nats with alpha at its best, and alpha's
        prior; up to a constant that all candidates of all images share. Lowest is best. Infinite
        where the image or the inversion was not finite.
      left: (B, C) float32, nats that the exact gradient at the end still promises: how far above
        its minimum a cost may be.
      noise_ratio: (B, C) float32, residual in units of the observation's noise.
      steps: (B, C) int32, steps taken, of both kinds.
      solution: the inversion with free symbols that the candidates began from.

    >>> cost = np.array([[3.0, 1.0]], np.float32)
    >>> CandidateFits(cost, cost, cost, np.ones((1, 2), np.int32), None).best.tolist()
    [1]
    """

    cost: Float[np.ndarray, "batch candidates"]
    left: Float[np.ndarray, "batch candidates"]
    noise_ratio: Float[np.ndarray, "batch candidates"]
    steps: Int[np.ndarray, "batch candidates"]
    solution: Solution

    @property
    def best(self) -> Int[np.ndarray, " batch"]:
        """Number of the candidate that explains each image best, (B,)."""
        return self.cost.argmin(axis=1)


class _Shared(NamedTuple):
    """What the candidates of an image share: the linearisation at the inversion's solution."""

    rows: Array
    """Derivatives of the residual by alpha, (A, M)."""
    scale: Array
    factor: Array
    """Cholesky factor of the scaled curvature of alpha, (A, A)."""
    start: Array
    """alpha of the solution less the Newton step there, (A,)."""
    pull: Array
    """Change of the best alpha for a change of the symbols, (A, L)."""
    symbols: Array
    """Of the solution, (L,)."""
    precision: Array


def invert_candidates(
    problem: Problem,
    images: Shaped[Array | np.ndarray, "batch height width channels"],
    keys: Shaped[Array | np.ndarray, "*images candidates length"],
    solution: Solution | None = None,
    *,
    steps: int = 8,
    polish: int = 8,
    tolerance: float = 0.05,
    memory: int = DEFAULT_MEMORY,
    progress: Callable[[int, int], None] | None = None,
) -> CandidateFits:
    """Profile likelihoods of candidate keys: alpha at its best for each.

    Args:
      problem: relaxed symbols, a Gaussian prior, an observation whose residual is a likelihood's.
      images: (B, H, W, C) files, uint8 or float in [-1, 1].
      keys: candidates for every image, (C, key length) bits, or (B, C, key length) others for each:
        those that a search or a registry suggests.
      solution: of `invert(problem, images)`, where it is at hand; by default it is made.
      steps: of one forward pass, at most.
      polish: further steps by the exact gradient, at most; 0 leaves costs as upper bounds.
      tolerance: nats; a candidate that promises less is finished.
      memory: bytes that candidates refined together may take.
      progress: called with (candidates done, in all), over all images.

    Returns:
      `CandidateFits`.

    Raises:
      InputError: if the keys do not fit the scheme or the images, or the problem has no Jacobian.

    >>> import fpjax
    >>> from fpjax.models.linear import linear_generator
    >>> generator = linear_generator()
    >>> basis = fpjax.fit_basis(generator, jax.random.key(0), 100, metric="latent")
    >>> scheme = fpjax.Scheme.create(generator, basis, key_length=4, strength=0.5)
    >>> keys = np.array([[0, 1, 1, 0], [1, 0, 0, 1], [1, 1, 1, 0]])
    >>> images = fpjax.generate(scheme, jax.random.key(2), keys).images
    >>> starts = np.zeros((1, 16), np.float32)
    >>> problem = fpjax.Problem(scheme)
    >>> found = fpjax.invert(problem, images, starts=starts)
    >>> invert_candidates(problem, images, keys, found).best.tolist()
    [0, 1, 2]
    """
    if hasattr(problem.observation, "distance") or problem.symbols != "relaxed":
        raise InputError("candidates need squared residuals and relaxed symbols")
    if not isinstance(problem.prior, GaussianPrior):
        raise InputError(f"candidates need a GaussianPrior, not {type(problem.prior).__name__}")
    if steps < 1 or polish < 0 or not tolerance > 0:
        raise InputError(
            f"steps {steps}, polish {polish}, tolerance {tolerance}: expected at least 1, at least "
            "0, and a positive number"
        )
    targets = check_images(problem, images)
    symbols = _candidate_symbols(problem, keys, len(targets))
    if solution is None:
        solution = invert(problem, images, memory=memory)
    if len(solution) != len(targets):
        raise InputError(f"a solution of {len(solution)} images for {len(targets)}")
    count, length = symbols.shape[1], symbols.shape[2]
    if solution.soft_bits.shape[1] != length or solution.alpha.shape[1] != problem.scheme.num_alpha:
        raise InputError("the solution is of another scheme")
    block, chunk = tangents_in_block(problem, memory), _lanes(problem, steps, memory, count)
    prepared = jax.device_put(problem.prepared())
    if problem.degradation is not None and solution.parameters is None:
        raise InputError("the solution is of a problem without a degradation")
    at = problem.unknowns_of(solution.alpha, solution.soft_bits, solution.parameters)
    found = [np.zeros((len(targets), count), kind) for kind in ("f4", "f4", "f4", "i4")]
    for image, target in enumerate(targets):
        operands = jax.device_put((at[image], target))
        shared = _linearise(prepared, *operands, block)
        for first in range(0, count, chunk):
            some = symbols[image, first : first + chunk]
            padded = np.concatenate([some, np.repeat(some[:1], chunk - len(some), axis=0)])
            with one_blas_thread:
                parts = _refine(
                    prepared, shared, jax.device_put(padded), operands[1], np.float32(tolerance),
                    steps, polish,
                )  # fmt: skip
                parts = jax.device_get(parts)
            for whole, part in zip(found, parts, strict=True):
                whole[image, first : first + chunk] = part[: len(some)]
            if progress is not None:
                progress(image * count + first + len(some), len(targets) * count)
    cost, left, ratio, taken = found
    return CandidateFits(cost, left, ratio, taken, solution)


def _candidate_symbols(problem: Problem, keys, num_images: int) -> np.ndarray:
    """Symbols (B, C, L) float32 of keys."""
    keys = np.asarray(jax.device_get(keys))
    length = problem.scheme.key_length
    if keys.ndim == 2:
        keys = np.broadcast_to(keys[None], (num_images, *keys.shape))
    if keys.ndim != 3 or keys.shape[::2] != (num_images, length) or keys.shape[1] == 0:
        raise InputError(
            f"keys have shape {keys.shape}: expected (C, {length}) or ({num_images}, C, {length}) "
            "bits, at least one"
        )
    bits = as_bits(keys, "keys").reshape(-1, length)
    return problem.scheme.symbols_of(bits).reshape(*keys.shape[:2], -1)


def _lanes(problem: Problem, steps: int, memory: int, count: int) -> int:
    """Candidates in a chunk, a power of two: few sizes, so that few programs are compiled."""
    pixels = math.prod(problem.scheme.generator.image_shape)
    point = jax.ShapeDtypeStruct((problem.num_unknowns,), jnp.float32)
    target = jax.ShapeDtypeStruct(problem.scheme.generator.image_shape, jnp.float32)
    each = tangent_bytes(lambda x, problem, y: problem.residual(x, y), point, problem, target)
    # A backward pass keeps activations of all layers; ten of the largest is more than enough.
    fits = memory // (10 * each + 4 * (steps + 6) * (pixels + problem.num_unknowns))
    most = _CPU_LANES if jax.default_backend() == "cpu" else _MOST_LANES
    largest = max(1, min(fits, most, 1 << (count - 1).bit_length()))
    return 1 << (largest.bit_length() - 1)


@program(static_argnums=3)
@full_precision
def _linearise(problem: Problem, unknowns: Array, target: Array, block: int) -> _Shared:
    residual, rows = linearise(problem, unknowns, target, 0.0, block, "float32")
    free = problem.num_nuisances
    _, std = problem.mean_and_std()
    precision = 1 / std[:free] ** 2
    by_alpha, by_symbols = rows[:free], rows[free:]
    curvature = by_alpha @ by_alpha.T + jnp.diag(precision)
    scale = jax.lax.rsqrt(jnp.maximum(jnp.diag(curvature), 1e-30))
    scaled = curvature * scale[:, None] * scale[None]
    factor = jnp.linalg.cholesky(scaled + JITTER * jnp.eye(free, dtype=scaled.dtype))

    def solve(right):
        return scale[:, None] * cho_solve((factor, True), scale[:, None] * right)

    gradient = by_alpha @ residual + precision * unknowns[:free]
    start = unknowns[:free] - solve(gradient[:, None])[:, 0]
    pull = -solve(by_alpha @ by_symbols.T)
    return _Shared(by_alpha, scale, factor, start, pull, unknowns[free:], precision)


class _Lane(NamedTuple):
    """One candidate on its way."""

    alpha: Array
    residual: Array
    cost: Array
    slope: Array
    """Gradient of the cost by alpha, (A,): by the updated Jacobian, or exact."""
    newton: Array
    """Full step against it, (A,)."""
    length: Array
    """Share of a full step that is tried next."""
    promise: Array
    """Nats that a full step promises."""
    updates: tuple[Array, Array]
    """Broyden's rank-one terms: J = rows + sum of outer(first[i], second[i])."""
    count: Array


@program(static_argnums=(5, 6))
@full_precision
def _refine(problem, shared: _Shared, symbols, target, tolerance, steps: int, polish: int):
    """Costs, what is left, noise ratios and steps of candidates (C, L), each (C,)."""

    def one(candidate):
        lane = _approach(problem, shared, candidate, target, tolerance, steps)
        lane, left = _polish(problem, shared, candidate, target, tolerance, polish, lane)
        image = problem.degraded(jnp.concatenate([lane.alpha, candidate]))
        return lane.cost, left, noise_ratio(problem.observation, image, target), lane.count

    return jax.vmap(one)(symbols)


def _newton(shared: _Shared, slope: Array) -> Array:
    return shared.scale * cho_solve((shared.factor, True), shared.scale * slope)


def _evaluate(problem, shared: _Shared, alpha, candidate, target):
    residual = problem.residual(jnp.concatenate([alpha, candidate]), target)
    cost = 0.5 * (residual @ residual) + 0.5 * jnp.sum(shared.precision * alpha**2)
    return residual, jnp.where(jnp.isfinite(cost), cost, jnp.inf)


def _approach(problem, shared: _Shared, candidate, target, tolerance, steps: int) -> _Lane:
    """Steps of one forward pass, by the shared Jacobian and what Broyden's rule adds to it."""
    alpha = shared.start + shared.pull @ (candidate - shared.symbols)
    residual, cost = _evaluate(problem, shared, alpha, candidate, target)
    slope = shared.rows @ residual + shared.precision * alpha
    one = jnp.ones((), jnp.float32)
    updates = (
        jnp.zeros((steps, len(alpha)), jnp.float32),
        jnp.zeros((steps, len(residual)), jnp.float32),
    )
    newton = _newton(shared, slope)
    begin = _Lane(
        alpha, residual, cost, slope, newton, one, 0.5 * slope @ newton, updates,
        jnp.zeros((), jnp.int32),
    )  # fmt: skip

    def running(lane: _Lane):
        return (lane.count < steps) & (lane.promise > tolerance) & (lane.length > _SHORTEST)

    def body(lane: _Lane) -> _Lane:
        first, second = lane.updates
        change = -lane.length * lane.newton
        moved = lane.alpha + change
        residual, cost = _evaluate(problem, shared, moved, candidate, target)
        better = cost < lane.cost
        # Least change in the metric of the prior; a refused step teaches too.
        error = residual - lane.residual - change @ shared.rows - (first @ change) @ second
        usable = jnp.isfinite(cost) & jnp.all(jnp.isfinite(error))
        weight = shared.precision * change
        weight = weight / jnp.maximum(weight @ change, 1e-30)
        first = first.at[lane.count].set(jnp.where(usable, weight, jnp.zeros_like(weight)))
        second = second.at[lane.count].set(jnp.where(usable, error, jnp.zeros_like(error)))
        alpha = jnp.where(better, moved, lane.alpha)
        residual = jnp.where(better, residual, lane.residual)
        slope = shared.rows @ residual + first.T @ (second @ residual) + shared.precision * alpha
        newton = _newton(shared, slope)
        length = jnp.where(better, jnp.minimum(1, 2 * lane.length), lane.length / 4)
        return _Lane(
            alpha, residual, jnp.where(better, cost, lane.cost), slope, newton,
            length.astype(jnp.float32), 0.5 * slope @ newton, (first, second), lane.count + 1,
        )  # fmt: skip

    return jax.lax.while_loop(running, body, begin)


def _polish(problem, shared: _Shared, candidate, target, tolerance, polish: int, lane: _Lane):
    """Steps by the exact gradient, conjugate in the shared metric; the lane, and what is left."""

    def cost_of(alpha):
        return _evaluate(problem, shared, alpha, candidate, target)[1]

    def gradient(alpha):
        _, slope = canonical_convolutions(jax.value_and_grad(cost_of))(alpha)
        slope = jnp.where(jnp.all(jnp.isfinite(slope)), slope, jnp.zeros_like(slope))
        newton = _newton(shared, slope)
        return slope, newton, 0.5 * slope @ newton

    slope, newton, left = gradient(lane.alpha)
    start = (
        lane.alpha, lane.cost, slope, newton, left, -newton, jnp.ones((), jnp.float32),
        jnp.zeros((), jnp.int32),
    )  # fmt: skip

    def running(state):
        _, _, _, _, left, _, length, count = state
        return (count < polish) & (left > tolerance) & (length > _SHORTEST)

    def body(state):
        alpha, cost, slope, newton, left, direction, length, count = state
        # A direction that does not descend is replaced by the gradient's own.
        direction = jnp.where(direction @ slope < 0, direction, -newton)
        moved = alpha + length * direction
        tried = cost_of(moved)
        better = tried < cost
        moved = jnp.where(better, moved, alpha)
        slope_new, newton_new, left_new = gradient(moved)
        turn = jnp.maximum(0, newton_new @ (slope_new - slope) / jnp.maximum(2 * left, 1e-30))
        along = jnp.where(better, -newton_new + turn * direction, -newton)
        longer = jnp.where(better, jnp.minimum(1, 2 * length), length / 4).astype(jnp.float32)
        return (
            moved, jnp.where(better, tried, cost), slope_new, newton_new, left_new, along, longer,
            count + 1,
        )  # fmt: skip

    alpha, cost, _, _, left, _, _, count = jax.lax.while_loop(running, body, start)
    return lane._replace(alpha=alpha, cost=cost, count=lane.count + count), left
