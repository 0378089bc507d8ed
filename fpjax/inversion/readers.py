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
    if calibration is not None and calibration.solver == EncoderReader.name:
        reader = EncoderReader.of(problem.scheme)
        if reader.refuses(problem) is None:
            return reader
    return default_solver(problem.scheme)


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
    found = reader.read(problem.scheme, images)
    if progress is not None:
        progress(len(found), len(found))
    return found
