"""StyleGAN2 (Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020).

Mapping network z -> w and skip-architecture synthesis w -> image, as pure functions of
`(config, params, ...)`; `params` is a nested dict of arrays.

Modulation scales the activations that enter a convolution and demodulation the ones that leave it,
instead of the weights: one shared kernel for the whole batch, which is the same product and, unlike
one kernel per sample, stays an ordinary convolution under vmap.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from fpjax.models import layers, parameters, resample
from fpjax.models.layers import along_channels, convolve
from fpjax.models.parameters import Array, Params, ParamSpec, Specs

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
                f"resolution {layers.short(self.resolution)}: StyleGAN2 needs a power of two "
                "from 8 to 1024"
            )
        layers.check_counts(
            self,
            z_dim=layers.MAX_SIZE,
            w_dim=layers.MAX_SIZE,
            num_mapping_layers=layers.MAX_DEPTH,
            channel_base=layers.MAX_SIZE << 10,
            channel_max=layers.MAX_SIZE,
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
            if len(self.channels) > layers.MAX_LEVELS:
                raise ValueError(f"channels of {len(self.channels)} sides: expected at most 9")
            table = tuple(sorted((int(r), int(c)) for r, c in self.channels))
            if not all(1 <= c <= layers.MAX_SIZE for _, c in table):
                raise ValueError(f"channels: expected 1 to {layers.MAX_SIZE:,} at each side")
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
    """Leaky ReLU of slope 0.2 and gain sqrt(2), which keeps a normal input's variance.

    >>> leaky_relu(jnp.asarray([-5.0, 0.0])).round(3).tolist()
    [-1.4140..., 0.0]
    """
    return jax.nn.leaky_relu(x, 0.2) * math.sqrt(2)


def equalized_linear_spec(
    in_features: int, out_features: int, *, lr_multiplier: float = 1.0, bias: float = 0.0
) -> Specs:
    """Parameters of `equalized_linear`, whose weights are stored before they are scaled.

    >>> equalized_linear_spec(3, 8, bias=1.0)["bias"].mean
    1.0
    """
    return {
        "weight": ParamSpec((in_features, out_features), std=1 / lr_multiplier),
        "bias": ParamSpec((out_features,), mean=bias / lr_multiplier),
    }


def equalized_linear(params: Params, x: Array, lr_multiplier: float = 1.0) -> Array:
    """Linear layer x (B, in) -> (B, out) with an equalised learning rate (Karras et al., 2018).

    >>> layer = {"weight": jnp.ones((4, 2)), "bias": jnp.zeros(2)}
    >>> equalized_linear(layer, jnp.ones((1, 4))).tolist()
    [[2.0, 2.0]]
    """
    gain = lr_multiplier / math.sqrt(x.shape[-1])
    return (x * gain) @ params["weight"] + along_channels(params["bias"] * lr_multiplier, x)


def init(config: StyleGAN2Config, key: Array) -> dict[str, Any]:
    """Draws the float32 parameters of an untrained generator.

    >>> params = init(StyleGAN2Config(8, 16, 16, 1, channel_base=64), jax.random.key(0))
    >>> params["synthesis"]["b8"]["conv0"]["weight"].shape
    (3, 3, 16, 8)
    """
    return parameters.draw_params(_specs(config), key)


def param_shapes(config: StyleGAN2Config) -> dict[str, Any]:
    """The parameter tree with `jax.ShapeDtypeStruct` leaves; nothing is allocated.

    >>> param_shapes(StyleGAN2Config(8, 16, 16, 2))["mapping"]["w_avg"].shape
    (16,)
    """
    return parameters.spec_shapes(_specs(config))


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

    Raises:
      ValueError: if z is of another shape.

    >>> from functools import partial
    >>> config = StyleGAN2Config(8, 16, 16, 2, channel_base=64)
    >>> jax.eval_shape(partial(mapping, config), param_shapes(config), jnp.ones((3, 16))).shape
    (3, 16)
    """
    if z.ndim != 2 or z.shape[1] != config.z_dim:
        raise ValueError(f"z has shape {z.shape}: expected (batch, {config.z_dim})")
    params = params["mapping"]
    x = z * jax.lax.rsqrt(jnp.mean(z**2, axis=-1, keepdims=True) + 1e-8)
    for i in range(config.num_mapping_layers):
        x = leaky_relu(equalized_linear(params[f"fc{i}"], x, config.mapping_lr_multiplier))
    w_avg = along_channels(params["w_avg"], x)
    return w_avg + truncation_psi * (x - w_avg)


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

    >>> from functools import partial
    >>> config = StyleGAN2Config(8, 16, 16, 2, channel_base=64)
    >>> jax.eval_shape(partial(synthesis, config), param_shapes(config), jnp.ones((3, 16))).shape
    (3, 8, 8, 3)
    """
    if isinstance(noise, str) and noise not in ("const", "none"):
        raise ValueError(f"noise {noise!r}: choose 'const', 'none' or a PRNG key")
    if latents.ndim == 2 and latents.shape[1] == config.w_dim:
        styles = [latents] * config.num_layers
    elif latents.ndim == 3 and latents.shape[1:] == (config.num_layers, config.w_dim):
        styles = [latents[:, i] for i in range(config.num_layers)]
    else:
        raise ValueError(
            f"latents have shape {latents.shape}: expected (batch, {config.w_dim}) or "
            f"(batch, {config.num_layers}, {config.w_dim})"
        )

    def styled_conv(layer, x, index, *, up=False):
        maps = noise if isinstance(noise, str) else jax.random.fold_in(noise, index)
        return _styled_conv(config, layer, x, styles[index], maps, up=up)

    block = params["synthesis"]["b4"]
    const = jnp.asarray(block["const"], config.dtype)
    x = jnp.broadcast_to(const, (latents.shape[0], *const.shape))
    x = styled_conv(block["conv1"], x, 0)
    image = _to_rgb(config, block["torgb"], x, styles[1])
    for i, side in enumerate(config.block_resolutions[1:]):
        block = params["synthesis"][f"b{side}"]
        x = styled_conv(block["conv0"], x, 2 * i + 1, up=True)
        x = styled_conv(block["conv1"], x, 2 * i + 2)
        # The RGB layer shares its style with the next block's first convolution.
        rgb = _to_rgb(config, block["torgb"], x, styles[2 * i + 3])
        image = rgb + resample.upsample_2d(image, config.fir)
    return image


def _specs(config: StyleGAN2Config) -> Specs:
    layers, width = {}, config.z_dim
    for i in range(config.num_mapping_layers):
        layers[f"fc{i}"] = equalized_linear_spec(
            width, config.w_dim, lr_multiplier=config.mapping_lr_multiplier
        )
        width = config.w_dim
    blocks: Specs = {}
    for side in config.block_resolutions:
        channels = config.num_channels(side)
        first: Specs = {"const": ParamSpec((4, 4, channels), std=1.0)}
        if side > 4:
            below = config.num_channels(side // 2)
            first = {"conv0": _styled_conv_spec(config, below, channels, side)}
        blocks[f"b{side}"] = first | {
            "conv1": _styled_conv_spec(config, channels, channels, side),
            "torgb": {
                "affine": equalized_linear_spec(config.w_dim, channels, bias=1.0),
                "weight": ParamSpec((channels, 3), std=1.0),
                "bias": ParamSpec((3,)),
            },
        }
    return {"mapping": layers | {"w_avg": ParamSpec((config.w_dim,))}, "synthesis": blocks}


def _styled_conv_spec(config: StyleGAN2Config, channels: int, out: int, side: int) -> Specs:
    return {
        "affine": equalized_linear_spec(config.w_dim, channels, bias=1.0),
        "weight": ParamSpec((3, 3, channels, out), std=1.0),
        "bias": ParamSpec((out,)),
        "noise_const": ParamSpec((side, side), std=1.0),
        "noise_strength": ParamSpec(()),
    }


def _styled_conv(
    config: StyleGAN2Config, params: Params, x: Array, w: Array, noise: Noise, *, up: bool
) -> Array:
    """Modulated 3x3 convolution (optionally doubling the size), noise, bias, leaky ReLU."""
    weight = params["weight"]
    # 1/sqrt(fan-in) keeps half-precision products in range; demodulation undoes it exactly. It
    # scales the style, which spares a pass over the weights.
    style = equalized_linear(params["affine"], w) / math.sqrt(9 * x.shape[-1])
    demodulation = jax.lax.rsqrt(style**2 @ jnp.sum(weight**2, axis=(0, 1)) + 1e-8)
    x = x * _per_image(style, x)
    x = resample.conv2d_up(x, weight, config.fir) if up else convolve(x, weight)
    x = x * _per_image(demodulation, x)
    if not isinstance(noise, str):
        drawn = jax.random.normal(noise, (*x.shape[:3], 1), jnp.float32)
        x = x + (drawn * params["noise_strength"]).astype(x.dtype)
    elif noise == "const":
        fixed = params["noise_const"] * params["noise_strength"]
        x = x + fixed[None, :, :, None].astype(x.dtype)
    return _clamp(config, leaky_relu(x + along_channels(params["bias"], x)))


def _to_rgb(config: StyleGAN2Config, params: Params, x: Array, w: Array) -> Array:
    """Modulated 1x1 convolution to three channels in float32, without demodulation."""
    x = x * _per_image(equalized_linear(params["affine"], w), x)
    weight = params["weight"] / math.sqrt(x.shape[-1])
    rgb = x @ weight.astype(x.dtype) + along_channels(params["bias"], x)
    return _clamp(config, rgb).astype(jnp.float32)


def _per_image(vectors: Array, x: Array) -> Array:
    return vectors[:, None, None, :].astype(x.dtype)


def _clamp(config: StyleGAN2Config, x: Array) -> Array:
    return x if config.conv_clamp is None else jnp.clip(x, -config.conv_clamp, config.conv_clamp)
