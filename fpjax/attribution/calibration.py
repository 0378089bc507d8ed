"""Calibration of a scheme: its linear start, how bits fall on keyless images, and what is left
of an image that the generator did make."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fpjax.attribution.statistics import NullModel
from fpjax.data.files import to_uint8
from fpjax.fingerprint.basis import sample_latents
from fpjax.fingerprint.scheme import Scheme, decode_images
from fpjax.inversion.batching import invert
from fpjax.inversion.problem import Problem
from fpjax.inversion.starts import NUM_FITTED_IMAGES, fit_linear_start

NUM_NULL_IMAGES = 256

Stage = Callable[[str, int, int], None]


def keyless_images(scheme: Scheme, key: jax.Array, num: int) -> np.ndarray:
    """(num, R, R, 3) uint8 images of natural latents, as a user without a key would get them."""
    latents = sample_latents(scheme.generator, key, num)
    latents = jnp.asarray(latents).reshape(num, *scheme.generator.latent_shape)
    return to_uint8(np.asarray(decode_images(scheme, latents)))


def foreign_images(scheme: Scheme, key: jax.Array, num: int) -> np.ndarray:
    """(num, R, R, 3) uint8 images of another kind, made of the generator's own.

    In turn: mirrored, photographic negative, and the average of two. They share the generator's
    colours and contrasts, so they are harder to turn away than unrelated pictures, and they can be
    made for any generator without further data.
    """
    images = keyless_images(scheme, key, num).astype(np.float32)
    kinds = [images[:, :, ::-1], 255 - images, (images + np.roll(images, 1, axis=0)) / 2]
    picked = np.stack([kinds[i % 3][i] for i in range(num)])
    return np.rint(picked).astype(np.uint8)


def calibrate(
    scheme: Scheme,
    key: jax.Array,
    *,
    num_start_images: int = NUM_FITTED_IMAGES,
    num_null_images: int = NUM_NULL_IMAGES,
    progress: Stage | None = None,
) -> Scheme:
    """Measures what attribution needs to know about a scheme, and returns it with that knowledge.

    Three things are stored: the linear start of the inversion; the distribution of decoded bits on
    images without a key, natural and of another kind; and the residual up to which an image counts
    as the generator's, the geometric mean of the largest residual of natural images and the
    smallest of the others.

    Args:
      scheme: generator, directions and strength.
      key: PRNG key of all draws.
      num_start_images: images that the linear start is fitted on.
      num_null_images: keyless images of each of the two kinds.
      progress: called with (stage, done, in all).

    Returns:
      The scheme with `extras` and `notes`; its `id` stays the same.

    Raises:
      ValueError: if the two kinds of image cannot be told apart by their residual, which means that
        the inversion fails on this generator.
    """

    def staged(stage):
        return None if progress is None else lambda done, total: progress(stage, done, total)

    key_start, key_natural, key_foreign = jax.random.split(key, 3)
    start = fit_linear_start(
        scheme, key_start, num_start_images, progress=staged("fitting the linear start")
    )
    scheme = scheme.replace(extras={**scheme.extras, **start.to_extras()})
    problem = Problem(scheme)
    natural = invert(
        problem,
        keyless_images(scheme, key_natural, num_null_images),
        progress=staged("inverting images without a key"),
    )
    foreign = invert(
        problem,
        foreign_images(scheme, key_foreign, num_null_images),
        progress=staged("inverting images of another kind"),
    )
    highest, lowest = float(natural.noise_ratio.max()), float(foreign.noise_ratio.min())
    if not highest < lowest:
        raise ValueError(
            f"images of the generator leave residuals up to {highest:.2f} times the noise, others "
            f"from {lowest:.2f}: inversion does not work well enough on this generator"
        )
    null = NullModel.fit({"natural": natural.keys, "foreign": foreign.keys})
    arrays, groups = null.to_arrays()
    notes = {
        "null_groups": list(groups),
        "num_null_images": num_null_images,
        "num_start_images": num_start_images,
        "max_noise_ratio": float(np.sqrt(highest * lowest)),
        "natural_noise_ratio_max": highest,
        "foreign_noise_ratio_min": lowest,
    }
    extras = {**scheme.extras, **{f"null/{name}": array for name, array in arrays.items()}}
    return scheme.replace(extras=extras, notes={**scheme.notes, "calibration": notes})
