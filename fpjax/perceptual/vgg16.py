"""VGG16 features: the five activations that LPIPS reads, and their pooled form.

Architecture: Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image
Recognition", ICLR 2015, configuration D, without its last pooling and fully connected layers.

Params tree, 13 convolutions named after the paper's blocks, weights HWIO::

    {"conv1_1": {"weight": (3, 3, 3, 64), "bias": (64,)}, "conv1_2": ..., ..., "conv5_3": ...}
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from fpjax.models import layers as nn
from fpjax.models import parameters
from fpjax.models.parameters import Array, Params, Specs
from fpjax.perceptual import _layers

_BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_MIN_SIZE = 16  # Four poolings by two leave one pixel of sixteen.

FEATURES = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")


def _specs() -> Specs:
    specs, width = {}, 3
    for block, widths in enumerate(_BLOCKS, start=1):
        for layer, out in enumerate(widths, start=1):
            specs[f"conv{block}_{layer}"] = nn.conv_spec(width, out, gain=2.0)
            width = out
    return specs


SPECS = _specs()


def vgg16_shapes() -> dict:
    """Nested dict of `jax.ShapeDtypeStruct`, one per array of the VGG16 params tree.

    >>> vgg16_shapes()["conv3_1"]["weight"].shape
    (3, 3, 128, 256)
    """
    return parameters.spec_shapes(SPECS)


def init_vgg16(key: Array) -> dict:
    """Random (He-normal) VGG16 parameters, for tests and timings; they measure nothing.

    >>> jax.eval_shape(init_vgg16, jax.random.key(0))["conv1_1"]["bias"].shape
    (64,)
    """
    return parameters.draw_params(SPECS, key)


def vgg16_features(
    params: Params, images: ArrayLike, *, dtype: DTypeLike | None = None
) -> dict[str, Array]:
    """Activations of VGG16 after the last ReLU of each of its five blocks.

    Args:
      params: the params tree of this module's docstring, trained on ImageNet.
      images: (B, H, W, 3) floating point in [-1, 1], H and W at least 16. They are scaled by
        ImageNet's mean and standard deviation here, with the rounded constants of LPIPS v0.1.
      dtype: what to compute in, e.g. `jnp.bfloat16`; by default the dtype of `images`.

    Returns:
      {"relu1_2": (B, H, W, 64), "relu2_2": (B, H/2, W/2, 128), "relu3_3": (B, H/4, W/4, 256),
      "relu4_3": (B, H/8, W/8, 512), "relu5_3": (B, H/16, W/16, 512)}, sizes rounded down.

    Raises:
      ValueError: images of another rank or too small, or params of another shape.
      TypeError: images that are not floating point.

    >>> images = jax.ShapeDtypeStruct((2, 32, 32, 3), "float32")
    >>> jax.eval_shape(vgg16_features, vgg16_shapes(), images)["relu5_3"].shape
    (2, 2, 2, 512)
    """
    parameters.check_params(params, SPECS, "VGG16")
    images = _layers.as_images(images, min_size=_MIN_SIZE, network="VGG16")
    x = _layers.normalize_imagenet(images).astype(dtype or images.dtype)
    features = {}
    for block, (widths, name) in enumerate(zip(_BLOCKS, FEATURES, strict=True), start=1):
        if block > 1:
            x = _layers.max_pool2d(x, window=2, stride=2)
        for layer in range(1, len(widths) + 1):
            x = jax.nn.relu(nn.conv2d(params[f"conv{block}_{layer}"], x))
        features[name] = x
    return features


def pooled_vgg_features(
    params: Params, images: ArrayLike, *, dtype: DTypeLike | None = None
) -> Array:
    """Global averages of VGG16's relu4_3 and relu5_3, side by side: (B, H, W, 3) -> (B, 1024).

    Feature vectors for `frechet_distance`. Report the result as "Frechet distance on VGG16
    features"; it isn't an FID, which is defined on Inception-v3 features, and the two numbers
    can't be compared. Arguments and errors are those of `vgg16_features`; the average is taken
    in at least float32.

    >>> images = jax.ShapeDtypeStruct((2, 32, 32, 3), "float32")
    >>> jax.eval_shape(pooled_vgg_features, vgg16_shapes(), images).shape
    (2, 1024)
    """
    features = vgg16_features(params, images, dtype=dtype)
    pooled = [
        _layers.at_least_float32(features[name]).mean((1, 2)) for name in ("relu4_3", "relu5_3")
    ]
    return jnp.concatenate(pooled, axis=-1)
