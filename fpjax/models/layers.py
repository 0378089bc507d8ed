"""Layers that several networks share: pure functions over nested dicts, NHWC.

Each layer is a pair: `*_spec` describes its parameters (a nested dict of `ParamSpec`), and a
function applies it. A model composes specs exactly as it composes layers, so that its parameter
tree is known without allocating it. Convolution weights are HWIO, linear weights (in, out).
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fpjax.models.parameters import Array, Params, ParamSpec, Specs

# A convolution of at most this many pixels is computed as one matrix product.
_MATMUL_MAX_PIXELS = 16


def along_channels(vector: Array, x: Array) -> Array:
    """A vector (C,) in the type and rank of x (..., C), so that the two are added or multiplied.

    >>> along_channels(jnp.ones(3), jnp.ones((1, 4, 4, 3), jnp.bfloat16)).shape
    (1, 1, 1, 3)
    """
    return jnp.asarray(vector, x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


def _at_pixels(vectors: Array, num_pixels: int) -> Array:
    """Vectors (B, C) at each of so many pixels: (B, P, C).

    A product with ones, so that its transpose is one too. The transpose of broadcasting is a sum
    over pixels, which XLA's CPU backend takes 10 to 40 times as long for where what is summed is
    a product: 43 ms instead of 1 for 16,384 pixels of 128 channels, on one core.

    >>> _at_pixels(jnp.asarray([[1.0, 2.0]]), 2).tolist()
    [[[1.0, 2.0], [1.0, 2.0]]]
    """
    ones = jnp.ones((len(vectors), num_pixels), vectors.dtype)
    return jnp.einsum("bp,bc->bpc", ones, vectors, precision=jax.lax.Precision.HIGHEST)


def _mean_of_pixels(pixels: Array) -> Array:
    """The mean (B, C) of pixels (B, P, C), as a product like `_at_pixels`.

    >>> _mean_of_pixels(jnp.asarray([[[1.0, 10.0], [3.0, 30.0]]])).tolist()
    [[2.0, 20.0]]
    """
    ones = jnp.ones(pixels.shape[:-1], pixels.dtype)
    total = jnp.einsum("bp,bpc->bc", ones, pixels, precision=jax.lax.Precision.HIGHEST)
    return total / pixels.shape[1]


def convolve(x: Array, weight: Array, *, stride: int = 1, padding: Any = "SAME") -> Array:
    """Correlates x (B, H, W, C) with weight (kh, kw, C, D), in the type of x: (B, H', W', D).

    >>> convolve(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1)))[0, :, 0, 0].tolist()
    [4.0, 6.0, 6.0, 4.0]
    """
    weight = jnp.asarray(weight, x.dtype)
    sides, kernel, strides = x.shape[1:3], weight.shape[:2], (stride, stride)
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(sides, kernel, strides, padding)
    pads = ((0, 0), *padding, (0, 0))
    if stride == 1 and kernel == (1, 1):
        return jnp.pad(x @ weight[0, 0], pads)
    if stride == 1 and math.prod(sides) <= _MATMUL_MAX_PIXELS:
        return _valid_convolution_as_matmul(jnp.pad(x, pads), weight)
    return jax.lax.conv_general_dilated(
        x, weight, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _valid_convolution_as_matmul(x: Array, weight: Array) -> Array:
    # XLA's CPU convolution is tens of times slower than the product it stands for on maps of a
    # few pixels with hundreds of channels, which is what the deepest layers work on.
    rows, columns, _, out = weight.shape
    height, width = x.shape[1] - rows + 1, x.shape[2] - columns + 1
    patches = [x[:, i : i + height, j : j + width] for i in range(rows) for j in range(columns)]
    return jnp.concatenate(patches, axis=-1) @ weight.reshape(-1, out)


def conv_spec(
    in_channels: int,
    out_channels: int,
    size: int | tuple[int, int] = 3,
    *,
    bias: bool = True,
    gain: float = 1.0,
) -> Specs:
    """Parameters of `conv2d`, of a square kernel or of (height, width).

    The weights have variance gain / fan-in: 1 keeps the variance of the input, 2 that of a ReLU's
    input (He et al., ICCV 2015), and 0 starts the layer at zero, as residual branches are ended.

    >>> conv_spec(3, 8, bias=False)["weight"].shape
    (3, 3, 3, 8)
    """
    height, width = (size, size) if isinstance(size, int) else size
    return _weight_and_bias((height, width, in_channels, out_channels), bias, gain)


def _weight_and_bias(shape: tuple[int, ...], bias: bool, gain: float) -> Specs:
    weight = ParamSpec(shape, std=math.sqrt(gain / math.prod(shape[:-1])))
    return {"weight": weight} | ({"bias": ParamSpec(shape[-1:])} if bias else {})


def _add_bias(params: Params, y: Array) -> Array:
    return y + along_channels(params["bias"], y) if "bias" in params else y


def conv2d(params: Params, x: Array, *, stride: int = 1, padding: Any = "SAME") -> Array:
    """Convolves x (B, H, W, C) and adds the bias, where there is one; padding is with zeros.

    >>> conv2d({"weight": jnp.ones((3, 3, 1, 1))}, jnp.ones((1, 4, 4, 1)))[0, :, 0, 0].tolist()
    [4.0, 6.0, 6.0, 4.0]
    """
    return _add_bias(params, convolve(x, params["weight"], stride=stride, padding=padding))


def conv2d_down(params: Params, x: Array, *, asymmetric: bool = False) -> Array:
    """Convolves x (B, H, W, C) with a 3x3 kernel at stride 2, halving its size.

    Zeros are added on all sides, or (asymmetric) on the bottom and right only.

    >>> kernel = {"weight": jnp.ones((3, 3, 1, 1))}
    >>> conv2d_down(kernel, jnp.ones((1, 4, 4, 1)), asymmetric=True)[0, :, 0, 0].tolist()
    [9.0, 6.0]
    """
    pad = (0, 1) if asymmetric else (1, 1)
    return conv2d(params, x, stride=2, padding=(pad, pad))


def linear_spec(
    in_features: int, out_features: int, *, bias: bool = True, gain: float = 1.0
) -> Specs:
    """Parameters of `linear`, drawn as those of `conv_spec`.

    >>> linear_spec(3, 8)["weight"].shape
    (3, 8)
    """
    return _weight_and_bias((in_features, out_features), bias, gain)


def linear(params: Params, x: Array) -> Array:
    """Applies x (..., in) -> (..., out); on an image this is a 1x1 convolution.

    >>> linear({"weight": jnp.ones((3, 2)), "bias": jnp.ones(2)}, jnp.ones((1, 3))).tolist()
    [[4.0, 4.0]]
    """
    return _add_bias(params, x @ jnp.asarray(params["weight"], x.dtype))


def norm_spec(channels: int) -> Specs:
    """Parameters of `group_norm`.

    >>> norm_spec(8)["weight"].shape
    (8,)
    """
    return {"weight": ParamSpec((channels,), mean=1.0), "bias": ParamSpec((channels,))}


def group_norm(params: Params, x: Array, *, groups: int, eps: float) -> Array:
    """Group normalisation (Wu and He, ECCV 2018) of x (B, H, W, C), computed in float32.

    >>> params = {"weight": jnp.ones(2), "bias": jnp.zeros(2)}
    >>> x = jnp.asarray([[[[1.0, 10.0]], [[3.0, 30.0]]]])
    >>> group_norm(params, x, groups=2, eps=0.0)[0, :, 0].tolist()
    [[-1.0, -1.0], [1.0, 1.0]]
    """
    batch, height, width, channels = x.shape
    grouped, count = (batch, groups, channels // groups), height * width

    def group_means(pixels: Array) -> Array:
        # Over pixels first, which runs along the channels: over strided groups at once a CPU takes
        # several times as long.
        means = _mean_of_pixels(pixels).reshape(grouped).mean(axis=-1, keepdims=True)
        return jnp.broadcast_to(means, grouped).reshape(batch, channels)

    pixels = x.astype(jnp.float32).reshape(batch, count, channels)
    mean = group_means(pixels)
    variance = group_means(jnp.square(pixels - _at_pixels(mean, count)))
    weight, bias = (jnp.asarray(params[name], jnp.float32) for name in ("weight", "bias"))
    scale = jax.lax.rsqrt(variance + eps) * weight[None]
    shift = bias[None] - mean * scale
    normalised = pixels * _at_pixels(scale, count) + _at_pixels(shift, count)
    return normalised.reshape(x.shape).astype(x.dtype)


def attention_spec(channels: int, *, gain: float = 1.0, norm: bool = True) -> Specs:
    """Parameters of `self_attention`; each head has its own run of channels in q, k and v.

    A few published networks have no normalisation before it (`norm=False`).

    >>> sorted(attention_spec(8))
    ['k', 'norm', 'proj_out', 'q', 'v']
    """
    return ({"norm": norm_spec(channels)} if norm else {}) | {
        **{name: linear_spec(channels, channels) for name in ("q", "k", "v")},
        "proj_out": linear_spec(channels, channels, gain=gain),
    }


def self_attention(params: Params, x: Array, *, num_heads: int, groups: int, eps: float) -> Array:
    """Residual self-attention over the pixels of x (B, H, W, C), with `num_heads` heads.

    >>> from fpjax.models.parameters import draw_params
    >>> params = draw_params(attention_spec(8), jax.random.key(0))
    >>> self_attention(params, jnp.ones((1, 2, 2, 8)), num_heads=2, groups=4, eps=1e-6).shape
    (1, 2, 2, 8)
    """
    batch, height, width, channels = x.shape
    h = group_norm(params["norm"], x, groups=groups, eps=eps) if "norm" in params else x
    h = h.reshape(batch, height * width, channels)
    q, k, v = (
        linear(params[name], h).reshape(batch, height * width, num_heads, channels // num_heads)
        for name in ("q", "k", "v")
    )
    logits = jnp.einsum("bqhc,bkhc->bhqk", q, k) / math.sqrt(channels // num_heads)
    weights = jax.nn.softmax(logits.astype(jnp.float32), axis=-1).astype(x.dtype)
    h = jnp.einsum("bhqk,bkhc->bqhc", weights, v)
    return x + linear(params["proj_out"], h.reshape(x.shape))


def upsample_nearest(x: Array) -> Array:
    """Doubles the height and width of x (B, H, W, C) by repeating pixels.

    >>> upsample_nearest(jnp.asarray([[[[1.0], [2.0]]]]))[0, :, :, 0].tolist()
    [[1.0, 1.0, 2.0, 2.0], [1.0, 1.0, 2.0, 2.0]]
    """
    batch, height, width, channels = x.shape
    doubled = jnp.broadcast_to(x[:, :, None, :, None, :], (batch, height, 2, width, 2, channels))
    return doubled.reshape(batch, 2 * height, 2 * width, channels)


MAX_SIZE, MAX_DEPTH, MAX_LEVELS = 1 << 16, 64, 16
"""Most channels or pixels a side, layers in a row, and levels of a network.

