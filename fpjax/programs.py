"""Compiled programs: how they are compiled, and the room that a process has for them.

Where a GPU computes, XLA would time Triton kernels of its own for every product, beside the
vendor's: that is most of what compiling takes there, and left out.

XLA's programs for CPUs take some 500 to 2,500 memory maps each, of which Linux gives a process
65,530 (`vm.max_map_count`): a long study that looks at many kinds of files would end with "Cannot
allocate memory", however much memory is free. The programs that take most are dropped before that.
Where JAX keeps compiled programs on a disk (`JAX_COMPILATION_CACHE_DIR`), they are soon back.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.core import Tracer

Droppable = TypeVar("Droppable", bound=Any)

_OF_GPUS: dict[str, bool | int | str] = {"xla_gpu_enable_triton_gemm": False}
"""On an NVIDIA H200, one inversion's largest program took 7 s to compile with it, more than 25
without; decoding 2.4 and 19."""

_SHARE = 0.7
"""Of a process's memory maps, from which on programs are dropped. One kind of inversion, of the
bundled generators, takes up to a tenth."""

_GROWN = 0.1
"""Share by which maps must have grown since programs were dropped for that to happen again: what is
not dropped may take most of them."""

_DROPPABLE: list[Any] = []


class _State:
    """How many calls use programs, and the maps that were left when some were dropped."""

    def __init__(self) -> None:
        self.lock, self.users, self.left = threading.Lock(), 0, 0


_STATE = _State()


class Program:
    """A function that is compiled as a program of its own, as `jax.jit` does it.

    Inside other functions that JAX traces it is a part of their program.
    """

    def __init__(self, function: Callable[..., Any], how: dict[str, Any]) -> None:
        functools.update_wrapper(self, function)
        self._plain: Any = jax.jit(function, **how)
        self._of_gpus: Any = functools.cache(
            lambda: jax.jit(function, compiler_options=_options_of_gpus(), **how)
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls it; compiles it for new shapes, types and static arguments."""
        return self._here(args, kwargs)(*args, **kwargs)

    def lower(self, *args: Any, **kwargs: Any) -> Any:
        """As that of what `jax.jit` makes."""
        return self._here(args, kwargs).lower(*args, **kwargs)

    def clear_cache(self) -> None:
        """Drops what is compiled."""
        self._plain.clear_cache()
        if self._of_gpus.cache_info().currsize:
            self._of_gpus().clear_cache()

    def cache_size(self) -> int:
        """How many are compiled."""
        size = self._plain._cache_size()
        return size + (self._of_gpus()._cache_size() if self._of_gpus.cache_info().currsize else 0)

    def _here(self, *operands: Any) -> Any:
        if jax.default_backend() != "gpu":
            return self._plain
        # A part of another program has that one's options. While one is traced, so is what is new.
        leaves = [jnp.zeros(()), *jax.tree.leaves(operands)]
        traced = any(isinstance(leaf, Tracer) for leaf in leaves)
        return self._plain if traced else self._of_gpus()


def program(**how: Any) -> Callable[[Callable[..., Any]], Program]:
    """Makes a function a `Program`.

    Args:
      how: as `jax.jit` takes them, such as `static_argnums`.

    >>> @program(static_argnums=1)
    ... def power(x, exponent):
    ...     return x**exponent
    >>> float(power(2.0, 3)), power.cache_size()
    (8.0, 1)
    """
    return lambda function: Program(function, how)


@functools.cache
def _options_of_gpus() -> dict[str, bool | int | str] | None:
    """None where the compiler does not know them."""
    try:
        jax.jit(lambda x: x, compiler_options=_OF_GPUS)(jnp.zeros(()))
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return None
    return _OF_GPUS


def droppable(program: Droppable) -> Droppable:
    """Marks a program of which `make_room` may drop what is compiled.

    >>> @droppable
    ... @jax.jit
    ... def twice(x):
    ...     return 2 * x
    >>> float(twice(1.5))
    3.0
    """
    _DROPPABLE.append(program)
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
        for program in _DROPPABLE:
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
