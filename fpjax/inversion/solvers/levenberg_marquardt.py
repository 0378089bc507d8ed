"""Levenberg-Marquardt with Broyden updates, damped in the metric of the prior: the default solver.

Inversion of a generator is an ill-conditioned nonlinear least-squares problem of a few hundred
unknowns, where first-order methods crawl along narrow valleys. Each step here linearises the
generator once, takes the full Jacobian in blocks of tangents, and makes the most of it: a handful
of inner steps, each of a single forward pass, update the Jacobian by Broyden's rule. The updates
are kept as vectors beside the Jacobian, and the curvature is updated in rank two.

Damping is in the metric of the prior and proportional to the residual: whatever the linear model
fails to explain is treated as noise, so that directions which the image hardly shows stay where the
prior puts them until the rest fits. (Marquardt's damping, in the metric of the curvature, lets them
run off at once, and the way back is long.)

A lane has converged when a fresh Jacobian promises hardly any more log-likelihood. The information
about the key is taken from that Jacobian, so that it belongs to the solution.

Sources: Levenberg 1944, Marquardt 1963, Broyden 1965; a damping proportional to the residual is in
Yamashita and Fukushima 2001.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_factor, cho_solve
from jaxtyping import Float, Int

from fpjax.errors import InputError
from fpjax.inversion.information import (
    JITTER,
    alpha_precision,
    linearise,
    profile,
    tangents_in_block,
)
from fpjax.inversion.observation import LEAK, noise_ratio
from fpjax.inversion.prior import GaussianPrior
from fpjax.inversion.problem import Problem
from fpjax.inversion.solution import RUNNING, Status
from fpjax.inversion.solvers.base import Estimate
from fpjax.inversion.starts import linear_starts

Array = jax.Array

_NEAR = 1.5
"""Noise ratio below which the clip's true derivative is used instead of a leaking one."""

_SETTLED = 0.05
"""Nats: an inner step that gains less is the last one with this Jacobian."""

_MOST_DAMPING = 1e6


class LaneState(NamedTuple):
    """State of one lane."""

    unknowns: Array
    """(K,)"""
    damping: Array
    """Multiple of the mean squared residual that the prior's precision is scaled by."""
    cost: Array
    """Half the squared residual and the prior, in nats."""
    ratio: Array
    """Residual in units of the noise."""
    promise: Array
    """Decrease of the cost, in nats, that the last Jacobian promised at its own point."""
    shrink: Array
    """Cost after the last step as a share of the cost before it."""
    information: Array
    """S at the last Jacobian, (L, L)."""
    linear: Array
    """h at the last Jacobian, (L,)."""
    steps: Array
    """Jacobians taken."""


