"""A small first stage of our own making: latents with a picture's shape, and an encoder."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import fpjax

GRID = (6, 6, 3)
SHAPE = (12, 12, 3)


def _convolve(x, kernel):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def decode(params, latents):
    """Twice the side, a hidden layer of 8 channels, images mostly inside [-1, 1]."""
    doubled = jnp.repeat(jnp.repeat(latents, 2, axis=1), 2, axis=2)
    hidden = jnp.tanh(_convolve(doubled, params["first"]) + params["position"])
    return 0.9 * jnp.tanh(_convolve(hidden, params["second"]))


def encode(params, images):
    """A linear read-out, fitted by least squares: right to about a tenth of a latent's spread."""
    flat = jnp.arctanh(jnp.clip(images / 0.9, -0.98, 0.98)).reshape(images.shape[0], -1)
    return (flat @ params["read"] + params["bias"][None]).reshape(-1, *GRID)


def sample(params, key, num):
    """Smooth latents: the low frequencies vary most, and channels go together."""
    del params
    noise = jax.random.normal(key, (num, *GRID), jnp.float32)
    smooth = _convolve(noise, jnp.ones((3, 3, 3, 3), jnp.float32) / 9)
    return 0.3 * noise + smooth


@functools.cache
def _params():
    rng = np.random.default_rng(0)

    def draw(*shape, scale):
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    params = {
        "first": draw(3, 3, 3, 12, scale=0.35),
        "second": draw(3, 3, 12, 3, scale=0.16),
        "position": draw(1, 12, 12, 12, scale=0.1),
    }
    latents = np.asarray(sample(None, jax.random.key(9), 3000))
    images = np.asarray(decode(params, latents))
    flat = np.arctanh(np.clip(images / 0.9, -0.98, 0.98)).reshape(len(images), -1)
    flat = np.concatenate([flat, np.ones((len(flat), 1), np.float32)], axis=1).astype(np.float64)
    gram = flat.T @ flat
    gram += 1e-4 * np.trace(gram) / len(gram) * np.eye(len(gram))
    weight = np.linalg.solve(gram, flat.T @ latents.reshape(len(latents), -1))
    return params | {
        "read": weight[:-1].astype(np.float32),
        "bias": weight[-1].astype(np.float32),
    }


@functools.cache
def generator():
    """The first stage as a generator, with an encoder."""
    return fpjax.Generator(
        decode=decode,
        params=jax.device_put(_params()),
        latent_shape=GRID,
        image_shape=SHAPE,
        sample_latents=sample,
        encode=encode,
        name="pictures",
    )


@functools.cache
def scheme(strength=0.15, length=6):
    """Keys of six bits on the last directions of the image metric in blocks."""
    from fpjax.fingerprint.grid_metric import grid_basis, grid_metric

    made = generator()
    latents = np.asarray(made.natural_latents(jax.random.key(1), 600)).reshape(600, -1)
    blocks = grid_metric(made, latents[:64], jax.random.key(2), 256)
    return fpjax.Scheme.create(made, grid_basis(latents, blocks, GRID), length, strength=strength)
