"""The state of the pickle interpreter and what its opcodes work with: bytes, stack, memo, meaning.

A global stays a name: nothing is imported and nothing is called by name. What a call means is
looked up in the closed list of `builders`, and everything else becomes an `Opaque`. Every length
is checked against the bytes that are left before it is used.
"""

import re
from collections.abc import Callable
from typing import Any

from checkpoints_convert.readers.builders import BUILDERS, UNSUPPORTED
from checkpoints_convert.readers.limits import CheckpointError, Meter, over_limit
from checkpoints_convert.readers.regions import Region
from checkpoints_convert.readers.tensors import LazyTensor, Storage
from checkpoints_convert.readers.tree import Global, Opaque

INLINE_BYTES = 4096  # longer byte strings stay in the file, as a Region
NUMBER_BYTES = 1024  # of one integer; torch's magic number has 10
NAME_BYTES = 1024  # of a module or class name
KEY_NODES = 64  # of a tuple used as a dict key
FLAT_KEYS = (str, int, float, bool, bytes, type(None), complex)
IDENTITY_KEYS = (Global, Opaque, LazyTensor, Storage)  # their hash looks at nothing inside them
RENAMED_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # Python 2's names

_ESCAPES = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"a": b"\a", b"b": b"\b", b"f": b"\f"}
_ESCAPES |= {b"v": b"\v", b"\n": b"", b"\\": b"\\", b"'": b"'", b'"': b'"'}


