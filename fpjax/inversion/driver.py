"""One driver for every solver: lanes on the device, in chunks that fit memory, over many devices.

A lane is one image from one start. All lanes of a wave of images are one pytree on the device, with
a status each. A round takes the first unfinished lanes (first starts before second ones), a fixed
number of them, advances them by one step and puts them back: no lane is handled on the host. Over a
mesh, images are sharded and each device runs such rounds on its own; nothing crosses devices. On a
host's CPU, where lanes go one by one, each core has waves of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int, Shaped

from fpjax.errors import InputError
from fpjax.fingerprint.keys import level_range
from fpjax.inversion.information import decide_bits
from fpjax.inversion.observation import PerImage, pixel_residual
from fpjax.inversion.placement import Placed, Wave, fetch, sharded
from fpjax.inversion.problem import Problem, check_images
from fpjax.inversion.rounds import (
    chunk_for,
    chunk_sizes,
    images_in_wave,
    shared_memory,
    waves_at_once,
)
from fpjax.inversion.solution import RUNNING, Solution, Status
from fpjax.inversion.solvers.base import Solver
from fpjax.inversion.solvers.default import default_solver
from fpjax.models.jacobian import DEFAULT_MEMORY
from fpjax.parallel import concurrently, one_blas_thread
from fpjax.precision import full_precision
from fpjax.programs import droppable, in_use, make_room, program

Array = jax.Array
Progress = Callable[[int, int], None]

_BEGUN: set[int] = set()
"""Kinds of rounds that images were inverted by before."""


def invert(
    problem: Problem,
    images: Shaped[Array | np.ndarray, "batch height width channels"],
    solver: Solver | None = None,
    *,
    starts: Float[Array | np.ndarray, "*images starts unknowns"] | None = None,
    memory: int = DEFAULT_MEMORY,
    mesh: Mesh | None = None,
    progress: Progress | None = None,
) -> Solution:
    """Estimates alpha and key of each image.

    Args:
      problem: what is minimised.
      images: (B, H, W, C), float in [-1, 1] or uint8.
      solver: `LevenbergMarquardt()`, `MatrixFree()` (the default for a basis in blocks), `Adam()`,
        or any other `Solver`.
      starts: (S, K) unknowns to start every image from, or (B, S, K); the parameters of a
        degradation may be left out, and start at 0. One that repeats another of its image takes no
        steps. By default the solver's own: the start that calibration fitted, what the encoder
        reads, or a Latin hypercube for Adam.
      memory: bytes that a chunk of lanes may take on a device; sets how many run at once.
      mesh: devices to spread the images over, along all its axes; by default one device.
      progress: called with (images finished, images in all).

    Returns:
      The `Solution`, best start of each image, in the order of the images.

    Raises:
      InputError: if the images do not fit the generator, or the solver does not take the problem.

    >>> import fpjax
    >>> from fpjax.models.linear import linear_generator
    >>> generator = linear_generator()
    >>> basis = fpjax.fit_basis(generator, jax.random.key(0), 100, metric="latent")
    >>> scheme = fpjax.Scheme.create(generator, basis, key_length=4, strength=0.5)
    >>> keys = np.asarray([[0, 1, 1, 0], [1, 1, 0, 1]], np.uint8)
    >>> images = fpjax.generate(scheme, jax.random.key(1), keys).images
    >>> invert(fpjax.Problem(scheme), images, starts=np.zeros((1, 16))).keys.tolist()
    [[0, 1, 1, 0], [1, 1, 0, 1]]
    """
    order, parts = [np.zeros(0, int)], [_empty(problem)]
    for rows, part in invert_iter(
        problem, images, solver, starts=starts, memory=memory, mesh=mesh, progress=progress
    ):
        order.append(rows)
        parts.append(part)
    if len(parts) == 1:
        return parts[0]
    return Solution.concatenate(parts[1:]).take(np.argsort(np.concatenate(order)))


def invert_iter(
    problem: Problem,
    images: Shaped[Array | np.ndarray, "batch height width channels"],
    solver: Solver | None = None,
    *,
    starts: Float[Array | np.ndarray, "*images starts unknowns"] | None = None,
    memory: int = DEFAULT_MEMORY,
    mesh: Mesh | None = None,
    progress: Progress | None = None,
) -> Iterator[tuple[Int[np.ndarray, " finished"], Solution]]:
    """Like `invert`, but yields images as they are finished, so that long work can be saved. On
    several cores of a CPU it works a few images ahead; closing it ends that.

    Yields:
      (rows, solution): indices (n,) of images that are finished, and their solution.

    >>> import fpjax
    >>> from fpjax.models.linear import linear_generator
    >>> generator = linear_generator()
    >>> basis = fpjax.fit_basis(generator, jax.random.key(0), 100, metric="latent")
    >>> scheme = fpjax.Scheme.create(generator, basis, key_length=4, strength=0.5)
    >>> images = fpjax.generate(scheme, jax.random.key(1), np.ones((3, 4), np.uint8)).images
    >>> parts = invert_iter(fpjax.Problem(scheme), images, starts=np.zeros((1, 16)))
    >>> sorted(row for rows, solution in parts for row in rows.tolist())
    [0, 1, 2]
    """
    solver = default_solver(problem.scheme) if solver is None else solver
    images = check_images(problem, images)
    count = len(images)
    if count == 0:
        return
    problem, observations = _own_observations(problem, count)
    if (reason := solver.refuses(problem)) is not None:
        raise InputError(f"{type(solver).__name__} does not take this problem: {reason}")
    if make_room():
        _BEGUN.clear()
    starts = _check_starts(problem, images, starts, solver)
    alone = mesh is None
    placed = Placed.of(Mesh(np.array(jax.devices()[:1]), ("images",)) if mesh is None else mesh)
    problem = placed.put_everywhere(problem.prepared())
    at_once = waves_at_once(solver, problem, memory, count) if alone else 1
    devices, lanes = placed.mesh.devices.size, starts.shape[1]
    own = sum(leaf.nbytes for leaf in jax.tree.leaves(observations)) // count
    in_wave = images_in_wave(solver, problem, -(-count // devices), lanes, own)
    chunks = chunk_sizes(solver, problem, memory, in_wave * lanes)
    # The lanes of all rounds share what memory there is.
    each = shared_memory(solver, problem, memory, at_once)
    plans = {size: solver.plan(problem, each // size) for size in chunks}
    work = _Work(solver, placed, problem, images, observations, starts, devices * in_wave, plans)
    done = 0
    parts = [work.run(slice(i, count, at_once)) for i in range(at_once)]
    # Threads that need a program at the same time would compile it once each.
    begun = work.kind()
    with in_use():
        for rows, part in concurrently(parts, alone=0 if begun in _BEGUN else 2):
            if part is not None:
                _BEGUN.add(begun)
                done += len(rows)
                yield rows, part
                if progress is not None:
                    progress(done, count)


@dataclasses.dataclass(frozen=True)
class _Work:
    """All images of a call, and what is done with them."""

    solver: Solver
    placed: Placed
    problem: Problem
    images: np.ndarray
    observations: Any
    starts: np.ndarray
    wave_size: int
    plans: dict[int, int]
    """Of each size that a round may have, largest first."""

    def run(self, some: slice) -> Iterator[tuple[np.ndarray, Solution | None]]:
        """Inverts some of the images, wave by wave; yields those that are finished, or none, after
        each round."""
        rows = np.arange(len(self.images))[some]
        for first in range(0, len(rows), self.wave_size):
            yield from self._wave(rows[first : first + self.wave_size])

    def kind(self) -> int:
        """A hash of what the programs of a round depend on."""
        leaves, structure = jax.tree.flatten((self.problem, self.observations))
        shapes = tuple((np.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
        sizes = self.wave_size, self.starts.shape[1], tuple(self.plans.items())
        return hash((self.solver, self.placed, sizes, structure, shapes))

    def _wave(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, Solution | None]]:
        solver, placed, problem, chunks = self.solver, self.placed, self.problem, [*self.plans]
        devices, lanes = placed.mesh.devices.size, self.starts.shape[1]
        padded = np.concatenate([rows, np.full(self.wave_size - len(rows), rows[0])])
        own = jax.tree.map(lambda leaf: leaf[padded], self.observations)
        targets, starts = (self.images[padded], own), self.starts[padded]
        real = np.arange(self.wave_size) < len(rows)
        yielded = ~real
        with one_blas_thread:
            wave = _begin(solver, placed, chunks[0], problem, targets, starts, real)
            status = fetch(wave["status"])
        while True:
            finished = (status != RUNNING).all(axis=0)
            new = finished & ~yielded
            if new.any() and (finished.all() or new.sum() >= chunks[0]):
                yielded |= new
                positions = np.flatnonzero(new)
                with one_blas_thread:
                    part = _collect(solver, placed, problem, wave, positions)
                yield rows[positions], part
            else:
                yield rows[:0], None
            if finished.all():
                break
            waiting = (status == RUNNING).reshape(lanes, devices, -1).sum(axis=(0, 2)).max()
            chunk = chunk_for(chunks, int(waiting))
            with one_blas_thread:
                wave = _round(solver, placed, chunk, self.plans[chunk], problem, wave)
                status = fetch(wave["status"])


@droppable
@program(static_argnums=(0, 1, 2))
@full_precision
def _init(solver: Solver, placed: Placed, chunk: int, problem: Problem, wave: Wave) -> Wave:
    def local(problem, wave):
        def begin(starts, target):
            bound, pixels = _bound(problem, target)
            states = jax.lax.map(lambda start: solver.init(bound, start, pixels), starts)
            finite = jnp.all(jnp.isfinite(pixels))
            begun = jax.vmap(lambda state: solver.terminate(bound, state))(states)
            ended = jnp.where(finite, begun, jnp.int32(Status.NOT_FINITE))
            return states, ended

        def image(operands):
            starts, target, status = operands
            # Images that only fill the wave begin nothing.
            states, _ = jax.eval_shape(begin, starts, target)
            nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), states), status
            states, ended = jax.lax.cond(
                jnp.any(status == RUNNING), lambda: begin(starts, target), lambda: nothing
            )
            return states, jnp.where(status == RUNNING, ended, status)

        per_image, status = (jnp.swapaxes(wave[name], 0, 1) for name in ("state", "status"))
        most = min(chunk, len(per_image))
        # In batches, even of one, both sides of a condition are computed.
        batch = None if most == 1 else most
        state, status = jax.lax.map(image, (per_image, wave["targets"], status), batch_size=batch)
        state, status = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (state, status))
        return Wave(state=state, status=status, targets=wave["targets"])

    return sharded(placed, local)(problem, wave)


def _own_observations(problem: Problem, count: int) -> tuple[Problem, Any]:
    """The problem of the first image, and all images' own observations on the host, or None."""
    if not isinstance(problem.observation, PerImage):
        return problem, None
    observations = jax.tree.map(
        lambda leaf: np.asarray(jax.device_get(leaf)), problem.observation.observation
    )
    lengths = {len(leaf) if leaf.ndim else 0 for leaf in jax.tree.leaves(observations)}
    if lengths != {count}:
        raise InputError(
            f"the observation is of {min(lengths, default=0)} images, and {count} were given"
        )
    first = jax.tree.map(lambda leaf: leaf[0], observations)
    return dataclasses.replace(problem, observation=first), observations


