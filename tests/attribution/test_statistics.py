"""P-values of key matches are exact where the null is known, and valid where it is estimated."""

import fractions
import itertools
import math
import warnings

import numpy as np
import pytest
from scipy import stats

from fpjax.attribution.statistics import (
    NullModel,
    clopper_pearson,
    family_wise,
    hamming_distances,
    match_tail,
    nearest,
    pack_words,
)

LENGTH = 64


def independent(means):
    """A null of known means and no correlation, as one group."""
    means = np.asarray(means, float)
    return NullModel(("known",), means[None], np.diag(means * (1 - means))[None], np.zeros(1))


@pytest.mark.parametrize("length", [1, 8, 64, 256])
def test_fair_coins_have_the_binomial_tail(length):
    null = NullModel.fair_coin(length)
    matches = np.arange(length + 1)
    key = np.random.default_rng(0).integers(0, 2, length)
    expected = stats.binom.sf(matches - 1, length, 0.5)
    # 2 L roundings of 1e-16 are 6e-14 at L = 256; the reference itself is good to about 1e-12.
    np.testing.assert_allclose(match_tail(null, key, matches), expected, rtol=1e-11)


@pytest.mark.parametrize("length", [2, 5, 10])
def test_unequal_bits_have_the_tail_that_enumeration_gives(length):
    rng = np.random.default_rng(length)
    # The spread makes the variance less than a binomial's, so that the exact tail is the answer.
    means, key = rng.uniform(0.02, 0.98, length), rng.integers(0, 2, length)
    masses = np.zeros(length + 1)
    for bits in itertools.product((0, 1), repeat=length):
        chance = np.prod(np.where(bits, means, 1 - means))
        masses[(np.array(bits) == key).sum()] += chance
    expected = [masses[m:].sum() for m in range(length + 1)]
    found = match_tail(independent(means), key, np.arange(length + 1))
    np.testing.assert_allclose(found, expected, rtol=1e-12)  # sums of 1024 rounded products


def test_tails_far_below_rounding_are_exact():
    # The same recursion in rational arithmetic; the tails go down to 1e-100 and below.
    means = np.random.default_rng(0).uniform(0.001, 0.05, LENGTH)
    masses = [fractions.Fraction(1)]
    for mean in map(fractions.Fraction, means):
        kept = [mass * (1 - mean) for mass in masses] + [0]
        gained = [0] + [mass * mean for mass in masses]
        masses = [a + b for a, b in zip(kept, gained, strict=True)]
    expected = [float(sum(masses[m:])) for m in range(LENGTH + 1)]
    found = match_tail(independent(means), np.ones(LENGTH, int), np.arange(LENGTH + 1))
    assert found[-1] < 1e-100
    np.testing.assert_allclose(found, expected, rtol=1e-13)  # 2 L roundings of 1e-16


@pytest.mark.parametrize("mean, correlation", [(0.5, 0.01), (0.3, 0.2), (0.8, 0.7)])
def test_correlated_bits_of_one_mean_have_the_beta_binomial_tail(mean, correlation):
    covariance = mean * (1 - mean) * ((1 - correlation) * np.eye(LENGTH) + correlation)
    null = NullModel(("one",), np.full((1, LENGTH), mean), covariance[None], np.array([1000]))
    scale = 1 / correlation - 1
    matches = np.arange(LENGTH + 1)
    over = stats.betabinom(LENGTH, mean * scale, (1 - mean) * scale)
    masses = over.pmf(matches)
    expected = np.maximum(
        [masses[m:].sum() for m in matches], stats.binom.sf(matches - 1, LENGTH, mean)
    )
    found = match_tail(null, np.ones(LENGTH, int), matches)
    np.testing.assert_allclose(found, expected, rtol=1e-9)  # the reference's log-gammas
    # Correlation multiplies the chance of a complete match, by 10 at least at 0.01.
    assert found[-1] > 10 * mean**LENGTH


def test_vanishing_correlation_gives_the_binomial_tail():
    correlation = 1e-11  # where a + b = 1e11 and log-gamma functions have no digits left
    covariance = ((1 - correlation) * np.eye(LENGTH) + correlation) / 4
    null = NullModel(("one",), np.full((1, LENGTH), 0.5), covariance[None], np.array([1000]))
    found = match_tail(null, np.ones(LENGTH, int), LENGTH)
    # C(64, 2) pairs times the correlation: the true excess is 2e-8.
    np.testing.assert_allclose(found, 0.5**LENGTH, rtol=1e-7)


