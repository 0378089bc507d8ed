"""One call for every solver: lanes of images and starts, in chunks that fit a memory budget.

A lane is one image from one start. A chunk of lanes is advanced at a time through one compiled
program; lanes that are finished leave it, and waiting ones take their places.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fpjax.inversion import adam, gauss_newton
from fpjax.inversion.adam import Adam
from fpjax.inversion.gauss_newton import GaussNewton
from fpjax.inversion.problem import Problem
from fpjax.inversion.solution import Solution, Status
from fpjax.inversion.starts import LinearStart, latin_hypercube_starts

Progress = Callable[[int, int], None]

DEFAULT_MEMORY = 4 << 30
"""Bytes that a chunk's working set may take, where the caller names no budget."""

_ADAM_SEGMENT = 50


def invert(
    problem: Problem,
    images,
    solver: GaussNewton | Adam | None = None,
    *,
    starts=None,
    memory: int = DEFAULT_MEMORY,
    progress: Progress | None = None,
) -> Solution:
    """Estimates alpha and key of each image.

    Args:
      problem: what is minimised.
      images: (B, R, R, 3), float in [-1, 1] or uint8.
      solver: `GaussNewton()` (the default) or `Adam()`.
      starts: (S, n) unknowns to start every image from, or (B, S, n). By default the linear start
        stored with the scheme for Gauss-Newton, and a Latin hypercube for Adam.
      memory: bytes a chunk's working set may take; sets how many lanes run at once.
      progress: called with (images finished, images in all).

    Returns:
      The `Solution`, best start of each image.

    Raises:
      ValueError: if the images do not fit the generator, or Gauss-Newton has nowhere to start.
    """
    solver = GaussNewton() if solver is None else solver
    if isinstance(solver, GaussNewton) and (
        problem.loss != "pixel" or problem.key != "relaxed" or problem.alpha_penalty == "bounds"
    ):
        raise ValueError(
            "Gauss-Newton minimises squared pixel differences with Gaussian priors: it needs "
            "loss='pixel', key='relaxed' and alpha_penalty 'gaussian' or 'none'; use Adam() for "
            f"loss={problem.loss!r}, key={problem.key!r}, alpha_penalty={problem.alpha_penalty!r}"
        )
    images = _check_images(problem, images)
    if len(images) == 0:
        return _empty(problem)
    starts = _starts(problem, solver, images, starts)
    if isinstance(solver, Adam):
        return _run_adam(problem, solver, images, starts, memory, progress)
    return _run_gauss_newton(problem, solver, images, starts, memory, progress)


def _check_images(problem: Problem, images) -> np.ndarray:
    images = np.asarray(images)
    side = problem.scheme.generator.resolution
    if images.ndim != 4 or images.shape[1:] != (side, side, 3):
        raise ValueError(f"images have shape {images.shape}: expected (B, {side}, {side}, 3)")
    if images.dtype == np.uint8:
        return images.astype(np.float32) / 127.5 - 1
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"images are {images.dtype}: expected uint8, or float in [-1, 1]")
    if len(images) and not np.nanmax(np.abs(images)) <= 1 + 1e-3:
        raise ValueError("float images have values outside [-1, 1]; pass 0..255 as uint8")
    return images.astype(np.float32)


def _starts(problem, solver, images, starts) -> np.ndarray:
    size = problem.num_unknowns
    if starts is None:
        if isinstance(solver, Adam):
            starts = latin_hypercube_starts(problem, solver.num_starts, solver.seed)
        else:
            linear = LinearStart.of(problem.scheme)
            if linear is None:
                raise ValueError(
                    "the scheme has no linear start: make one with fpjax.calibrate(scheme, key), "
                    "or pass starts"
                )
            starts = np.asarray(linear(jnp.asarray(images)))[:, None]
    starts = np.asarray(starts, np.float32)
    if starts.ndim == 2:
        starts = np.broadcast_to(starts, (len(images), *starts.shape))
    if starts.ndim != 3 or starts.shape[0] != len(images) or starts.shape[2] != size:
        raise ValueError(
            f"starts have shape {starts.shape}: expected (S, {size}) or ({len(images)}, S, {size})"
        )
    return starts


