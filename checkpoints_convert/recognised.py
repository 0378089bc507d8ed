"""What a publisher makes of a file: folders to write, notes, and where each tensor comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from checkpoints_convert.found import Found
from checkpoints_convert.readers import Checkpoint
from checkpoints_convert.table import Conversion, Plan
from fpjax.models.checkpoint import config_to_json

Origins = Mapping[str, tuple[str, str]]


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


def recognised(
    kind: str,
    found: Found,
    conversion: Conversion,
    notes: tuple[str, ...] = (),
    more: tuple[Found, ...] = (),
    origins: Origins | None = None,
) -> Recognised:
    """Puts a conversion's parameters into folders, and names what the plan never saw.

    Args:
        kind: what the file is, in words.
        found: the network.
        conversion: what becomes of it.
        notes: further sentences for the person who converts.
        more: networks of further files.
        origins: where the plan's tensors are, if not all are `found`'s under their own names.
    """
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
    taken = set(origins.values())
    outside = "no tensor of the network, or not of the weights that are used"
    if found.prefix:
        outside = f"not below {found.place!r}, where the network is"
    beside = tuple((name, outside) for name in found.all if found.origin(name) not in taken)
    return Recognised(
        kind,
        parts,
        (*conversion.notes, *notes),
        plan.ignored + beside,
        origins,
        (found.file, *(other.file for other in more)),
    )
