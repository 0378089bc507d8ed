"""Where inversions start when a window of the picture, or a turned picture, may be the file.

A generator knows where things are in its pictures, so that a shift by a pixel leads an inversion
from the usual start into another valley. Windows are tried by forward passes alone: the file is
put back where a window would have taken it from, read as a plain file's start is, decoded, and the
window of that is compared with the file. What comes near is taken nearer, in rounds that fewer and
fewer windows reach; the best few are starts, and the inversion does the rest.
Where turns are looked for, the whole picture is tried at a number of angles, too.
"""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from fpjax.attacks.linear import rotate
from fpjax.inversion.degradation import Degradation
from fpjax.inversion.information import bytes_of_tangent
from fpjax.inversion.observation import Gaussian
from fpjax.inversion.problem import Problem
from fpjax.inversion.starts import average_jacobian, first_readings, nearer_start
from fpjax.models.jacobian import DEFAULT_MEMORY
from fpjax.parallel import concurrently, cores, one_blas_thread
from fpjax.precision import full_precision
from fpjax.programs import droppable, program

Array = jax.Array

NUM_STARTS = 3
_STEP = 1 / 32
"""Distance of the windows that are tried, in sides of the picture."""
_REACH = 2
"""Shifts that are tried, in steps each way."""
_SIZES = (0.95, 0.9, 0.85)
"""Sides of the cropped windows that are tried."""
_ANGLES = 1.5 * np.arange(1, 9)
"""Angles that are tried each way, in degrees."""
_TAKEN_NEARER = ((8, 6, 1.8), (2, 16, 1.5), (1, 48, 1.5))
"""Rounds in which the best windows are taken nearer: how many, as a multiple of the starts, for how
many forward passes each, and with what error at most, in units of the least. Of 12 crops, 8 shifts
and 10 turns the window that won had 1.4 times the least before the first round and 1.1 before the
later ones at most; other starts of crops and shifts up to 1.65 and 1.35. With three, twelve and
thirty-two passes the same windows were chosen of 16 crops and 16 shifts, but two turned pictures
were read less well, 84% of their bits."""
_NOISE = 0.05
"""That is assumed while windows are compared."""
_RIVAL = 1.4
"""Error up to which a window is a start, in units of the least. Of 8 files each, taken
nearer by a third more passes, the second window had 1.5 to 2.5 times the error of the best after a
shift, and 1.1 to 1.7 times after a crop. Of 64 crops to 0.9 of the sides, before turns were tried
too, 61 were read whole from these starts."""
_DECODED = 64
"""Windows that are decoded at once."""


def windows() -> Float[np.ndarray, "windows 4"]:
    """The windows that are tried, the whole picture first: parameters of `Degradation`.

    >>> windows().shape, windows()[0].tolist()
    ((211, 4), [0.0, 0.0, 0.0, 0.0])
    """
    found = []
    grid = _STEP * np.arange(-_REACH, _REACH + 1)
    for down in grid:
        for right in grid:
            found.append((abs(down) + abs(right), (down, right, down, right)))
    for size in _SIZES:
        # A crop lies within the picture.
        spare = 1 - size
        places = np.linspace(0, spare, 1 + round(2 * spare / _STEP))
        for top in places:
            for left in places:
                found.append((1.0, (top, left, top - spare, left - spare)))
    found.sort(key=lambda item: item[0])
    return np.asarray([edges for _, edges in found], np.float32)


def _placed(degradation: Degradation) -> Degradation:
    """The part of a degradation that moves things."""
    return Degradation(tuple(part for part in ("turn", "window") if part in degradation.parts))


def _tried(placed: Degradation) -> Float[np.ndarray, "tries parameters"]:
    """Parameters that are tried, nothing first: windows, and where they are looked for turns."""
    tried = windows()
    if "turn" in placed.parts:
        angles = np.zeros((2 * len(_ANGLES), 5), np.float32)
        angles[:, 0] = np.stack([_ANGLES, -_ANGLES], axis=1).ravel()
        tried = np.concatenate([np.pad(tried, ((0, 0), (1, 0))), angles])
    return tried


def _inverse(parameters: Array) -> Array:
    """Parameters that show of the file what the picture had before; it was turned or a window was
    taken from it, not both."""
    top, left, bottom, right = parameters[-4:]
    rows, columns = 1 + bottom - top, 1 + right - left
    back = [-top / rows, -left / columns, (1 - top) / rows - 1, (1 - left) / columns - 1]
    return jnp.stack([*-parameters[:-4], *back])


@droppable
@program(static_argnums=2)
@full_precision
def _put_back(image: Array, tried: Array, placed: Degradation) -> Array:
    def back(given: Array) -> Array:
        inverse, picture = _inverse(given), image
        if "turn" in placed.parts:  # what was turned out of the picture is not black
            picture = rotate(picture, inverse[0], None)
        return jnp.clip(Degradation(("window",))(picture, inverse[-4:]), -1, 1)

    return jax.lax.map(back, tried, batch_size=_DECODED)


@droppable
@program(static_argnums=4)
@full_precision
def _errors(
    problem: Problem,
    unknowns: Array,
    tried: Array,
    image: Array,
    placed: Degradation,
) -> Array:
    """Mean squared differences (N,) of a file and what parameters (N, P) make of decoded unknowns
    (N, K)."""

    def error(operands):
        point, given = operands
        return _error(problem, point, given, image, placed)

    return jax.lax.map(error, (unknowns, tried), batch_size=_DECODED)


