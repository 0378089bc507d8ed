"""Which solver a scheme's images are inverted with, where nobody says."""

from __future__ import annotations

import math

from fpjax.fingerprint.block_basis import BlockBasis
from fpjax.fingerprint.scheme import Scheme
from fpjax.inversion.solvers.base import Solver
from fpjax.inversion.solvers.levenberg_marquardt import LevenbergMarquardt
from fpjax.inversion.solvers.matrix_free import MatrixFree

_FOREIGN = 10.0
"""Times what own files leave after one Jacobian, from which on nothing here made a file."""

_LEAST_FOREIGN = 60.0
"""Times the noise that foreign files leave, at least."""


def default_solver(scheme: Scheme) -> Solver:
    """`MatrixFree()` for latents with a picture's shape (a basis in blocks), else
    `LevenbergMarquardt()`, which gives up what leaves ten times as much after a first Jacobian as
    the files that the scheme was calibrated on.

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
