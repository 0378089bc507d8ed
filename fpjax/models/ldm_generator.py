"""The first stage of a latent diffusion model as a generator, with its prior where there is one."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fpjax.errors import InputError
from fpjax.io.atomic import atomic_directory
from fpjax.models import autoencoder, autoencoder_tiny, checkpoint, diffusion
from fpjax.models.autoencoder import AutoencoderConfig
from fpjax.models.autoencoder_tiny import AutoencoderTinyConfig
from fpjax.models.diffusion import DiffusionConfig, DiffusionPrior
from fpjax.models.generator import Generator, static

Array = jax.Array
FirstStageConfig = AutoencoderConfig | AutoencoderTinyConfig

FIRST_STAGES = {
    "autoencoder": (AutoencoderConfig, autoencoder),
    "autoencoder_tiny": (AutoencoderTinyConfig, autoencoder_tiny),
}
"""By the name a checkpoint records: config class and module of the network."""

PRIOR = "prior"
"""Entry of the parameters, and folder of a checkpoint, that belong to the diffusion prior."""


@dataclasses.dataclass(frozen=True)
class _Decode:
    config: FirstStageConfig
    quantize: bool = True

    def __call__(self, params, latents: Array, *, quantize: bool | None = None) -> Array:
        quantize = self.quantize if quantize is None else quantize
        if isinstance(self.config, AutoencoderTinyConfig):
            return autoencoder_tiny.decode(self.config, params, latents)
        return autoencoder.decode(self.config, params, latents, quantize=quantize)


@dataclasses.dataclass(frozen=True)
class _Encode:
    config: FirstStageConfig

    def __call__(self, params, images: Array, key: Array | None = None) -> Array:
        if isinstance(self.config, AutoencoderTinyConfig):
            return autoencoder_tiny.encode(self.config, params, images)
        return autoencoder.encode(self.config, params, images, key=key)


@dataclasses.dataclass(frozen=True)
class _Sample:
    config: DiffusionConfig

    def __call__(
        self, params, key: Array, num: int, steps: int = 50, eta: Array | float = 1.0
    ) -> Array:
        prior = DiffusionPrior(self.config, params[PRIOR])
        return diffusion.ddim_sample(prior, params[PRIOR], key, num, steps, eta)


@dataclasses.dataclass(frozen=True)
class _Pick:
    """One of the latents that are given, at random."""

    def __call__(self, params, key: Array, num: int) -> Array:
        latents = params[PRIOR]["latents"]
        return latents[jax.random.randint(key, (num,), 0, latents.shape[0])]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class LDMGenerator(Generator):
    """The first stage of a latent diffusion model with its weights; the latent is z.

    * `decode(params, latents (B, h, w, C), quantize=True)` takes the nearest codebook entries
      first, in a VQ model; see `autoencoder.decode`. `with_noise("unquantized")` changes the
      default.
    * `encode(params, images, key=None)`: with a key, a KL model's latent is drawn instead of its
      mean; see `autoencoder.encode`.
    * `sample_latents(params, key, num, steps=50, eta=1.0)` draws by DDIM; None without a prior.

    Attributes:
      config: the first stage's architecture, KL, VQ or tiny.
      prior_config: the denoiser's, or None; its parameters are `params["prior"]`.
      info_json: where the weights come from, as JSON text.

    Made by `LDMGenerator.create` or `fpjax.load_generator`.

    >>> from fpjax.models.generator import Generator
    >>> issubclass(LDMGenerator, Generator)
    True
    """

    config: FirstStageConfig = static()
    prior_config: DiffusionConfig | None = static(default=None)
    info_json: str = static(default="{}")

    @classmethod
    def create(
        cls,
        name: str,
        config: FirstStageConfig,
        params: Mapping[str, Any],
        prior: DiffusionPrior | None = None,
        info: Mapping[str, Any] | None = None,
    ) -> LDMGenerator:
        """A generator of a first stage, its parameters, and the prior that draws its latents."""
        params = dict(params)
        if prior is not None:
            params[PRIOR] = prior.params
        side = config.resolution
        return cls(
            decode=_Decode(config),
            params=params,
            latent_shape=config.latent_shape,
            image_shape=(side, side, 3),
            sample_latents=None if prior is None else _Sample(prior.config),
            encode=_Encode(config),
            name=name,
            config=config,
            prior_config=None if prior is None else prior.config,
            info_json=checkpoint.canonical_json(dict(info or {})),
        )

    @property
    def noise(self) -> str:
        """ "unquantized" where a VQ model decodes latents as they are, else "const"."""
        assert isinstance(self.decode, _Decode)
        return "const" if self.decode.quantize else "unquantized"

    def with_noise(self, noise: str) -> LDMGenerator:
        """The same generator, which by default quantises latents ("const") or not.

        A VQ model's published decoder takes the nearest codes first, so that what lies between
        codes is lost. "unquantized" decodes latents as they are.

        Raises:
          InputError: for another mode, or "unquantized" of a first stage without codes.
        """
        has_codes = isinstance(self.config, AutoencoderConfig) and self.config.is_vq
        if noise not in (("const", "unquantized") if has_codes else ("const",)):
            raise InputError(
                f"noise {noise!r}: this generator has 'const'"
                + (" and 'unquantized'" if has_codes else " alone")
            )
        return dataclasses.replace(self, decode=_Decode(self.config, noise == "const"))

    def with_latents(self, latents: Array | np.ndarray) -> LDMGenerator:
        """The same first stage, whose natural latents are drawn from those given.

        For a first stage without a denoiser: encode pictures of what it is for. Its `sha256`, and
        what is a scheme of it, stay the same.

        Args:
          latents: (N, *latent_shape), a few thousand for a good covariance.

        Raises:
          InputError: for latents of another shape.
        """
        given = jnp.asarray(latents, jnp.float32)
        if given.ndim != 4 or given.shape[1:] != self.latent_shape or len(given) < 2:
            raise InputError(
                f"latents have shape {given.shape}: expected (at least 2, "
                f"{', '.join(map(str, self.latent_shape))})"
            )
        params = {**self.params, PRIOR: {"latents": given}}
        return dataclasses.replace(self, params=params, prior_config=None, sample_latents=_Pick())

    @property
    def info(self) -> dict[str, Any]:
        """Where the weights come from."""
        return json.loads(self.info_json)

    @property
    def prior(self) -> DiffusionPrior | None:
        """The denoiser with its parameters, or None."""
        if self.prior_config is None:
            return None
        return DiffusionPrior(self.prior_config, self.params[PRIOR])

    def save(self, path: str | os.PathLike, *, dtype: str | None = None) -> None:
        """Writes a folder that `load_generator` opens, with the prior where there is one. Latents
        of `with_latents`, and whether codes are taken (`with_noise`), are not written.

        Args:
          path: the folder; it must not exist.
          dtype: type the weights are stored in; by default float32. A smaller one changes them,
            and with them `sha256`.
        """
        config = checkpoint.config_to_json(self.config)
        with atomic_directory(path) as folder:
            checkpoint.write_checkpoint(
                folder, self._architecture, config, self._first_stage, info=self.info, dtype=dtype
            )
            if (prior := self.prior) is not None:
                (folder / PRIOR).mkdir()
                config = checkpoint.config_to_json(prior.config)
                checkpoint.write_checkpoint(
                    folder / PRIOR, "diffusion", config, prior.params, dtype=dtype
                )

    @property
    def _architecture(self) -> str:
        return next(
            name for name, (kind, _) in FIRST_STAGES.items() if isinstance(self.config, kind)
        )

    @property
    def _first_stage(self) -> dict[str, Any]:
        return {name: leaf for name, leaf in self.params.items() if name != PRIOR}

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of the first stage's architecture, config and parameters, without the prior's."""
        config = checkpoint.config_to_json(self.config)
        return checkpoint.params_sha256(self._architecture, config, self._first_stage)
