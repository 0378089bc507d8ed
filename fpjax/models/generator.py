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

from fpjax.models import autoencoder, autoencoder_tiny, checkpoint, diffusion, stylegan2, unet
from fpjax.models.autoencoder import AutoencoderConfig
from fpjax.models.autoencoder_tiny import AutoencoderTinyConfig
from fpjax.models.diffusion import DiffusionConfig, DiffusionPrior

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


@dataclasses.dataclass(frozen=True, eq=False)
class LDMGenerator:
    """The first stage of a latent diffusion model with its weights; the latent is z.

    Attributes:
      name: for people.
      config: the first stage's architecture, KL, VQ or tiny.
      params: its parameters, a nested dict of float32 arrays.
      prior: the denoiser that draws latents, where the folder holds one; its parameters are its
        own, `prior.params`.
      info: where the weights come from.
    """

    name: str
    config: AutoencoderConfig | AutoencoderTinyConfig
    params: Mapping[str, Any]
    prior: DiffusionPrior | None = None
    info: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent at the nominal resolution: (height, width, channels)."""
        return self.config.latent_shape

    @property
    def resolution(self) -> int:
        """Nominal side of the images in pixels; other sides work too."""
        return self.config.resolution

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of the first stage's architecture, config and parameters, without the prior's."""
        config = checkpoint.config_to_json(self.config)
        return checkpoint.params_sha256(_first_stage_name(self.config), config, self.params)

    def decode(self, params, latents: Array, *, quantize: bool = True, noise: Any = None) -> Array:
        """Latents (B, h, w, C) -> images (B, H, W, 3) in [-1, 1]; see `autoencoder.decode`.

        Args:
          params: the first stage's parameters.
          latents: as `encode` or the prior gives them.
          quantize: take the nearest codebook entries first, in a VQ model.
          noise: taken so that all generators are called alike; a decoder has no noise maps.
        """
        if isinstance(self.config, AutoencoderTinyConfig):
            return autoencoder_tiny.decode(self.config, params, latents)
        return autoencoder.decode(self.config, params, latents, quantize=quantize)

    def encode(self, params, images: Array, key: Array | None = None) -> Array:
        """Images (B, H, W, 3) in [-1, 1] -> latents (B, h, w, C); see `autoencoder.encode`.

        Args:
          params: the first stage's parameters.
          images: sides multiples of the downsampling.
          key: PRNG key to sample the latent of a KL model; by default its mean is taken.
        """
        if isinstance(self.config, AutoencoderTinyConfig):
            return autoencoder_tiny.encode(self.config, params, images)
        return autoencoder.encode(self.config, params, images, key=key)

    def sample_latents(
        self, params, key: Array, num: int, steps: int = 50, eta: Array | float = 1.0
    ) -> Array:
        """Draws (num, *latent_shape) natural latents by DDIM from the prior.

        Args:
          params: unused; the prior has its own parameters.
          key: PRNG key.
          num: how many.
          steps, eta: of DDIM; see `diffusion.ddim_sample`.

        Raises:
          ValueError: if there is no prior.
        """
        if self.prior is None:
            raise ValueError(
                f"{self.name!r} is a first stage without a prior, which cannot draw latents: "
                "encode images instead, or convert a whole latent diffusion checkpoint"
            )
        return diffusion.ddim_sample(self.prior, self.prior.params, key, num, steps, eta)