def test_wholly_dependent_bits_prove_nothing():
    null = NullModel(("one",), np.full((1, 8), 0.5), np.full((1, 8, 8), 0.25), np.array([1000]))
    found = match_tail(null, np.ones(8, int), [5, 8])
    np.testing.assert_allclose(found, 0.5, atol=1e-6)  # one coin; correlations stop at 1 - 1e-9
    # A key that half of them contradict: it always agrees in exactly 4 bits.
    assert match_tail(null, np.array([0, 1] * 4), 4) > 0.5


def test_more_matches_are_never_less_significant():
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(1000, 1))
    bits = shared * 0.6 + rng.normal(size=(1000, 20)) > rng.normal(size=20)
    null = NullModel.fit({"one": bits, "two": rng.integers(0, 2, (1000, 20))})
    for key in rng.integers(0, 2, (20, 20)):
        tail = match_tail(null, key, np.arange(21))
        assert tail[0] == 1
        assert (np.diff(tail) <= 0).all() and (tail > 0).all()


def test_many_keys_get_what_each_gets_alone():
    rng = np.random.default_rng(0)
    null = NullModel.fit({"one": rng.random((500, 16)) < rng.random(16)})
    keys, bits = rng.integers(0, 2, (5000, 16)), rng.integers(0, 2, 16)  # more than one block
    matches = nearest(keys, bits)
    together = match_tail(null, keys, matches)
    assert together.shape == (5000,)
    for index in (0, 17, 4999):
        # matrix products of different shapes round differently
        alone = match_tail(null, keys[index], matches[index])
        np.testing.assert_allclose(together[index], alone, rtol=1e-12)
    np.testing.assert_array_equal(
        match_tail(null, keys[:3], 9), match_tail(null, keys[:3], [9, 9, 9])
    )


def test_the_least_favourable_group_decides():
    rng = np.random.default_rng(0)
    coins, mostly_ones = rng.integers(0, 2, (500, 16)), rng.random((500, 16)) < 0.9
    both = NullModel.fit({"coins": coins, "mostly ones": mostly_ones})
    for key, name, bits in (
        (np.ones(16, int), "mostly ones", mostly_ones),
        (np.zeros(16, int), "coins", coins),
    ):
        assert match_tail(both, key, 14) == match_tail(NullModel.fit({name: bits}), key, 14)


@pytest.mark.parametrize("count", [2 * LENGTH, 1000])
def test_a_null_that_always_decodes_to_zeros_is_never_significant(count):
    null = NullModel.fit({"zeros": np.zeros((count, LENGTH))})
    for num_ones in range(0, 7):
        key = np.zeros(LENGTH, int)
        key[:num_ones] = 1
        # What an image of that kind gets against an unlucky key.
        assert match_tail(null, key, LENGTH - num_ones) > 0.5
    # A key it contradicts in places is a different matter: there a match says something.
    assert match_tail(null, np.arange(LENGTH) % 2, LENGTH) < 1e-30


def test_too_few_images_to_trust_are_announced():
    with pytest.warns(UserWarning, match=r"'few' has 100 images for 64 bits.*about 128"):
        NullModel.fit({"few": np.zeros((100, LENGTH))})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        NullModel.fit({"enough": np.zeros((128, LENGTH))})


def keyless_images(name, rng):
    """Draws bits of keyless images: thresholds on Gaussians with a few shared latent factors."""
    thresholds = rng.normal(0, 0.7, LENGTH)
    if name == "mixed signs":
        loads = rng.normal(size=(LENGTH, 3))
        loads *= np.sqrt(0.4 / (loads**2).sum(1, keepdims=True))
    else:
        shared = {"independent": 0.0, "weakly shared": 0.05, "shared": 0.3}[name]
        loads = np.full((LENGTH, 1), math.sqrt(shared))
    rest = np.sqrt(1 - (loads**2).sum(1))

    def draw(num):
        latent = rng.normal(size=(num, loads.shape[1])) @ loads.T
        return latent + rng.normal(size=(num, LENGTH)) * rest > thresholds

    return draw


