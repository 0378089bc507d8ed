"""Files as people send them: what a file says about its own history, and what the picture says.

`observation="file"` believes the file: a JPEG file is read through its own tables, a picture of
another size, when asked for, through the filter that changed it, everything else as a lossless
file. `observation="auto"` goes on where that does not explain the picture: a lossless file that was
once a JPEG is read through the tables that its pixels give away, if they explain it; what is left
is taken for noise of unknown power, before the file was written.

What is tried depends on the picture alone, never on a key, so that its rate stays exact; a picture
that is read twice is two questions, and its p-value is doubled.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Shaped

from fpjax.attribution import decision
from fpjax.attribution.candidates import Candidates, Directory, candidates_of
from fpjax.attribution.decision import (
    DEFAULT_FALSE_POSITIVE_RATE,
    Attribution,
    Reason,
    Verdict,
    decide_among,
    read_keys,
)
from fpjax.attribution.pictures import (
    MUCH_NOISE,
    Picture,
    added_noise,
    at_size,
    once_jpeg,
    read_picture,
    sized,
    stated,
    with_noise,
)
from fpjax.attribution.registry import RegistryError
from fpjax.errors import InputError
from fpjax.fingerprint.keys import level_range
from fpjax.fingerprint.scheme import Scheme
from fpjax.fingerprint.stored import KeySource
from fpjax.inversion.degradation import Degradation
from fpjax.inversion.driver import invert
from fpjax.inversion.encoder_reader import EncoderReader
from fpjax.inversion.observation import ROUNDING_STD, Observation, PerImage
from fpjax.inversion.problem import Problem
from fpjax.inversion.readers import (
    Reader,
    default_reader,
    explained_limit,
    read_files,
    where_it_reads,
)
from fpjax.inversion.solution import Solution, Status
from fpjax.inversion.solvers.default import default_solver
from fpjax.inversion.solvers.levenberg_marquardt import LevenbergMarquardt
from fpjax.models.jacobian import DEFAULT_MEMORY

Reading = Literal["file", "auto"]

_ROUNDING = 0.0035
"""Residual up to which nothing but rounding to 8 bits is left: 1.5 times that."""

DEGRADATION = Degradation()
"""What is looked for in pictures that nothing simpler explains."""

_LOOKS = 4
"""At a degraded picture, at most, each with less noise than the one before."""

_SETTLED = 0.7
"""Share of the noise that was assumed, above which the noise that is left is believed."""

_LITTLE = 0.3
"""Share of it below which most of what is left is the assumption's own doing: a third of it is
tried next."""

_BRIEF = 2
"""Jacobians of the first reading, after which a picture that is far from explained is read
otherwise."""

_PROMISING = 3.0
"""Residual after those, in units of the noise, up to which the first reading goes on."""

_STALLED_AFTER = 3
"""Jacobians after which a picture that is not explained and hardly moves is given up."""

_ROUGH = 0.2
"""Tolerance of the solver, nats an unknown, while the noise is not known."""


def attribute(
    scheme: Scheme,
    images: Shaped[Array | np.ndarray, "batch height width channels"]
    | Sequence[str | os.PathLike | Picture],
    registry: Directory | Candidates | KeySource | None = None,
    *,
    false_positive_rate: float = DEFAULT_FALSE_POSITIVE_RATE,
    observation: Observation | Reading | None = None,
    resize: bool = False,
    problem: Problem | None = None,
    solver: Reader | None = None,
    memory: int = DEFAULT_MEMORY,
    mesh: Mesh | None = None,
    progress: Callable[[int, int], None] | None = None,
    key_progress: Callable[[int, int], None] | None = None,
) -> Attribution:
    """Reads the keys out of images and, given a registry, names their holders.

    Args:
      scheme: a calibrated scheme, as bundled or from `calibrate`.
      images: (B, H, W, C), uint8 or float in [-1, 1]; or paths of files, or `Picture`s.
      registry: who holds which key: a `Registry`, a `DerivedRegistry`, or a source of keys such as
        `DerivedKeys`, whose holders are numbers; without it there are no verdicts.
      false_positive_rate: chance that an image made without the registered keys is attributed to
        anybody at all. It is exact for keys that are uniformly random and secret, whatever the
        image, the observation and the solver.
      observation: how the generator's output became the files. "file" (the default for paths):
        what each file says of itself. "auto": what the picture says, too, where that does not
        explain it. An `Observation` (the default for arrays: `Rounded8Bit()`): that one for all.
      resize: for paths: whether to take pictures of another size than the generator's.
      problem: for `invert`, instead of one made of scheme and observation.
      solver: how keys are read: see `default_solver`; or an `EncoderReader`, for files that are
        such as it was measured on, the others being inverted. By default the encoder where the
        scheme was calibrated for it.
      memory: see `invert`.
      mesh: see `invert`.
      progress: called with (images finished, images in all).
      key_progress: called with (keys compared, keys in all) in each pass over the registry.

    Returns:
      The `Attribution`; its arrays are of the reading that fits a key best where there are two.

    Raises:
      InputError: if the images do not fit the generator or the scheme is not calibrated.
      ImageError: if a file cannot be read.
      RegistryError: if the registry belongs to another scheme.

    >>> import fpjax
    >>> scheme = fpjax.load_scheme("avatars-stylegan2")
    >>> attribute(scheme, [], observation="auto").keys.shape
    (0, 64)
    """
    is_array = not isinstance(images, Sequence)
    if isinstance(observation, str) and observation not in ("file", "auto"):
        raise InputError(f"observation {observation!r}: choose 'file', 'auto', or an Observation")
    if isinstance(observation, str) and problem is not None:
        raise InputError("give a problem or an observation, not both")
    if is_array and not isinstance(observation, str):
        return decision.attribute(
            scheme, images, registry, false_positive_rate=false_positive_rate,
            observation=observation, problem=problem, solver=solver, memory=memory, mesh=mesh,
            progress=progress, key_progress=key_progress,
        )  # fmt: skip
    shape = scheme.generator.image_shape
    pictures = _pictures(images, shape, resize)
    if not isinstance(observation, str) and (observation is not None or problem is not None):
        return decision.attribute(
            scheme, np.stack([picture.pixels for picture in pictures]), registry,
            false_positive_rate=false_positive_rate, observation=observation, problem=problem,
            solver=solver, memory=memory, mesh=mesh, progress=progress, key_progress=key_progress,
        )  # fmt: skip
    if isinstance(registry, Directory) and registry.scheme_id != scheme.id:
        raise RegistryError(
            f"{registry.path} belongs to scheme {registry.scheme_id}, the images are read with "
            f"{scheme.id}"
        )
    auto = observation == "auto"
    reader = _Reader(scheme, solver, memory, mesh, progress, len(pictures), brief=auto)
    first = reader.read([stated(picture, shape) for picture in pictures], pictures)
    readings = [first]
    if auto:
        rows = np.flatnonzero(~(first.solution.noise_ratio <= first.limits))
        if len(rows):
            readings.append(_second(reader, pictures, first, rows))
    name = " and ".join(reader.names) or reader.chosen(Problem(scheme)).name
    return _answer(
        scheme, readings, registry, false_positive_rate, name, observation or "file", key_progress
    )


def _pictures(images, shape, resize: bool) -> list[Picture]:
    if not isinstance(images, Sequence):
        images = np.asarray(jax.device_get(images))
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != shape:
            raise InputError(
                f"images are {images.dtype} {images.shape}: expected uint8 "
                f"(B, {', '.join(map(str, shape))}), as files hold them"
            )
        return [Picture(image) for image in images]
    return [
        item if isinstance(item, Picture) else read_picture(item, shape, resize=resize)
        for item in images
    ]


@dataclasses.dataclass(frozen=True, eq=False)
class _Readings:
    """Some of the pictures, read once."""

    rows: np.ndarray
    solution: Solution
    histories: list[str]
    guessed: np.ndarray
    """Whether the noise was estimated, so that the residual says nothing."""
    limits: np.ndarray
    """Residuals up to which the pictures count as explained."""

    def take(self, chosen: np.ndarray, rows: np.ndarray) -> _Readings:
        """Those of a mask (n,), which are the pictures `rows`."""
        places = np.flatnonzero(chosen)
        return _Readings(
            rows,
            self.solution.take(places),
            [self.histories[i] for i in places],
            self.guessed[places],
            self.limits[places],
        )

    @classmethod
    def together(cls, parts: list[_Readings]) -> _Readings:
        """Readings of different pictures as one."""
        return cls(
            np.concatenate([part.rows for part in parts]),
            Solution.concatenate([part.solution for part in parts]),
            [words for part in parts for words in part.histories],
            np.concatenate([part.guessed for part in parts]),
            np.concatenate([part.limits for part in parts]),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class _Reader:
    scheme: Scheme
    solver: Reader | None
    memory: int
    mesh: Mesh | None
    progress: Callable[[int, int], None] | None
    count: int
    brief: bool = False
    """Whether to give up soon what is not explained: there are other explanations to try."""

    names: list[str] = dataclasses.field(default_factory=list)
    """Of the readers and solvers that took part."""

    def read(self, observations: list[Observation], pictures: list[Picture]) -> _Readings:
        """All pictures, those of one kind of observation together."""
        solution, limits = self.invert(observations, pictures, self.chosen)
        rows, histories = np.arange(len(pictures)), [picture.history for picture in pictures]
        going = np.flatnonzero(
            (solution.status == Status.MAX_STEPS) & (solution.noise_ratio < _PROMISING)
        )
        if self.brief and len(going):
            further, _ = self.invert(
                [observations[i] for i in going],
                [pictures[i] for i in going],
                self.inversion,
                starts=_unknowns(self.scheme, solution.take(going))[:, None],
            )
            solution = _replaced(solution, going, further)
        return _Readings(rows, solution, histories, np.zeros(len(pictures), bool), limits)

    def chosen(self, problem: Problem) -> Reader:
        """Who reads a problem's files first."""
        if self.solver is None:
            return self._changed(default_reader(problem), max_steps=_BRIEF)
        reader = where_it_reads(self.solver, problem)
        return reader if reader is self.solver else self._changed(reader, max_steps=_BRIEF)

    def inversion(self, problem: Problem) -> Reader:
        """Who looks again."""
        if self.solver is None or isinstance(self.solver, EncoderReader):
            return self._changed(default_solver(problem.scheme), stalled_after=_STALLED_AFTER)
        return self.solver

    def rough(self, problem: Problem) -> Reader:
        """Who looks again while the noise is not known."""
        reader = self.inversion(problem)
        return reader if reader is self.solver else self._changed(reader, tolerance=_ROUGH)

    def _changed(self, reader: Reader, **settings) -> Reader:
        if self.brief and isinstance(reader, LevenbergMarquardt):
            return dataclasses.replace(reader, **settings)
        return reader

    def invert(
        self,
        observations,
        pictures,
        choose: Callable[[Problem], Reader],
        *,
        starts=None,
        degradation: Degradation | None = None,
    ) -> tuple[Solution, np.ndarray]:
        """What is read of each picture, and the residual up to which it counts as explained."""
        shape = self.scheme.generator.image_shape
        if not pictures:
            none = np.zeros((0, *shape), np.uint8)
            return invert(Problem(self.scheme), none), np.zeros(0)
        kinds: dict = {}
        for row, observation in enumerate(observations):
            leaves, structure = jax.tree.flatten(observation)
            kinds.setdefault((structure, *(np.shape(leaf) for leaf in leaves)), []).append(row)
        order, parts, limits, done = [], [], [], 0
        for rows in kinds.values():

            def told(finished: int, _: int, before: int = done) -> None:
                if self.progress is not None and choose == self.chosen:
                    self.progress(before + finished, self.count)

            same = [observations[row] for row in rows]
            shared = same[0] if not jax.tree.leaves(same[0]) else PerImage.stack(same)
            problem = Problem(self.scheme, shared, degradation=degradation)
            solver = choose(problem)
            if solver.name not in self.names:
                self.names.append(solver.name)
            parts.append(
                read_files(
                    problem,
                    np.stack([at_size(pictures[row].pixels, shape) for row in rows]),
                    solver,
                    starts=None if starts is None else starts[rows],
                    memory=self.memory,
                    mesh=self.mesh,
                    progress=told,
                )
            )
            limits += [explained_limit(problem, solver)] * len(rows)
            order += rows
            done += len(rows)
        back = np.argsort(order)
        return Solution.concatenate(parts).take(back), np.array(limits)[back]


