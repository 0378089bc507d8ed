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
    COARSE_NOISE,
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
from fpjax.inversion.driver import invert
from fpjax.inversion.encoder_reader import EncoderReader
from fpjax.inversion.observation import Observation, PerImage
from fpjax.inversion.problem import Problem
from fpjax.inversion.readers import (
    Reader,
    default_reader,
    explained_limit,
    read_files,
    where_it_reads,
)
from fpjax.inversion.solution import Solution
from fpjax.inversion.solvers.default import default_solver
from fpjax.inversion.solvers.levenberg_marquardt import LevenbergMarquardt
from fpjax.models.jacobian import DEFAULT_MEMORY

Reading = Literal["file", "auto"]

_ROUNDING = 0.0035
"""Residual of a rough fit up to which nothing but rounding to 8 bits is left: 1.5 times that."""

_STALLED_AFTER = 3
"""Jacobians after which a picture that is not explained and hardly moves is read otherwise."""


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
        return _Readings(rows, solution, histories, np.zeros(len(pictures), bool), limits)

    def chosen(self, problem: Problem) -> Reader:
        """Who reads a problem's files first."""
        if self.solver is None:
            return self._briefly(default_reader(problem))
        reader = where_it_reads(self.solver, problem)
        return reader if reader is self.solver else self._briefly(reader)

    def inversion(self, problem: Problem) -> Reader:
        """Who looks again."""
        if self.solver is None or isinstance(self.solver, EncoderReader):
            return self._briefly(default_solver(problem.scheme))
        return self.solver

    def _briefly(self, reader: Reader) -> Reader:
        if self.brief and isinstance(reader, LevenbergMarquardt):
            return dataclasses.replace(reader, stalled_after=_STALLED_AFTER)
        return reader

    def invert(
        self, observations, pictures, choose: Callable[[Problem], Reader], starts=None
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
            problem = Problem(self.scheme, shared)
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
    shape = reader.scheme.generator.image_shape
    chosen = [pictures[row] for row in rows]
    histories, jpegs = [], []
    for picture in chosen:
        jpeg, words = picture.jpeg, picture.history
        if jpeg is None and (found := once_jpeg(picture)) is not None:
            jpeg, words = found[0], " and ".join(part for part in (found[1], words) if part)
        jpegs.append(jpeg)
        histories.append(words)
    believed = np.array(
        [
            jpeg is not None and picture.jpeg is None
            for picture, jpeg in zip(chosen, jpegs, strict=True)
        ]
    )
    coarse = [
        sized(picture, shape, with_noise(jpeg, 0.0 if known else COARSE_NOISE))
        for picture, jpeg, known in zip(chosen, jpegs, believed, strict=True)
    ]
    rough, limits = reader.invert(coarse, chosen, reader.inversion)
    doubted = np.flatnonzero(believed & ~(rough.noise_ratio <= limits))
    if len(doubted):
        # It was no JPEG, or more has happened: its tables do not explain it.
        believed[doubted] = False
        for i in doubted:
            jpegs[i], histories[i] = None, chosen[i].history
        noisy = [sized(chosen[i], shape, with_noise(None, COARSE_NOISE)) for i in doubted]
        other, _ = reader.invert(noisy, [chosen[i] for i in doubted], reader.inversion)
        order = np.arange(len(chosen))
        order[doubted] = len(chosen) + np.arange(len(doubted))
        rough = Solution.concatenate([rough, other]).take(order)
    observations, guessed = [], ~believed
    for i, (picture, jpeg) in enumerate(zip(chosen, jpegs, strict=True)):
        if believed[i]:
            observations.append(coarse[i])
            continue
        std = added_noise(float(rough.residual[i]), jpeg)
        if jpeg is None and std < _ROUNDING:
            # The encoder misread it: there is no noise but that of the file.
            guessed[i] = False
            observations.append(stated(picture, shape))
            continue
        histories[i] = " and ".join(part for part in (f"noise of {std:.3f}", histories[i]) if part)
        observations.append(sized(picture, shape, with_noise(jpeg, std)))
    starts = _unknowns(reader.scheme, rough)
    solution, limits = reader.invert(observations, chosen, reader.inversion, starts[:, None])
    return _Readings(np.asarray(rows), solution, histories, guessed, limits)


def _unknowns(scheme: Scheme, solution: Solution) -> np.ndarray:
    centre, half = level_range(scheme.levels)
    symbols = centre + 2 * half * (solution.soft_bits - 0.5)
    return np.concatenate([solution.alpha, symbols], axis=1).astype(np.float32)


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
