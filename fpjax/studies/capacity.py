"""How many users a fingerprint tells apart: shares of images that name theirs among N.

An image is inverted once. Its true key then has a p-value, and a registry of N users names it where
the family-wise p-value, over N keys and two statistics, is at most the rate that is asked for: no
registry need be made, for any N. The best of N - 1 wrong keys is not drawn either: its score has a
known distribution, the tail to the power of N - 1. Small registries are simulated as a check
(`capacity_run.py`).

The same is predicted from Jacobians alone, without inverting: the information S of natural latents
says how an inversion would scatter. The random-coding bound is Feinstein's: a key whose information
density is i bits has a tail of at most 2^-i, so that it is named among N users at rate r where
i >= log2(2 N / r).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fpjax.attribution.tails import SoftTails, matching_tail
from fpjax.errors import InputError
from fpjax.fingerprint.codes import Code, code_named
from fpjax.studies.curvature import decide_symbols

SHARES = (0.5, 0.9)
"""Shares of images for which the usable number of users is given."""
PAPER_BITS = 64
"""The published claim: a capacity of 2^64."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """A choice whose capacity is looked at.

    Attributes:
      code: "independent-L" for L random bits, or a name of `code_named`.
      psnr: decibels between original and fingerprinted, on average.
      noise: standard deviation of noise in the file, images in [-1, 1]; 0 is rounding alone.

    Raises:
      InputError: for a code that there is not, or values that cannot be.

    >>> Cell("bch-63-45", 40.0).num_symbols, Cell("independent-32", 40.0).payload_bits
    (63, 32)
    """

    code: str
    psnr: float
    noise: float = 0.0

    def __post_init__(self):
        self.made_code()
        if not math.isfinite(self.psnr) or not 0 <= self.noise <= 2:
            raise InputError(f"psnr {self.psnr}, noise {self.noise}: expected decibels, and 0 to 2")

    def made_code(self, mask: str = "") -> Code | None:
        """The code, None for independent bits.

        Args:
          mask: of its words; studies draw them repeatably.
        """
        if self._independent() is not None:
            return None
        try:
            code: Any = code_named(self.code, masked=False)
        except ValueError as error:
            raise InputError(f"{error}; or 'independent-BITS'") from None
        if code is None:
            raise InputError("code 'independent': say of how many bits, such as independent-64")
        return dataclasses.replace(code, mask=mask)

    @property
    def num_symbols(self) -> int:
        """Fingerprint directions, L."""
        code = self.made_code()
        return (self._independent() or 0) if code is None else code.num_symbols

    @property
    def payload_bits(self) -> int:
        """Bits of a user's key."""
        code = self.made_code()
        return (self._independent() or 0) if code is None else code.payload_bits

    @property
    def name(self) -> str:
        """Stable, and fit for a file's name."""
        return f"{self.code}_{self.psnr:g}dB_{self.noise:g}"

    def _independent(self) -> int | None:
        kind, _, bits = self.code.partition("-")
        fine = kind == "independent" and bits.isascii() and bits.isdigit() and 0 < int(bits) <= 4096
        return int(bits) if fine else None


class Evidence(NamedTuple):
    """What N images say about the key that is in them.

    Attributes:
      p_matching: (N,) p-value of the true key's matching symbols.
      p_soft: (N,) p-value of its soft score; 1 where there is no information.
      density: (N,) bits that the image says for it.
      exact: (N,) whether its bits are read right without any list of keys.
      wrong: (N,) share of symbols that are decided wrongly.
    """

    p_matching: np.ndarray
    p_soft: np.ndarray
    density: np.ndarray
    exact: np.ndarray
    wrong: np.ndarray


def evidence_of(
    words: np.ndarray,
    decided: np.ndarray,
    information: np.ndarray,
    linear: np.ndarray,
    code: Code | None = None,
) -> Evidence:
    """Evidence of images for their true words.

    Args:
      words: (N, L) true bits of the symbols.
      decided: (N, L) bits as they were decided one by one.
      information: (N, L, L) about symbols -1 and +1.
      linear: (N, L).
      code: what the words are of; None for independent bits.

    >>> words = np.ones((1, 8), int)
    >>> found = evidence_of(words, words, np.eye(8)[None] * 100, 100.0 * np.ones((1, 8)))
    >>> found.p_matching.tolist(), found.density.round(1).tolist(), found.exact.tolist()
    ([0.00390625], [8.0], [True])
    """
    count, length = words.shape
    finite = np.isfinite(information).all((1, 2)) & np.isfinite(linear).all(1)
    p_soft, density = np.ones(count), np.full(count, -np.inf)
    exact = (decided == words).all(1)
    rows = np.flatnonzero(finite)
    if len(rows):
        tails = SoftTails(information[rows], linear[rows])
        p_soft[rows] = tails.p_values(words[rows, None])[:, 0]
        density[rows] = tails.information_density(words[rows, None])[:, 0]
        if code is not None:
            read, _ = code.decode(information[rows], linear[rows])
            exact[rows] = (code.encode(read) == words[rows]).all(1)
    matches = (decided == words).sum(1)
    p_matching = np.asarray(matching_tail(length, matches))
    return Evidence(p_matching, p_soft, density, exact, 1 - matches / length)


