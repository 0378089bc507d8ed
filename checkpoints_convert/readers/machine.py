"""The state of the pickle interpreter and what its opcodes work with: bytes, stack, memo, meaning.

A global stays a name: nothing is imported and nothing is called by name. What a call means is
looked up in the closed list of `builders`, and everything else becomes an `Opaque`. Every length
is checked against the bytes that are left before it is used.
"""

import codecs
import sys
import warnings
from collections.abc import Callable
from typing import Any

from checkpoints_convert.readers.builders import BUILDERS, RECORD_COST, UNSUPPORTED
from checkpoints_convert.readers.limits import CheckpointError, Meter, over_limit
from checkpoints_convert.readers.regions import Region
from checkpoints_convert.readers.tensors import LazyTensor, Storage
from checkpoints_convert.readers.tree import Global, Opaque

INLINE_BYTES = 4096  # longer byte strings stay in the file, as a Region
NUMBER_BYTES = 1024  # of one integer; torch's magic number has 10
NAME_BYTES = 1024  # of a module or class name
KEY_NODES = 64  # of a tuple used as a dict key
PAIR_COST = 104  # bytes of memory that a dict takes for a key and its value
SLOT_COST = 190  # that a memo slot takes out of the row,
BUILT_COST = 100  # and that a builder's small results take, beside what it counts itself
DECODING = 8  # bytes that decoding a byte of text may take at its peak
UNESCAPING = 4  # and a byte of a quoted string
PLAIN_KEYS = (str, int, bool, bytes, type(None))
"""What checkpoints use as keys. Nobody can choose the hash of a str or bytes (it is seeded in each
process), and no more than 13 ints of 64 bits have the same one."""
IDENTITY_KEYS = (Global, Opaque, LazyTensor, Storage)  # their hash looks at nothing inside them
RENAMED_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # Python 2's names


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
        self.memo: list = []  # picklers number the slots one after another
        self.scattered: dict[int, Any] = {}  # slots of other numbers
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
        end, most = -1, 32  # most lines are short, and the search must not cost more than they
        while end < 0 and most < 4 * (limit + 32):
            piece = bytes(self.data[self.position : self.position + min(most, limit + 1)])
            end, most = piece.find(b"\n"), most * 4
        if end < 0:
            raise self.error("a line without an end", f"a newline within {limit:,} bytes")
        self.position += end + 1
        return piece[:end]

    def text_line(self, cost: int = DECODING) -> bytes:
        """A line that holds a string of any allowed length."""
        most = min(self.meter.limits.string_bytes, len(self.data) - self.position)
        found = self.line(most)
        self.meter.room(cost * len(found))
        return found

    def text(self, width: int) -> str:
        """A UTF-8 string behind its length."""
        return self.decode(self.short(self.unsigned(width)), "utf-8")

    def decode(self, data: bytes, encoding: str) -> str:
        """`data` as text without surrogates, which could not be printed or written again."""
        try:
            string = data.decode(encoding)
            self.meter.make(sys.getsizeof(string))
            if encoding != "utf-8" and not string.isascii():
                string.encode("utf-8")
        except UnicodeError as error:
            raise self.error("a string that is not text", f"{encoding}, not {error}") from error
        return string

    def short(self, count: int) -> bytes:
        """The next `count` bytes, which count as decoded."""
        if count > self.meter.limits.string_bytes:
            raise over_limit(self.meter.limits, "string_bytes")
        self.meter.room(DECODING * min(count, len(self.data) - self.position))
        return self.take(count)

    def blob(self, count: int) -> bytes | Region:
        """The next `count` bytes, left in the file when they are many."""
        self.meter.make(100 + (count if count <= INLINE_BYTES else 0))
        if count <= INLINE_BYTES:
            return self.take(count)
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
        if index < len(self.memo):
            self.memo[index] = self.top()
        elif index == len(self.memo):
            self.memo.append(self.top())
            self.scattered.pop(index, None)
        else:
            self.meter.make(SLOT_COST)
            self.scattered[index] = self.top()

    def recall(self, index: int) -> Any:
        """What a memo slot holds."""
        if index < len(self.memo):
            return self.memo[index]
        if index not in self.scattered:
            raise self.error(f"memo slot {index}", "a slot stored before")
        return self.scattered[index]

    def key(self, value: Any) -> Any:
        """`value` if it may be hashed cheaply.

        Deep tuples would overflow the stack of hash(), and numbers can be chosen so that all their
        hashes are equal, which makes a dict of them slow: kinds that checkpoints use are allowed,
        and a few floats and tuples.
        """
        kind = type(value)
        if kind is float:
            self.meter.odd_key()
        elif kind is tuple and len(value) <= KEY_NODES:
            self.meter.odd_key()
            for part in value:
                if type(part) is tuple:
                    raise self.error("a tuple in a tuple as key", "a str, a number or a flat tuple")
                self.key(part)
        elif kind is int:
            if not -(1 << 63) <= value < 1 << 64:
                raise self.error("a dict key of over 64 bits", "a short one")  # made to collide
        elif kind not in PLAIN_KEYS and kind not in IDENTITY_KEYS:
            raise self.error(f"a {kind.__name__} as key", "a str, a number or a flat tuple")
        return value

    # Meaning

    def call(self, function: Any, args: Any, kwargs: Any = None) -> Any:
        """What calling `function` would give: a builder's value or an Opaque."""
        if type(args) is not tuple or (kwargs is not None and type(kwargs) is not dict):
            raise self.error(f"arguments as a {type(args).__name__}", "a tuple and a dict")
        if type(function) is Opaque:
            self.meter.make(RECORD_COST)
            return Opaque("", "<call of an object>", (function, args), kwargs or {})
        if type(function) is not Global:
            raise self.error(f"a call of a {type(function).__name__}", "a global")
        name = str(function)
        builder = BUILDERS.get(name)
        if builder is not None and not kwargs:
            self.meter.make(BUILT_COST)
            value = builder(self, args)
            if value is not NotImplemented:
                return value
        self.meter.make(RECORD_COST)
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
        self.meter.make(9 * len(items))
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
        self.meter.make(PAIR_COST * len(items) // 2)
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
        self.meter.make(sys.getsizeof(module) + sys.getsizeof(name))
        return Global(RENAMED_MODULES.get(module) or module, name)

    def integer(self, count: int) -> int:
        """A little-endian two's complement integer of `count` bytes."""
        if count > NUMBER_BYTES:
            raise self.error(f"an integer of {count:,} bytes", f"at most {NUMBER_BYTES:,}")
        self.meter.make(count)
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
    """The bytes that the inside of a Python string literal stands for; ValueError if for none."""
    if b"\\" not in data:
        return data
    with warnings.catch_warnings(action="ignore"):  # of escapes that mean nothing, which are kept
        return codecs.escape_decode(data)[0]
