"""How often an image without a key agrees with one: null models, tail probabilities, intervals.

A p-value here answers one question: were this an image that carries no key of ours, how often
would its decoded bits agree with this key in at least so many places? Decoded bits of such images
are neither fair nor independent (a generator's average face decodes to the same bits again and
again), so the null is fitted on keyless images, and the larger of an independent-bits tail and an
over-dispersed tail is reported.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

# Keys per block of the dynamic programme: 65 x 4096 float64 stay in a core's cache.
_BLOCK = 4096
_SMALLEST = np.finfo(np.float64).tiny


@dataclasses.dataclass(frozen=True, eq=False)
class NullModel:
    """Decoded bits of keyless images: their means and covariances, for each of G kinds of image.

    Attributes:
      names: G names of the groups ("unkeyed", "photographs", ...).
      means: (G, L) float64 probabilities that a bit decodes to 1, strictly between 0 and 1.
      covariances: (G, L, L) float64 covariances of the bits, positive semi-definite.
      counts: (G,) int64 images each group was fitted on; 0 for a distribution that is known.

    Raises:
      ValueError: for shapes that don't belong together, or values that are no probabilities or
        covariances.

    >>> null = NullModel.fit({"unkeyed": np.random.default_rng(0).integers(0, 2, (500, 16))})
    >>> null.means.shape, null.covariances.shape, null.counts.tolist()
    ((1, 16), (1, 16, 16), [500])
    """

    names: tuple[str, ...]
    means: np.ndarray
    covariances: np.ndarray
    counts: np.ndarray

    def __post_init__(self) -> None:
        means = np.asarray(self.means, np.float64)
        covariances = np.asarray(self.covariances, np.float64)
        counts = np.asarray(self.counts, np.int64)
        names = tuple(str(name) for name in self.names)
        if means.ndim != 2 or 0 in means.shape:
            raise ValueError(f"means have shape {means.shape}: expected (groups, bits), not empty")
        groups, length = means.shape
        for what, found, expected in (
            ("covariances", covariances.shape, (groups, length, length)),
            ("counts", counts.shape, (groups,)),
            ("names", (len(names),), (groups,)),
        ):
            if found != expected:
                raise ValueError(f"{what} have shape {found}: means {means.shape} need {expected}")
        if len(set(names)) != groups:
            raise ValueError(f"names of groups repeat: {', '.join(names)}")
        if not ((means > 0) & (means < 1)).all():
            raise ValueError("means must lie strictly between 0 and 1: no finite sample shows more")
        if (counts < 0).any():
            raise ValueError("counts of images can't be negative")
        for name, covariance in zip(names, covariances, strict=True):
            _check_covariance(name, covariance)
        for field, value in zip(
            ("names", "means", "covariances", "counts"),
            (names, means, covariances, counts),
            strict=True,
        ):
            object.__setattr__(self, field, value)

    @property
    def length(self) -> int:
        """Bits of a key, L."""
        return self.means.shape[1]

    @classmethod
    def fit(cls, groups: Mapping[str, np.ndarray]) -> NullModel:
        """Estimates the null from decoded bits of images that carry no key.

        The sample counts as M images, and two more are imagined whose bits are independent and
        average one half. A mean is then (ones + 1) / (M + 2), Laplace's rule: a bit that came out
        0 in all of M images is rare, not impossible, and the plain mean would call one
        disagreement with it a certain sign of a key. Covariances between bits are M / (M + 2)
        times the sample's, and the diagonal is the Bernoulli variance of the smoothed mean. That
        is never less than M / (M + 2) times the sample's variance, so the matrix stays positive
        semi-definite.

        The shrinkage is this small on purpose. Only `s^T C s` is used, for keys s that were drawn
        without looking at these images, and the sample estimates that without bias however few
        the images. The closed forms that minimise the error of the whole matrix (Ledoit & Wolf;
        Schäfer & Strimmer) remove a weak common factor altogether, and keys along it then reach
        p = 0.001 many times too often.

        Args:
          groups: by name, bits (M_g, L) of 0 and 1, one row an image.

        Raises:
          ValueError: for no group, an empty one, different lengths, or values that aren't bits.

        Warns:
          UserWarning: for a group of fewer than 2 L images. The rule above takes up to
            1 - exp(-L / (M + 2)) off the tail of a key that this group always agrees with, so that
            p-values from fewer images are too small.

        >>> null = NullModel.fit({"constant": np.zeros((98, 4)), "coins": np.eye(4)[[0, 1] * 49]})
        >>> null.means[:, 0].round(2).tolist()
        [0.01, 0.5]
        """
        if not groups:
            raise ValueError("no groups of keyless images: a null needs at least one")
        means, covariances, counts = [], [], []
        for name, value in groups.items():
            bits = _as_bits(value, f"group {name!r}")
            if bits.ndim != 2 or 0 in bits.shape:
                raise ValueError(f"group {name!r} has shape {bits.shape}: expected (images, bits)")
            if means and bits.shape[1] != means[0].size:
                raise ValueError(
                    f"group {name!r} has {bits.shape[1]} bits, the first group {means[0].size}"
                )
            count, length = bits.shape
            if count < 2 * length:
                warnings.warn(
                    f"group {name!r} has {count} images for {length} bits: p-values are too small "
                    f"below about {2 * length} images",
                    stacklevel=2,
                )
            mean = (bits.sum(0, dtype=np.int64) + 1) / (count + 2)
            centred = bits - bits.mean(0)
            covariance = centred.T @ centred / (count + 2)
            np.fill_diagonal(covariance, mean * (1 - mean))
            means.append(mean)
            covariances.append(covariance)
            counts.append(count)
        return cls(tuple(groups), np.stack(means), np.stack(covariances), np.array(counts))

    @classmethod
    def fair_coin(cls, length: int) -> NullModel:
        """The null of `length` fair and independent bits, whose tail is the binomial one exactly.

        >>> float(match_tail(NullModel.fair_coin(4), np.ones(4), 4))
        0.0625
        """
        if length < 1:
            raise ValueError(f"a key has at least 1 bit, got length {length}")
        return cls(
            ("fair coin",), np.full((1, length), 0.5), np.eye(length)[None] / 4, np.zeros(1, int)
        )

    def to_arrays(self) -> tuple[dict[str, np.ndarray], list[str]]:
        """What a file holds: arrays by name (float64, float64, int64), and the groups' names.

        >>> arrays, names = NullModel.fair_coin(8).to_arrays()
        >>> sorted(arrays), names
        (['counts', 'covariances', 'means'], ['fair coin'])
        """
        arrays = {"means": self.means, "covariances": self.covariances, "counts": self.counts}
        return {name: np.ascontiguousarray(array) for name, array in arrays.items()}, [*self.names]

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], names: Sequence[str]) -> NullModel:
        """The inverse of `to_arrays`.

        Raises:
          ValueError: if an array is missing or they are no null model.

        >>> NullModel.from_arrays(*NullModel.fair_coin(8).to_arrays()).length
        8
        """
        missing = {"means", "covariances", "counts"} - set(arrays)
        if missing:
            raise ValueError(f"a null model needs the arrays {', '.join(sorted(missing))}")
        return cls(tuple(names), arrays["means"], arrays["covariances"], arrays["counts"])


def match_tail(null: NullModel, keys: np.ndarray, matches) -> np.ndarray:
    """Probability that a keyless image agrees with a key in at least `matches` bits.

    Per group, the larger of two tails, and then the largest over the groups, so that the answer
    holds whichever kind of image it is:

    * independent bits with the group's unequal means, the Poisson-binomial distribution, by its
      recursion over bits (Howard 1972; Hong, "On computing the distribution function for the
      Poisson binomial distribution", 2013). It only adds and multiplies positive numbers, so it
      keeps about 13 digits however small the tail is;
    * the beta-binomial distribution of the same mean whose variance is `s^T C s`, s = 2 key - 1,
      the variance of the number of matches under the group's covariance C (or the Poisson-binomial
      variance, if larger); used when that exceeds the variance of a binomial of this mean.

    The second tail is a model of two moments, and both rest on the images of the fit: in
    simulations with 2000 of them and a few shared factors, images reached p = 0.01 in 0.7% of the
    cases on average over keys, and in 1.6% for the worst key. Values far below 1 / M extrapolate.

    Args:
      null: the distribution of keyless images.
      keys: (L,) one key, or (N, L) keys, of bits 0 and 1.
      matches: integers in [0, L]: of any shape for one key; (N,) or one number for N keys.

    Returns:
      Probabilities, float64, (N,) or the shape of `matches` for one key. Never 0: a tail below
      2.2e-308, the smallest normal float64, is given as that.

    Raises:
      ValueError: for keys that aren't bits of the null's length, or matches out of range.

    >>> match_tail(NullModel.fair_coin(8), np.array([1, 0] * 4), [0, 7, 8]).tolist()
    [1.0, 0.03515625, 0.00390625]
    """
    length = null.length
    keys = _as_bits(keys, "keys")
    if keys.ndim not in (1, 2) or keys.shape[-1] != length:
        raise ValueError(f"keys have shape {keys.shape}: expected ({length},) or (N, {length})")
    counts = np.asarray(matches)
    if counts.size and not np.issubdtype(counts.dtype, np.integer):
        raise ValueError(f"matches are {counts.dtype}: expected whole numbers of bits")
    if counts.size and (counts.min() < 0 or counts.max() > length):
        raise ValueError(
            f"matches lie in [{counts.min()}, {counts.max()}]: a key has {length} bits"
        )
    if keys.ndim == 1:
        (tail,) = _tails(null, keys[None])
        return tail[counts.astype(np.intp)]
    try:
        counts = np.broadcast_to(counts, keys.shape[:1]).astype(np.intp)
    except ValueError:
        raise ValueError(f"{len(keys)} keys need as many matches, got {counts.shape}") from None
    found = np.empty(len(keys))
    for block in _blocks(len(keys)):
        tails = _tails(null, keys[block])
        found[block] = np.take_along_axis(tails, counts[block, None], 1)[:, 0]
    return found


def nearest(keys: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """Number of bits in which decoded bits agree with every key.

    Args:
      keys: (N, L) of 0 and 1.
      bits: (L,) or (B, L) of 0 and 1, rounded soft bits.

    Returns:
      (N,) or (B, N) int64 in [0, L].

    Raises:
      ValueError: if the lengths differ or something isn't a bit.

    >>> nearest(np.array([[0, 0, 1], [1, 1, 1]]), np.array([0, 1, 1])).tolist()
    [2, 2]
    """
    keys, bits = _as_bits(keys, "keys"), _as_bits(bits, "bits")
    if keys.ndim != 2 or bits.ndim not in (1, 2) or keys.shape[-1] != bits.shape[-1]:
        raise ValueError(
            f"keys {keys.shape} and bits {bits.shape} don't match: expected (N, L), and (L,) "
            "or (B, L)"
        )
    words, queries = pack_words(keys), pack_words(np.atleast_2d(bits))
    found = np.stack([keys.shape[1] - hamming_distances(words, query) for query in queries])
    return found[0] if bits.ndim == 1 else found


def pack_words(bits: np.ndarray) -> np.ndarray:
    """Packs bits (..., L) into 64-bit words (..., ceil(L / 64)), zeros appended.

    The order of bits within a word depends on the machine: for comparisons, not for files.

    >>> pack_words(np.ones((3, 70), np.uint8)).shape
    (3, 2)
    """
    packed = np.packbits(np.asarray(bits, np.uint8), axis=-1)
    padding = -packed.shape[-1] % 8
    widths = [(0, 0)] * (packed.ndim - 1) + [(0, padding)]
    return np.ascontiguousarray(np.pad(packed, widths)).view(np.uint64)


def hamming_distances(words: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Number of bits in which packed keys (N, W) differ from a packed query (W,): (N,) int64.

    >>> words = pack_words(np.array([[0, 1, 1], [1, 1, 1]]))
    >>> hamming_distances(words, words[0]).tolist()
    [0, 1]
    """
    return np.bitwise_count(words ^ query).sum(-1, dtype=np.int64)