def _bound(problem: Problem, target: Any) -> tuple[Problem, Array]:
    """One image's problem and its pixels."""
    pixels, observation = target
    if observation is None:
        return problem, pixels
    return dataclasses.replace(problem, observation=observation), pixels


def _begin(solver, placed: Placed, chunk: int, problem, targets, starts, real) -> Wave:
    needed = real & ~_repeated(starts).T
    status = np.where(needed, np.int32(RUNNING), np.int32(Status.SUPERSEDED))
    wave = Wave(
        state=placed.put_lanes(np.ascontiguousarray(starts.swapaxes(0, 1))),
        status=placed.put_lanes(status),
        targets=jax.tree.map(placed.put_images, targets),
    )
    return _init(solver, placed, chunk, problem, wave)


def _repeated(starts: np.ndarray) -> np.ndarray:
    """Which of the starts (B, S, K) an earlier one of the same image repeats: (B, S)."""
    found = np.zeros(starts.shape[:2], bool)
    for later in range(1, starts.shape[1]):
        same = starts[:, :later] == starts[:, later : later + 1]
        found[:, later] = same.all(axis=2).any(axis=1)
    return found


@droppable
@program(static_argnums=(0, 1, 2, 3), donate_argnums=(5,))
@full_precision
def _round(
    solver: Solver, placed: Placed, chunk: int, plan: int, problem: Problem, wave: Wave
) -> Wave:
    """Advances the first `chunk` unfinished lanes of each device by one step."""

    def local(problem, wave):
        starts, images = wave["status"].shape
        flat = jax.tree.map(lambda x: x.reshape(starts * images, *x.shape[2:]), wave["state"])
        status = wave["status"].reshape(-1)
        running = status == RUNNING
        picked = jnp.argsort(~running, stable=True)[:chunk]
        active = running[picked]

        def advance(state, target):
            bound, pixels = _bound(problem, target)
            state = solver.step(bound, state, pixels, plan)
            return state, solver.terminate(bound, state)

        before = jax.tree.map(lambda x: x[picked], flat)
        operands = (before, jax.tree.map(lambda x: x[picked % images], wave["targets"]))
        if chunk == 1:
            after, ended = jax.tree.map(
                lambda x: x[None], advance(*jax.tree.map(lambda x: x[0], operands))
            )
        else:
            after, ended = jax.vmap(advance)(*operands)

        def put(old, new, kept):
            mask = active.reshape(-1, *[1] * (new.ndim - 1))
            return old.at[picked].set(jnp.where(mask, new, kept))

        flat = jax.tree.map(put, flat, after, before)
        status = put(status, ended, status[picked]).reshape(starts, images)
        # An image that one start has solved needs no other.
        solved = jnp.any(status == Status.SOLVED, axis=0, keepdims=True)
        retired = solved & (status == RUNNING)
        status = jnp.where(retired, jnp.int32(Status.SUPERSEDED), status)
        state = jax.tree.map(lambda x: x.reshape(starts, images, *x.shape[1:]), flat)
        return Wave(state=state, status=status, targets=wave["targets"])

    return sharded(placed, local)(problem, wave)


