"""The published solver: Adam from many starts, lowest final loss wins.

Source: Nie et al. 2023, Section 4 and the released StyleGAN2 program.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax

from fpjax.inversion.problem import Problem, noise_ratio

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Adam:
    """Settings of the solver.

    Attributes:
      num_steps: iterations from each start.
      num_starts: Latin-hypercube starts for each image.
      learning_rate: of the first step.
      decay: the rate of step t (from 0) is `learning_rate * exp(-decay * (t + 1))`.
      seed: of the starts.
    """

    num_steps: int = 2000
    num_starts: int = 20
    learning_rate: float = 0.2
    decay: float = 1e-3
    seed: int = 0

    def __post_init__(self):
        if self.num_steps < 1 or self.num_starts < 1:
            raise ValueError(
                f"num_steps {self.num_steps}, num_starts {self.num_starts}: expected at least 1"
            )

    @classmethod
    def paper(cls) -> Adam:
        """The published settings: 20 starts of 2000 steps."""
        return cls()

    def schedule(self, count: Array) -> Array:
        """Learning rate of step `count`, from 0."""
        return self.learning_rate * jnp.exp(-self.decay * (count + 1))

    def optimizer(self) -> optax.GradientTransformation:
        """Adam with the published decay."""
        return optax.adam(self.schedule)


@functools.partial(jax.jit, static_argnums=(0, 1))
def run_chunk(problem: Problem, settings: Adam, params, state, targets, num_steps):
    """Advances a chunk of lanes by `num_steps`.

    Args:
      problem: what is minimised.
      settings: the solver's.
      params: the generator's.
      state: (unknowns (B, n), optimiser state).
      targets: (B, R, R, 3) in [-1, 1].
      num_steps: iterations to take; any number runs the same program.

    Returns:
      The next state, the loss (B,) and the noise ratio (B,) at it.
    """
    optimizer = settings.optimizer()

    def total(unknowns):
        loss = problem.loss_per_image(params, unknowns, targets)
        return loss.sum(), loss

    def body(_, carry):
        unknowns, memory = carry
        grads, _ = jax.grad(total, has_aux=True)(unknowns)
        updates, memory = optimizer.update(grads, memory)
        return problem.clip(optax.apply_updates(unknowns, updates)), memory

    unknowns, memory = jax.lax.fori_loop(0, num_steps, body, state)
    loss = problem.loss_per_image(params, unknowns, targets)
    return (unknowns, memory), loss, noise_ratio(problem, params, unknowns, targets)
