"""Which solver a scheme's images are inverted with, where nobody says."""

from __future__ import annotations

import math

from fpjax.fingerprint.block_basis import BlockBasis
from fpjax.fingerprint.scheme import Scheme
from fpjax.inversion.solvers.base import Solver
from fpjax.inversion.solvers.levenberg_marquardt import LevenbergMarquardt
from fpjax.inversion.solvers.matrix_free import MatrixFree

_FOREIGN = 10.0
"""The limit is so many times what own files leave after one Jacobian, in steps of ten, so that
schemes share programs."""

_LEAST_FOREIGN = 60.0
"""The limit is never below so many times the noise."""


def default_solver(scheme: Scheme) -> Solver:
    """`MatrixFree()` for latents with a picture's shape (a basis in blocks), else
    `LevenbergMarquardt()`, which gives up what leaves ten times as much after a first Jacobian as
    the files that the scheme was calibrated on: 60 times the noise at least, 130 at most, whatever
    the observation.

    >>> from fpjax.fingerprint.scheme import load_scheme
    >>> default_solver(load_scheme("avatars-stylegan2")).name
    'levenberg-marquardt'
    """
    if isinstance(scheme.basis, BlockBasis):
        return MatrixFree()
    first = None if scheme.calibration is None else scheme.calibration.first_noise_ratio
    if first is None:
        return LevenbergMarquardt()
    foreign = max(_LEAST_FOREIGN, 10 * math.ceil(_FOREIGN * first / 10))
    return LevenbergMarquardt(foreign_ratio=min(foreign, LevenbergMarquardt.foreign_ratio))