def family_wise(p, num_keys: int):
    """Bound on the probability that any of `num_keys` keys does so well: min(1, num_keys p).

    Bonferroni's union bound; it assumes nothing about how the keys' matches depend on each other.

    Args:
      p: p-value of the best key, or an array of them.
      num_keys: number of keys that were compared, all of them and not only the candidates.

    >>> family_wise(1e-5, 1000) < 0.011
    True
    >>> family_wise(0.5, 3)
    1.0
    """
    p = np.asarray(p, np.float64)
    if num_keys < 1:
        raise ValueError(f"num_keys is {num_keys}: at least one key was compared")
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("p-values lie between 0 and 1")
    bound = np.minimum(1.0, p * num_keys)
    return float(bound) if bound.ndim == 0 else bound


def clopper_pearson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact confidence interval of a proportion.

    It covers the true proportion at least as often as it says, at any number of trials (Clopper &
    Pearson, "The use of confidence or fiducial limits", Biometrika 26, 1934).

    Args:
      successes: how many of the trials succeeded.
      trials: how many there were; none at all gives (0, 1).
      confidence: probability of covering, strictly between 0 and 1.

    Returns:
      (lower, upper), in [0, 1].

    >>> [round(bound, 4) for bound in clopper_pearson(0, 100)]
    [0.0, 0.0362]
    """
    from scipy.special import betaincinv

    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes in {trials} trials: expected 0 to {trials}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}: expected a number between 0 and 1")
    miss = (1 - confidence) / 2
    failures = trials - successes
    lower = float(betaincinv(successes, failures + 1, miss)) if successes else 0.0
    upper = float(betaincinv(successes + 1, failures, 1 - miss)) if failures else 1.0
    return lower, upper


def _tails(null: NullModel, keys: np.ndarray) -> np.ndarray:
    """P(matches >= m) for m in 0..L, (N, L + 1), the largest over the groups of the null."""
    signs = 2.0 * keys - 1
    worst = np.zeros((keys.shape[1] + 1, len(keys)))
    for mean, covariance in zip(null.means, null.covariances, strict=True):
        # Both chances from the mean, not one from the other: 1 - (1 - p) loses a small p.
        agree = np.where(keys, mean, 1 - mean).T
        differ = np.where(keys, 1 - mean, mean).T
        variance = np.maximum((agree * differ).sum(0), ((signs @ covariance) * signs).sum(1))
        worst = np.maximum(worst, _upper_sums(_poisson_binomial(agree, differ)))
        wide = _excess(agree, differ, variance) > 0
        if wide.any():
            masses = _beta_binomial(agree[:, wide], differ[:, wide], variance[wide])
            worst[:, wide] = np.maximum(worst[:, wide], _upper_sums(masses))
    worst[0] = 1.0  # at least no match is certain; the sum above may miss it by rounding
    return np.clip(worst, _SMALLEST, 1.0).T


def _upper_sums(masses: np.ndarray) -> np.ndarray:
    """Sums over m and above, (L + 1, N): smallest terms first, and monotone by construction."""
    return np.cumsum(masses[::-1], axis=0)[::-1]


def _poisson_binomial(agree: np.ndarray, differ: np.ndarray) -> np.ndarray:
    """P(matches = m), (L + 1, N), from chances of agreeing and differing per bit, (L, N)."""
    length, num = agree.shape
    masses = np.zeros((length + 1, num))
    masses[0] = 1.0
    for bit in range(length):
        gained = masses[: bit + 1] * agree[bit]
        masses[: bit + 1] *= differ[bit]
        masses[1 : bit + 2] += gained
    return masses


def _excess(agree: np.ndarray, differ: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Intra-class correlation that gives a beta-binomial this variance, (N,); <= 0 for none.

    The variance is L pi (1 - pi) (1 + (L - 1) rho).
    """
    length = len(agree)
    if length == 1:
        return np.zeros_like(variance)
    binomial = length * agree.mean(0) * differ.mean(0)
    # Equal means give exactly the binomial variance; its rounding is no over-dispersion.
    excess = variance / binomial - 1
    return np.where(excess > 1e-12, excess, 0.0) / (length - 1)