def _error(problem: Problem, unknowns: Array, given: Array, image: Array, placed: Degradation):
    made = placed(jnp.clip(problem.image(unknowns), -1, 1), given)
    return jnp.mean(jnp.square(made - image))


@droppable
@program(static_argnums=(6, 7))
@full_precision
def _nearer(
    problem: Problem,
    unknowns: Array,
    backs: Array,
    tried: Array,
    wanted: Array,
    image: Array,
    placed: Degradation,
    steps: int,
) -> tuple[Array, Array]:
    """Starts (N, K) that are wanted taken nearer to what was put back, and their errors (N,) at the
    file; infinite where they are not wanted."""

    average = average_jacobian(problem)

    def taken(operands):
        point, back, given = operands
        nearer = nearer_start(problem, point, back, steps, average)
        return nearer, _error(problem, nearer, given, image, placed)

    def one(operands):
        *operands, needed = operands
        left = operands[0], jnp.float32(jnp.inf)
        return jax.lax.cond(needed, taken, lambda operands: left, operands)

    # One by one: in batches, those that are not wanted would be taken nearer too.
    return jax.lax.map(one, (unknowns, backs, tried, wanted))


def has_window(problem: Problem) -> bool:
    """Whether a problem looks for a window.

    >>> from fpjax.fingerprint.scheme import load_scheme
    >>> has_window(Problem(load_scheme("avatars-stylegan2")))
    False
    """
    return problem.degradation is not None and "window" in problem.degradation.parts


def window_starts(
    problem: Problem,
    images: Float[np.ndarray, "batch height width channels"],
    num_starts: int = NUM_STARTS,
) -> Float[np.ndarray, "batch starts unknowns"]:
    """Starts (B, S, K) of files that may be a window of the picture, or turned, the likeliest
    first.

    Where fewer than S are likely, the first is repeated.

    Args:
      problem: one whose degradation has a window.
      images: (B, H, W, C) in [-1, 1].
      num_starts: S.

    Raises:
      InputError: if the scheme was never calibrated, and its generator has no encoder.
    """
    scheme, degradation = problem.scheme, problem.degradation
    assert degradation is not None
    placed = _placed(degradation)
    tried = _tried(placed)
    plain = jax.device_put(Problem(scheme, Gaussian(_NOISE)).prepared())
    named = [degradation.names.index(name) for name in placed.names]
    free = scheme.num_alpha

    def likeliest(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What was read of the likeliest windows (S, K), and the windows."""
        back = np.asarray(jax.device_get(_put_back(*jax.device_put((image, tried)), placed)))
        read = first_readings(scheme, back)
        given = jax.device_put((read, tried, image))
        errors = _known(jax.device_get(_errors(plain, *given, placed)))
        placing = tried
        for rivals, steps, most in _TAKEN_NEARER:
            chosen = _apart(errors, placing, num_starts * rivals)
            read, placing, back, errors = (x[chosen] for x in (read, placing, back, errors))
            if plain.average_rows is not None:  # encoders' and old calibrations have none
                wanted = errors <= most**2 * errors.min()
                given = jax.device_put((read, back, placing, wanted, image))
                nearer = jax.device_get(_nearer(plain, *given, placed, steps))
                read, errors = np.asarray(nearer[0]), _known(nearer[1])
        order = np.argsort(errors, kind="stable")[:num_starts]
        # A start that repeats the first takes no steps.
        order = [i for i in order if errors[i] <= _RIVAL**2 * errors[order[0]]]
        order += [order[0]] * (num_starts - len(order))
        return read[order], placing[order]

    def each(rows: range) -> Iterator[tuple[int, tuple[np.ndarray, np.ndarray]]]:
        for row in rows:
            with one_blas_thread:
                found = likeliest(images[row])
            yield row, found

    starts = np.zeros((len(images), num_starts, problem.num_unknowns), np.float32)
    at_once = min(len(images), _files_at_once(plain))
    parts = [each(range(first, len(images), at_once)) for first in range(at_once)]
    for row, (read, placing) in concurrently(parts, alone=1) if parts else ():
        starts[row][:, :free] = read[:, :free]
        starts[row][:, problem.num_nuisances :] = read[:, free:]
        starts[row][:, [free + at for at in named]] = placing
    return starts


def _files_at_once(problem: Problem) -> int:
    """On a CPU one a core, if half of the memory is enough for that many."""
    if jax.default_backend() != "cpu":
        return 1
    fits = DEFAULT_MEMORY // (2 * _DECODED * bytes_of_tangent(problem))
    return max(1, min(cores(), fits))


def _known(errors) -> np.ndarray:
    """Errors, infinite where they are not numbers."""
    errors = np.asarray(errors)
    return np.where(np.isnan(errors), np.float32(np.inf), errors)


def _apart(errors: np.ndarray, tried: np.ndarray, count: int) -> list[int]:
    """The whole picture and the best tries; windows at least a step from those before them."""
    chosen: list[int] = []
    for index in [0, *np.argsort(errors, kind="stable").tolist()]:
        if all(np.abs(tried[index] - tried[other]).max() >= _STEP * 0.99 for other in chosen):
            chosen.append(index)
        if len(chosen) == count:
            break
    return chosen
