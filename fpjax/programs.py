"""Compiled programs, and the room that a process has for them.

XLA's programs for CPUs take some 500 to 2,500 memory maps each, of which Linux gives a process
65,530 (`vm.max_map_count`): a long study that looks at many kinds of files would end with "Cannot
allocate memory", however much memory is free. The programs that take most are dropped before that.
Where JAX keeps compiled programs on a disk (`JAX_COMPILATION_CACHE_DIR`), they are soon back.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import jax

Program = TypeVar("Program", bound=Any)

_SHARE = 0.7
"""Of a process's memory maps, from which on programs are dropped. One kind of inversion, of the
bundled generators, takes up to a tenth."""

_PROGRAMS: list[Any] = []


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


def make_room() -> bool:
    """Drops compiled programs where a process has few memory maps left, to be compiled again when
    they are needed. Programs that are running end as they would.

    Returns:
      Whether it did.

    >>> make_room()
    False
    """
    limit = _map_limit()
    if limit is None or jax.default_backend() != "cpu" or _maps() < _SHARE * limit:
        return False
    for program in _PROGRAMS:
        program.clear_cache()
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
