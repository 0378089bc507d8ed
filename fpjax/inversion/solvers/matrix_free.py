"""Levenberg-Marquardt by conjugate gradients: for latents of thousands of values.

The same damped steps as `levenberg_marquardt`, with no Jacobian: a linearisation gives products
with J and J^T, and conjugate gradients solve for the step with them, as far as it pays (Dembo,
Eisenstat and Steihaug 1982). In the coordinates of the image metric J^T J is about a multiple of
the identity, so that a diagonal preconditioner is that metric and the prior together.

It starts from the generator's encoder. The information about the key is computed once for each
image, where its lane ends: from the rows of the Jacobian where they are few enough, else by one
system for each symbol (`krylov.key_information`).
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from fpjax.errors import InputError
from fpjax.inversion import krylov
from fpjax.inversion.information import KeyInformation, alpha_precision, profile, tangents_in_block
from fpjax.inversion.observation import LEAK
from fpjax.inversion.problem import Problem
from fpjax.inversion.solution import RUNNING, Status
from fpjax.inversion.solvers.base import Estimate, evaluate, not_least_squares
from fpjax.inversion.starts import encoder_starts, linear_starts
from fpjax.inversion.window_starts import has_window, window_starts

Array = jax.Array

_NEAR = 1.5
"""Noise ratio below which the clip's true derivative is used instead of a leaking one."""

_ATTEMPTS = 5
"""Dampings tried with one linearisation."""

_MOST_DAMPING = 1e6

_ROWS_BYTES = 512 << 20
"""Rows of a Jacobian that are held at once, at most, for the information."""


class LaneState(NamedTuple):
    """State of one lane."""

    unknowns: Array
    """(K,)"""
    damping: Array
    """Multiple of the mean squared residual's excess that the prior's precision is scaled by."""
    cost: Array
    """Half the squared residual and the prior, in nats."""
    ratio: Array
    """Residual in units of the noise."""
    promise: Array
    """Decrease of the cost, in nats, that the last undamped step promised."""
    shrink: Array
    """Cost after the last step as a share of the cost before it."""
    information: Array
    """S, (L, L), once the lane has ended."""
    linear: Array
    """h, (L,), once the lane has ended."""
    excess: Array
    """Bound on the trace of S less the exact one, ()."""
    steps: Array
    """Linearisations."""
    products: Array
    """Products with J and its transpose, in pairs, without those for the information."""


