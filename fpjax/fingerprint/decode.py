"""Images of latents, a batch at a time, on the host."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PRNGKeyArray, UInt8

from fpjax.io.images import to_uint8
from fpjax.models.generator import Generator
from fpjax.precision import full_precision
from fpjax.programs import program

Array = jax.Array

BATCH = 64


@program()
@full_precision
def _decode(generator: Generator, latents: Array) -> Array:
    return jnp.clip(generator.decode(generator.params, latents), -1, 1)


def decode_images(
    generator: Generator, latents, batch: int = BATCH
) -> Float[np.ndarray, "batch height width channels"]:
    """Images (N, H, W, C) float32 in [-1, 1] of latents, a batch at a time through one program.

    Args:
      generator: what makes the images.
      latents: (N, *latent_shape).
      batch: images made at once.
    """
    latents = np.asarray(jax.device_get(latents), np.float32)
    count = len(latents)
    batch = max(1, min(batch, count))
    padded = np.concatenate([latents, np.repeat(latents[:1], -count % batch, axis=0)])
    parts = [
        np.asarray(jax.device_get(_decode(generator, jax.device_put(padded[i : i + batch]))))
        for i in range(0, len(padded), batch)
    ]
    if not parts:
        return np.zeros((0, *generator.image_shape), np.float32)
    return np.concatenate(parts)[:count]


def natural_images(
    generator: Generator, key: PRNGKeyArray, num: int
) -> UInt8[np.ndarray, "num height width channels"]:
    """(num, H, W, C) uint8 images of natural latents, as a user without a key would get them."""
    return to_uint8(decode_images(generator, generator.natural_latents(key, num)))
