"""What every solver returns."""

from __future__ import annotations

import dataclasses
import enum

import numpy as np


class Status(enum.IntEnum):
    """How the inversion of an image ended."""

    SOLVED = 0
    """The residual is down at the noise: the generator made this image."""
    CONVERGED = 1
    """No step makes it better, and more than noise is left."""
    MAX_STEPS = 2
    """The step limit came first."""
    NOT_FINITE = 3
    """The image or the generator gave values that are not finite."""


@dataclasses.dataclass(frozen=True, eq=False)
class Solution:
    """Inversion of B images.

    Attributes:
      keys: (B, L) uint8, the decoded bits.
      soft_bits: (B, L) float32, the relaxed bits before the decision; 0.5 is undecided.
      alpha: (B, K - L) float32.
      residual: (B,) float32, root-mean-square difference on [-1, 1] over unsaturated pixels.
      noise_ratio: (B,) float32, `residual` in units of the expected noise.
      loss: (B,) float32, final value of what the solver minimised.
      steps: (B,) int32, steps taken by the start that won.
      status: (B,) int32 of `Status`.
      information: (B, L, L) float32 Fisher information about the levels once alpha is profiled
        out, or None where the solver does not compute it.
    """

    keys: np.ndarray
    soft_bits: np.ndarray
    alpha: np.ndarray
    residual: np.ndarray
    noise_ratio: np.ndarray
    loss: np.ndarray
    steps: np.ndarray
    status: np.ndarray
    information: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.keys)
