"""The smallest generator there is: images that are linear in standard normal latents.

Everything about it is known in closed form, so that examples and tests use it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from fpjax.errors import InputError
from fpjax.models.generator import Generator

Array = jax.Array


def linear_generator(
    latent_size: int = 16, image_shape: tuple[int, int, int] = (8, 8, 1), *, seed: int = 0
) -> Generator:
    """A generator of random orthogonal patterns, each fainter than the one before.

    Args:
      latent_size: patterns, at most as many as an image has values.
      image_shape: (height, width, channels), 1 or 3 channels.
      seed: of the patterns.

    Raises:
      InputError: for more patterns than values.

    >>> generator = linear_generator()
    >>> latents = generator.natural_latents(jax.random.key(0), 5)
    >>> generator.decode(generator.params, latents).shape
    (5, 8, 8, 1)
    """
    values = int(np.prod(image_shape))
    if not 1 <= latent_size <= values:
        raise InputError(
            f"latent_size {latent_size}: expected 1 to {values}, the values of an image"
        )
    random = np.random.default_rng(seed)
    patterns, _ = np.linalg.qr(random.standard_normal((values, latent_size)))
    patterns = patterns.T * np.linspace(1, 0.2, latent_size)[:, None]
    return Generator(
        decode=_decode,
        params=jax.device_put(patterns.reshape(latent_size, *image_shape).astype(np.float32)),
        latent_shape=(latent_size,),
        image_shape=image_shape,
        sample_latents=_sample,
        name="linear",
    )


def _decode(params: Array, latents: Array) -> Array:
    return jnp.tensordot(latents, params, axes=1)


def _sample(params: Array, key: Array, num: int) -> Array:
    return jax.random.normal(key, (num, len(params)), jnp.float32)
