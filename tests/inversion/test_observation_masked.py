"""Masked observations: covered pixels say nothing, the others what they said before."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fpjax
from fpjax.errors import InputError
from fpjax.inversion.observation import Gaussian, Rounded8Bit, noise_ratio, pixel_residual
from fpjax.inversion.observation_filtered import Filter, Filtered
from fpjax.inversion.observation_masked import Masked
from fpjax.inversion.problem import Problem
from tests import toys

WEIGHTS = np.ones((*toys.SHAPE[:2], 1), np.float32)
WEIGHTS[:4, :5] = 0


def test_what_is_left_out_changes_nothing():
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.uniform(-0.5, 0.5, toys.SHAPE), jnp.float32)
    target = image + 0.1
    other = target.at[:4, :5].set(0.9)
    seen = Masked(WEIGHTS, Gaussian(0.1))
    np.testing.assert_array_equal(seen.residual(image, target), seen.residual(image, other))
    assert float(seen.counted(image, target).sum()) == WEIGHTS.sum()
    ratio, plain = noise_ratio(seen, image, other), noise_ratio(Gaussian(0.1), image, target)
    np.testing.assert_allclose(ratio, plain, rtol=1e-5)
    np.testing.assert_allclose(pixel_residual(seen, image, other), 0.1, rtol=1e-5)


def test_weights_scale_the_sum_of_squares():
    image, target = jnp.zeros(toys.SHAPE), jnp.full(toys.SHAPE, 0.5)
    half = Masked(0.5 * np.ones_like(WEIGHTS), Rounded8Bit())
    some, whole = (jnp.sum(x.residual(image, target) ** 2) for x in (half, Rounded8Bit()))
    np.testing.assert_allclose(some, 0.5 * whole, rtol=1e-5)


def test_a_covered_file_is_read_by_its_other_pixels():
    scheme = toys.scheme(toys.generator(toys.curved_decode, scale=0.2))
    keys = fpjax.sample_keys(jax.random.key(0), 3, scheme.key_length)
    files = fpjax.generate(scheme, jax.random.key(1), keys).images.copy()
    files[:, :4, :5] = 255
    starts = toys.starts(scheme)
    seen = Masked(WEIGHTS, Rounded8Bit())
    found = fpjax.invert(Problem(scheme, seen), files, fpjax.LevenbergMarquardt(), starts=starts)
    np.testing.assert_array_equal(found.keys, keys)
    assert (found.noise_ratio < 1.5).all()
    plain = fpjax.invert(Problem(scheme), files, fpjax.LevenbergMarquardt(), starts=starts)
    assert (plain.noise_ratio > 10).all()


def test_misuse_is_explained():
    picture = np.zeros(toys.SHAPE, np.float32)
    filtered = Filtered(Filter.identity(*toys.SHAPE[:2]), picture, Rounded8Bit())
    with pytest.raises(InputError, match="'filtered' is not of single pixels"):
        Masked(WEIGHTS, filtered).residual(jnp.zeros(toys.SHAPE), jnp.zeros(toys.SHAPE))
    with pytest.raises(InputError, match=r"expected \(H, W, 1\)"):
        Masked(WEIGHTS[..., 0], Rounded8Bit())
    with pytest.raises(InputError, match="expected 0 to 1"):
        Masked(2 * WEIGHTS, Rounded8Bit())
