"""How much noise a picture had when it was compressed, told from what its inversion leaves.

A compressed file rounds noise and details away together, so that what it leaves says little by
itself: coefficients in the step around zero leave less than a uniform error, whatever was added.
But the picture that was found can be compressed with the file's own tables, without noise and with
more and more of it. What that leaves is compared with what the file leaves.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from fpjax.inversion.observation import to_8bit
from fpjax.inversion.observation_jpeg import Jpeg
from fpjax.io.jpeg_dct import jpeg_coefficients
from fpjax.precision import full_precision
from fpjax.programs import droppable, program

Array = jax.Array

_STDS = np.concatenate([[0.0], np.geomspace(0.002, 0.5, 24)]).astype(np.float32)
"""Noises that are tried, images in [-1, 1]."""


@dataclasses.dataclass(frozen=True)
class NoisePower:
    """What a JPEG file leaves of a picture, beside what compressing that picture leaves.

    Attributes:
      excess: the file's residual over that of the picture's own compression; about 1 where nothing
        else happened to it.
      std: of white noise before the compression that leaves as much as the file, images in [-1, 1].
    """

    excess: float
    std: float


def noise_power(jpeg: Jpeg, picture: Float[np.ndarray, "height width channels"]) -> NoisePower:
    """Compares a file with compressions of a picture that it may show.

    Args:
      jpeg: the file, as it states itself.
      picture: (H, W, C) in [-1, 1], what was inverted from it.

    >>> from fpjax.attacks import Jpeg as Attack
    >>> rng = np.random.default_rng(0)
    >>> ramp = np.linspace(-0.8, 0.8, 64 * 64 * 3).reshape(64, 64, 3)
    >>> def file(picture):
    ...     return Jpeg.of_file(Attack(quality=75).encode(np.asarray(to_8bit(picture))))
    >>> noise_power(file(ramp), ramp).std < 0.01
    True
    >>> noisy = ramp + 0.1 * rng.standard_normal(ramp.shape)
    >>> 0.09 < noise_power(file(noisy), ramp).std < 0.11
    True
    """
    given = jax.device_put((jpeg, np.asarray(picture, np.float32), _STDS, jax.random.key(0)))
    found, left = (np.asarray(x, np.float64) for x in jax.device_get(_left(*given)))
    if not np.isfinite(found) or not np.isfinite(left).all():
        return NoisePower(np.inf, float(_STDS[-1]))
    power = np.maximum.accumulate(left**2)
    std = np.sqrt(np.interp(found**2, power, np.square(_STDS, dtype=np.float64)))
    return NoisePower(float(found / max(left[0], 1e-9)), float(std))


@droppable
@program()
@full_precision
def _left(jpeg: Jpeg, picture: Array, stds: Array, key: PRNGKeyArray) -> tuple[Array, Array]:
    """Residuals in units of the file's noise: of the file, (), and of compressions (S,)."""
    key_noise, key_own = jax.random.split(key)
    noise = jax.random.normal(key_noise, picture.shape)
    picture = jnp.clip(picture, -1, 1)
    plain = jpeg_coefficients(picture, jpeg.layout)
    # Roundings to whole levels before the quantisation, which the noise has beside the steps'.
    own = jnp.sqrt(jnp.maximum(jpeg.std**2 - jpeg.steps**2 / 12, 0))
    own = own * jax.random.normal(key_own, plain.shape)

    def residual(coefficients: Array) -> Array:
        return jnp.sqrt(jnp.mean(jnp.square((coefficients - plain) / jpeg.std)))

    def compressed(std: Array) -> Array:
        written = to_8bit(picture + std * noise).astype(jnp.float32) / 127.5 - 1
        coefficients = jpeg_coefficients(written, jpeg.layout) + own
        return residual(jnp.rint(coefficients / jpeg.steps) * jpeg.steps)

    return residual(jnp.asarray(jpeg.coefficients)), jax.lax.map(compressed, stds)
