"""Descent with one Jacobian: damped Gauss-Newton steps of a forward pass each, Broyden updates.

A Jacobian costs hundreds of forward passes, a step that is taken with it one. Each step here
teaches the Jacobian what it saw (Broyden's update of rank one, the least change in the metric of
the prior), so that dozens of steps can be taken with one. The updates are kept as vectors beside
the Jacobian, and the curvature is updated in rank two.

Damping is in the metric of the prior and proportional to the residual: whatever the linear model
fails to explain is treated as noise, so that directions which the image hardly shows stay where the
prior puts them until the rest fits. (Marquardt's damping, in the metric of the curvature, lets them
run off at once, and the way back is long.)

Sources: Levenberg 1944, Marquardt 1963, Broyden 1965; a damping proportional to the residual is in
Yamashita and Fukushima 2001.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_factor, cho_solve

from fpjax.inversion.information import JITTER

Array = jax.Array

SETTLED = 0.05
"""Nats: a step that gains less is the last one with this Jacobian."""

_MOST_DAMPING = 1e14

_MOST_REFUSED = 6
"""Refused steps in a row after which a Jacobian has nothing more to give."""

_MOST_REFUSED_AT_FIRST = 20
"""The same where none was taken yet: from a fresh Jacobian a step that is short enough descends,
and the more pixels there are, the more damping that needs."""


class Descent(NamedTuple):
    """Where a descent stands."""

    gram: Array
    """J J^T of the updated Jacobian, (K, K)."""
    slope: Array
    """J r of it, (K,)."""
    updates: tuple[Array, Array]
    """Broyden's rank-one terms: J = rows + sum of outer(first[i], second[i])."""
    unknowns: Array
    """(K,)"""
    residual: Array
    """(M,)"""
    cost: Array
    """Half the squared residual and the prior, in nats."""
    ratio: Array
    """Residual in units of the noise."""
    damping: Array
    """Multiple of the mean squared residual that the prior's precision is scaled by."""
    gain: Array
    """Nats that the last accepted step gained, of the tempered cost where there is one; infinite
    after a refused one."""
    refused: Array
    """Steps refused in a row."""
    count: Array
    """Steps tried."""


def descend(
    objective: Callable[[Array], tuple[Array, Array, Array]],
    rows: Array,
    begin: tuple[Array, Array, Array, Array],
    prior: tuple[Array, Array],
    damping: Array,
    *,
    bounded: Callable[[Array], Array],
    steps: int,
    already: Array | bool = False,
    gram: Array | None = None,
    heat: Array | None = None,
) -> Descent:
    """Takes steps with one Jacobian until they gain nothing, or `steps` are taken.

    Args:
      objective: unknowns (K,) -> (residual (M,), cost, noise ratio).
      rows: (K, M) the residual's derivatives by the unknowns, at the start or near it.
      begin: unknowns at the start and what `objective` says of them.
      prior: mean and precision of the unknowns, each (K,).
      damping: of the first step.
      bounded: keeps unknowns where they may be.
      steps: at most this many.
      already: whether the start is good enough: then no step is taken.
      gram: `rows @ rows.T` where it is at hand.
      heat: see `tempered`; none leaves the cost as it is.
    """
    mean, precision = prior
    unknowns, residual, cost, ratio = begin
    zero, count = jnp.float32(0), jnp.zeros((), jnp.int32)
    start = Descent(
        gram=product(rows, rows.T) if gram is None else gram,
        slope=product(rows, residual),
        updates=(
            jnp.zeros((steps, len(mean)), jnp.float32),
            jnp.zeros((steps, len(residual)), jnp.float32),
        ),
        unknowns=unknowns,
        residual=residual,
        cost=cost,
        ratio=ratio,
        damping=damping,
        gain=jnp.where(already, zero, jnp.float32(jnp.inf)),
        refused=count,
        count=count,
    )

    def running(now: Descent):
        most = jnp.where(now.refused < now.count, _MOST_REFUSED, _MOST_REFUSED_AT_FIRST)
        return (now.count < steps) & (now.gain > SETTLED) & (now.refused < most)

    def body(now: Descent):
        return _step(objective, rows, mean, precision, bounded, heat, now)

    return jax.lax.while_loop(running, body, start)


