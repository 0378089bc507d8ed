"""StyleGAN2 gives the images of two independent implementations, and its derivatives are right."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from checkpoints_convert.publishers import nvidia, rosinality
from fpjax.models import resample, stylegan2
from fpjax.models.stylegan2 import StyleGAN2Config
from tests.reference import fixture, relative_error

# The bound of every parity test here: 1e-4 of the output's standard deviation, in float32.
BOUND = 1e-4
TINY = StyleGAN2Config(16, 16, 16, 2, channel_base=128, channel_max=16)


def _state_dict(data):
    return {name[3:]: data[name] for name in data.files if name.startswith("sd/")}


@pytest.fixture(scope="module")
def nvidia_case():
    data = np.load(fixture("nvlabs_sg2ada_r32_random.npz"))
    conversion = nvidia.convert_generator(_state_dict(data))
    return data, conversion.config, conversion.plan.apply()


@pytest.fixture(scope="module")
def rosinality_case():
    data = np.load(fixture("rosinality_sg2_r32_random.npz"))
    conversion = rosinality.convert_generator(_state_dict(data))
    return data, conversion.config, conversion.plan.apply()


def _nhwc(images):
    return np.transpose(images, (0, 2, 3, 1))


def test_mapping_matches_nvidia(nvidia_case):
    data, config, params = nvidia_case
    w = stylegan2.mapping(config, params, jnp.asarray(data["z"]))
    assert relative_error(w, data["w"][:, 0]) <= BOUND


def test_synthesis_matches_nvidia_from_one_style_and_from_one_per_layer(nvidia_case):
    data, config, params = nvidia_case
    expected = _nhwc(data["img"])
    for latents in (data["w"], data["w"][:, 0]):
        images = stylegan2.synthesis(config, params, jnp.asarray(latents))
        assert relative_error(images, expected) <= BOUND


def test_truncation_matches_nvidia(nvidia_case):
    data, config, params = nvidia_case
    w = stylegan2.mapping(config, params, jnp.asarray(data["z"]), truncation_psi=0.7)
    images = stylegan2.synthesis(config, params, w)
    assert relative_error(images, _nhwc(data["img_psi07"])) <= BOUND


def test_mapping_and_synthesis_match_rosinality(rosinality_case):
    data, config, params = rosinality_case
    w = stylegan2.mapping(config, params, jnp.asarray(data["z"]))
    assert relative_error(w, data["w"]) <= BOUND
    images = stylegan2.synthesis(config, params, w)
    assert relative_error(images, _nhwc(data["img"])) <= BOUND


def _without_noise(params):
    def clear(path, value):
        return value * 0 if path[-1].key == "noise_strength" else value

    return jax.tree_util.tree_map_with_path(clear, params)


def test_no_noise_is_the_published_network_with_noise_strength_zero(nvidia_case):
    data, config, params = nvidia_case
    w = jnp.asarray(data["w"][:, 0])
    none = stylegan2.synthesis(config, params, w, noise="none")
    silent = stylegan2.synthesis(config, _without_noise(params), w, noise="const")
    assert relative_error(none, silent) <= BOUND
    assert relative_error(none, _nhwc(data["img"])) > BOUND


def test_mixed_latents_use_the_coarse_styles_first(nvidia_case):
    """The 4 px block sees layers 0 and 1 alone: changing the others leaves its RGB as it was."""
    data, config, params = nvidia_case
    w = jnp.asarray(data["w"])
    mixed = jnp.concatenate([w[:1, :4], w[1:, 4:]], axis=1)
    image = stylegan2.synthesis(config, params, mixed)
    same = stylegan2.synthesis(config, params, w[:1])
    other = stylegan2.synthesis(config, params, w[1:])
    assert relative_error(image, same) > BOUND and relative_error(image, other) > BOUND
    back = stylegan2.synthesis(config, params, mixed.at[:, 4:].set(w[:1, 4:]))
    assert relative_error(back, same) <= 1e-6  # the same numbers through the same program


def test_keyed_noise_differs_between_keys_and_images_and_repeats():
    params = stylegan2.init(TINY, jax.random.key(0))
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: x + 0.5 if path[-1].key == "noise_strength" else x, params
    )
    w = jnp.ones((2, 16))
    draw = lambda seed: stylegan2.synthesis(TINY, params, w, noise=jax.random.key(seed))  # noqa: E731
    np.testing.assert_array_equal(draw(1), draw(1))
    assert not np.allclose(draw(1), draw(2))
    assert not np.allclose(draw(1)[0], draw(1)[1])


@pytest.mark.parametrize(
    ("config", "layers", "top_channels"),
    [
        (StyleGAN2Config.ffhq1024(), 18, 32),
        (StyleGAN2Config.ffhq256(), 14, 128),
        (StyleGAN2Config.ffhq256_ada(), 14, 64),
        (StyleGAN2Config.afhq512(), 16, 64),
        (StyleGAN2Config(8), 4, 512),
    ],
)
def test_published_configs_have_their_published_shape(config, layers, top_channels):
    assert config.num_layers == layers
    shapes = stylegan2.param_shapes(config)
    top = shapes["synthesis"][f"b{config.resolution}"]["conv1"]["weight"].shape
    assert top == (3, 3, top_channels, top_channels)
    out = jax.eval_shape(
        lambda p, w: stylegan2.synthesis(config, p, w), shapes, jnp.zeros((2, config.w_dim))
    )
    assert out.shape == (2, config.resolution, config.resolution, 3)


def test_ffhq1024_has_the_30_million_parameters_of_the_paper():
    shapes = stylegan2.param_shapes(StyleGAN2Config.ffhq1024())
    skip = ("noise_const", "w_avg")
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    count = sum(np.prod(x.shape) for path, x in leaves if path[-1].key not in skip)
    assert round(count / 1e6, 2) == 30.37


def test_bfloat16_stays_close_to_float32():
    params = stylegan2.init(TINY, jax.random.key(0))
    w = jax.random.normal(jax.random.key(1), (2, 16))
    half = StyleGAN2Config(16, 16, 16, 2, channel_base=128, channel_max=16, dtype="bfloat16")
    images = stylegan2.synthesis(half, params, w)
    assert images.dtype == jnp.float32
    # bfloat16 keeps 8 bits: each of the five convolutions rounds to 0.4 %.
    assert relative_error(images, stylegan2.synthesis(TINY, params, w)) < 0.1


def test_jvp_and_vjp_agree_with_finite_differences():
    config = StyleGAN2Config(8, 4, 4, 1, channel_base=32, channel_max=4)
    params = stylegan2.init(config, jax.random.key(0))
    w = jax.random.normal(jax.random.key(1), (1, 4))
    # Finite differences in float32 lose half the digits, and leaky ReLU has a kink.
    check_grads(
        lambda w: stylegan2.synthesis(config, params, w),
        (w,),
        order=1,
        modes=("fwd", "rev"),
        atol=2e-2,
        rtol=2e-2,
        eps=1e-3,
    )


def test_one_forward_one_vjp_and_one_batch_compile_once_each():
    params = stylegan2.init(TINY, jax.random.key(0))
    forward = jax.jit(lambda p, w: stylegan2.synthesis(TINY, p, w))
    backward = jax.jit(jax.grad(lambda w, p: stylegan2.synthesis(TINY, p, w).sum()))
    for seed in range(3):
        w = jax.random.normal(jax.random.key(seed), (16, 16))
        forward(params, w[:1])
        forward(params, w)
        backward(w[:1], params)
    assert forward._cache_size() == 2
    assert backward._cache_size() == 1


def test_vmap_over_latents_stays_an_ordinary_convolution():
    """One kernel for the batch: no grouped convolution appears, which would be slow on CPU."""
    params = stylegan2.init(TINY, jax.random.key(0))
    one = lambda w: stylegan2.synthesis(TINY, params, w[None])[0]  # noqa: E731
    text = str(jax.make_jaxpr(jax.vmap(one))(jnp.ones((4, 16))))
    assert "feature_group_count=1" in text
    assert "feature_group_count=4" not in text and "batch_group_count=4" not in text


def test_misuse_is_refused_with_what_was_expected():
    params = stylegan2.init(TINY, jax.random.key(0))
    with pytest.raises(ValueError, match=r"\(batch, 16\) or \(batch, 6, 16\)"):
        stylegan2.synthesis(TINY, params, jnp.ones((2, 17)))
    with pytest.raises(ValueError, match="'const', 'none' or a PRNG key"):
        stylegan2.synthesis(TINY, params, jnp.ones((2, 16)), noise="random")
    with pytest.raises(ValueError, match="power of two from 8 to 1024"):
        StyleGAN2Config(48)


def _zero_insert(x):
    out = jnp.zeros((x.shape[0], 2 * x.shape[1], 2 * x.shape[2], x.shape[3]))
    return out.at[:, ::2, ::2].set(x)


def _filter(x, kernel, pad):
    kernel = jnp.asarray(kernel)[..., None, None] * jnp.eye(x.shape[-1])
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), (pad, pad), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@pytest.mark.parametrize("fir", [(1.0, 3.0, 3.0, 1.0), (1.0, 2.0, 4.0, 0.5)])
def test_polyphase_resampling_is_zero_insertion_convolution_and_filter(fir):
    """Against the textbook definition, with a lopsided filter too."""
    x = jax.random.normal(jax.random.key(0), (2, 5, 5, 3))
    weight = jax.random.normal(jax.random.key(1), (3, 3, 3, 4))
    taps = np.asarray(fir) / np.sum(fir)
    kernel = np.outer(taps, taps)[::-1, ::-1]
    up = _filter(_zero_insert(x), kernel * 4, (2, 1))
    np.testing.assert_allclose(resample.upsample_2d(x, fir), up, atol=1e-5)
    dilated = jax.lax.conv_general_dilated(
        x,
        weight[::-1, ::-1],
        (1, 1),
        ((2, 2), (2, 2)),
        lhs_dilation=(2, 2),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    expected = _filter(dilated, kernel * 4, (1, 1))
    np.testing.assert_allclose(resample.conv2d_up(x, weight, fir), expected, atol=1e-4)


def test_conv_clamp_bounds_activations_after_their_gain():
    """As mixed-precision training applied it; a bound that is never reached changes nothing."""
    params = stylegan2.init(TINY, jax.random.key(0))
    w = jax.random.normal(jax.random.key(1), (2, 16))
    plain = stylegan2.synthesis(TINY, params, w)
    loose, tight = (dataclasses.replace(TINY, conv_clamp=c) for c in (256.0, 0.5))
    np.testing.assert_array_equal(stylegan2.synthesis(loose, params, w), plain)
    assert relative_error(stylegan2.synthesis(tight, params, w), plain) > 0.1
