"""The generator protocol: a pure function from latents to images, with its parameters and name.

A generator is what fingerprints are put into and latents are inverted out of. It is immutable; its
methods take the parameters as an argument, so they go through jit, vmap, jvp and sharding.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from fpjax.models import checkpoint, stylegan2

Array = jax.Array


@runtime_checkable
class Generator(Protocol):
    """What embedding, inversion and attribution need of a generator.

    Attributes:
      name: for people.
      params: nested dict of arrays.
      latent_shape: shape of one latent.
      resolution: side of the images in pixels.
      sha256: hash of architecture, config and parameters; a scheme is bound to it.
    """

    name: str
    params: Mapping[str, Any]

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent."""
        ...

    @property
    def resolution(self) -> int:
        """Side of the images in pixels."""
        ...

    @property
    def sha256(self) -> str:
        """Hash of architecture, config and parameters."""
        ...

    def decode(self, params, latents: Array, **kwargs) -> Array:
        """Latents (B, *latent_shape) -> images (B, resolution, resolution, 3) in [-1, 1]."""
        ...

    def sample_latents(self, params, key: Array, num: int) -> Array:
        """Draws (num, *latent_shape) natural latents."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class StyleGAN2Generator:
    """A StyleGAN2 with its weights; the latent is the style w.

    Attributes:
      name: for people.
      config: the architecture.
      params: nested dict of float32 arrays.
      info: where the weights come from.
    """

    name: str
    config: stylegan2.StyleGAN2Config
    params: Mapping[str, Any]
    info: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent: (w_dim,)."""
        return (self.config.w_dim,)

    @property
    def resolution(self) -> int:
        """Side of the images in pixels."""
        return self.config.resolution

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of architecture, config and parameters; a scheme is bound to it."""
        config = checkpoint.config_to_json(self.config)
        return checkpoint.params_sha256("stylegan2", config, self.params)

    def map(self, params, z: Array, truncation_psi: Array | float = 1.0) -> Array:
        """Noise z (B, z_dim) -> styles w (B, w_dim); see `stylegan2.mapping`."""
        return stylegan2.mapping(self.config, params, z, truncation_psi=truncation_psi)

    def decode(self, params, latents: Array, noise: stylegan2.Noise = "const") -> Array:
        """Styles (B, w_dim) or (B, num_layers, w_dim) -> images; see `stylegan2.synthesis`."""
        return stylegan2.synthesis(self.config, params, latents, noise=noise)

    def sample_latents(self, params, key: Array, num: int) -> Array:
        """Draws `num` natural styles (num, w_dim): the mapping of standard normal noise."""
        return self.map(params, jax.random.normal(key, (num, self.config.z_dim)))

    def save(self, path: str | os.PathLike, *, dtype: str | None = None) -> None:
        """Writes a folder that `load_generator` opens.

        Args:
          path: the folder; it must not exist.
          dtype: type the weights are stored in; by default float32. A smaller one changes them,
            and with them `sha256`.
        """
        config = checkpoint.config_to_json(self.config)
        checkpoint.save_checkpoint(
            path, "stylegan2", config, self.params, info=self.info, dtype=dtype
        )


def load_generator(name_or_path: str | os.PathLike) -> StyleGAN2Generator:
    """Opens a bundled generator by name, or a folder that `fpjax-convert` or `save` wrote.

    Args:
      name_or_path: "avatars-stylegan2", or a folder. A name that is also a folder means the folder
        only if it contains a path separator.

    Returns:
      The generator, its parameters on the default device in float32.

    Raises:
      CheckpointFormatError: if the folder is no checkpoint of a generator, or damaged.
      ValueError: for a name that is neither bundled nor a folder.

    >>> load_generator("avatars-stylegan2").resolution
    32
    """
    from fpjax import zoo

    text = os.fspath(name_or_path)
    path = zoo.model_path(text) if text in zoo.names() else Path(text)
    if not path.exists():
        raise ValueError(
            f"{text!r} is neither a bundled generator ({', '.join(zoo.names())}) nor a folder"
        )
    header = checkpoint.read_header(path)
    if header["architecture"] != "stylegan2":
        raise checkpoint.CheckpointFormatError(
            f"{path}: holds a {header['architecture']!r}, expected a generator ('stylegan2')"
        )
    config = checkpoint.config_from_json(stylegan2.StyleGAN2Config, header["config"])
    params = checkpoint.load_params(path, stylegan2.param_shapes(config))
    params = jax.tree.map(jnp.asarray, params)
    return StyleGAN2Generator(path.name, config, params, header.get("info") or {})
