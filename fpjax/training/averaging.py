"""What every recipe's step shares: the optimiser's update, and the running average of weights."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

Array = jax.Array


def descend(optimizer: optax.GradientTransformation, grads, state, params) -> tuple[Any, Any]:
    """One update of the parameters: (new parameters, new optimiser state)."""
    # Optax raises floats to its integer step count, which strict promotion would refuse.
    with jax.numpy_dtype_promotion("standard"):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state


def averaged(average, params, step: Array, batch_size: int, half_life: float):
    """The weights' running average after a step, `half_life` in images.

    It starts short, so that early checkpoints do not show the random initialisation.

    >>> averaged(jnp.ones(()), jnp.zeros(()), jnp.int32(10**6), 1, 1.0).tolist()
    0.5
    """
    seen = ((step + 1) * batch_size).astype(jnp.float32)
    half_life_now = jnp.minimum(half_life, 0.05 * seen + batch_size)
    decay = 0.5 ** (batch_size / half_life_now)
    return jax.tree.map(lambda a, p: p + decay * (a - p), average, params)


def adam(learning_rate: float, steps: int, warm_up: int, decay_fraction: float):
    """Adam with clipped gradients, a linear warm-up, and a linear fall to zero at the end."""
    falling = max(1, int(steps * decay_fraction))
    schedule = optax.join_schedules(
        [
            optax.linear_schedule(learning_rate / warm_up, learning_rate, warm_up),
            optax.linear_schedule(learning_rate, 0.0, falling, max(0, steps - falling - warm_up)),
        ],
        [warm_up],
    )
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule, b1=0.9, b2=0.99))