@pytest.mark.parametrize("name", ["independent", "weakly shared", "shared", "mixed signs"])
def test_p_values_of_keyless_images_are_valid(name):
    rng = np.random.default_rng(5)
    draw, num = keyless_images(name, rng), 20_000
    null = NullModel.fit({"keyless": draw(2000)})
    images = draw(num)
    # The worst keys there are: the common factor's direction, both ways, and the commonest bits.
    axis = np.linalg.eigh(np.cov(images.T))[1][:, -1]
    keys = {"along": axis > 0, "against": axis < 0, "commonest": images.mean(0) > 0.5}
    keys |= {f"random {i}": rng.integers(0, 2, LENGTH) == 1 for i in range(5)}
    rates = {key: [] for key in keys}
    for label, key in keys.items():
        p = match_tail(null, key, (images == key).sum(1))
        for level in (0.1, 0.01, 0.001):
            rate = (p <= level).mean()
            # 4 standard deviations of the count of 20,000 images, and half of the level for what
            # the 2000 images of the fit and the two-moment shape get wrong for the worst key.
            margin = 4 * math.sqrt(level * (1 - level) / num) + level / 2
            assert rate <= level + margin, (label, level, rate)
            rates[label].append(rate)
    # And they are no idle bound: half of the nominal rate is reached at 0.1.
    assert np.mean([rate[0] for rate in rates.values()]) > 0.05


def test_ignoring_the_correlation_would_accuse_the_innocent():
    # What the covariance is for: independent bits of the same means are wrong 10 times too often.
    rng = np.random.default_rng(5)
    draw = keyless_images("shared", rng)
    null, images = NullModel.fit({"keyless": draw(2000)}), draw(20_000)
    matches = images.sum(1)
    key = np.ones(LENGTH, int)
    assert (match_tail(independent(null.means[0]), key, matches) <= 0.001).mean() > 0.01
    assert (match_tail(null, key, matches) <= 0.001).mean() < 0.002


def test_the_fit_has_smoothed_means_and_the_samples_covariances():
    rng = np.random.default_rng(0)
    bits = rng.random((4000, 1)) * 0.5 + rng.random((4000, 6)) > 0.8
    bits[:, 0] = 1
    null = NullModel.fit({"one": bits})
    np.testing.assert_allclose(null.means[0], (bits.sum(0) + 1) / 4002)
    assert null.means[0, 0] == 4001 / 4002
    np.testing.assert_allclose(
        np.diag(null.covariances[0]), null.means[0] * (1 - null.means[0]), rtol=1e-12
    )
    # Two imagined images among 4002 move a covariance by at most 2 / 4002 / 4.
    np.testing.assert_allclose(null.covariances[0], np.cov(bits.T), atol=3e-4)
    assert null.counts.tolist() == [4000] and null.names == ("one",)


@pytest.mark.filterwarnings("ignore:group 'few'")
@pytest.mark.parametrize("count", [1, 2, 5, 63])
def test_fits_of_fewer_images_than_bits_are_still_covariances(count):
    bits = np.random.default_rng(count).integers(0, 2, (count, LENGTH))
    null = NullModel.fit({"few": bits})
    assert np.linalg.eigvalsh(null.covariances[0])[0] > 0
    assert ((null.means > 0) & (null.means < 1)).all()


def test_a_null_survives_storage():
    rng = np.random.default_rng(0)
    null = NullModel.fit({"a": rng.integers(0, 2, (99, 8)), "b": rng.integers(0, 2, (50, 8))})
    arrays, names = null.to_arrays()
    assert {name: array.dtype.name for name, array in arrays.items()} == {
        "means": "float64",
        "covariances": "float64",
        "counts": "int64",
    }
    again = NullModel.from_arrays(arrays, names)
    assert again.names == ("a", "b")
    for name, array in arrays.items():
        np.testing.assert_array_equal(getattr(again, name), array)
    del arrays["counts"]
    with pytest.raises(ValueError, match="needs the arrays counts"):
        NullModel.from_arrays(arrays, names)


@pytest.mark.parametrize(
    "field, value, complaint",
    [
        ("means", np.full((1, 3), 0.5), "covariances have shape"),
        ("means", np.array([[0.5, 1.0]]), "strictly between"),
        ("means", np.array([[0.5, np.nan]]), "strictly between"),
        ("means", np.array([0.5, 0.5]), "expected \\(groups, bits\\)"),
        ("covariances", np.array([[[0.2, 0.3], [0.3, 0.2]]]), "negative variance"),
        ("covariances", np.array([[[0.2, 0.1], [0.0, 0.2]]]), "not symmetric"),
        ("covariances", np.full((1, 2, 2), np.nan), "not finite"),
        ("counts", np.array([1, 2]), "counts have shape"),
        ("counts", np.array([-1]), "negative"),
        ("names", ("a", "b"), "names have shape"),
    ],
)
def test_a_null_that_is_no_distribution_is_refused(field, value, complaint):
    fields = {
        "names": ("a",),
        "means": np.full((1, 2), 0.5),
        "covariances": np.eye(2)[None] / 4,
        "counts": np.array([10]),
    }
    NullModel(**fields)
    with pytest.raises(ValueError, match=complaint):
        NullModel(**(fields | {field: value}))


