"""Exact false-positive rates: how often a key drawn at random would fit an image so well.

Registered keys are secret, uniformly random and independent of the image. For an image made without
them, whatever it is and however it was processed, the score of a registered key is therefore
distributed, given the image, as the score of a uniformly random key. Its tail is a property of that
one image and can be computed: no sample of other images, no extrapolation, nothing to calibrate.

What this needs: keys drawn uniformly (a minimum distance between keys keeps each key's own
distribution uniform, by symmetry; the words of a linear code need a secret random mask), and
independent of the image. It says nothing about somebody who knows a key.

Two statistics have tails here. Matching bits are binomial (`matching_tail`). The soft score, the
energy of a key under the image's information (`fpjax.fingerprint.energy`), is computed from a
weighted sample of keys, in two ways:

* `soft_p_values(information, linear, bits)`, for verdicts: a p-value of the given keys that is
  valid at every number of samples, with no assumption about the weights.
* `soft_tail(information, linear, score)`, for a score without its key: an unbiased estimate and an
  upper confidence bound, whose assumption is stated there.
"""

from __future__ import annotations

import concurrent.futures
import functools
import math
from typing import NamedTuple

import numpy as np
from scipy.special import gammaincinv

from fpjax.attribution.key_sample import (
    draw_key_sample,
    log_weight_bound,
    log_weights_of,
)
from fpjax.fingerprint.energy import (
    Levels,
    Quadratic,
    antipodal_form,
    energies,
    rounding_slack,
)

NUM_SAMPLES = 20_000
_LN10 = math.log(10.0)


def matching_tail(length: int, matches) -> np.ndarray | float:
    """Probability that a uniformly random key agrees with given bits in at least so many places.

    The sum of binomial coefficients is done in whole numbers and rounded once.

    Args:
      length: bits of a key, L.
      matches: integers in [0, L], of any shape.

    Returns:
      float64 of the shape of `matches`; below 1e-308, which takes L > 1000, it loses digits and
      becomes 0: use `log10_matching_tail`.

    Raises:
      ValueError: if a number of matches is not an integer in [0, L].

    >>> matching_tail(8, [0, 7, 8]).tolist()
    [1.0, 0.03515625, 0.00390625]
    """
    table = _binomial_tails(_check_length(length))[0]
    found = table[_check_matches(length, matches)]
    return float(found) if found.ndim == 0 else found


def log10_matching_tail(length: int, matches) -> np.ndarray | float:
    """Decimal logarithm of `matching_tail`, at any length.

    >>> log10_matching_tail(4096, 4096)
    -1233.01...
    """
    table = _binomial_tails(_check_length(length))[1]
    found = table[_check_matches(length, matches)]
    return float(found) if found.ndim == 0 else found


class TailEstimate(NamedTuple):
    """Tails of the soft score of B images at a score each.

    Attributes:
      log10_estimate: (B,) decimal logarithm of the unbiased estimate; -inf if no sampled key has so
        low an energy.
      log10_upper: (B,) decimal logarithm of the upper confidence bound, at most 0.
      relative_error: (B,) standard error over the estimate; inf without a hit.
      hits: (B,) sampled keys at the score or below.
    """

    log10_estimate: np.ndarray
    log10_upper: np.ndarray
    relative_error: np.ndarray
    hits: np.ndarray

    @property
    def estimate(self) -> np.ndarray:
        """The estimate itself, (B,)."""
        return 10.0**self.log10_estimate

    @property
    def upper(self) -> np.ndarray:
        """The upper bound itself, (B,)."""
        return 10.0**self.log10_upper


