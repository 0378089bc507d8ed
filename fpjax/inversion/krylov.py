"""Products with a residual's Jacobian, and what can be solved with them alone.

Nothing here holds a Jacobian: a linearisation gives J v and J^T u, each about the cost of a decode,
and conjugate gradients (Hestenes and Stiefel 1952) solve with them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fpjax.inversion.information import KeyInformation, alpha_precision
from fpjax.inversion.problem import Problem
from fpjax.models.canonical import canonical_convolutions

Array = jax.Array
Product = Callable[[Array], Array]


class Linearised(NamedTuple):
    """A residual at a point, with its derivatives as products."""

    residual: Array
    """(M,)"""
    push: Product
    """(K,) -> J v, (M,)."""
    pull: Product
    """(M,) -> J^T u, (K,)."""

    def curvature(self, tangent: Array) -> Array:
        """J^T J v, (K,) -> (K,)."""
        return self.pull(self.push(tangent))


def linearised(problem: Problem, unknowns: Array, target: Array, leak: Array | float) -> Linearised:
    """Linearises the residual of one image at unknowns (K,)."""

    def residual(point):
        return problem.residual(point, target, leak)

    value, push = jax.linearize(residual, unknowns)
    transposed = canonical_convolutions(jax.linear_transpose(push, unknowns))
    return Linearised(value, push, lambda u: transposed(u)[0])


class Solved(NamedTuple):
    """What conjugate gradients found for A x = b."""

    x: Array
    remainder: Array
    """b - A x."""
    gain: Array
    """b^T x / 2: by how much the quadratic model falls, which never exceeds the exact one."""
    steps: Array


def conjugate_gradients(
    apply: Product,
    right: Array,
    scale: Array,
    max_steps: int,
    *,
    forcing: float,
    settled: float,
) -> Solved:
    """Solves A x = b for symmetric positive definite A, from zero.

    Args:
      apply: v -> A v.
      right: b, (n,).
      scale: (n,) diagonal of the preconditioner: about the diagonal of A.
      max_steps: products, at most.
      forcing: it ends where a step gains less than this share of the mean gain of a step so far
        (Nash and Sofer 1990).
      settled: it ends where a step gains less than this, in the units of the model.

    >>> found = conjugate_gradients(lambda v: 4 * v, jnp.ones(2), jnp.ones(2), 9, forcing=0.1,
    ...     settled=0.0)
    >>> found.x.tolist(), int(found.steps)
    ([0.25, 0.25], 2)
    """
    zero = jnp.zeros((), right.dtype)
    preconditioned = right / scale
    begin = (
        jnp.zeros_like(right), right, preconditioned, right @ preconditioned,
        zero, jnp.full_like(zero, jnp.inf), jnp.zeros((), jnp.int32),
    )  # fmt: skip

    def running(state):
        *_, total, last, count = state
        taken = count.astype(total.dtype)
        enough = (last * taken <= forcing * total) | (last <= settled)
        return (count < max_steps) & ~enough

    def body(state):
        x, remainder, direction, energy, total, _, count = state
        image = apply(direction)
        curvature = direction @ image
        # Exhausted, or not positive: nothing is left to gain along this direction.
        usable = (curvature > 0) & (energy > 0) & jnp.isfinite(curvature)
        length = jnp.where(usable, energy / jnp.where(usable, curvature, 1), zero)
        x = x + length * direction
        remainder = remainder - length * image
        preconditioned = remainder / scale
        following = remainder @ preconditioned
        share = jnp.where(usable, following / jnp.where(usable, energy, 1), zero)
        gained = 0.5 * length * energy
        direction = preconditioned + share * direction
        return x, remainder, direction, following, total + gained, gained, count + 1

    x, remainder, _, _, total, _, count = jax.lax.while_loop(running, body, begin)
    return Solved(x, remainder, total, count)


def scale_of(problem: Problem, here: Linearised) -> Array:
    """About the diagonal of J^T J, (K,), from two random products.

    In the image metric a coordinate changes an image by about 1 whatever it is, and the products
    only say how the residual counts that here. In another metric they are pooled as they are, with
    a floor, and more steps are needed.
    """
    scheme = problem.scheme
    size, free = problem.num_unknowns, problem.num_nuisances
    strength = jnp.asarray(scheme.strength, jnp.float32)
    unit = jnp.concatenate(
        [jnp.ones(free, jnp.float32), jnp.ones(scheme.num_symbols, jnp.float32) * strength]
    )
    image_metric = scheme.basis.metric != "latent"
    found = []
    for seed in range(2 if image_metric else 8):
        probe = jax.random.rademacher(jax.random.key(seed), (size,), jnp.float32) / unit
        found.append(probe * here.curvature(probe))
    relative = jnp.mean(jnp.stack(found), axis=0)  # of coordinates in units of `unit`
    mean = jnp.maximum(jnp.mean(relative), 1e-12)
    if image_metric:
        relative = jnp.ones_like(relative) * mean
    return jnp.maximum(relative, 0.1 * mean) * unit**2


class Bounded(NamedTuple):
    """The information about a key, and how far it can be from the exact one."""

    key: KeyInformation
    """S and h. S is never less than the exact one: the difference is positive semi-definite."""
    excess: Array
    """Bound on the trace of that difference, ()."""


def key_information(
    problem: Problem,
    here: Linearised,
    unknowns: Array,
    scale: Array,
    max_steps: int,
    forcing: float,
    block: int,
) -> Bounded:
    """S and h without a Jacobian: one system for each symbol.

    With A = J_a^T J_a + P and B = J_a^T J_k, any X gives
    S_X = J_k^T J_k - B^T X - X^T (B - A X), which exceeds the exact S by E^T A E >= 0 for the error
    E of X. The bound on its trace follows from A >= P.

    Args:
      problem: Gaussian prior, relaxed symbols.
      here: linearisation at `unknowns`.
      unknowns: (K,).
      scale: (K,), see `scale_of`.
      max_steps: products for each symbol, at most.
      forcing: see `conjugate_gradients`.
      block: symbols that are solved for side by side.
    """
    free, length = problem.num_nuisances, problem.scheme.num_symbols
    precision = alpha_precision(problem)[:free]
    diagonal = scale[:free] + precision
    nothing = jnp.zeros(length, jnp.float32)

    def apply(alpha):
        return here.curvature(jnp.concatenate([alpha, nothing]))[:free] + precision * alpha

    def column(unit):
        whole = here.curvature(jnp.concatenate([jnp.zeros(free, jnp.float32), unit]))
        right = whole[:free]
        found = conjugate_gradients(
            apply, right, diagonal, max_steps, forcing=forcing, settled=1e-4
        )
        return right, whole[free:], found.x, found.remainder

    units = jnp.eye(length, dtype=jnp.float32)
    right, own, x, remainder = jax.lax.map(column, units, batch_size=min(block, length))
    information = own - right @ x.T - x @ remainder.T
    information = (information + information.T) / 2
    gradient = here.pull(here.residual)
    pull = gradient[:free] + precision * unknowns[:free]
    slope = gradient[free:] - x @ pull
    # A - P is positive semi-definite and M = scale + P, so A >= M min(P / M).
    least = jnp.min(precision / diagonal, initial=1.0)
    excess = jnp.sum(remainder**2 / diagonal[None]) / least
    linear = information @ unknowns[free:] - slope
    return Bounded(KeyInformation(information, linear), excess)
