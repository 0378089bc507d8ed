"""Inception-v3 as FID uses it: 2048 pooled features of the 2015-12-05 TensorFlow graph.

Architecture: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR
2016, with the details in which that graph differs from torchvision's: average pools don't count
their padding, and the last block pools by maximum. Resizing and input range follow the PyTorch
port of the graph that most published FIDs are computed with (`pt_inception-2015-12-05`).

Params tree: the names of that port, split at the dots, convolution weights HWIO::

    {"Conv2d_1a_3x3": UNIT, "Conv2d_2a_3x3": UNIT, "Conv2d_2b_3x3": UNIT, "Conv2d_3b_1x1": UNIT,
     "Conv2d_4a_3x3": UNIT, "Mixed_5b": {"branch1x1": UNIT, "branch5x5_1": UNIT, ...}, ...,
     "Mixed_7c": {...}}
    UNIT = {"conv": {"weight": (kh, kw, C, D)},
            "bn": {"weight", "bias", "running_mean", "running_var": (D,)}}

`inception_shapes()` lists all of them. The classifier `fc` and auxiliary head aren't part of it.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from fpjax.models import layers as nn
from fpjax.models import parameters
from fpjax.models.parameters import Array, Params, ParamSpec, Specs
from fpjax.perceptual import _layers

_SIZE = 299
_BN_EPS = 1e-3

_STEM = {
    "Conv2d_1a_3x3": (3, 3, 3, 32),
    "Conv2d_2a_3x3": (3, 3, 32, 32),
    "Conv2d_2b_3x3": (3, 3, 32, 64),
    "Conv2d_3b_1x1": (1, 1, 64, 80),
    "Conv2d_4a_3x3": (3, 3, 80, 192),
}


def _kernels_a(channels, pool_channels):
    return {
        "branch1x1": (1, 1, channels, 64),
        "branch5x5_1": (1, 1, channels, 48),
        "branch5x5_2": (5, 5, 48, 64),
        "branch3x3dbl_1": (1, 1, channels, 64),
        "branch3x3dbl_2": (3, 3, 64, 96),
        "branch3x3dbl_3": (3, 3, 96, 96),
        "branch_pool": (1, 1, channels, pool_channels),
    }


def _kernels_b(channels):
    return {
        "branch3x3": (3, 3, channels, 384),
        "branch3x3dbl_1": (1, 1, channels, 64),
        "branch3x3dbl_2": (3, 3, 64, 96),
        "branch3x3dbl_3": (3, 3, 96, 96),
    }


def _kernels_c(channels, middle):
    return {
        "branch1x1": (1, 1, channels, 192),
        "branch7x7_1": (1, 1, channels, middle),
        "branch7x7_2": (1, 7, middle, middle),
        "branch7x7_3": (7, 1, middle, 192),
        "branch7x7dbl_1": (1, 1, channels, middle),
        "branch7x7dbl_2": (7, 1, middle, middle),
        "branch7x7dbl_3": (1, 7, middle, middle),
        "branch7x7dbl_4": (7, 1, middle, middle),
        "branch7x7dbl_5": (1, 7, middle, 192),
        "branch_pool": (1, 1, channels, 192),
    }


def _kernels_d(channels):
    return {
        "branch3x3_1": (1, 1, channels, 192),
        "branch3x3_2": (3, 3, 192, 320),
        "branch7x7x3_1": (1, 1, channels, 192),
        "branch7x7x3_2": (1, 7, 192, 192),
        "branch7x7x3_3": (7, 1, 192, 192),
        "branch7x7x3_4": (3, 3, 192, 192),
    }


def _kernels_e(channels):
    return {
        "branch1x1": (1, 1, channels, 320),
        "branch3x3_1": (1, 1, channels, 384),
        "branch3x3_2a": (1, 3, 384, 384),
        "branch3x3_2b": (3, 1, 384, 384),
        "branch3x3dbl_1": (1, 1, channels, 448),
        "branch3x3dbl_2": (3, 3, 448, 384),
        "branch3x3dbl_3a": (1, 3, 384, 384),
        "branch3x3dbl_3b": (3, 1, 384, 384),
        "branch_pool": (1, 1, channels, 192),
    }


def _specs() -> Specs:
    mixed = {
        "Mixed_5b": _kernels_a(192, 32),
        "Mixed_5c": _kernels_a(256, 64),
        "Mixed_5d": _kernels_a(288, 64),
        "Mixed_6a": _kernels_b(288),
        "Mixed_6b": _kernels_c(768, 128),
        "Mixed_6c": _kernels_c(768, 160),
        "Mixed_6d": _kernels_c(768, 160),
        "Mixed_6e": _kernels_c(768, 192),
        "Mixed_7a": _kernels_d(768),
        "Mixed_7b": _kernels_e(1280),
        "Mixed_7c": _kernels_e(2048),
    }
    stem = {name: _unit_spec(*kernel) for name, kernel in _STEM.items()}
    blocks = {
        block: {name: _unit_spec(*kernel) for name, kernel in kernels.items()}
        for block, kernels in mixed.items()
    }
    return stem | blocks


def _unit_spec(height: int, width: int, channels: int, out: int) -> Specs:
    zeros, ones = ParamSpec((out,)), ParamSpec((out,), mean=1.0)
    return {
        "conv": nn.conv_spec(channels, out, (height, width), bias=False, gain=2.0),
        "bn": {"weight": ones, "bias": zeros, "running_mean": zeros, "running_var": ones},
    }


def inception_shapes() -> dict:
    """Nested dict of `jax.ShapeDtypeStruct`, one per array of the Inception params tree.

    >>> inception_shapes()["Mixed_7c"]["branch_pool"]["conv"]["weight"].shape
    (1, 1, 2048, 192)
    """
    return parameters.spec_shapes(_specs())


def init_inception(key: Array) -> dict:
    """Random (He-normal, neutral batch norm) parameters, for tests and timings; no metric.

    >>> params = jax.eval_shape(init_inception, jax.random.key(0))
    >>> params["Conv2d_1a_3x3"]["bn"]["running_var"].shape
    (32,)
    """
    return parameters.draw_params(_specs(), key)


def inception_features(
    params: Params, images: ArrayLike, *, dtype: DTypeLike | None = None
) -> Array:
    """FID features of images: (B, H, W, 3) in [-1, 1] -> (B, 2048), at least float32.

    Images of any size are resized to 299 x 299 bilinearly with half-pixel centres and no
    antialiasing, as the PyTorch port does (the TensorFlow graph itself aligns corners differently,
    which moves an FID a little).

    Args:
      params: the params tree of this module's docstring.
      images: (B, H, W, 3) floating point in [-1, 1].
      dtype: what to compute in, e.g. `jnp.bfloat16`; by default the dtype of `images`.

    Raises:
      ValueError: images of another rank, or params of another shape.
      TypeError: images that are not floating point.

    >>> images = jax.ShapeDtypeStruct((2, 64, 64, 3), "float32")
    >>> jax.eval_shape(inception_features, inception_shapes(), images).shape
    (2, 2048)
    """
    parameters.check_params(params, _specs(), "Inception-v3")
    images = _layers.as_images(images, min_size=1, network="Inception-v3")
    x = jax.image.resize(
        images, (images.shape[0], _SIZE, _SIZE, 3), method="linear", antialias=False
    )
    return _pool3(params, x.astype(dtype or images.dtype))


def _pool3(params, x):
    x = _unit(params["Conv2d_1a_3x3"], x, stride=2, padding="VALID")
    x = _unit(params["Conv2d_2a_3x3"], x, padding="VALID")
    x = _unit(params["Conv2d_2b_3x3"], x)
    x = _layers.max_pool2d(x, window=3, stride=2)
    x = _unit(params["Conv2d_3b_1x1"], x)
    x = _unit(params["Conv2d_4a_3x3"], x, padding="VALID")
    x = _layers.max_pool2d(x, window=3, stride=2)
    for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        x = _block_a(params[name], x)
    x = _block_b(params["Mixed_6a"], x)
    for name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        x = _block_c(params[name], x)
    x = _block_d(params["Mixed_7a"], x)
    x = _block_e(params["Mixed_7b"], x, pool=_average_pool)
    x = _block_e(params["Mixed_7c"], x, pool=_max_pool)
    return _layers.at_least_float32(x).mean((1, 2))


def _unit(params, x, *, stride=1, padding="SAME"):
    """Convolution, batch normalisation with stored statistics, ReLU."""
    bn = params["bn"]
    # Folding the scale into the weight spares a pass over the activations. Done in float32 before
    # any cast, since a small running variance makes a large scale.
    scale = bn["weight"] * lax.rsqrt(jnp.asarray(bn["running_var"]) + _BN_EPS)
    weight = jnp.asarray(params["conv"]["weight"])
    folded = {
        "weight": weight * nn.along_channels(scale, weight),
        "bias": bn["bias"] - bn["running_mean"] * scale,
    }
    return jax.nn.relu(nn.conv2d(folded, x, stride=stride, padding=padding))


def _chain(params, x, *names):
    for name in names:
        x = _unit(params[name], x)
    return x


def _block_a(params, x):
    branches = [
        _unit(params["branch1x1"], x),
        _chain(params, x, "branch5x5_1", "branch5x5_2"),
        _chain(params, x, "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"),
        _unit(params["branch_pool"], _average_pool(x)),
    ]
    return jnp.concatenate(branches, axis=-1)


def _block_b(params, x):
    double = _chain(params, x, "branch3x3dbl_1", "branch3x3dbl_2")
    branches = [
        _unit(params["branch3x3"], x, stride=2, padding="VALID"),
        _unit(params["branch3x3dbl_3"], double, stride=2, padding="VALID"),
        _layers.max_pool2d(x, window=3, stride=2),
    ]
    return jnp.concatenate(branches, axis=-1)


def _block_c(params, x):
    branches = [
        _unit(params["branch1x1"], x),
        _chain(params, x, *(f"branch7x7_{i}" for i in (1, 2, 3))),
        _chain(params, x, *(f"branch7x7dbl_{i}" for i in (1, 2, 3, 4, 5))),
        _unit(params["branch_pool"], _average_pool(x)),
    ]
    return jnp.concatenate(branches, axis=-1)


def _block_d(params, x):
    narrow = _unit(params["branch3x3_1"], x)
    wide = _chain(params, x, *(f"branch7x7x3_{i}" for i in (1, 2, 3)))
    branches = [
        _unit(params["branch3x3_2"], narrow, stride=2, padding="VALID"),
        _unit(params["branch7x7x3_4"], wide, stride=2, padding="VALID"),
        _layers.max_pool2d(x, window=3, stride=2),
    ]
    return jnp.concatenate(branches, axis=-1)


def _block_e(params, x, *, pool):
    single = _unit(params["branch3x3_1"], x)
    double = _chain(params, x, "branch3x3dbl_1", "branch3x3dbl_2")
    branches = [
        _unit(params["branch1x1"], x),
        _unit(params["branch3x3_2a"], single),
        _unit(params["branch3x3_2b"], single),
        _unit(params["branch3x3dbl_3a"], double),
        _unit(params["branch3x3dbl_3b"], double),
        _unit(params["branch_pool"], pool(x)),
    ]
    return jnp.concatenate(branches, axis=-1)


def _max_pool(x):
    return _layers.max_pool2d(x, window=3, stride=1, padding=1)


def _average_pool(x):
    """3 x 3 average at stride 1 over the pixels inside the image only."""
    height, width = x.shape[1:3]
    rows, columns = (
        np.minimum(np.arange(n) + 1, n - 1) - np.maximum(np.arange(n) - 1, 0) + 1
        for n in (height, width)
    )
    counts = jnp.asarray(np.outer(rows, columns)[None, :, :, None], x.dtype)
    zero = np.zeros((), x.dtype)
    total = lax.reduce_window(x, zero, lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")
    return total / counts