@droppable
@program(static_argnums=0)
@full_precision
def _estimates(solver: Solver, problem: Problem, wave: Wave, wanted: Array):
    """The best lane of each image: (estimate, status, steps, pixel residual where wanted)."""

    def of_lane(state, target):
        bound, pixels = _bound(problem, target)
        return solver.solution(bound, state, pixels)

    # Over starts, then images.
    lanes = jax.vmap(jax.vmap(of_lane), in_axes=(0, None))(wave["state"], wave["targets"])
    steps = jax.vmap(jax.vmap(solver.steps_taken))(wave["state"])
    # Lanes that another start made needless cannot win, nor can values that are not finite.
    lost = (wave["status"] == Status.SUPERSEDED) | ~jnp.isfinite(lanes.cost)
    winner = jnp.argmin(jnp.where(lost, jnp.inf, lanes.cost), axis=0)

    def best(tree):
        return jax.tree.map(lambda x: x[winner, jnp.arange(x.shape[1])], tree)

    estimate = best(lanes)

    def residual_of(operands):
        unknowns, target, needed = operands
        bound, pixels = _bound(problem, target)
        return jax.lax.cond(
            needed,
            lambda: pixel_residual(bound.observation, bound.degraded(unknowns), pixels),
            lambda: jnp.zeros((), jnp.float32),
        )

    # A wave is looked at each time that images of it finish: the others need no decoding.
    residual = jax.lax.map(residual_of, (estimate.unknowns, wave["targets"], wanted))
    soft_bits = problem.bits_of(estimate.unknowns)
    return estimate, best(wave["status"]), best(steps), residual, soft_bits


