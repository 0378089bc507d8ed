"""The denoiser agrees with the published implementation, inside every JAX transformation."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from checkpoints_convert.publishers import compvis_unet
from checkpoints_convert.publishers.compvis_unet import UNetOptions
from checkpoints_convert.table import select
from fpjax.models import unet
from fpjax.models.unet import UNetConfig
from tests.reference import fixture, relative_error

# Float32 sums in another order; the bound of every parity test in this project.
PARITY = 1e-4


def nhwc(x):
    return jnp.asarray(np.transpose(x, (0, 2, 3, 1)))


@pytest.fixture(scope="module")
def small():
    path = fixture("compvis_unet_small_random.npz")
    arrays = dict(np.load(path, allow_pickle=False))
    conversion = compvis_unet.convert_unet(
        select(arrays, "sd/"), UNetOptions(num_head_channels=16), image_size=8
    )
    return arrays, conversion.config, conversion.plan.apply()


def test_denoise_matches_the_published_implementation(small):
    arrays, config, params = small
    denoise = jax.jit(functools.partial(unet.denoise, config))
    eps = denoise(params, nhwc(arrays["x"]), jnp.asarray(arrays["t"].astype(np.int32)))
    assert eps.dtype == jnp.float32
    assert relative_error(eps, nhwc(arrays["eps"])) < PARITY


def test_number_of_heads_matters(small):
    # The one fact that a checkpoint does not tell: a wrong guess must not pass for parity.
    arrays, config, params = small
    wrong = dataclasses.replace(config, num_head_channels=32)
    denoise = jax.jit(functools.partial(unet.denoise, wrong))
    eps = denoise(params, nhwc(arrays["x"]), jnp.asarray(arrays["t"].astype(np.int32)))
    assert relative_error(eps, nhwc(arrays["eps"])) > 100 * PARITY


def test_scalar_timestep_vmap_and_derivatives():
    # A network of every kind of layer, small because it is compiled five times over.
    config = UNetConfig(
        model_channels=32,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(),
        use_scale_shift_norm=True,
    )
    shapes = unet.param_shapes(config)
    leaves, treedef = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    params = [(0.1 * rng.standard_normal(leaf.shape)).astype(np.float32) for leaf in leaves]
    denoise = functools.partial(unet.denoise, config, jax.tree.unflatten(treedef, params))
    x, tangent, cotangent = jax.random.normal(jax.random.key(0), (3, 2, 4, 4, 3))
    t = jnp.asarray([801, 801], jnp.int32)

    @jax.jit
    def all_of_them(x, t):
        eps, push = jax.linearize(lambda x: denoise(x, t), x)
        (pulled,) = jax.linear_transpose(push, x)(cotangent)
        scalar = denoise(x, t[0])
        lanes = jax.vmap(lambda x, t: denoise(x[None], t)[0])(x, t)
        return eps, scalar, lanes, jnp.vdot(push(tangent), cotangent), jnp.vdot(tangent, pulled)

    eps, scalar, lanes, forward, backward = all_of_them(x, t)
    assert relative_error(scalar, eps) < PARITY
    assert relative_error(lanes, eps) < PARITY
    np.testing.assert_allclose(forward, backward, rtol=1e-3)


def test_bfloat16_is_close_and_returns_float32(small):
    arrays, config, params = small
    low = dataclasses.replace(config, dtype="bfloat16")
    denoise = jax.jit(functools.partial(unet.denoise, low))
    eps = denoise(params, nhwc(arrays["x"]), jnp.asarray(arrays["t"].astype(np.int32)))
    expected = nhwc(arrays["eps"])
    assert eps.dtype == jnp.float32
    # bfloat16 keeps 8 bits, 0.2 % a rounding, and some thirty layers add up.
    assert 0 < jnp.sqrt(jnp.mean((eps - expected) ** 2)) / jnp.std(expected) < 0.03


def test_timestep_embedding_orders_and_frequencies():
    t = jnp.asarray([3])
    first = unet.timestep_embedding(t, 4)
    np.testing.assert_allclose(first[0], [np.cos(3), np.cos(0.03), np.sin(3), np.sin(0.03)], 1e-5)
    other = unet.timestep_embedding(t, 4, order="sin_cos", frequency_shift=1)
    expected = [np.sin(3), np.sin(3e-4), np.cos(3), np.cos(3e-4)]
    np.testing.assert_allclose(other[0], expected, 1e-5)


def test_ffhq_prior_has_as_many_parameters_as_the_published_one():
    # 274,056,163, the published model's count (274.06 M in its training log).
    shapes = unet.param_shapes(UNetConfig.ldm_ffhq256())
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 274_056_163


def test_an_untrained_network_predicts_nothing():
    # As published: residual branches and the last convolution start at zero.
    config = UNetConfig(model_channels=32, channel_mult=(1,), num_res_blocks=1)
    params = unet.init(config, jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (1, 4, 4, 3))
    denoise = jax.jit(functools.partial(unet.denoise, config))
    np.testing.assert_array_equal(denoise(params, x, jnp.asarray(5)), 0)


def test_misuse_is_named(small):
    _, config, params = small
    with pytest.raises(ValueError, match="multiples of 4, 3"):
        unet.denoise(config, params, jnp.zeros((1, 6, 8, 3)), jnp.zeros(1))
    with pytest.raises(ValueError, match=r"t of shape \(3,\)"):
        unet.denoise(config, params, jnp.zeros((1, 8, 8, 3)), jnp.zeros(3))
    with pytest.raises(ValueError, match="heads of 48 channels"):
        UNetConfig(num_head_channels=48)
    with pytest.raises(ValueError, match="3 heads"):
        UNetConfig(num_head_channels=None, num_heads=3)
    with pytest.raises(ValueError, match="cos_sin"):
        UNetConfig(time_embedding_order="cosine")
