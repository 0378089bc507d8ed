"""Jacobians in blocks of tangents, within a memory budget.

A generator's Jacobian has one row for each unknown. Taken in one vmap over all of them, its
intermediate activations exceed any memory at 256 px and above; taken in blocks it costs the same
time and a stated amount of memory beyond the rows themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

Array = jax.Array

DEFAULT_MEMORY = 4 << 30
"""Bytes that a working set may take, where the caller names no budget."""

# Activations alive at once beside the largest operation's own: XLA's analysis of StyleGAN2 from 32
# to 1024 px stays below this (tests/models/test_jacobian.py).
_ALIVE = 3.0


def jacobian_rows(
    function: Callable[[Array], Array],
    point: Array,
    directions: Array,
    *,
    block: int | None = None,
    dtype: str = "float32",
) -> tuple[Array, Array]:
    """Value of a function and its derivatives along directions.

    Args:
      function: (n,) -> (M,).
      point: (n,).
      directions: (K, n) tangents.
      block: how many are pushed through at a time; by default all.
      dtype: type the rows are kept in.

    Returns:
      The value (M,), and the rows (K, M).

    >>> value, rows = jacobian_rows(lambda x: x**2, jnp.arange(3.0), jnp.eye(3), block=2)
    >>> jnp.diag(rows).tolist()
    [0.0, 2.0, 4.0]
    """
    value, push = jax.linearize(function, point)

    def rows_of(tangents):
        return jax.vmap(push)(tangents).astype(dtype)

    if block is None or block >= len(directions):
        return value, rows_of(directions)
    last = len(directions) - block

    # Rows are written where they stay, and the last block begins early instead of being shorter:
    # pieces that are joined in the end would need the memory twice.
    def write(i, rows):
        begin = jnp.minimum(i * block, last)
        taken = jax.lax.dynamic_slice_in_dim(directions, begin, block)
        return jax.lax.dynamic_update_slice_in_dim(rows, rows_of(taken), begin, 0)

    rows = jnp.zeros((len(directions), *value.shape), dtype)
    return value, jax.lax.fori_loop(0, -(-len(directions) // block), write, rows)


def tangent_bytes(function: Callable[..., Array], point: Any, *arguments: Any) -> int:
    """Estimated bytes that one tangent's activations take on their way through a function.

    Args:
      function: of `point` and further arguments, along which no derivative is taken.
      point, arguments: arrays or `jax.ShapeDtypeStruct`s, or trees of them; nothing is computed.

    >>> tangent_bytes(lambda x: jnp.sin(x), jax.ShapeDtypeStruct((1000,), jnp.float32))
    24000
    """
    jaxpr = jax.make_jaxpr(function)(point, *arguments).jaxpr
    return int(_ALIVE * _largest(jaxpr, jaxpr.invars[: len(jax.tree.leaves(point))]))


def _largest(jaxpr: core.Jaxpr, varying: Sequence[Any]) -> int:
    """Bytes of operands and results of the largest operation, of what varies with the point."""
    moving = {variable for variable in varying if isinstance(variable, core.Var)}
    largest = 0
    for equation in jaxpr.eqns:
        moved = [isinstance(v, core.Var) and v in moving for v in equation.invars]
        if not any(moved):
            continue
        moving.update(equation.outvars)
        inner = 0
        for sub in core.jaxprs_in_params(equation.params):
            matched = len(sub.invars) == len(moved)
            inputs = [v for v, m in zip(sub.invars, moved, strict=False) if m or not matched]
            inner = max(inner, _largest(sub, inputs))
        operands = [v for v, m in zip(equation.invars, moved, strict=True) if m]
        sizes = [
            int(np.prod(variable.aval.shape)) * variable.aval.dtype.itemsize
            for variable in [*operands, *equation.outvars]
            if hasattr(variable.aval, "shape")
        ]
        largest = max(largest, inner or sum(sizes))
    return largest


CPU_TANGENTS = 16
"""Tangents that a CPU pushes through at once: more only leave the caches. 16 files of the bundled
generator took 0.70 s an image with 64, 0.58 with 16 and 0.60 with 8."""


def tangents_at_once(num: int, bytes_each: int, memory: int) -> int:
    """`block_size`, and on CPUs few enough that they stay in the caches."""
    if jax.default_backend() == "cpu":
        memory = min(memory, CPU_TANGENTS * bytes_each)
    return block_size(num, bytes_each, memory)


def block_size(num: int, bytes_each: int, memory: int) -> int:
    """Tangents in a block: the fewest equal blocks of `num` that fit, at least one in each.

    >>> block_size(512, 1 << 20, 200 << 20), block_size(512, 1 << 30, 1 << 20)
    (171, 1)
    """
    most = max(1, min(num, memory // max(1, bytes_each)))
    blocks = -(-num // most)
    return -(-num // blocks)