def _second(reader: _Reader, pictures: list[Picture], first: _Readings, rows) -> _Readings:
    """Another look at pictures that the file alone does not explain."""
    rows = np.asarray(rows)
    chosen = [pictures[row] for row in rows]
    once = [None if picture.jpeg is not None else once_jpeg(picture) for picture in chosen]
    parts = []
    tried = np.flatnonzero([found is not None for found in once])
    if len(tried):
        parts.append(_once_jpegs(reader, [chosen[i] for i in tried], [once[i] for i in tried]))
        believed = parts[0].solution.noise_ratio <= parts[0].limits
        # What the tables do not explain was no JPEG, or more has happened.
        parts[0] = parts[0].take(believed, rows[tried[believed]])
    left = np.setdiff1d(np.arange(len(rows)), [] if not parts else tried[believed])
    if len(left):
        parts.append(_degraded(reader, [chosen[i] for i in left], rows[left]))
    return _Readings.together(parts)


def _once_jpegs(reader: _Reader, pictures: list[Picture], once) -> _Readings:
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
    return _Readings(rows, solution, histories, np.zeros(len(pictures), bool), limits)


def _degraded(reader: _Reader, pictures: list[Picture], rows: np.ndarray) -> _Readings:
    """Pictures that were degraded somehow: what was done is looked for, and how much noise is
    left, from much to little."""
    shape = reader.scheme.generator.image_shape
    scheme = reader.scheme
    solution, noise, starts = None, np.full(len(pictures), MUCH_NOISE), None
    limits = np.zeros(len(pictures))
    left = np.arange(len(pictures))
    for look in range(_LOOKS):
        observations = [
            sized(pictures[i], shape, with_noise(pictures[i].jpeg, float(noise[i]))) for i in left
        ]
        found, limits_found = reader.invert(
            observations, [pictures[i] for i in left],
            reader.rough if look == 0 else reader.inversion,
            starts=None if starts is None else starts[left], degradation=DEGRADATION,
        )  # fmt: skip
        solution = found if solution is None else _replaced(solution, left, found)
        limits[left] = limits_found
        starts = _unknowns(scheme, solution)[:, None]
        std = np.array(
            [
                added_noise(float(r), p.jpeg)
                for r, p in zip(solution.residual, pictures, strict=True)
            ]
        )
        settled = (std >= _SETTLED * noise) & (std <= noise / _SETTLED)
        settled |= (std <= noise) & (noise <= 2 * _ROUNDING)
        left = left[~settled[left]]
        if not len(left):
            break
        lower = np.where(std < _LITTLE * noise, np.maximum(std / 3, 2 * ROUNDING_STD), std)
        noise[left] = lower[left]
    assert solution is not None and solution.parameters is not None
    histories, guessed = [], []
    for i, picture in enumerate(pictures):
        said = [DEGRADATION.words(solution.parameters[i])]
        residual = float(solution.residual[i])
        guessed.append(picture.jpeg is not None or not residual < _ROUNDING)
        if guessed[-1]:
            said.append(f"noise of {added_noise(residual, picture.jpeg):.3f}")
        histories.append(" and ".join(part for part in (*said, picture.history) if part))
    return _Readings(rows, solution, histories, np.array(guessed), limits)


