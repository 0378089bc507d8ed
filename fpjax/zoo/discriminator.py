"""The residual discriminator of StyleGAN2, used only while a bundled model is trained."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fpjax.models import resample
from fpjax.models.stylegan2 import Linear, StyleGAN2Config, leaky_relu

Array = jax.Array


class Conv(nnx.Module):
    """Convolution with an equalised learning rate; halves the size when `down`."""

    def __init__(self, in_channels, out_channels, *, kernel=3, down=False, bias=True, rngs):
        shape = (kernel, kernel, in_channels, out_channels)
        self.weight = nnx.Param(jax.random.normal(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros((out_channels,))) if bias else None
        self.down = down

    def __call__(self, x: Array, fir: Array) -> Array:
        weight = self.weight[...] / math.sqrt(math.prod(self.weight.shape[:3]))
        if self.down and weight.shape[0] == 1:
            x = resample.conv2d(resample.downsample_2d(x, fir), weight)
        elif self.down:
            x = resample.conv2d_down(x, weight, fir)
        else:
            x = resample.conv2d(x, weight)
        return x if self.bias is None else leaky_relu(x + self.bias[...])


class DiscriminatorBlock(nnx.Module):
    """Two convolutions and a linear skip, from one resolution to the next lower one."""

    def __init__(self, channels, channels_below, *, rngs):
        self.conv0 = Conv(channels, channels, rngs=rngs)
        self.conv1 = Conv(channels, channels_below, down=True, rngs=rngs)
        self.skip = Conv(channels, channels_below, kernel=1, down=True, bias=False, rngs=rngs)

    def __call__(self, x: Array, fir: Array) -> Array:
        y = self.conv1(self.conv0(x, fir), fir)
        return (y + self.skip(x, fir)) * math.sqrt(0.5)


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


class Discriminator(nnx.Module):
    """Images (B, R, R, 3) -> realness logits (B,), with the channel table of the generator."""

    def __init__(self, config: StyleGAN2Config, *, rngs):
        self.config = config
        sides = config.block_resolutions[::-1]
        self.from_rgb = Conv(3, config.num_channels(sides[0]), kernel=1, rngs=rngs)
        for side, below in itertools.pairwise(sides):
            block = DiscriminatorBlock(
                config.num_channels(side), config.num_channels(below), rngs=rngs
            )
            setattr(self, f"b{side}", block)
        channels = config.num_channels(4)
        self.conv = Conv(channels + 1, channels, rngs=rngs)
        self.dense = Linear(channels * 16, channels, rngs=rngs)
        self.logit = Linear(channels, 1, rngs=rngs)

    def __call__(self, images: Array) -> Array:
        fir = jnp.asarray(self.config.fir)
        x = self.from_rgb(images, fir)
        for side in self.config.block_resolutions[:0:-1]:
            x = getattr(self, f"b{side}")(x, fir)
        x = self.conv(minibatch_standard_deviation(x), fir)
        x = leaky_relu(self.dense(x.reshape(x.shape[0], -1)))
        return self.logit(x)[:, 0]


@functools.lru_cache(maxsize=8)
def _graphdef(config: StyleGAN2Config):
    return nnx.split(nnx.eval_shape(lambda: Discriminator(config, rngs=nnx.Rngs(0))))[0]


def init(config: StyleGAN2Config, key: Array) -> dict[str, Any]:
    """Draws the parameters of an untrained discriminator as a nested dict."""
    return nnx.to_pure_dict(nnx.state(Discriminator(config, rngs=nnx.Rngs(key))))


def discriminate(config: StyleGAN2Config, params, images: Array) -> Array:
    """Realness logits (B,) of images (B, R, R, 3)."""
    return nnx.merge(_graphdef(config), params)(images)
