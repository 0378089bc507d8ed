"""The inert object tree that a checkpoint becomes, and bounded ways to walk it.

Nodes are dict, list, tuple, set, frozenset, str, bytes, int, float, complex, bool, None, `Region`
(long byte strings), `LazyTensor`, `Storage`, `Global` and `Opaque`. A pickle may share nodes and
may make cycles; nothing here recurses, and every walk counts its steps.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from checkpoints_convert.readers.limits import CheckpointError, Limits, Meter, over_limit

NAME_CHARACTERS = 4096  # of one dotted name; real ones have under 200
NAME_COST = 150  # characters that a name in a list counts for, beside its own
KEY_CHARACTERS = 1000  # of one part of it; longer keys are shortened
RESAVE = "load it in the framework that made it and save plain float tensors"


@dataclass(frozen=True, slots=True)
class Global:
    """The name of a class or function that a pickle mentions. It is never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(slots=True, eq=False)
class Opaque:
    """A call or an object that a pickle describes and that the readers do not carry out.

    Attributes:
        module, name: what would have been called or instantiated.
        args, kwargs: what it would have been given.
        state: what the pickle sets on the object (its `__dict__`, mostly); None if nothing.
        entries: items the pickle stores in it, as of a dict subclass.
        elements: items the pickle appends to it, as of a list subclass.
        unsupported: for tensors of unsupported kinds, what to do about it; else empty.
    """

    module: str
    name: str
    args: tuple = ()
    kwargs: dict = field(default_factory=dict)
    state: Any = None
    entries: dict = field(default_factory=dict)
    elements: list = field(default_factory=list)
    unsupported: str = ""

    def __repr__(self) -> str:
        return f"Opaque({self.module}.{self.name})"


CONTAINERS = frozenset((dict, list, tuple, set, frozenset, Opaque))


def children(node: Any) -> Iterator[tuple[str, Any]]:
    """(label, child) of a node, Opaques included; nothing for a leaf."""
    kind = type(node)
    if kind is dict:
        for key, value in node.items():
            yield label(key), value
            if type(key) is tuple or type(key) is Opaque:
                yield "<key>", key
    elif kind is list or kind is tuple:
        for index, value in enumerate(node):
            yield str(index), value
    elif kind is set or kind is frozenset:
        for value in node:
            yield "<element>", value
    elif kind is Opaque:
        parts = (("args", node.args), ("kwargs", node.kwargs), ("state", node.state))
        for name, value in (*parts, ("entries", node.entries), ("elements", node.elements)):
            if value is not None and (value or type(value) not in CONTAINERS):
                yield name, value


def label(key: Any) -> str:
    """How a dict key reads in a dotted name."""
    if type(key) is str:
        return key if len(key) <= KEY_CHARACTERS else f"{key[:KEY_CHARACTERS]}..."
    if type(key) is int:
        return str(key) if abs(key) < 1 << 64 else "<int>"
    return repr(key) if key is None or type(key) in (bool, float) else f"<{type(key).__name__}>"


def measure(root: Any, meter: Meter) -> None:
    """CheckpointError if the tree is too deep, or too large once every shared node is repeated.

    Depth-first with an explicit stack. A node met again counts with its known size; a node inside
    itself (a cycle) counts as a leaf.
    """
    limits, most = meter.limits, meter.steps
    height_bits = limits.depth.bit_length() + 1
    known: dict[int, int] = {}  # id -> nodes below and including it, above the bits of its height
    stack = [[id(root), children(root), 1, 0]]
    open_nodes = {id(root)}
    while stack:
        frame = stack[-1]
        for _, child in frame[1]:
            identity = id(child)
            if identity in known:
                frame[2] += known[identity] >> height_bits
                frame[3] = max(frame[3], known[identity] & (1 << height_bits) - 1)
            elif identity in open_nodes or type(child) not in CONTAINERS:
                frame[2] += 1
            else:
                if len(stack) >= limits.depth:
                    raise over_limit(limits, "depth")
                open_nodes.add(identity)
                stack.append([identity, children(child), 1, 0])
                break
            if frame[2] > most:
                raise over_limit(limits, "objects")
        else:
            stack.pop()
            identity, _, size, height = frame
            open_nodes.discard(identity)
            known[identity] = size << height_bits | height + 1
            if stack:
                stack[-1][2] += size
                stack[-1][3] = max(stack[-1][3], height + 1)
                if stack[-1][2] > most:
                    raise over_limit(limits, "objects")
            if height + 1 > limits.depth:
                raise over_limit(limits, "depth")


def walk(
    root: Any,
    limits: Limits,
    enter: Callable[[Any], Iterator[tuple[str, Any]] | None],
    once: bool,
) -> Iterator[tuple[str, Any]]:
    """(dotted path, node) of `root` and of everything below, where `enter` gives the children.

    With `once` a shared node is given at its first path only; otherwise at each of its paths.
    Nodes inside themselves are not entered again.
    """
    yield "", root
    if (inside := enter(root)) is None:
        return
    steps, seen = 0, {id(root)}
    stack = [("", id(root), inside)]
    while stack:
        prefix, identity, rest = stack[-1]
        for name, child in rest:
            steps += 1
            if steps > limits.objects:
                raise over_limit(limits, "objects")
            inner = type(child) in CONTAINERS
            if inner and id(child) in seen:
                continue
            path = f"{prefix}.{name}" if prefix else name
            if len(path) > NAME_CHARACTERS:
                raise CheckpointError(
                    f"a name of {len(path):,} characters", f"at most {NAME_CHARACTERS:,}"
                )
            yield path, child
            if inner and (inside := enter(child)) is not None:
                if len(stack) >= limits.depth:
                    raise over_limit(limits, "depth")
                seen.add(id(child))
                stack.append((path, id(child), inside))
                break
        else:
            stack.pop()
            if not once:
                seen.discard(identity)


def find(
    tree: Any, predicate: Callable[[Any], bool], *, limits: Limits | None = None
) -> list[tuple[str, Any]]:
    """(dotted path, node) of every node that `predicate` accepts, inside Opaques too.

    A container reached by several paths is entered and listed under the first only.

    >>> find({"a": [1, 2.5], "b": 3}, lambda node: type(node) is int)
    [('a.0', 1), ('b', 3)]
    """
    limits, characters, found = limits or Limits(), 0, []
    for path, node in walk(tree, limits, children, once=True):
        if predicate(node):
            characters += NAME_COST + len(path)
            if characters > limits.string_bytes:
                raise over_limit(limits, "string_bytes")
            found.append((path, node))
    return found
