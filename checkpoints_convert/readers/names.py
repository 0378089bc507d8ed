"""Tensors by dotted name, through containers and through torch modules that were pickled whole.

A module's pickle is its `__dict__`: `_parameters`, `_buffers` and `_modules` by name, and which
buffers `state_dict()` leaves out. Nothing else of it is looked at, so that a module of any class
gives its tensors, and none of its code is needed or run.
"""

import itertools
from collections.abc import Iterator
from typing import Any

from checkpoints_convert.describe import describe
from checkpoints_convert.readers.limits import CheckpointError, Limits, over_limit
from checkpoints_convert.readers.tensors import LazyTensor
from checkpoints_convert.readers.tree import NAME_COST, RESAVE, Opaque, children, label, walk


def items_of(node: Any) -> dict | None:
    """The items of a dict or of an Opaque dict subclass such as EasyDict; None for others."""
    if type(node) is dict:
        return node
    if type(node) is Opaque and (node.entries or node.name == "EasyDict"):
        return node.entries
    return None


def is_module(node: Any) -> bool:
    """Whether a tree node is a torch module of any class, saved whole with `torch.save(model)`."""
    return type(node) is Opaque and is_module_state(node.state)


def is_module_state(state: Any) -> bool:
    """Whether a pickled `__dict__` is that of a torch module."""
    return type(state) is dict and "_parameters" in state and "_modules" in state


def own_tensors(state: dict) -> Iterator[tuple[Any, Any]]:
    """(name, value) of a module's own parameters and persistent buffers that are set."""
    skipped = state.get("_non_persistent_buffers_set")
    skipped = skipped if type(skipped) in (set, frozenset) else ()
    for kind in ("_parameters", "_buffers"):
        for name, value in (items_of(state.get(kind)) or {}).items():
            if value is not None and not (kind == "_buffers" and name in skipped):
                yield name, value


def submodules(state: dict) -> Iterator[tuple[Any, Any]]:
    """(name, node) of the modules directly inside a module."""
    for name, value in (items_of(state.get("_modules")) or {}).items():
        if value is not None:
            yield name, value


def named(node: Any) -> Iterator[tuple[str, Any]] | None:
    """(name, child) of what holds tensors by name: containers, and modules saved whole."""
    if type(node) in (dict, list, tuple):
        return children(node)
    if is_module(node):
        inside = itertools.chain(own_tensors(node.state), submodules(node.state))
        return ((label(key), value) for key, value in inside)
    return None


def flatten(tree: Any, limits: Limits, prefix: str = "") -> dict[str, LazyTensor]:
    """Tensors by dotted name through dicts, lists, tuples and modules, not into other Opaques.

    With a prefix, only the names below it, without it. CheckpointError if two tensors get one
    name, if a tensor there is of a kind that cannot be read, or if the prefix matches none.
    """
    prefix = prefix.removesuffix(".")
    tensors: dict[str, Any] = {}
    characters = 0
    for path, node in walk(tree, limits, named, once=False):
        reason = node.unsupported if isinstance(node, LazyTensor | Opaque) else ""
        if not reason and not isinstance(node, LazyTensor):
            continue
        if prefix and path != prefix and not path.startswith(f"{prefix}."):
            continue
        name = path[len(prefix) + 1 :] if prefix else path
        if reason:
            found = f"tensor {describe(path, 200)}: {reason}"
            raise CheckpointError(found, "a plain dense tensor", RESAVE)
        if name in tensors:
            found = f"two tensors named {describe(path, 200)}"
            raise CheckpointError(found, "one", "rename one and save again")
        characters += NAME_COST + len(name)
        if characters > limits.string_bytes:
            raise over_limit(limits, "string_bytes")
        tensors[name] = node
    if prefix and not tensors:
        keys = itertools.islice(tree, 20) if type(tree) is dict else ()
        top = [describe(label(key), 40) for key in keys]
        raise CheckpointError(
            f"no tensor under {describe(prefix, 200)}",
            f"a name below one of {', '.join(top) or 'nothing'}",
            "give a prefix that exists, or find() the object that holds the tensors",
        )
    return tensors
