"""StyleGAN2 as a generator: the latent is the style w, noise maps are its own business."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Mapping
from typing import Any, Literal, cast

import jax

from fpjax.errors import InputError
from fpjax.models import checkpoint, stylegan2
from fpjax.models.generator import Generator, static

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class _Decode:
    """Styles -> images; equal for equal configs, so that programs are shared."""

    config: stylegan2.StyleGAN2Config
    noise: Literal["const", "none"] = "const"

    def __call__(self, params, latents: Array, noise: stylegan2.Noise | None = None) -> Array:
        noise = self.noise if noise is None else noise
        return stylegan2.synthesis(self.config, params, latents, noise=noise)


@dataclasses.dataclass(frozen=True)
class _Sample:
    """Natural styles: the mapping of standard normal noise."""

    config: stylegan2.StyleGAN2Config

    def __call__(self, params, key: Array, num: int) -> Array:
        z = jax.random.normal(key, (num, self.config.z_dim), "float32")
        return stylegan2.mapping(self.config, params, z)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class StyleGAN2Generator(Generator):
    """A StyleGAN2 with its weights. `decode` also takes styles per layer and a `noise`.

    `generator.decode(params, latents, noise="const" | "none" | PRNG key)` takes latents (B, w_dim)
    or (B, num_layers, w_dim); without `noise` it takes the generator's own mode.

    Attributes:
      config: the architecture.
      info_json: where the weights come from, as JSON text.

    Made by `StyleGAN2Generator.create` or `fpjax.load_generator`.

    >>> config = stylegan2.StyleGAN2Config(8, 16, 16, 2, channel_base=64)
    >>> params = stylegan2.init(config, jax.random.key(0))
    >>> StyleGAN2Generator.create("small", config, params).image_shape
    (8, 8, 3)
    """

    config: stylegan2.StyleGAN2Config = static()
    info_json: str = static(default="{}")

    @classmethod
    def create(
        cls,
        name: str,
        config: stylegan2.StyleGAN2Config,
        params: Mapping[str, Any],
        info: Mapping[str, Any] | None = None,
        noise: Literal["const", "none"] = "const",
    ) -> StyleGAN2Generator:
        """A generator of an architecture and its weights.

        Args:
          name: for people.
          config: the architecture.
          params: nested dict of float32 arrays, as `stylegan2.init` makes.
          info: JSON values that say where the weights come from.
          noise: "const" adds the noise maps stored with the weights, "none" adds nothing.
        """
        if noise not in ("const", "none"):
            raise InputError(f"noise {noise!r}: choose 'const' or 'none'")
        return cls(
            decode=_Decode(config, noise),
            params=params,
            latent_shape=(config.w_dim,),
            image_shape=(config.resolution, config.resolution, 3),
            sample_latents=_Sample(config),
            name=name,
            config=config,
            info_json=checkpoint.canonical_json(dict(info or {})),
        )

    @property
    def info(self) -> dict[str, Any]:
        """Where the weights come from."""
        return json.loads(self.info_json)

    @property
    def noise(self) -> Literal["const", "none"]:
        """Noise mode of `decode`: "const" or "none"."""
        return cast(_Decode, self.decode).noise

    def with_noise(self, noise: Literal["const", "none"]) -> StyleGAN2Generator:
        """The same weights in another noise mode."""
        return self.create(self.name, self.config, self.params, self.info, noise)

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of architecture, config and parameters; a scheme is bound to it."""
        config = checkpoint.config_to_json(self.config)
        return checkpoint.params_sha256("stylegan2", config, self.params)

    def map(self, params, z: Array, truncation_psi: Array | float = 1.0) -> Array:
        """Noise z (B, z_dim) -> styles w (B, w_dim); see `stylegan2.mapping`."""
        return stylegan2.mapping(self.config, params, z, truncation_psi=truncation_psi)

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
