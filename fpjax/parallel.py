"""What keeps the cores of a host busy: one thread a core, and no thread that only waits.

A program that XLA compiled for CPUs fills the cores during its large products, and one during all
else. Where there is enough to do, as many programs at once as there are cores do better.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
from jax.sharding import Mesh
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


def automatic(mesh: Mesh) -> Mesh:
    """The same devices and axes, with the compiler free to choose how arrays lie on them.

    `jax.make_mesh` makes axes that want every result's layout spelled out.

    >>> mesh = jax.make_mesh((1,), ("images",))
    >>> automatic(mesh) == Mesh(mesh.devices, ("images",))
    True
    """
    return Mesh(mesh.devices, mesh.axis_names)


class _BlasThreads:
    """How many threads a process's BLAS has, while any thread wants it to have one."""

    def __init__(self) -> None:
        self.lock, self.wanted, self.limit = threading.Lock(), 0, contextlib.ExitStack()

    def __enter__(self) -> None:
        with self.lock:
            if self.wanted == 0:
                self.limit.enter_context(_controller().limit(limits=1, user_api="blas"))
            self.wanted += 1

    def __exit__(self, *error) -> None:
        with self.lock:
            self.wanted -= 1
            if self.wanted == 0:
                self.limit.close()


@functools.cache
def _controller() -> ThreadpoolController:
    import scipy.linalg  # noqa: F401  (whose BLAS is the one that JAX calls on CPUs)

    return ThreadpoolController()


one_blas_thread = _BlasThreads()
"""Context in which factorisations on CPUs take one core each. JAX calls SciPy's BLAS for them,
whose own threads keep a core busy with waiting between one small matrix and the next."""


def concurrently(parts: Sequence[Iterator[T]], alone: int = 0) -> Iterator[T]:
    """Runs iterators in a thread each, with the caller's settings of JAX, and yields what they
    yield as it comes.

    An error in one ends the others before their next item, as does closing this iterator. The first
    one yields so many items `alone` before the others begin: what it compiles they find compiled.

    >>> sorted(concurrently([iter([1, 2]), iter([3])]))
    [1, 2, 3]
    """
    yield from itertools.islice(parts[0], alone)
    if len(parts) == 1:
        yield from parts[0]
        return
    settings = {name: getattr(jax.config, name) for name in _SETTINGS}
    found: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
    stopped = threading.Event()

    def run(part: Iterator[T]) -> None:
        try:
            with contextlib.ExitStack() as stack:
                for name, value in settings.items():
                    if getattr(jax.config, name) != value:
                        stack.enter_context(_SETTINGS[name](value))
                for item in part:
                    if stopped.is_set():
                        return
                    found.put(("item", item))
            found.put(("end", None))
        except BaseException as error:  # raised where the items are wanted
            found.put(("error", error))

    threads = [threading.Thread(target=run, args=(part,), daemon=True) for part in parts]
    for thread in threads:
        thread.start()
    running = len(threads)
    try:
        while running:
            kind, item = found.get()
            if kind == "error":
                raise item
            if kind == "end":
                running -= 1
            else:
                yield item
    finally:
        stopped.set()
        for thread in threads:
            thread.join()
