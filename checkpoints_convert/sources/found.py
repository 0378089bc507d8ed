"""A file's tensors, the network among them, and what a source makes of it.

A published network has tensors whose names no other has (anchors). Where they are found below a
prefix (`state_dict.`, `g_ema.`, `sd/`), the network is what lies below that prefix, and the rest of
the file (optimizers, discriminators, arrays beside) is ignored with that reason.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from checkpoints_convert.mappings.table import Conversion, ConversionError, Plan, select
from checkpoints_convert.readers import Checkpoint, CheckpointError, is_persistent
from checkpoints_convert.readers.nvidia import mapping as items_of
from checkpoints_convert.readers.tree import label
from checkpoints_convert.settings import Settings
from fpjax.models.checkpoint import config_to_json

WEIGHTS = {"ema": ("g_ema", "gs", "ema"), "raw": ("g", "generator")}
"""Last part of the names under which programs keep averaged and raw generator weights."""

Weights = Literal["ema", "raw"]
Origins = Mapping[str, tuple[str, str]]


@dataclass(frozen=True)
class Request:
    """What the person who converts says about a file, beyond the file.

    Attributes:
        config: the `config.yaml` or `config.json` that belongs to it; a `config.json` beside the
            file is found without it.
        encoder: the encoder that belongs to a TAESD decoder.
        heads: the LPIPS heads that belong to a torchvision backbone.
        weights: averaged ("ema") or raw weights, where the file has both.
        settings: what no weight shows; see `Settings`.
    """

    config: Path | None = None
    encoder: Path | None = None
    heads: Path | None = None
    weights: Weights = "ema"
    settings: Settings = field(default_factory=Settings)


@dataclass(frozen=True)
class Part:
    """One folder of the output: its place below the output folder, its config, its plan."""

    folder: str
    architecture: str
    config: Mapping[str, Any]
    plan: Plan


@dataclass(frozen=True)
class Recognised:
    """A file understood.

    Attributes:
        kind: the source, in words.
        parts: what to write.
        notes: what was inferred, preferred or could not be known.
        ignored: (tensor, reason) of what no part takes.
        origins: name in the plan -> (file, name in the file), for every tensor read from a file.
        files: the checkpoint files that were read, the main one first.
    """

    kind: str
    parts: tuple[Part, ...]
    notes: tuple[str, ...]
    ignored: tuple[tuple[str, str], ...]
    origins: Origins
    files: tuple[Checkpoint, ...]


@dataclass(frozen=True)
class Found:
    """A file's tensors, and those of them below the prefix where an anchor was."""

    file: Checkpoint
    all: Mapping[str, Any]
    prefix: str = ""

    @property
    def tensors(self) -> dict[str, Any]:
        """Those of the network, by its own names."""
        return select(self.all, self.prefix)

    @property
    def origins(self) -> dict[str, tuple[str, str]]:
        """Where in which file each of `tensors` is."""
        return {name: (self.file.path, self.prefix + name) for name in self.tensors}

    def beside(self, name: str) -> str | None:
        """Full name of a tensor called `name` at the prefix or anywhere above it."""
        parts = self.prefix.replace("/", ".").rstrip(".").split(".")
        for length in range(len(parts), -1, -1):
            start = self.prefix[: len(".".join(parts[:length])) + (length > 0)]
            if start + name in self.all:
                return start + name
        return None


def tensors_of(file: Checkpoint) -> Mapping[str, Any]:
    """A file's tensors by dotted name, with or without its optimizer's."""
    try:
        return file.tensors()
    except CheckpointError:
        # An optimizer or a metric may hold a tensor that is not read; the weights may be fine.
        if type(file.tree) is not dict or "state_dict" not in file.tree:
            raise
        below = file.tensors("state_dict")
        return {f"state_dict.{name}": tensor for name, tensor in below.items()}


