"""Tails of random keys: equal to enumeration, valid at any number of samples, and deterministic."""

import fractions
import math

import jax
import numpy as np
import pytest

from fpjax.attribution.tails import (
    SoftTails,
    combine_tests,
    family_wise,
    log10_matching_tail,
    matching_tail,
    soft_p_values,
    soft_tail,
)
from fpjax.fingerprint.energy import antipodal_form, energies

SPECTRA = {
    "ill-conditioned": lambda rng, length: 10.0 ** rng.uniform(-3, 4, length),
    "moderate": lambda rng, length: 10.0 ** rng.uniform(-1, 2, length),
    "singular": lambda rng, length: 10.0 ** rng.uniform(-1, 3, length) * (np.arange(length) % 2),
    "flat": lambda rng, length: np.full(length, 4.0),
}


def instance(rng, length, kind):
    """Information (L, L) of one kind, linear term of a true key plus its noise, the key's bits."""
    basis = np.linalg.qr(rng.normal(size=(length, length)))[0]
    spectrum = SPECTRA[kind](rng, length)
    bits = rng.integers(0, 2, length).astype(np.uint8)
    information = (basis * spectrum) @ basis.T
    linear = information @ (2.0 * bits - 1) + basis @ (np.sqrt(spectrum) * rng.normal(size=length))
    return information, linear, bits


def every_key(length):
    return ((np.arange(2**length)[:, None] >> np.arange(length)) & 1).astype(np.uint8)


@pytest.mark.parametrize("length", [1, 8, 64, 257])
def test_matching_tail_is_the_sum_of_binomial_coefficients(length):
    exact = [
        fractions.Fraction(sum(math.comb(length, i) for i in range(m, length + 1)), 2**length)
        for m in range(length + 1)
    ]
    found = matching_tail(length, np.arange(length + 1))
    np.testing.assert_array_equal(found, [float(value) for value in exact])
    logs = log10_matching_tail(length, np.arange(length + 1))
    np.testing.assert_allclose(logs, np.log10(found), rtol=0, atol=1e-12 * length)


def test_matching_tail_agrees_with_the_incomplete_beta_function():
    scipy_stats = pytest.importorskip("scipy.stats")
    matches = np.arange(65)
    expected = scipy_stats.binom.sf(matches - 1, 64, 0.5)
    np.testing.assert_allclose(matching_tail(64, matches), expected, rtol=1e-13)


def test_long_keys_have_tails_below_the_range_of_floats():
    assert matching_tail(4096, 4096) == 0.0
    assert log10_matching_tail(4096, 4096) == pytest.approx(-4096 * math.log10(2), rel=1e-15)
    assert log10_matching_tail(4096, 0) == 0.0


@pytest.mark.parametrize("matches", [9, -1, 3.0])
def test_matches_that_cannot_be_are_refused(matches):
    with pytest.raises(ValueError, match="match"):
        matching_tail(8, matches)


@pytest.mark.parametrize("kind", SPECTRA)
@pytest.mark.parametrize("length", [16, 20])
def test_soft_tail_equals_enumeration_of_every_key(length, kind):
    information, linear, _ = instance(np.random.default_rng(length), length, kind)
    scores = np.sort(energies(antipodal_form(information, linear), every_key(length))[0])
    ranks = [0, 9, 299, 9_999]
    tails = SoftTails(information, linear)
    for rank in ranks:
        found = tails.at(scores[rank : rank + 1])
        exact = np.searchsorted(scores, scores[rank] + 1e-9, "right") / 2**length
        assert found.relative_error[0] < 0.1
        # Sixteen draws: 4.5 of the stated errors.
        assert abs(found.estimate[0] / exact - 1) < 4.5 * found.relative_error[0]
        assert exact <= found.upper[0] < 1.6 * exact


def test_upper_bound_covers_as_often_as_it_says():
    """60 images x 6 scores at 99 %: fewer than 3.6 misses are expected, 11 would be news."""
    rng, misses = np.random.default_rng(5), 0
    for image in range(60):
        information, linear, _ = instance(rng, 12, list(SPECTRA)[image % 4])
        scores = np.sort(energies(antipodal_form(information, linear), every_key(12))[0])
        tails = SoftTails(information, linear, num_samples=400)
        for rank in (0, 2, 9, 39, 159, 999):
            found = tails.at(scores[rank : rank + 1], confidence=0.99)
            misses += found.upper[0] < np.searchsorted(scores, scores[rank] + 1e-9, "right") / 4096
    assert misses < 11


@pytest.mark.parametrize("num_samples", [1, 30])
def test_p_values_of_random_keys_are_valid_with_however_few_samples(num_samples):
    """Every key of 120 images: the share with p <= x, averaged over images, is at most x."""
    rng, thresholds = np.random.default_rng(6), np.array([0.001, 0.01, 0.1, 0.5])
    shares = []
    for image in range(120):
        information, linear, _ = instance(rng, 10, list(SPECTRA)[image % 4])
        p = soft_p_values(information, linear, every_key(10), num_samples=num_samples)
        shares.append((p[0][:, None] <= thresholds).mean(0))
    shares = np.array(shares)
    error = shares.std(0) / np.sqrt(len(shares))
    assert (shares.mean(0) <= thresholds + 4 * error).all()


