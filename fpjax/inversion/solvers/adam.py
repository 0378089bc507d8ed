"""The published solver: Adam from many starts, lowest final loss wins.

Source: Nie et al. 2023, Section 4 and the released StyleGAN2 program.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Int

from fpjax.errors import InputError
from fpjax.inversion.observation import noise_ratio
from fpjax.inversion.problem import Problem
from fpjax.inversion.solution import RUNNING, Status
from fpjax.inversion.solvers.base import Estimate
from fpjax.inversion.starts import latin_hypercube_starts
from fpjax.models.canonical import canonical_convolutions
from fpjax.models.jacobian import tangent_bytes

Array = jax.Array

_SEGMENT = 50
"""Iterations in a step of the driver, so that progress and Ctrl-C act between them."""


class LaneState(NamedTuple):
    """State of one lane."""

    unknowns: Array
    memory: Any
    cost: Array
    ratio: Array
    iterations: Array


@dataclasses.dataclass(frozen=True)
class Adam:
    """Settings of the solver.

    Attributes:
      num_steps: iterations from each start.
      num_starts: Latin-hypercube starts for each image.
      learning_rate: of the first step.
      decay: the rate of step t (from 0) is `learning_rate * exp(-decay * (t + 1))`.
      solved_ratio: residual, in units of the observation's noise, up to which an image counts as
        solved at the end. It stops nothing early: the published protocol takes all its steps.
      seed: of the starts.

    >>> Adam.paper().num_starts, round(float(Adam(decay=0.0).schedule(jnp.zeros(()))), 3)
    (20, 0.2)
    """

    num_steps: int = 2000
    num_starts: int = 20
    learning_rate: float = 0.2
    decay: float = 1e-3
    solved_ratio: float = 1.3
    seed: int = 0

    name: ClassVar[str] = "adam"
    cpu_lanes: ClassVar[int] = 16

    def __post_init__(self):
        if self.num_steps < 1 or self.num_starts < 1:
            raise InputError(
                f"num_steps {self.num_steps}, num_starts {self.num_starts}: expected at least 1"
            )

    @classmethod
    def paper(cls) -> Adam:
        """The published settings: 20 starts of 2000 steps."""
        return cls()

    def schedule(self, count: Any) -> Array:
        """Learning rate of step `count`, from 0."""
        return self.learning_rate * jnp.exp(-self.decay * (jnp.asarray(count, jnp.float32) + 1))

    def optimizer(self) -> optax.GradientTransformation:
        """Adam with the published decay."""
        return optax.adam(self.schedule)

    def refuses(self, problem: Problem) -> str | None:
        """It takes every problem."""
        del problem
        return None

    def starts(
        self, problem: Problem, images: Float[np.ndarray, "batch height width channels"]
    ) -> Float[np.ndarray, "*starts unknowns"]:
        """The published starts, (S, K)."""
        del images
        return latin_hypercube_starts(problem, self.num_starts, self.seed)

    def lane_bytes(self, problem: Problem) -> int:
        """Activations of generator and distance, kept for the backward pass."""
        point = jax.ShapeDtypeStruct((problem.num_unknowns,), jnp.float32)
        target = jax.ShapeDtypeStruct(problem.scheme.generator.image_shape, jnp.float32)
        # A dozen layers' activations are alive when the backward pass begins.
        each = tangent_bytes(lambda x, problem, y: problem.cost(x, y), point, problem, target)
        return 4 * each

    def plan(self, problem: Problem, memory: int) -> int:
        """Nothing to plan."""
        del problem, memory
        return 0

    def init(
        self,
        problem: Problem,
        start: Float[Array, " unknowns"],
        target: Float[Array, "height width channels"],
    ) -> LaneState:
        """Evaluates a start."""
        unknowns = problem.bounded(start)
        memory = self.optimizer().init(unknowns)
        cost, ratio = problem.cost(unknowns, target), _ratio(problem, unknowns, target)
        return LaneState(unknowns, memory, cost, ratio, jnp.zeros((), jnp.int32))

    def step(
        self,
        problem: Problem,
        state: LaneState,
        target: Float[Array, "height width channels"],
        plan: int,
    ) -> LaneState:
        """A segment of iterations."""
        del plan
        optimizer = self.optimizer()
        count = jnp.minimum(_SEGMENT, self.num_steps - state.iterations)

        def body(i, carry):
            # Under vmap all lanes go round the loop together: those that are done stand still.
            unknowns, memory = carry
            gradient = canonical_convolutions(jax.grad(problem.cost))(unknowns, target)
            with jax.numpy_dtype_promotion("standard"):  # optax mixes types
                updates, next_memory = optimizer.update(gradient, memory)
            moved = problem.bounded(unknowns + updates), next_memory
            return jax.tree.map(lambda new, old: jnp.where(i < count, new, old), moved, carry)

        unknowns, memory = jax.lax.fori_loop(
            0, min(_SEGMENT, self.num_steps), body, (state.unknowns, state.memory)
        )
        cost, ratio = problem.cost(unknowns, target), _ratio(problem, unknowns, target)
        return LaneState(unknowns, memory, cost, ratio, state.iterations + count)

    def terminate(self, problem: Problem, state: LaneState) -> Int[Array, ""]:
        """Only the step limit and values that are not finite end a lane."""
        del problem
        ended = jnp.where(
            state.ratio <= self.solved_ratio, jnp.int32(Status.SOLVED), jnp.int32(Status.MAX_STEPS)
        )
        status = jnp.where(state.iterations >= self.num_steps, ended, jnp.int32(RUNNING))
        return jnp.where(jnp.isfinite(state.cost), status, jnp.int32(Status.NOT_FINITE))

    def solution(
        self, problem: Problem, state: LaneState, target: Float[Array, "height width channels"]
    ) -> Estimate:
        """See `Solver`."""
        del problem, target
        return Estimate(state.unknowns, state.cost, state.ratio)

    def steps_taken(self, state: LaneState) -> Int[Array, ""]:
        """Iterations taken."""
        return state.iterations


def _ratio(problem: Problem, unknowns: Array, target: Array) -> Array:
    return noise_ratio(problem.observation, problem.degraded(unknowns), target)