def _prefixes(tensors: Mapping[str, Any], *anchors: str) -> list[str]:
    """Prefixes below which all anchors are."""
    ends = (f".{anchors[0]}", f"/{anchors[0]}")
    starts = [
        name.removesuffix(anchors[0])
        for name in tensors
        if name == anchors[0] or name.endswith(ends)
    ]
    return [start for start in starts if all(start + anchor in tensors for anchor in anchors)]


def at(found: Found, weights: Weights, *anchors: str) -> Found | None:
    """The network with these anchors; with several, the averaged or raw one as asked."""
    prefixes = _prefixes(found.all, *anchors)
    if not prefixes:
        return None
    return replace(found, prefix=choose(prefixes, weights))


def choose(names: list[str], weights: Weights) -> str:
    """The averaged or the raw one of several networks' names, told by their last part."""

    def last(name: str) -> str:
        return name.replace("/", ".").rstrip(".").rpartition(".")[2].lower()

    fitting = [name for name in names if last(name) in WEIGHTS[weights]]
    others = [name for name in names if any(last(name) in group for group in WEIGHTS.values())]
    if len(fitting) == 1:
        return fitting[0]
    if len(names) == 1 and (weights == "ema" or not others):
        return names[0]
    shown = ", ".join(repr(name.rstrip("./")) for name in names[:8])
    raise ConversionError(f"the file has no single network of --weights {weights}, but {shown}")


def recognised(
    kind: str,
    found: Found,
    conversion: Conversion,
    notes: tuple[str, ...] = (),
    more: tuple[Found, ...] = (),
    origins: Origins | None = None,
) -> Recognised:
    """Puts a conversion's parameters into folders, and names what the plan never saw."""
    config, plan = conversion.config, conversion.plan
    if conversion.architecture == "ldm":
        stage, prior = config["autoencoder"], config["diffusion"]
        parts = (
            Part("", "autoencoder", config_to_json(stage), plan.part("autoencoder/")),
            Part("prior", "diffusion", config_to_json(prior), plan.part("diffusion/")),
        )
    elif conversion.architecture in ("vgg16", "alexnet", "lpips", "inception"):
        perceptual_config = {"network": conversion.architecture, **(config or {})}
        parts = (Part("", "perceptual", perceptual_config, plan),)
    else:
        parts = (Part("", conversion.architecture, config_to_json(config), plan),)
    origins = found.origins if origins is None else origins
    taken = {name for path, name in origins.values() if path == found.file.path}
    outside = f"not below {found.prefix.rstrip('./')!r}, where the network is"
    beside = tuple((name, outside) for name in found.all if name not in taken)
    return Recognised(
        kind,
        parts,
        (*conversion.notes, *notes),
        plan.ignored + beside,
        origins,
        (found.file, *(other.file for other in more)),
    )


def describe(file: Checkpoint) -> str:
    """The structure of a file in a line or two, for those whose file is not known."""
    tree = file.tree
    if type(tree) is dict:
        shown = [
            f"{label(key)[:60]}: {_what(value)}"
            for key, value in itertools.islice(tree.items(), 12)
        ]
        more = f" and {len(tree) - 12} more" if len(tree) > 12 else ""
        return f"a {file.format} file with {', '.join(shown) or 'nothing'}{more}"
    if type(tree) in (list, tuple):
        shown = ", ".join(_what(value) for value in tree[:12])
        return f"a {file.format} file, a {type(tree).__name__} of {len(tree)}: {shown}"
    return f"a {file.format} file with {_what(tree)}"


def _what(node: Any) -> str:
    if is_persistent(node):
        return f"NVIDIA object {(items_of(node.args[0]) or {}).get('class_name')!s:.60}"
    if hasattr(node, "shape"):
        return f"tensor {tuple(node.shape)}"
    if hasattr(node, "module"):
        return f"object {node.module}.{node.name}"[:100]
    return (
        f"{type(node).__name__} of {len(node)}" if hasattr(node, "__len__") else type(node).__name__
    )
