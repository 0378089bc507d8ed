"""Weights inside NVIDIA's StyleGAN pickles: PyTorch persistent objects and TensorFlow networks.

Layouts follow NVlabs stylegan2-ada-pytorch (`torch_utils/persistence.py`) and NVlabs stylegan and
stylegan2 (`dnnlib/tflib/network.py`). Their classes, and the source text inside the pickles, are
never run.
"""

from typing import Any

from checkpoints_convert.describe import describe
from checkpoints_convert.readers.limits import CheckpointError, Limits, over_limit
from checkpoints_convert.readers.names import is_module_state, own_tensors, submodules
from checkpoints_convert.readers.names import items_of as mapping
from checkpoints_convert.readers.tensors import LazyTensor
from checkpoints_convert.readers.tree import NAME_CHARACTERS, NAME_COST, RESAVE, Opaque

PERSISTENT = ("torch_utils.persistence", "_reconstruct_persistent_obj")
SETTINGS_DEPTH = 16
SETTINGS_NODES = 100_000
ADVICE = "find() the network first, e.g. under G_ema"


def is_persistent(node: Any) -> bool:
    """Whether a tree node is an object saved by `torch_utils.persistence`."""
    return type(node) is Opaque and (node.module, node.name) == PERSISTENT


def is_tf_network(node: Any) -> bool:
    """Whether a tree node is a TensorFlow-era `dnnlib.tflib.network.Network`."""
    return (
        type(node) is Opaque
        and node.name == "Network"
        and node.module in ("dnnlib.tflib.network", "tfutil")
        and type(node.state) is dict
    )


def plain(node: Any, limits: Limits | None = None) -> Any:
    """A copy of settings with every EasyDict, at any depth, as a dict."""
    most = min(SETTINGS_NODES, (limits or Limits()).objects)
    visits = 0

    def copy(value: Any, depth: int) -> Any:
        nonlocal visits
        visits += 1
        if visits > most:
            raise CheckpointError("settings without end", f"at most {most:,} values")
        items = mapping(value)
        if items is None and type(value) not in (list, tuple):
            return value
        if depth == SETTINGS_DEPTH:
            raise CheckpointError("settings nested too deep", f"{SETTINGS_DEPTH} levels")
        if items is not None:
            return {key: copy(item, depth + 1) for key, item in items.items()}
        return type(value)(copy(item, depth + 1) for item in value)

    return copy(node, 0)


def persistent_state_dict(
    opaque: Opaque, *, limits: Limits | None = None
) -> tuple[str, tuple, dict, dict[str, LazyTensor]]:
    """(class name, init args, init kwargs, tensors by dotted name) of a persistent object.

    Tensors are what `state_dict()` would list: parameters and persistent buffers of the module
    and of those inside it, persistent or plain. Raises CheckpointError for another object.
    """
    limits = limits or Limits()
    meta = _meta(opaque)
    state = _module_state(opaque)
    if meta is None or state is None or type(meta.get("class_name")) is not str:
        raise CheckpointError(
            f"a {type(opaque).__name__} without class and parameters",
            f"an object of {'.'.join(PERSISTENT)} that is a module",
            ADVICE,
        )
    tensors: dict[str, LazyTensor] = {}
    stack, visits, characters = [("", opaque, 0)], 0, 0
    while stack:
        prefix, node, depth = stack.pop()
        visits += 1
        if visits > limits.objects:
            raise over_limit(limits, "objects")
        if depth > limits.depth:  # also ends a module that contains itself
            raise over_limit(limits, "depth")
        state = _module_state(node)
        if state is None:
            found = f"submodule {describe(prefix, 200)} without parameters"
            raise CheckpointError(found, "a torch module")
        for name, tensor in _own_tensors(state, prefix):
            visits, characters = visits + 1, characters + NAME_COST + len(name)
            if characters > limits.string_bytes:
                raise over_limit(limits, "string_bytes")
            if name in tensors:
                raise CheckpointError(f"two tensors named {describe(name, 200)}", "one")
            tensors[name] = tensor
        named = [(_join(prefix, name), child, depth + 1) for name, child in submodules(state)]
        visits += len(named)
        stack += reversed(named)
    args = plain(meta["state"].get("_init_args"), limits)
    kwargs = plain(meta["state"].get("_init_kwargs"), limits)
    args = tuple(args) if type(args) in (tuple, list) else ()
    return meta["class_name"], args, kwargs if type(kwargs) is dict else {}, tensors


def _meta(node: Any) -> dict | None:
    """What the pickle says about a persistent object: type, class_name, state, ...; or None."""
    if not is_persistent(node) or not node.args:
        return None
    meta = mapping(node.args[0])
    return meta if meta is not None and type(meta.get("state")) is dict else None


def _module_state(node: Any) -> dict | None:
    """`__dict__` of a torch module, persistent or plain; None for anything else."""
    meta = _meta(node)
    state = meta["state"] if meta else node.state if type(node) is Opaque else None
    return state if is_module_state(state) else None


def _own_tensors(state: dict, prefix: str):
    """(dotted name, tensor) of the module's parameters and persistent buffers."""
    for name, value in own_tensors(state):
        full = _join(prefix, name)
        if type(value) is not LazyTensor or value.unsupported:
            found = f"{describe(full, 200)} as a {type(value).__name__}"
            raise CheckpointError(found, "a plain dense tensor", RESAVE)
        yield full, value


def _join(prefix: str, name: Any) -> str:
    if type(name) is not str or len(prefix) + len(name) > NAME_CHARACTERS:
        raise CheckpointError("a parameter name that is no short string", "dotted names")
    return f"{prefix}.{name}" if prefix else name


def tf_network(opaque: Opaque, *, limits: Limits | None = None) -> dict:
    """What a TensorFlow-era network holds, by the names that its pickle uses.

    Returns a dict with `name` (str or None), `static_kwargs` (dict), `variables` (tensors by
    name), and `components` (networks inside it, by name, each such a dict). Raises
    CheckpointError for another object.
    """
    limits = limits or Limits()
    visits, top = 0, {}
    stack = [(opaque, top, "network", 0)]
    while stack:
        node, parent, key, depth = stack.pop()
        visits += 1
        if visits > limits.objects:
            raise over_limit(limits, "objects")
        if depth > limits.nesting:  # published ones nest once: G holds mapping and synthesis
            raise over_limit(limits, "nesting")
        if not is_tf_network(node):
            raise CheckpointError(
                f"{describe(key)} as a {type(node).__name__}", "a Network", ADVICE
            )
        variables = _variables(node.state.get("variables"))
        visits += len(variables)
        parent[key] = {
            "name": node.state.get("name"),
            "static_kwargs": plain(node.state.get("static_kwargs") or {}, limits),
            "variables": variables,
            "components": {},
        }
        components = mapping(node.state.get("components")) or {}
        inside = parent[key]["components"]
        stack += [(child, inside, name, depth + 1) for name, child in components.items()]
    return top["network"]


def _variables(listed: Any) -> dict[str, LazyTensor]:
    variables: dict[str, LazyTensor] = {}
    for item in listed if type(listed) in (list, tuple) else ():
        ok = type(item) in (list, tuple) and len(item) == 2 and type(item[0]) is str
        if not ok or type(item[1]) is not LazyTensor or item[1].unsupported:
            raise CheckpointError("a variable of an unknown form", "(name, array of numbers)")
        if item[0] in variables:
            raise CheckpointError(f"two variables named {describe(item[0], 200)}", "one")
        variables[item[0]] = item[1]
    return variables
