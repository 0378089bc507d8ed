"""Values of strangers' configuration files, which `readers.settings_files` parses within bounds.

A value is taken by one of the functions below, which say what was expected and describe what was
there; nothing of a stranger's file is used before its type and range are known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from checkpoints_convert.describe import describe
from checkpoints_convert.table import ConversionError

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
