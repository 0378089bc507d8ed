"""AlexNet features: the five activations that LPIPS reads.

Architecture: the one-column AlexNet of Krizhevsky, "One weird trick for parallelizing
convolutional neural networks", arXiv 1404.5997, up to its fifth ReLU.

Params tree, weights HWIO::

    {"conv1": {"weight": (11, 11, 3, 64), "bias": (64,)}, "conv2": (5, 5, 64, 192) ...,
     "conv3": (3, 3, 192, 384) ..., "conv4": (3, 3, 384, 256) ..., "conv5": (3, 3, 256, 256) ...}
"""

import jax
from jax.typing import ArrayLike, DTypeLike

from fpjax.models import layers as nn
from fpjax.models import parameters
from fpjax.models.parameters import Array, Params
from fpjax.perceptual import _layers

SPECS = {
    "conv1": nn.conv_spec(3, 64, 11, gain=2.0),
    "conv2": nn.conv_spec(64, 192, 5, gain=2.0),
    "conv3": nn.conv_spec(192, 384, gain=2.0),
    "conv4": nn.conv_spec(384, 256, gain=2.0),
    "conv5": nn.conv_spec(256, 256, gain=2.0),
}
_MIN_SIZE = 31  # 31 pixels -> 7 after conv1 -> 3 -> 1 after the two poolings.

FEATURES = ("relu1", "relu2", "relu3", "relu4", "relu5")


def alexnet_shapes() -> dict:
    """Nested dict of `jax.ShapeDtypeStruct`, one per array of the AlexNet params tree.

    >>> alexnet_shapes()["conv2"]["weight"].shape
    (5, 5, 64, 192)
    """
    return parameters.spec_shapes(SPECS)


def init_alexnet(key: Array) -> dict:
    """Random (He-normal) AlexNet parameters, for tests and timings; they measure nothing.

    >>> jax.eval_shape(init_alexnet, jax.random.key(0))["conv5"]["bias"].shape
    (256,)
    """
    return parameters.draw_params(SPECS, key)


def alexnet_features(
    params: Params, images: ArrayLike, *, dtype: DTypeLike | None = None
) -> dict[str, Array]:
    """Activations of AlexNet after each of its five ReLUs.

    Args:
      params: the params tree of this module's docstring, trained on ImageNet.
      images: (B, H, W, 3) floating point in [-1, 1], H and W at least 31. They are scaled by
        ImageNet's mean and standard deviation here, with the rounded constants of LPIPS v0.1.
      dtype: what to compute in, e.g. `jnp.bfloat16`; by default the dtype of `images`.

    Returns:
      {"relu1": (B, h1, w1, 64), "relu2": (B, h2, w2, 192), "relu3": (B, h3, w3, 384),
      "relu4": (B, h3, w3, 256), "relu5": (B, h3, w3, 256)}, where h1 = (H - 7) // 4 + 1,
      h2 = (h1 - 3) // 2 + 1, h3 = (h2 - 3) // 2 + 1, and likewise for the widths.

    Raises:
      ValueError: images of another rank or too small, or params of another shape.
      TypeError: images that are not floating point.

    >>> images = jax.ShapeDtypeStruct((2, 64, 64, 3), "float32")
    >>> jax.eval_shape(alexnet_features, alexnet_shapes(), images)["relu5"].shape
    (2, 3, 3, 256)
    """
    parameters.check_params(params, SPECS, "AlexNet")
    images = _layers.as_images(images, min_size=_MIN_SIZE, network="AlexNet")
    x = _layers.normalize_imagenet(images).astype(dtype or images.dtype)
    features = {}
    for name, feature in zip(SPECS, FEATURES, strict=True):
        if name in ("conv2", "conv3"):
            x = _layers.max_pool2d(x, window=3, stride=2)
        strided = {"stride": 4, "padding": ((2, 2), (2, 2))} if name == "conv1" else {}
        x = features[feature] = jax.nn.relu(nn.conv2d(params[name], x, **strided))
    return features
