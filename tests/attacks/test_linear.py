"""Linear operators with traced parameters, against the attacks, Pillow and finite differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from fpjax.attacks import AttackError, Brightness, GaussianBlur, Rotate, Shift
from fpjax.attacks.linear import gain_offset, gaussian_blur, resize, rotate, shift
from tests.attacks.test_protocol import pictures

FILTERS = ["box", "bilinear", "hamming", "bicubic", "lanczos"]

# Each operator as a function of the images and one scalar, and a value of that scalar.
OPERATORS = {
    "gain": (lambda x, p: gain_offset(x, p, 0.0), 1.1),
    "offset": (lambda x, p: gain_offset(x, 1.0, p), 0.2),
    "blur": (gaussian_blur, 0.7),
    "crop": (lambda x, p: resize(x, (20, 25), "bicubic", (p, 1.0, 14.0, 15.0)), 2.3),
    "shrink": (lambda x, p: resize(x, (7, 8), "lanczos", (0.0, 0.0, p, 16.0)), 15.2),
    "shift": (lambda x, p: shift(x, p, -0.3), 0.4),
    "rotate": (rotate, 3.0),
}
all_operators = pytest.mark.parametrize("name", list(OPERATORS))


def scaled(pixels):
    return jnp.asarray(pixels, jnp.float32) / 127.5 - 1


def levels(images):
    return np.clip(np.asarray(images) * 127.5 + 127.5, 0, 255)


@pytest.mark.parametrize(("sigma", "size"), [(0.5, 25), (2.0, 9), (1.0, 1)])
def test_blur_is_the_attack(sigma, size):
    images = pictures((2, 9, 14, 3))  # Smaller than the kernel: mirrored more than once.
    actual = levels(gaussian_blur(scaled(images), sigma, size))
    expected = GaussianBlur(sigma, size)(None, images)
    assert np.abs(actual - expected).max() < 0.501


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("shape", [(16, 33), (70, 51), (33, 46)])
def test_resizing_is_pillows(filter, shape):
    images = pictures((1, 33, 46, 3))
    actual = levels(resize(scaled(images), shape, filter))[0]
    method = Image.Resampling[filter.upper()]
    expected = np.asarray(Image.fromarray(images[0]).resize(shape[::-1], method))
    # Pillow rounds to whole levels after each of two passes; overshoot of the second adds to it.
    assert np.abs(actual - expected).max() < 1.25
    assert np.abs(actual - expected).mean() < 0.4


@pytest.mark.parametrize("filter", FILTERS)
def test_a_window_with_fractions_is_pillows(filter):
    images = pictures((1, 33, 46, 1))
    top, left, bottom, right = 2.3, 5.8, 30.1, 40.6
    actual = levels(resize(scaled(images), (25, 60), filter, (top, left, bottom, right)))[0, ..., 0]
    expected = np.asarray(
        Image.fromarray(images[0, ..., 0]).resize(
            (60, 25), Image.Resampling[filter.upper()], box=(left, top, right, bottom)
        )
    )
    if filter == "box":
        # A pixel on the edge of a box falls to either side by a rounding error.
        assert (np.abs(actual - expected) < 1.25).mean() > 0.95
    else:
        assert np.abs(actual - expected).max() < 1.25


def test_whole_shifts_are_the_attack_and_fractions_lie_between():
    images = pictures((1, 20, 30, 3))
    actual = levels(shift(scaled(images), 2.0, -3.0))
    assert np.abs(actual - Shift(2, -3)(None, images)).max() < 1e-3
    ramp = jnp.broadcast_to(jnp.linspace(-0.5, 0.5, 21)[:, None, None], (21, 5, 1))
    moved = shift(ramp, 0.25, 0.0)
    np.testing.assert_allclose(moved[2:-2], ramp[2:-2] - 0.25 * 0.05, atol=1e-6)
    far = shift(scaled(images), 100.0, 0.0)
    np.testing.assert_allclose(far, np.repeat(scaled(images)[:, :1], 20, 1), atol=1e-6)


@pytest.mark.parametrize("degrees", [0.0, 2.5, -37.0, 90.0])
def test_rotation_is_pillows(degrees):
    sides = (24, 24) if degrees == 90 else (24, 31)
    images = pictures((2, *sides, 3))
    actual = levels(rotate(scaled(images), degrees))
    expected = Rotate(degrees, "bicubic", 0)(None, images)
    cut_off = actual - expected  # Pillow does not round here.
    assert cut_off.min() > -0.01 and cut_off.max() < 1.01


def test_gain_and_offset_are_brightness():
    images = pictures((1, 8, 9, 3))
    actual = levels(gain_offset(scaled(images), 1.2, 0.2))
    # Pillow cuts off fractions of a level.
    assert np.abs(actual - Brightness(1.2)(None, images)).max() < 1.001
    channels = gain_offset(scaled(images), jnp.array([1.0, 2.0, 3.0]), jnp.zeros(3))
    np.testing.assert_allclose(channels[..., 2], 3 * scaled(images)[..., 2], rtol=1e-6)


@all_operators
def test_operators_are_affine_in_the_images(name):
    operator, value = OPERATORS[name]
    x, y = scaled(pictures((2, 16, 17, 1), 1)), scaled(pictures((2, 16, 17, 1), 2))
    apply = jax.jit(operator)
    middle = apply(0.3 * x + 0.7 * y, value)
    np.testing.assert_allclose(middle, 0.3 * apply(x, value) + 0.7 * apply(y, value), atol=1e-5)


@all_operators
def test_derivatives_in_the_parameter_are_finite_differences(name):
    operator, value = OPERATORS[name]
    with jax.enable_x64(True):
        x = jnp.asarray(pictures((1, 16, 17, 1)) / 127.5 - 1)
        apply = functools.partial(jax.jit(operator), x)
        _, tangent = jax.jvp(apply, (jnp.float64(value),), (jnp.float64(1.0),))
        step = 1e-6
        numeric = (apply(value + step) - apply(value - step)) / (2 * step)
        assert float(jnp.abs(tangent).max()) > 0.01
        # Central differences: 1e-12 by truncation, 1e-10 by rounding; kinks of filters are rare.
        np.testing.assert_allclose(tangent, numeric, atol=1e-6)


@all_operators
def test_operators_are_strict_about_types_and_take_batched_parameters(name):
    operator, value = OPERATORS[name]
    x = scaled(pictures((3, 16, 17, 1)))
    values = jnp.float32(value) + jnp.array([0.0, 0.01, 0.02], jnp.float32)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        batched = jax.jit(jax.vmap(operator))(x, values)
    assert batched.dtype == jnp.float32
    np.testing.assert_allclose(batched[1], jax.jit(operator)(x[1], values[1]), atol=1e-5)


def test_misuse_is_explained():
    x = jnp.zeros((8, 8, 3))
    for make, message in (
        (lambda: gaussian_blur(x, 0.5, 24), "expected an odd number"),
        (lambda: resize(x, (4, 4), "nearest"), "expected one of box"),
        (lambda: resize(x, (0, 4)), "at least one pixel"),
        (lambda: shift(jnp.zeros((8, 8)), 0.0, 0.0), r"expected floating point \(..., H, W, C\)"),
        (lambda: rotate(np.zeros((8, 8, 3), np.uint8), 1.0), "uint8"),
    ):
        with pytest.raises(AttackError, match=message):
            make()
