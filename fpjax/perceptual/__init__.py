"""How different two images, or two sets of images, look: LPIPS and Frechet distances.

All feature functions are pure `fn(params, images)` on NHWC images in [-1, 1] and plain nested
dicts of arrays, and go through jit, vmap, jvp and vjp.
"""

from fpjax.perceptual.alexnet import alexnet_features, alexnet_shapes, init_alexnet
from fpjax.perceptual.frechet import FeatureStatistics, frechet_distance, frechet_from_features
from fpjax.perceptual.inception import inception_features, inception_shapes, init_inception
from fpjax.perceptual.lpips import init_lpips, lpips, lpips_features, lpips_shapes
from fpjax.perceptual.lpips_weights import load_lpips
from fpjax.perceptual.vgg16 import (
    init_vgg16,
    pooled_vgg_features,
    vgg16_features,
    vgg16_shapes,
)

__all__ = [
    "FeatureStatistics",
    "alexnet_features",
    "alexnet_shapes",
    "frechet_distance",
    "frechet_from_features",
    "inception_features",
    "inception_shapes",
    "init_alexnet",
    "init_inception",
    "init_lpips",
    "init_vgg16",
    "load_lpips",
    "lpips",
    "lpips_features",
    "lpips_shapes",
    "pooled_vgg_features",
    "vgg16_features",
    "vgg16_shapes",
]
