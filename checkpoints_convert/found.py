"""A file's tensors, and the network among them.

A published network has tensors whose names no other has (anchors). Where they are found below a
prefix (`state_dict.`, `g_ema.module.`, `sd/`), the network is what lies below that prefix. What
lies beside it is left out only if it is known to accompany a network (optimizers, discriminators,
other copies): a network inside a larger one makes other images when it is taken alone.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from checkpoints_convert.describe import describe
from checkpoints_convert.modules import attributes_of, modules_in
from checkpoints_convert.printable import name as shown_name
from checkpoints_convert.printable import names as shown_names
from checkpoints_convert.readers import Checkpoint, CheckpointError, is_module, is_persistent
from checkpoints_convert.readers.nvidia import mapping as items_of
from checkpoints_convert.readers.tree import label
from checkpoints_convert.request import Request, without_effect
from checkpoints_convert.table import ConversionError, select

AVERAGED = re.compile(
    r"(?:\w+_)?ema(?:_\w+)?|gs|g_running|(?:g|gen\w*|model)_smooth(?:ed)?|(?:\w+_)?averaged?"
)
"""A part of a prefix by which programs call averaged weights: `g_ema`, `params_ema`, `Gs`, ..."""

RAW = re.compile(r"g|generator|net_?g|params|raw|model_raw")
"""A part by which they call the raw ones, where a file has both."""

ACCOMPANYING = re.compile(
    r"g|gs|d|generator|discriminator|critic|net_?[gd]|params|raw"  # the network again, its rival
    r"|(?:d|g|disc\w*|gen\w*|net_?[gd]|params|model)_(?:ema|running|smooth|avg|module|source)"
    r"|ema(?:_\w+)?|\w+_ema|discriminator_\w+|generator_\w+|\w*optim\w*|opt(?:_\w+)?|opts"
    r"|encoder|e|psp_encoder|\w*loss\w*|lpips\w*|id_\w+|facenet|arcface|\w*sched\w*|\w*scaler\w*"
    r"|ada\w*|aug\w*|epoch\w*|(?:global_)?steps?|iter\w*|args|config\w*|meta\w*|hyper_parameters"
    r"|callbacks|loops|latent_avg|w_avg|mean_latent|path_\w+|mean_path\w*|pl_mean|logvar"
)
"""First part, beyond what it shares with the network, of the names that may lie beside one."""


MAX_NETWORKS = 100  # of one kind in one file


@dataclass(frozen=True)
class Found:
    """A file's tensors, and those of them below the prefix where an anchor was.

    Attributes:
        file: the file.
        all: all its tensors by dotted name.
        prefix: where the network is.
        twins: prefixes of the same network's other copies (raw beside averaged weights).
        attributes: plain numbers and words that modules saved whole keep, by dotted name.
        weighted: whether names say that the weights are averaged or raw.
        places: the file of each tensor that is not in `file`, where a model is in several.
    """

    file: Checkpoint
    all: Mapping[str, Any]
    prefix: str = ""
    twins: tuple[str, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    weighted: bool = False
    places: Mapping[str, str] = field(default_factory=dict)

    @property
    def tensors(self) -> dict[str, Any]:
        """Those of the network, by its own names."""
        return select(self.all, self.prefix)

    @property
    def origins(self) -> dict[str, tuple[str, str]]:
        """Where in which file each of `tensors` is."""
        return {name: self.origin(self.prefix + name) for name in self.tensors}

    def origin(self, name: str) -> tuple[str, str]:
        """The file that holds a tensor of `all`, and its name there."""
        return self.places.get(name, self.file.path), name

    @property
    def place(self) -> str:
        """The prefix in words, empty if the network is the whole file."""
        return shown_name(self.prefix.rstrip("./"))

    @property
    def note(self) -> tuple[str, ...]:
        """A sentence that says which of several networks is used."""
        return (f"the weights of {self.place} are used",) if self.prefix else ()

    def beside(self, name: str) -> str | None:
        """Full name of a tensor called `name` at the prefix or anywhere above it."""
        parts = self.prefix.replace("/", ".").rstrip(".").split(".")
        for length in range(len(parts), -1, -1):
            start = self.prefix[: len(".".join(parts[:length])) + (length > 0)]
            if start + name in self.all:
                return start + name
        return None


def tensors_of(file: Checkpoint) -> Found:
    """A file's tensors by dotted name, with or without its optimizer's, and what modules keep."""
    try:
        tensors: dict[str, Any] = dict(file.tensors())
    except CheckpointError:
        # An optimizer or a metric may hold a tensor that is not read; the weights may be fine.
        if type(file.tree) is not dict or "state_dict" not in file.tree:
            raise
        below = file.tensors("state_dict")
        tensors = {f"state_dict.{name}": tensor for name, tensor in below.items()}
    attributes: dict[str, Any] = {}
    for place, module in modules_in(file.tree):
        start = f"{place}." if place else ""
        attributes |= {start + name: value for name, value in attributes_of(module).items()}
    return Found(file, tensors, attributes=attributes)


def at(found: Found, request: Request, *anchors: str) -> Found | None:
    """The network with these anchors; with several, the averaged or the raw one as asked.

    Raises:
        ConversionError: if the file has no single such network, or not of the weights asked for.
    """
    ends = (f".{anchors[0]}", f"/{anchors[0]}")
    starts = [
        name.removesuffix(anchors[0])
        for name in found.all
        if name == anchors[0] or name.endswith(ends)
    ]
    prefixes = [start for start in starts if all(start + other in found.all for other in anchors)]
    if not prefixes:
        return None
    if len(prefixes) > MAX_NETWORKS:
        raise ConversionError(f"a file of {len(prefixes):,} networks: save the one that is meant")
    if len(prefixes) == 1 and _unnamed_averages(replace(found, prefix=prefixes[0])):
        # Beside averages of whatever form, the only network with names has the raw weights.
        if request.weights == "ema":
            check_averages(replace(found, prefix=prefixes[0]), request)
        return replace(found, prefix=prefixes[0], weighted=True)
    chosen = choose(prefixes, request)
    twins = tuple(prefix for prefix in prefixes if prefix != chosen)
    weighted = len(prefixes) > 1 or is_averaged(chosen) or _is_raw(chosen)
    return replace(found, prefix=chosen, twins=twins, weighted=weighted)


def choose(prefixes: list[str], request: Request) -> str:
    """The averaged or the raw one of several networks, told by any part of their prefixes."""
    averaged = [prefix for prefix in prefixes if is_averaged(prefix)]
    others = [prefix for prefix in prefixes if not is_averaged(prefix)]
    if request.weights is None and (len(prefixes) == 1 or len(averaged) == 1):
        return (averaged or prefixes)[0]
    if request.weights == "ema" and len(averaged) == 1:
        return averaged[0]
    raw = [prefix for prefix in others if _is_raw(prefix)] or (others if averaged else [])
    if request.weights == "raw" and len(raw) == 1:
        return raw[0]
    if len(prefixes) == 1 and not averaged and not _is_raw(prefixes[0]):
        raise without_effect(
            "weights", "a file with one network", ", which no name calls averaged or raw"
        )
    listed = shown_names([repr(prefix.rstrip("./")) for prefix in prefixes])
    asked = f" of --weights {request.weights}" if request.weights else ""
    raise ConversionError(
        f"the file has no single network{asked}, but {listed}: save the one that is meant alone"
    )


def is_averaged(prefix: str) -> bool:
    """Whether any part of a prefix says that weights are averages.

    >>> is_averaged("g_ema.module."), is_averaged("generator_ema."), is_averaged("g.")
    (True, True, False)
    """
    return any(AVERAGED.fullmatch(part.lower()) for part in re.split(r"[./]", prefix))


def _is_raw(prefix: str) -> bool:
    return any(RAW.fullmatch(part.lower()) for part in re.split(r"[./]", prefix))


def check_alone(found: Found, *, also: str = "(?!)") -> None:
    """Refuses a network inside a larger one.

    Args:
        found: the network.
        also: a pattern of further parts of names that may lie beside this network.

    Raises:
        ConversionError: naming what lies beside it.
    """
    start = state_dict_start(found)
    others: dict[str, list[str]] = {}
    for name in found.all:
        if name.startswith(found.prefix) or not name.startswith(start):
            continue
        if any(twin and name.startswith(twin) for twin in found.twins):
            continue
        part = _first_own_part(name, found.prefix, start)
        if not (ACCOMPANYING.fullmatch(part.lower()) or re.fullmatch(also, part)):
            others.setdefault(part, []).append(name)
    if others:
        beside = list(itertools.chain.from_iterable(others.values()))
        raise ConversionError(
            f"the network {found.place or 'here'} is inside a larger one, with {len(beside)} "
            f"tensors beside it ({shown_names(beside, 3)}): fpjax has no such model, and the inner "
            "network alone would make other images",
            [f"beside the network: {shown_name(name)}" for name in beside],
        )


def check_averages(found: Found, request: Request) -> None:
    """Refuses raw weights beside averages that cannot be told apart, unless raw ones are asked for.

    Raises:
        ConversionError: naming the averages.
    """
    if request.weights == "raw" or not (unused := _unnamed_averages(found)):
        return
    raise ConversionError(
        "raw weights beside averages that have no names of this network "
        f"({shown_names(unused, 3)}): pass --weights raw to convert the raw ones",
        [f"average without a name: {shown_name(name)}" for name in unused],
    )


def _unnamed_averages(found: Found) -> list[str]:
    """Names of averages that lie beside a network of raw weights, its rival's left out."""
    if is_averaged(found.prefix):
        return []
    others = r"(?:.*[./])?(?:d|disc\w*|e|enc\w*|opt\w*|first_stage_model)(?:_ema)?[./]"
    return [
        name
        for name, tensor in found.all.items()
        if not name.startswith(found.prefix)
        and not any(name.startswith(twin) for twin in found.twins)
        and len(tensor.shape) > 0  # not a counter of the averaging
        and is_averaged(name)
        and not re.match(others, name.lower())
    ]


