"""A person's own generator, as the command line is given it: grey, not square, inverted at once."""

import jax
import jax.numpy as jnp

import fpjax

LATENTS, SHAPE = 10, (12, 10, 1)


def _decode(params, latents):
    return 0.9 * jnp.tanh(latents @ params).reshape(-1, *SHAPE)


def _sample(params, key, num):
    return jax.random.normal(key, (num, LATENTS), jnp.float32)


def _encode(params, images):
    flat = jnp.arctanh(jnp.clip(images.reshape(len(images), -1) / 0.9, -0.99, 0.99))
    return flat @ jnp.linalg.pinv(params)


def make():
    weight = 0.2 * jax.random.normal(jax.random.key(0), (LATENTS, 120), jnp.float32)
    return fpjax.Generator(
        decode=_decode,
        params=weight,
        latent_shape=(LATENTS,),
        image_shape=SHAPE,
        sample_latents=_sample,
        name="own",
    )


def make_with_encoder():
    return make().replace(encode=_encode)
