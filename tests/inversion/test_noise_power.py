"""Noise before a compression, told from files that Pillow wrote."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fpjax
from fpjax.attacks import GaussianNoise
from fpjax.attacks import Jpeg as Attack
from fpjax.inversion.noise_power import noise_power
from fpjax.inversion.observation import mean_of_clipped, to_8bit
from fpjax.inversion.observation_filtered import Filter
from fpjax.inversion.observation_jpeg import Jpeg
from fpjax.inversion.problem import shown
from fpjax.models.linear import linear_generator


def _picture(side=64):
    """Smooth, in colour, black and white in places."""
    y, x = np.meshgrid(*2 * [np.linspace(0, 2 * np.pi, side)], indexing="ij")
    channels = [np.sin(x + y), np.cos(2 * x) * np.sin(y), np.sin(3 * y - x)]
    return np.clip(1.1 * np.stack(channels, -1), -1, 1).astype(np.float32)


def _file(picture, std, quality, subsampling):
    pixels = np.asarray(to_8bit(picture))[None]
    if std:
        pixels = GaussianNoise(std=std)(jax.random.key(3), pixels)
    return Jpeg.of_file(Attack(quality=quality, subsampling=subsampling).encode(pixels[0]))


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
@pytest.mark.parametrize("quality", [50, 75, 95, 100])
def test_noise_before_compression_is_measured(quality, subsampling):
    picture = _picture()
    alone = noise_power(_file(picture, 0.0, quality, subsampling), picture)
    assert 0.95 < alone.excess < 1.08 and alone.std < 0.02
    for std in (0.05, 0.1, 0.2):
        found = noise_power(_file(picture, std, quality, subsampling), picture)
        assert found.excess > 1.08
        np.testing.assert_allclose(found.std, std, rtol=0.15)


def test_noise_is_measured_of_files_of_another_size_through_their_filter():
    generator = linear_generator()
    basis = fpjax.fit_basis(generator, jax.random.key(0), 100, metric="latent")
    problem = fpjax.Problem(fpjax.Scheme.create(generator, basis, key_length=4, strength=0.5))
    unknowns = np.zeros(problem.num_unknowns, np.float32)
    small = Filter.resize(8, 8, (6, 5), "bicubic")
    picture = np.asarray(shown(problem, unknowns))
    seen = shown(problem, unknowns, small)
    assert picture.shape == (8, 8, 1) and seen.shape == (6, 5, 1)
    np.testing.assert_allclose(seen, np.clip(small(jnp.asarray(picture)), -1, 1), atol=1e-6)


def test_another_picture_is_much_noise_and_one_that_is_not_finite_the_most():
    file, picture = _file(_picture(), 0.0, 75, "4:2:0"), _picture()
    assert noise_power(file, picture[::-1]).excess > 3
    broken = picture.copy()
    broken[0, 0, 0] = np.nan
    found = noise_power(file, broken)
    assert found.excess == np.inf and found.std == pytest.approx(0.5)


def test_clipped_noise_has_the_mean_that_draws_have():
    x = np.linspace(-1, 1, 9, dtype=np.float32)
    for std in (0.05, 0.4):
        noise = np.random.default_rng(0).standard_normal((200_000, 1)) * std
        drawn = np.clip(x + noise, -1, 1).mean(0)
        np.testing.assert_allclose(mean_of_clipped(jnp.asarray(x), std), drawn, atol=3e-3)


def test_without_noise_the_mean_is_the_picture_also_in_derivatives():
    x = jnp.asarray([-1.0, -0.3, 0.0, 1.0])
    value, slope = jax.jvp(lambda x: mean_of_clipped(x, 0.0), (x,), (jnp.ones(4),))
    np.testing.assert_array_equal(value, x)
    np.testing.assert_array_equal(slope, 1)


def test_simulated_files_have_the_noise():
    file = _file(np.zeros((64, 64, 3), np.float32), 0.0, 95, "4:4:4")
    zeros = jnp.zeros((1, 64, 64, 3))
    made = file.with_noise(0.1).simulate(jax.random.key(0), zeros)
    np.testing.assert_allclose(np.std(np.asarray(made, float)) / 127.5, 0.1, rtol=0.1)
    assert np.std(np.asarray(file.simulate(jax.random.key(0), zeros), float)) == 0
