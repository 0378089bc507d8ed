"""Readings of files: the first, and a second look at what that does not explain.

A second look does not know what was done to a picture. It looks for a window, a kernel and a map of
colours as unknowns of the inversion, and for noise of unknown power. Much noise is assumed first,
and less from where the last inversion ended, until what is left is what was assumed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from fpjax.attribution.pictures import (
    MUCH_NOISE,
    Picture,
    added_noise,
    at_size,
    once_jpeg,
    sized,
    with_noise,
)
from fpjax.fingerprint.keys import level_range
from fpjax.fingerprint.scheme import Scheme
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


@dataclasses.dataclass(frozen=True, eq=False)
class Readings:
    """Some of the pictures, read once."""

    rows: np.ndarray
    solution: Solution
    histories: list[str]
    guessed: np.ndarray
    """Whether the noise was estimated, so that the residual says nothing."""
    limits: np.ndarray
    """Residuals up to which the pictures count as explained."""

    def take(self, chosen: np.ndarray, rows: np.ndarray) -> Readings:
        """Those of a mask (n,), which are the pictures `rows`."""
        places = np.flatnonzero(chosen)
        return Readings(
            rows,
            self.solution.take(places),
            [self.histories[i] for i in places],
            self.guessed[places],
            self.limits[places],
        )

    @classmethod
    def together(cls, parts: list[Readings]) -> Readings:
        """Readings of different pictures as one."""
        return cls(
            np.concatenate([part.rows for part in parts]),
            Solution.concatenate([part.solution for part in parts]),
            [words for part in parts for words in part.histories],
            np.concatenate([part.guessed for part in parts]),
            np.concatenate([part.limits for part in parts]),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class FileReader:
    """What files are read with, and who reads them."""

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

    def read(self, observations: list[Observation], pictures: list[Picture]) -> Readings:
        """All pictures, those of one kind of observation together."""
        solution, limits = self.invert(observations, pictures, self.chosen)
        rows, histories = np.arange(len(pictures)), [picture.history for picture in pictures]
        going = np.flatnonzero(
            (solution.status == Status.MAX_STEPS) & (solution.noise_ratio < _PROMISING)
        )
        # Somebody's own solver ends where it says.
        own = self.solver is not None and not isinstance(self.solver, EncoderReader)
        if self.brief and not own and len(going):
            further, _ = self.invert(
                [observations[i] for i in going],
                [pictures[i] for i in going],
                self.inversion,
                starts=_unknowns(self.scheme, solution.take(going))[:, None],
            )
            solution = _replaced(solution, going, further)
        return Readings(rows, solution, histories, np.zeros(len(pictures), bool), limits)

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


def second_look(reader: FileReader, pictures: list[Picture], rows: np.ndarray) -> Readings:
    """Another look at pictures that the file alone does not explain."""
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


def _degraded(reader: FileReader, pictures: list[Picture], rows: np.ndarray) -> Readings:
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
    return Readings(rows, solution, histories, np.array(guessed), limits)


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
