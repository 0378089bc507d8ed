"""The denoising U-Net of unconditional latent diffusion.

Architecture of Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis" (NeurIPS 2021,
arXiv 2105.05233), as Rombach et al. (CVPR 2022) use it on latents. A few options more than theirs
hold the weights of diffusers' `UNet2DModel`. Pure functions of `(config, params, ...)`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp

from fpjax.models import layers as nn
from fpjax.models import parameters
from fpjax.models.parameters import Array, Params, Specs


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """Architecture of a denoising U-Net.

    Attributes:
      image_size: nominal side of what is denoised (of the latent, in latent diffusion).
      in_channels, out_channels: channels of what is denoised, and of the prediction.
      model_channels: channels after the first convolution, and length of the timestep embedding.
      channel_mult: multiple of `model_channels` at each level; each but the last halves the side.
      num_res_blocks: residual blocks a level going down; going up there is one more.
      attention_resolutions: levels with attention, by their downsampling factor (1, 2, 4, ...), as
        the published configurations count. The middle always has attention.
      num_head_channels: channels of an attention head; None uses `num_heads` instead.
      num_heads: attention heads at every level, where `num_head_channels` is None.
      use_scale_shift_norm: the timestep also scales, after the second norm of a residual block.
      norm_groups, norm_eps: groups and epsilon of the normalisation layers.
      time_embedding_order: whether cosines or sines come first in the timestep embedding.
      time_frequency_shift: 1 where the lowest frequency is exactly 1 / 10000, else 0.
      asymmetric_downsample: pad the bottom and right only when halving the side.
      mid_attention_norm: whether the attention of the middle normalises first, as published; in
        diffusers it does not where `use_scale_shift_norm` is set.
      dtype: type the layers compute in, "float32" or "bfloat16"; inputs and outputs are float32.

    >>> UNetConfig.ldm_ffhq256().channels
    (224, 448, 672, 896)
    """

    image_size: int = 64
    in_channels: int = 3
    out_channels: int = 3
    model_channels: int = 224
    channel_mult: tuple[float, ...] = (1, 2, 3, 4)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (8, 4, 2)
    num_head_channels: int | None = 32
    num_heads: int = 1
    use_scale_shift_norm: bool = False
    norm_groups: int = 32
    norm_eps: float = 1e-5
    time_embedding_order: Literal["cos_sin", "sin_cos"] = "cos_sin"
    time_frequency_shift: float = 0.0
    asymmetric_downsample: bool = False
    mid_attention_norm: bool = True
    dtype: str = "float32"

    def __post_init__(self):
        nn.normalize_config(
            self,
            tuples=("channel_mult", "attention_resolutions"),
            floats=("norm_eps", "time_frequency_shift"),
        )
        nn.check_dtype(self.dtype)
        sizes = ("image_size", "in_channels", "out_channels", "model_channels", "norm_groups")
        nn.check_counts(self, **dict.fromkeys((*sizes, "num_heads"), nn.MAX_SIZE))
        nn.check_counts(self, num_res_blocks=nn.MAX_DEPTH)
        if self.num_head_channels is not None:
            nn.check_counts(self, num_head_channels=nn.MAX_SIZE)
        nn.check_groups(self.norm_groups, self.model_channels, *self.channels)
        if self.model_channels % 2:
            raise ValueError(f"model_channels {self.model_channels}: expected an even number")
        if self.time_embedding_order not in ("cos_sin", "sin_cos"):
            raise ValueError(
                f"time_embedding_order {self.time_embedding_order!r}: choose 'cos_sin' or 'sin_cos'"
            )
        for level in range(len(self.channels)):
            if self.has_attention(level):
                self.heads(self.channels[level])
        self.heads(self.channels[-1])

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each level, full resolution first."""
        return nn.level_channels("channel_mult", self.model_channels, self.channel_mult)

    @property
    def downsampling(self) -> int:
        """Side of the input over side of the middle."""
        return 2 ** (len(self.channel_mult) - 1)

    def has_attention(self, level: int) -> bool:
        """Whether the residual blocks of a level are each followed by attention."""
        return 2**level in self.attention_resolutions

    def heads(self, channels: int) -> int:
        """Attention heads of a layer with so many channels.

        >>> UNetConfig.ldm_ffhq256().heads(448)
        14
        """
        per_head = self.num_head_channels
        heads = self.num_heads if per_head is None else channels // per_head
        if channels % (per_head or heads):
            raise ValueError(
                f"{channels} channels cannot be split in heads of {per_head} channels"
                if per_head
                else f"{channels} channels cannot be split in {heads} heads"
            )
        return heads

    @classmethod
    def ldm_ffhq256(cls) -> UNetConfig:
        """The prior of the unconditional FFHQ-256 (and CelebA-HQ-256) LDM, on 64x64x3 latents."""
        return cls()


