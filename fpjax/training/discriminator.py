"""The residual discriminator of StyleGAN2, used only while a bundled model is trained."""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax.numpy as jnp

from fpjax.models import parameters, resample
from fpjax.models.layers import along_channels, convolve
from fpjax.models.parameters import Array, Params, ParamSpec, Specs
from fpjax.models.stylegan2 import (
    StyleGAN2Config,
    equalized_linear,
    equalized_linear_spec,
    leaky_relu,
)


def init(config: StyleGAN2Config, key: Array) -> dict[str, Any]:
    """Draws the float32 parameters of an untrained discriminator.

    >>> import jax
    >>> sorted(init(StyleGAN2Config(8, channel_base=8), jax.random.key(0)))
    ['b8', 'conv', 'dense', 'from_rgb', 'logit']
    """
    return parameters.draw_params(_specs(config), key)


def param_shapes(config: StyleGAN2Config) -> dict[str, Any]:
    """The parameter tree with `jax.ShapeDtypeStruct` leaves; nothing is allocated.

    >>> param_shapes(StyleGAN2Config(8, channel_base=64))["logit"]["weight"].shape
    (16, 1)
    """
    return parameters.spec_shapes(_specs(config))


def discriminate(config: StyleGAN2Config, params: Params, images: Array) -> Array:
    """Realness logits (B,) of images (B, R, R, 3), with the channel table of the generator.

    >>> import functools, jax
    >>> config = StyleGAN2Config(8, channel_base=64)
    >>> score = functools.partial(discriminate, config)
    >>> jax.eval_shape(score, param_shapes(config), jnp.zeros((4, 8, 8, 3))).shape
    (4,)
    """
    x = leaky_relu(_conv(params["from_rgb"], images))
    for side in config.block_resolutions[:0:-1]:
        block = params[f"b{side}"]
        y = leaky_relu(_conv(block["conv0"], x))
        y = leaky_relu(_conv(block["conv1"], y, config.fir))
        x = (y + _conv(block["skip"], x, config.fir)) * math.sqrt(0.5)
    x = leaky_relu(_conv(params["conv"], minibatch_standard_deviation(x)))
    x = leaky_relu(equalized_linear(params["dense"], x.reshape(x.shape[0], -1)))
    return equalized_linear(params["logit"], x)[:, 0]


def minibatch_standard_deviation(x: Array, group_size: int = 4) -> Array:
    """Appends one channel: the mean standard deviation over interleaved groups of the batch.

    >>> minibatch_standard_deviation(jnp.ones((8, 4, 4, 3))).shape
    (8, 4, 4, 4)
    """
    batch, height, width, channels = x.shape
    group_size = min(group_size, batch)
    groups = x.reshape(group_size, batch // group_size, height, width, channels)
    deviation = jnp.sqrt(jnp.var(groups, axis=0) + 1e-8).mean(axis=(1, 2, 3))
    deviation = jnp.tile(deviation, group_size)[:, None, None, None]
    return jnp.concatenate([x, jnp.broadcast_to(deviation, (batch, height, width, 1))], axis=-1)


def _specs(config: StyleGAN2Config) -> Specs:
    sides, channels = config.block_resolutions[::-1], config.num_channels
    specs: Specs = {"from_rgb": _conv_spec(3, channels(sides[0]), size=1)}
    for side, below in itertools.pairwise(sides):
        specs[f"b{side}"] = {
            "conv0": _conv_spec(channels(side), channels(side)),
            "conv1": _conv_spec(channels(side), channels(below)),
            "skip": _conv_spec(channels(side), channels(below), size=1, bias=False),
        }
    return specs | {
        "conv": _conv_spec(channels(4) + 1, channels(4)),
        "dense": equalized_linear_spec(16 * channels(4), channels(4)),
        "logit": equalized_linear_spec(channels(4), 1),
    }


def _conv_spec(channels: int, out: int, *, size: int = 3, bias: bool = True) -> Specs:
    weight = ParamSpec((size, size, channels, out), std=1.0)
    return {"weight": weight} | ({"bias": ParamSpec((out,))} if bias else {})


def _conv(params: Params, x: Array, fir: tuple[float, ...] | None = None) -> Array:
    """Convolution with an equalised learning rate; halves the size where a filter is given."""
    weight = params["weight"] / math.sqrt(math.prod(params["weight"].shape[:3]))
    if fir is None:
        x = convolve(x, weight)
    elif weight.shape[0] == 1:
        x = convolve(resample.downsample_2d(x, fir), weight)
    else:
        x = resample.conv2d_down(x, weight, fir)
    return x + along_channels(params["bias"], x) if "bias" in params else x
