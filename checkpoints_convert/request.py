"""What the person who converts says about a file, beyond the file; and that every word counts.

Each publisher has a dataclass of options: what no weight of its files shows. Whatever else is said
has no meaning for the file at hand and is refused, since it would be ignored without a word.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from checkpoints_convert.table import ConversionError

Weights = Literal["ema", "raw"]
Options = TypeVar("Options")

FILES = ("config", "encoder", "heads")


@dataclasses.dataclass(frozen=True)
class Request:
    """Flags of the command.

    Attributes:
        config: the `config.yaml` or `config.json` that belongs to the file; a `config.json` beside
            it is found without this.
        encoder: the encoder that belongs to a TAESD decoder.
        heads: the LPIPS heads that belong to a torchvision backbone.
        weights: averaged ("ema") or raw weights; None takes the averaged ones where there are any.
        options: what no weight shows, by name: `resolution`, `num_head_channels`, `num_heads`,
            `new_attention_order`, `scale_factor`, `shift_factor`, `mapping_lr_multiplier`. Each
            publisher takes some of them; see the options of its module.

    >>> Request(options={"resolution": 0})
    Traceback (most recent call last):
    ...
    ValueError: resolution 0: expected a positive whole number
    """

    config: Path | None = None
    encoder: Path | None = None
    heads: Path | None = None
    weights: Weights | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for name, value in self.options.items():
            if name == "new_attention_order":
                fits, what = type(value) is bool, "True or False"
            elif name in ("resolution", "num_head_channels", "num_heads"):
                fits, what = type(value) is int and value > 0, "a positive whole number"
            elif name == "shift_factor":
                fits, what = type(value) in (int, float) and math.isfinite(value), "a number"
            elif name in ("scale_factor", "mapping_lr_multiplier"):
                fits = type(value) in (int, float) and 0 < value < math.inf
                what = "a positive number"
            else:
                raise ValueError(f"no option is called {name!r}; see Request")
            if not fits:
                raise ValueError(f"{name} {value!r}: expected {what}")

    def read(
        self,
        kind: str,
        options: type[Options],
        *,
        files: tuple[str, ...] = (),
        weights: bool = False,
    ) -> Options:
        """The options that a publisher takes; whatever it does not take must not have been given.

        Args:
            kind: what the file is, in words.
            options: the publisher's dataclass of options.
            files: which of the further files belong to such a file.
            weights: whether it may hold averaged and raw weights.

        Raises:
            ConversionError: for a flag that has no meaning for such a file.

        >>> Request(options={"resolution": 64}).read("VGG16", NoOptions)
        Traceback (most recent call last):
        ...
        checkpoints_convert.table.ConversionError: --resolution has no meaning for VGG16: leave ...
        """
        taken = {field.name for field in dataclasses.fields(options)}  # type: ignore[arg-type]
        extra = [name for name in self.options if name not in taken]
        extra += [name for name in FILES if getattr(self, name) is not None and name not in files]
        extra += ["weights"] * (self.weights is not None and not weights)
        if extra:
            raise without_effect(extra[0], kind)
        return options(**self.options)


@dataclasses.dataclass(frozen=True)
class NoOptions:
    """Of files whose tensors and configuration say everything."""


def without_effect(option: str, kind: str, why: str = "") -> ConversionError:
    """The error for a flag that would be ignored."""
    flag = f"--{option.replace('_', '-')}"
    return ConversionError(f"{flag} has no meaning for {kind}{why}: leave it out")
