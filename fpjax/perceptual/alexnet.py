"""AlexNet features: the five activations that LPIPS reads.

Architecture: the one-column AlexNet of Krizhevsky, "One weird trick for parallelizing
convolutional neural networks", arXiv 1404.5997, up to its fifth ReLU.

Params tree, weights HWIO::

    {"conv1": {"weight": (11, 11, 3, 64), "bias": (64,)}, "conv2": (5, 5, 64, 192) ...,
     "conv3": (3, 3, 192, 384) ..., "conv4": (3, 3, 384, 256) ..., "conv5": (3, 3, 256, 256) ...}
"""

import jax
import jax.numpy as jnp

from fpjax.perceptual import _layers

_KERNELS = {
    "conv1": (11, 11, 3, 64),
    "conv2": (5, 5, 64, 192),
    "conv3": (3, 3, 192, 384),
    "conv4": (3, 3, 384, 256),
    "conv5": (3, 3, 256, 256),
}
_MIN_SIZE = 31  # 31 pixels -> 7 after conv1 -> 3 -> 1 after the two poolings.

FEATURES = ("relu1", "relu2", "relu3", "relu4", "relu5")


def alexnet_shapes() -> dict:
    """Nested dict of `jax.ShapeDtypeStruct`, one per array of the AlexNet params tree.

    >>> alexnet_shapes()["conv2"]["weight"].shape
    (5, 5, 64, 192)
    """
    return {name: _layers.conv_shapes(kernel) for name, kernel in _KERNELS.items()}


def init_alexnet(key) -> dict:
    """Random (He-normal) AlexNet parameters, for tests and timings; they measure nothing.

    >>> import jax
    >>> init_alexnet(jax.random.key(0))["conv5"]["bias"].shape
    (256,)
    """
    return _layers.init_params(key, alexnet_shapes())


def alexnet_features(params, images, *, dtype=None) -> dict[str, jax.Array]:
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

    >>> import jax
    >>> images = jax.ShapeDtypeStruct((2, 64, 64, 3), "float32")
    >>> jax.eval_shape(alexnet_features, alexnet_shapes(), images)["relu5"].shape
    (2, 3, 3, 256)
    """
    _layers.check_params(params, alexnet_shapes(), "AlexNet")
    images = _layers.as_images(images, min_size=_MIN_SIZE, network="AlexNet")
    dtype = dtype or images.dtype
    x = _layers.normalize_imagenet(images).astype(dtype)
    features = {}
    for name, feature in zip(_KERNELS, FEATURES, strict=True):
        if name in ("conv2", "conv3"):
            x = _layers.max_pool2d(x, window=3, stride=2)
        weight = jnp.asarray(params[name]["weight"], dtype)
        if name == "conv1":
            x = _layers.conv2d(x, weight, stride=4, padding=((2, 2), (2, 2)))
        else:
            x = _layers.conv2d(x, weight, padding="SAME")
        x = jax.nn.relu(x + jnp.asarray(params[name]["bias"], dtype))
        features[feature] = x
    return features