def load_generator(name_or_path: str | os.PathLike) -> StyleGAN2Generator | LDMGenerator:
    """Opens a bundled generator by name, or a folder that `fpjax-convert` or `save` wrote.

    Args:
      name_or_path: "avatars-stylegan2", or a folder. A name that is also a folder means the folder
        only if it contains a path separator.

    Returns:
      The generator, its parameters on the default device in float32: a `StyleGAN2Generator`, or an
      `LDMGenerator` for a first stage, with its prior if the folder has one.

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
    architecture, info = header["architecture"], header.get("info") or {}
    if architecture == "stylegan2":
        config = checkpoint.config_from_json(stylegan2.StyleGAN2Config, header["config"])
        params = _params(path, stylegan2.param_shapes(config))
        return StyleGAN2Generator(path.name, config, params, info)
    if architecture not in _FIRST_STAGES:
        advice = "; open it with load_prior" if architecture == "diffusion" else ""
        raise checkpoint.CheckpointFormatError(
            f"{path}: holds a {architecture!r}, expected a generator "
            f"('stylegan2', {', '.join(map(repr, _FIRST_STAGES))}){advice}"
        )
    config_class, model = _FIRST_STAGES[architecture]
    config = checkpoint.config_from_json(config_class, header["config"])
    params = _params(path, model.param_shapes(config))
    prior = load_prior(path) if (path / _PRIOR).is_dir() else None
    if prior is not None and prior.latent_shape[-1] != config.latent_shape[-1]:
        raise checkpoint.CheckpointFormatError(
            f"{path}: the prior draws {prior.latent_shape[-1]} channels and the first stage reads "
            f"{config.latent_shape[-1]}"
        )
    return LDMGenerator(path.name, config, params, prior, info)


def load_prior(path: str | os.PathLike) -> DiffusionPrior:
    """Opens the diffusion prior of a converted latent diffusion model, or a converted U-Net.

    Args:
      path: the folder that `fpjax-convert` wrote.

    Returns:
      The prior, its parameters on the default device in float32.

    Raises:
      CheckpointFormatError: if there is no prior in the folder, or it is damaged.

    >>> load_prior("no-such-folder")
    Traceback (most recent call last):
    ...
    fpjax.models.checkpoint.CheckpointFormatError: no-such-folder: no config.json, ...
    """
    path = Path(path)
    folder = path / _PRIOR if (path / _PRIOR).is_dir() else path
    header = checkpoint.read_header(folder)
    if header["architecture"] != "diffusion":
        raise checkpoint.CheckpointFormatError(
            f"{folder}: holds a {header['architecture']!r} and no prior ('diffusion')"
        )
    config = checkpoint.config_from_json(DiffusionConfig, header["config"])
    return DiffusionPrior(config, _params(folder, unet.param_shapes(config.unet)))


def load_perceptual(path: str | os.PathLike) -> dict[str, Any]:
    """Opens the parameters of a converted perceptual network.

    Args:
      path: the folder that `fpjax-convert` wrote from VGG16, AlexNet, LPIPS or Inception weights.

    Returns:
      The tree that the network's functions in `fpjax.perceptual` take, float32 on the default
      device.

    Raises:
      CheckpointFormatError: if the folder is no such checkpoint, or damaged.

    >>> load_perceptual("no-such-folder")
    Traceback (most recent call last):
    ...
    fpjax.models.checkpoint.CheckpointFormatError: no-such-folder: no config.json, ...
    """
    from fpjax import perceptual

    path = Path(path)
    header = checkpoint.read_header(path)
    if header["architecture"] != "perceptual":
        raise checkpoint.CheckpointFormatError(
            f"{path}: holds a {header['architecture']!r}, expected a perceptual network"
        )
    shapes = {
        "vgg16": perceptual.vgg16_shapes,
        "alexnet": perceptual.alexnet_shapes,
        "inception": perceptual.inception_shapes,
        "lpips": lambda: perceptual.lpips_shapes(header["config"].get("net", "vgg")),
    }
    network = header["config"].get("network")
    if network not in shapes:
        raise checkpoint.CheckpointFormatError(
            f"{path}: perceptual network {network!r}, expected one of {', '.join(shapes)}"
        )
    return _params(path, shapes[network]())


_PRIOR = "prior"
_FIRST_STAGES = {
    "autoencoder": (AutoencoderConfig, autoencoder),
    "autoencoder_tiny": (AutoencoderTinyConfig, autoencoder_tiny),
}


def _first_stage_name(config: AutoencoderConfig | AutoencoderTinyConfig) -> str:
    return next(name for name, (kind, _) in _FIRST_STAGES.items() if isinstance(config, kind))


def _params(path: Path, shapes: Mapping[str, Any]) -> dict[str, Any]:
    return jax.tree.map(jnp.asarray, checkpoint.load_params(path, shapes))