def state_dict_start(found: Found) -> str:
    """Prefix of the state dict that holds the network: what lies outside it is another object."""
    if found.file.format in ("npz", "npy", "safetensors"):
        return found.prefix[: found.prefix.rfind("/") + 1]
    start, node = "", found.file.tree
    while type(node) is dict:
        below = [
            (f"{start}{label(key)}.", child)
            for key, child in node.items()
            if found.prefix.startswith(f"{start}{label(key)}.")
            and (type(child) is dict or is_module(child))
        ]
        if not below:
            break
        start, node = max(below, key=lambda pair: len(pair[0]))
    return start


def _first_own_part(name: str, prefix: str, start: str) -> str:
    """The first part of a name that the network's prefix does not have."""
    own, parts = re.split(r"[./]", prefix[len(start) :]), re.split(r"[./]", name[len(start) :])
    for ours, theirs in itertools.zip_longest(own, parts, fillvalue=""):
        if ours != theirs:
            return theirs
    return ""


def describe_file(file: Checkpoint) -> str:
    """The structure of a file in a line or two, for those whose file is not known."""
    tree = file.tree
    if type(tree) is dict:
        shown = [
            f"{shown_name(label(key)[:60])}: {_what(value)}"
            for key, value in itertools.islice(tree.items(), 10)
        ]
        more = f" and {len(tree) - 10} more" if len(tree) > 10 else ""
        return f"a {file.format} file with {', '.join(shown) or 'nothing'}{more}"
    if type(tree) in (list, tuple):
        shown = ", ".join(_what(value) for value in tree[:10])
        return f"a {file.format} file, a {type(tree).__name__} of {len(tree)}: {shown}"
    return f"a {file.format} file with {_what(tree)}"


def _what(node: Any) -> str:
    if is_persistent(node):
        name = (items_of(node.args[0]) or {}).get("class_name") if node.args else None
        return f"NVIDIA object {describe(name, 60)}"
    if hasattr(node, "shape"):
        return f"tensor {tuple(node.shape)}"
    if hasattr(node, "module"):
        return f"object {shown_name(node.module[:60])}.{shown_name(node.name[:60])}"
    if hasattr(node, "__len__"):
        return f"{type(node).__name__} of {len(node)}"
    return type(node).__name__
