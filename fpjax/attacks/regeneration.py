"""Regeneration: an autoencoder makes the picture anew from what its latent holds."""

from __future__ import annotations

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from fpjax.attacks.base import Attack, from_pillow, image_keys, number, round_to_uint8, to_pillow
from fpjax.models.ldm_generator import LDMGenerator
from fpjax.precision import full_precision
from fpjax.programs import droppable, program

AUTOENCODER = "avatars-ldm"
"""The bundled model whose first stage regenerates."""


@dataclasses.dataclass(frozen=True)
class Regenerate(Attack):
    """Encodes a picture with the bundled autoencoder, and decodes it, `passes` times.

    Pictures of another size than the autoencoder's are brought to it, and back, by Pillow's bicubic
    filter. With noise in the latents the picture keeps less of what it was.

    >>> image = np.full((1, 32, 32, 3), 255, np.uint8)
    >>> Regenerate()(None, image).shape
    (1, 32, 32, 3)
    """

    name: ClassVar[str] = "regenerate"
    linear: ClassVar[bool] = False
    differentiable: ClassVar[bool] = False
    source: ClassVar[str] = (
        "An et al., WAVES, ICML 2024 (arXiv 2401.08573): Regen-VAE, Rinse; noise in the latent: "
        "Zhao et al., NeurIPS 2024 (arXiv 2306.01953)"
    )
    channels: ClassVar[tuple[int, ...]] = (3,)

    passes: int = number(1, 1, 100, "how often it is encoded and decoded")
    noise: float = number(0.0, 0, 10, "standard deviation in the latent, whose own is near 1")

    @property
    def random(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the latents get noise."""
        return self.noise > 0

    def _apply(self, key, images):
        generator = _autoencoder()
        size = generator.image_shape[1], generator.image_shape[0]
        keys = image_keys(jax.random.key(0) if key is None else key, len(images))
        noise = jnp.float32(self.noise)
        made = []
        for image, own in zip(images, keys, strict=True):
            picture = to_pillow(image)
            for step in range(self.passes):
                pixels = from_pillow(picture.resize(size, _bicubic()), 3)
                new = _regenerated(generator, jax.random.fold_in(own, step), pixels, noise)
                picture = to_pillow(round_to_uint8(np.asarray(new, np.float64) * 127.5 + 127.5))
            made.append(from_pillow(picture.resize(image.shape[1::-1], _bicubic()), 3))
        return np.stack(made)


@functools.cache
def _autoencoder() -> LDMGenerator:
    from fpjax.zoo.load import load_generator

    generator = load_generator(AUTOENCODER)
    assert isinstance(generator, LDMGenerator)
    return generator


def _bicubic():
    from PIL import Image

    return Image.Resampling.BICUBIC


@droppable
@program()
@full_precision
def _regenerated(generator: LDMGenerator, key, pixels, noise):
    """One picture (H, W, C) in [-1, 1], of 8-bit pixels."""
    assert generator.encode is not None
    image = pixels.astype(jnp.float32) / jnp.float32(127.5) - 1
    latents = generator.encode(generator.params, image[None])
    latents = latents + noise * jax.random.normal(key, latents.shape, latents.dtype)
    return generator.decode(generator.params, latents)[0]