def _unknowns(scheme: Scheme, solution: Solution) -> np.ndarray:
    centre, half = level_range(scheme.levels)
    symbols = centre + 2 * half * (solution.soft_bits - 0.5)
    parts = [solution.alpha, solution.parameters, symbols]
    return np.concatenate([part for part in parts if part is not None], 1).astype(np.float32)


def _replaced(solution: Solution, rows: np.ndarray, other: Solution) -> Solution:
    """A solution of which some images' is another one."""
    order = np.arange(len(solution))
    order[rows] = len(solution) + np.arange(len(rows))
    return Solution.concatenate([solution, other]).take(order)


def _answer(
    scheme: Scheme,
    readings: list[_Readings],
    registry: Directory | Candidates | KeySource | None,
    rate: float,
    solver: str,
    name: str,
    progress: Callable[[int, int], None] | None,
) -> Attribution:
    """The better of the readings of each picture, at a rate that counts them."""
    count = len(readings[0].solution)
    attempts = np.zeros(count, int)
    for reading in readings:
        attempts[reading.rows] += 1
    # Of each picture: which reading's answer stands, the last one's where nobody is asked for.
    stands = np.zeros(count, int)
    best: dict[int, Verdict] = {}
    candidates = None if registry is None else candidates_of(registry)
    for place, reading in enumerate(readings):
        if candidates is None:
            stands[reading.rows] = place
            continue
        for tries in np.unique(attempts[reading.rows]):
            chosen = np.flatnonzero(attempts[reading.rows] == tries)
            answers = decide_among(
                reading.solution.take(chosen), candidates, levels=scheme.levels, code=scheme.code,
                max_noise_ratio=reading.limits[chosen], false_positive_rate=rate / int(tries),
                progress=progress,
            )  # fmt: skip
            for i, found in zip(chosen, answers, strict=True):
                row = int(reading.rows[i])
                found = _told(found, reading, int(i), int(tries))
                if row not in best or found.p_value < best[row].p_value:
                    best[row], stands[row] = found, place
    verdicts = None if candidates is None else [best[row] for row in range(count)]
    solution = _standing(readings, stands)
    calibration = scheme.calibration
    return Attribution(
        read_keys(solution, scheme.code, scheme.levels),
        solution.soft_bits,
        solution.information,
        solution.residual,
        solution.status,
        solution,
        verdicts,
        name,
        solver,
        None if calibration is None else calibration.sha256,
    )


def _told(verdict: Verdict, reading: _Readings, i: int, attempts: int) -> Verdict:
    """A verdict with what is believed of the picture's history, and with all attempts counted."""
    explained, reason = verdict.explained, verdict.reason
    if reading.guessed[i] and verdict.user is None:
        # Any picture is explained by enough noise.
        explained = False
        if reason == Reason.NO_KEY_CLOSE_ENOUGH:
            reason = Reason.NOT_EXPLAINED
    return dataclasses.replace(
        verdict,
        p_value=min(1.0, verdict.p_value * attempts),
        explained=explained,
        reason=reason,
        history=reading.histories[i],
        attempts=attempts,
    )


def _standing(readings: list[_Readings], stands: np.ndarray) -> Solution:
    """Of each picture, the solution of the reading that stands."""
    index = np.zeros(len(stands), int)
    begins = 0
    for place, reading in enumerate(readings):
        mine = stands[reading.rows] == place
        index[reading.rows[mine]] = begins + np.flatnonzero(mine)
        begins += len(reading.rows)
    return Solution.concatenate([reading.solution for reading in readings]).take(index)
