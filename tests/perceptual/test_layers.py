"""The two layers written by hand for speed compute what XLA's own do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fpjax.perceptual import _layers
from tests.reference import relative_error


@pytest.mark.parametrize("kernel", [(3, 3), (5, 5), (1, 7), (2, 4)])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 5), (4, 4)])
def test_convolution_of_a_small_map_equals_the_general_convolution(size, kernel):
    assert size[0] * size[1] <= _layers._MATMUL_CONV_MAX_PIXELS
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, *size, 8)), jnp.float32)
    weight = jnp.asarray(rng.normal(size=(*kernel, 8, 6)), jnp.float32)
    expected = lax.conv_general_dilated(
        x, weight, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    # Another order of summation: float32 rounding only.
    assert relative_error(_layers.conv2d(x, weight, padding="SAME"), expected) < 1e-5


@pytest.mark.parametrize(
    ("size", "window", "stride", "padding"),
    [(8, 2, 2, 0), (7, 2, 2, 0), (7, 3, 2, 0), (8, 3, 2, 0), (5, 3, 1, 1), (3, 3, 2, 0)],
)
def test_max_pool_equals_reduce_window(size, window, stride, padding):
    x = jax.random.normal(jax.random.key(0), (2, size, size + 1, 3))
    pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    expected = lax.reduce_window(
        x, -jnp.inf, lax.max, (1, window, window, 1), (1, stride, stride, 1), pads
    )
    actual = _layers.max_pool2d(x, window=window, stride=stride, padding=padding)
    np.testing.assert_array_equal(actual, expected)