def _collect(
    solver: Solver, placed: Placed, problem: Problem, wave: Wave, positions: np.ndarray
) -> Solution:
    images = wave["status"].shape[1]
    wanted = placed.put_images(np.isin(np.arange(images), positions))
    estimates = _estimates(solver, problem, wave, wanted)
    found = jax.tree.map(lambda x: fetch(x)[positions], estimates)
    estimate, status, steps, residual, soft_bits = found
    _, half = level_range(problem.scheme.levels)
    keys = (soft_bits > 0.5).astype(np.uint8)
    if estimate.information is not None:
        # With the prior of the relaxed symbols, in units of bits.
        prior = np.eye(problem.scheme.num_symbols) / half**2
        information = (estimate.information + prior[None]) * (2 * half) ** 2
        usable = np.isfinite(information).all(axis=(1, 2)) & np.isfinite(soft_bits).all(axis=1)
        keys[usable] = decide_bits(soft_bits[usable], information[usable])
    return Solution(
        keys=keys,
        soft_bits=soft_bits.astype(np.float32),
        alpha=estimate.unknowns[:, : problem.scheme.num_alpha],
        parameters=problem.parameters_of(estimate.unknowns),
        residual=residual,
        noise_ratio=estimate.ratio,
        loss=estimate.cost,
        steps=steps,
        status=status,
        information=estimate.information,
        linear=estimate.linear,
    )


def _empty(problem: Problem) -> Solution:
    scheme = problem.scheme
    nothing = np.zeros(0, np.float32)
    return Solution(
        keys=np.zeros((0, scheme.num_symbols), np.uint8),
        soft_bits=np.zeros((0, scheme.num_symbols), np.float32),
        alpha=np.zeros((0, scheme.num_alpha), np.float32),
        residual=nothing,
        noise_ratio=nothing,
        loss=nothing,
        steps=np.zeros(0, np.int32),
        status=np.zeros(0, np.int32),
    )


def _check_starts(problem: Problem, images: np.ndarray, starts: Any, solver: Solver) -> np.ndarray:
    size = problem.num_unknowns
    if starts is None:
        starts = solver.starts(problem, np.nan_to_num(images, posinf=1.0, neginf=-1.0))
    starts = problem.undegraded(np.asarray(jax.device_get(starts), np.float32))
    if starts.ndim == 2:
        starts = np.broadcast_to(starts[None], (len(images), *starts.shape))
    if starts.ndim != 3 or starts.shape[0] != len(images) or starts.shape[2] != size:
        raise InputError(
            f"starts have shape {starts.shape}: expected (S, {size}) or ({len(images)}, S, {size})"
        )
    return starts