def init(config: UNetConfig, key: Array) -> dict:
    """Draws the float32 parameters of an untrained U-Net.

    Residual branches and the last convolution start at zero, so the first prediction is zero.

    >>> config = UNetConfig(model_channels=32, channel_mult=(1,), num_res_blocks=1)
    >>> sorted(jax.eval_shape(lambda key: init(config, key), jax.random.key(0)))
    ['conv_in', 'conv_out', 'down', 'mid', 'norm_out', 'time_embed', 'up']
    """
    return parameters.draw_params(_specs(config), key)


def param_shapes(config: UNetConfig) -> dict:
    """The parameter tree with `jax.ShapeDtypeStruct` leaves; nothing is allocated.

    >>> param_shapes(UNetConfig.ldm_ffhq256())["conv_in"]["weight"].shape
    (3, 3, 3, 224)
    """
    return parameters.spec_shapes(_specs(config))


def timestep_embedding(
    timesteps: Array, dim: int, *, order: str = "cos_sin", frequency_shift: float = 0.0
) -> Array:
    """Sinusoids of the timesteps (Vaswani et al., 2017), frequencies from 1 down to 1 / 10000.

    Args:
      timesteps: (B,) integers or floats.
      dim: even length of an embedding.
      order: "cos_sin" has the cosines in the first half, "sin_cos" the sines.
      frequency_shift: the exponents are i / (dim / 2 - frequency_shift).

    Returns:
      (B, dim), float32, in [-1, 1].

    >>> timestep_embedding(jnp.asarray([0]), 4).tolist()
    [[1.0, 1.0, 0.0, 0.0]]
    """
    half = dim // 2
    exponents = jnp.arange(half, dtype=jnp.float32) / (half - frequency_shift)
    frequencies = jnp.exp(-math.log(10000.0) * exponents)
    angles = timesteps.astype(jnp.float32)[:, None] * frequencies[None, :]
    waves = (jnp.cos(angles), jnp.sin(angles))
    return jnp.concatenate(waves if order == "cos_sin" else waves[::-1], axis=-1)


def denoise(config: UNetConfig, params: Params, x: Array, t: Array) -> Array:
    """Predicts the noise in x at timestep t.

    Args:
      config: the architecture.
      params: the tree from `init` or a converted checkpoint.
      x: (B, H, W, in_channels), sides multiples of `config.downsampling`.
      t: timesteps, (B,) or a scalar for all; integers count training steps from 0.

    Returns:
      (B, H, W, out_channels), float32.

    Raises:
      ValueError: if x or t is of another form.

    >>> config = UNetConfig(model_channels=32, channel_mult=(1, 2), num_res_blocks=1)
    >>> x, t = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32), jax.ShapeDtypeStruct((2,), int)
    >>> from functools import partial
    >>> jax.eval_shape(partial(denoise, config), param_shapes(config), x, t).shape
    (2, 8, 8, 3)
    """
    nn.check_images("x", x, config.in_channels, config.downsampling)
    t = jnp.asarray(t)
    if t.ndim > 1 or (t.ndim == 1 and t.shape[0] != x.shape[0]):
        raise ValueError(f"t of shape {t.shape}: expected a scalar or ({x.shape[0]},)")
    t = jnp.broadcast_to(t, x.shape[:1])
    time = timestep_embedding(
        t,
        config.model_channels,
        order=config.time_embedding_order,
        frequency_shift=config.time_frequency_shift,
    )
    time = jax.nn.silu(nn.linear(params["time_embed"]["linear_1"], time))
    # Every residual block starts from the activation of the embedding: apply it once.
    time = jax.nn.silu(nn.linear(params["time_embed"]["linear_2"], time))
    time = time.astype(jnp.dtype(config.dtype))

    h = nn.conv2d(params["conv_in"], x.astype(jnp.dtype(config.dtype)))
    skips = [h]
    for level in range(len(config.channels)):
        stage = params["down"][str(level)]
        for i in range(config.num_res_blocks):
            h = _block(config, stage, str(i), h, time)
            skips.append(h)
        if "downsample" in stage:
            asymmetric = config.asymmetric_downsample
            h = nn.conv2d_down(stage["downsample"], h, asymmetric=asymmetric)
            skips.append(h)

    h = _res_block(config, params["mid"]["block_1"], h, time)
    h = _attention(config, params["mid"]["attn_1"], h)
    h = _res_block(config, params["mid"]["block_2"], h, time)

    for level in reversed(range(len(config.channels))):
        stage = params["up"][str(level)]
        for i in range(config.num_res_blocks + 1):
            h = _block(config, stage, str(i), jnp.concatenate([h, skips.pop()], axis=-1), time)
        if "upsample" in stage:
            h = nn.conv2d(stage["upsample"], nn.upsample_nearest(h))
    h = nn.conv2d(params["conv_out"], _norm_swish(config, params["norm_out"], h))
    return h.astype(jnp.float32)