def _beta_binomial(agree: np.ndarray, differ: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """P(matches = m), (L + 1, N), of the beta-binomial with the bits' mean and this variance.

    Written as Polya's urn, C(L, m) prod_{i<m} (pi + i r) prod_{i<L-m} (1 - pi + i r) /
    prod_{i<L} (1 + i r) with r = 1 / (a + b) = rho / (1 - rho): differences of log-gamma functions
    lose all their digits as r goes to 0, where this is the binomial.
    """
    length, num = agree.shape
    # A sum of L bits of this mean has at most rho = 1; there all bits are the same bit.
    rho = np.minimum(_excess(agree, differ, variance), 1 - 1e-9)
    steps = np.arange(length)[:, None] * (rho / (1 - rho))

    def rising(start):
        return np.concatenate([np.zeros((1, num)), np.cumsum(np.log(start + steps), axis=0)])

    hits, misses = rising(agree.mean(0)), rising(differ.mean(0))[::-1]
    return np.exp(_log_choose(length)[:, None] + hits + misses - rising(1.0)[-1])


def _log_choose(length: int) -> np.ndarray:
    """log C(length, m) for m in 0..length."""
    upward = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, length + 1)))])
    return upward[-1] - upward - upward[::-1]


def _check_covariance(name: str, covariance: np.ndarray) -> None:
    if not np.isfinite(covariance).all():
        raise ValueError(f"covariance of group {name!r} is not finite")
    # Bits have variances of at most 1/4, so absolute tolerances do; 1e-6 admits float32 storage.
    if np.abs(covariance - covariance.T).max() > 1e-6:
        raise ValueError(f"covariance of group {name!r} is not symmetric")
    smallest = np.linalg.eigvalsh(covariance)[0]
    if smallest < -1e-6:
        raise ValueError(
            f"covariance of group {name!r} has the negative variance {smallest:.3g}: "
            "it is no covariance"
        )


def _as_bits(value: np.ndarray, what: str) -> np.ndarray:
    """The value as uint8, or a complaint that it holds other values than 0 and 1."""
    value = np.asarray(value)
    if value.dtype.kind not in "biuf":
        raise ValueError(f"{what} have dtype {value.dtype}: expected bits 0 and 1")
    # Registries hold 100,000 keys: the common dtype is checked in one pass.
    fine = value.max(initial=0) <= 1 if value.dtype == np.uint8 else np.isin(value, (0, 1)).all()
    if not fine:
        raise ValueError(f"{what} hold other values than the bits 0 and 1")
    return value.astype(np.uint8, copy=False)


def _blocks(num: int) -> Iterator[slice]:
    return (slice(start, start + _BLOCK) for start in range(0, num, _BLOCK))
