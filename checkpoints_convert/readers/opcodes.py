"""A pickle interpreter that builds an inert tree: the opcodes of protocols 0 to 5 and the loop.

The opcodes mean what Python's `pickletools` documents. Python's own `pickle` never sees the file.
"""

import struct
import sys
from collections.abc import Callable
from typing import Any

from checkpoints_convert.readers.builders import ELEMENT_COST, NODE_COST
from checkpoints_convert.readers.limits import CheckpointError, Meter, over_allowance, over_limit
from checkpoints_convert.readers.machine import UNESCAPING, Machine, unescape
from checkpoints_convert.readers.regions import Region

LATEST_PROTOCOL = 5


def interpret(
    region: Region,
    data: memoryview,
    start: int,
    meter: Meter,
    load_nested: Callable[[Region], Any],
    persistent: Callable[[Any], Any] | None = None,
) -> tuple[Any, int]:
    """The object tree of one pickle, and the position behind it.

    Args:
        region: the bytes that the pickle lies in.
        data: the same bytes, in memory or mapped.
        start: where the pickle starts.
        meter: what is left of the limits.
        load_nested: reads a torch file inside a byte string, for `torch.storage._load_from_bytes`.
        persistent: gives the meaning of a persistent id, a tuple; None where there are none.

    Raises CheckpointError for anything that no pickler writes, or over a limit.
    """
    machine = Machine(region, data, start, meter, load_nested, persistent)
    size = len(data)
    while not machine.done:
        if machine.position >= size:
            raise machine.error("the end of the data", "a pickle that ends with STOP")
        code = data[machine.position]
        meter.objects -= 1
        meter.memory -= COSTS[code]
        if meter.objects < 0:
            raise over_limit(meter.limits, "objects")
        if meter.memory < 0:
            raise over_allowance(meter.limits, "memory")
        machine.position += 1
        if (push := PUSHES.get(code)) is not None:
            value = push(machine)  # first, since it may take values off the stack
            machine.stack.append(value)
        elif (act := ACTIONS.get(code)) is not None:
            act(machine)
        else:
            raise machine.error(f"0x{code:02x}", "a pickle opcode")
    if machine.pending:
        raise machine.error("a NumPy array without contents", "BUILD with its state")
    return machine.stack.pop(), machine.position


# Opcodes that push one value


def _slot(machine: Machine) -> int:
    index = machine.number(int)
    if not 0 <= index < 1 << 32:
        raise machine.error("an impossible memo slot", "0 to 2**32 - 1")
    return index


def _int_line(machine: Machine) -> Any:
    line = bytes(machine.data[machine.position : machine.position + 3])
    value = machine.number(int)
    return {b"00\n": False, b"01\n": True}.get(line, value)


def _string_line(machine: Machine) -> str | bytes | Region:
    line = machine.text_line(UNESCAPING).strip()
    if len(line) < 2 or line[0] != line[-1] or line[:1] not in (b"'", b'"'):
        raise machine.error("a string without quotes", "a quoted string")
    try:
        found = machine.native(unescape(line[1:-1]))
    except ValueError as error:
        raise machine.error("a string with a broken escape", "a quoted string") from error
    machine.meter.make(sys.getsizeof(found))
    return found


def _tuple_of(count: int) -> Callable[[Machine], tuple]:
    def take(machine: Machine) -> tuple:
        items = [machine.pop() for _ in range(count)]
        return tuple(reversed(items))

    return take


def _tuple_of_mark(machine: Machine) -> tuple:
    items = machine.pop_mark()
    machine.meter.make(8 * len(items))
    return tuple(items)


def _dict_of_mark(machine: Machine) -> dict:
    items, target = machine.pop_mark(), {}
    machine.update(target, items)
    return target


def _keys(machine: Machine, items: list) -> list:
    machine.meter.make(ELEMENT_COST * len(items))
    return [machine.key(item) for item in items]


def _stack_global(machine: Machine) -> Any:
    name, module = machine.pop(), machine.pop()
    return machine.named(module, name)