def _specs(config: UNetConfig) -> Specs:
    width, channels = config.model_channels, config.channels
    time = 4 * width
    specs: Specs = {
        "time_embed": {
            "linear_1": nn.linear_spec(width, time),
            "linear_2": nn.linear_spec(time, time),
        },
        "conv_in": nn.conv_spec(config.in_channels, width),
    }
    skips, down = [width], {}
    for level, out in enumerate(channels):
        inputs = [width] + [out] * (config.num_res_blocks - 1)
        down[str(level)] = _level_specs(config, level, inputs, out, time)
        skips += [out] * config.num_res_blocks
        if level + 1 < len(channels):
            down[str(level)]["downsample"] = nn.conv_spec(out, out)
            skips.append(out)
        width = out
    mid = _res_block_spec(config, width, width, time)
    attn = nn.attention_spec(width, gain=0.0, norm=config.mid_attention_norm)
    specs |= {"down": down, "mid": {"block_1": mid, "attn_1": attn, "block_2": mid}}
    up = {}
    for level, out in reversed(list(enumerate(channels))):
        widths = [width] + [out] * config.num_res_blocks
        inputs = [w + skips.pop() for w in widths]
        up[str(level)] = _level_specs(config, level, inputs, out, time)
        if level > 0:
            up[str(level)]["upsample"] = nn.conv_spec(out, out)
        width = out
    return specs | {
        "up": up,
        "norm_out": nn.norm_spec(width),
        "conv_out": nn.conv_spec(width, config.out_channels, gain=0.0),
    }


def _level_specs(config: UNetConfig, level: int, inputs: list[int], out: int, time: int) -> Specs:
    blocks = {str(i): _res_block_spec(config, n, out, time) for i, n in enumerate(inputs)}
    if not config.has_attention(level):
        return {"block": blocks}
    attn = nn.attention_spec(out, gain=0.0)
    return {"block": blocks, "attn": {str(i): attn for i in range(len(inputs))}}


def _res_block_spec(config: UNetConfig, width: int, out: int, time: int) -> Specs:
    return {
        "norm1": nn.norm_spec(width),
        "conv1": nn.conv_spec(width, out),
        "time": nn.linear_spec(time, 2 * out if config.use_scale_shift_norm else out),
        "norm2": nn.norm_spec(out),
        "conv2": nn.conv_spec(out, out, gain=0.0),
    } | ({"shortcut": nn.linear_spec(width, out)} if width != out else {})


def _block(config: UNetConfig, stage: Params, index: str, h: Array, time: Array) -> Array:
    h = _res_block(config, stage["block"][index], h, time)
    return _attention(config, stage["attn"][index], h) if "attn" in stage else h


def _res_block(config: UNetConfig, params: Params, x: Array, time: Array) -> Array:
    h = nn.conv2d(params["conv1"], _norm_swish(config, params["norm1"], x))
    shift = nn.linear(params["time"], time)[:, None, None, :]
    if config.use_scale_shift_norm:
        scale, shift = jnp.split(shift, 2, axis=-1)
        h = jax.nn.silu(_norm(config, params["norm2"], h) * (1 + scale) + shift)
    else:
        h = _norm_swish(config, params["norm2"], h + shift)
    h = nn.conv2d(params["conv2"], h)
    return h + (nn.linear(params["shortcut"], x) if "shortcut" in params else x)


def _attention(config: UNetConfig, params: Params, x: Array) -> Array:
    heads = config.heads(x.shape[-1])
    groups, eps = config.norm_groups, config.norm_eps
    return nn.self_attention(params, x, num_heads=heads, groups=groups, eps=eps)


def _norm(config: UNetConfig, params: Params, x: Array) -> Array:
    return nn.group_norm(params, x, groups=config.norm_groups, eps=config.norm_eps)


def _norm_swish(config: UNetConfig, params: Params, x: Array) -> Array:
    return jax.nn.silu(_norm(config, params, x))
