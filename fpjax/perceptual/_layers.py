"""What the feature networks share: max pooling, ImageNet's scaling of images, their checks."""

import functools

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from fpjax.models.layers import along_channels
from fpjax.models.parameters import Array

# The ImageNet mean and standard deviation for images in [-1, 1], rounded as LPIPS v0.1 rounds them.
IMAGENET_SHIFT = (-0.030, -0.088, -0.188)
IMAGENET_SCALE = (0.458, 0.448, 0.450)


def max_pool2d(x: Array, *, window: int, stride: int, padding: int = 0) -> Array:
    """Max pooling of NHWC `x`, floor mode; padding counts as minus infinity.

    Written as maxima of strided slices, one axis at a time: the gradient of
    `lax.reduce_window` is a scatter, which XLA runs slowly on CPUs.

    >>> max_pool2d(jnp.arange(4.0).reshape(1, 2, 2, 1), window=2, stride=2).tolist()
    [[[[3.0]]]]
    """
    if padding:
        pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
        x = jnp.pad(x, pads, constant_values=-jnp.inf)
    for axis in (1, 2):
        size = (x.shape[axis] - window) // stride + 1
        slices = [
            lax.slice_in_dim(x, start, start + (size - 1) * stride + 1, stride, axis)
            for start in range(window)
        ]
        x = functools.reduce(jnp.maximum, slices)
    return x


def normalize_imagenet(images: Array) -> Array:
    """Scale images in [-1, 1] (B, H, W, 3) to zero mean and unit variance over ImageNet.

    >>> jnp.abs(normalize_imagenet(jnp.full((1, 1, 1, 3), jnp.asarray(IMAGENET_SHIFT)))).max()
    Array(0., dtype=float32)
    """
    shift, scale = (
        along_channels(jnp.asarray(x, images.dtype), images)
        for x in (IMAGENET_SHIFT, IMAGENET_SCALE)
    )
    return (images - shift) / scale


def as_images(images: ArrayLike, *, min_size: int, network: str) -> Array:
    """Return `images` as an array, or raise if they are not float (B, H, W, 3) of `min_size` up.

    >>> as_images(jnp.zeros((2, 8, 8, 3)), min_size=16, network="VGG16")
    Traceback (most recent call last):
    ValueError: VGG16 needs images of at least 16x16 pixels ...
    """
    images = jnp.asarray(images)
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(
            f"{network} takes images of shape (batch, height, width, 3), got {images.shape}"
        )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(
            f"{network} takes floating-point images in [-1, 1], got {images.dtype}; "
            "scale 8-bit images with `images.astype('float32') / 127.5 - 1`"
        )
    if min(images.shape[1:3]) < min_size:
        raise ValueError(
            f"{network} needs images of at least {min_size}x{min_size} pixels (a smaller one has "
            f"no pixel left at the last layer), got {images.shape[1]}x{images.shape[2]}; "
            "resize them first"
        )
    return images


def at_least_float32(x: Array) -> Array:
    """Widen a half-precision array to float32; leave the others.

    >>> at_least_float32(jnp.ones(2, jnp.bfloat16)).dtype
    dtype('float32')
    """
    return x.astype(jnp.float32) if x.dtype.itemsize < 4 else x