def _call(machine: Machine) -> Any:
    args, function = machine.pop(), machine.pop()
    return machine.call(function, args)


def _call_with_keywords(machine: Machine) -> Any:
    kwargs, args, cls = machine.pop(), machine.pop(), machine.pop()
    return machine.call(cls, args, kwargs)


def _inst(machine: Machine) -> Any:
    cls = machine.named(machine.name_line(), machine.name_line())
    return machine.call(cls, tuple(machine.pop_mark()))


def _obj(machine: Machine) -> Any:
    items = machine.pop_mark()
    if not items:
        raise machine.error("OBJ without a class", "a class above the mark")
    return machine.call(items[0], tuple(items[1:]))


def _binpersid(machine: Machine) -> Any:
    if machine.persistent is None:
        raise CheckpointError(
            "a pickle that refers to data outside itself",
            "a whole checkpoint, such as the zip that data.pkl came from",
        )
    return machine.persistent(machine.pop())


_PUSHES: dict[bytes, Callable[[Machine], Any]] = {
    # Constants and numbers
    b"N": lambda m: None,
    b"\x88": lambda m: True,  # NEWTRUE
    b"\x89": lambda m: False,  # NEWFALSE
    b"I": _int_line,
    b"L": lambda m: m.number(int, b"L"),
    b"J": lambda m: m.integer(4),  # BININT
    b"K": lambda m: m.unsigned(1),  # BININT1
    b"M": lambda m: m.unsigned(2),  # BININT2
    b"\x8a": lambda m: m.integer(m.unsigned(1)),  # LONG1
    b"\x8b": lambda m: m.integer(m.unsigned(4)),  # LONG4
    b"F": lambda m: m.number(float),
    b"G": lambda m: struct.unpack(">d", m.take(8))[0],  # BINFLOAT
    # Text and bytes
    b"S": _string_line,
    b"T": lambda m: m.native(m.blob(m.unsigned(4))),  # BINSTRING
    b"U": lambda m: m.native(m.blob(m.unsigned(1))),  # SHORT_BINSTRING
    b"V": lambda m: m.decode(m.text_line(), "raw-unicode-escape"),  # UNICODE
    b"X": lambda m: m.text(4),  # BINUNICODE
    b"\x8c": lambda m: m.text(1),  # SHORT_BINUNICODE
    b"\x8d": lambda m: m.text(8),  # BINUNICODE8
    b"C": lambda m: m.blob(m.unsigned(1)),  # SHORT_BINBYTES
    b"B": lambda m: m.blob(m.unsigned(4)),  # BINBYTES
    b"\x8e": lambda m: m.blob(m.unsigned(8)),  # BINBYTES8
    b"\x96": lambda m: m.blob(m.unsigned(8)),  # BYTEARRAY8
    # Containers
    b")": lambda m: (),
    b"t": _tuple_of_mark,
    b"\x85": _tuple_of(1),
    b"\x86": _tuple_of(2),
    b"\x87": _tuple_of(3),
    b"]": lambda m: [],
    b"l": lambda m: m.pop_mark(),  # LIST
    b"}": lambda m: {},
    b"d": _dict_of_mark,
    b"\x8f": lambda m: set(),
    b"\x91": lambda m: frozenset(_keys(m, m.pop_mark())),
    # The memo and the stack itself
    b"g": lambda m: m.recall(_slot(m)),  # GET
    b"h": lambda m: m.recall(m.unsigned(1)),  # BINGET
    b"j": lambda m: m.recall(m.unsigned(4)),  # LONG_BINGET
    b"2": lambda m: m.top(),  # DUP
    # Globals, calls and persistent ids: names and records, never imports
    b"c": lambda m: m.named(m.name_line(), m.name_line()),  # GLOBAL
    b"\x93": _stack_global,
    b"R": _call,  # REDUCE
    b"\x81": _call,  # NEWOBJ
    b"\x92": _call_with_keywords,  # NEWOBJ_EX
    b"i": _inst,
    b"o": _obj,
    b"Q": _binpersid,
}
PUSHES = {code[0]: push for code, push in _PUSHES.items()}


