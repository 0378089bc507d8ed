"""Inversion problems: residuals of 8-bit images, priors, and the published starts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpjax.inversion.problem import ROUNDING_STD, Problem, noise_ratio
from fpjax.inversion.starts import latin_hypercube_starts, low_pass


def _unknowns(problem, num=3, seed=0):
    _, std = problem.prior_mean_and_std
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.standard_normal((num, problem.num_unknowns)) * std, jnp.float32)


def test_rounding_noise_is_that_of_eight_bits():
    values = np.random.default_rng(0).uniform(-1, 1, 200_000)
    rounded = np.rint(values * 127.5 + 127.5) / 127.5 - 1
    np.testing.assert_allclose(np.std(rounded - values), ROUNDING_STD, rtol=0.01)


def test_an_image_rounded_to_eight_bits_is_one_noise_unit_away(tiny_scheme):
    problem = Problem(tiny_scheme)
    params = tiny_scheme.generator.params
    unknowns = _unknowns(problem)
    images = problem.images(params, unknowns)
    targets = jnp.clip(jnp.round(images * 127.5 + 127.5), 0, 255) / 127.5 - 1
    ratio = noise_ratio(problem, params, unknowns, targets)
    # 768 values: the root mean square of uniform noise is known to 1.6 %; five of those.
    np.testing.assert_allclose(ratio, 1, atol=0.08)


def test_saturated_pixels_do_not_punish_overshooting(tiny_scheme):
    problem = Problem(tiny_scheme)
    params = tiny_scheme.generator.params
    unknowns = _unknowns(problem, 1)
    image = problem.images(params, unknowns)
    white = jnp.ones_like(image)
    residual = problem.residuals(params, unknowns, white).reshape(image.shape)
    np.testing.assert_array_equal(np.asarray(residual <= 0), True)
    black = problem.residuals(params, unknowns, -white).reshape(image.shape)
    np.testing.assert_array_equal(np.asarray(black >= 0), True)
    middle = problem.residuals(params, unknowns, 0 * white).reshape(image.shape)
    np.testing.assert_allclose(middle * ROUNDING_STD, image, atol=1e-6)


def test_sigmoid_levels_stay_between_the_two_levels(tiny_scheme):
    problem = Problem(tiny_scheme.replace(levels="antipodal"), key="sigmoid")
    unknowns = jnp.zeros((1, 16)).at[0, 10:].set(jnp.array([-50, -1, 0, 0, 1, 50.0]))
    levels = problem.levels(unknowns)[0]
    assert float(levels.min()) >= -1 and float(levels.max()) <= 1
    np.testing.assert_allclose(problem.bits(unknowns)[0, [0, 2, 5]], [0, 0.5, 1], atol=1e-6)


def test_bits_read_the_same_for_both_level_conventions(tiny_scheme):
    for levels, values in (("binary", [0.0, 1.0]), ("antipodal", [-1.0, 1.0])):
        problem = Problem(tiny_scheme.replace(levels=levels))
        unknowns = jnp.zeros((1, 16)).at[0, 10:12].set(jnp.asarray(values))
        np.testing.assert_allclose(problem.bits(unknowns)[0, :2], [0, 1])


def test_latin_hypercube_starts_are_the_published_ones(tiny_scheme):
    """Centred strata in [-s, s], one start in each stratum of every coordinate, kappa 0."""
    problem = Problem.paper(tiny_scheme)
    starts = latin_hypercube_starts(problem, 20)
    scaled = starts[:, :10] / problem.alpha_std
    strata = np.sort((scaled + 1) / 2 * 20 - 0.5, axis=0)
    np.testing.assert_allclose(strata, np.repeat(np.arange(20)[:, None], 10, 1), atol=1e-3)
    np.testing.assert_array_equal(starts[:, 10:], 0)
    np.testing.assert_array_equal(starts, latin_hypercube_starts(problem, 20))


def test_bounds_penalty_is_zero_within_three_standard_deviations(tiny_scheme):
    problem = Problem(tiny_scheme, alpha_penalty="bounds", key="sigmoid")
    free = Problem(tiny_scheme, alpha_penalty="none", key="sigmoid")
    params = tiny_scheme.generator.params
    targets = jnp.zeros((1, 16, 16, 3))
    s = jnp.asarray(problem.alpha_std)
    inside = jnp.zeros((1, 16)).at[0, :10].set(2.9 * s)
    outside = jnp.zeros((1, 16)).at[0, :10].set(-3.5 * s)
    loss, plain = (p.loss_per_image(params, inside, targets) for p in (problem, free))
    np.testing.assert_allclose(loss, plain, rtol=1e-6)
    loss, plain = (p.loss_per_image(params, outside, targets) for p in (problem, free))
    np.testing.assert_allclose(loss - plain, 0.1 * 0.5 * s.sum(), rtol=1e-4)


def test_low_pass_averages_boxes_of_large_images_and_leaves_small_ones():
    image = jax.random.normal(jax.random.key(0), (1, 64, 64, 3))
    expected = image.reshape(1, 32, 2, 32, 2, 3).mean(axis=(2, 4)).reshape(1, -1)
    np.testing.assert_allclose(low_pass(image), expected, atol=1e-6)
    assert low_pass(image[:, :16, :16]).shape == (1, 768)


def test_unknown_choices_are_refused(tiny_scheme):
    with pytest.raises(ValueError, match="choose one of"):
        Problem(tiny_scheme, loss="ssim")
