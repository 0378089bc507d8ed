"""Modules that were saved whole, `torch.save(model)`: what their layers keep beside the tensors.

The readers give a module's tensors by the names of its state dict. Its layers also keep numbers and
words as plain attributes (`lr_mul`, `activation`), which no state dict has. Nothing of a class is
imported.
"""

from __future__ import annotations

from typing import Any

from checkpoints_convert.readers import CheckpointError, Opaque, is_module, is_persistent
from checkpoints_convert.readers.names import submodules
from checkpoints_convert.readers.tree import NAME_CHARACTERS, RESAVE, label

MAX_MODULES = 50_000
MAX_DEPTH = 64
SEARCH_DEPTH = 4  # dicts around a module


def modules_in(tree: Any) -> list[tuple[str, Opaque]]:
    """(dotted place, module) of the whole modules of a file: its tree, or inside its dicts."""
    found: list[tuple[str, Opaque]] = []
    stack: list[tuple[str, Any, int]] = [("", tree, 0)]
    for _ in range(MAX_MODULES):
        if not stack:
            break
        place, node, depth = stack.pop()
        if is_module(node) and not is_persistent(node):
            found.append((place, node))
        elif type(node) is dict and depth < SEARCH_DEPTH:
            stack += [(_join(place, label(key)), child, depth + 1) for key, child in node.items()]
    return found[::-1]


def attributes_of(module: Opaque) -> dict[str, Any]:
    """Numbers and words that a module and those inside it keep, by dotted name.

    Raises:
        CheckpointError: for modules too many or too deep.
    """
    attributes: dict[str, Any] = {}
    stack: list[tuple[str, Any, int]] = [("", module, 0)]
    for _ in range(MAX_MODULES):
        if not stack:
            return attributes
        prefix, node, depth = stack.pop()
        for name, value in node.state.items():
            if type(name) is str and type(value) in (int, float, bool, str):
                attributes[_join(prefix, name)] = value
        inner = [(_join(prefix, label(key)), child) for key, child in submodules(node.state)]
        if depth < MAX_DEPTH:
            stack += [(name, child, depth + 1) for name, child in inner if is_module(child)]
    raise CheckpointError("a module of too many modules", f"at most {MAX_MODULES:,}", RESAVE)


def _join(prefix: str, name: str) -> str:
    if len(prefix) + len(name) > NAME_CHARACTERS:
        raise CheckpointError(f"a name of more than {NAME_CHARACTERS:,} characters", "dotted names")
    return f"{prefix}.{name}" if prefix else name