@dataclasses.dataclass(frozen=True)
class MatrixFree:
    """Settings of the solver.

    Attributes:
      max_steps: linearisations an image may cost.
      cg_steps: products for one step, at most.
      forcing: a step is solved for until another product gains less than this share of the mean
        gain so far.
      tolerance: nats an unknown; where a step promises less than this times K, a lane has
        converged.
      solved_ratio: residual, in units of the observation's noise, up to which an image that has
        converged is solved.
      hopeless_ratio, hopeless_after, stalled_after: as in `LevenbergMarquardt`, in linearisations.
      information: "rows" takes the Jacobian's rows once, "systems" solves for each symbol, "auto"
        takes the cheaper, "none" leaves it out.
      information_steps: products for a symbol's system, at most.
      information_forcing: as `forcing`, for those systems; the default leaves S too large by well
        under a hundredth (`krylov.key_information` bounds it).

    >>> import fpjax
    >>> from fpjax.models.linear import linear_generator
    >>> generator = linear_generator()
    >>> basis = fpjax.fit_basis(generator, jax.random.key(0), 100, metric="latent")
    >>> scheme = fpjax.Scheme.create(generator, basis, key_length=4, strength=0.5)
    >>> images = fpjax.generate(scheme, jax.random.key(1), np.asarray([[0, 1, 1, 0]])).images
    >>> found = fpjax.invert(
    ...     fpjax.Problem(scheme), images, MatrixFree(), starts=np.zeros((1, 16)))
    >>> found.keys.tolist()
    [[0, 1, 1, 0]]
    """

    max_steps: int = 30
    cg_steps: int = 60
    forcing: float = 0.1
    tolerance: float = 0.02
    solved_ratio: float = 1.3
    hopeless_ratio: float = 25.0
    hopeless_after: int = 4
    stalled_after: int = 8
    information: Literal["auto", "rows", "systems", "none"] = "auto"
    information_steps: int = 30
    information_forcing: float = 0.01

    name: ClassVar[str] = "matrix-free"
    cpu_lanes: ClassVar[int] = 1

    def __post_init__(self):
        counts = (self.max_steps, self.cg_steps, self.information_steps)
        if min(counts) < 1:
            raise InputError(
                f"max_steps, cg_steps, information_steps {counts}: expected at least 1"
            )
        if not min(self.tolerance, self.forcing, self.information_forcing) > 0:
            raise InputError(
                f"tolerance {self.tolerance}, forcing {self.forcing}, information_forcing "
                f"{self.information_forcing}: expected positive numbers"
            )
        if self.information not in ("auto", "rows", "systems", "none"):
            raise InputError(
                f"information {self.information!r}: choose 'auto', 'rows', 'systems' or 'none'"
            )

    def refuses(self, problem: Problem) -> str | None:
        """It needs squared residuals, a Gaussian prior and relaxed symbols."""
        return not_least_squares(problem)

    def starts(
        self, problem: Problem, images: Float[np.ndarray, "batch height width channels"]
    ) -> Float[np.ndarray, "*starts unknowns"]:
        """What the encoder reads, (B, 1, K); the calibrated linear start where one was kept."""
        if has_window(problem):
            return window_starts(problem, images)
        calibration = problem.scheme.calibration
        kept = calibration is not None and calibration.start is not None
        if kept or problem.scheme.generator.encode is None:
            return linear_starts(problem, images)[:, None]
        return encoder_starts(problem, images)[:, None]

    def by_rows(self, problem: Problem) -> bool:
        """Whether the information comes from the Jacobian's rows: fewer products, and they fit."""
        if self.information != "auto":
            return self.information == "rows"
        size, length = problem.num_unknowns, problem.scheme.num_symbols
        bytes_ = 4 * size * math.prod(problem.scheme.generator.image_shape)
        return size <= length * self.information_steps and bytes_ <= _ROWS_BYTES

    def lane_bytes(self, problem: Problem) -> int:
        """The rows for the information, or the systems' vectors."""
        size, length = problem.num_unknowns, problem.scheme.num_symbols
        pixels = math.prod(problem.scheme.generator.image_shape)
        vectors = 4 * (size + pixels)
        if self.information == "none":
            return 16 * vectors
        if self.by_rows(problem):
            return 16 * vectors + 4 * size * pixels + 12 * size * size
        return (16 + 4 * length) * vectors

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
        _, cost, ratio = evaluate(problem, unknowns, target, LEAK)
        length = problem.scheme.num_symbols
        zeros = jnp.zeros((length, length), jnp.float32)
        zero, one = zeros[0, 0], jnp.ones((), jnp.float32)
        none = jnp.zeros((), jnp.int32)
        return LaneState(
            unknowns, one, cost, ratio, jnp.full_like(zero, jnp.inf), one, zeros, zeros[0], zero,
            none, none,
        )  # fmt: skip

    def step(
        self,
        problem: Problem,
        state: LaneState,
        target: Float[Array, "height width channels"],
        plan: int,
    ) -> LaneState:
        """One linearisation, and the first damping whose step makes it better."""
        mean, std = problem.mean_and_std()
        precision = 1 / std**2
        leak = jnp.where(state.ratio > _NEAR, jnp.float32(LEAK), jnp.float32(0))
        here = krylov.linearised(problem, state.unknowns, target, leak)
        excess = jnp.maximum(jnp.mean(here.residual**2) - 1, 0)
        scale = krylov.scale_of(problem, here)
        gradient = here.pull(here.residual) + precision * (state.unknowns - mean)
        _, start_cost, _ = evaluate(problem, state.unknowns, target, leak)
        settled = jnp.float32(1e-4 * self.tolerance * problem.num_unknowns)

        def attempt(tried):
            damping, count, products = tried[0], tried[4], tried[5]
            damped = precision * (1 + damping * excess)
            found = krylov.conjugate_gradients(
                lambda v: here.curvature(v) + damped * v,
                -gradient,
                scale + damped,
                self.cg_steps,
                forcing=self.forcing,
                settled=settled,
            )
            moved = problem.bounded(state.unknowns + found.x)
            _, cost, ratio = evaluate(problem, moved, target, leak)
            better = cost < start_cost
            after = jnp.clip(jnp.where(better, damping / 5, damping * 8), 1e-6, _MOST_DAMPING)
            # Only a step that was hardly damped tells how much there is to gain.
            undamped = damping * excess < 0.1
            promise = jnp.where(undamped, found.gain, jnp.float32(jnp.inf))
            return (
                after,
                jnp.where(better, moved, state.unknowns),
                jnp.where(better, cost, start_cost),
                jnp.where(better, ratio, state.ratio),
                count + 1,
                products + found.steps,
                promise,
                better,
            )

        def trying(tried):
            count, promise, better = tried[4], tried[6], tried[7]
            enough = promise < self.tolerance * problem.num_unknowns
            return (count < _ATTEMPTS) & ~better & ~enough

        none, infinite = jnp.zeros((), jnp.int32), jnp.full((), jnp.inf, jnp.float32)
        damping, unknowns, cost, ratio, _, products, promise, _ = jax.lax.while_loop(
            trying,
            attempt,
            (
                state.damping, state.unknowns, start_cost, state.ratio, none, state.products,
                infinite, jnp.zeros((), bool),
            ),
        )  # fmt: skip
        moved = state._replace(
            unknowns=unknowns,
            damping=damping,
            cost=cost,
            ratio=ratio,
            promise=promise,
            shrink=cost / jnp.maximum(start_cost, 1e-6),
            steps=state.steps + 1,
            products=products + 3,
        )
        status = self.terminate(problem, moved)
        wanted = (status == Status.SOLVED) | (status == Status.CONVERGED)
        wanted = wanted | (status == Status.MAX_STEPS)
        if self.information == "none":
            return moved

        def known(_):
            return self._information(problem, here, state.unknowns, scale, plan)

        def unknown(_):
            return krylov.Bounded(
                KeyInformation(moved.information, moved.linear), jnp.zeros((), jnp.float32)
            )

        found = jax.lax.cond(wanted, known, unknown, None)
        return moved._replace(
            information=found.key.information, linear=found.key.linear, excess=found.excess
        )

    def _information(self, problem, here, unknowns, scale, plan) -> krylov.Bounded:
        if not self.by_rows(problem):
            steps, forcing = self.information_steps, self.information_forcing
            return krylov.key_information(problem, here, unknowns, scale, steps, forcing, plan)
        units = jnp.eye(problem.num_unknowns, dtype=jnp.float32)
        rows = jax.lax.map(here.push, units, batch_size=min(plan, len(units)))
        precision = alpha_precision(problem)
        key = profile(
            rows @ rows.T + jnp.diag(precision),
            rows @ here.residual + precision * unknowns,
            unknowns[problem.num_nuisances :],
            problem.num_nuisances,
        )
        return krylov.Bounded(key, jnp.zeros((), jnp.float32))

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
        status = jnp.where(converged | stuck, ended, status)
        status = jnp.where(hopeless, jnp.int32(Status.UNEXPLAINED), status)
        return jnp.where(finite, status, jnp.int32(Status.NOT_FINITE))

    def solution(
        self, problem: Problem, state: LaneState, target: Float[Array, "height width channels"]
    ) -> Estimate:
        """See `Solver`."""
        del problem, target
        information, linear = state.information, state.linear
        if self.information == "none":
            return Estimate(state.unknowns, state.cost, state.ratio)
        return Estimate(state.unknowns, state.cost, state.ratio, information, linear)

    def steps_taken(self, state: LaneState) -> Int[Array, ""]:
        """Linearisations."""
        return state.steps
