"""What keeps the cores of a host busy: one thread a core, and no thread that only waits.

A program that XLA compiled for CPUs fills the cores during its large products, and one during all
else. Where there is enough to do, as many programs at once as there are cores do better.
"""

from __future__ import annotations

import atexit
import contextlib
import contextvars
import functools
import importlib
import itertools
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
from threadpoolctl import ThreadpoolController

T = TypeVar("T")

_SETTINGS: dict[str, Callable[[Any], contextlib.AbstractContextManager]] = {
    "jax_enable_x64": jax.enable_x64,
    "jax_numpy_dtype_promotion": jax.numpy_dtype_promotion,
    "jax_numpy_rank_promotion": jax.numpy_rank_promotion,
    "jax_default_matmul_precision": jax.default_matmul_precision,
    "jax_default_prng_impl": jax.default_prng_impl,
    "jax_debug_nans": jax.debug_nans,
    "jax_debug_infs": jax.debug_infs,
    "jax_log_compiles": jax.log_compiles,
    "jax_transfer_guard_host_to_device": jax.transfer_guard_host_to_device,
    "jax_transfer_guard_device_to_device": jax.transfer_guard_device_to_device,
    "jax_transfer_guard_device_to_host": jax.transfer_guard_device_to_host,
}
"""Switches of JAX that a program may set for a block of its code, which threads do not inherit."""


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def files_at_once(on_cpus: int, on_accelerators: int = 256) -> int:
    """Files that are answered before answers are saved: what an early end may cost. An accelerator
    is not filled by a few images.

    >>> files_at_once(8) in (8, 256)
    True
    """
    return on_cpus if jax.default_backend() == "cpu" else on_accelerators


class _BlasThreads:
    """One thread for a process's BLAS, while any thread wants that and JAX computes on CPUs."""

    def __init__(self) -> None:
        self.lock, self.wanted, self.limit = threading.Lock(), 0, contextlib.ExitStack()

    def __enter__(self) -> None:
        with self.lock:
            if self.wanted == 0 and jax.default_backend() == "cpu":
                self.limit.enter_context(_controller().limit(limits=1, user_api="blas"))
            self.wanted += 1

    def __exit__(self, *error) -> None:
        with self.lock:
            self.wanted -= 1
            if self.wanted == 0:
                self.limit.close()


@functools.cache
def _controller() -> ThreadpoolController:
    importlib.import_module("scipy.linalg")  # whose BLAS is the one that JAX calls on CPUs
    return ThreadpoolController()


one_blas_thread = _BlasThreads()
"""Context in which factorisations on CPUs take one core each. JAX calls SciPy's BLAS for them,
whose own threads keep a core busy with waiting between one small matrix and the next."""


def concurrently(parts: Sequence[Iterator[T]], alone: int = 0) -> Iterator[T]:
    """Runs iterators in a thread each, with the caller's settings of JAX, and yields what they
    yield as it comes.

    They are a few items ahead of what is asked for, no more. An error in one ends the others before
    their next item, as do closing this iterator and the end of the program. The first one yields so
    many items `alone` before the others begin: what it compiles they find compiled.

    >>> sorted(concurrently([iter([1, 2]), iter([3])]))
    [1, 2, 3]
    """
    yield from itertools.islice(parts[0], alone)
    if len(parts) == 1:
        yield from parts[0]
        return
    threads = _Threads(parts)
    # Threads that are in a compiled program when the interpreter ends take it down with them.
    atexit.register(threads.stop)
    try:
        yield from threads
    finally:
        if not threads.stopped.is_set():  # else the program is at its end
            threads.stop()
            atexit.unregister(threads.stop)


class _Threads(Iterator[T]):
    """The threads of `concurrently`, and what they found."""

    def __init__(self, parts: Sequence[Iterator[T]]) -> None:
        self.parts, self.stopped = parts, threading.Event()
        self.ahead = threading.Semaphore(2 * len(parts))
        self.found: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self.settings = {name: getattr(jax.config, name) for name in _SETTINGS}
        self.running: list[threading.Thread] = []
        self.left = len(parts)

    def __next__(self) -> T:
        if self.left and not self.running:
            for part in self.parts:
                context = contextvars.copy_context()
                thread = threading.Thread(target=context.run, args=(self._run, part), daemon=True)
                thread.start()
                self.running.append(thread)
        while self.left:
            kind, item = self.found.get()
            if kind == "error":
                raise item
            if kind == "item":
                self.ahead.release()
                return item
            self.left -= 1
        raise StopIteration

    def _run(self, part: Iterator[T]) -> None:
        try:
            with contextlib.ExitStack() as stack:
                for name, value in self.settings.items():
                    if getattr(jax.config, name) != value:
                        stack.enter_context(_SETTINGS[name](value))
                for item in part:
                    self.ahead.acquire()
                    if self.stopped.is_set():
                        return
                    self.found.put(("item", item))
            self.found.put(("end", None))
        except BaseException as error:  # raised where the items are wanted
            self.found.put(("error", error))

    def stop(self) -> None:
        """Ends all threads, each before its next item."""
        self.stopped.set()
        self.ahead.release(len(self.parts))
        while self.running:
            thread = self.running.pop()
            if thread is not threading.current_thread():
                thread.join()
