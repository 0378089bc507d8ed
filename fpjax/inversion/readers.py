"""Who reads the keys of files: an inversion, or the generator's encoder alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Shaped

from fpjax.errors import InputError
from fpjax.inversion.driver import invert
from fpjax.inversion.encoder_reader import EncoderReader
from fpjax.inversion.problem import Problem
from fpjax.inversion.solution import Solution
from fpjax.inversion.solvers.base import Solver
from fpjax.inversion.solvers.default import default_solver
from fpjax.models.jacobian import DEFAULT_MEMORY

Reader = Solver | EncoderReader


def default_reader(problem: Problem) -> Reader:
    """The encoder, where the scheme was calibrated to be read by it and the files are seen as they
    were then; else `default_solver`.

    >>> from fpjax.fingerprint.scheme import load_scheme
    >>> default_reader(Problem(load_scheme("avatars-stylegan2"))).name
    'levenberg-marquardt'
    """
    calibration = problem.scheme.calibration
    if (
        calibration is not None
        and calibration.encoder is not None
        and calibration.solver == EncoderReader.name
    ):
        return where_it_reads(EncoderReader.of(problem.scheme), problem)
    return default_solver(problem.scheme)


def where_it_reads(reader: Reader, problem: Problem) -> Reader:
    """A reader, or `default_solver` where it is an encoder that was not measured on such files."""
    if isinstance(reader, EncoderReader) and reader.refuses(problem) is not None:
        return default_solver(problem.scheme)
    return reader


LEAST_EXPLAINED = 1.5
"""Residual that counts as explained at least: 1 is what was expected."""


def explained_limit(problem: Problem, reader: Reader) -> float:
    """Residual up to which a file counts as explained: as calibrated, where it was calibrated on
    such files and by such a reader."""
    calibration = problem.scheme.calibration
    if (
        calibration is None
        or calibration.observation != problem.observation.name
        or (calibration.solver == EncoderReader.name) != isinstance(reader, EncoderReader)
    ):
        return LEAST_EXPLAINED
    return calibration.max_noise_ratio


def read_files(
    problem: Problem,
    images: Shaped[Array | np.ndarray, "batch height width channels"],
    reader: Reader,
    *,
    starts: Float[np.ndarray, "*images starts unknowns"] | None = None,
    memory: int = DEFAULT_MEMORY,
    mesh: Mesh | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Solution:
    """`invert`, or what the encoder reads; the arguments are those of `invert`.

    Raises:
      InputError: if the reader does not take the problem or the images.
    """
    if not isinstance(reader, EncoderReader):
        return invert(
            problem, images, reader, starts=starts, memory=memory, mesh=mesh, progress=progress
        )
    if (reason := reader.refuses(problem)) is not None:
        raise InputError(reason)
    return reader.read(problem.scheme, images, progress)
