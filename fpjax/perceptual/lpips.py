"""LPIPS v0.1, the learned perceptual image patch similarity, as a distance and as a residual.

Zhang, Isola, Efros, Shechtman & Wang, "The Unreasonable Effectiveness of Deep Features as a
Perceptual Metric", CVPR 2018, in the version 0.1 that the authors' package computes.

Params tree: `{"backbone": ..., "heads": {"lin0": (C0,), ..., "lin4": (C4,)}}`, where `backbone` is
the tree of `vgg16` or `alexnet` and each head holds one non-negative weight per channel.
"""

from typing import Literal

import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from fpjax.models import parameters
from fpjax.models.layers import along_channels
from fpjax.models.parameters import Array, Params, ParamSpec, Specs
from fpjax.perceptual import _layers, alexnet, vgg16

Net = Literal["vgg", "alex"]

_HEADS = {"vgg": (64, 128, 256, 512, 512), "alex": (64, 192, 384, 256, 256)}
_FEATURES = {"vgg": vgg16.vgg16_features, "alex": alexnet.alexnet_features}
_BACKBONES = {"vgg": vgg16.SPECS, "alex": alexnet.SPECS}

# Added to the norm, not under the root, as in v0.1.
_NORM_EPS = 1e-10


def lpips_shapes(net: Net = "vgg") -> dict:
    """Nested dict of `jax.ShapeDtypeStruct`, one per array of the LPIPS params tree.

    >>> lpips_shapes("alex")["heads"]["lin2"].shape
    (384,)
    """
    return parameters.spec_shapes(_specs(net))


def init_lpips(key: Array, net: Net = "vgg") -> dict:
    """Random backbone and unit heads, for tests and timings; they measure nothing perceptual.

    >>> import jax
    >>> sorted(jax.eval_shape(init_lpips, jax.random.key(0))["heads"])
    ['lin0', 'lin1', 'lin2', 'lin3', 'lin4']
    """
    return parameters.draw_params(_specs(net), key)


def lpips(
    params: Params,
    x: ArrayLike,
    y: ArrayLike,
    *,
    net: Net = "vgg",
    dtype: DTypeLike | None = None,
) -> Array:
    """LPIPS distance between two batches of images: (B, H, W, 3), (B, H, W, 3) -> (B,).

    Args:
      params: the params tree of this module's docstring; `load_lpips` gives the published one.
      x, y: images in [-1, 1] of one shape; at least 16 pixels a side for "vgg", 31 for "alex".
      net: the backbone, "vgg" or "alex".
      dtype: what the backbone computes in, e.g. `jnp.bfloat16`; by default the images' dtype.
        Normalisation and sums are in at least float32. (On TPUs and GPUs float32 convolutions
        may use fewer bits; `jax.default_matmul_precision("highest")` gives all of them.)

    Returns:
      Distances, 0 for equal images (to float32 rounding) and around 1 for unrelated ones.
      Derivatives are finite everywhere, also where a pixel's features are all zero.

    Raises:
      ValueError: an unknown `net`, or images or params of another shape.
      TypeError: images that are not floating point.

    >>> import jax
    >>> images = jax.ShapeDtypeStruct((8, 32, 32, 3), "float32")
    >>> jax.eval_shape(lpips, lpips_shapes("vgg"), images, images).shape
    (8,)
    """
    if jnp.shape(x) != jnp.shape(y):
        raise ValueError(
            f"lpips compares images of one shape, got {jnp.shape(x)} and {jnp.shape(y)}"
        )
    unit_x, weights = _unit_features(params, x, net, dtype)
    unit_y, _ = _unit_features(params, y, net, dtype)
    distances = [
        jnp.sum(along_channels(weight, a) * (a - b) ** 2, axis=(1, 2, 3))
        for a, b, weight in zip(unit_x, unit_y, weights, strict=True)
    ]
    return sum(distances[1:], start=distances[0])


def lpips_features(
    params: Params,
    images: ArrayLike,
    *,
    net: Net = "vgg",
    dtype: DTypeLike | None = None,
) -> Array:
    """Features whose squared Euclidean distance is LPIPS: (B, H, W, 3) -> (B, F).

    `lpips(params, x, y)` equals `sum((lpips_features(params, x) - lpips_features(params, y))**2)`
    over the last axis, so the difference serves a least-squares solver as its residual, and the
    features of a fixed target are computed once. Each layer's unit-normalised activations are
    scaled by sqrt(head weight / number of pixels) and flattened; F is 124,928 for "vgg" at 32 x 32.

    Arguments and errors are those of `lpips`. Differentiate in the images: in the heads the
    square root has no finite derivative at a weight of zero.

    >>> import jax
    >>> images = jax.ShapeDtypeStruct((8, 32, 32, 3), "float32")
    >>> jax.eval_shape(lpips_features, lpips_shapes("vgg"), images).shape
    (8, 124928)
    """
    units, weights = _unit_features(params, images, net, dtype)
    scaled = [
        along_channels(jnp.sqrt(weight), unit) * unit
        for unit, weight in zip(units, weights, strict=True)
    ]
    return jnp.concatenate([layer.reshape(layer.shape[0], -1) for layer in scaled], axis=-1)


def check_net(net: str) -> None:
    """Raise a ValueError unless `net` names an LPIPS backbone.

    >>> check_net("vgg")
    """
    if net not in _HEADS:
        raise ValueError(f"net is 'vgg' or 'alex', got {net!r}")


def _specs(net: Net) -> Specs:
    check_net(net)
    heads = {f"lin{i}": ParamSpec((channels,), mean=1.0) for i, channels in enumerate(_HEADS[net])}
    return {"backbone": _BACKBONES[net], "heads": heads}


def _unit_features(params, images, net, dtype):
    """Per layer: activations of unit length over channels, and head weights over pixel counts."""
    parameters.check_params(params, _specs(net), f"LPIPS-{net}")
    units, weights = [], []
    for i, x in enumerate(_FEATURES[net](params["backbone"], images, dtype=dtype).values()):
        x = _layers.at_least_float32(x)
        units.append(_normalize_channels(x))
        weights.append(jnp.asarray(params["heads"][f"lin{i}"], x.dtype) / (x.shape[1] * x.shape[2]))
    return units, weights


def _normalize_channels(x):
    square = jnp.sum(x**2, axis=-1, keepdims=True)
    # The root has no derivative at zero, where the value is zero whatever the norm: keep the
    # derivative zero there instead of NaN.
    norm = jnp.sqrt(jnp.where(square > 0, square, 1))
    return x / (norm + _NORM_EPS)
