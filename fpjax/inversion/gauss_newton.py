"""Damped Gauss-Newton on the image's own Jacobian: the default solver.

Inversion of a generator is an ill-conditioned nonlinear least-squares problem of a few hundred
unknowns, where first-order methods crawl along narrow valleys. Each step here linearises the
generator once, takes the full Jacobian (one tangent for each unknown, shared primal), and makes
the most of it: a handful of inner steps, each of a single forward pass, update the Jacobian by
Broyden's rule. Images that are solved leave the batch.

Damping is in the metric of the prior and proportional to the residual: whatever the linear model
fails to explain is treated as noise, so that directions which the image hardly shows stay where the
prior puts them until the rest fits. (Marquardt's damping, in the metric of the curvature, lets them
run off at once, and the way back is long.)

Sources: Levenberg 1944, Marquardt 1963, Broyden 1965; a damping proportional to the residual is in
Yamashita and Fukushima 2001; the decoder is decision feedback as in V-BLAST (Wolniansky 1998).
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

Array = jax.Array

_JITTER = 2e-6
"""Added to scaled curvatures (unit diagonal): what single precision cannot tell from zero."""

_PRIOR_INFORMATION = 4.0
"""About a bit whose prior has mean and standard deviation one half."""


@dataclasses.dataclass(frozen=True)
class GaussNewton:
    """Settings of the solver.

    Attributes:
      max_steps: Jacobians an image may cost.
      inner_steps: steps taken with each Jacobian, updating it; at least 2.
      solved_ratio: residual, in units of the expected noise, up to which an image that has
        converged is solved.
      floor_ratio: residual at which it is at the floor: the inner steps alone then tell whether it
        has converged, and no further Jacobian is spent on it.
      tolerance: relative decrease of the cost in a step, below which an image has converged.
      hopeless_ratio, hopeless_after: an image whose residual is still above this ratio after this
        many steps, and not shrinking by half in a step, has converged: nothing here explains it.
    """

    max_steps: int = 10
    inner_steps: int = 16
    solved_ratio: float = 1.3
    floor_ratio: float = 1.0
    tolerance: float = 0.02
    hopeless_ratio: float = 25.0
    hopeless_after: int = 3

    def __post_init__(self):
        if self.max_steps < 1 or self.inner_steps < 2:
            raise ValueError(
                f"max_steps {self.max_steps}, inner_steps {self.inner_steps}: expected at least 1 "
                "and 2"
            )


class Lane(NamedTuple):
    """State of one image and start."""

    unknowns: Array
    """(n,)"""
    damping: Array
    """Multiple of the mean squared residual that the prior's precision is scaled by."""
    cost: Array
    """Half the squared residual and prior."""
    ratio: Array
    """Residual in units of the noise."""
    recent: Array
    """Relative decrease of the cost over the second half of the last inner steps."""
    information: Array
    """(L, L) information about the levels at the last linearisation, with the prior."""


def _objective(problem: Problem, params, unknowns: Array, target: Array) -> tuple[Array, Array]:
    """Residual (M,) of one image, and its cost with the prior."""
    mean, std = problem.prior_mean_and_std
    residual = problem.residuals(params, unknowns[None], target[None])[0]
    prior = (unknowns - mean) / std
    cost = 0.5 * (residual @ residual) + 0.5 * (prior @ prior)
    # A step into nonsense is refused, never followed.
    return residual, jnp.where(jnp.isfinite(cost), cost, jnp.inf)


def initial_lane(problem: Problem, params, unknowns: Array, target: Array) -> Lane:
    """Evaluates a start."""
    unknowns = problem.clip(unknowns)
    _, cost = _objective(problem, params, unknowns, target)
    length = problem.scheme.key_length
    ratio = noise_ratio(problem, params, unknowns[None], target[None])[0]
    return Lane(unknowns, jnp.ones(()), cost, ratio, jnp.ones(()), jnp.zeros((length, length)))


