"""Products in full float32, whatever a device or a program's switches would choose.

By default a TPU multiplies float32 matrices in bfloat16 passes, and recent GPUs in TF32: an error
of 1e-3 of an image's range is what rounding to 8 bits leaves, so keys would be read from noise of
the device's own making. What embeds, reads and judges fingerprints asks for all bits; training and
drawing from priors do not, and perceptual networks that judge quality follow the program's setting.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax

P = ParamSpec("P")
R = TypeVar("R")


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Makes every product in a function that JAX traces one of full float32 precision.

    It goes under `jax.jit`: tracing is when precisions are chosen. Products that name a precision
    of their own keep it.

    >>> import jax.numpy as jnp
    >>> product = jax.jit(full_precision(lambda x: x @ x))
    >>> "HIGHEST" in str(product.trace(jnp.ones((2, 2))).jaxpr)
    True
    """

    @functools.wraps(function)
    def traced(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.default_matmul_precision("highest"):
            return function(*args, **kwargs)

    return traced