@pytest.mark.parametrize(
    "groups",
    [
        {},
        {"a": np.zeros((0, 8))},
        {"a": np.zeros(8)},
        {"a": np.full((20, 8), 0.5)},
        {"a": np.full((20, 8), np.nan)},
        {"a": np.full((20, 8), -1)},
        {"a": np.zeros((20, 8)), "b": np.zeros((20, 9))},
    ],
)
def test_groups_that_are_no_bits_are_refused(groups):
    with pytest.raises(ValueError, match=r"group|bits"):
        NullModel.fit(groups)


def test_misuse_of_a_tail_is_refused():
    null, key = NullModel.fair_coin(8), np.ones(8, int)
    for keys, matches, complaint in (
        (np.ones(7, int), 3, r"expected \(8,\) or \(N, 8\)"),
        (key * 2, 3, "the bits 0 and 1"),
        (key, 9, "a key has 8 bits"),
        (key, -1, "a key has 8 bits"),
        (key, 3.0, "whole numbers"),
        (np.stack([key, key]), [1, 2, 3], "2 keys need as many matches"),
    ):
        with pytest.raises(ValueError, match=complaint):
            match_tail(null, keys, matches)


@pytest.mark.parametrize("length", [1, 8, 64, 65, 200])
def test_nearest_counts_equal_bits(length):
    rng = np.random.default_rng(length)
    keys, bits = rng.integers(0, 2, (50, length)), rng.integers(0, 2, (3, length))
    expected = (keys[None] == bits[:, None]).sum(-1)
    np.testing.assert_array_equal(nearest(keys, bits), expected)
    np.testing.assert_array_equal(nearest(keys.astype(bool), bits[0]), expected[0])
    words = pack_words(keys)
    np.testing.assert_array_equal(hamming_distances(words, words[7]), (keys != keys[7]).sum(-1))
    assert nearest(keys[:0], bits[0]).shape == (0,)
    with pytest.raises(ValueError, match="don't match"):
        nearest(keys, bits[0, 1:])


def test_the_union_bound_holds_for_the_best_of_many_keys():
    rng = np.random.default_rng(0)
    null, keys, num = NullModel.fair_coin(32), rng.integers(0, 2, (500, 32), np.uint8), 2000
    best = nearest(keys, rng.integers(0, 2, (num, 32), np.uint8)).max(1)
    p = match_tail(null, keys[0], best)  # fair coins treat all keys alike
    for level in (0.1, 0.01):
        rate = (family_wise(p, len(keys)) <= level).mean()
        assert rate <= level + 4 * math.sqrt(level * (1 - level) / num)  # sampling error
    assert family_wise(0.5, 10**9) == 1.0
    assert family_wise(1e-12, 10**9) == pytest.approx(1e-3)
    for p, num_keys in ((1.5, 2), (-0.1, 2), (np.nan, 2), (0.5, 0)):
        with pytest.raises(ValueError, match=r"between 0 and 1|at least one"):
            family_wise(p, num_keys)


@pytest.mark.parametrize("successes, trials", [(0, 10), (3, 10), (10, 10), (17, 4000)])
def test_clopper_pearson_is_the_exact_interval(successes, trials):
    for confidence in (0.9, 0.95, 0.999):
        exact = stats.binomtest(successes, trials).proportion_ci(confidence, method="exact")
        found = clopper_pearson(successes, trials, confidence)
        np.testing.assert_allclose(found, [exact.low, exact.high], rtol=1e-9, atol=1e-12)


def test_clopper_pearson_of_nothing_and_of_nonsense():
    assert clopper_pearson(0, 0) == (0.0, 1.0)
    for arguments in ((5, 4), (-1, 4), (1, 4, 1.0), (1, 4, 0.0)):
        with pytest.raises(ValueError, match="expected"):
            clopper_pearson(*arguments)
