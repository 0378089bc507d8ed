"""Which solver a scheme's images are inverted with, where nobody says."""

from __future__ import annotations

from fpjax.fingerprint.block_basis import BlockBasis
from fpjax.fingerprint.scheme import Scheme
from fpjax.inversion.solvers.base import Solver
from fpjax.inversion.solvers.levenberg_marquardt import LevenbergMarquardt
from fpjax.inversion.solvers.matrix_free import MatrixFree


def default_solver(scheme: Scheme) -> Solver:
    """`MatrixFree()` for latents with a picture's shape (a basis in blocks), else
    `LevenbergMarquardt()`.

    >>> from fpjax.fingerprint.scheme import load_scheme
    >>> default_solver(load_scheme("avatars-stylegan2")).name
    'levenberg-marquardt'
    """
    return MatrixFree() if isinstance(scheme.basis, BlockBasis) else LevenbergMarquardt()
