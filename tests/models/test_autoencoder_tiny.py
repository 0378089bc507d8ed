"""The tiny autoencoder agrees with the published one, on the published weights and real faces."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from checkpoints_convert.publishers import taesd
from fpjax.models import autoencoder_tiny
from fpjax.models.autoencoder_tiny import AutoencoderTinyConfig
from tests.reference import fixture, relative_error

# Float32 sums in another order; the bound of every parity test in this project.
PARITY = 1e-4


def nhwc(x):
    return jnp.asarray(np.transpose(x, (0, 2, 3, 1)))


@pytest.fixture(scope="module")
def taef2():
    from checkpoints_convert.readers import read

    files = {half: fixture(f"taef2_{half}.pth") for half in ("decoder", "encoder")}
    arrays = dict(np.load(fixture("taef2_real_faces_64.npz"), allow_pickle=False))
    conversion = taesd.convert_taesd(
        **{half: read(path).tensors() for half, path in files.items()}, resolution=64
    )
    return arrays, conversion.config, conversion.plan.apply()


def test_taef2_is_recognised(taef2):
    _, config, params = taef2
    assert config == dataclasses.replace(AutoencoderTinyConfig.taef2(), resolution=64)
    assert config.latent_shape == (8, 8, 32)
    # The files hold float16; parameters are float32.
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}


def test_decode_matches_the_published_decoder_on_real_faces(taef2):
    arrays, config, params = taef2
    decode = jax.jit(functools.partial(autoencoder_tiny.decode, config))
    images = decode(params, nhwc(arrays["z"]))
    # The original's images are in [0, 1].
    assert relative_error((images + 1) / 2, nhwc(arrays["y"])) < PARITY


def test_encode_matches_the_published_encoder_on_real_faces(taef2):
    arrays, config, params = taef2
    encode = jax.jit(functools.partial(autoencoder_tiny.encode, config))
    latents = encode(params, nhwc(arrays["x"]) * 2 - 1)
    assert relative_error(latents, nhwc(arrays["z"])) < PARITY


def test_derivatives_vmap_and_bfloat16(taef2):
    arrays, config, params = taef2
    decode = functools.partial(autoencoder_tiny.decode, config, params)
    low = dataclasses.replace(config, dtype="bfloat16")
    z = nhwc(arrays["z"][:2])
    tangent = jax.random.normal(jax.random.key(0), z.shape)

    @jax.jit
    def everything(z):
        images, push = jax.linearize(decode, z)
        cotangent = jax.random.normal(jax.random.key(1), images.shape)
        (pulled,) = jax.linear_transpose(push, z)(cotangent)
        lanes = jax.vmap(lambda z: decode(z[None])[0])(z)
        rough = autoencoder_tiny.decode(low, params, z)
        return images, lanes, rough, jnp.vdot(push(tangent), cotangent), jnp.vdot(tangent, pulled)

    images, lanes, rough, forward, backward = everything(z)
    np.testing.assert_allclose(forward, backward, rtol=1e-3)
    assert relative_error(lanes, images) < PARITY
    assert rough.dtype == jnp.float32
    # bfloat16 keeps 8 bits, 0.2 % a rounding, and some forty layers add up.
    assert 0 < jnp.sqrt(jnp.mean((rough - images) ** 2)) / jnp.std(images) < 0.03


def test_latents_far_out_saturate(taef2):
    _, config, params = taef2
    decode = jax.jit(functools.partial(autoencoder_tiny.decode, config))
    z = jnp.full((1, 8, 8, 32), 60.0)
    np.testing.assert_allclose(decode(params, z), decode(params, 2 * z), atol=1e-5)


@pytest.mark.parametrize(("name", "channels"), [("taesd", 4), ("taesd3", 16), ("taef2", 32)])
def test_published_latent_shapes(name, channels):
    config = getattr(AutoencoderTinyConfig, name)()
    images = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    encode = functools.partial(autoencoder_tiny.encode, config)
    params = autoencoder_tiny.param_shapes(config)
    assert jax.eval_shape(encode, params, images).shape == (1, *config.latent_shape)
    assert config.latent_shape == (32, 32, channels)


def test_misuse_is_named():
    config = AutoencoderTinyConfig(has_encoder=False)
    with pytest.raises(ValueError, match="without its encoder"):
        autoencoder_tiny.encode(config, {}, jnp.zeros((1, 8, 8, 3)))
    with pytest.raises(ValueError, match=r"latents of shape \(1, 8, 8, 3\)"):
        autoencoder_tiny.decode(config, {}, jnp.zeros((1, 8, 8, 3)))
    with pytest.raises(ValueError, match="2 encoder and 4 decoder stages"):
        AutoencoderTinyConfig(encoder_blocks=(1, 3))