@dataclasses.dataclass(frozen=True)
class LevenbergMarquardt:
    """Settings of the solver.

    Attributes:
      max_steps: Jacobians an image may cost.
      inner_steps: steps taken with each Jacobian, at most.
      tolerance: nats an unknown; where a fresh Jacobian promises less than this times K, a lane has
        converged. Noise lets the cost at a solution fall below that at the truth by half a nat an
        unknown, so that the default leaves a few percent of that. The information about the key
        extrapolates to the minimum.
      solved_ratio: residual, in units of the observation's noise, up to which an image that has
        converged is solved.
      hopeless_ratio, hopeless_after: an image whose residual is still above this ratio after this
        many Jacobians, and whose cost fell by less than a fifth in the last, is given up: nothing
        here explains it.
      stalled_after: an image that is not solved after this many Jacobians, and whose cost fell by
        less than a tenth in the last, has converged with more than noise left.
      jacobian_dtype: "float32", or "bfloat16" where the Jacobian alone is larger than memory;
        products accumulate in float32 either way.
    """

    max_steps: int = 20
    inner_steps: int = 16
    tolerance: float = 0.02
    solved_ratio: float = 1.3
    hopeless_ratio: float = 25.0
    hopeless_after: int = 4
    stalled_after: int = 6
    jacobian_dtype: str = "float32"

    name: ClassVar[str] = "levenberg-marquardt"
    cpu_lanes: ClassVar[int] = 1

    def __post_init__(self):
        if self.max_steps < 1 or self.inner_steps < 1:
            raise InputError(
                f"max_steps {self.max_steps}, inner_steps {self.inner_steps}: expected at least 1"
            )
        if not self.tolerance > 0:
            raise InputError(f"tolerance {self.tolerance}: expected a positive number")
        if self.jacobian_dtype not in ("float32", "bfloat16"):
            raise InputError(
                f"jacobian_dtype {self.jacobian_dtype!r}: choose 'float32' or 'bfloat16'"
            )

    def refuses(self, problem: Problem) -> str | None:
        """It needs squared residuals, a Gaussian prior and relaxed symbols."""
        if hasattr(problem.observation, "distance"):
            return f"its distance, {problem.observation.name}, is no sum of squared residuals"
        if not isinstance(problem.prior, GaussianPrior):
            return f"its prior is {type(problem.prior).__name__}, not GaussianPrior"
        if problem.symbols != "relaxed":
            return f"its symbols are {problem.symbols!r}, not 'relaxed'"
        return None

    def starts(
        self, problem: Problem, images: Float[np.ndarray, "batch height width channels"]
    ) -> Float[np.ndarray, "*starts unknowns"]:
        """The calibrated linear start, (B, 1, K)."""
        return linear_starts(problem, images)[:, None]

    def lane_bytes(self, problem: Problem) -> int:
        """The Jacobian, its updates, and a few matrices of the unknowns."""
        size, pixels = problem.num_unknowns, math.prod(problem.scheme.generator.image_shape)
        itemsize = 4 if self.jacobian_dtype == "float32" else 2
        return itemsize * size * pixels + 4 * self.inner_steps * pixels + 5 * 4 * size * size

    def plan(self, problem: Problem, memory: int) -> int:
        """Tangents in a block."""
        return tangents_in_block(problem, memory)

    def init(
        self,
        problem: Problem,
        start: Float[Array, " unknowns"],
        target: Float[Array, "height width channels"],
    ) -> LaneState:
        """Evaluates a start."""
        unknowns = problem.bounded(start)
        _, cost, ratio = _evaluate(problem, unknowns, target, LEAK)
        length = problem.scheme.num_symbols
        zeros = jnp.zeros((length, length), jnp.float32)
        one, infinite = jnp.ones((), jnp.float32), jnp.full((), jnp.inf, jnp.float32)
        return LaneState(
            unknowns, one, cost, ratio, infinite, one, zeros, zeros[0], jnp.zeros((), jnp.int32)
        )

    def step(
        self,
        problem: Problem,
        state: LaneState,
        target: Float[Array, "height width channels"],
        plan: int,
    ) -> LaneState:
        """One linearisation and the inner steps that are taken with it."""
        assert isinstance(problem.prior, GaussianPrior)  # see `refuses`
        mean, std = problem.prior.mean_and_std(problem.scheme)
        precision = 1 / std**2
        num_alpha = problem.scheme.num_alpha
        leak = jnp.where(state.ratio > _NEAR, jnp.float32(LEAK), jnp.float32(0))
        residual, rows = linearise(problem, state.unknowns, target, leak, plan, self.jacobian_dtype)
        gram = _product(rows, rows.T)
        slope = _product(rows, residual)

        # The key's information has no prior on the symbols; what alpha's adds stays.
        free = alpha_precision(problem)
        information, linear = profile(
            gram + jnp.diag(free),
            slope + free * state.unknowns,
            state.unknowns[num_alpha:],
            num_alpha,
        )
        gradient = slope + precision * (state.unknowns - mean)
        newton = _solve(gram + jnp.diag(precision), gradient)
        promise = 0.5 * gradient @ newton

        def objective(unknowns):
            return _evaluate(problem, unknowns, target, leak)

        updates = (
            jnp.zeros((self.inner_steps, len(std)), jnp.float32),
            jnp.zeros((self.inner_steps, len(residual)), jnp.float32),
        )
        _, start_cost, _ = objective(state.unknowns)
        enough = promise < self.tolerance * problem.num_unknowns
        gain = jnp.where(enough, jnp.float32(0), jnp.float32(jnp.inf))
        begin = _Inner(
            gram, slope, updates, state.unknowns, residual, start_cost, state.ratio, state.damping,
            gain, jnp.zeros((), jnp.int32),
        )  # fmt: skip

        def running(inner: _Inner):
            return (inner.count < self.inner_steps) & (inner.gain > _SETTLED)

        def body(inner: _Inner):
            return _inner_step(problem, rows, mean, precision, objective, inner)

        end = jax.lax.while_loop(running, body, begin)
        shrink = end.cost / jnp.maximum(start_cost, 1e-6)
        return LaneState(
            end.unknowns, end.damping, end.cost, end.ratio, promise, shrink, information, linear,
            state.steps + 1,
        )  # fmt: skip

    def terminate(self, problem: Problem, state: LaneState) -> Int[Array, ""]:
        """See `Solver`."""
        finite = jnp.isfinite(state.cost) & jnp.isfinite(state.ratio)
        enough = state.promise < self.tolerance * problem.num_unknowns
        converged = enough & (state.steps > 0)
        hopeless = (
            (state.steps >= self.hopeless_after)
            & (state.ratio > self.hopeless_ratio)
            & (state.shrink > 0.8)
        )
        stalled = (
            (state.steps >= self.stalled_after)
            & (state.ratio > self.solved_ratio)
            & (state.shrink > 0.9)
        )
        stuck = stalled | (state.damping >= _MOST_DAMPING)
        ended = jnp.where(
            state.ratio <= self.solved_ratio, jnp.int32(Status.SOLVED), jnp.int32(Status.CONVERGED)
        )
        status = jnp.where(
            state.steps >= self.max_steps, jnp.int32(Status.MAX_STEPS), jnp.int32(RUNNING)
        )
        status = jnp.where(hopeless, jnp.int32(Status.UNEXPLAINED), status)
        status = jnp.where(converged | stuck, ended, status)
        return jnp.where(finite, status, jnp.int32(Status.NOT_FINITE))

    def solution(
        self, problem: Problem, state: LaneState, target: Float[Array, "height width channels"]
    ) -> Estimate:
        """See `Solver`."""
        del problem, target
        return Estimate(state.unknowns, state.cost, state.ratio, state.information, state.linear)

    def steps_taken(self, state: LaneState) -> Int[Array, ""]:
        """Jacobians taken."""
        return state.steps