def step(problem: Problem, settings: GaussNewton, params, lane: Lane, target: Array) -> Lane:
    """One linearisation and the inner steps that are taken with it, for one image."""
    mean, std = problem.prior_mean_and_std
    precision = jnp.asarray(1 / std**2)

    def residual_of(unknowns):
        return problem.residuals(params, unknowns[None], target[None])[0]

    residual, push = jax.linearize(residual_of, lane.unknowns)
    jacobian = jax.vmap(push)(jnp.eye(problem.num_unknowns))  # (n, M), transposed
    information = _schur(jacobian @ jacobian.T + jnp.diag(precision), problem.num_alpha)

    def inner(carry, _):
        jacobian, unknowns, residual, cost, damping = carry
        excess = jnp.maximum(jnp.mean(residual**2) - 1, 0)
        curvature = jacobian @ jacobian.T + jnp.diag(precision * (1 + damping * excess))
        scale = jax.lax.rsqrt(jnp.diag(curvature))
        gradient = jacobian @ residual + precision * (unknowns - mean)
        scaled = curvature * scale[:, None] * scale
        factor = cho_factor(scaled + _JITTER * jnp.eye(len(scale)))
        moved = problem.clip(unknowns - scale * cho_solve(factor, scale * gradient))
        new_residual, new_cost = _objective(problem, params, moved, target)

        # Broyden's update, least change in the metric of the prior; a refused step teaches too.
        change = moved - unknowns
        weight = precision * change
        error = new_residual - residual - change @ jacobian
        update = jnp.outer(weight, error) / jnp.maximum(weight @ change, 1e-12)
        jacobian = jnp.where(jnp.isfinite(new_cost), jacobian + update, jacobian)

        better = new_cost < cost
        carry = (
            jacobian,
            jnp.where(better, moved, unknowns),
            jnp.where(better, new_residual, residual),
            jnp.where(better, new_cost, cost),
            jnp.clip(jnp.where(better, damping / 3, damping * 5), 1e-4, 1e6),
        )
        return carry, carry[3]

    carry = (jacobian, lane.unknowns, residual, lane.cost, lane.damping)
    (_, unknowns, _, cost, damping), costs = jax.lax.scan(
        inner, carry, None, length=settings.inner_steps
    )
    ratio = noise_ratio(problem, params, unknowns[None], target[None])[0]
    recent = 1 - cost / costs[settings.inner_steps // 2 - 1]
    return Lane(unknowns, damping, cost, ratio, recent, information)


def _schur(curvature: Array, num_alpha: int) -> Array:
    """Curvature of the key with alpha profiled out: S = H_kk - H_ka H_aa^-1 H_ak, (L, L)."""
    scale = jax.lax.rsqrt(jnp.diag(curvature))
    scaled = curvature * scale[:, None] * scale + _JITTER * jnp.eye(len(scale))
    factor = jnp.linalg.cholesky(scaled[:num_alpha, :num_alpha])
    half = solve_triangular(factor, scaled[:num_alpha, num_alpha:], lower=True)
    schur = scaled[num_alpha:, num_alpha:] - half.T @ half
    return schur / (scale[num_alpha:, None] * scale[num_alpha:])


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def run_chunk(problem, settings, first: bool, params, lanes, targets):
    """Advances a chunk of lanes by one step; evaluates the starts when `first`.

    The lanes of a chunk are one batch.
    """

    def one(operands):
        lane, target = operands
        if first:
            return initial_lane(problem, params, lane, target)
        return step(problem, settings, params, lane, target)

    return jax.vmap(one)((lanes, targets))


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
    information = np.asarray(information, np.float64)
    values, vectors = np.linalg.eigh((information + information.T) / 2)
    # The prior alone gives at least this much; single precision may lose it.
    covariance = (vectors / np.maximum(values, _PRIOR_INFORMATION)) @ vectors.T
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