Configs come from strangers' files too: without a bound a few digits ask for any amount of memory.
"""


def check_counts(config: Any, **bounds: int) -> None:
    """Refuses a field that is no whole number from 1 to its bound, before anything is built.

    >>> from types import SimpleNamespace
    >>> check_counts(SimpleNamespace(depth=10**9), depth=MAX_DEPTH)
    Traceback (most recent call last):
    ...
    ValueError: depth 1000000000: expected a whole number from 1 to 64
    """
    for name, most in bounds.items():
        value = getattr(config, name)
        if type(value) is not int or not 1 <= value <= most:
            raise ValueError(f"{name} {short(value)}: expected a whole number from 1 to {most:,}")


def short(value: Any) -> str:
    """A value from a config in a few characters, however long it is.

    >>> short(10**400), short("x"), short([[1]] * 1000)
    ('of 1329 bits', "'x'", 'of type list')
    """
    if isinstance(value, str):
        return repr(value[:40])
    if isinstance(value, int) and value.bit_length() > 64:
        return f"of {value.bit_length()} bits"
    return repr(value) if isinstance(value, (int, float)) else f"of type {type(value).__name__}"


def normalize_config(config: Any, *, tuples: Sequence[str], floats: Sequence[str] = ()) -> None:
    """Makes equal configs identical: lists are tuples, 2.0 in a tuple is 2, 1 in a float is 1.0.

    A config read from JSON then hashes, and has the same JSON as the one that was written.

    >>> class Config:
    ...     sides, scale = [8.0, 16], 1
    >>> normalize_config(config := Config(), tuples=["sides"], floats=["scale"])
    >>> config.sides, config.scale
    ((8, 16), 1.0)
    """
    for name in tuples:
        values = getattr(config, name)
        if not isinstance(values, (tuple, list)) or len(values) > MAX_LEVELS:
            raise ValueError(f"{name} {short(values)}: expected at most {MAX_LEVELS} numbers")
        values = (int(v) if v == int(v) else v for v in values)
        object.__setattr__(config, name, tuple(values))
    for name in floats:
        value = float(getattr(config, name))
        if not math.isfinite(value):
            raise ValueError(f"{name} {value}: expected a finite number")
        object.__setattr__(config, name, value)


def level_channels(name: str, base: int, multipliers: Sequence[float]) -> tuple[int, ...]:
    """Channels of each level, base * multiplier, which must be whole.

    >>> level_channels("ch_mult", 32, (1, 2, 2))
    (32, 64, 64)
    """
    channels = tuple(round(base * m) for m in multipliers)
    if any(c > MAX_SIZE for c in channels):
        raise ValueError(f"{name}: more than {MAX_SIZE:,} channels at one level")
    if not channels or any(
        c < 1 or abs(c - base * m) > 1e-3 for c, m in zip(channels, multipliers, strict=True)
    ):
        raise ValueError(f"{name} {tuple(multipliers)} of {base} channels: products must be whole")
    return channels


def check_dtype(dtype: str) -> None:
    """Refuses a compute type other than the two that are supported.

    >>> check_dtype("float16")
    Traceback (most recent call last):
    ValueError: dtype 'float16': choose 'float32' or 'bfloat16'
    """
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype {dtype!r}: choose 'float32' or 'bfloat16'")


def check_groups(groups: int, *channels: int) -> None:
    """Refuses channel counts that the normalisation groups do not divide.

    >>> check_groups(32, 64, 100)
    Traceback (most recent call last):
    ValueError: 100 channels cannot be split in 32 normalisation groups
    """
    if bad := [c for c in channels if c % groups]:
        raise ValueError(f"{bad[0]} channels cannot be split in {groups} normalisation groups")


def check_images(name: str, x: Array, channels: int, multiple: int) -> None:
    """Refuses an array that is not (B, H, W, channels) with sides that are whole multiples.

    >>> check_images("latents", jnp.ones((1, 6, 8, 3)), 3, 4)
    Traceback (most recent call last):
    ValueError: latents of shape (1, 6, 8, 3): expected (batch, height and width multiples of 4, 3)
    """
    if x.ndim != 4 or x.shape[3] != channels or x.shape[1] % multiple or x.shape[2] % multiple:
        sides = f"height and width multiples of {multiple}" if multiple > 1 else "height, width"
        raise ValueError(f"{name} of shape {x.shape}: expected (batch, {sides}, {channels})")
