"""A JPEG file as a measurement: its DCT coefficients, each with the noise of its quantisation step.

The encoder clips the picture, transforms it and rounds each coefficient to a multiple of its step
q. So the file states every coefficient with noise that is uniform of width q, a standard deviation
of q / sqrt(12): small where the eye looks closely, large where it does not. White noise of the same
power is a poor model of that. Clipping comes before the rounding, so that the generator's picture
is clipped here too, and overshooting costs nothing. Where noise was added before, it was clipped
with the picture: black and white became greyer.
"""

from __future__ import annotations

import dataclasses
import os
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PRNGKeyArray, UInt8

from fpjax.inversion.observation import leaky_clip, mean_of_clipped, to_8bit
from fpjax.io.jpeg import dequantised_coefficients, read_jpeg_header
from fpjax.io.jpeg_dct import (
    YCBCR_FROM_RGB,
    JpegLayout,
    coefficient_noise_std,
    jpeg_coefficients,
    jpeg_pixels,
    quantisation_steps,
)
from fpjax.io.jpeg_recover import recover_coefficients
from fpjax.models.generator import static

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Jpeg:
    """One JPEG file. Tables and coefficients are arrays: another quality compiles nothing.

    Attributes:
      coefficients: (M,), those that the file states, times their steps, in 8-bit levels.
      steps: (M,), quantisation steps.
      std: (M,), standard deviation of the coefficients' noise.
      layout: sampling and size of the file.
      noise: standard deviation of white noise that the picture had before it was compressed, images
        in [-1, 1]; its power is part of `std`.

    >>> from fpjax.attacks import Jpeg as Attack
    >>> seen = Jpeg.of_file(Attack(quality=75).encode(np.zeros((16, 16, 3), np.uint8)))
    >>> seen.layout.subsampling, float(seen.steps[0])
    ('4:2:0', 8.0)
    """

    coefficients: Array | np.ndarray
    steps: Array | np.ndarray
    std: Array | np.ndarray
    layout: JpegLayout = static()
    noise: Array | float = 0.0

    name: ClassVar[str] = "jpeg"

    @classmethod
    def of_file(cls, source: str | os.PathLike | bytes) -> Jpeg:
        """The observation that a JPEG file is.

        Args:
          source: a path, or the bytes of a file.

        Raises:
          JpegError: if it is no JPEG file, or damaged.
          ImportError: if the package `jpeglib` is not installed.

        >>> from fpjax.attacks import Jpeg as Attack
        >>> file = Attack(quality=75).encode(np.zeros((16, 16, 3), np.uint8))
        >>> observation = Jpeg.of_file(file)
        >>> black = -jnp.ones((16, 16, 3))
        >>> bool(jnp.max(jnp.abs(observation.residual(black, black))) < 0.5)
        True
        """
        header = read_jpeg_header(source)
        return cls(
            dequantised_coefficients(source),
            quantisation_steps(header.layout, header.tables),
            coefficient_noise_std(header.layout, header.tables),
            header.layout,
        )

    @classmethod
    def of_pixels(
        cls,
        pixels: UInt8[np.ndarray, "height width channels"],
        layout: JpegLayout,
        tables: np.ndarray,
    ) -> Jpeg:
        """The observation of a JPEG file of which only the decoded pixels are left.

        Args:
          pixels: (H, W, C) uint8.
          layout: that of the file, as `estimate_jpeg_tables` finds it.
          tables: its quantisation tables, (T, 8, 8).

        >>> pixels = np.full((16, 16, 1), 100, np.uint8)
        >>> seen = Jpeg.of_pixels(pixels, JpegLayout.of(16, 16, "grey"), np.full((1, 8, 8), 8))
        >>> seen.coefficients.shape
        (256,)
        """
        found = recover_coefficients(pixels, layout, tables)
        steps = quantisation_steps(layout, np.maximum(np.asarray(tables), 1))
        return cls(found.coefficients, steps, found.std, layout)

    def with_noise(self, std: float) -> Jpeg:
        """The same file of a picture to which white noise was added before compression.

        Args:
          std: of the noise, images in [-1, 1].
        """
        power = [np.full(64 * rows * columns, np.nan) for rows, columns in self.layout.block_grids]
        mixing = YCBCR_FROM_RGB if self.layout.colour == "ycbcr" else np.eye(3)
        for part, weights, (horizontal, vertical) in zip(
            power, mixing, self.layout.reductions, strict=False
        ):
            part[:] = (weights**2).sum() / (horizontal * vertical)
        added = np.concatenate(power) * (127.5 * std) ** 2
        total = np.sqrt(np.asarray(self.std) ** 2 + added).astype(np.float32)
        noise = np.float32(np.hypot(np.asarray(self.noise), std))
        return dataclasses.replace(self, std=total, noise=noise)

    @property
    def pixel_std(self) -> Array:
        """Noise of a pixel, images in [-1, 1], about: starts do not fit what is smaller."""
        return jnp.sqrt(jnp.mean(jnp.asarray(self.std) ** 2)) / 127.5

    def residual(
        self,
        image: Float[Array, "height width channels"],
        target: Float[Array, "height width channels"],
        leak: Array | float = 0.0,
    ) -> Float[Array, " residuals"]:
        """See `Observation`; what the file states is in the observation, not in the target."""
        del target
        clipped = leaky_clip(image, jnp.asarray(leak, image.dtype))
        seen = mean_of_clipped(clipped, jnp.asarray(self.noise, image.dtype))
        return (jpeg_coefficients(seen, self.layout) - self.coefficients) / self.std

    def counted(
        self,
        image: Float[Array, "height width channels"],
        target: Float[Array, "height width channels"],
    ) -> Float[Array, " residuals"]:
        """All coefficients."""
        del image, target
        return jnp.ones(self.layout.num_coefficients, jnp.float32)

    def simulate(
        self, key: PRNGKeyArray, images: Float[Array, "batch height width channels"]
    ) -> UInt8[Array, "batch height width channels"]:
        """Clips, adds the noise, compresses with the file's tables and decodes."""
        noise = jnp.asarray(self.noise) * jax.random.normal(key, images.shape, images.dtype)
        noisy = jnp.clip(jnp.clip(images, -1, 1) + noise, -1, 1)
        coefficients = jpeg_coefficients(noisy, self.layout)
        steps = jnp.asarray(self.steps)[None]
        rounded = jnp.rint(coefficients / steps) * steps
        return to_8bit(jpeg_pixels(rounded, self.layout, images.shape[-1]))
