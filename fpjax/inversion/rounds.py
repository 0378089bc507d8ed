"""How many images are on a device at once, and how many of their lanes a round advances."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax

from fpjax.inversion.problem import Problem
from fpjax.inversion.solvers.base import Solver
from fpjax.parallel import cores

_WAVE = 64
"""Images that are on a CPU at once: enough that its last, partly filled rounds hardly count."""

_WIDE_WAVE = 256
"""Images that are on an accelerator at once, at most: there the last, partly filled rounds cost
more than their lanes, see `chunk_for`."""

_WIDE_BYTES = 1 << 30
"""What such waves take, at most."""

_FILLED_BYTES = 1 << 26
"""Waves that are filled up where lanes go one by one take this at most: pixels of 64 images of
256 x 256 are 48 MiB. What fills them begins nothing (one image of 64 x 64 takes as long as alone),
and each size would compile its own programs."""

_MOST_LANES = 256
"""Lanes in a round, at most."""


def images_in_wave(
    solver: Solver, problem: Problem, count: int, starts: int = 1, own_bytes: int = 0
) -> int:
    """Images of a device that are in a wave, where it has `count`: one size, or powers of two, so
    that few programs are compiled.

    Args:
      solver, problem, count: what is solved, and of how many images.
      starts: of each image.
      own_bytes: of each image's own observation.
    """
    pixels, symbols = math.prod(problem.scheme.generator.image_shape), problem.scheme.num_symbols
    # A lane keeps its unknowns and what they say of the symbols.
    lane = 4 * (symbols**2 + 4 * problem.num_unknowns)
    each = 4 * pixels + starts * lane + own_bytes
    if jax.default_backend() != "cpu":
        fits = min(_WIDE_WAVE, max(_WAVE, _WIDE_BYTES // each))
        most = 1 << (fits.bit_length() - 1)
    elif solver.cpu_lanes == 1 and _WAVE * each <= _FILLED_BYTES:
        return _WAVE
    else:
        most = _WAVE
    return min(most, 1 << (count - 1).bit_length())


def waves_at_once(solver: Solver, problem: Problem, memory: int, count: int) -> int:
    """Waves that a host's CPU advances at the same time, where it has `count` images: one a core,
    if lanes go one by one and half of the memory is enough for that many."""
    if jax.default_backend() != "cpu" or solver.cpu_lanes != 1 or count == 1:
        return 1
    fits = memory // (2 * max(1, solver.lane_bytes(problem)))
    return max(1, min(cores(), count, fits))


def shared_memory(solver: Solver, problem: Problem, memory: int, at_once: int) -> int:
    """Bytes for the tangents of each of the waves that are advanced at the same time."""
    if at_once == 1:
        return memory
    return memory // at_once - solver.lane_bytes(problem)


def chunk_sizes(solver: Solver, problem: Problem, memory: int, lanes: int) -> tuple[int, ...]:
    """Lanes in a round, largest first: a power of two that fits memory, and an eighth of it for the
    last lanes. Few sizes, so that few programs are compiled."""
    on_cpu = jax.default_backend() == "cpu"
    if on_cpu and solver.cpu_lanes == 1:
        return (1,)  # whatever a lane takes, which is found by tracing the generator
    fits = memory // max(1, solver.lane_bytes(problem))
    if on_cpu:
        # Few lanes fill the cores; more at once would only wait for one another.
        fits = min(fits, solver.cpu_lanes)
    largest = max(1, min(fits, lanes, _MOST_LANES))
    largest = 1 << (largest.bit_length() - 1)
    return (largest,) if largest < 8 else (largest, largest // 8)


def chunk_for(sizes: Sequence[int], waiting: int) -> int:
    """Lanes that the next round has, where so many wait. On an accelerator one that is half filled
    takes less time than several small ones: 64 lanes of the bundled generator 0.32 s on an NVIDIA
    H200, 8 lanes 0.10 s."""
    filled = 1.0 if jax.default_backend() == "cpu" else 0.5
    return next((size for size in sizes if filled * size <= waiting), sizes[-1])