# Opcodes that act on the machine or on the top of its stack


def _proto(machine: Machine) -> None:
    version = machine.unsigned(1)
    if version > LATEST_PROTOCOL:
        raise machine.error(f"pickle protocol {version}", f"at most {LATEST_PROTOCOL}")


def _frame(machine: Machine) -> None:
    length = machine.unsigned(8)
    if length > len(machine.data) - machine.position:
        raise machine.error(f"a frame of {length:,} bytes", "one inside the data")


def _stop(machine: Machine) -> None:
    if len(machine.stack) != 1 or machine.marks:
        raise machine.error(f"STOP on {len(machine.stack)} values", "exactly one")
    machine.done = True


def _mark(machine: Machine) -> None:
    machine.marks.append(machine.stack)
    machine.stack = []


def _append(machine: Machine) -> None:
    item = machine.pop()
    machine.extend(machine.top(), [item])


def _appends(machine: Machine) -> None:
    items = machine.pop_mark()
    machine.extend(machine.top(), items)


def _setitem(machine: Machine) -> None:
    value, key = machine.pop(), machine.pop()
    machine.update(machine.top(), [key, value])


def _setitems(machine: Machine) -> None:
    items = machine.pop_mark()
    machine.update(machine.top(), items)


def _additems(machine: Machine) -> None:
    items = machine.pop_mark()
    target = machine.top()
    if type(target) is not set:
        raise machine.error(f"ADDITEMS to a {type(target).__name__}", "a set")
    target.update(_keys(machine, items))


def _build(machine: Machine) -> None:
    state = machine.pop()
    machine.build(machine.top(), state)


def _refuse(found: str, expected: str) -> Callable[[Machine], None]:
    def refuse(machine: Machine) -> None:
        raise machine.error(found, expected)

    return refuse


_EXTENSION = _refuse("an extension-registry code", "the name of a global")
_OUT_OF_BAND = _refuse("a buffer that is not in the file", "a self-contained pickle")

_ACTIONS: dict[bytes, Callable[[Machine], Any]] = {
    b"\x80": _proto,
    b"\x95": _frame,
    b".": _stop,
    b"(": _mark,
    b"0": lambda m: m.stack.pop() if m.stack else m.pop_mark(),  # POP
    b"1": lambda m: m.pop_mark(),  # POP_MARK
    b"p": lambda m: m.remember(_slot(m)),  # PUT
    b"q": lambda m: m.remember(m.unsigned(1)),  # BINPUT
    b"r": lambda m: m.remember(m.unsigned(4)),  # LONG_BINPUT
    b"\x94": lambda m: m.remember(len(m.memo) + len(m.scattered)),  # MEMOIZE
    b"a": _append,
    b"e": _appends,
    b"s": _setitem,
    b"u": _setitems,
    b"\x90": _additems,
    b"b": _build,
    b"\x82": _EXTENSION,
    b"\x83": _EXTENSION,
    b"\x84": _EXTENSION,
    b"\x97": _OUT_OF_BAND,
    b"\x98": _OUT_OF_BAND,
    b"P": _refuse("a persistent id written as text", "one that torch.save writes"),
}
ACTIONS = {code[0]: act for code, act in _ACTIONS.items()}

# What an opcode takes of the memory, in bytes, beside the text, pairs and elements that it is
# given: a place on the stack, and mostly an object. The sizes are CPython's, rounded up.
_COSTS = dict.fromkeys(b".012Q\x80\x95ga", 24) | dict.fromkeys(b"NK\x88\x89)h", 24)
_COSTS |= dict.fromkeys(b"pqr\x94", 24) | {ord("("): 100}
_COSTS |= dict.fromkeys(b"t\x85\x86\x87", 240) | dict.fromkeys(b"]l}d", NODE_COST)
_COSTS |= dict.fromkeys(b"\x8f\x91", 450)  # sets
COSTS = [_COSTS.get(code, 80) for code in range(256)]
