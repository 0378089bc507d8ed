"""Pictures that carry keys: natural latents in, fingerprinted 8-bit images out."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import jax
import numpy as np
from jaxtyping import Float, PRNGKeyArray, Shaped, UInt8

from fpjax.errors import InputError
from fpjax.fingerprint.decode import decode_images
from fpjax.fingerprint.keys import check_keys
from fpjax.fingerprint.scheme import Scheme
from fpjax.io.images import save_image, to_uint8
from fpjax.precision import full_precision
from fpjax.programs import program

Array = jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class Generated:
    """What `generate` returns for B keys.

    Attributes:
      images: (B, H, W, C) uint8, what a user saves and an owner attributes.
      float_images: (B, H, W, C) float32 in [-1, 1], before rounding to 8 bits.
      latents: (B, *latent_shape) float32.
      originals: (B, H, W, C) uint8 of the same natural latents without the key; None for sampled
        alpha, which has no original.
      alpha: (B, K - L) float32.
      keys: (B, key_length) uint8.

    >>> import fpjax
    >>> from fpjax.models.linear import linear_generator
    >>> generator = linear_generator()
    >>> basis = fpjax.fit_basis(generator, jax.random.key(0), 100, metric="latent")
    >>> scheme = fpjax.Scheme.create(generator, basis, key_length=4, strength=0.5)
    >>> made = fpjax.generate(scheme, jax.random.key(1), np.zeros((2, 4), np.uint8))
    >>> made.images.shape, made.images.dtype, made.alpha.shape
    ((2, 8, 8, 1), dtype('uint8'), (2, 12))
    """

    images: UInt8[np.ndarray, "batch height width channels"]
    float_images: Float[np.ndarray, "batch height width channels"]
    latents: Float[np.ndarray, "batch ..."]
    originals: UInt8[np.ndarray, "batch height width channels"] | None
    alpha: Float[np.ndarray, "batch coordinates"]
    keys: UInt8[np.ndarray, "batch length"]

    def __len__(self) -> int:
        return len(self.images)

    def save(self, folder: str | os.PathLike, stem: str = "") -> list[Path]:
        """Writes each image as a PNG file, `STEM0000.png` and on, each whole or not at all.

        Args:
          folder: made if it is not there.
          stem: how the names begin.

        Returns:
          The files, in order.

        Raises:
          FileExistsError: if one of them exists; nothing is written then.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{stem}{i:04d}.png" for i in range(len(self))]
        for path in paths:
            if path.exists():
                raise FileExistsError(f"{path} exists already: choose another folder or stem")
        for path, image in zip(paths, self.images, strict=True):
            save_image(path, image)
        return paths


@functools.partial(jax.jit, static_argnums=1)
def _normal(key: Array, shape: tuple[int, int]) -> Array:
    return jax.random.normal(key, shape, "float32")


@program()
@full_precision
def _project(scheme: Scheme, latents: Array) -> Array:
    return scheme.project(latents)


@program()
@full_precision
def _latents_of(scheme: Scheme, alpha: Array, symbols: Array) -> Array:
    return scheme.latents_of(alpha, symbols)


def embed(scheme: Scheme, alpha, keys) -> Float[np.ndarray, "batch ..."]:
    """Latents (B, *latent_shape) of alpha (B, K - L) and keys; see `Scheme.embed`."""
    symbols = scheme.symbols_of(keys)
    alpha = np.asarray(jax.device_get(alpha), np.float32)
    if alpha.shape != (len(symbols), scheme.num_alpha):
        raise InputError(
            f"alpha has shape {alpha.shape}: expected ({len(symbols)}, {scheme.num_alpha})"
        )
    operands = jax.device_put((scheme.without_calibration(), alpha, symbols))
    return np.asarray(jax.device_get(_latents_of(*operands)))


def project(scheme: Scheme, latents) -> Float[np.ndarray, "batch coordinates"]:
    """Coordinates alpha (B, K - L) of natural latents (B, *latent_shape)."""
    operands = jax.device_put((scheme.without_calibration(), latents))
    return np.asarray(jax.device_get(_project(*operands)))


def generate(
    scheme: Scheme,
    key: PRNGKeyArray,
    keys: Shaped[Array | np.ndarray, "batch length"] | Sequence[Sequence[int]],
    *,
    alpha: Literal["projected", "sampled"] = "projected",
) -> Generated:
    """Generates one image for each key.

    Args:
      scheme: where keys are written.
      key: PRNG key of the latents.
      keys: (B, key_length) bits.
      alpha: "projected" takes a natural latent's coordinates, so that the image stays what the
        generator would have made; "sampled" draws N(0, std^2), as the published code does.

    Returns:
      The `Generated` images.

    Raises:
      InputError: if the keys are not (B, key_length) bits.

    >>> import fpjax
    >>> scheme = fpjax.load_scheme("avatars-stylegan2")
    >>> keys = fpjax.sample_keys(jax.random.key(1), num=2, length=64)
    >>> generate(scheme, jax.random.key(2), keys).images.shape
    (2, 32, 32, 3)
    """
    keys = check_keys(keys, scheme.key_length)
    if len(keys) == 0:
        raise InputError("no keys: one image is generated for each key")
    generator, originals = scheme.generator, None
    if alpha == "projected":
        natural = generator.natural_latents(key, len(keys))
        originals = to_uint8(decode_images(generator, natural))
        coordinates = project(scheme, natural)
    elif alpha == "sampled":
        shape = (len(keys), scheme.num_alpha)
        normal = np.asarray(jax.device_get(_normal(key, shape)))
        coordinates = normal * scheme.alpha_std
    else:
        raise InputError(f"alpha {alpha!r}: choose 'projected' or 'sampled'")
    latents = embed(scheme, coordinates, keys)
    images = decode_images(generator, latents)
    return Generated(to_uint8(images), images, latents, originals, coordinates, keys)