class SoftTails:
    """The distribution of the soft score over uniform keys, of B images.

    One weighted sample of keys an image answers for all scores and all keys; it takes about 1 MB.
    Its randomness is derived from the image's own numbers, so that the same image gives the same
    answers.

    Args:
      information: (L, L) or (B, L, L), as an inversion returns it: positive semi-definite up to
        rounding, singular or not.
      linear: (L,) or (B, L), h in E(k) = 1/2 k^T S k - h^T k.
      levels: what symbols the information is about, "antipodal" for -1 and +1 or "binary".
      num_samples: keys drawn for each image, N. The relative error is 2 to 6 % at 20,000 where
        decision feedback works, and goes with 1 / sqrt(N).

    Raises:
      ValueError: for shapes that don't belong together, values that aren't finite, or no samples.

    >>> tails = SoftTails(np.eye(3), np.array([3.0, 3.0, -3.0]))
    >>> tails.p_values(np.array([[1, 1, 0], [0, 0, 1]])).round(2).tolist()
    [[0.13, 1.0]]
    """

    def __init__(
        self,
        information,
        linear,
        *,
        levels: Levels = "antipodal",
        num_samples: int = NUM_SAMPLES,
    ) -> None:
        if num_samples < 1:
            raise ValueError(f"num_samples is {num_samples}: expected at least 1")
        self.quadratic: Quadratic = antipodal_form(information, linear, levels)
        self.num_samples = num_samples
        self._slack = rounding_slack(self.quadratic)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            self._samples = list(
                pool.map(
                    lambda image: draw_key_sample(self.quadratic, image, num_samples),
                    range(len(self.quadratic.linear)),
                )
            )
        # Logarithms of sums of weights and of their squares, and greatest weights, over the first
        # 0, 1, ... keys by energy.
        self._sums = [_accumulate(np.logaddexp, s.log_weights) for s in self._samples]
        self._squares = [_accumulate(np.logaddexp, 2 * s.log_weights) for s in self._samples]
        self._greatest = [_accumulate(np.maximum, s.log_weights) for s in self._samples]

    def __len__(self) -> int:
        return len(self._samples)

    def energies(self, bits: np.ndarray) -> np.ndarray:
        """Soft scores of keys (N, L) or (B, N, L) of bits: (B, N) float64, lowest is best."""
        return energies(self.quadratic, bits)

    def p_values(self, bits: np.ndarray) -> np.ndarray:
        """Valid p-values of the soft scores of given keys.

        With weights w of the N sampled keys, and w(k) the weight that the given key k would have
        had, the p-value is

            (w(k) + sum of the w of sampled keys with energy E(k) or less) / (N + 1).

        For a uniform key that is independent of the image it is at most x with probability at most
        x, for every x: whatever the proposals are, however few samples, however heavy the tail of
        the weights (Harrison, "Conservative hypothesis tests and confidence intervals using
        importance sampling", Biometrika 99, 2012). In a sentence: were the key drawn like the
        samples, it would be equally likely to take any rank among them, and w(k) corrects for that.
        Random numbers of 32 bits and rounding change the probability by a relative 10^-3 at most.
        Where sampling misses the key's neighbourhood, w(k) is large and says so. The p-value is
        never below 2^-L, the least that any key can have.

        Args:
          bits: (N, L) keys of 0 and 1, tried on every image, or (B, N, L) others for each.

        Returns:
          (B, N) float64 in (0, 1].

        Raises:
          ValueError: if the keys have another length.
        """
        return 10.0 ** self.log10_p_values(bits)

    def log10_p_values(self, bits: np.ndarray) -> np.ndarray:
        """Decimal logarithms of `p_values`, for keys so long that 2^-L is no float64."""
        scores = energies(self.quadratic, bits)
        bits = np.broadcast_to(np.asarray(bits), (len(self), *np.shape(bits)[-2:]))
        found = np.empty(scores.shape)
        for image, sample in enumerate(self._samples):
            hits = self._hits(image, scores[image])
            own = log_weights_of(sample.mixture, bits[image])
            found[image] = np.logaddexp(own, self._sums[image][hits])
        found -= math.log(self.num_samples + 1)
        return np.clip(found, -bits.shape[-1] * math.log(2), 0.0) / _LN10

    def information_density(self, bits: np.ndarray) -> np.ndarray:
        """Bits that the image says for each key: log2 of p(image | key) / p(image).

        p(image) is the mean over uniform keys, estimated from the weighted sample. The tail of the
        soft score at a key is never above 2^-density (Markov's inequality), which is what
        random-coding bounds rest on.

        Args:
          bits: (N, L) keys, or (B, N, L) others for each image.

        Returns:
          (B, N) float64.
        """
        scores = energies(self.quadratic, bits)
        for image, sample in enumerate(self._samples):
            evidence = np.logaddexp.reduce(sample.log_weights - sample.energies)
            scores[image] = -scores[image] - (evidence - math.log(self.num_samples))
        return scores / math.log(2)

    def at(self, scores, *, confidence: float = 0.99) -> TailEstimate:
        """Estimates of P(E(k) <= score) over uniform keys, for scores without their keys.

        The upper bound is the Poisson one with weights in place of counts: if no key at the score
        or below has a weight above b, the sum of weights s over N samples bounds the tail by
        b g(s / b + 1) / N, g the quantile of the gamma distribution at the confidence. The
        assumption is that b, the largest such weight seen, is the largest that matters. Without a
        hit, b is a rigorous bound (several orders of magnitude too large: the price of having seen
        nothing). Verdicts about a key use `p_values`, which assume nothing.

        Args:
          scores: (B,), one for each image.
          confidence: of the upper bound, in (0, 1).

        Returns:
          `TailEstimate`.

        Raises:
          ValueError: for another number of scores, scores that are not numbers, or a confidence out
            of range.
        """
        scores = np.asarray(scores, np.float64)
        if scores.shape != (len(self),):
            raise ValueError(
                f"scores have shape {scores.shape}: expected one for each of {len(self)}"
            )
        if np.isnan(scores).any():
            raise ValueError("a score is not a number: leave out such an image")
        if not 0 < confidence < 1:
            raise ValueError(f"confidence is {confidence}: expected a number between 0 and 1")
        log_n = math.log(self.num_samples)
        rows = []
        for image, score in enumerate(scores):
            hits = int(self._hits(image, score))
            total, squares = self._sums[image][hits], self._squares[image][hits]
            bound = self._weight_bound(image, score)
            largest = min(self._greatest[image][hits], bound) if hits else bound
            with np.errstate(divide="ignore"):
                counted = np.exp(total - largest) if hits else 0.0
                upper = largest + np.log(gammaincinv(counted + 1.0, confidence)) - log_n
                error = (
                    math.sqrt(max(0.0, math.exp(squares - 2 * total) - 1 / self.num_samples))
                    if hits
                    else math.inf
                )
            rows.append(((total - log_n) / _LN10, min(upper, bound, 0.0) / _LN10, error, hits))
        estimate, upper, error, hits = np.array(rows).reshape(-1, 4).T
        return TailEstimate(estimate, upper, error, hits.astype(np.int64))

    def _hits(self, image: int, scores) -> np.ndarray:
        return np.searchsorted(
            self._samples[image].energies, np.asarray(scores) + self._slack[image], "right"
        )

    def _weight_bound(self, image: int, score: float) -> float:
        information, linear, offset = (part[image] for part in self.quadratic)
        mixture = self._samples[image].mixture
        energy = score - offset + self._slack[image]
        return float(log_weight_bound(mixture, information, linear, energy))


