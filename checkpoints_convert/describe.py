"""Any value of a stranger's file as text of a bounded length, safe to print.

`f"{value!r}"` builds the whole text before it is cut: a few hundred bytes of a file can name the
same list again and again and grow to gigabytes. Here no more is built than is shown.
"""

from typing import Any

_DEPTH = 3
_BITS = 200  # of an int that is written out: 61 digits
_ENDS = {
    list: ("[", "]"),
    tuple: ("(", ")"),
    set: ("{", "}"),
    frozenset: ("{", "}"),
    dict: ("{", "}"),
}


def describe(value: Any, limit: int = 80) -> str:
    """A value in at most `limit` printable characters, and in time and memory of that order.

    Args:
        value: anything; containers may be nested, shared and cyclic.
        limit: characters of the result, at least 16.

    Returns:
        One line without control characters. Numbers and text are written out as far as they fit,
        containers with their first elements, other objects by their type.

    >>> describe("one\\nline"), describe([1, (None, 2.5)])
    ("'one\\\\nline'", '[1, (None, 2.5)]')
    >>> describe("a" * 1000, 20)
    "'aaaaaaaaaaaaaaaa..."
    >>> describe(1 << 100_000)
    'an int of 100,001 bits'
    """
    text = _text(value, limit, _DEPTH)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _text(value: Any, limit: int, depth: int) -> str:
    """The text, cut where it is over `limit` anyway."""
    kind = type(value)
    if isinstance(value, str):
        return repr(str(value[: limit + 1]))
    if isinstance(value, (bytes, bytearray)):
        return repr(bytes(value[: limit + 1]))
    if value is None or kind in (bool, float, complex):
        return repr(value)
    if kind is int:
        bits = value.bit_length()
        return repr(value) if bits <= _BITS else f"an int of {bits:,} bits"
    if kind in _ENDS:
        return _container(value, limit, depth)
    if kind.__module__.startswith("checkpoints_convert.") and kind.__repr__ is not object.__repr__:
        return repr(str(repr(value)[: limit + 1]))[1:-1]  # the readers' own records
    return f"a {kind.__name__}"


def _container(value: Any, limit: int, depth: int) -> str:
    start, end = _ENDS[type(value)]
    if not value:
        return f"{start}{end}" if type(value) not in (set, frozenset) else "an empty set"
    if depth == 0:
        return f"a {type(value).__name__} of {len(value):,}"
    text = start
    for index, item in enumerate(value):
        if len(text) > limit:
            return text
        text += ", " if index else ""
        text += _text(item, limit - len(text), depth - 1) if len(text) < limit else "..."
        if type(value) is dict and len(text) < limit:
            text += ": " + _text(value[item], limit - len(text), depth - 1)
    return text + (",)" if type(value) is tuple and len(value) == 1 else end)
