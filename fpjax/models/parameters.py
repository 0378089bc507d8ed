"""Parameter trees by description: the shape of every array of a network, and how it is drawn.

A network describes its parameters as a nested dict of `ParamSpec`, composed as its layers are.
Shapes, random parameters and the check of a tree that someone gives all follow from that one
description, and none of it allocates an array before it has to.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

Array = jax.Array
Params = Mapping[str, Any]
Specs = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class ParamSpec:
    """One parameter, drawn from N(mean, std^2): by default zeros, with a mean alone a constant.

    >>> ParamSpec((3, 3, 8, 8), std=1.0).mean
    0.0
    """

    shape: tuple[int, ...]
    mean: float = 0.0
    std: float = 0.0


def draw_params(specs: Specs, key: Array) -> dict[str, Any]:
    """Draws float32 parameters for a tree of `ParamSpec`.

    >>> draw_params({"scale": ParamSpec((2,), mean=1.0)}, jax.random.key(0))["scale"].tolist()
    [1.0, 1.0]
    """
    leaves, treedef = jax.tree.flatten(specs)
    sizes = [math.prod(spec.shape) if spec.std else 0 for spec in leaves]
    # One draw for the whole tree, cut by a program for each shape: one for each parameter, or one
    # for all of them, takes several times as long to compile.
    normal = jax.random.normal(key, (sum(sizes),), jnp.float32)
    params = [
        _cut(normal, start, spec.mean, spec.std, spec.shape)
        if spec.std
        else jnp.full(spec.shape, spec.mean, jnp.float32)
        for spec, start in zip(leaves, itertools.accumulate(sizes, initial=0), strict=False)
    ]
    return jax.tree.unflatten(treedef, params)


@functools.partial(jax.jit, static_argnames="shape")
def _cut(normal: Array, start: int, mean: float, std: float, shape: tuple[int, ...]) -> Array:
    cut = jax.lax.dynamic_slice_in_dim(normal, start, math.prod(shape)).reshape(shape)
    return mean + std * cut


def spec_shapes(specs: Specs) -> dict[str, Any]:
    """The same tree with `jax.ShapeDtypeStruct` leaves; nothing is allocated.

    >>> spec_shapes({"scale": ParamSpec((2,))})["scale"].shape
    (2,)
    """
    return jax.tree.map(lambda spec: jax.ShapeDtypeStruct(spec.shape, jnp.float32), specs)


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves of a nested dict by "/"-joined path, sorted level by level; they are left alone.

    >>> flatten({"b": {"c": 1}, "a": 2})
    {'a': 2, 'b/c': 1}
    """
    return {"/".join(path): leaf for path, leaf in sorted(traverse_util.flatten_dict(tree).items())}


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dict of "/"-joined paths; the inverse of `flatten`.

    >>> unflatten({"a": 1, "b/c": 2})
    {'a': 1, 'b': {'c': 2}}
    """
    return traverse_util.unflatten_dict(dict(leaves), sep="/")


def mismatches(params: Params, expected: Mapping[str, Any]) -> list[str]:
    """What keeps a tree of arrays from filling a tree of shapes; an empty list where nothing does.

    >>> mismatches({"a": jnp.ones(2)}, {"a": ParamSpec((3,)), "b": ParamSpec(())})
    ['b is missing', 'a has shape (2,), expected (3,)']
    """
    found, wanted = (
        {name: tuple(leaf.shape) for name, leaf in flatten(tree).items()}
        for tree in (params, expected)
    )
    return [
        *(f"{name} is missing" for name in wanted if name not in found),
        *(f"{name} is unexpected" for name in found if name not in wanted),
        *(
            f"{name} has shape {found[name]}, expected {shape}"
            for name, shape in wanted.items()
            if found.get(name, shape) != shape
        ),
    ]


def check_params(params: Params, expected: Mapping[str, Any], network: str) -> None:
    """Raises a ValueError that names what is missing, unexpected or of another shape in `params`.

    >>> check_params({"scale": jnp.ones(2)}, {"scale": ParamSpec((2,))}, "VGG16")
    """
    if problems := mismatches(params, expected):
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(
            f"parameters of {network}: {'; '.join(problems[:3])}{more} (convolution weights are "
            "HWIO: transpose a PyTorch weight with (2, 3, 1, 0))"
        )
