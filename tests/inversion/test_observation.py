"""Observations: residuals in units of their own noise, censoring, simulation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from fpjax.errors import InputError
from fpjax.inversion.observation import (
    ROUNDING_STD,
    Gaussian,
    Observation,
    Rounded8Bit,
    leaky_clip,
    noise_ratio,
    to_8bit,
)

OBSERVATIONS = [Rounded8Bit(), Gaussian(0.02), Gaussian(0.1)]


def _image(seed=0, spread=0.4):
    rng = np.random.default_rng(seed)
    return jnp.asarray(np.clip(rng.normal(0, spread, (40, 50, 3)), -1.4, 1.4), jnp.float32)


def _file(observation, image, seed=0):
    pixels = observation.simulate(jax.random.key(seed), image[None])[0]
    return pixels.astype(jnp.float32) / 127.5 - 1


def test_rounding_noise_is_that_of_eight_bits():
    values = np.random.default_rng(0).uniform(-1, 1, 200_000)
    rounded = np.rint(values * 127.5 + 127.5) / 127.5 - 1
    np.testing.assert_allclose(np.std(rounded - values), ROUNDING_STD, rtol=0.01)


@pytest.mark.parametrize("observation", OBSERVATIONS, ids=str)
def test_its_own_files_are_one_noise_unit_away(observation):
    assert isinstance(observation, Observation)
    image = _image()
    # 6000 values: their root mean square is known to 1 %; four of those.
    np.testing.assert_allclose(noise_ratio(observation, image, _file(observation, image)), 1, 0.04)


@pytest.mark.parametrize("observation", OBSERVATIONS, ids=str)
def test_its_own_files_stay_one_noise_unit_away_where_the_image_overshoots(observation):
    image = _image(spread=1.2)
    assert float(jnp.mean(jnp.abs(image) > 1)) > 0.3
    np.testing.assert_allclose(noise_ratio(observation, image, _file(observation, image)), 1, 0.06)


def test_saturated_pixels_of_a_lossless_file_do_not_punish_overshooting():
    image, white = _image(), jnp.ones((40, 50, 3))
    residual = Rounded8Bit().residual(image, white)
    assert bool((residual <= 0).all()) and bool((residual[image.reshape(-1) > 1] == 0).all())
    assert bool((Rounded8Bit().residual(image, -white) >= 0).all())
    middle = Rounded8Bit().residual(image, 0 * white).reshape(image.shape)
    np.testing.assert_allclose(middle * ROUNDING_STD, image, atol=1e-6)


def test_noise_at_saturated_pixels_has_its_exact_likelihood():
    """P(file is 255) = Phi((image - edge) / std): half the squared residual is its -log."""
    observation = Gaussian(0.1)
    image = jnp.asarray([[[0.7], [0.95], [1.0], [1.3]]])
    residual = observation.residual(image, jnp.ones_like(image))
    margin = (np.minimum(np.asarray(image), 1) - (1 - 1 / 255)) / float(observation.total_std)
    np.testing.assert_allclose(0.5 * residual**2, -norm.logcdf(margin).ravel(), rtol=1e-4)
    black = observation.residual(-image, -jnp.ones_like(image))
    np.testing.assert_allclose(black, residual, rtol=1e-5)


def test_the_score_of_clipped_noise_has_mean_zero_at_the_truth():
    """An image at exactly 1: what half of the files say by being less, the others say by being 255.

    Without the exact censored likelihood the estimate would be pulled inwards.
    """
    observation, ones = Gaussian(0.1), jnp.full((200, 200, 1), 1.0)
    file = _file(observation, ones)

    def cost(level):
        # Just inside the clip, where its derivative is one.
        return 0.5 * jnp.sum(observation.residual(level * ones, file) ** 2)

    slope, scale = jax.grad(cost)(0.9999), np.sqrt(file.size) / 0.1
    # Standard deviation of the score's sum is at most sqrt(N) / std; four of those, and the half
    # grey level by which 255 begins before 1.
    assert abs(float(slope)) < 4 * scale + 0.1 * file.size / 0.1 * 0.05


def test_a_leak_changes_the_derivative_and_never_the_value():
    x = jnp.asarray([-1.5, 0.2, 1.5])
    value, slope = jax.jvp(lambda x: leaky_clip(x, jnp.float32(0.1)), (x,), (jnp.ones(3),))
    np.testing.assert_allclose(value, [-1, 0.2, 1])
    np.testing.assert_allclose(slope, [0.1, 1, 0.1])
    np.testing.assert_allclose(jax.grad(lambda x: leaky_clip(x, 0.0).sum())(x), [0, 1, 0])


def test_rounding_clips_and_takes_the_nearest_level():
    np.testing.assert_array_equal(
        to_8bit(jnp.asarray([-2, -1, 0.5 / 127.5, 1.0, 3])), [0, 0, 128, 255, 255]
    )


@pytest.mark.parametrize("std", [-0.1, 3.0, float("nan")])
def test_noise_that_cannot_be_is_refused(std):
    with pytest.raises(InputError, match="expected the noise's standard deviation"):
        Gaussian(std)


def test_another_noise_level_compiles_nothing():
    run = jax.jit(lambda observation, x: observation.residual(x, x))
    run(Gaussian(0.1), jnp.zeros((4, 4, 1)))
    run(Gaussian(0.2), jnp.zeros((4, 4, 1)))
    assert run._cache_size() == 1
