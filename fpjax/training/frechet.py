"""Frechet distances of a released model's pictures to those that it was trained on."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

FEATURES = "VGG16 relu4_3 and relu5_3, averaged over the image (LPIPS weights)"


def vgg_features(images: np.ndarray, batch: int = 250) -> np.ndarray:
    """Features (N, F) of uint8 images (N, R, R, 3)."""
    from fpjax import perceptual

    params = perceptual.load_lpips("vgg")["backbone"]
    run = jax.jit(perceptual.pooled_vgg_features)
    parts = [
        np.asarray(run(params, jnp.asarray(images[i : i + batch], jnp.float32) / 127.5 - 1))
        for i in range(0, len(images), batch)
    ]
    return np.concatenate(parts)


def distances(train: np.ndarray, test: np.ndarray, **others: np.ndarray) -> dict[str, Any]:
    """Distances to the training images of held-out ones and of others, all (N, R, R, 3) uint8.

    Args:
      train: images of the training set.
      test: held-out images.
      **others: generated images, by the name that their distance gets.

    Returns:
      Distances by name, that of held-out images as "frechet_distance_of_test_images", the name of
      the features, and how many images of each kind there were.
    """
    from fpjax.perceptual import frechet_from_features

    real = vgg_features(train)
    kinds = {**others, "frechet_distance_of_test_images": test}
    found = {
        name: float(frechet_from_features(vgg_features(images), real))
        for name, images in kinds.items()
    }
    return found | {
        "frechet_features": FEATURES,
        "frechet_num_images": len(train),
        "frechet_num_test_images": len(test),
    }
