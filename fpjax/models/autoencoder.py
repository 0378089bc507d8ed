"""First stages of latent diffusion: the KL and VQ autoencoders of the CompVis LDM code base.

Architecture of Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models"
(CVPR 2022, arXiv 2112.10752): a convolutional encoder and decoder with residual blocks, and either
a diagonal Gaussian latent (KL) or a codebook (VQ, after Esser et al., CVPR 2021). Pure functions
of `(config, params, ...)`; `params` is a nested dict whose names follow the published checkpoints.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from fpjax.models import layers as nn
from fpjax.models import parameters
from fpjax.models.parameters import Array, Params, ParamSpec, Specs

_EPS = 1e-6


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """Architecture of a first stage.

    Attributes:
      ch: channels at full resolution.
      ch_mult: multiple of `ch` at each level; each level but the last halves the resolution.
      num_res_blocks: residual blocks a level in the encoder; the decoder has one more.
      attn_resolutions: sides, at the nominal `resolution`, whose levels have attention.
      resolution: nominal side of an image in pixels; other sides work too.
      z_channels: channels between encoder or decoder and the 1x1 convolutions of the latent.
      embed_dim: channels of the latent.
      n_embed: codebook entries of a VQ model; None makes a KL model.
      double_z: whether the encoder also gives a log-variance (KL models).
      in_channels, out_ch: channels of the images.
      scale_factor, shift_factor: latents in fpjax are (z - shift_factor) * scale_factor of the
        first stage's z, as the denoiser sees them.
      has_encoder: False for a decoder published without its encoder.
      norm_groups: groups of the normalisation layers.
      dtype: type the layers compute in, "float32" or "bfloat16"; images and latents are float32.

    >>> AutoencoderConfig.vq_f4().latent_shape
    (64, 64, 3)
    """

    ch: int = 128
    ch_mult: tuple[float, ...] = (1, 2, 4)
    num_res_blocks: int = 2
    attn_resolutions: tuple[int, ...] = ()
    resolution: int = 256
    z_channels: int = 3
    embed_dim: int = 3
    n_embed: int | None = None
    double_z: bool = True
    in_channels: int = 3
    out_ch: int = 3
    scale_factor: float = 1.0
    shift_factor: float = 0.0
    has_encoder: bool = True
    norm_groups: int = 32
    dtype: str = "float32"

    def __post_init__(self):
        nn.normalize_config(
            self,
            tuples=("ch_mult", "attn_resolutions"),
            floats=("scale_factor", "shift_factor"),
        )
        nn.check_dtype(self.dtype)
        sizes = ("ch", "resolution", "z_channels", "embed_dim", "in_channels", "out_ch")
        nn.check_counts(self, **dict.fromkeys((*sizes, "norm_groups"), nn.MAX_SIZE))
        nn.check_counts(self, num_res_blocks=nn.MAX_DEPTH)
        if self.n_embed is not None:
            nn.check_counts(self, n_embed=1 << 24)
        nn.check_groups(self.norm_groups, self.ch, *self.channels)
        if self.is_vq and self.double_z:
            raise ValueError("a VQ model (n_embed given) has no log-variance: set double_z=False")
        if not self.scale_factor > 0:
            raise ValueError(f"scale_factor {self.scale_factor}: expected a positive number")
        if self.resolution % self.downsampling:
            raise ValueError(
                f"resolution {self.resolution}: {len(self.ch_mult)} levels need a multiple of "
                f"{self.downsampling}"
            )

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each level, full resolution first."""
        return nn.level_channels("ch_mult", self.ch, self.ch_mult)

    @property
    def is_vq(self) -> bool:
        """Whether the latent has a codebook."""
        return self.n_embed is not None

    @property
    def downsampling(self) -> int:
        """Image side over latent side."""
        return 2 ** (len(self.ch_mult) - 1)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of a latent at the nominal resolution."""
        side = self.resolution // self.downsampling
        return side, side, self.embed_dim

    def has_attention(self, level: int) -> bool:
        """Whether the residual blocks of a level are each followed by attention."""
        return self.resolution // 2**level in self.attn_resolutions

    @classmethod
    def kl_f4(cls) -> AutoencoderConfig:
        """KL, 256 px to 64x64x3."""
        return cls()

    @classmethod
    def kl_f8(cls) -> AutoencoderConfig:
        """KL, 256 px to 32x32x4 (also Stable Diffusion's, with its own scale_factor)."""
        return cls(ch_mult=(1, 2, 4, 4), z_channels=4, embed_dim=4)

    @classmethod
    def kl_f16(cls) -> AutoencoderConfig:
        """KL, 256 px to 16x16x16."""
        mult = (1, 1, 2, 2, 4)
        return cls(ch_mult=mult, attn_resolutions=(16,), z_channels=16, embed_dim=16)

    @classmethod
    def vq_f4(cls) -> AutoencoderConfig:
        """VQ, 256 px to 64x64x3, 8192 codes: the first stage of the FFHQ and CelebA-HQ LDMs."""
        return cls(n_embed=8192, double_z=False)

    @classmethod
    def vq_f8(cls) -> AutoencoderConfig:
        """VQ, 256 px to 32x32x4, 16384 codes."""
        return cls(
            ch_mult=(1, 2, 2, 4),
            attn_resolutions=(32,),
            z_channels=4,
            embed_dim=4,
            n_embed=16384,
            double_z=False,
        )

    @classmethod
    def vq_f16(cls) -> AutoencoderConfig:
        """VQ, 256 px to 16x16x8, 16384 codes."""
        return cls(
            ch_mult=(1, 1, 2, 2, 4),
            attn_resolutions=(16,),
            z_channels=8,
            embed_dim=8,
            n_embed=16384,
            double_z=False,
        )


def init(config: AutoencoderConfig, key: Array) -> dict:
    """Draws the float32 parameters of an untrained first stage.

    >>> config = AutoencoderConfig(ch=32, ch_mult=(1,), num_res_blocks=1)
    >>> sorted(init(config, jax.random.key(0)))
    ['decoder', 'encoder', 'post_quant_conv', 'quant_conv']
    """
    return parameters.draw_params(_specs(config), key)


def param_shapes(config: AutoencoderConfig) -> dict:
    """The parameter tree with `jax.ShapeDtypeStruct` leaves; nothing is allocated.

    >>> param_shapes(AutoencoderConfig.vq_f4())["codebook"].shape
    (8192, 3)
    """
    return parameters.spec_shapes(_specs(config))


def encode(
    config: AutoencoderConfig, params: Params, images: Array, *, key: Array | None = None
) -> Array:
    """Maps images to latents.

    A KL model gives the mean of its Gaussian, or a draw from it where a PRNG key is given. A VQ
    model gives the latent before quantisation (`decode` quantises).

    Args:
      config: the architecture.
      params: the tree from `init` or a converted checkpoint.
      images: (B, H, W, in_channels) in [-1, 1], sides multiples of `config.downsampling`.
      key: PRNG key to sample a KL latent.

    Returns:
      Latents (B, H / downsampling, W / downsampling, embed_dim), float32, shifted and scaled.

    Raises:
      ValueError: for other shapes, a model without an encoder, or a key with a VQ model.

    >>> config = AutoencoderConfig(ch=32, ch_mult=(1, 1), num_res_blocks=1)
    >>> images = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    >>> from functools import partial
    >>> jax.eval_shape(partial(encode, config), param_shapes(config), images).shape
    (2, 4, 4, 3)
    """
    if not config.has_encoder:
        raise ValueError("this first stage was published without its encoder: it can only decode")
    if config.is_vq and key is not None:
        raise ValueError("a VQ latent is not sampled: leave key out")
    nn.check_images("images", images, config.in_channels, config.downsampling)
    h = _encoder(config, params["encoder"], images.astype(jnp.dtype(config.dtype)))
    z = nn.linear(params["quant_conv"], h).astype(jnp.float32)
    if config.double_z:
        z, log_variance = jnp.split(z, 2, axis=-1)
        if key is not None:
            std = jnp.exp(0.5 * jnp.clip(log_variance, -30.0, 20.0))
            z = z + std * jax.random.normal(key, z.shape, z.dtype)
    return (z - config.shift_factor) * config.scale_factor


def decode(
    config: AutoencoderConfig, params: Params, latents: Array, *, quantize: bool = True
) -> Array:
    """Maps latents to images.

    Args:
      config: the architecture.
      params: the tree from `init` or a converted checkpoint.
      latents: (B, h, w, embed_dim), shifted and scaled as `encode` or a prior gives them.
      quantize: replace each vector by its nearest codebook entry first, with a straight-through
        gradient. A KL model has no codebook and ignores it.

    Returns:
      Images (B, h * downsampling, w * downsampling, out_ch), float32, nominally in [-1, 1] (not
      clipped).

    Raises:
      ValueError: if the latents are of another form.

    >>> config = AutoencoderConfig(ch=32, ch_mult=(1, 1), num_res_blocks=1)
    >>> latents = jax.ShapeDtypeStruct((2, 4, 4, 3), jnp.float32)
    >>> from functools import partial
    >>> jax.eval_shape(partial(decode, config), param_shapes(config), latents).shape
    (2, 8, 8, 3)
    """
    nn.check_images("latents", latents, config.embed_dim, 1)
    z = latents.astype(jnp.float32) / config.scale_factor + config.shift_factor
    if config.is_vq and quantize:
        codebook = jnp.asarray(params["codebook"])
        nearest = codebook[nearest_codes(codebook, z)]
        # Straight-through: the value is the code's, the derivative the identity's.
        z = z + jax.lax.stop_gradient(nearest - z)
    h = nn.linear(params["post_quant_conv"], z.astype(jnp.dtype(config.dtype)))
    return _decoder(config, params["decoder"], h).astype(jnp.float32)


def nearest_codes(codebook: Array, z: Array) -> Array:
    """Indices (...,) int32 of the codebook entries (n, d) nearest to z (..., d); ties to the first.

    The codebook is read in blocks, so memory is that of one block of distances and not of all
    n for each vector, which matters when many latents are decoded side by side.

    >>> nearest_codes(jnp.asarray([[0.0], [1.0], [2.0]]), jnp.asarray([[1.2], [5.0]])).tolist()
    [1, 2]
    """
    z, codebook = jax.lax.stop_gradient((z, codebook))
    size = 1024 if codebook.shape[0] % 1024 == 0 else codebook.shape[0]
    blocks = codebook.reshape(-1, size, codebook.shape[1])

    def nearer(best, block_and_start):
        block, start = block_and_start
        # |z|^2 is the same for every code. Full precision: a coarse product picks wrong codes.
        cross = jnp.matmul(z, block.T, precision=jax.lax.Precision.HIGHEST)
        distance = nn.along_channels(jnp.sum(block**2, axis=1), cross) - 2 * cross
        index = jnp.argmin(distance, axis=-1)
        value = jnp.take_along_axis(distance, index[..., None], axis=-1)[..., 0]
        closer = value < best[0]
        index = index.astype(jnp.int32) + start
        return (jnp.where(closer, value, best[0]), jnp.where(closer, index, best[1])), None

    start = jnp.arange(blocks.shape[0], dtype=jnp.int32) * size
    worst = (jnp.full(z.shape[:-1], jnp.inf, z.dtype), jnp.zeros(z.shape[:-1], jnp.int32))
    return jax.lax.scan(nearer, worst, (blocks, start))[0][1]


def _specs(config: AutoencoderConfig) -> Specs:
    z_out = config.z_channels * (2 if config.double_z else 1)
    moments = config.embed_dim * (2 if config.double_z else 1)
    specs: Specs = {
        "decoder": _decoder_specs(config),
        "post_quant_conv": nn.linear_spec(config.embed_dim, config.z_channels),
    }
    if config.has_encoder:
        specs["encoder"] = _encoder_specs(config, z_out)
        specs["quant_conv"] = nn.linear_spec(z_out, moments)
    if config.n_embed is not None:
        specs["codebook"] = ParamSpec(
            (config.n_embed, config.embed_dim), std=1 / math.sqrt(config.n_embed)
        )
    return specs


def _encoder_specs(config: AutoencoderConfig, z_out: int) -> Specs:
    channels, width, down = config.channels, config.ch, {}
    for level, out in enumerate(channels):
        down[str(level)] = _level_specs(config, level, width, out, config.num_res_blocks)
        if level + 1 < len(channels):
            down[str(level)]["downsample"] = nn.conv_spec(out, out)
        width = out
    return {
        "conv_in": nn.conv_spec(config.in_channels, config.ch),
        "down": down,
        "mid": _mid_specs(width),
        "norm_out": nn.norm_spec(width),
        "conv_out": nn.conv_spec(width, z_out),
    }


def _decoder_specs(config: AutoencoderConfig) -> Specs:
    width, up = config.channels[-1], {}
    specs = {"conv_in": nn.conv_spec(config.z_channels, width), "mid": _mid_specs(width)}
    for level, out in reversed(list(enumerate(config.channels))):
        up[str(level)] = _level_specs(config, level, width, out, config.num_res_blocks + 1)
        if level > 0:
            up[str(level)]["upsample"] = nn.conv_spec(out, out)
        width = out
    return specs | {
        "up": up,
        "norm_out": nn.norm_spec(width),
        "conv_out": nn.conv_spec(width, config.out_ch),
    }


def _level_specs(config: AutoencoderConfig, level: int, width: int, out: int, count: int) -> Specs:
    specs: Specs = {"block": {}}
    for i in range(count):
        specs["block"][str(i)] = _res_block_spec(width if i == 0 else out, out)
    if config.has_attention(level):
        specs["attn"] = {str(i): nn.attention_spec(out) for i in range(count)}
    return specs


def _mid_specs(width: int) -> Specs:
    block = _res_block_spec(width, width)
    return {"block_1": block, "attn_1": nn.attention_spec(width), "block_2": block}


def _res_block_spec(width: int, out: int) -> Specs:
    return {
        "norm1": nn.norm_spec(width),
        "conv1": nn.conv_spec(width, out),
        "norm2": nn.norm_spec(out),
        "conv2": nn.conv_spec(out, out),
    } | ({"shortcut": nn.linear_spec(width, out)} if width != out else {})


def _encoder(config: AutoencoderConfig, params: Params, x: Array) -> Array:
    h = nn.conv2d(params["conv_in"], x)
    for level in range(len(config.channels)):
        h = _level(config, params["down"][str(level)], h)
        if level + 1 < len(config.channels):
            h = nn.conv2d_down(params["down"][str(level)]["downsample"], h, asymmetric=True)
    h = _mid(config, params["mid"], h)
    return nn.conv2d(params["conv_out"], _norm_swish(config, params["norm_out"], h))


def _decoder(config: AutoencoderConfig, params: Params, h: Array) -> Array:
    h = nn.conv2d(params["conv_in"], h)
    h = _mid(config, params["mid"], h)
    for level in reversed(range(len(config.channels))):
        h = _level(config, params["up"][str(level)], h)
        if level > 0:
            h = nn.conv2d(params["up"][str(level)]["upsample"], nn.upsample_nearest(h))
    return nn.conv2d(params["conv_out"], _norm_swish(config, params["norm_out"], h))


def _level(config: AutoencoderConfig, params: Params, h: Array) -> Array:
    for i in range(len(params["block"])):
        h = _res_block(config, params["block"][str(i)], h)
        if "attn" in params:
            h = _attention(config, params["attn"][str(i)], h)
    return h


def _mid(config: AutoencoderConfig, params: Params, h: Array) -> Array:
    h = _res_block(config, params["block_1"], h)
    return _res_block(config, params["block_2"], _attention(config, params["attn_1"], h))


def _res_block(config: AutoencoderConfig, params: Params, x: Array) -> Array:
    h = nn.conv2d(params["conv1"], _norm_swish(config, params["norm1"], x))
    h = nn.conv2d(params["conv2"], _norm_swish(config, params["norm2"], h))
    return h + (nn.linear(params["shortcut"], x) if "shortcut" in params else x)


def _attention(config: AutoencoderConfig, params: Params, x: Array) -> Array:
    return nn.self_attention(params, x, num_heads=1, groups=config.norm_groups, eps=_EPS)


def _norm_swish(config: AutoencoderConfig, params: Params, x: Array) -> Array:
    return jax.nn.silu(nn.group_norm(params, x, groups=config.norm_groups, eps=_EPS))
