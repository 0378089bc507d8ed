"""What every solver returns: estimates, evidence, and how the inversion of each image ended."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8


class Status(enum.IntEnum):
    """How the inversion of an image ended.

    >>> Status(0).name
    'SOLVED'
    """

    SOLVED = 0
    """The residual is down at the noise: the generator made this image."""
    CONVERGED = 1
    """No step makes it better, and more than noise is left."""
    MAX_STEPS = 2
    """The step limit came first."""
    NOT_FINITE = 3
    """The image or the generator gave values that are not finite."""
    SUPERSEDED = 4
    """Another start of the same image was solved first, or is the same; this one stopped."""
    UNEXPLAINED = 5
    """So far from the noise after its first steps that nothing here explains the image."""


RUNNING = -1
"""Status of a lane that is not finished."""


@dataclasses.dataclass(frozen=True, eq=False)
class Solution:
    """Inversion of B images.

    Attributes:
      keys: (B, L) uint8, the decoded bits.
      soft_bits: (B, L) float32, the relaxed bits before the decision; 0.5 is undecided.
      alpha: (B, K - L) float32.
      residual: (B,) float32, root-mean-square difference on [-1, 1] over the file's unsaturated
        pixels, of what the observation makes of the picture where it filters.
      noise_ratio: (B,) float32, residual in units of the observation's own noise; about 1 where
        nothing but noise is left.
      loss: (B,) float32, final value of what was minimised: nats, up to a constant.
      steps: (B,) int32, steps taken by the start that won.
      status: (B,) int32 of `Status`.
      information: (B, L, L) float32 Fisher information S about the symbols once alpha is profiled
        out, without any prior on the symbols; None where the solver does not compute it.
      linear: (B, L) float32, h: the negative log-likelihood of symbols k, alpha profiled out, is
        k^T S k / 2 - h^T k up to a constant, so that S k_hat = h for the best k_hat.
      parameters: (B, P) float32 of the problem's degradation, in the order of its `names`; None
        where none was looked for.

    >>> nothing = np.zeros((1, 0), np.float32)
    >>> one = np.ones(1, np.float32)
    >>> found = Solution(keys=np.ones((1, 2), np.uint8), soft_bits=np.ones((1, 2), np.float32),
    ...     alpha=nothing, residual=one, noise_ratio=one, loss=one, steps=np.ones(1, np.int32),
    ...     status=np.zeros(1, np.int32), information=np.eye(2, dtype=np.float32)[None],
    ...     linear=np.ones((1, 2), np.float32))
    >>> found.score(np.asarray([[1.0, -1.0]])).tolist()
    [4.0]
    """

    keys: UInt8[np.ndarray, "batch length"]
    soft_bits: Float[np.ndarray, "batch length"]
    alpha: Float[np.ndarray, "batch coordinates"]
    residual: Float[np.ndarray, " batch"]
    noise_ratio: Float[np.ndarray, " batch"]
    loss: Float[np.ndarray, " batch"]
    steps: Int[np.ndarray, " batch"]
    status: Int[np.ndarray, " batch"]
    information: Float[np.ndarray, "batch length length"] | None = None
    linear: Float[np.ndarray, "batch length"] | None = None
    parameters: Float[np.ndarray, "batch parameters"] | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def score(self, symbols: np.ndarray) -> Float[np.ndarray, " batch"]:
        """D = (k - k_hat)^T S (k - k_hat) of one candidate an image, (B,) float64.

        For the true symbols it has mean L. Directions of the key that an image says nothing about
        add nothing.

        Args:
          symbols: (B, L) in the scheme's levels.
        """
        if self.information is None or self.linear is None:
            raise ValueError("this solver computes no information about the key")
        information = np.asarray(self.information, np.float64)
        values, vectors = np.linalg.eigh((information + information.swapaxes(1, 2)) / 2)
        floor = 1e-6 * np.maximum(values[:, -1:], 1e-30)
        known = values > floor
        rotated = np.einsum("bij,bi->bj", vectors, np.asarray(self.linear, np.float64))
        coordinates = np.einsum("bij,bi->bj", vectors, np.asarray(symbols, np.float64))
        best = np.where(known, rotated / np.where(known, values, 1), 0)
        return np.sum(np.where(known, values * (coordinates - best) ** 2, 0), axis=1)

    @classmethod
    def concatenate(cls, parts: list[Solution]) -> Solution:
        """One solution of several, in order."""

        def join(name):
            values = [getattr(part, name) for part in parts]
            return None if any(v is None for v in values) else np.concatenate(values)

        values: dict[str, Any] = {f.name: join(f.name) for f in dataclasses.fields(cls)}
        return cls(**values)

    def take(self, rows) -> Solution:
        """The solution of some of the images."""
        whole = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values: dict[str, Any] = {k: None if v is None else v[rows] for k, v in whole.items()}
        return Solution(**values)
