"""Damped Gauss-Newton on the image's own Jacobian: the default solver.

Inversion of a generator is an ill-conditioned nonlinear least-squares problem of a few hundred
unknowns, where first-order methods crawl along narrow valleys. Each step here linearises the
generator once, takes the full Jacobian (one tangent for each unknown, shared primal), and makes the
most of it: several dampings are tried at once, and the factorised curvature is used again for chord
steps, each of which costs a single forward pass. Images that are solved leave the batch.

Sources: Levenberg 1944, Marquardt 1963; chord steps as in Shamanskii 1967; the decision-feedback
decoder is Babai's nearest-plane rounding (Babai 1986).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_factor, cho_solve, solve_triangular

from fpjax.inversion.problem import Problem, noise_ratio
from fpjax.inversion.solution import Status

Array = jax.Array

_DAMPING_TRIED = (0.1, 1.0, 10.0)


@dataclasses.dataclass(frozen=True)
class GaussNewton:
    """Settings of the solver.

    Attributes:
      max_steps: Jacobians an image may cost.
      chord_steps: steps taken with each Jacobian after its first.
      initial_damping: Marquardt's factor on the curvature's diagonal.
      solved_ratio: residual, in units of the expected noise, at which an image may be solved.
      tolerance: relative decrease of the cost in a step, below which an image has converged.
    """

    max_steps: int = 12
    chord_steps: int = 3
    initial_damping: float = 1e-2
    solved_ratio: float = 1.3
    tolerance: float = 0.02


class Lane(NamedTuple):
    """State of one image and start."""

    unknowns: Array
    """(n,)"""
    damping: Array
    cost: Array
    """Half the squared residual and prior."""
    ratio: Array
    """Residual in units of the noise."""
    information: Array
    """(L, L) Schur complement at the last linearisation, with the prior."""


def _objective(problem: Problem, params, unknowns: Array, target: Array) -> tuple[Array, Array]:
    """Residual (M,) of one image, and its cost with the prior."""
    mean, std = problem.prior_mean_and_std
    residual = problem.residuals(params, unknowns[None], target[None])[0]
    prior = (unknowns - mean) / std
    return residual, 0.5 * (residual @ residual) + 0.5 * (prior @ prior)


def initial_lane(problem: Problem, settings: GaussNewton, params, unknowns, target) -> Lane:
    """Evaluates a start."""
    _, cost = _objective(problem, params, unknowns, target)
    length = problem.scheme.key_length
    return Lane(
        unknowns,
        jnp.asarray(settings.initial_damping),
        cost,
        noise_ratio(problem, params, unknowns[None], target[None])[0],
        jnp.zeros((length, length)),
    )


def step(problem: Problem, settings: GaussNewton, params, lane: Lane, target: Array) -> Lane:
    """One linearisation and all the steps that are taken with it, for one image."""
    mean, std = problem.prior_mean_and_std
    precision = jnp.asarray(1 / std**2)

    def residual_of(unknowns):
        return problem.residuals(params, unknowns[None], target[None])[0]

    residual, push = jax.linearize(residual_of, lane.unknowns)
    jacobian = jax.vmap(push)(jnp.eye(problem.num_unknowns))  # (n, M), transposed
    curvature = jacobian @ jacobian.T
    curvature = curvature + jnp.diag(precision)
    scale = jnp.diag(curvature)

    def gradient(unknowns, residual):
        return jacobian @ residual + precision * (unknowns - mean)

    def evaluate(unknowns):
        residual, cost = _objective(problem, params, unknowns, target)
        # A step into nonsense is refused, never followed.
        return residual, jnp.where(jnp.isfinite(cost), cost, jnp.inf)

    def attempt(damping):
        factor = cho_factor(curvature + damping * jnp.diag(scale))
        moved = lane.unknowns - cho_solve(factor, gradient(lane.unknowns, residual))
        moved = problem.clip(moved)
        return moved, *evaluate(moved), factor[0]

    dampings = lane.damping * jnp.asarray(_DAMPING_TRIED)
    moved, residuals, costs, factors = jax.lax.map(attempt, dampings)
    best = jnp.argmin(costs)
    improved = costs[best] < lane.cost
    unknowns = jnp.where(improved, moved[best], lane.unknowns)
    residual = jnp.where(improved, residuals[best], residual)
    cost = jnp.where(improved, costs[best], lane.cost)
    factor = (factors[best], False)

    def chord(carry, _):
        unknowns, residual, cost = carry
        moved = problem.clip(unknowns - cho_solve(factor, gradient(unknowns, residual)))
        new_residual, new_cost = evaluate(moved)
        better = new_cost < cost
        carry = (
            jnp.where(better, moved, unknowns),
            jnp.where(better, new_residual, residual),
            jnp.where(better, new_cost, cost),
        )
        return carry, None

    (unknowns, residual, cost), _ = jax.lax.scan(
        chord, (unknowns, residual, cost), None, length=settings.chord_steps
    )
    damping = jnp.where(improved, dampings[best], lane.damping * 100)
    return Lane(
        unknowns,
        jnp.clip(damping, 1e-8, 1e8),
        cost,
        noise_ratio(problem, params, unknowns[None], target[None])[0],
        _schur(curvature, problem.num_alpha),
    )


def _schur(curvature: Array, num_alpha: int) -> Array:
    """Curvature of the key with alpha profiled out: S = H_kk - H_ka H_aa^-1 H_ak, (L, L)."""
    factor = jnp.linalg.cholesky(curvature[:num_alpha, :num_alpha])
    half = solve_triangular(factor, curvature[:num_alpha, num_alpha:], lower=True)
    return curvature[num_alpha:, num_alpha:] - half.T @ half


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def run_chunk(problem, settings, first: bool, params, lanes, targets):
    """Advances a chunk of lanes by one step; evaluates the starts when `first`.

    On accelerators the chunk is one batch; on CPU, where a single image's tangents already fill
    the cores, lanes run one after the other in a fraction of the memory.
    """

    def one(operands):
        lane, target = operands
        if first:
            return initial_lane(problem, settings, params, lane, target)
        return step(problem, settings, params, lane, target)

    batch = None if jax.default_backend() == "cpu" else targets.shape[0]
    return jax.lax.map(one, (lanes, targets), batch_size=batch)


def status_of(settings: GaussNewton, before: float, lane_cost: float, ratio: float) -> Status | None:
    """Whether a lane is finished after a step, and how."""
    if not np.isfinite(lane_cost):
        return Status.NOT_FINITE
    settled = before - lane_cost <= settings.tolerance * before
    if settled and ratio <= settings.solved_ratio:
        return Status.SOLVED
    return Status.CONVERGED if settled else None


def decide_bits(soft_bits: np.ndarray, information: np.ndarray) -> np.ndarray:
    """Bits of one image by decision feedback: the surest first, each correcting the others.

    The errors of the relaxed levels are correlated (their covariance is the inverse of the
    information), so a bit that is decided tells about those that are not. At each step the bit that
    is furthest from undecided, in its own standard deviations, is fixed, and the rest are
    conditioned on it.

    Args:
      soft_bits: (L,) relaxed bits, 0 and 1 being the two levels.
      information: (L, L) positive definite information about the soft bits.

    Returns:
      (L,) uint8.

    >>> decide_bits(np.array([0.9, 0.45]), np.array([[100.0, 80.0], [80.0, 100.0]]))
    array([1, 0], dtype=uint8)
    """
    length = len(soft_bits)
    covariance = np.linalg.inv(np.asarray(information, np.float64))
    mean = np.asarray(soft_bits, np.float64).copy()
    bits = np.zeros(length, np.uint8)
    left = np.ones(length, bool)
    for _ in range(length):
        variance = np.maximum(np.diag(covariance), 1e-30)
        certainty = np.where(left, np.abs(mean - 0.5) / np.sqrt(variance), -1)
        i = int(certainty.argmax())
        bits[i] = mean[i] > 0.5
        column = covariance[:, i] / variance[i]
        mean += column * (bits[i] - mean[i])
        covariance -= np.outer(column, covariance[i])
        left[i] = False
    return bits
