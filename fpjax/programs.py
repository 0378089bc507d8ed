"""Compiled programs, and the room that a process has for them.

XLA's programs for CPUs take some 500 to 2,500 memory maps each, of which Linux gives a process
65,530 (`vm.max_map_count`): a long study that looks at many kinds of files would end with "Cannot
allocate memory", however much memory is free. The programs that take most are dropped before that.
Where JAX keeps compiled programs on a disk (`JAX_COMPILATION_CACHE_DIR`), they are soon back.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax

Program = TypeVar("Program", bound=Any)

_SHARE = 0.7
"""Of a process's memory maps, from which on programs are dropped. One kind of inversion, of the
bundled generators, takes up to a tenth."""

_GROWN = 0.1
"""Share by which maps must have grown since programs were dropped for that to happen again: what is
not dropped may take most of them."""

_PROGRAMS: list[Any] = []


class _State:
    """How many calls use programs, and the maps that were left when some were dropped."""

    def __init__(self) -> None:
        self.lock, self.users, self.left = threading.Lock(), 0, 0


_STATE = _State()


def droppable(program: Program) -> Program:
    """Marks a function that `jax.jit` made as one of which `make_room` may drop what is compiled.

    >>> @droppable
    ... @jax.jit
    ... def twice(x):
    ...     return 2 * x
    >>> float(twice(1.5))
    3.0
    """
    _PROGRAMS.append(program)
    return program


@contextlib.contextmanager
def in_use() -> Iterator[None]:
    """Keeps programs while a call needs them again and again.

    >>> with in_use():
    ...     make_room()
    False
    """
    with _STATE.lock:
        _STATE.users += 1
    try:
        yield
    finally:
        with _STATE.lock:
            _STATE.users -= 1


def make_room() -> bool:
    """Drops compiled programs where a process has few memory maps left, to be compiled again when
    they are needed. None are dropped while a call has them `in_use`.

    Returns:
      Whether it did.
    """
    limit = _map_limit()
    if limit is None or jax.default_backend() != "cpu":
        return False
    with _STATE.lock:
        maps = _maps()
        if _STATE.users or maps < max(_SHARE * limit, _STATE.left + _GROWN * limit):
            return False
        for program in _PROGRAMS:
            program.clear_cache()
        _STATE.left = _maps()
    return True


def _map_limit() -> int | None:
    """Memory maps that a process may have; none where the system does not say."""
    try:
        return int(Path("/proc/sys/vm/max_map_count").read_text())
    except (OSError, ValueError):
        return None


def _maps() -> int:
    """Memory maps of this process."""
    try:
        with open("/proc/self/maps", "rb") as file:
            return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
    except OSError:
        return 0
