"""Convolutions written by hand for speed compute what XLA's own does; trees are checked by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpjax.models import layers, parameters
from fpjax.models.parameters import ParamSpec
from tests.reference import relative_error


@pytest.mark.parametrize("kernel", [(3, 3), (5, 5), (1, 7), (2, 4)])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 5), (4, 4)])
def test_convolution_of_a_small_map_equals_the_general_convolution(size, kernel):
    assert size[0] * size[1] <= layers._MATMUL_MAX_PIXELS
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, *size, 8)), jnp.float32)
    weight = jnp.asarray(rng.normal(size=(*kernel, 8, 6)), jnp.float32)
    expected = jax.lax.conv_general_dilated(
        x, weight, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    # Another order of summation: float32 rounding only.
    assert relative_error(layers.convolve(x, weight), expected) < 1e-5


def test_parameters_have_the_mean_and_deviation_that_their_description_states():
    specs = {"a": ParamSpec((100, 100), mean=3.0, std=0.5), "b": ParamSpec((4,), mean=2.0)}
    params = parameters.draw_params(specs, jax.random.key(0))
    # Ten thousand draws: the mean is right to 0.5 %, the deviation to 0.7 %; five times that.
    assert (
        abs(float(params["a"].mean()) - 3.0) < 0.025 and abs(float(params["a"].std()) - 0.5) < 0.02
    )
    np.testing.assert_array_equal(params["b"], 2.0)


def test_a_tree_that_does_not_fit_is_refused_by_name():
    specs = layers.conv_spec(3, 8)
    good = parameters.draw_params(specs, jax.random.key(0))
    parameters.check_params(good, specs, "network")
    for bad, message in (
        ({"weight": good["weight"]}, "of network: bias is missing"),
        ({**good, "scale": good["bias"]}, "scale is unexpected"),
        ({**good, "weight": good["weight"].T}, r"weight has shape \(8, 3, 3, 3\), expected \(3, 3"),
    ):
        with pytest.raises(ValueError, match=message):
            parameters.check_params(bad, specs, "network")
