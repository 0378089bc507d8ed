"""Configuration files beside checkpoints: JSON and YAML of strangers, read within bounds.

A value is taken by one of the functions below, which say what was expected and describe what was
there; nothing of a stranger's file is used before its type and range are known.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from checkpoints_convert.describe import describe
from checkpoints_convert.printable import printable
from checkpoints_convert.table import ConversionError

JSON_BYTES = 2 << 20
"""Of a config.json, or of the index of a model in several files."""
YAML_BYTES = 64 << 10
"""PyYAML makes about a kilobyte of objects of each value; published files have 3 KiB."""
MAX_ITEMS = 16  # of a list: one for each level of a network


def integer(
    document: Mapping[str, Any], name: str, default: Any = None, *, least: int = 1, most: int
) -> Any:
    """A whole number in a range; the default where the document leaves it out or says null.

    >>> integer({"layers_per_block": 10**9}, "layers_per_block", 1, most=64)
    Traceback (most recent call last):
    ...
    checkpoints_convert.table.ConversionError: layers_per_block = 1000000000: expected a whole ...
    """
    value = document.get(name)
    if value is None:
        return default
    if type(value) is not int or not least <= value <= most:
        raise unexpected(name, value, f"a whole number from {least} to {most:,}")
    return value


def number(document: Mapping[str, Any], name: str, default: Any = None) -> Any:
    """A finite number as a float; the default where the document leaves it out or says null."""
    value = document.get(name)
    if value is None:
        return default
    small = type(value) is float or (type(value) is int and value.bit_length() < 1000)
    if not small or not math.isfinite(value):
        raise unexpected(name, value, "a number")
    return float(value)


def flag(document: Mapping[str, Any], name: str, default: Any = None) -> Any:
    """True or false; the default where the document leaves it out or says null."""
    value = document.get(name)
    if value is None:
        return default
    if type(value) is not bool:
        raise unexpected(name, value, "true or false")
    return value


def integers(
    document: Mapping[str, Any], name: str, default: Sequence[int], *, least: int = 1, most: int
) -> tuple[int, ...]:
    """A list of whole numbers in a range, one for each level of a network."""
    values = document.get(name)
    if values is None:
        return tuple(default)
    fits = type(values) in (list, tuple) and 1 <= len(values) <= MAX_ITEMS
    if not fits or not all(type(v) is int and least <= v <= most for v in values):
        what = f"1 to {MAX_ITEMS} whole numbers from {least} to {most:,}"
        raise unexpected(name, values, what)
    return tuple(values)


def texts(document: Mapping[str, Any], name: str, default: Sequence[str]) -> tuple[str, ...]:
    """A list of words, one for each level of a network."""
    values = document.get(name)
    if values is None:
        return tuple(default)
    fits = type(values) in (list, tuple) and 1 <= len(values) <= MAX_ITEMS
    if not fits or not all(type(v) is str for v in values):
        raise unexpected(name, values, f"1 to {MAX_ITEMS} names")
    return tuple(values)


def choice(document: Mapping[str, Any], name: str, allowed: Sequence[Any], what: str = "") -> Any:
    """One of the values that fpjax has; the first where the document leaves it out.

    >>> choice({"act_fn": ["gelu"] * 9}, "act_fn", ("silu", "swish"))
    Traceback (most recent call last):
    ...
    checkpoints_convert.table.ConversionError: act_fn = ['gelu', 'gelu', ... has no counterpart ...
    """
    value = document.get(name, allowed[0])
    if not any(_same(value, one) for one in allowed):
        choices = " or ".join(repr(one) for one in allowed)
        raise ConversionError(
            f"{name} = {describe(value, 60)} has no counterpart in fpjax, which has {choices}{what}"
        )
    return value


def _same(value: Any, one: Any) -> bool:
    """Whether two plain values are equal, and not only to Python, for which 1 is True."""
    numbers = (int, float)
    return (type(value) in numbers and type(one) in numbers and value == one) or (
        type(value) is type(one) and value == one
    )


def unexpected(name: str, value: Any, what: str) -> ConversionError:
    """The error for a value of another type or range; `value` may be of any size."""
    return ConversionError(f"{name} = {describe(value, 60)}: expected {what}")


def below(document: Any, *names: str) -> Mapping[str, Any]:
    """The mapping at a path of keys, empty where there is none."""
    for name in names:
        document = document.get(name) if isinstance(document, Mapping) else None
    return document if isinstance(document, Mapping) else {}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        ConversionError: if it holds something else, or is larger than 2 MiB.
    """
    try:
        value = json.loads(_text(path, JSON_BYTES))
    except (ValueError, RecursionError) as error:
        if isinstance(error, ConversionError):
            raise
        raise ConversionError(f"{_shown(path)}: no JSON: {printable(error, 200)}") from error
    if not isinstance(value, dict):
        raise ConversionError(
            f"{_shown(path)}: expected a JSON object, found a {type(value).__name__}"
        )
    return value


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping, read by PyYAML's safe loader; nothing in it is run.

    Aliases are refused: merging them again and again makes gigabytes of a few lines.

    Raises:
        ConversionError: if it holds something else, is larger than 64 KiB, or PyYAML is not
            installed.
    """
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise ConversionError(
            f"{_shown(path)}: reading a config.yaml needs PyYAML (pip install pyyaml); "
            "--resolution, --num-head-channels and the other flags say the same without it"
        ) from error

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent, index):
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("an alias (*name): write the values out")
            return super().compose_node(parent, index)

    text = _text(path, YAML_BYTES)
    try:
        value = yaml.load(text, Loader)  # a subclass of the safe loader
    except (yaml.YAMLError, RecursionError, ValueError, ArithmeticError, TypeError) as error:
        reason = printable(" ".join(str(error)[:1000].split()), 300)
        raise ConversionError(f"{_shown(path)}: no YAML: {reason}") from error
    if not isinstance(value, dict):
        raise ConversionError(f"{_shown(path)}: expected a mapping, found a {type(value).__name__}")
    return value


def _text(path: Path, most: int) -> str:
    # Without waiting: opening a pipe that nobody writes to would never come back.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ConversionError(f"{_shown(path)}: no regular file")
        data = file.read(most + 1)
    if len(data) > most:
        raise ConversionError(f"{_shown(path)}: over {most >> 10:,} KiB: no config file")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConversionError(f"{_shown(path)}: no UTF-8 text") from error


def _shown(path: Path) -> str:
    return printable(path)
