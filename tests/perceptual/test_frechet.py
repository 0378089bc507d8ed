"""Frechet distance: closed forms, SciPy's sqrtm, rank deficiency, streaming statistics."""

import numpy as np
import pytest
import scipy.linalg

from fpjax.perceptual import FeatureStatistics, frechet_distance, frechet_from_features


def random_gaussian(rng, size, rank=None):
    factor = rng.normal(size=(size, rank or size))
    return rng.normal(size=size), factor @ factor.T / size


def test_distance_of_commuting_covariances_is_the_closed_form():
    rng = np.random.default_rng(0)
    axes, _ = np.linalg.qr(rng.normal(size=(16, 16)))
    std1, std2 = rng.uniform(0, 2, (2, 16))
    mean1, mean2 = rng.normal(size=(2, 16))
    actual = frechet_distance(mean1, axes * std1**2 @ axes.T, mean2, axes * std2**2 @ axes.T)
    expected = np.sum((mean1 - mean2) ** 2) + np.sum((std1 - std2) ** 2)
    assert actual == pytest.approx(expected, rel=1e-12)


def test_distance_equals_the_sqrtm_formula():
    rng = np.random.default_rng(1)
    (mean1, cov1), (mean2, cov2) = (random_gaussian(rng, 64) for _ in range(2))
    root = scipy.linalg.sqrtm(cov1 @ cov2).real
    expected = np.sum((mean1 - mean2) ** 2) + np.trace(cov1 + cov2 - 2 * root)
    # sqrtm of a nonsymmetric product is the less accurate of the two.
    assert frechet_distance(mean1, cov1, mean2, cov2) == pytest.approx(expected, rel=1e-8)


def test_rank_deficient_distance_is_exact():
    # In one plane each: the trace of the root is that of the 2 x 2 problem in the planes' bases.
    rng = np.random.default_rng(2)
    factor1, factor2 = rng.normal(size=(2, 64, 2))
    zero = np.zeros(64)
    nuclear = scipy.linalg.svdvals(factor1.T @ factor2).sum()
    expected = np.sum(factor1**2) + np.sum(factor2**2) - 2 * nuclear
    actual = frechet_distance(zero, factor1 @ factor1.T, zero, factor2 @ factor2.T)
    assert actual == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("rank", [1, 5, 64])
def test_distance_to_itself_is_zero_at_any_rank(rank):
    mean, cov = random_gaussian(np.random.default_rng(3), 64, rank)
    # A root of the rounding error of cov would leave about 1e-7 of the trace.
    assert 0 <= frechet_distance(mean, cov, mean, cov) <= 1e-12 * np.trace(cov)


def test_zero_covariances_leave_the_distance_of_the_means():
    zero = np.zeros((3, 3))
    assert frechet_distance(np.zeros(3), zero, np.ones(3), zero) == 3


def test_misuse_is_refused():
    mean, cov = np.zeros(3), np.eye(3)
    with pytest.raises(ValueError, match="same features"):
        frechet_distance(mean, cov, np.zeros(2), np.eye(2))
    with pytest.raises(ValueError, match=r"\(F, F\)"):
        frechet_distance(mean, np.eye(2), mean, cov)
    with pytest.raises(ValueError, match="cov2 must be finite"):
        frechet_distance(mean, cov, mean, cov * np.nan)
    with pytest.raises(ValueError, match="cov1 isn't symmetric"):
        frechet_distance(mean, np.triu(np.ones((3, 3))), mean, cov)
    with pytest.raises(ValueError, match="negative variance"):
        frechet_distance(mean, np.diag([1.0, 1.0, -0.1]), mean, cov)
    with pytest.raises(ValueError, match="at least 2"):
        frechet_from_features(np.zeros((1, 3)), np.zeros((5, 3)))


def test_streaming_statistics_equal_numpys_far_from_the_origin():
    rng = np.random.default_rng(4)
    # At 1e6 standard deviations from zero, sums of squares would lose every digit.
    features = rng.normal(size=(1000, 8)) + 1e6
    statistics = FeatureStatistics.empty(8)
    for batch in np.split(features, [1, 10, 10, 700]):
        statistics.update(batch)
    assert statistics.count == 1000
    np.testing.assert_allclose(statistics.mean, features.mean(0), rtol=1e-14)
    np.testing.assert_allclose(
        statistics.covariance(), np.cov(features, rowvar=False), rtol=1e-8, atol=1e-9
    )


def test_merged_statistics_are_those_of_the_union():
    rng = np.random.default_rng(5)
    parts = [rng.normal(size=(n, 4)) + n for n in (30, 2, 7)]
    merged = FeatureStatistics.empty(4)
    for part in parts:
        one = FeatureStatistics.empty(4)
        one.update(part)
        before = merged.scatter.copy()
        result = merged.merge(one)
        np.testing.assert_array_equal(merged.scatter, before)  # The argument is left alone.
        merged = result
    together = np.concatenate(parts)
    np.testing.assert_allclose(merged.mean, together.mean(0), rtol=1e-13)
    np.testing.assert_allclose(merged.covariance(), np.cov(together, rowvar=False), rtol=1e-12)
    with pytest.raises(ValueError, match="4 and 5 features"):
        merged.merge(FeatureStatistics.empty(5))
    with pytest.raises(ValueError, match=r"\(batch, 4\)"):
        merged.update(np.zeros((3, 5)))


def test_float32_features_are_accumulated_in_float64():
    features = np.random.default_rng(6).normal(size=(100, 4)).astype(np.float32) + 1000
    statistics = FeatureStatistics.empty(4)
    statistics.update(features)
    expected = np.cov(features.astype(np.float64), rowvar=False)
    np.testing.assert_allclose(statistics.covariance(), expected, rtol=1e-10)
