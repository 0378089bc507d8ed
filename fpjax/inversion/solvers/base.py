"""The protocol of solvers: pure functions of one lane, which the driver maps over lanes.

A lane is one image from one start. A solver is a frozen, hashable record of settings; its methods
are traced under jit and vmap.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from fpjax.inversion.observation import noise_ratio
from fpjax.inversion.prior import GaussianPrior
from fpjax.inversion.problem import Problem

Array = jax.Array
State = Any


class Estimate(NamedTuple):
    """What a lane knows about its image; every solver's state can be read as one."""

    unknowns: Array
    """(K,), alpha first."""
    cost: Array
    """What is minimised, ()."""
    ratio: Array
    """Residual in units of the observation's noise, ()."""
    information: Array | None = None
    """S, (L, L), or None."""
    linear: Array | None = None
    """h, (L,), or None."""


@runtime_checkable
class Solver(Protocol):
    """What the driver needs of a solver.

    >>> from fpjax.inversion.solvers.levenberg_marquardt import LevenbergMarquardt
    >>> isinstance(LevenbergMarquardt(), Solver)
    True
    """

    name: ClassVar[str]
    """Short and stable; calibrations record it."""
    cpu_lanes: ClassVar[int]
    """Lanes in a round on a CPU, at most. With 1, each core advances a lane of its own: `step` is
    traced and run in several threads, and `lane_bytes` says how many fit."""

    def refuses(self, problem: Problem) -> str | None:
        """Why this solver does not take a problem, or None where it does."""
        ...

    def starts(
        self, problem: Problem, images: Float[np.ndarray, "batch height width channels"]
    ) -> Float[np.ndarray, "*starts unknowns"]:
        """Starts (S, K) or (B, S, K) of images (B, H, W, C) in [-1, 1].

        Raises:
          InputError: if there is nowhere to start.
        """
        ...

    def lane_bytes(self, problem: Problem) -> int:
        """Bytes that one lane's step may take beside its tangents' activations."""
        ...

    def plan(self, problem: Problem, memory: int) -> int:
        """Tangents in a block (or another static number that `step` takes) for a memory budget."""
        ...

    def init(
        self,
        problem: Problem,
        start: Float[Array, " unknowns"],
        target: Float[Array, "height width channels"],
    ) -> State:
        """Evaluates a start (K,) for a file (H, W, C)."""
        ...

    def step(
        self,
        problem: Problem,
        state: State,
        target: Float[Array, "height width channels"],
        plan: int,
    ) -> State:
        """One step of one lane."""
        ...

    def terminate(self, problem: Problem, state: State) -> Int[Array, ""]:
        """`Status` of a lane, or `RUNNING`, () int32."""
        ...

    def solution(
        self, problem: Problem, state: State, target: Float[Array, "height width channels"]
    ) -> Estimate:
        """The estimate that a finished lane stands for."""
        ...

    def steps_taken(self, state: State) -> Int[Array, ""]:
        """Steps that a lane took, () int32."""
        ...


def not_least_squares(problem: Problem) -> str | None:
    """Why a problem has no Gauss-Newton step, or None: it takes squared residuals, a Gaussian prior
    and relaxed symbols."""
    if hasattr(problem.observation, "distance"):
        return f"its distance, {problem.observation.name}, is no sum of squared residuals"
    if not isinstance(problem.prior, GaussianPrior):
        return f"its prior is {type(problem.prior).__name__}, not GaussianPrior"
    if problem.symbols != "relaxed":
        return f"its symbols are {problem.symbols!r}, not 'relaxed'"
    return None


def evaluate(
    problem: Problem, unknowns: Array, target: Array, leak: Array | float
) -> tuple[Array, Array, Array]:
    """Residual (M,), cost with the prior in nats, and noise ratio of one image.

    The cost is infinite where it is not finite: a step into nonsense is refused, never followed.
    """
    image = problem.degraded(unknowns, leak)
    residual = problem.observation.residual(image, target, leak)
    cost = 0.5 * (residual @ residual) + problem.penalty(unknowns)
    cost = jnp.where(jnp.isfinite(cost), cost, jnp.inf)
    return residual, cost, noise_ratio(problem.observation, image, target)