def test_p_value_of_the_right_key_is_the_tail_where_sampling_works():
    for kind in ("ill-conditioned", "moderate", "flat"):
        information, linear, bits = instance(np.random.default_rng(8), 64, kind)
        tails = SoftTails(information, linear)
        found = tails.at(tails.energies(bits[None])[0])
        p = tails.log10_p_values(bits[None])[0, 0]
        assert p < -12
        assert abs(p - found.log10_estimate[0]) < 0.1
        assert found.log10_upper[0] - found.log10_estimate[0] < 0.5


def test_plain_monte_carlo_agrees_at_64_bits():
    """10^6 uniform keys; `benchmarks/soft_tail.py` does it with 10^8."""
    rng = np.random.default_rng(9)
    information, linear, _ = instance(rng, 64, "moderate")
    quadratic = antipodal_form(information, linear)
    drawn = np.concatenate(
        [energies(quadratic, rng.integers(0, 2, (50_000, 64), np.uint8))[0] for _ in range(20)]
    )
    drawn.sort()
    tails = SoftTails(information, linear)
    for rank in (30, 1_000, 100_000):
        found = tails.at(drawn[rank - 1 : rank])
        error = np.hypot(found.relative_error[0], rank**-0.5)
        assert abs(found.estimate[0] / (rank / 1e6) - 1) < 4 * error


def test_a_score_nobody_reaches_gets_a_bound_from_no_hits():
    information, linear, bits = instance(np.random.default_rng(10), 32, "moderate")
    best = energies(antipodal_form(information, linear), bits[None])[0, 0]
    found = soft_tail(information, linear, best - 50.0)
    assert found.hits[0] == 0 and found.log10_estimate[0] == -np.inf
    assert np.isinf(found.relative_error[0])
    assert np.isfinite(found.log10_upper[0]) and found.log10_upper[0] < -5


def test_nothing_known_gives_a_p_value_of_one():
    assert soft_tail(np.zeros((8, 8)), np.zeros(8), 0.0).upper[0] == 1.0
    assert (soft_p_values(np.zeros((8, 8)), np.zeros(8), every_key(8)) == 1.0).all()


def test_linear_term_alone_is_a_weighted_sum_of_bits():
    weights = np.array([4.0, 3.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    scores = np.sort(-(2.0 * every_key(8) - 1) @ weights)
    found = soft_tail(np.zeros((8, 8)), weights, scores[4])
    assert found.estimate[0] == pytest.approx(np.mean(scores <= scores[4]), rel=0.15)


def test_the_same_image_gives_the_same_answer_and_the_other_levels_too():
    information, linear, bits = instance(np.random.default_rng(11), 16, "moderate")
    first, second = (soft_p_values(information, linear, bits[None]) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    # The same energies, written for levels 0 and 1: symbols 2 b - 1.
    binary = soft_p_values(
        4 * information, 2 * (linear + information.sum(1)), bits[None], levels="binary"
    )
    np.testing.assert_allclose(binary, first, rtol=0.3)


def test_a_batch_gives_what_its_images_give_alone():
    rng = np.random.default_rng(12)
    images = [instance(rng, 16, kind) for kind in ("flat", "moderate")]
    information, linear, bits = (np.stack(part) for part in zip(*images, strict=True))
    together = soft_p_values(information, linear, bits[:, None])
    alone = [soft_p_values(s, h, k[None])[0] for s, h, k in images]
    np.testing.assert_array_equal(together, alone)


def test_settings_of_jax_do_not_change_the_answer():
    information, linear, bits = instance(np.random.default_rng(13), 16, "moderate")
    expected = soft_p_values(information, linear, bits[None])
    with (
        jax.enable_x64(True),
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
    ):
        np.testing.assert_array_equal(soft_p_values(information, linear, bits[None]), expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t.at([1.0, 2.0]), "one for each of 1"),
        (lambda t: t.at([np.nan]), "not a number"),
        (lambda t: t.at([1.0], confidence=1.0), "confidence is 1.0"),
        (lambda t: t.p_values(np.ones((1, 9))), r"expected \(N, 8\)"),
        (lambda t: SoftTails(np.eye(8), np.ones(8), num_samples=0), "num_samples is 0"),
    ],
)
def test_misuse_is_named(call, message):
    tails = SoftTails(np.eye(8), np.ones(8), num_samples=200)
    with pytest.raises(ValueError, match=message):
        call(tails)


def test_family_wise_rates_count_the_keys_and_the_tests():
    np.testing.assert_allclose(family_wise(np.array([1e-9, 0.9]), 1000), [1e-6, 1.0])
    np.testing.assert_allclose(combine_tests(np.array([1e-9, 0.9]), [1e-3, 0.7]), [2e-9, 1.0])
    with pytest.raises(ValueError, match="at least one key"):
        family_wise(0.1, 0)
    with pytest.raises(ValueError, match="between 0 and 1"):
        family_wise(1.5, 2)
    with pytest.raises(ValueError, match="at least one statistic"):
        combine_tests()
