"""Resizes and back, recognised from a picture and its file."""

import jax.numpy as jnp
import numpy as np
import pytest

from fpjax.attacks import GaussianBlur, GaussianNoise, Resize
from fpjax.attacks.linear import KERNELS
from fpjax.inversion.observation_filtered import Filter
from fpjax.inversion.resizes import resized, there_and_back

SIDES = (44, 40)


@pytest.fixture(scope="module")
def picture():
    """Edges and a texture, which tell phases apart; (H, W, 3) uint8."""
    rng = np.random.default_rng(0)
    coarse = rng.uniform(60, 196, (SIDES[0] // 4, SIDES[1] // 4, 3))
    fine = np.repeat(np.repeat(coarse, 4, 0), 4, 1) + rng.normal(0, 8, (*SIDES, 3))
    return np.rint(fine).astype(np.uint8)


def _float(image):
    return image.astype(np.float32) / 127.5 - 1


@pytest.mark.parametrize("filter", KERNELS)
@pytest.mark.parametrize("between", [11, 30])
def test_matrices_are_those_of_resizing_twice(filter, between):
    exact = Filter.resize_and_back(40, 40, between / 40, filter)
    made = there_and_back(40, jnp.float32(between), filter)
    # Places of up to 40 pixels in float32 are known to 4e-6 of one, and each is used twice.
    np.testing.assert_allclose(made, exact.rows, atol=1e-5)


@pytest.mark.parametrize("filter", KERNELS)
@pytest.mark.parametrize("scale", [0.5, 38 / 44])
def test_a_resize_is_recognised(picture, filter, scale):
    file = Resize(scale=scale, filter=filter)(None, picture[None])[0]
    # As an inversion has it: about the picture.
    made = _float(picture) + np.random.default_rng(1).normal(0, 0.02, picture.shape)
    found = resized(np.clip(made, -1, 1).astype(np.float32), _float(file))
    assert found is not None and found.margin > 1.1
    assert (round(found.scale * 44), found.filter) == (round(scale * 44), filter)
    assert found.error < 0.03


def test_sides_may_differ_and_channels_too():
    rng = np.random.default_rng(2)
    large = rng.uniform(-0.8, 0.8, (60, 45, 1)).astype(np.float32)
    for between in (32, 45, 57):
        file = Filter.resize_and_back(60, 45, between / 60, "bilinear")(large)
        found = resized(large, np.asarray(file))
        assert found is not None and round(60 * found.scale) == between


@pytest.mark.parametrize(("shape", "scale"), [((50, 47), 0.75), ((50, 47), 0.85)])
def test_each_side_is_rounded_on_its_own(shape, scale):
    coarse = np.random.default_rng(3).uniform(-0.6, 0.6, (8, 8, 3))
    own = np.kron(coarse, np.ones((8, 8, 1)))[: shape[0], : shape[1]].astype(np.float32)
    file = np.asarray(Filter.resize_and_back(*shape, scale, "bicubic")(own))
    found = resized(own, file)
    assert found is not None and found.between == tuple(round(scale * side) for side in shape)
    assert found.error < 1e-5 and found.filter == "bicubic"


def test_what_was_not_resized_is_left_alone(picture):
    own = _float(picture)
    assert resized(own, own) is None
    noisy = GaussianNoise(std=0.05)(jnp.zeros(2, jnp.uint32), picture[None])[0]
    assert resized(own, _float(noisy)) is None
    blurred = resized(own, _float(GaussianBlur(sigma=0.5)(None, picture[None])[0]))
    back = resized(own, _float(Resize(scale=0.75)(None, picture[None])[0]))
    assert blurred is None or (back is not None and blurred.error > 5 * back.error)
    assert resized(own[:1, :1], own[:1, :1]) is None
    assert resized(own, np.ones_like(own)) is None


def test_its_words_say_what_was_done(picture):
    found = resized(_float(picture), _float(Resize(scale=0.75)(None, picture[None])[0]))
    assert found.words == "a resize to 0.75 of its sides and back (bicubic)"
    assert found.as_filter(44, 40).rows.shape == (44, 44)
