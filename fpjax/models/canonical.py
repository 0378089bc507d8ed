"""Backward convolutions in a form that XLA computes well inside loops.

The transpose of a convolution has its kernel's input and output channels exchanged. On a CPU, XLA
puts such kernels in order, so that its fast convolution applies, in a program's outermost
computation alone: in the body of a loop the same backward pass takes four times as long. Exchanging
the axes beforehand costs a copy of the kernel, which XLA takes out of the loop.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax import lax
from jax.extend import core

R = TypeVar("R")

_KERNEL = (3, 2, 0, 1)
"""Where a canonical kernel (height, width, in, out) has its out, in, height and width."""

_INLINED = {"jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call"}


def canonical_convolutions(function: Callable[..., R]) -> Callable[..., R]:
    """The same function, whose convolutions have kernels (height, width, in, out).

    It goes outside of what differentiates: `canonical_convolutions(jax.grad(cost))`. Loops and
    branches within the function stay as they are.

    >>> import jax.numpy as jnp
    >>> from fpjax.models.layers import convolve
    >>> kernel = jnp.arange(9 * 2 * 3.0).reshape(3, 3, 2, 3)
    >>> slope = jax.grad(lambda x: (convolve(x, kernel) ** 2).sum())
    >>> x = jnp.arange(5 * 5 * 2.0).reshape(1, 5, 5, 2)
    >>> bool(jnp.allclose(canonical_convolutions(slope)(x), slope(x)))
    True
    """

    def canonical(*args: Any) -> R:
        jaxpr, shape = jax.make_jaxpr(function, return_shape=True)(*args)
        results = _evaluate(jaxpr, *jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shape), results)

    return canonical


def _evaluate(closed: core.ClosedJaxpr, *args: Any) -> list[Any]:
    jaxpr, known = closed.jaxpr, {}

    def value(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else known[atom]

    known.update(zip(jaxpr.constvars, closed.consts, strict=True))
    known.update(zip(jaxpr.invars, args, strict=True))
    for equation in jaxpr.eqns:
        operands, params = [value(atom) for atom in equation.invars], equation.params
        name = equation.primitive.name
        inner = params.get("jaxpr", params.get("call_jaxpr")) if name in _INLINED else None
        if isinstance(inner, core.ClosedJaxpr):
            results = _evaluate(inner, *operands)
        elif name == "conv_general_dilated":
            results = [_convolution(*operands, **params)]
        else:
            results = _bound(equation.primitive, params)(*operands)
            results = list(results) if equation.primitive.multiple_results else [results]
        known.update(zip(equation.outvars, results, strict=True))
    return [value(atom) for atom in jaxpr.outvars]


def _bound(primitive: Any, params: dict[str, Any]) -> Callable[..., Any]:
    """A primitive with its parameters, also where functions are among them."""
    given = primitive.get_bind_params(params)
    functions, given = given if isinstance(given, tuple) else ((), given)
    return functools.partial(primitive.bind, *functions, **given)


def _convolution(x: jax.Array, kernel: jax.Array, *, dimension_numbers, **params: Any) -> jax.Array:
    layout = dimension_numbers.rhs_spec
    if len(layout) == len(_KERNEL) and layout != _KERNEL:
        out, into, height, width = layout
        kernel = lax.transpose(kernel, (height, width, into, out))
        dimension_numbers = lax.ConvDimensionNumbers(
            dimension_numbers.lhs_spec, _KERNEL, dimension_numbers.out_spec
        )
    return core.primitives.conv_general_dilated_p.bind(
        x, kernel, dimension_numbers=dimension_numbers, **params
    )