def soft_tail(
    information,
    linear,
    score,
    *,
    levels: Levels = "antipodal",
    num_samples: int = NUM_SAMPLES,
    confidence: float = 0.99,
) -> TailEstimate:
    """P(E(k) <= score) over uniform keys k: estimate and upper bound, see `SoftTails.at`.

    Args:
      information: (L, L) or (B, L, L).
      linear: (L,) or (B, L).
      score: a number for one image, or (B,).
      levels, num_samples: see `SoftTails`.
      confidence: of the upper bound.

    Returns:
      `TailEstimate` of arrays (B,), B = 1 for one image.

    >>> found = soft_tail(np.eye(16), np.full(16, 2.0), 8.0 - 32.0)  # all symbols +1
    >>> (found.log10_estimate / np.log10(0.5)).round(1).tolist()
    [16.0]
    """
    tails = SoftTails(information, linear, levels=levels, num_samples=num_samples)
    return tails.at(np.atleast_1d(score), confidence=confidence)


def soft_p_values(
    information,
    linear,
    bits,
    *,
    levels: Levels = "antipodal",
    num_samples: int = NUM_SAMPLES,
) -> np.ndarray:
    """Valid p-values of the soft scores of given keys, see `SoftTails.p_values`.

    Args:
      information: (L, L) or (B, L, L).
      linear: (L,) or (B, L).
      bits: (N, L), or (B, N, L).
      levels, num_samples: see `SoftTails`.

    Returns:
      (B, N) float64, B = 1 for one image.

    >>> soft_p_values(np.zeros((8, 8)), np.zeros(8), np.ones((1, 8))).tolist()  # no information
    [[1.0]]
    """
    tails = SoftTails(information, linear, levels=levels, num_samples=num_samples)
    return tails.p_values(np.asarray(bits))


