"""Noise: Gaussian, of photons, speckle, salt and pepper."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from fpjax.attacks.base import Attack, image_keys, number, round_to_uint8


@dataclasses.dataclass(frozen=True)
class GaussianNoise(Attack):
    """White Gaussian noise on every pixel and channel, then clipping and rounding.

    The default is the noise of the published StyleGAN2 protocol.

    >>> noise = GaussianNoise(std=0.1)
    >>> bool(noise(jax.random.key(0), np.full((1, 8, 8, 3), 128, np.uint8)).std() > 8)
    True
    """

    name: ClassVar[str] = "gaussian_noise"
    linear: ClassVar[bool] = True
    differentiable: ClassVar[bool] = True
    random: ClassVar[bool] = True
    source: ClassVar[str] = "Nie et al., ICML 2023 (arXiv 2304.09752): std 0.1"

    std: float = number(0.1, 0.0, 2.0, "standard deviation for images in [-1, 1]")

    def _apply(self, key, images):
        return round_to_uint8(images + np.float32(127.5 * self.std) * _white(key, images))


@dataclasses.dataclass(frozen=True)
class PoissonNoise(Attack):
    """Each value becomes a count of photons, as a camera's does in little light.

    >>> noise = PoissonNoise(peak=50.0)
    >>> grey = np.full((1, 64, 64, 3), 128, np.uint8)
    >>> round(float(noise(jax.random.key(0), grey).std()))  # 255 / 50 * sqrt(50 * 128 / 255)
    26
    """

    name: ClassVar[str] = "poisson_noise"
    linear: ClassVar[bool] = False
    differentiable: ClassVar[bool] = False
    random: ClassVar[bool] = True
    source: ClassVar[str] = "Pan et al., MarkDiffusion, 2025 (arXiv 2509.10569)"

    peak: float = number(255.0, 1.0, 1e6, "photons of a white pixel and channel, on average")

    def _apply(self, key, images):
        shape, scale = images.shape[1:], np.float32(self.peak / 255)
        rates = jnp.asarray(images * scale)
        draw = jax.vmap(lambda k, rate: jax.random.poisson(k, rate, shape, jnp.int32))
        counts = np.asarray(draw(image_keys(key, images.shape[0]), rates))
        return round_to_uint8(counts.astype(np.float32) / scale)


@dataclasses.dataclass(frozen=True)
class SpeckleNoise(Attack):
    """Multiplies each value by 1 + noise: dark parts stay, bright parts are hit.

    >>> black = np.zeros((1, 8, 8, 3), np.uint8)
    >>> bool((SpeckleNoise(std=0.5)(jax.random.key(0), black) == 0).all())
    True
    """

    name: ClassVar[str] = "speckle_noise"
    linear: ClassVar[bool] = True
    differentiable: ClassVar[bool] = True
    random: ClassVar[bool] = True
    source: ClassVar[str] = "Pan et al., MarkDiffusion, 2025 (arXiv 2509.10569)"

    std: float = number(0.1, 0.0, 2.0, "standard deviation of the factor")

    def _apply(self, key, images):
        return round_to_uint8(images * (1 + np.float32(self.std) * _white(key, images)))


def _white(key, images: np.ndarray) -> np.ndarray:
    """Standard normal numbers for each value of a batch."""
    draw = jax.vmap(lambda k: jax.random.normal(k, images.shape[1:], jnp.float32))
    return np.asarray(draw(image_keys(key, images.shape[0])))


@dataclasses.dataclass(frozen=True)
class SaltAndPepper(Attack):
    """Turns a share of the pixels black or white, half each, all channels together.

    >>> attack = SaltAndPepper(amount=0.5)
    >>> sorted(set(attack(jax.random.key(0), np.full((1, 9, 9, 1), 7, np.uint8)).ravel().tolist()))
    [0, 7, 255]
    """

    name: ClassVar[str] = "salt_and_pepper"
    linear: ClassVar[bool] = True
    differentiable: ClassVar[bool] = True
    random: ClassVar[bool] = True
    source: ClassVar[str] = "Yang et al., Gaussian Shading, CVPR 2024 (arXiv 2404.04956): 0.05"

    amount: float = number(0.05, 0.0, 1.0, "share of the pixels")

    def _apply(self, key, images):
        shape = images.shape[1:3]
        draw = jax.vmap(lambda k: jax.random.uniform(k, (*shape, 1), jnp.float32))
        position = np.asarray(draw(image_keys(key, images.shape[0])))
        pepper = position < self.amount / 2
        salt = (position >= self.amount / 2) & (position < self.amount)
        return np.where(pepper, np.uint8(0), np.where(salt, np.uint8(255), images))