def drawn_evidence(
    information: np.ndarray, draws: int, code: Code | None = None, seed: int = 0
) -> Evidence:
    """Evidence as inversions are expected to give it: estimates drawn from the information.

    The linear term of a true word k is S k and noise of covariance S.

    Args:
      information: (M, L, L) about symbols -1 and +1, of M latents.
      draws: of each.
      code: see `evidence_of`.
      seed: of words and noise.

    >>> drawn_evidence(np.eye(8)[None] * 1e4, 2).exact.tolist()
    [True, True]
    """
    rng = np.random.default_rng(seed)
    length = information.shape[1]
    parts = []
    for matrix in np.asarray(information, np.float64):
        if code is None:
            words = rng.integers(0, 2, (draws, length))
        else:
            words = code.encode(rng.integers(0, 2, (draws, code.payload_bits)))
        values, vectors = np.linalg.eigh(matrix)
        values = np.maximum(values, 0)
        symbols = 2.0 * words - 1
        noise = rng.standard_normal((draws, length)) * np.sqrt(values)
        linear = (symbols @ vectors * values + noise) @ vectors.T
        mean = (linear @ vectors / (values + 1)) @ vectors.T
        decided = decide_symbols(mean, (vectors / (values + 1)) @ vectors.T) > 0
        repeated = np.repeat(((vectors * values) @ vectors.T)[None], draws, axis=0)
        parts.append(evidence_of(words, decided.astype(int), repeated, linear, code))
    return Evidence(*(np.concatenate(part) for part in zip(*parts, strict=True)))


class Curve(NamedTuple):
    """Shares of images among N users, each (len(users),).

    Attributes:
      right: named, and rightly.
      wrong: expected share that names somebody else; below half the rate, since what is compared
        with the best wrong key is the better of two statistics that are both counted.
      closed: would be right if the best of N keys were always named: no rate, and one statistic.
    """

    right: np.ndarray
    wrong: np.ndarray
    closed: np.ndarray


def curve(evidence: Evidence, users: Sequence[float], rate: float) -> Curve:
    """Shares among N users at a family-wise false-positive rate.

    >>> sure = Evidence(*(np.array([value]) for value in (1e-19, 1e-19, 64.0, 1.0, 0.0)))
    >>> curve(sure, [10.0, 1e9, 1e15], 1e-6).right.round(6).tolist()
    [1.0, 1.0, 0.0]
    """
    counts = np.asarray(users, np.float64)[:, None]
    p = np.minimum(evidence.p_matching, evidence.p_soft)[None]
    named = 2 * counts * p <= rate
    # Of N - 1 wrong keys the best one's p-value is below x with chance 1 - (1 - x)^(N - 1).
    before = -np.expm1((counts - 1) * np.log1p(-np.minimum(p, 1 - 1e-16)))
    limit = np.minimum(p, rate / (2 * counts))
    wrong = -np.expm1((counts - 1) * np.log1p(-np.minimum(limit, 1 - 1e-16)))
    soft = np.minimum(evidence.p_soft[None], 1 - 1e-16)
    closed = np.exp((counts - 1) * np.log1p(-soft))
    return Curve((named * (1 - before)).mean(1), wrong.mean(1), closed.mean(1))


def coding_bound(evidence: Evidence, users: Sequence[float], rate: float) -> np.ndarray:
    """Feinstein's lower bound on the share that is named rightly, (len(users),)."""
    needed = np.log2(2 * np.asarray(users, np.float64) / rate)
    return (evidence.density[None] >= needed[:, None]).mean(1)


def usable_users(evidence: Evidence, share: float, rate: float, payload_bits: int) -> float:
    """Largest N among which at least this share of images is named at this rate; 0 if none is.

    There are no more users than keys, 2^payload_bits.

    >>> sure = Evidence(*(np.array([value]) for value in (1.0, 1e-12, 40.0, 1.0, 0.0)))
    >>> f"{usable_users(sure, 0.9, 1e-6, 64):.3g}"
    '5e+05'
    """
    p = np.sort(np.minimum(evidence.p_matching, evidence.p_soft))
    needed = max(1, math.ceil(share * len(p) - 1e-9))
    found = min(rate / (2 * p[needed - 1]), 2.0**payload_bits)
    return float(np.floor(found)) if found >= 1 else 0.0