def family_wise(p, num_keys: int):
    """Bound on the probability that any of `num_keys` keys does so well: min(1, num_keys p).

    Bonferroni's union bound; it assumes nothing about how the keys depend on each other.

    Args:
      p: p-value of the best key, or an array of them.
      num_keys: keys that were compared, all of them and not only the candidates.

    Raises:
      ValueError: if p is no probability, or no key was compared.

    >>> family_wise(0.5, 3), family_wise(0.0, 10**9)
    (1.0, 0.0)
    """
    p = np.asarray(p, np.float64)
    if num_keys < 1:
        raise ValueError(f"num_keys is {num_keys}: at least one key was compared")
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("p-values lie between 0 and 1")
    bound = np.minimum(1.0, p * num_keys)
    return float(bound) if bound.ndim == 0 else bound


def combine_tests(*p):
    """One p-value from several statistics of the same key: the smallest, times their number.

    Looking at matching bits and at the soft score and taking the better one is two tests. The bound
    holds however the statistics depend on each other.

    Args:
      p: p-values, or arrays of one shape, of each statistic.

    >>> combine_tests(1e-9, 1e-4)
    2e-09
    """
    if not p:
        raise ValueError("no p-values: give those of at least one statistic")
    return family_wise(functools.reduce(np.minimum, p), len(p))


def _accumulate(operation: np.ufunc, values: np.ndarray) -> np.ndarray:
    """`operation` over the first 0, 1, ... values: (N + 1,), starting from -inf."""
    return np.concatenate([[-np.inf], operation.accumulate(values)])


def _check_length(length: int) -> int:
    if length < 1:
        raise ValueError(f"length is {length}: a key has at least 1 bit")
    return int(length)


def _check_matches(length: int, matches) -> np.ndarray:
    counts = np.asarray(matches)
    if not np.issubdtype(counts.dtype, np.integer):
        raise ValueError(f"matches are {counts.dtype}: expected whole numbers of bits")
    if counts.size and (counts.min() < 0 or counts.max() > length):
        raise ValueError(
            f"matches lie in [{counts.min()}, {counts.max()}]: a key has {length} bits"
        )
    return counts


@functools.lru_cache(maxsize=16)
def _binomial_tails(length: int) -> tuple[np.ndarray, np.ndarray]:
    """P(matches >= m) for m in 0..L, and their decimal logarithms, (L + 1,) each."""
    tails, logs = np.empty(length + 1), np.empty(length + 1)
    total, coefficient = 0, 1
    for m in range(length, -1, -1):
        total += coefficient
        # Division of whole numbers rounds once; their logarithms need no float of that size.
        tails[m] = total / (1 << length) if total.bit_length() > length - 1070 else 0.0
        logs[m] = math.log10(total) - length * math.log10(2)
        coefficient = coefficient * m // (length - m + 1)
    logs[0] = 0.0
    for table in (tails, logs):
        table.setflags(write=False)
    return tails, logs
