"""Information about the key: closed forms, profile likelihood, Cramer-Rao, decision feedback."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fpjax
from fpjax.fingerprint.keys import level_range
from fpjax.inversion.information import (
    channel_bits,
    decide_bits,
    key_information,
    profile,
)
from fpjax.inversion.observation import Gaussian
from fpjax.inversion.prior import GaussianPrior
from fpjax.inversion.problem import Problem
from tests import toys


def _solved(num, noise=0.05, seed=2, prior=None):
    scheme = toys.scheme(toys.generator(toys.curved_decode, scale=0.1))
    problem = Problem(scheme, Gaussian(noise), prior or GaussianPrior())
    keys = np.repeat(fpjax.sample_keys(jax.random.key(1), 1, 6), num, axis=0)
    made = fpjax.generate(scheme, jax.random.key(seed), keys[:1])
    images = np.repeat(made.float_images, num, axis=0)
    files = problem.observation.simulate(jax.random.key(seed + 1), jnp.asarray(images))
    found = fpjax.invert(problem, files, starts=toys.starts(scheme))
    return problem, made, files, found


def test_it_is_the_curvature_of_the_profile_likelihood():
    """Alpha minimised for symbols held a little off the best ones, by finite differences."""
    problem, _, files, found = _solved(1)
    target = jnp.asarray(files[0], jnp.float32) / 127.5 - 1
    _, std = problem.prior.mean_and_std(problem.scheme)

    def likelihood(alpha, symbols):
        unknowns = jnp.concatenate([alpha, symbols])
        prior = 0.5 * jnp.sum((alpha / std[:10]) ** 2)
        return 0.5 * jnp.sum(problem.residual(unknowns, target) ** 2) + prior

    best = np.linalg.solve(found.information[0].astype(float), found.linear[0].astype(float))

    @jax.jit
    def profiled(symbols):
        def body(_, alpha):
            gradient = jax.grad(likelihood)(alpha, symbols)
            curvature = jax.hessian(likelihood)(alpha, symbols)
            return alpha - jnp.linalg.solve(curvature, gradient)

        alpha = jax.lax.fori_loop(0, 8, body, jnp.asarray(found.alpha[0]))
        return likelihood(alpha, symbols)

    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        step = 0.05
        for i in (0, 3):
            away = np.eye(6)[i] * step
            values = [float(profiled(jnp.asarray(best + s * away))) for s in (-1, 0, 1)]
            curvature = (values[0] - 2 * values[1] + values[2]) / step**2
            # Gauss-Newton leaves out second derivatives times residuals, a few percent here.
            np.testing.assert_allclose(curvature, found.information[0, i, i], rtol=0.1)


def test_noisy_inversions_scatter_as_it_says():
    """Cramer-Rao: the covariance of 400 estimates against the inverse of the information."""
    # With a wide prior: one fixed image does not scatter by what a prior knows.
    problem, _, _, found = _solved(400, noise=0.004, prior=GaussianPrior(100.0))
    best = np.stack(
        [np.linalg.solve(s.astype(float), h.astype(float))
         for s, h in zip(found.information, found.linear, strict=True)]
    )  # fmt: skip
    predicted = np.linalg.inv(found.information.astype(float)).mean(axis=0)
    ratio = np.diag(np.cov(best.T)) / np.diag(predicted)
    # The mean of six variances of 400 draws each is known to 3 %; three of those.
    assert 0.9 < ratio.mean() < 1.1, ratio
    assert problem.scheme.key_length == 6


def test_the_score_of_the_true_key_has_the_mean_it_should():
    """D = (k - k_hat)^T S (k - k_hat) has mean L over images: the information is honest."""
    scheme = toys.scheme(toys.generator(toys.curved_decode, scale=0.1))
    problem = Problem(scheme, Gaussian(0.05))
    keys = fpjax.sample_keys(jax.random.key(7), 200, 6)
    made = fpjax.generate(scheme, jax.random.key(8), keys)
    files = problem.observation.simulate(jax.random.key(9), jnp.asarray(made.float_images))
    found = fpjax.invert(problem, files, starts=toys.starts(scheme))
    score = found.score(2.0 * keys - 1) / 6
    # The mean of 200 chi-squares of six degrees is known to 4 %; two and a half of those.
    np.testing.assert_allclose(score.mean(), 1, atol=0.1)


def test_at_a_solution_it_is_what_the_solver_returns():
    problem, _, files, found = _solved(2)
    symbols = 2 * found.soft_bits - 1
    unknowns = np.concatenate([found.alpha, symbols], axis=1)
    information, linear = key_information(problem, unknowns, files, memory=1 << 20)
    np.testing.assert_allclose(information, found.information, rtol=1e-2, atol=1e-2)
    assert information.shape == (2, 6, 6) and linear.shape == (2, 6)


def test_profiling_is_exact_on_a_quadratic():
    rng = np.random.default_rng(0)
    factor = rng.standard_normal((7, 30))
    curvature, point = factor @ factor.T, rng.standard_normal(7)
    gradient = curvature @ (point - rng.standard_normal(7))
    found = profile(*(jnp.asarray(x, jnp.float32) for x in (curvature, gradient, point[4:])), 4)
    schur = curvature[4:, 4:] - curvature[4:, :4] @ np.linalg.solve(
        curvature[:4, :4], curvature[:4, 4:]
    )
    best = (point - np.linalg.solve(curvature, gradient))[4:]
    np.testing.assert_allclose(found.information, schur, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found.linear, schur @ best, rtol=1e-3, atol=1e-2)


def test_decision_feedback_beats_rounding_when_errors_are_correlated():
    rng = np.random.default_rng(0)
    length, trials = 16, 300
    factor = rng.standard_normal((length, length)) * 0.05 + np.eye(length) * 0.05
    information = np.linalg.inv(factor @ factor.T)
    bits = rng.integers(0, 2, (trials, length))
    soft = bits + rng.standard_normal((trials, length)) @ factor.T
    decided = decide_bits(soft, np.repeat(information[None], trials, axis=0))
    wrong = [int((found != bits).any(axis=1).sum()) for found in (decided, soft > 0.5)]
    assert wrong[0] < 0.5 * wrong[1]


@pytest.mark.parametrize("levels", ["binary", "antipodal"])
def test_a_channel_carries_no_more_than_its_bits(levels):
    """Two levels under noise tell nearly as much as Gaussian symbols where noise is much, and one
    bit where it is little."""
    rng = np.random.default_rng(0)
    _, half = level_range(levels)
    for snr, least in ((0.02, 0.95), (0.5, 0.9), (20.0, 0.4)):
        seen = np.sqrt(snr) + rng.normal(size=200_000)
        told = 1 - np.log2(1 + np.exp(-2 * np.sqrt(snr) * seen)).mean()
        most = channel_bits(np.array([[[snr / half**2]]]), levels)[0]
        assert least * most < told < most + 0.003
    lost = np.stack([np.eye(3), np.full((3, 3), np.nan), np.zeros((3, 3))])
    assert channel_bits(lost, levels)[1:].tolist() == [np.inf, 0.0]
