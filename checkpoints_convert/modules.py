"""Modules that were saved whole, `torch.save(model)`: their tensors by the names of a state dict.

A pickled module is an object whose state has `_parameters`, `_buffers` and `_modules`. Nothing of
its class is imported; what its layers keep as plain numbers and words is read beside the tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from checkpoints_convert.readers import CheckpointError, Limits, Opaque, is_persistent
from checkpoints_convert.readers.nvidia import mapping as items_of
from checkpoints_convert.readers.tensors import LazyTensor
from checkpoints_convert.readers.tree import NAME_CHARACTERS, RESAVE, label

MAX_MODULES = 50_000
MAX_DEPTH = 64
SEARCH_DEPTH = 4  # dicts around a module


def is_module(node: Any) -> bool:
    """Whether a node of a file's tree is a module of PyTorch, of whatever class."""
    return (
        type(node) is Opaque
        and not is_persistent(node)
        and type(node.state) is dict
        and items_of(node.state.get("_parameters")) is not None
        and items_of(node.state.get("_modules")) is not None
    )


def modules_in(tree: Any, limits: Limits) -> list[tuple[str, Opaque]]:
    """(dotted place, module) of the whole modules of a file: its tree, or inside its dicts."""
    found: list[tuple[str, Opaque]] = []
    stack: list[tuple[str, Any, int]] = [("", tree, 0)]
    visits = 0
    while stack:
        place, node, depth = stack.pop()
        visits += 1
        if is_module(node):
            found.append((place, node))
        elif type(node) is dict and depth < SEARCH_DEPTH and visits <= MAX_MODULES:
            stack += [(_join(place, label(key)), child, depth + 1) for key, child in node.items()]
    return found[::-1]


def state_dict(module: Opaque) -> tuple[dict[str, LazyTensor], dict[str, Any]]:
    """(tensors, plain attributes) of a module and of those inside it, by dotted name.

    Raises:
        CheckpointError: for modules too many or too deep, or a parameter that is no dense tensor.
    """
    tensors: dict[str, LazyTensor] = {}
    attributes: dict[str, Any] = {}
    stack, count = [("", module, 0)], 0
    while stack:
        prefix, node, depth = stack.pop()
        count += 1
        if count > MAX_MODULES or depth > MAX_DEPTH:
            raise CheckpointError(
                "a module of too many modules, or inside itself", f"at most {MAX_MODULES:,}", RESAVE
            )
        for name, value in node.state.items():
            if type(name) is str and type(value) in (int, float, bool, str):
                attributes[_join(prefix, name)] = value
        for name, tensor in _own(node.state):
            full = _join(prefix, name)
            if type(tensor) is not LazyTensor or tensor.unsupported or full in tensors:
                raise CheckpointError(f"parameter {full!r}", "one plain dense tensor", RESAVE)
            tensors[full] = tensor
            if len(tensors) > MAX_MODULES:
                raise CheckpointError("a module of too many parameters", f"{MAX_MODULES:,}", RESAVE)
        inner = items_of(node.state.get("_modules")) or {}
        named = [(_join(prefix, label(key)), child) for key, child in inner.items()]
        stack += [(name, child, depth + 1) for name, child in reversed(named) if is_module(child)]
    return tensors, attributes


def _own(state: dict) -> Iterator[tuple[str, Any]]:
    skipped = state.get("_non_persistent_buffers_set")
    skipped = skipped if type(skipped) in (set, frozenset) else ()
    for kind in ("_parameters", "_buffers"):
        for key, value in (items_of(state.get(kind)) or {}).items():
            if value is not None and not (kind == "_buffers" and key in skipped):
                yield label(key), value


def _join(prefix: str, name: str) -> str:
    if len(prefix) + len(name) > NAME_CHARACTERS:
        raise CheckpointError(f"a name of more than {NAME_CHARACTERS:,} characters", "dotted names")
    return f"{prefix}.{name}" if prefix else name
