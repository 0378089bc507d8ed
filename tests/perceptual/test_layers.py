"""Max pooling written by hand for speed computes what XLA's own does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fpjax.perceptual import _layers


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
