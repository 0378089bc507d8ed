"""Tiny autoencoders: the TAESD family (madebyollin/taesd, MIT; `AutoencoderTiny` in diffusers).

Distilled, deterministic first stages of a few million parameters whose latents are those of a large
diffusion model. The originals work on images in [0, 1]; here images are in [-1, 1], as everywhere
in fpjax. Pure functions of `(config, params, ...)`.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from fpjax.models import layers as nn
from fpjax.models import parameters
from fpjax.models.parameters import Array, Params, Specs

_NORM_GROUPS = 4
_NORM_EPS = 1e-5


@dataclasses.dataclass(frozen=True)
class AutoencoderTinyConfig:
    """Architecture of a tiny autoencoder.

    Attributes:
      latent_channels: channels of the latent.
      channels: channels of every layer in between.
      encoder_blocks: residual blocks a stage; each stage but the first halves the side.
      decoder_blocks: residual blocks a stage; each stage but the last doubles the side.
      midblock_norm: blocks at the latent's resolution have a normalised branch (TAEF2).
      in_channels, out_channels: channels of the images.
      resolution: nominal side of an image in pixels; other sides work too.
      scale_factor, shift_factor: latents in fpjax are (z - shift_factor) * scale_factor of the
        autoencoder's z; 1 and 0 for all published ones, which learned a prior's own scale.
      has_encoder: False for a decoder without its encoder.
      dtype: type the layers compute in, "float32" or "bfloat16"; images and latents are float32.

    >>> AutoencoderTinyConfig.taef2().latent_shape
    (32, 32, 32)
    """

    latent_channels: int = 4
    channels: int = 64
    encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    midblock_norm: bool = False
    in_channels: int = 3
    out_channels: int = 3
    resolution: int = 256
    scale_factor: float = 1.0
    shift_factor: float = 0.0
    has_encoder: bool = True
    dtype: str = "float32"

    def __post_init__(self):
        nn.normalize_config(
            self,
            tuples=("encoder_blocks", "decoder_blocks"),
            floats=("scale_factor", "shift_factor"),
        )
        nn.check_dtype(self.dtype)
        sizes = ("latent_channels", "channels", "in_channels", "out_channels", "resolution")
        nn.check_counts(self, **dict.fromkeys(sizes, nn.MAX_SIZE))
        for name in ("encoder_blocks", "decoder_blocks"):
            blocks = getattr(self, name)
            if not blocks or not all(type(n) is int and 0 <= n <= nn.MAX_DEPTH for n in blocks):
                raise ValueError(f"{name}: expected whole numbers from 0 to {nn.MAX_DEPTH}")
        if self.has_encoder and len(self.encoder_blocks) != len(self.decoder_blocks):
            raise ValueError(
                f"{len(self.encoder_blocks)} encoder and {len(self.decoder_blocks)} decoder "
                "stages: expected as many, so that images come back at their size"
            )
        if not self.scale_factor > 0:
            raise ValueError(f"scale_factor {self.scale_factor}: expected a positive number")
        if self.resolution % self.downsampling:
            raise ValueError(
                f"resolution {self.resolution}: expected a multiple of {self.downsampling}"
            )

    @property
    def downsampling(self) -> int:
        """Image side over latent side."""
        return 2 ** (len(self.decoder_blocks) - 1)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of a latent at the nominal resolution."""
        side = self.resolution // self.downsampling
        return side, side, self.latent_channels

    @classmethod
    def taesd(cls) -> AutoencoderTinyConfig:
        """TAESD and TAESDXL: 4 channels."""
        return cls()

    @classmethod
    def taesd3(cls) -> AutoencoderTinyConfig:
        """TAESD3 and TAEF1: 16 channels."""
        return cls(latent_channels=16)

    @classmethod
    def taef2(cls) -> AutoencoderTinyConfig:
        """TAEF2: 32 channels, with normalised branches at the latent's resolution."""
        return cls(latent_channels=32, midblock_norm=True)


def init(config: AutoencoderTinyConfig, key: Array) -> dict:
    """Draws the float32 parameters of an untrained tiny autoencoder.

    >>> config = AutoencoderTinyConfig(channels=8, encoder_blocks=(1,), decoder_blocks=(1,))
    >>> sorted(init(config, jax.random.key(0))["decoder"])
    ['conv_in', 'conv_out', 'stage']
    """
    return parameters.draw_params(_specs(config), key)


def param_shapes(config: AutoencoderTinyConfig) -> dict:
    """The parameter tree with `jax.ShapeDtypeStruct` leaves; nothing is allocated.

    >>> param_shapes(AutoencoderTinyConfig.taef2())["decoder"]["conv_in"]["weight"].shape
    (3, 3, 32, 64)
    """
    return parameters.spec_shapes(_specs(config))