GaussNewton = LevenbergMarquardt
"""The name that users of Gauss-Newton methods may look for."""


class _Inner(NamedTuple):
    gram: Array
    """J J^T of the updated Jacobian, (K, K)."""
    slope: Array
    """J r of it, (K,)."""
    updates: tuple[Array, Array]
    """Broyden's rank-one terms: J = rows + sum of outer(first[i], second[i])."""
    unknowns: Array
    residual: Array
    cost: Array
    ratio: Array
    damping: Array
    gain: Array
    """Nats that the last accepted step gained; infinite after a refused one."""
    count: Array


def _inner_step(problem, rows, mean, precision, objective, inner: _Inner) -> _Inner:
    excess = jnp.maximum(jnp.mean(inner.residual**2) - 1, 0)
    damped = precision * (1 + inner.damping * excess)
    gradient = inner.slope + precision * (inner.unknowns - mean)
    moved = problem.bounded(inner.unknowns - _solve(inner.gram + jnp.diag(damped), gradient))
    residual, cost, ratio = objective(moved)
    better = cost < inner.cost

    # Broyden's update, least change in the metric of the prior; a refused step teaches too.
    first, second = inner.updates
    change = moved - inner.unknowns
    predicted = _product(change, rows) + (first @ change) @ second
    error = residual - inner.residual - predicted
    finite = jnp.isfinite(cost) & jnp.all(jnp.isfinite(error))
    error = jnp.where(finite, error, jnp.zeros_like(error))
    weight = precision * change
    weight = weight / jnp.maximum(weight @ change, 1e-12)
    seen = _product(rows, error) + first.T @ (second @ error)
    gram = (
        inner.gram
        + weight[:, None] * seen[None]
        + seen[:, None] * weight[None]
        + (error @ error) * weight[:, None] * weight[None]
    )
    first = first.at[inner.count].set(jnp.where(finite, weight, jnp.zeros_like(weight)))
    second = second.at[inner.count].set(error)
    kept = jnp.where(better, residual, inner.residual)
    damping = jnp.where(better, inner.damping / 3, inner.damping * 5)
    return _Inner(
        gram=gram,
        slope=_product(rows, kept) + first.T @ (second @ kept),
        updates=(first, second),
        unknowns=jnp.where(better, moved, inner.unknowns),
        residual=kept,
        cost=jnp.where(better, cost, inner.cost),
        ratio=jnp.where(better, ratio, inner.ratio),
        damping=jnp.clip(damping, 1e-4, _MOST_DAMPING),
        gain=jnp.where(better, inner.cost - cost, jnp.inf),
        count=inner.count + 1,
    )


def _evaluate(problem: Problem, unknowns: Array, target: Array, leak):
    """Residual (M,), cost with the prior, and noise ratio of one image."""
    image = problem.image(unknowns)
    residual = problem.observation.residual(image, target, leak)
    cost = 0.5 * (residual @ residual) + problem.prior.penalty(problem.scheme, unknowns)
    # A step into nonsense is refused, never followed.
    cost = jnp.where(jnp.isfinite(cost), cost, jnp.inf)
    return residual, cost, noise_ratio(problem.observation, image, target)


def _product(a: Array, b: Array) -> Array:
    """Matrix product accumulated in float32, also of rows kept in bfloat16."""
    dtype = jnp.bfloat16 if jnp.bfloat16 in (a.dtype, b.dtype) else jnp.float32
    return jnp.matmul(a.astype(dtype), b.astype(dtype), preferred_element_type=jnp.float32)


def _solve(curvature: Array, gradient: Array) -> Array:
    """Solves a symmetric positive definite system, scaled to a unit diagonal."""
    scale = jax.lax.rsqrt(jnp.maximum(jnp.diag(curvature), 1e-30))
    scaled = curvature * scale[:, None] * scale[None]
    factor = cho_factor(scaled + JITTER * jnp.eye(len(scale), dtype=scaled.dtype))
    return scale * cho_solve(factor, scale * gradient)
