"""Readings of files, and who reads them: briefly first, then to the end.

A clean file is explained by two Jacobians. What is far from that after the first or the second is
left to a second look (`second_look.py`), which knows more of what may have been done to it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from fpjax.attribution.pictures import LEAST_NOISE, Picture, at_size, more_noise, on_device
from fpjax.fingerprint.scheme import Scheme
from fpjax.inversion.degradation import Degradation
from fpjax.inversion.driver import invert
from fpjax.inversion.encoder_reader import EncoderReader
from fpjax.inversion.observation import ROUNDING_STD, Observation, PerImage
from fpjax.inversion.problem import Problem
from fpjax.inversion.readers import (
    LEAST_EXPLAINED,
    Reader,
    default_reader,
    explained_limit,
    read_files,
    where_it_reads,
)
from fpjax.inversion.solution import Solution, Status
from fpjax.inversion.solvers.default import default_solver
from fpjax.inversion.solvers.levenberg_marquardt import LevenbergMarquardt

_BRIEF = 2
"""Jacobians of the first reading, after which a picture that is far from explained is read
otherwise. Clean files are explained by then; after one they have residuals of up to 10."""

_FAR = 3.0
"""Residual after one Jacobian, in units of the largest of own files, from which on a second look
takes over at once."""
_FAR_AT_LEAST = 20.0
"""That residual at least, in units of the noise."""

_PROMISING = 3.0
"""Residual after those, in units of the noise, up to which the first reading goes on."""

_MORE = 1.08
"""Residual of a JPEG file, in units of what its tables make of the picture that was found, from
which on more has happened to it. 76 own files of quality 95 to 50 had 0.96 to 1.03, 16 with a blur
and noise of 0.1 before quality 50 had 1.16 to 1.6. As much more is allowed as a scheme's own files
leave beside rounding."""

_MORE_NOISE = 0.02
"""Noise that explains as much more, from which on that is seen before the first reading ends. Of 64
JPEG files of quality 95 to 50, those that had left as much more by then (they had not converged)
had 0.013 at most, and with quality 50 none had; 16 with noise of 0.05 before quality 75 had 0.022
to 0.038."""

_STALLED_AFTER = 3
"""Jacobians after which a picture that is not explained and hardly moves is given up."""

_MOST_STEPS, _SMALL = 10, 64
"""Jacobians of a look at a picture, of up to so many pixels a side, that may have other
explanations. Own files took 2 to 5 after JPEG, up to 8 in second looks; larger pictures, whose
prior is tempered, take more."""

_ROUGHLY = {"max_steps": 1, "tolerance": 0.2}
"""While the noise is not known, one Jacobian and its inner steps."""


@dataclasses.dataclass(frozen=True, eq=False)
class Readings:
    """Some of the pictures, read once."""

    rows: np.ndarray
    solution: Solution
    histories: list[str]
    guessed: np.ndarray
    """Whether the noise was estimated, so that the residual says nothing."""
    limits: np.ndarray
    """Residuals up to which the pictures count as explained; 0 for a JPEG file that leaves more
    than its tables make."""

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
        """Readings of different pictures as one; parameters of a degradation are not numbers where
        none was looked for."""
        solutions = [part.solution for part in parts]
        known = [found.parameters for found in solutions if found.parameters is not None]
        if known:
            size = known[0].shape[1]
            solutions = [
                found
                if found.parameters is not None
                else dataclasses.replace(
                    found, parameters=np.full((len(found), size), np.nan, np.float32)
                )
                for found in solutions
            ]
        return cls(
            np.concatenate([part.rows for part in parts]),
            Solution.concatenate(solutions),
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
        more, noise = self._beyond_tables(solution, observations, pictures)
        promising = (solution.status == Status.MAX_STEPS) & (solution.noise_ratio < _PROMISING)
        going = np.flatnonzero(promising & ~(more & (noise > _MORE_NOISE)))
        # Somebody's own solver ends where it says.
        if self.brief and not self._own and len(going):
            further, _ = self.invert(
                [observations[i] for i in going],
                [pictures[i] for i in going],
                self.inversion,
                starts=Problem(self.scheme).unknowns_of(
                    solution.alpha[going], solution.soft_bits[going]
                )[:, None],
            )
            solution = replaced(solution, going, further)
            more[going], _ = self._beyond_tables(
                further, [observations[i] for i in going], [pictures[i] for i in going]
            )
        limits = np.where(more, 0.0, limits)
        return Readings(rows, solution, histories, np.zeros(len(pictures), bool), limits)

    @property
    def _own(self) -> bool:
        """Whether somebody's own solver reads."""
        return self.solver is not None and not isinstance(self.solver, EncoderReader)

    def _beyond_tables(
        self, solution: Solution, observations: list[Observation], pictures: list[Picture]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Which pictures (n,) are JPEG files that leave more than their tables make of what was
        found, and what noise explains that. Nobody asks where only the file is believed, or
        somebody's own solver reads."""
        more, noise = np.zeros(len(pictures), bool), np.zeros(len(pictures))
        if not self.brief or self._own or all(picture.jpeg is None for picture in pictures):
            return more, noise
        calibration, usual = self.scheme.calibration, 1.0
        if calibration is not None and calibration.solver != EncoderReader.name:
            usual = max(usual, calibration.own_noise_ratio)
        problem = on_device(self.scheme)
        points = problem.unknowns_of(solution.alpha, solution.soft_bits)
        for row, (picture, observation) in enumerate(zip(pictures, observations, strict=True)):
            if picture.jpeg is not None and solution.noise_ratio[row] <= LEAST_EXPLAINED:
                found = more_noise(problem, points[row], observation, picture.jpeg)
                # What files leave beside their noise is less of a compression's than of rounding's.
                own = float(picture.jpeg.pixel_std) / ROUNDING_STD
                limit = math.sqrt(_MORE**2 + (usual**2 - 1) / own**2)
                more[row] = found.excess > limit and found.std > 2 * LEAST_NOISE
                noise[row] = found.std
        return more, noise

    def chosen(self, problem: Problem) -> Reader:
        """Who reads a problem's files first."""
        if self.solver is None:
            return self._briefly(default_reader(problem), problem)
        reader = where_it_reads(self.solver, problem)
        return reader if reader is self.solver else self._briefly(reader, problem)

    def inversion(self, problem: Problem) -> Reader:
        """Who looks again."""
        if self.solver is None or isinstance(self.solver, EncoderReader):
            settings = {"stalled_after": _STALLED_AFTER}
            if max(problem.scheme.generator.image_shape[:2]) <= _SMALL:
                settings["max_steps"] = _MOST_STEPS
            return self._changed(default_solver(problem.scheme), **settings)
        return self.solver

    def rough(self, problem: Problem) -> Reader:
        """Who looks again while the noise is not known."""
        reader = self.inversion(problem)
        return reader if reader is self.solver else self._changed(reader, **_ROUGHLY)

    @property
    def looks_roughly(self) -> bool:
        """Whether `rough` ends sooner than `inversion`."""
        problem = Problem(self.scheme)
        return self.rough(problem) != self.inversion(problem)

    def _briefly(self, reader: Reader, problem: Problem) -> Reader:
        if not self.brief or not isinstance(reader, LevenbergMarquardt):
            return reader
        calibration, limit = problem.scheme.calibration, reader.foreign_ratio
        if calibration is not None and calibration.first_noise_ratio is not None:
            # In tens, so that schemes share programs; what a start led astray is not given up.
            far = 10 * math.ceil(_FAR * calibration.first_noise_ratio / 10)
            limit = min(limit, max(_FAR_AT_LEAST, far))
        return dataclasses.replace(reader, max_steps=_BRIEF, foreign_ratio=limit)

    def _changed(self, reader: Reader, **settings) -> Reader:
        if self.brief and isinstance(reader, LevenbergMarquardt):
            # What looks foreign at first may be the generator's own, cropped.
            return dataclasses.replace(reader, foreign_ratio=math.inf, **settings)
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


def replaced(solution: Solution, rows: np.ndarray, other: Solution) -> Solution:
    """A solution of which some images' is another one."""
    order = np.arange(len(solution))
    order[rows] = len(solution) + np.arange(len(rows))
    return Solution.concatenate([solution, other]).take(order)