def encode(config: AutoencoderTinyConfig, params: Params, images: Array) -> Array:
    """Maps images to latents.

    Args:
      config: the architecture.
      params: the tree from `init` or a converted checkpoint.
      images: (B, H, W, in_channels) in [-1, 1], sides multiples of `config.downsampling`.

    Returns:
      Latents (B, H / downsampling, W / downsampling, latent_channels), float32.

    Raises:
      ValueError: for other shapes, or a model without an encoder.

    >>> images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    >>> config = AutoencoderTinyConfig.taef2()
    >>> from functools import partial
    >>> jax.eval_shape(partial(encode, config), param_shapes(config), images).shape
    (2, 8, 8, 32)
    """
    if not config.has_encoder:
        raise ValueError("this autoencoder came without its encoder: it can only decode")
    nn.check_images("images", images, config.in_channels, config.downsampling)
    params = params["encoder"]
    h = nn.conv2d(params["conv_in"], ((images + 1) / 2).astype(jnp.dtype(config.dtype)))
    for i in range(len(config.encoder_blocks)):
        stage = params["stage"][str(i)]
        if i > 0:
            h = nn.conv2d_down(stage["downsample"], h)
        h = _blocks(stage, h)
    z = nn.conv2d(params["conv_out"], h).astype(jnp.float32)
    return (z - config.shift_factor) * config.scale_factor


def decode(config: AutoencoderTinyConfig, params: Params, latents: Array) -> Array:
    """Maps latents to images. Latents are first softly clamped to (-3, 3), as trained.

    Args:
      config: the architecture.
      params: the tree from `init` or a converted checkpoint.
      latents: (B, h, w, latent_channels).

    Returns:
      Images (B, h * downsampling, w * downsampling, out_channels), float32, nominally in [-1, 1]
      (not clipped).

    Raises:
      ValueError: if the latents are of another form.

    >>> latents = jax.ShapeDtypeStruct((2, 8, 8, 32), jnp.float32)
    >>> config = AutoencoderTinyConfig.taef2()
    >>> from functools import partial
    >>> jax.eval_shape(partial(decode, config), param_shapes(config), latents).shape
    (2, 64, 64, 3)
    """
    nn.check_images("latents", latents, config.latent_channels, 1)
    params = params["decoder"]
    z = latents.astype(jnp.float32) / config.scale_factor + config.shift_factor
    h = (jnp.tanh(z / 3) * 3).astype(jnp.dtype(config.dtype))
    h = jax.nn.relu(nn.conv2d(params["conv_in"], h))
    for i in range(len(config.decoder_blocks)):
        stage = params["stage"][str(i)]
        h = _blocks(stage, h)
        if i + 1 < len(config.decoder_blocks):
            h = nn.conv2d(stage["upsample"], nn.upsample_nearest(h))
    return nn.conv2d(params["conv_out"], h).astype(jnp.float32) * 2 - 1


def _specs(config: AutoencoderTinyConfig) -> Specs:
    width, latent = config.channels, config.latent_channels
    resample = nn.conv_spec(width, width, bias=False)
    encoder, decoder = {}, {}
    for i, count in enumerate(config.encoder_blocks):
        at_latent = i + 1 == len(config.encoder_blocks)
        encoder[str(i)] = _stage_specs(config, count, at_latent)
        if i > 0:
            encoder[str(i)]["downsample"] = resample
    for i, count in enumerate(config.decoder_blocks):
        decoder[str(i)] = _stage_specs(config, count, at_latent=i == 0)
        if i + 1 < len(config.decoder_blocks):
            decoder[str(i)]["upsample"] = resample
    specs: Specs = {
        "decoder": {
            "conv_in": nn.conv_spec(latent, width),
            "stage": decoder,
            "conv_out": nn.conv_spec(width, config.out_channels),
        }
    }
    if config.has_encoder:
        specs["encoder"] = {
            "conv_in": nn.conv_spec(config.in_channels, width),
            "stage": encoder,
            "conv_out": nn.conv_spec(width, latent),
        }
    return specs


def _stage_specs(config: AutoencoderTinyConfig, count: int, at_latent: bool) -> Specs:
    width = config.channels
    block = {f"conv{i}": nn.conv_spec(width, width) for i in (1, 2, 3)}
    if config.midblock_norm and at_latent:
        block["pool"] = {
            "expand": nn.linear_spec(width, 4 * width, bias=False),
            "norm": nn.norm_spec(4 * width),
            "reduce": nn.linear_spec(4 * width, width, bias=False),
        }
    return {"block": {str(i): block for i in range(count)}}


def _blocks(stage: Params, h: Array) -> Array:
    for i in range(len(stage["block"])):
        h = _block(stage["block"][str(i)], h)
    return h


def _block(params: Params, x: Array) -> Array:
    if "pool" in params:
        pool = params["pool"]
        h = nn.linear(pool["expand"], x)
        h = nn.group_norm(pool["norm"], h, groups=_NORM_GROUPS, eps=_NORM_EPS)
        x = x + nn.linear(pool["reduce"], jax.nn.relu(h))
    h = jax.nn.relu(nn.conv2d(params["conv1"], x))
    h = jax.nn.relu(nn.conv2d(params["conv2"], h))
    return jax.nn.relu(x + nn.conv2d(params["conv3"], h))
