"""Levenberg-Marquardt with Broyden updates, damped in the metric of the prior: the default solver.

Inversion of a generator is an ill-conditioned nonlinear least-squares problem of a few hundred
unknowns, where first-order methods crawl along narrow valleys. Each step here linearises the
generator once, takes the full Jacobian in blocks of tangents, and makes the most of it: dozens of
inner steps, each of a single forward pass (`fpjax/inversion/broyden.py`).

A lane has converged when a fresh Jacobian promises hardly any more log-likelihood, or, on files
that were rounded alone, when one was taken so near the solution that the noise itself moves the
solution as far, and its inner steps have nothing more to gain. The information about the key is
taken from that Jacobian. On noisier files, and while large pictures are not explained, each
Jacobian's inner steps are followed by steps with exact slopes (`fpjax/inversion/polish.py`).
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from fpjax.errors import InputError
from fpjax.inversion.broyden import SETTLED, descend, product, solve, tempered
from fpjax.inversion.information import (
    alpha_precision,
    bytes_of_tangent,
    linearise,
    profile,
    tangents_in_block,
)
from fpjax.inversion.observation import LEAK, relative_noise, says_noise
from fpjax.inversion.polish import polish
from fpjax.inversion.problem import Problem
from fpjax.inversion.solution import RUNNING, Status
from fpjax.inversion.solvers.base import Estimate, evaluate, not_least_squares
from fpjax.inversion.starts import linear_starts, nearer_start
from fpjax.inversion.window_starts import has_window, window_starts

Array = jax.Array

_NEAR = 1.5
"""Noise ratio below which the clip's true derivative is used instead of a leaking one."""

_ASTRAY = 10.0
"""Noise ratio after the first Jacobian above which the average Jacobian is taken to have led into
another valley: the lane goes back to the start it was given."""

_HOPELESS = 0.8
"""Share of the cost that a Jacobian left, above which an image far from the noise is given up."""

_SMALL = 64 * 64
"""Pixels of pictures whose lanes are neither tempered nor need slopes, by default."""

_STALLED = 0.9
"""Share of the cost that a Jacobian left, above which a lane hardly moves."""


class LaneState(NamedTuple):
    """State of one lane."""

    unknowns: Array
    """(K,)"""
    damping: Array
    """See `broyden.Descent`."""
    cost: Array
    """Half the squared residual and the prior, in nats."""
    ratio: Array
    """Residual in units of the noise."""
    promise: Array
    """Decrease of the cost, in nats, that the last Jacobian promised at its own point."""
    shrink: Array
    """Cost after the last step as a share of the cost before it."""
    tempered: Array
    """Whether the last step's prior was tempered."""
    settled: Array
    """Whether the last Jacobian's inner steps ended because they gained nothing more."""
    information: Array
    """S at the last Jacobian, (L, L)."""
    linear: Array
    """h at the last Jacobian, (L,)."""
    steps: Array
    """Jacobians taken."""
    start: Array
    """Where the lane was told to start, (K,)."""