def _chunk_size(problem: Problem, solver, lanes: int, memory: int) -> int:
    """Lanes whose working set fits the budget: tangents for Gauss-Newton, activations for Adam."""
    side = problem.scheme.generator.resolution
    if isinstance(solver, Adam):
        # Activations of the generator and of VGG16, kept for the backward pass.
        per_lane = 4 * side * side * 1024
    else:
        per_lane = 4 * side * side * (3 * 6 + 256) * problem.num_unknowns
        if jax.default_backend() == "cpu":
            return 1  # the tangents of one image fill the cores; more would only be padding
    # Powers of two, so that batches of many sizes share a few programs.
    wanted = 1 << (lanes - 1).bit_length()
    return int(max(1, min(wanted, memory // per_lane)))


def _padded(rows: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([rows, np.repeat(rows[:1], size - len(rows))])


def _run_gauss_newton(problem, solver, images, starts, memory, progress) -> Solution:
    params = problem.scheme.generator.params
    count, num_starts = starts.shape[:2]
    lanes = count * num_starts
    size = _chunk_size(problem, solver, lanes, memory)
    image_of = np.repeat(np.arange(count), num_starts)
    state: list[gauss_newton.Lane | None] = [None] * lanes
    steps = np.zeros(lanes, np.int32)
    status = np.full(lanes, -1, np.int32)
    flat_starts = starts.reshape(lanes, -1)

    def advance(rows, first):
        if len(rows) == 0:
            return
        rows_in = _padded(rows, size)
        targets = jnp.asarray(images[image_of[rows_in]])
        if first:
            operands = jnp.asarray(flat_starts[rows_in])
        else:
            operands = jax.tree.map(lambda *x: np.stack(x), *(state[i] for i in rows_in))
        out = gauss_newton.run_chunk(problem, solver, first, params, operands, targets)
        out = jax.tree.map(np.asarray, out)
        for position, lane in enumerate(rows):
            before = None if first else float(state[lane].cost)
            state[lane] = jax.tree.map(lambda x, p=position: x[p], out)
            if not np.isfinite(state[lane].cost):
                status[lane] = Status.NOT_FINITE
            elif not first:
                steps[lane] += 1
                status[lane] = _lane_status(solver, before, state[lane], steps[lane])

    # The first unfinished lanes are the chunk: places that become free are filled from behind.
    while (unfinished := np.flatnonzero(status < 0)).size:
        rows = unfinished[:size]
        fresh = np.array([row for row in rows if state[row] is None], int)
        if fresh.size:
            advance(fresh, True)
        advance(rows[status[rows] < 0], False)
        # An image that one start has solved needs no other.
        solved = np.isin(image_of, image_of[status == Status.SOLVED])
        status[solved & (status < 0)] = Status.MAX_STEPS
        if progress is not None:
            progress(count - len(np.unique(image_of[status < 0])), count)
    # Lanes that never ran (another start of their image was solved first) cannot win.
    costs = np.array([np.inf if lane is None else lane.cost for lane in state])
    costs = costs.reshape(count, num_starts)
    costs = np.where(np.isfinite(costs), costs, np.inf)
    winners = np.arange(count) * num_starts + costs.argmin(axis=1)
    best = jax.tree.map(lambda *x: np.stack(x), *(state[i] for i in winners))
    soft_bits = np.asarray(problem.bits(jnp.asarray(best.unknowns)), np.float32)
    _, half = problem.level_centre_and_half_width
    # An image with values that are not finite was never linearised and has no information.
    keys = np.stack(
        [
            gauss_newton.decide_bits(bits, information * (2 * half) ** 2)
            if np.isfinite(information).all() and information.any()
            else (bits > 0.5).astype(np.uint8)
            for bits, information in zip(soft_bits, best.information, strict=True)
        ]
    )
    return _solution(
        problem,
        keys,
        best.unknowns,
        soft_bits,
        best.ratio,
        best.cost,
        steps[winners],
        status[winners],
        best.information,
    )


def _lane_status(solver: GaussNewton, before: float, lane, steps: int) -> int:
    """Status after a step, or -1 to go on."""
    decrease = 1 - lane.cost / before
    at_floor = lane.ratio <= solver.floor_ratio and lane.recent <= solver.tolerance
    if at_floor or (lane.ratio <= solver.solved_ratio and decrease <= solver.tolerance):
        return Status.SOLVED
    hopeless = (
        steps >= solver.hopeless_after and lane.ratio > solver.hopeless_ratio and decrease < 0.75
    )
    if decrease <= solver.tolerance or hopeless:
        return Status.CONVERGED
    return Status.MAX_STEPS if steps >= solver.max_steps else -1


def _run_adam(problem, solver, images, starts, memory, progress) -> Solution:
    params = problem.scheme.generator.params
    count, num_starts = starts.shape[:2]
    lanes = count * num_starts
    size = _chunk_size(problem, solver, lanes, memory)
    image_of = np.repeat(np.arange(count), num_starts)
    flat_starts = starts.reshape(lanes, -1)
    unknowns = np.empty_like(flat_starts)
    losses, ratios = np.empty(lanes, np.float32), np.empty(lanes, np.float32)
    for first in range(0, lanes, size):
        rows = np.arange(first, min(first + size, lanes))
        rows_in = _padded(rows, size)
        begin = jnp.asarray(flat_starts[rows_in])
        state = (begin, solver.optimizer().init(begin))
        targets = jnp.asarray(images[image_of[rows_in]])
        done = 0
        while done < solver.num_steps:
            steps = min(_ADAM_SEGMENT, solver.num_steps - done)
            state, loss, ratio = adam.run_chunk(problem, solver, params, state, targets, steps)
            loss.block_until_ready()  # so that Ctrl-C and progress act between segments
            done += steps
            if progress is not None:
                work = (first + len(rows) * done / solver.num_steps) / num_starts
                progress(int(work), count)
        unknowns[rows] = np.asarray(state[0])[: len(rows)]
        losses[rows], ratios[rows] = np.asarray(loss)[: len(rows)], np.asarray(ratio)[: len(rows)]
    costs = np.where(np.isfinite(losses), losses, np.inf).reshape(count, num_starts)
    winners = np.arange(count) * num_starts + costs.argmin(axis=1)
    best = unknowns[winners]
    soft_bits = np.asarray(problem.bits(jnp.asarray(best)), np.float32)
    finite = np.isfinite(losses[winners])
    return _solution(
        problem,
        (soft_bits > 0.5).astype(np.uint8),
        best,
        soft_bits,
        ratios[winners],
        losses[winners],
        np.full(count, solver.num_steps, np.int32),
        np.where(finite, Status.MAX_STEPS, Status.NOT_FINITE).astype(np.int32),
        None,
    )


def _solution(problem, keys, unknowns, soft_bits, ratio, loss, steps, status, information):
    return Solution(
        keys=keys.astype(np.uint8),
        soft_bits=soft_bits,
        alpha=unknowns[:, : problem.num_alpha],
        residual=(np.asarray(ratio) * problem.noise_std).astype(np.float32),
        noise_ratio=np.asarray(ratio, np.float32),
        loss=np.asarray(loss, np.float32),
        steps=np.asarray(steps, np.int32),
        status=np.asarray(status, np.int32),
        information=information,
    )


def _empty(problem: Problem) -> Solution:
    length = problem.scheme.key_length
    nothing = np.zeros(0, np.float32)
    return Solution(
        keys=np.zeros((0, length), np.uint8),
        soft_bits=np.zeros((0, length), np.float32),
        alpha=np.zeros((0, problem.num_alpha), np.float32),
        residual=nothing,
        noise_ratio=nothing,
        loss=nothing,
        steps=np.zeros(0, np.int32),
        status=np.zeros(0, np.int32),
    )
