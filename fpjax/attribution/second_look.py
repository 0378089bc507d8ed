"""A second look at pictures of which the file alone does not explain all.

It does not know what was done to a picture. It looks for a turn, a window, a kernel and a map of
colours as unknowns of the inversion, and for noise of unknown power. Much noise is assumed first,
and then what the last inversion left, from where it ended, until what is left is what was assumed.
Until then a look of the default solver is one Jacobian. Pictures that leave so much that no key
could be read are given up.

Where the first look came near, the second begins at the calibrated start, and of JPEG files where
the first ended; elsewhere at the likeliest window or turn, and at others where that leads nowhere.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from fpjax.attribution.file_reader import FileReader, Readings, replaced
from fpjax.attribution.pictures import (
    LEAST_NOISE,
    MOST_NOISE,
    MUCH_NOISE,
    Picture,
    added_noise,
    at_size,
    more_noise,
    on_device,
    once_jpeg,
    sized,
    with_noise,
)
from fpjax.fingerprint.scheme import Scheme
from fpjax.inversion.degradation import Degradation
from fpjax.inversion.encoder_reader import EncoderReader
from fpjax.inversion.information import channel_bits
from fpjax.inversion.observation import ROUNDING_STD, Gaussian, Observation
from fpjax.inversion.observation_filtered import Filter, Filtered
from fpjax.inversion.problem import Problem, shown
from fpjax.inversion.readers import LEAST_EXPLAINED
from fpjax.inversion.resizes import ROUNDED_TWICE, Resized, resized
from fpjax.inversion.solution import Solution, Status
from fpjax.io.images import from_uint8

_ROUNDING = 0.0035
"""Residual up to which nothing but rounding to 8 bits is left: 1.5 times that."""

_NEARLY = 2.0
"""How many times `ROUNDED_TWICE` a look may leave for it to be assumed. Of ten resizes to 0.75 and
back one Jacobian left 0.0055 to 0.0145. Of eight that were hard to read to the last bit, one had a
wrong bit with 2, two had with 1.2 and 3."""

DEGRADATION = Degradation(("turn", "window", "kernel", "colours"))
"""What is looked for in pictures that nothing simpler explains."""

_NEAR = 0.1
"""Residual of the first look up to which the second needs no windows. Of four files each,
noise of 0.05, blurs, resizes and other colours left 0.007 to 0.092 (one resize 0.14), and of 64
each, noise of 0.1 0.082 to 0.118, shifts by a pixel 0.101 to 0.31 and crops 0.12 to 0.36."""

_ON_THE_WAY = 0.05
"""Residual of a rough look from one window up to which no other window is tried. Of 20 crops to 0.9
of the sides and six shifts, the likeliest window left 0.032 to 0.049 where no other one left less
than 0.9 of that; of the seven where it left more, another one left 0.035 and 0.048 of two."""

_ROUGH_LOOKS, _WHOLE_LOOKS = 3, 2
"""At a degraded picture after the first of these, at most: of one Jacobian, and to the end."""

_READABLE = 15.0
"""Bits that a picture must be able to tell for it to be looked at further: to name the only user at
1e-6 takes 20. Six pictures of the robust scheme had 54 to 87 under noise of 0.1, from which most
users are named. With 30, as many as one of 1,000 takes, files that went through a blur, that noise
and JPEG 50 were given up while a rough look still said too little: 66.7% of their bits were right
where 69.4% had been."""

_SETTLED = 0.8
"""Share of the noise that was assumed, above which the noise that is left is believed."""

_LITTLE = 0.3
"""Share of it below which most of what is left is the assumption's own doing: a third of it is
tried next."""

_CLEAR = 1.07
"""Margin of a resize over its rivals from which on it is tried."""

_NO_WORSE = 2.05
"""Error that a resize may leave before the inversion knows of it, in units of what is left where
the inversion looked for a window and a kernel. The right ones left 0.7 to 2.0 of it, blurs 1.7
to 2.4."""

_MUCH_NEARER = 0.5
"""Share of the residual of the rough look up to which a resize that was tried is believed."""


def second_look(
    reader: FileReader, pictures: list[Picture], rows: np.ndarray, first: Solution
) -> Readings:
    """Another look at pictures of which the file alone does not explain all.

    Args:
      reader: who reads.
      pictures: all of them.
      rows: (n,), those that are looked at.
      first: what the first look found, of all pictures.
    """
    chosen = [pictures[row] for row in rows]
    once = [None if picture.jpeg is not None else once_jpeg(picture) for picture in chosen]
    parts = []
    tried = np.flatnonzero([found is not None for found in once])
    if len(tried):
        parts.append(_once_jpegs(reader, [chosen[i] for i in tried], [once[i] for i in tried]))
        believed = parts[0].solution.noise_ratio <= parts[0].limits
        # What the tables do not explain was no JPEG, or more has happened.
        parts[0] = parts[0].take(believed, rows[tried[believed]])
    left = np.ones(len(rows), bool)
    if parts:
        left[tried[believed]] = False
    near = np.array([picture.jpeg is not None for picture in chosen])
    near &= first.noise_ratio[rows] <= LEAST_EXPLAINED
    near |= first.residual[rows] <= _NEAR
    rest = np.flatnonzero(left)
    if len(rest):
        mine = [chosen[i] for i in rest]
        parts.append(_degraded(reader, mine, rows[rest], first.take(rows[rest]), near[rest]))
    return Readings.together(parts)


def _once_jpegs(reader: FileReader, pictures: list[Picture], once) -> Readings:
    """Lossless files, read through the tables that their pixels give away."""
    shape = reader.scheme.generator.image_shape
    observations = [
        sized(picture, shape, with_noise(jpeg, 0.0))
        for picture, (jpeg, _) in zip(pictures, once, strict=True)
    ]
    solution, limits = reader.invert(observations, pictures, reader.inversion)
    histories = [
        " and ".join(part for part in (words, picture.history) if part)
        for picture, (_, words) in zip(pictures, once, strict=True)
    ]
    rows = np.arange(len(pictures))
    return Readings(rows, solution, histories, np.zeros(len(pictures), bool), limits)


def _degraded(
    reader: FileReader,
    pictures: list[Picture],
    rows: np.ndarray,
    first: Solution,
    near: np.ndarray,
) -> Readings:
    """Pictures that were degraded somehow: what was done is looked for, and how much noise is
    left. Those that are near are tried without windows."""
    shape = reader.scheme.generator.image_shape
    plain = [functools.partial(_noisy, picture, shape, filter=None) for picture in pictures]
    rough, limits = _roughly(reader, pictures, plain, first, near)
    std = _noise_left(reader, rough, pictures, plain, DEGRADATION)
    resizes = _resizes(reader.scheme, rough, pictures)
    parts, done = [], np.zeros(len(pictures), bool)
    tried = np.array([i for i, found in enumerate(resizes) if found is not None], int)
    if len(tried):
        reading = _resized(
            reader, [pictures[i] for i in tried], rough.take(tried), [resizes[i] for i in tried]
        )
        done[tried] = reading.solution.residual <= _MUCH_NEARER * rough.residual[tried]
        parts.append(reading.take(done[tried], rows[done]))
    left = np.flatnonzero(~done)
    if len(left):
        chosen = [pictures[i] for i in left]
        solution, limits, std = _finer(
            reader, chosen, [plain[i] for i in left], rough.take(left), limits[left], std[left],
            degradation=DEGRADATION,
        )  # fmt: skip
        assert solution.parameters is not None
        words = [DEGRADATION.words(values) for values in solution.parameters]
        parts.append(_told(chosen, rows[left], solution, limits, words, std))
    return Readings.together(parts)


def _roughly(
    reader: FileReader,
    pictures: list[Picture],
    observe: list[Callable[[float], Observation]],
    first: Solution,
    near: np.ndarray,
) -> tuple[Solution, np.ndarray]:
    """One Jacobian each with much noise assumed: from one start, and where that leads nowhere from
    the others. Those that are not near have starts with windows."""

    def look(rows: np.ndarray, starts: np.ndarray | None) -> tuple[Solution, np.ndarray]:
        return reader.invert(
            [observe[i](MUCH_NOISE) for i in rows], [pictures[i] for i in rows], reader.rough,
            starts=starts, degradation=DEGRADATION,
        )  # fmt: skip

    close, far = np.flatnonzero(near), np.flatnonzero(~near)
    plain = None
    if len(close):
        plain = _plain_starts(reader, [pictures[i] for i in close], first.take(close))
    if not reader.looks_roughly:  # then the solver has starts of its own, and chooses
        looks = [look(rows, starts) for rows, starts in ((close, plain), (far, None)) if len(rows)]
        back = np.argsort(np.concatenate([rows for rows in (close, far) if len(rows)]))
        found = Solution.concatenate([solution for solution, _ in looks]).take(back)
        return found, np.concatenate([limits for _, limits in looks])[back]
    windows = _window_starts(reader, [pictures[i] for i in far]) if len(far) else None
    some = plain if windows is None else windows
    assert some is not None
    starts = np.zeros((len(pictures), *some.shape[1:]), np.float32)
    if windows is not None:
        starts[far] = windows
    if plain is not None:
        starts[close] = plain
    found, limits = look(np.arange(len(pictures)), starts[:, :1])
    # What is not a number is not on the way either.
    lost = ~(found.residual <= _ON_THE_WAY)
    rows, places = np.nonzero((starts != starts[:, :1]).any(axis=2) & lost[:, None])
    if len(rows):
        rivals, _ = look(rows, starts[rows, places][:, None])
        better = np.flatnonzero(np.isfinite(rivals.loss) & ~(rivals.loss >= found.loss[rows]))
        better = better[np.argsort(-rivals.loss[better], kind="stable")]
        best = {int(rows[rival]): int(rival) for rival in better}  # of several the last one
        found = replaced(found, np.array([*best], int), rivals.take([*best.values()]))
    return found, limits


def _window_starts(reader: FileReader, pictures: list[Picture]) -> np.ndarray:
    """Starts (n, S, K) that know of windows, the likeliest first."""
    problem = Problem(reader.scheme, Gaussian(MUCH_NOISE), degradation=DEGRADATION)
    shape = reader.scheme.generator.image_shape
    images = [at_size(picture.pixels, shape) for picture in pictures]
    solver = reader.rough(problem)
    assert not isinstance(solver, EncoderReader)  # which looks first alone
    return solver.starts(problem, np.stack(images))


def _plain_starts(reader: FileReader, pictures: list[Picture], first: Solution) -> np.ndarray:
    """Starts (n, S, K) that know of no window: the calibrated ones; of JPEG files, and where there
    are none, where the first look ended. (24 files with noise of 0.05 had 32 wrong bits from the
    calibrated starts, and 44 from there.)"""
    shape = reader.scheme.generator.image_shape
    problem = Problem(reader.scheme, Gaussian(MUCH_NOISE))
    images = np.stack([at_size(picture.pixels, shape) for picture in pictures])
    ended = problem.unknowns_of(first.alpha, first.soft_bits)[:, None]
    solver = reader.inversion(problem)
    assert not isinstance(solver, EncoderReader)  # which looks first alone
    starts = ended if reader.scheme.calibration is None else solver.starts(problem, images)
    is_jpeg = np.array([picture.jpeg is not None for picture in pictures])
    starts = np.where(is_jpeg[:, None, None], ended, starts)
    return Problem(reader.scheme, degradation=DEGRADATION).undegraded(starts.astype(np.float32))


def _noisy(
    picture: Picture, shape: tuple[int, int, int], std: float, *, filter: Filter | None
) -> Observation:
    """Noise before the picture was written, and a filter before that."""
    inner = with_noise(picture.jpeg, std)
    if filter is None:
        return sized(picture, shape, inner)
    return Filtered(filter, from_uint8(picture.pixels), inner)


def _resizes(scheme: Scheme, rough: Solution, pictures: list[Picture]) -> list[Resized | None]:
    """Of each picture, the resize that it went through and back, where there clearly is one."""
    shape = scheme.generator.image_shape
    problem = on_device(scheme)
    resizes: list[Resized | None] = []
    unknowns = problem.unknowns_of(rough.alpha, rough.soft_bits)
    for point, picture, left in zip(unknowns, pictures, rough.residual, strict=True):
        found = None
        if picture.pixels.shape == shape and np.isfinite(point).all():
            found = resized(shown(problem, point), from_uint8(picture.pixels))
        if found is not None and (found.margin < _CLEAR or found.error > _NO_WORSE * left):
            found = None
        resizes.append(found)
    return resizes


def _resized(
    reader: FileReader,
    pictures: list[Picture],
    rough: Solution,
    resizes: list[Resized],
) -> Readings:
    """Pictures that were resized and brought back to their size, in a known way."""
    shape = reader.scheme.generator.image_shape
    observe = [
        functools.partial(_noisy, picture, shape, filter=found.as_filter(*shape[:2]))
        for picture, found in zip(pictures, resizes, strict=True)
    ]
    errors = np.array([found.error for found in resizes])
    std = _noise_left(reader, rough, pictures, observe, None, errors)
    solution, limits, std = _finer(reader, pictures, observe, rough, np.zeros(len(pictures)), std)
    words = [found.words for found in resizes]
    return _told(pictures, np.arange(len(pictures)), solution, limits, words, std)


def _finer(
    reader: FileReader,
    pictures: list[Picture],
    observe: list[Callable[[float], Observation]],
    solution: Solution,
    limits: np.ndarray,
    std: np.ndarray,
    *,
    degradation: Degradation | None = None,
) -> tuple[Solution, np.ndarray, np.ndarray]:
    """A rough solution that left noise of `std`, made finer until what is assumed is what is left.

    Returns:
      The solution, the residuals up to which pictures count as explained, and the noise left, (n,).
    """
    noise, limits, std = np.full(len(pictures), MUCH_NOISE), limits.copy(), std.copy()
    # Whether what was assumed is not what the look before had left; whether a look was to the end.
    unsure = np.ones(len(pictures), bool)
    whole = np.full(len(pictures), degradation is not None and not reader.looks_roughly)
    rough_looks = _ROUGH_LOOKS if reader.looks_roughly else 1
    is_jpeg = np.array([picture.jpeg is not None for picture in pictures])
    tried = np.zeros(len(pictures), bool)
    for look in range(rough_looks + _WHOLE_LOOKS):
        settled = (std >= _SETTLED * noise) & (std <= noise / _SETTLED)
        rounding = (std <= noise) & (noise <= 2 * _ROUNDING)
        settled |= rounding
        left = ~(settled & whole) & (solution.status != Status.NOT_FINITE)
        left &= _readable(reader.scheme, solution, pictures, noise, std)
        if not left.any():
            break
        little = ~settled & (std < _LITTLE * noise)
        # To the end, once a noise that a look had left is left again, or nothing but rounding; and
        # where much noise, as it is assumed first, leaves much: what is far off gets nearer then.
        to_the_end = settled & ~unsure | rounding | (look >= rough_looks)
        to_the_end |= ~little & (look == 0) | (not reader.looks_roughly)
        noise[left] = np.maximum(np.where(little, std / 3, std), 2 * ROUNDING_STD)[left]
        if look and degradation is None and reader.looks_roughly:
            # With what is unknown of a degradation, that is no quicker than another rough look.
            rounded = ~is_jpeg & ~tried & ~settled & (std <= _NEARLY * ROUNDED_TWICE)
            noise[left & rounded] = ROUNDED_TWICE
            to_the_end |= rounded
            tried |= left & rounded
        unsure[left], whole[left] = little[left], to_the_end[left]
        for choose, rows in (
            (reader.rough, np.flatnonzero(left & ~to_the_end)),
            (reader.inversion, np.flatnonzero(left & to_the_end)),
        ):
            if not len(rows):
                continue
            problem = Problem(reader.scheme, degradation=degradation)
            starts = problem.unknowns_of(
                solution.alpha[rows],
                solution.soft_bits[rows],
                None if solution.parameters is None else solution.parameters[rows],
            )
            found, limits[rows] = reader.invert(
                [observe[i](float(noise[i])) for i in rows], [pictures[i] for i in rows],
                choose, starts=starts[:, None], degradation=degradation,
            )  # fmt: skip
            solution = replaced(solution, rows, found)
        rows = np.flatnonzero(left)
        std[rows] = _noise_left(
            reader, solution.take(rows), [pictures[i] for i in rows], [observe[i] for i in rows],
            degradation,
        )  # fmt: skip
    return solution, limits, std


def _readable(
    scheme: Scheme, solution: Solution, pictures: list[Picture], noise: np.ndarray, std: np.ndarray
) -> np.ndarray:
    """Which pictures (n,) may give a key away where noise of `std` is left, by what they say with
    `noise` assumed."""
    if solution.information is None:
        return np.ones(len(pictures), bool)
    own = np.square(
        [
            ROUNDING_STD if picture.jpeg is None else float(picture.jpeg.pixel_std)
            for picture in pictures
        ]
    )
    more = (own + noise**2) / (own + std**2)
    information = solution.information * more[:, None, None]
    return channel_bits(information, scheme.levels) >= _READABLE


def _noise_left(
    reader: FileReader,
    solution: Solution,
    pictures: list[Picture],
    observe: list[Callable[[float], Observation]],
    degradation: Degradation | None,
    residual: np.ndarray | None = None,
) -> np.ndarray:
    """Noise (n,) that pictures seem to have, beside what rounding or compression leaves.

    Args:
      reader, solution, pictures, observe, degradation: what was found, and how.
      residual: (n,) of pictures that are no JPEG files; by default the solution's.
    """
    residual = solution.residual if residual is None else residual
    if all(picture.jpeg is None for picture in pictures):
        return np.clip([added_noise(float(r)) for r in residual], LEAST_NOISE, MOST_NOISE)
    problem = on_device(reader.scheme, degradation)
    points = problem.unknowns_of(
        solution.alpha, solution.soft_bits, None if degradation is None else solution.parameters
    )
    stds = []
    for row, picture in enumerate(pictures):
        if picture.jpeg is None:
            stds.append(added_noise(float(residual[row])))
            continue
        stds.append(more_noise(problem, points[row], observe[row](0.0), picture.jpeg).std)
    return np.clip(stds, LEAST_NOISE, MOST_NOISE)


def _told(
    pictures: list[Picture],
    rows: np.ndarray,
    solution: Solution,
    limits: np.ndarray,
    words: list[str],
    stds: np.ndarray,
) -> Readings:
    """Readings of second looks: what was done, in words, and what noise is left."""
    histories, guessed = [], []
    for picture, done, residual, std in zip(
        pictures, words, solution.residual.tolist(), stds.tolist(), strict=True
    ):
        guessed.append(picture.jpeg is not None or not residual < _ROUNDING)
        noise = f"noise of {std:.3f}" if guessed[-1] else ""
        histories.append(" and ".join(part for part in (done, noise, picture.history) if part))
    return Readings(rows, solution, histories, np.array(guessed), limits)
