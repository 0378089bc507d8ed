"""StyleGAN2 (Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020).

Mapping network z -> w and skip-architecture synthesis w -> image, as Flax NNX modules that are
used at the edge only: `init` and the pure functions `mapping` and `synthesis` work on a plain
nested dict of arrays, so parameters go through jit, vmap, jvp, Orbax and sharding with no wrapper.

Modulation scales the activations that enter a convolution and demodulation the ones that leave it,
instead of the weights: one shared kernel for the whole batch, which is the same product and, unlike
one kernel per sample, stays an ordinary convolution under vmap.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from fpjax.models import _layers, resample

Array = jax.Array
Params = Mapping[str, Any]
Noise = Literal["const", "none"] | Array


@dataclasses.dataclass(frozen=True)
class StyleGAN2Config:
    """Architecture of a StyleGAN2 generator.

    Attributes:
      resolution: side of the image in pixels, a power of two from 8 to 1024.
      z_dim: length of the input noise z.
      w_dim: length of the style w.
      num_mapping_layers: fully connected layers of the mapping network.
      mapping_lr_multiplier: learning-rate multiplier its weights are stored with.
      channel_base, channel_max: a layer at side r has min(channel_base // r, channel_max) channels.
      channels: explicit (side, channels) table; overrides the two above where given.
      fir: taps of the separable resampling filter.
      conv_clamp: bound on activations that mixed-precision training applied, or None.
      dtype: type the convolutions compute in, "float32" or "bfloat16"; images are float32.

    >>> StyleGAN2Config(resolution=32).num_layers
    8
    """

    resolution: int
    z_dim: int = 512
    w_dim: int = 512
    num_mapping_layers: int = 8
    mapping_lr_multiplier: float = 0.01
    channel_base: int = 32768
    channel_max: int = 512
    channels: tuple[tuple[int, int], ...] | None = None
    fir: tuple[float, ...] = (1.0, 3.0, 3.0, 1.0)
    conv_clamp: float | None = None
    dtype: str = "float32"

    def __post_init__(self):
        if self.resolution not in (8, 16, 32, 64, 128, 256, 512, 1024):
            raise ValueError(
                f"resolution {_layers.short(self.resolution)}: StyleGAN2 needs a power of two "
                "from 8 to 1024"
            )
        _layers.check_counts(
            self,
            z_dim=_layers.MAX_SIZE,
            w_dim=_layers.MAX_SIZE,
            num_mapping_layers=_layers.MAX_DEPTH,
            channel_base=_layers.MAX_SIZE << 10,
            channel_max=_layers.MAX_SIZE,
        )
        if len(self.fir) != 4:
            raise ValueError(f"fir has {len(self.fir)} taps: the resampling filter needs 4")
        clamp = () if self.conv_clamp is None else (self.conv_clamp,)
        numbers = (self.mapping_lr_multiplier, *self.fir, *clamp)
        if not all(isinstance(n, (int, float)) and math.isfinite(n) for n in numbers):
            raise ValueError(
                "mapping_lr_multiplier, fir and conv_clamp: expected finite numbers, or no clamp"
            )
        if not self.mapping_lr_multiplier > 0:
            raise ValueError(
                f"mapping_lr_multiplier {self.mapping_lr_multiplier}: expected a positive number"
            )
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype {self.dtype!r}: choose 'float32' or 'bfloat16'")
        if self.channels is not None:
            if len(self.channels) > _layers.MAX_LEVELS:
                raise ValueError(f"channels of {len(self.channels)} sides: expected at most 9")
            table = tuple(sorted((int(r), int(c)) for r, c in self.channels))
            if not all(1 <= c <= _layers.MAX_SIZE for _, c in table):
                raise ValueError(f"channels: expected 1 to {_layers.MAX_SIZE:,} at each side")
            if [r for r, _ in table] != list(self.block_resolutions):
                raise ValueError(
                    f"channels name the sides {[r for r, _ in table]}: expected one entry for "
                    f"each of {list(self.block_resolutions)}"
                )
            object.__setattr__(self, "channels", table)

    @property
    def block_resolutions(self) -> tuple[int, ...]:
        """Sides of the synthesis blocks, 4 first."""
        return tuple(2**i for i in range(2, int(math.log2(self.resolution)) + 1))

    @property
    def num_layers(self) -> int:
        """Style inputs of the synthesis network: one per convolution, one more for the last RGB."""
        return 2 * len(self.block_resolutions)

    def num_channels(self, resolution: int) -> int:
        """Channels of the layers at this side."""
        if self.channels is not None:
            return dict(self.channels)[resolution]
        return min(self.channel_base // resolution, self.channel_max)

    @classmethod
    def ffhq1024(cls) -> StyleGAN2Config:
        """FFHQ at 1024 px, config-f of the paper."""
        return cls(resolution=1024)

    @classmethod
    def ffhq256(cls) -> StyleGAN2Config:
        """FFHQ at 256 px with the channels of config-f (the rosinality checkpoint, 550k steps)."""
        return cls(resolution=256)

    @classmethod
    def ffhq256_ada(cls) -> StyleGAN2Config:
        """FFHQ at 256 px with half the channels (`paper256` of StyleGAN2-ADA)."""
        return cls(resolution=256, channel_base=16384)

    @classmethod
    def afhq512(cls) -> StyleGAN2Config:
        """AFHQ cats, dogs or wild animals at 512 px (StyleGAN2-ADA)."""
        return cls(resolution=512)


def leaky_relu(x: Array) -> Array:
    """Leaky ReLU of slope 0.2 and gain sqrt(2), which keeps a normal input's variance."""
    return jnp.where(x >= 0, x, 0.2 * x) * jnp.asarray(math.sqrt(2), x.dtype)


class Linear(nnx.Module):
    """Fully connected layer with an equalised learning rate; weights are stored before scaling."""

    def __init__(self, in_features, out_features, *, rngs, lr_multiplier=1.0, bias_init=0.0):
        shape = (in_features, out_features)
        self.weight = nnx.Param(jax.random.normal(rngs.params(), shape) / lr_multiplier)
        self.bias = nnx.Param(jnp.full((out_features,), bias_init / lr_multiplier))
        self.lr_multiplier = lr_multiplier

    def __call__(self, x: Array) -> Array:
        gain = self.lr_multiplier / math.sqrt(self.weight.shape[0])
        return x @ (self.weight[...] * gain) + self.bias[...] * self.lr_multiplier


class MappingNetwork(nnx.Module):
    """z (B, z_dim) -> w (B, w_dim); holds `w_avg`, the centre that truncation pulls towards."""

    def __init__(self, config: StyleGAN2Config, *, rngs):
        self.num_layers = config.num_mapping_layers
        width = config.z_dim
        for i in range(self.num_layers):
            layer = Linear(
                width, config.w_dim, rngs=rngs, lr_multiplier=config.mapping_lr_multiplier
            )
            setattr(self, f"fc{i}", layer)
            width = config.w_dim
        self.w_avg = nnx.Param(jnp.zeros((config.w_dim,)))

    def __call__(self, z: Array) -> Array:
        x = z * jax.lax.rsqrt(jnp.mean(z**2, axis=-1, keepdims=True) + 1e-8)
        for i in range(self.num_layers):
            x = leaky_relu(getattr(self, f"fc{i}")(x))
        return x


class StyledConv(nnx.Module):
    """Modulated 3x3 convolution (optionally doubling the size), noise, bias, leaky ReLU."""

    def __init__(self, config: StyleGAN2Config, in_channels, out_channels, side, *, up, rngs):
        self.config, self.side, self.up = config, side, up
        self.affine = Linear(config.w_dim, in_channels, rngs=rngs, bias_init=1.0)
        shape = (3, 3, in_channels, out_channels)
        self.weight = nnx.Param(jax.random.normal(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros((out_channels,)))
        self.noise_const = nnx.Param(jax.random.normal(rngs.params(), (side, side)))
        self.noise_strength = nnx.Param(jnp.zeros(()))

    def __call__(self, x: Array, w: Array, noise: Noise, index: int) -> Array:
        dtype = jnp.dtype(self.config.dtype)
        # 1/sqrt(fan-in) keeps half-precision products in range; demodulation undoes it exactly.
        weight = self.weight[...] / math.sqrt(math.prod(self.weight.shape[:3]))
        style = self.affine(w)
        energy = jnp.sum(weight**2, axis=(0, 1))
        demodulation = jax.lax.rsqrt(style**2 @ energy + 1e-8)
        x = x * style[:, None, None, :].astype(dtype)
        weight = weight.astype(dtype)
        if self.up:
            x = resample.conv2d_up(x, weight, jnp.asarray(self.config.fir))
        else:
            x = resample.conv2d(x, weight)
        x = x * demodulation[:, None, None, :].astype(dtype)
        if isinstance(noise, str):
            if noise == "const":
                x = x + (self.noise_const[...] * self.noise_strength[...])[..., None].astype(dtype)
        else:
            shape = (x.shape[0], self.side, self.side, 1)
            drawn = jax.random.normal(jax.random.fold_in(noise, index), shape)
            x = x + (drawn * self.noise_strength[...]).astype(dtype)
        x = leaky_relu(x + self.bias[...].astype(dtype))
        if self.config.conv_clamp is not None:
            x = jnp.clip(x, -self.config.conv_clamp, self.config.conv_clamp)
        return x


class ToRGB(nnx.Module):
    """Modulated 1x1 convolution to three channels, without demodulation."""

    def __init__(self, config: StyleGAN2Config, in_channels, *, rngs):
        self.config = config
        self.affine = Linear(config.w_dim, in_channels, rngs=rngs, bias_init=1.0)
        self.weight = nnx.Param(jax.random.normal(rngs.params(), (in_channels, 3)))
        self.bias = nnx.Param(jnp.zeros((3,)))

    def __call__(self, x: Array, w: Array) -> Array:
        style = self.affine(w)[:, None, None, :].astype(x.dtype)
        weight = self.weight[...] / math.sqrt(self.weight.shape[0])
        rgb = (x * style) @ weight.astype(x.dtype) + self.bias[...].astype(x.dtype)
        if self.config.conv_clamp is not None:
            rgb = jnp.clip(rgb, -self.config.conv_clamp, self.config.conv_clamp)
        return rgb.astype(jnp.float32)


class SynthesisBlock(nnx.Module):
    """All layers at one resolution: (conv0 doubles the size), conv1, torgb."""

    def __init__(self, config: StyleGAN2Config, side: int, *, rngs):
        channels = config.num_channels(side)
        if side == 4:
            self.const = nnx.Param(jax.random.normal(rngs.params(), (4, 4, channels)))
        else:
            below = config.num_channels(side // 2)
            self.conv0 = StyledConv(config, below, channels, side, up=True, rngs=rngs)
        self.conv1 = StyledConv(config, channels, channels, side, up=False, rngs=rngs)
        self.torgb = ToRGB(config, channels, rngs=rngs)


class SynthesisNetwork(nnx.Module):
    """Styles (B, num_layers, w_dim) -> images (B, resolution, resolution, 3)."""

    def __init__(self, config: StyleGAN2Config, *, rngs):
        self.config = config
        for side in config.block_resolutions:
            setattr(self, f"b{side}", SynthesisBlock(config, side, rngs=rngs))

    def __call__(self, ws: Array, noise: Noise) -> Array:
        dtype = jnp.dtype(self.config.dtype)
        image, index = None, 0
        for side in self.config.block_resolutions:
            block = getattr(self, f"b{side}")
            if side == 4:
                const = block.const[...].astype(dtype)
                x = jnp.broadcast_to(const, (ws.shape[0], *const.shape))
            else:
                x = block.conv0(x, ws[:, index], noise, index)
                index += 1
            x = block.conv1(x, ws[:, index], noise, index)
            index += 1
            # The RGB layer shares its style with the next block's first convolution.
            rgb = block.torgb(x, ws[:, index])
            if image is None:
                image = rgb
            else:
                image = rgb + resample.upsample_2d(image, jnp.asarray(self.config.fir))
        return image


class StyleGAN2(nnx.Module):
    """Mapping and synthesis under one roof; its Flax state is the parameter tree."""

    def __init__(self, config: StyleGAN2Config, *, rngs):
        self.mapping = MappingNetwork(config, rngs=rngs)
        self.synthesis = SynthesisNetwork(config, rngs=rngs)


@functools.lru_cache(maxsize=64)
def _graphdef(config: StyleGAN2Config):
    return nnx.split(nnx.eval_shape(lambda: StyleGAN2(config, rngs=nnx.Rngs(0))))


def init(config: StyleGAN2Config, key: Array) -> dict[str, Any]:
    """Draws the parameters of an untrained generator.

    >>> params = init(StyleGAN2Config(8, 16, 16, 2, channel_base=64), jax.random.key(0))
    >>> params["synthesis"]["b8"]["conv0"]["weight"].shape
    (3, 3, 16, 8)
    """
    return nnx.to_pure_dict(nnx.state(StyleGAN2(config, rngs=nnx.Rngs(key))))


def param_shapes(config: StyleGAN2Config) -> dict[str, Any]:
    """The parameter tree with `jax.ShapeDtypeStruct` leaves; nothing is allocated.

    >>> param_shapes(StyleGAN2Config(8, 16, 16, 2))["mapping"]["w_avg"].shape
    (16,)
    """
    return nnx.to_pure_dict(_graphdef(config)[1])


def mapping(
    config: StyleGAN2Config, params: Params, z: Array, *, truncation_psi: Array | float = 1.0
) -> Array:
    """Maps noise to styles, w = w_avg + truncation_psi * (mapping(z) - w_avg).

    Args:
      config: the architecture.
      params: the tree from `init` or a converted checkpoint.
      z: (B, z_dim) standard normal noise.
      truncation_psi: 1 leaves w as it is, 0 gives `w_avg`.

    Returns:
      w, (B, w_dim).

    >>> config = StyleGAN2Config(8, 16, 16, 2, channel_base=64)
    >>> mapping(config, init(config, jax.random.key(0)), jnp.ones((3, 16))).shape
    (3, 16)
    """
    if z.ndim != 2 or z.shape[1] != config.z_dim:
        raise ValueError(f"z has shape {z.shape}: expected (batch, {config.z_dim})")
    model = nnx.merge(_graphdef(config)[0], params)
    w = model.mapping(z)
    w_avg = model.mapping.w_avg[...]
    return w_avg + truncation_psi * (w - w_avg)


def synthesis(
    config: StyleGAN2Config, params: Params, latents: Array, *, noise: Noise = "const"
) -> Array:
    """Renders images from styles.

    Args:
      config: the architecture.
      params: the tree from `init` or a converted checkpoint.
      latents: (B, w_dim), one style for every layer, or (B, num_layers, w_dim), one for each
        (style mixing).
      noise: "const" adds the noise maps stored with the weights, "none" adds nothing, a PRNG key
        draws maps afresh for every image.

    Returns:
      Images (B, resolution, resolution, 3), float32, nominally in [-1, 1] (not clipped).

    Raises:
      ValueError: if the latents or the noise are of another form.

    >>> config = StyleGAN2Config(8, 16, 16, 2, channel_base=64)
    >>> synthesis(config, init(config, jax.random.key(0)), jnp.ones((3, 16))).shape
    (3, 8, 8, 3)
    """
    if isinstance(noise, str) and noise not in ("const", "none"):
        raise ValueError(f"noise {noise!r}: choose 'const', 'none' or a PRNG key")
    if latents.ndim == 2 and latents.shape[1] == config.w_dim:
        latents = jnp.broadcast_to(
            latents[:, None], (latents.shape[0], config.num_layers, config.w_dim)
        )
    elif latents.ndim != 3 or latents.shape[1:] != (config.num_layers, config.w_dim):
        raise ValueError(
            f"latents have shape {latents.shape}: expected (batch, {config.w_dim}) or "
            f"(batch, {config.num_layers}, {config.w_dim})"
        )
    return nnx.merge(_graphdef(config)[0], params).synthesis(latents, noise)