def tempered(residual: Array, penalty: Array, heat: Array) -> Array:
    """Cost, up to a constant, where what no step explains yet counts as noise.

    With M values of mean square s > 1, `M (s - 1) / 2` becomes `M log(1 + heat (s - 1)) / 2 heat`:
    as if the prior's precision were multiplied by `1 + heat (s - 1)`. Below the noise, and where
    `heat` is zero, both are the same.

    >>> float(tempered(2 * jnp.ones(4), jnp.float32(3), jnp.float32(0)))
    9.0
    """
    excess = jnp.mean(residual**2) - 1
    above = jnp.maximum(excess, 0)
    divisor = jnp.where(heat > 0, heat, jnp.ones_like(heat))
    likelihood = jnp.where(heat > 0, jnp.log1p(heat * above) / divisor, above)
    return penalty + 0.5 * len(residual) * (likelihood + jnp.minimum(excess, 0))


def _step(objective, rows, mean, precision, bounded, heat, now: Descent) -> Descent:
    excess = jnp.maximum(jnp.mean(now.residual**2) - 1, 0)
    warm = precision if heat is None else precision * (1 + heat * excess)
    gradient = now.slope + warm * (now.unknowns - mean)
    damped = now.gram + jnp.diag(warm * (1 + now.damping * excess))
    moved = bounded(now.unknowns - solve(damped, gradient))
    residual, cost, ratio = objective(moved)
    gain = now.cost - cost
    if heat is not None:
        before, after = (0.5 * precision @ (u - mean) ** 2 for u in (now.unknowns, moved))
        gain = tempered(now.residual, before, heat) - tempered(residual, after, heat)
    better = jnp.isfinite(cost) & (gain > 0)

    # Broyden's update, least change in the metric of the prior; a refused step teaches too.
    first, second = now.updates
    change = moved - now.unknowns
    predicted = product(change, rows) + (first @ change) @ second
    error = residual - now.residual - predicted
    finite = jnp.isfinite(cost) & jnp.all(jnp.isfinite(error))
    error = jnp.where(finite, error, jnp.zeros_like(error))
    weight = precision * change
    weight = weight / jnp.maximum(weight @ change, 1e-12)
    weight = jnp.where(finite, weight, jnp.zeros_like(weight))
    seen = product(rows, error) + first.T @ (second @ error)
    gram = (
        now.gram
        + weight[:, None] * seen[None]
        + seen[:, None] * weight[None]
        + (error @ error) * weight[:, None] * weight[None]
    )
    first = first.at[now.count].set(weight)
    second = second.at[now.count].set(error)
    kept = jnp.where(better, residual, now.residual)
    damping = jnp.where(better, now.damping / 3, now.damping * 5)
    return Descent(
        gram=gram,
        slope=product(rows, kept) + first.T @ (second @ kept),
        updates=(first, second),
        unknowns=jnp.where(better, moved, now.unknowns),
        residual=kept,
        cost=jnp.where(better, cost, now.cost),
        ratio=jnp.where(better, ratio, now.ratio),
        damping=jnp.clip(damping, 1e-4, _MOST_DAMPING),
        gain=jnp.where(better, gain, jnp.inf),
        refused=jnp.where(better, jnp.zeros_like(now.refused), now.refused + 1),
        count=now.count + 1,
    )


def product(a: Array, b: Array) -> Array:
    """Matrix product accumulated in float32, also of rows kept in bfloat16.

    >>> product(jnp.ones((2, 3), jnp.bfloat16), jnp.ones(3)).tolist()
    [3.0, 3.0]
    """
    dtype = jnp.bfloat16 if jnp.bfloat16 in (a.dtype, b.dtype) else jnp.float32
    return jnp.matmul(a.astype(dtype), b.astype(dtype), preferred_element_type=jnp.float32)


def solve(curvature: Array, gradient: Array) -> Array:
    """Solves a symmetric positive definite system, scaled to a unit diagonal.

    >>> solve(jnp.diag(jnp.asarray([2.0, 1e6])), jnp.asarray([2.0, 1e6])).round(3).tolist()
    [1.0, 1.0]
    """
    scale = jax.lax.rsqrt(jnp.maximum(jnp.diag(curvature), 1e-30))
    scaled = curvature * scale[:, None] * scale[None]
    factor = cho_factor(scaled + JITTER * jnp.eye(len(scale), dtype=scaled.dtype))
    return scale * cho_solve(factor, scale * gradient)
