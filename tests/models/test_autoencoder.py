"""First stages agree with the published implementation, and differentiate as attribution needs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from checkpoints_convert.publishers import compvis_first_stage
from checkpoints_convert.publishers.compvis_first_stage import FirstStageOptions
from checkpoints_convert.table import select
from fpjax.models import autoencoder
from fpjax.models.autoencoder import AutoencoderConfig
from tests.reference import fixture, relative_error

# Float32 sums in another order; the bound of every parity test in this project.
PARITY = 1e-4


def nhwc(x):
    return jnp.asarray(np.transpose(x, (0, 2, 3, 1)))


@functools.cache
def load(name):
    arrays = dict(np.load(fixture(name), allow_pickle=False))
    conversion = compvis_first_stage.convert_autoencoder(
        select(arrays, "sd/"), FirstStageOptions(resolution=32)
    )
    return arrays, conversion.config, conversion.plan.apply()


@pytest.fixture
def kl():
    return load("compvis_kl_f4_tiny_random.npz")


@pytest.fixture
def vq():
    return load("compvis_vq_f4_small_random.npz")


def jit(function, config, **options):
    return jax.jit(functools.partial(function, config, **options))


def test_kl_decode_matches_the_published_implementation(kl):
    arrays, config, params = kl
    images = jit(autoencoder.decode, config)(params, nhwc(arrays["z"]))
    assert images.dtype == jnp.float32
    assert relative_error(images, nhwc(arrays["img"])) < PARITY


@pytest.mark.parametrize(
    ("quantize", "name"), [(True, "img_quantized"), (False, "img_unquantized")]
)
def test_vq_decode_matches_the_published_implementation(vq, quantize, name):
    arrays, config, params = vq
    images = jit(autoencoder.decode, config, quantize=quantize)(params, nhwc(arrays["z"]))
    assert relative_error(images, nhwc(arrays[name])) < PARITY


def test_vq_encode_gives_the_latent_before_quantisation(vq):
    arrays, config, params = vq
    z = jit(autoencoder.encode, config)(params, nhwc(arrays["x"]))
    assert relative_error(z, nhwc(arrays["enc_prequant"])) < PARITY


def test_quantisation_is_straight_through(vq):
    # Derivative with quantisation = derivative without it, taken at the quantised latent.
    arrays, config, params = vq
    z = nhwc(arrays["z"][:1])
    codebook = jnp.asarray(params["codebook"])
    codes = codebook[autoencoder.nearest_codes(codebook, z)]
    tangent = jax.random.normal(jax.random.key(0), z.shape)
    decode = functools.partial(autoencoder.decode, config, params)
    image, through = jax.jit(lambda z, t: jax.jvp(decode, (z,), (t,)))(z, tangent)
    plain = functools.partial(decode, quantize=False)
    expected, direct = jax.jit(lambda z, t: jax.jvp(plain, (z,), (t,)))(codes, tangent)
    # z + (code - z) rounds once more than the code itself.
    assert relative_error(image, expected) < PARITY
    assert relative_error(through, direct) < PARITY


def test_vjp_is_the_transpose_of_jvp_and_vmap_changes_nothing(vq):
    arrays, config, params = vq
    decode = functools.partial(autoencoder.decode, config, params)
    z = nhwc(arrays["z"])
    keys = jax.random.split(jax.random.key(1))
    tangent = jax.random.normal(keys[0], z.shape)

    @jax.jit
    def both(z):
        image, push = jax.linearize(decode, z)
        cotangent = jax.random.normal(keys[1], image.shape)
        (pulled,) = jax.linear_transpose(push, z)(cotangent)
        lanes = jax.vmap(lambda z: decode(z[None])[0])(z)
        return image, lanes, jnp.vdot(push(tangent), cotangent), jnp.vdot(tangent, pulled)

    image, lanes, forward, backward = both(z)
    np.testing.assert_allclose(forward, backward, rtol=1e-3)
    # The same sums in another order.
    assert relative_error(lanes, image) < PARITY


def test_bfloat16_is_close_and_returns_float32(kl):
    arrays, config, params = kl
    low = dataclasses.replace(config, dtype="bfloat16")
    images = jit(autoencoder.decode, low)(params, nhwc(arrays["z"]))
    assert images.dtype == jnp.float32
    # bfloat16 keeps 8 bits, 0.2 % a rounding, and some twenty layers add up.
    expected = nhwc(arrays["img"])
    assert 0 < jnp.sqrt(jnp.mean((images - expected) ** 2)) / jnp.std(expected) < 0.03


def test_latents_are_scaled_as_the_denoiser_sees_them(vq):
    arrays, config, params = vq
    scaled = dataclasses.replace(config, scale_factor=0.5, shift_factor=0.3)
    z = jit(autoencoder.encode, scaled)(params, nhwc(arrays["x"]))
    assert relative_error(z, 0.5 * (nhwc(arrays["enc_prequant"]) - 0.3)) < PARITY
    images = jit(autoencoder.decode, scaled)(params, 0.5 * (nhwc(arrays["z"]) - 0.3))
    assert relative_error(images, nhwc(arrays["img_quantized"])) < PARITY


def test_kl_encoding_samples_its_gaussian_only_with_a_key():
    config = AutoencoderConfig(ch=32, ch_mult=(1,), num_res_blocks=1, resolution=8)
    params = autoencoder.init(config, jax.random.key(0))
    # A log-variance of 2 log 0.1 whatever the image.
    params["quant_conv"]["weight"] = params["quant_conv"]["weight"].at[:, 3:].set(0)
    params["quant_conv"]["bias"] = params["quant_conv"]["bias"].at[3:].set(2 * np.log(0.1))
    images = jax.random.uniform(jax.random.key(1), (8, 8, 8, 3), minval=-1, maxval=1)
    encode = jit(autoencoder.encode, config)
    mean, drawn = encode(params, images), encode(params, images, key=jax.random.key(2))
    np.testing.assert_array_equal(mean, encode(params, images))
    # 1536 draws: the standard deviation is known to 2 %, the bound is 5 standard errors.
    assert abs(float(jnp.std(drawn - mean)) - 0.1) < 0.01


def test_nearest_codes_agrees_with_brute_force_across_blocks():
    rng = np.random.default_rng(0)
    codebook = rng.standard_normal((3072, 4)).astype(np.float32)
    z = rng.standard_normal((50, 4)).astype(np.float32)
    distance = ((z[:, None].astype(np.float64) - codebook) ** 2).sum(-1)
    found = autoencoder.nearest_codes(jnp.asarray(codebook), jnp.asarray(z))
    np.testing.assert_array_equal(found, distance.argmin(1))
    duplicated = jnp.zeros((2048, 4))
    assert autoencoder.nearest_codes(duplicated, jnp.asarray(z)).max() == 0


@pytest.mark.parametrize(
    ("name", "latent_shape"),
    [
        ("kl_f4", (64, 64, 3)),
        ("kl_f8", (32, 32, 4)),
        ("kl_f16", (16, 16, 16)),
        ("vq_f4", (64, 64, 3)),
        ("vq_f8", (32, 32, 4)),
        ("vq_f16", (16, 16, 8)),
    ],
)
def test_published_latent_shapes(name, latent_shape):
    config = getattr(AutoencoderConfig, name)()
    assert config.latent_shape == latent_shape
    images = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    encode = functools.partial(autoencoder.encode, config)
    params = autoencoder.param_shapes(config)
    assert jax.eval_shape(encode, params, images).shape == (1, *latent_shape)


def test_kl_f8_has_as_many_parameters_as_the_published_one():
    # The count of Stable Diffusion's autoencoder, whose architecture this is.
    shapes = autoencoder.param_shapes(AutoencoderConfig.kl_f8())
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 83_653_863


def test_misuse_is_named(vq):
    _, config, params = vq
    with pytest.raises(ValueError, match=r"latents of shape \(8, 8, 3\)"):
        autoencoder.decode(config, params, jnp.zeros((8, 8, 3)))
    with pytest.raises(ValueError, match="multiples of 4, 3"):
        autoencoder.encode(config, params, jnp.zeros((1, 30, 32, 3)))
    with pytest.raises(ValueError, match="not sampled"):
        autoencoder.encode(config, params, jnp.zeros((1, 32, 32, 3)), key=jax.random.key(0))
    with pytest.raises(ValueError, match="without its encoder"):
        decoder = AutoencoderConfig(has_encoder=False)
        autoencoder.encode(decoder, params, jnp.zeros((1, 32, 32, 3)))
    with pytest.raises(ValueError, match="double_z=False"):
        AutoencoderConfig(n_embed=4)
    with pytest.raises(ValueError, match="products must be whole"):
        AutoencoderConfig(ch_mult=(1, 1.001))
    with pytest.raises(ValueError, match="normalisation groups"):
        AutoencoderConfig(ch=48)
