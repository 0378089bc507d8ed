"""Where inversion starts: a Latin hypercube around the mean, or a linear read-out of the pixels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from fpjax.fingerprint.basis import sample_latents
from fpjax.fingerprint.keys import sample_keys
from fpjax.fingerprint.scheme import Scheme, decode_images
from fpjax.inversion.problem import Problem

Array = jax.Array

NUM_FITTED_IMAGES = 12_000
LOW_PASS_RESOLUTION = 32


def latin_hypercube_starts(problem: Problem, num_starts: int, seed: int = 0) -> np.ndarray:
    """The published starts: alpha from a centred Latin hypercube in [-s, s], kappa from 0.

    Returns:
      (num_starts, num_unknowns) float32; levels start in the middle.

    Source: Nie et al. 2023, Section 4; `scipy.stats.qmc.LatinHypercube` without scrambling.
    """
    from scipy.stats import qmc

    sampler = qmc.LatinHypercube(d=problem.num_alpha, scramble=False, seed=seed)
    alpha = (2 * sampler.random(num_starts) - 1) * problem.alpha_std
    centre, _ = problem.level_centre_and_half_width
    middle = 0.0 if problem.key == "sigmoid" else centre
    levels = np.full((num_starts, problem.scheme.key_length), middle)
    return np.concatenate([alpha, levels], axis=1).astype(np.float32)


def low_pass(images: Array) -> Array:
    """Box-filters (B, R, R, 3) images to at most 32 px and flattens them: (B, F)."""
    batch, side = images.shape[:2]
    if side > LOW_PASS_RESOLUTION:
        factor = side // LOW_PASS_RESOLUTION
        shape = (batch, LOW_PASS_RESOLUTION, factor, LOW_PASS_RESOLUTION, factor, 3)
        images = images.reshape(shape).mean(axis=(2, 4))
    return images.reshape(batch, -1)


@dataclasses.dataclass(frozen=True, eq=False)
class LinearStart:
    """Ridge regression from low-pass pixels to the unknowns.

    Attributes:
      weight: (F, num_unknowns).
      bias: (num_unknowns,).
    """

    weight: np.ndarray
    bias: np.ndarray

    def __call__(self, images: Array) -> Array:
        """Unknowns (B, num_unknowns), relaxed levels, of images (B, R, R, 3) in [-1, 1]."""
        return low_pass(images) @ jnp.asarray(self.weight, jnp.float32) + self.bias

    def to_extras(self) -> dict[str, np.ndarray]:
        """Arrays for a scheme's `extras`; half precision is ample for a start."""
        return {
            "linear_start/weight": self.weight.astype(np.float16),
            "linear_start/bias": self.bias.astype(np.float32),
        }

    @classmethod
    def of(cls, scheme: Scheme) -> LinearStart | None:
        """The start stored with a scheme, or None."""
        if "linear_start/weight" not in scheme.extras:
            return None
        weight = np.asarray(scheme.extras["linear_start/weight"], np.float32)
        return cls(weight, scheme.extras["linear_start/bias"])


def fit_linear_start(
    scheme: Scheme,
    key: Array,
    num_images: int = NUM_FITTED_IMAGES,
    *,
    batch: int = 250,
    progress: Callable[[int, int], None] | None = None,
) -> LinearStart:
    """Fits the linear start in closed form on images of the scheme with random keys.

    The ridge is chosen on held-out images (one batch in ten), by the error of the levels and of
    alpha in units of their spread.

    Args:
      scheme: generator and directions.
      key: PRNG key of latents and keys.
      num_images: how many images to generate; memory stays that of one batch.
      batch: images generated at a time.
      progress: called with (images done, images in all).
    """
    key_latents, key_keys = jax.random.split(key)
    batch = min(batch, num_images)
    count = max(2, num_images // batch)
    latents = sample_latents(scheme.generator, key_latents, count * batch)
    keys = sample_keys(key_keys, count * batch, scheme.key_length)
    problem = Problem(scheme)
    _, spread = problem.prior_mean_and_std
    spread = spread / np.concatenate(
        [np.full(problem.num_alpha, problem.prior_scale), np.ones(scheme.key_length)]
    )
    gram = cross = None
    held = []
    for i in range(count):
        part = slice(i * batch, (i + 1) * batch)
        alpha = scheme.project(latents[part])
        images = decode_images(scheme, scheme.embed(alpha, keys[part]), batch)
        images = jnp.round(images * 127.5 + 127.5) / 127.5 - 1
        features = np.asarray(low_pass(images), np.float64)
        features = np.concatenate([features, np.ones((batch, 1))], axis=1)
        centre, half = problem.level_centre_and_half_width
        levels = centre + half * (2 * keys[part].astype(np.float64) - 1)
        targets = np.concatenate([np.asarray(alpha, np.float64), levels], axis=1) / spread
        if i % 10 == 9 or i == count - 1:
            held.append((features, targets))
        else:
            gram = features.T @ features + (0 if gram is None else gram)
            cross = features.T @ targets + (0 if cross is None else cross)
        if progress is not None:
            progress((i + 1) * batch, count * batch)
    features = np.concatenate([f for f, _ in held])
    targets = np.concatenate([t for _, t in held])
    best = None
    for ridge in np.trace(gram) / len(gram) * np.logspace(-6, -1, 6):
        regularised = gram + ridge * np.eye(len(gram))
        weight = scipy.linalg.solve(regularised, cross, assume_a="pos", overwrite_a=True)
        error = np.mean((features @ weight - targets) ** 2)
        if best is None or error < best[0]:
            best = (error, weight)
    weight = (best[1] * spread).astype(np.float32)
    return LinearStart(weight[:-1], weight[-1])