@dataclasses.dataclass(frozen=True)
class LevenbergMarquardt:
    """Settings of the solver.

    Attributes:
      max_steps: Jacobians an image may cost.
      inner_steps: steps taken with each Jacobian, at most.
      polish_steps: steps with exact slopes after those, at most, where a file is noisier than
        rounding makes it.
      tolerance: nats an unknown; where a fresh Jacobian promises less than this times K, a lane has
        converged. Noise lets the cost at a solution fall below that at the truth by half a nat an
        unknown, so that the default leaves a few percent of that. The information about the key
        extrapolates to the minimum.
      near: nats an unknown, for files that were rounded alone; where a Jacobian promised less than
        this times K and its inner steps ran until they gained nothing, it counts as taken at the
        solution. The score of the true key over its length, 1 where information is honest, was
        1.09 with 1, 1.06 with 0.3 and 1.04 with 0 on 48 files of the bundled generator, after 2.9,
        3.1 and 3.8 Jacobians each. A file that is n times noisier has 1 / n^2 of it. 0 asks for a
        fresh one always.
      solved_ratio: residual, in units of the observation's noise, up to which an image that has
        converged is solved.
      hopeless_ratio, hopeless_after: an image whose residual is still above this ratio after this
        many Jacobians, and whose cost fell by less than a fifth in the last, is given up: nothing
        here explains it.
      foreign_ratio: residual after the first Jacobian from a calibrated start above which an image
        is given up at once; `default_solver` lowers it where calibration saw that own files leave
        far less. 64 own files of the bundled generator left 0.9 to 7.8 there, JPEG files of them 24
        to 95, drawings 58 to 261 (`python benchmarks/starts.py --num_images 64 --foreign 64`); own
        files of a DCGAN, whose start is poor, up to 95. Infinity asks for every attempt.
      stalled_after: an image that is not solved after this many Jacobians, and whose cost fell by
        less than a tenth in the last, has converged with more than noise left.
      tempering: how much more the prior weighs while the image is not explained, see
        `broyden.tempered`; 0 leaves the cost as it is. With the mean squared residual s its
        precision is multiplied by `1 + tempering (s - 1)` (iteratively regularised Gauss-Newton,
        Bakushinskii 1992). It is left out from the first Jacobian on that it holds back, and no
        lane converges with it. It is for lanes that start far off, with 10, and for large pictures,
        whose many pixels let unknowns run off to fit what only better ones explain. By default 0
        for pictures of up to 64 x 64 pixels, and 10 for each 32 x 32 of larger ones.
      slopes: steps with exact slopes that follow those of a Jacobian while the image is not
        explained, at most. A slope costs a few forward passes, a Jacobian one for each unknown. By
        default 0 for pictures of up to 64 x 64 pixels, for which they save no Jacobian, and 200 for
        larger ones.
      jacobian_dtype: "float32", or "bfloat16" on an accelerator where the Jacobian alone is larger
        than memory; products accumulate in float32 either way. CPUs have no such products and make
        float32 of it again, which saves nothing: `MatrixFree` is for them.

    >>> LevenbergMarquardt(max_steps=5).name
    'levenberg-marquardt'
    >>> LevenbergMarquardt(max_steps=0)
    Traceback (most recent call last):
        ...
    fpjax.errors.InputError: max_steps 0, inner_steps 48: expected at least 1
    """

    max_steps: int = 20
    inner_steps: int = 48
    polish_steps: int = 40
    tolerance: float = 0.02
    near: float = 0.3
    solved_ratio: float = 1.3
    hopeless_ratio: float = 25.0
    hopeless_after: int = 4
    foreign_ratio: float = 130.0
    stalled_after: int = 6
    tempering: float | None = None
    slopes: int | None = None
    jacobian_dtype: str = "float32"

    name: ClassVar[str] = "levenberg-marquardt"
    # Each core has a lane of its own. Several in one program would factor matrices in batches, and
    # on CPU such kernels wait for the thread pool that they run in: two at once never end.
    cpu_lanes: ClassVar[int] = 1

    def __post_init__(self):
        if self.max_steps < 1 or self.inner_steps < 1:
            raise InputError(
                f"max_steps {self.max_steps}, inner_steps {self.inner_steps}: expected at least 1"
            )
        if not self.tolerance > 0 or not self.near >= 0:
            raise InputError(
                f"tolerance {self.tolerance}, near {self.near}: expected positive numbers, or no "
                "near"
            )
        if not (self.tempering or 0) >= 0 or not (self.slopes or 0) >= 0:
            raise InputError(
                f"tempering {self.tempering}, slopes {self.slopes}: expected numbers from 0"
            )
        if self.jacobian_dtype not in ("float32", "bfloat16"):
            raise InputError(
                f"jacobian_dtype {self.jacobian_dtype!r}: choose 'float32' or 'bfloat16'"
            )

    def refuses(self, problem: Problem) -> str | None:
        """It needs squared residuals, a Gaussian prior and relaxed symbols."""
        return not_least_squares(problem)

    def starts(
        self, problem: Problem, images: Float[np.ndarray, "batch height width channels"]
    ) -> Float[np.ndarray, "*starts unknowns"]:
        """The calibrated start, linear or the encoder's, (B, 1, K); the likeliest windows' where
        one is looked for."""
        if has_window(problem):
            return window_starts(problem, images)
        return linear_starts(problem, images)[:, None]

    def lane_bytes(self, problem: Problem) -> int:
        """The Jacobian, its updates, a few matrices of the unknowns, and a backward pass."""
        size, pixels = problem.num_unknowns, math.prod(problem.scheme.generator.image_shape)
        itemsize = 4 if self.jacobian_dtype == "float32" else 2
        matrices = itemsize * size * pixels + 4 * self.inner_steps * pixels + 6 * 4 * size * size
        return matrices + 4 * bytes_of_tangent(problem)

    def plan(self, problem: Problem, memory: int) -> int:
        """Tangents in a block."""
        return tangents_in_block(problem, memory)

    def _defaults_by_size(self, problem: Problem) -> tuple[float, int]:
        """Tempering and slopes, by the size of the pictures where they are not given."""
        pixels = math.prod(problem.scheme.generator.image_shape[:2])
        tempering, slopes = (10 * pixels / 32**2, 200) if pixels > _SMALL else (0.0, 0)
        return (
            tempering if self.tempering is None else self.tempering,
            slopes if self.slopes is None else self.slopes,
        )

    def init(
        self,
        problem: Problem,
        start: Float[Array, " unknowns"],
        target: Float[Array, "height width channels"],
    ) -> LaneState:
        """Evaluates a start; the calibrated average Jacobian takes it nearer first."""
        start = unknowns = problem.bounded(start)
        if problem.average_rows is not None:
            unknowns = nearer_start(problem, start, target)
        _, cost, ratio = evaluate(problem, unknowns, target, LEAK)
        length = problem.scheme.num_symbols
        zeros = jnp.zeros((length, length), jnp.float32)
        one, infinite = jnp.ones((), jnp.float32), jnp.full((), jnp.inf, jnp.float32)
        return LaneState(
            unknowns=unknowns,
            damping=one,
            cost=cost,
            ratio=ratio,
            promise=infinite,
            shrink=one,
            tempered=jnp.zeros((), bool),
            settled=jnp.zeros((), bool),
            information=zeros,
            linear=zeros[0],
            steps=jnp.zeros((), jnp.int32),
            start=start,
        )

    def step(
        self,
        problem: Problem,
        state: LaneState,
        target: Float[Array, "height width channels"],
        plan: int,
    ) -> LaneState:
        """One linearisation and the inner steps that are taken with it."""
        mean, std = problem.mean_and_std()
        precision = 1 / std**2
        leak = jnp.where(state.ratio > _NEAR, jnp.float32(LEAK), jnp.float32(0))
        residual, rows = linearise(problem, state.unknowns, target, leak, plan, self.jacobian_dtype)
        gram = product(rows, rows.T)
        gradient = product(rows, residual) + precision * (state.unknowns - mean)
        promise = 0.5 * gradient @ solve(gram + jnp.diag(precision), gradient)
        there = promise < self.tolerance * problem.num_unknowns
        noisy = relative_noise(problem.observation) > 1
        close = noisy & (state.ratio <= _NEAR) & ~there

        # Unknowns that run off to fit what only better ones explain do not come back. Where a
        # tempered prior holds a lane back, it goes on without to its end.
        tempering, slopes = self._defaults_by_size(problem)
        moving = (state.steps == 0) | (state.tempered & (state.shrink < _STALLED))
        heat = jnp.where(moving, jnp.float32(tempering), jnp.float32(0))

        def objective(unknowns):
            return evaluate(problem, unknowns, target, leak)

        cost = 0.5 * (residual @ residual) + problem.penalty(state.unknowns)
        end = descend(
            objective,
            rows,
            (state.unknowns, residual, cost, state.ratio),
            (mean, precision),
            jnp.minimum(state.damping, 1),
            bounded=problem.bounded,
            steps=self.inner_steps,
            already=there,
            gram=gram,
            heat=heat if tempering else None,
        )

        # Where what a Jacobian learns on the way does not take a lane to the noise, slopes do.
        far = (end.ratio > self.solved_ratio) & (end.ratio <= self.hopeless_ratio) & ~there
        # Near the noise the clip that the file went through has its own slopes.
        leak_of_slopes = jnp.where(end.ratio > _NEAR, leak, jnp.float32(0))

        def to_polish(unknowns):
            residual, cost, _ = evaluate(problem, unknowns, target, leak_of_slopes)
            if not tempering:
                return cost
            # As `cost`, infinite where it is not finite.
            warm = tempered(residual, problem.penalty(unknowns), heat)
            return jnp.where((heat > 0) & jnp.isfinite(cost), warm, cost)

        def warmth(residual):  # of the prior's precision, see `tempered`
            return 1 + heat * jnp.maximum(jnp.mean(residual**2) - 1, 0)

        def polished():
            # Under vmap both branches are taken: lanes that want no steps cost a slope.
            most = jnp.maximum(jnp.where(far, slopes, 0), jnp.where(close, self.polish_steps, 0))
            curvature = end.gram / warmth(end.residual) + jnp.diag(precision)
            found = polish(to_polish, end.unknowns, curvature, most, bounded=problem.bounded)
            residual, cost, ratio = evaluate(problem, found.unknowns, target, leak_of_slopes)
            slope = found.slope - precision * (found.unknowns - mean)
            return found.unknowns, slope * warmth(residual), cost, ratio

        unknowns, slope, reached, ratio = end.unknowns, end.slope, end.cost, end.ratio
        wanted = close | far if slopes else close
        if slopes or says_noise(problem.observation):  # else the branch need not be compiled
            here = unknowns, slope, reached, ratio
            unknowns, slope, reached, ratio = jax.lax.cond(wanted, polished, lambda: here)
        # The key's information has no prior on the symbols; what alpha's adds stays.
        free = alpha_precision(problem)
        information, linear = profile(
            gram + jnp.diag(free),
            slope + free * unknowns,
            unknowns[problem.num_nuisances :],
            problem.num_nuisances,
        )
        after = LaneState(
            unknowns=unknowns,
            damping=end.damping,
            cost=reached,
            ratio=ratio,
            promise=promise,
            shrink=reached / jnp.maximum(cost, 1e-6),
            tempered=heat > 0,
            settled=(end.gain <= SETTLED) & (state.ratio <= _NEAR) & (heat == 0),
            information=information,
            linear=linear,
            steps=state.steps + 1,
            start=state.start,
        )
        if problem.average_rows is None:
            return after

        def back(after: LaneState) -> LaneState:
            _, cost, ratio = evaluate(problem, after.start, target, LEAK)
            return after._replace(
                unknowns=after.start,
                damping=jnp.ones_like(after.damping),
                cost=cost,
                ratio=ratio,
                shrink=jnp.zeros_like(after.shrink),
            )

        astray = (state.steps == 0) & (ratio > _ASTRAY) & (ratio <= self.foreign_ratio)
        astray &= heat == 0
        return jax.lax.cond(astray, back, lambda after: after, after)

    def terminate(self, problem: Problem, state: LaneState) -> Int[Array, ""]:
        """See `Solver`."""
        finite = jnp.isfinite(state.cost) & jnp.isfinite(state.ratio)
        promise = state.promise / problem.num_unknowns
        near = self.near / relative_noise(problem.observation) ** 2
        enough = (promise < self.tolerance) | ((promise < near) & state.settled)
        converged = enough & (state.steps > 0)
        hopeless = (
            (state.steps >= self.hopeless_after)
            & (state.ratio > self.hopeless_ratio)
            & (state.shrink > _HOPELESS)
        )
        # A lane that goes back to its start has no share of the cost left, and another chance.
        foreign = (state.steps == 1) & (state.ratio > self.foreign_ratio) & (state.shrink > 0)
        # Tempering holds nothing back by as much as that.
        foreign &= problem.average_rows is not None
        hopeless = (hopeless & ~state.tempered) | foreign
        stalled = (
            (state.steps >= self.stalled_after)
            & (state.ratio > self.solved_ratio)
            & (state.shrink > _STALLED)
        )
        stuck = stalled | ((state.steps > 0) & (state.shrink >= 1))
        stuck &= ~state.tempered & ~foreign
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