class Machine:
    """What `opcodes.interpret` knows while it reads one pickle.

    Args:
        region: the bytes that the pickle lies in.
        data: the same bytes, in memory or mapped.
        position: where the pickle starts.
        meter: what is left of the limits.
        load_nested: reads a torch file inside a byte string, for `torch.storage._load_from_bytes`.
        persistent: gives the meaning of a persistent id, a tuple; None where there are none.
    """

    def __init__(
        self,
        region: Region,
        data: memoryview,
        position: int,
        meter: Meter,
        load_nested: Callable[[Region], Any],
        persistent: Callable[[Any], Any] | None = None,
    ):
        self.region, self.data, self.position, self.meter = region, data, position, meter
        self.load_nested, self.persistent = load_nested, persistent
        self.stack: list = []
        self.marks: list[list] = []
        self.memo: dict[int, Any] = {}
        self.pending: dict[int, LazyTensor] = {}
        self.done = False

    def error(self, found: str, expected: str) -> CheckpointError:
        """An error at the current byte."""
        return CheckpointError(f"{found} at byte {self.position:,}", expected)

    # The bytes ahead

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        start, stop = self.position, self.position + count
        if stop > len(self.data):
            raise self.error(f"{count:,} bytes claimed", f"{len(self.data) - start:,} or fewer")
        self.position = stop
        return bytes(self.data[start:stop])

    def unsigned(self, width: int) -> int:
        """The next little-endian unsigned integer of `width` bytes."""
        return int.from_bytes(self.take(width), "little")

    def line(self, limit: int) -> bytes:
        """The bytes up to a newline, which is skipped."""
        piece = bytes(self.data[self.position : self.position + limit + 1])
        end = piece.find(b"\n")
        if end < 0:
            raise self.error("a line without an end", f"a newline within {limit:,} bytes")
        self.position += end + 1
        return piece[:end]

    def text_line(self) -> bytes:
        """A line that holds a string of any allowed length."""
        limit, most = 256, min(self.meter.limits.string_bytes, len(self.data) - self.position)
        while limit < most and b"\n" not in bytes(self.data[self.position :][: limit + 1]):
            limit *= 8
        found = self.line(min(limit, most))
        self.meter.charge("pickle_bytes", len(found))
        return found

    def text(self, width: int) -> str:
        """A UTF-8 string behind its length."""
        return self.decode(self.short(self.unsigned(width)), "utf-8")

    def decode(self, data: bytes, encoding: str) -> str:
        """`data` as text without surrogates, which could not be printed or written again."""
        try:
            string = data.decode(encoding)
            if not string.isascii():
                string.encode("utf-8")
        except UnicodeError as error:
            raise self.error("a string that is not text", f"{encoding}, not {error}") from error
        return string

    def short(self, count: int) -> bytes:
        """The next `count` bytes, which count as decoded."""
        if count > self.meter.limits.string_bytes:
            raise over_limit(self.meter.limits, "string_bytes")
        data = self.take(count)
        self.meter.charge("pickle_bytes", count)
        return data

    def blob(self, count: int) -> bytes | Region:
        """The next `count` bytes, left in the file when they are many."""
        if count <= INLINE_BYTES:
            return self.short(count)
        region = self.region.slice(self.position, self.position + count, "a byte string")
        self.position += count
        return region

    # The stack

    def pop(self) -> Any:
        """The top of the stack, which must lie above the last mark."""
        if not self.stack:
            raise self.error("an empty stack", "a value")
        return self.stack.pop()

    def top(self) -> Any:
        """The top of the stack, left there."""
        if not self.stack:
            raise self.error("an empty stack", "a value")
        return self.stack[-1]

    def pop_mark(self) -> list:
        """Everything above the last mark."""
        if not self.marks:
            raise self.error("no mark on the stack", "MARK before it")
        items, self.stack = self.stack, self.marks.pop()
        return items

    def remember(self, index: int) -> None:
        """Store the top of the stack in a memo slot."""
        self.memo[index] = self.top()
        if len(self.memo) > self.meter.limits.memo_entries:
            raise over_limit(self.meter.limits, "memo_entries")

    def recall(self, index: int) -> Any:
        """What a memo slot holds."""
        if index not in self.memo:
            raise self.error(f"memo slot {index}", "a slot stored before")
        return self.memo[index]

    def key(self, value: Any) -> Any:
        """`value` if it may be hashed cheaply: deep tuples would overflow the stack of hash()."""
        kind = type(value)
        parts = value if kind is tuple and len(value) <= KEY_NODES else (value,)
        for part in parts:
            if type(part) is int and not -(1 << 63) <= part < 1 << 64:
                raise self.error("a dict key of over 64 bits", "a short one")  # made to collide
            if type(part) not in FLAT_KEYS and (kind is tuple or kind not in IDENTITY_KEYS):
                raise self.error(f"a {kind.__name__} as key", "a str, a number or a flat tuple")
        return value

    # Meaning

    def call(self, function: Any, args: Any, kwargs: Any = None) -> Any:
        """What calling `function` would give: a builder's value or an Opaque."""
        if type(args) is not tuple or (kwargs is not None and type(kwargs) is not dict):
            raise self.error(f"arguments as a {type(args).__name__}", "a tuple and a dict")
        if type(function) is Opaque:
            return Opaque("", "<call of an object>", (function, args), kwargs or {})
        if type(function) is not Global:
            raise self.error(f"a call of a {type(function).__name__}", "a global")
        name = str(function)
        builder = BUILDERS.get(name)
        if builder is not None and not kwargs:
            value = builder(self, args)
            if value is not NotImplemented:
                return value
        reason = UNSUPPORTED.get(name, "")
        return Opaque(function.module, function.name, args, kwargs or {}, unsupported=reason)

    def build(self, target: Any, state: Any) -> None:
        """Give an object its state, as its `__setstate__` would."""
        if type(target) is Opaque:
            if target.state is not None:
                raise self.error("a second state for one object", "one BUILD")
            target.state = state
        elif id(target) in self.pending:
            BUILDERS["numpy.ndarray.__setstate__"](self, (target, state))
        elif type(target) is not dict:  # of an OrderedDict, attributes such as _metadata: dropped
            raise self.error(f"a state for a {type(target).__name__}", "an object")

    def extend(self, target: Any, items: list) -> None:
        """Append to a list or to an object that acts as one."""
        if type(target) is list:
            target.extend(items)
        elif type(target) is Opaque:
            target.elements.extend(items)
        else:
            raise self.error(f"APPEND to a {type(target).__name__}", "a list")

    def update(self, target: Any, items: list) -> None:
        """Store key, value, key, value, ... in a dict or in an object that acts as one."""
        if type(target) is Opaque:
            target = target.entries
        if type(target) is not dict or len(items) % 2:
            raise self.error(f"{len(items)} keys and values for a {type(target).__name__}", "pairs")
        for index in range(0, len(items), 2):
            target[self.key(items[index])] = items[index + 1]

    def name_line(self) -> str:
        """A module or class name that ends with a newline."""
        return self.decode(self.line(NAME_BYTES), "utf-8")

    def named(self, module: Any, name: Any) -> Global:
        """The global of that name; nothing is looked up."""
        for part in (module, name):
            if type(part) is not str or len(part) > NAME_BYTES:
                raise self.error(f"a {type(part).__name__} as the name of a global", "a short str")
        return Global(RENAMED_MODULES.get(module) or module, name)

    def integer(self, count: int) -> int:
        """A little-endian two's complement integer of `count` bytes."""
        if count > NUMBER_BYTES:
            raise self.error(f"an integer of {count:,} bytes", f"at most {NUMBER_BYTES:,}")
        return int.from_bytes(self.take(count), "little", signed=True)

    def number(self, convert: Callable, strip: bytes = b"") -> Any:
        """A number written as text on a line."""
        line = self.line(NUMBER_BYTES).removesuffix(strip)
        try:
            return convert(line)
        except ValueError as error:
            raise self.error("a line that is no number", convert.__name__) from error

    def native(self, data: bytes | Region) -> str | bytes | Region:
        """A Python 2 string: text if it is short and ASCII, else bytes."""
        return data.decode("ascii") if isinstance(data, bytes) and data.isascii() else data


def unescape(data: bytes) -> bytes:
    """The bytes that the inside of a Python string literal stands for."""

    def value(match: re.Match) -> bytes:
        code: bytes = match[1]
        if code[:1] == b"x":
            return bytes([int(code[1:], 16)])
        if code.isdigit():
            return bytes([int(code, 8) & 255])
        return _ESCAPES[code] if code in _ESCAPES else match[0]

    return re.sub(rb"\\(x[0-9a-fA-F]{2}|[0-7]{1,3}|[^0-9x])", value, data, flags=re.DOTALL)
