"""Layers and checks that the feature networks share: convolution, max pooling, scaling, shapes."""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Params = Mapping[str, Any]

# The ImageNet mean and standard deviation for images in [-1, 1], rounded as LPIPS v0.1 rounds them.
IMAGENET_SHIFT = (-0.030, -0.088, -0.188)
IMAGENET_SCALE = (0.458, 0.448, 0.450)

# A "SAME" convolution of at most this many output pixels is computed as one matrix product.
_MATMUL_CONV_MAX_PIXELS = 16


def conv2d(x, weight, *, stride: int = 1, padding: Any = "VALID"):
    """Convolve NHWC `x` (B, H, W, C) with an HWIO `weight` (kh, kw, C, D) -> (B, H', W', D)."""
    height, width = x.shape[1:3]
    if padding == "SAME" and stride == 1 and height * width <= _MATMUL_CONV_MAX_PIXELS:
        return _conv2d_as_matmul(x, weight)
    return lax.conv_general_dilated(
        x, weight, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _conv2d_as_matmul(x, weight):
    # XLA's CPU convolution is tens of times slower than the product it stands for on maps of a
    # few pixels with hundreds of channels, which is what deep layers see of a small image.
    batch, height, width, _ = x.shape
    kernel_height, kernel_width, _, channels_out = weight.shape
    pads = [((k - 1) // 2, k // 2) for k in (kernel_height, kernel_width)]
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    patches = [
        padded[:, i : i + height, j : j + width]
        for i in range(kernel_height)
        for j in range(kernel_width)
    ]
    columns = jnp.concatenate(patches, axis=-1).reshape(batch * height * width, -1)
    out = columns @ weight.reshape(-1, channels_out)
    return out.reshape(batch, height, width, channels_out)


def max_pool2d(x, *, window: int, stride: int, padding: int = 0):
    """Max pooling of NHWC `x`, floor mode; padding counts as minus infinity.

    Written as maxima of strided slices, one axis at a time: the gradient of
    `lax.reduce_window` is a scatter, which XLA runs slowly on CPUs.
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


def normalize_imagenet(images):
    """Scale images in [-1, 1] (B, H, W, 3) to zero mean and unit variance over ImageNet."""
    shift = jnp.asarray(IMAGENET_SHIFT, images.dtype)
    scale = jnp.asarray(IMAGENET_SCALE, images.dtype)
    return (images - shift) / scale


def as_images(images, *, min_size: int, network: str):
    """Return `images` as an array, or raise if they are not float (B, H, W, 3) of `min_size` up."""
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


def at_least_float32(x):
    """Widen a half-precision array to float32; leave the others."""
    return x.astype(jnp.float32) if x.dtype.itemsize < 4 else x


def check_params(params: Params, shapes: Params, network: str) -> None:
    """Raise a ValueError naming the first array of `params` that is missing, extra or misshapen."""
    expected, found = (
        {
            jax.tree_util.keystr(path, simple=True, separator="."): tuple(leaf.shape)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (shapes, params)
    )
    for name, shape in expected.items():
        if found.get(name) != shape:
            given = f"has shape {found[name]}" if name in found else "is missing"
            raise ValueError(
                f"parameter {name!r} of {network} {given}, expected {shape} "
                "(convolution weights are HWIO: transpose a PyTorch weight with (2, 3, 1, 0))"
            )
    if extra := sorted(found.keys() - expected.keys()):
        raise ValueError(f"{network} has no parameter {extra[0]!r} ({len(extra)} unknown in all)")


def conv_shapes(kernel: tuple[int, int, int, int]) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of one convolution with a bias."""
    return {
        "weight": jax.ShapeDtypeStruct(kernel, jnp.float32),
        "bias": jax.ShapeDtypeStruct(kernel[-1:], jnp.float32),
    }


def init_params(key, shapes: Params) -> dict[str, Any]:
    """Random float32 parameters in `shapes`: He-normal convolutions, neutral everything else."""
    leaves, treedef = jax.tree_util.tree_flatten_with_path(shapes)
    # Drawn on the host, seeded by the key: a device draw would compile once per shape.
    random = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    arrays = []
    for path, leaf in leaves:
        if len(leaf.shape) == 4:
            gain = np.float32(math.sqrt(2 / math.prod(leaf.shape[:3])))
            arrays.append(random.standard_normal(leaf.shape, np.float32) * gain)
        elif path[-1].key in ("bias", "running_mean"):
            arrays.append(np.zeros(leaf.shape, np.float32))
        else:
            arrays.append(np.ones(leaf.shape, np.float32))
    return jax.tree_util.tree_unflatten(treedef, [jnp.asarray(array) for array in arrays])
