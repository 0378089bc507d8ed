"""Small generators of people's own making, on which inversions are quick and often exact."""

import jax
import jax.numpy as jnp
import numpy as np

import fpjax
from fpjax.fingerprint.basis import pca

SHAPE = (12, 10, 1)
SIZE = 16


def linear_decode(params, latents):
    """Images that are linear in the latent."""
    flat = latents @ params["matrix"] + params["offset"][None]
    return flat.reshape(-1, *SHAPE)


def curved_decode(params, latents):
    """A two-layer network: nonlinear, well inside [-1, 1]."""
    hidden = jnp.tanh(latents @ params["first"])
    return (0.8 * jnp.tanh(hidden @ params["matrix"])).reshape(-1, *SHAPE)


def broken_decode(params, latents):
    """Not finite anywhere."""
    return linear_decode(params, latents) * jnp.nan


def sample(params, key, num):
    """Standard normal latents, narrower from the first to the last coordinate."""
    del params
    spread = jnp.linspace(1.0, 0.2, SIZE, dtype=jnp.float32)
    return jax.random.normal(key, (num, SIZE), jnp.float32) * spread[None]


def generator(decode=linear_decode, *, scale=0.05, condition=1.0, offset=0.0, seed=0):
    """A generator of one channel, 12 by 10; `condition` spreads its singular values."""
    rng = np.random.default_rng(seed)
    pixels = int(np.prod(SHAPE))
    left, _ = np.linalg.qr(rng.standard_normal((SIZE, SIZE)))
    right, _ = np.linalg.qr(rng.standard_normal((pixels, SIZE)))
    values = np.logspace(0, -np.log10(condition), SIZE) * np.sqrt(pixels) * scale
    params = {
        "matrix": (left * values @ right.T).astype(np.float32),
        "first": (rng.standard_normal((SIZE, SIZE)) / 4).astype(np.float32),
        "offset": np.full(pixels, offset, np.float32),
    }
    return fpjax.Generator(
        decode=decode,
        params=jax.device_put(params),
        latent_shape=(SIZE,),
        image_shape=SHAPE,
        sample_latents=sample,
        name=decode.__name__,
    )


def scheme(made=None, *, strength=0.3, length=6, **options):
    """Keys of six bits on the last of sixteen principal components."""
    made = generator() if made is None else made
    latents = np.asarray(made.natural_latents(jax.random.key(5), 500))
    return fpjax.Scheme.create(made, pca(latents), length, strength=strength, **options)


def starts(scheme):
    """One start: the mean latent, symbols in the middle."""
    return np.zeros((1, len(scheme.basis)), np.float32)
