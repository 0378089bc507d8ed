"""Descent with exact slopes: BFGS whose first curvature is Gauss and Newton's.

Steps that are taken with one Jacobian (`broyden.py`) end where that Jacobian, and what it learnt on
the way, see no slope. On a clean file this is as near to the solution as the file's noise lets it
be. The noisier a file, the further its solution moves about: the more a Jacobian changes on the way
there, and the more of the residual is noise whose curvature Gauss and Newton leave out. After noise
of 0.05 such steps stop tens of nats short, where a bit in fifty is wrong that need not be. Files
of a network of 256 px they leave at twice the noise. A slope of the cost itself takes one backward
pass.

Source: Nocedal and Wright, Numerical Optimization (2006), Section 6.1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fpjax.inversion.broyden import solve
from fpjax.models.canonical import canonical_convolutions

Array = jax.Array

_PROMISED = 0.02
"""Nats: a step that promises less is not taken."""
_SUFFICIENT = 1e-3
"""Share of the slope's promise that an accepted step keeps, at least."""
_SHORTER = 0.3
"""What a refused step is shortened by."""
_SHORTEST = 1e-3
_PARALLEL = 1e-4
"""Curvature along a step, as a share of what was believed, below which nothing is learnt."""


class Polished(NamedTuple):
    """Where a polish stands."""

    unknowns: Array
    """(K,)"""
    cost: Array
    """Half the squared residual and the prior, in nats."""
    slope: Array
    """Its gradient, (K,)."""
    curvature: Array
    """(K, K)."""
    length: Array
    """Share of a full step that is tried next."""
    promise: Array
    """Nats that a full step promises."""
    count: Array
    """Slopes taken."""


def polish(
    cost: Callable[[Array], Array],
    unknowns: Array,
    curvature: Array,
    steps: Array | int,
    *,
    bounded: Callable[[Array], Array],
) -> Polished:
    """Takes steps until they promise nothing, or `steps` slopes were taken.

    Args:
      cost: unknowns (K,) -> nats, ().
      unknowns: (K,) where it begins.
      curvature: (K, K) of the cost, about, positive definite.
      steps: at most this many slopes, the first of them where it begins; traced, so that a lane may
        want no step.
      bounded: keeps unknowns where they may be.

    >>> valley = lambda x: jnp.cosh(x - 1).sum()
    >>> end = polish(valley, jnp.zeros(2), jnp.eye(2), 40, bounded=lambda x: x)
    >>> end.unknowns.round(1).tolist()
    [1.0, 1.0]
    """
    evaluate = canonical_convolutions(jax.value_and_grad(cost))

    def promised(slope, curvature):
        return 0.5 * slope @ solve(curvature, slope)

    begun, slope = evaluate(unknowns)
    one = jnp.ones((), jnp.float32)
    start = Polished(
        unknowns, begun, slope, curvature, one, promised(slope, curvature), jnp.ones((), jnp.int32)
    )

    def running(now: Polished):
        return (now.count < steps) & (now.promise > _PROMISED) & (now.length > _SHORTEST)

    def body(now: Polished) -> Polished:
        whole = solve(now.curvature, now.slope)
        moved = bounded(now.unknowns - now.length * whole)
        reached, slope = evaluate(moved)
        finite = jnp.isfinite(reached) & jnp.all(jnp.isfinite(slope))
        slope = jnp.where(finite, slope, now.slope)
        change = moved - now.unknowns
        # A step that was cut at the bounds may lead uphill.
        downhill = now.slope @ change
        better = finite & (downhill < 0) & (reached <= now.cost + _SUFFICIENT * downhill)
        # A refused step teaches too.
        turned = slope - now.slope
        held = now.curvature @ change
        along, across = change @ held, change @ turned
        learns = finite & (across > _PARALLEL * along) & (along > 0)
        along, across = (jnp.where(learns, x, one) for x in (along, across))
        learnt = turned[:, None] * turned[None] / across - held[:, None] * held[None] / along
        curvature = now.curvature + jnp.where(learns, learnt, jnp.zeros_like(learnt))
        slope = jnp.where(better, slope, now.slope)
        return Polished(
            unknowns=jnp.where(better, moved, now.unknowns),
            cost=jnp.where(better, reached, now.cost),
            slope=slope,
            curvature=curvature,
            length=jnp.where(better, one, now.length * _SHORTER),
            promise=promised(slope, curvature),
            count=now.count + 1,
        )

    return jax.lax.while_loop(running, body, start)
