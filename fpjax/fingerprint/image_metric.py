"""Directions by the image metric: how much a picture changes, against how much pictures vary.

The metric is H = E[J^T J] over natural latents, J the generator's Jacobian: the squared change of
an image for a small change of its latent, on average. With the covariance C of natural latents, the
generalised symmetric eigenproblem gives directions d_i with

    d_i^T H d_j = delta_ij        (each changes an image by 1, and no two the same way)
    dual C dual^T diagonal        (natural coordinates along them are uncorrelated)

ordered by natural standard deviation. Along the last ones natural images vary least for the change
that a key costs there, so that a key in them is cheap to write and hard to mistake for a picture's
own variation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Float

from fpjax.errors import InputError
from fpjax.fingerprint.basis import Basis, Metric, centre, row_signs
from fpjax.models.generator import Generator
from fpjax.models.jacobian import DEFAULT_MEMORY, jacobian_rows, tangent_bytes, tangents_at_once
from fpjax.precision import full_precision
from fpjax.programs import program

REGULARISATION = 1e-6
"""Added to the metric's diagonal, as a share of its mean: directions in which no image changes get
a finite length."""


@runtime_checkable
class Residuals(Protocol):
    """What a metric needs of an `Observation`: differences from a file, in units of its noise."""

    def residual(
        self,
        image: Float[jax.Array, "height width channels"],
        target: Float[jax.Array, "height width channels"],
    ) -> Float[jax.Array, " residuals"]:
        """Of a picture (H, W, C) that was not clipped, and a file's pixels in [-1, 1]."""
        ...


def image_metric(
    generator: Generator,
    latents: Float[np.ndarray, "num size"],
    *,
    lpips: Any = None,
    observation: Residuals | None = None,
    memory: int = DEFAULT_MEMORY,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """H = mean of J^T J, accumulated in float64.

    Args:
      generator: what makes the images.
      latents: (N, D) flattened latents to average over: the more, the better the last directions
        that are chosen by it (`fit.default_num_jacobians`).
      lpips: parameters of LPIPS-VGG16 (`fpjax.perceptual.load_lpips("vgg")`): the change of an
        image is then measured by LPIPS, whose square root is a distance of features.
      observation: what happens to files: the change of an image is then that of its residual, in
        units of the file's noise.
      memory: bytes that the tangents of a Jacobian may take.
      progress: called with (latents done, in all).

    Returns:
      (D, D) float64, symmetric positive semi-definite, in units of squared image change (images in
      [-1, 1], summed over pixels), of LPIPS, or of squared residual, a squared latent unit.

    Raises:
      InputError: for LPIPS and an observation at once.
    """
    if lpips is not None and observation is not None:
        raise InputError("LPIPS or an observation: a metric is of one of them")
    dimension = generator.latent_size
    point = jax.ShapeDtypeStruct((dimension,), jnp.float32)
    how = jax.device_put((generator, lpips, observation))
    block = tangents_at_once(dimension, tangent_bytes(_seen, point, *how), memory)
    total = np.zeros((dimension, dimension))
    for i, latent in enumerate(latents):
        rows = jax.device_get(_rows(jax.device_put(latent), *how, block))
        rows = np.asarray(rows, np.float64)
        total += rows @ rows.T
        if progress is not None:
            progress(i + 1, len(latents))
    return total / len(latents)


def _seen(
    latent: jax.Array, generator: Generator, lpips: Any, observation: Residuals | None
) -> jax.Array:
    """What is compared, (M,): pixels, features whose squared distance is LPIPS, or an observation's
    residual, of a file that has the picture's own pixels."""
    image = generator.decode(generator.params, latent.reshape(1, *generator.latent_shape))
    if lpips is not None:
        from fpjax import perceptual

        image = perceptual.lpips_features(lpips, image)
    if observation is not None:
        file = jax.lax.stop_gradient(jnp.clip(image[0], -1, 1))
        return observation.residual(image[0], file)
    return image.reshape(-1)


@program(static_argnums=4)
@full_precision
def _rows(
    latent: jax.Array,
    generator: Generator,
    lpips: Any,
    observation: Residuals | None,
    block: int,
) -> jax.Array:
    tangents = jnp.eye(generator.latent_size, dtype=jnp.float32)
    seen = functools.partial(_seen, generator=generator, lpips=lpips, observation=observation)
    return jacobian_rows(seen, latent, tangents, block=block)[1]


def image_basis(
    latents: Float[np.ndarray, "num size"],
    metric: Float[np.ndarray, "size size"],
    name: Metric = "image",
) -> Basis:
    """The basis of natural latents in a metric; see the module's text.

    Args:
      latents: (N, D) natural latents, N > D for a covariance of full rank.
      metric: (D, D), such as `image_metric` gives.
      name: what the metric measures, "image", "lpips" or "observation".

    Returns:
      The `Basis` of D directions, by descending natural standard deviation in image units.

    >>> latents = np.random.default_rng(0).normal(size=(500, 2)) * [1.0, 3.0]
    >>> basis = image_basis(latents, np.diag([100.0, 1.0]))
    >>> basis.std.round(0).tolist()  # 10 * 1 in image units, then 1 * 3
    [10.0, 3.0]
    """
    centred, mean = centre(latents)
    covariance = centred.T @ centred / (len(centred) - 1)
    metric = regularised(metric)
    lower = np.linalg.cholesky(metric)
    variances, vectors = np.linalg.eigh(lower.T @ covariance @ lower)
    order = np.argsort(variances)[::-1]
    variances, vectors = variances[order], vectors[:, order]
    directions = scipy.linalg.solve_triangular(lower, vectors, lower=True, trans=1).T
    dual = (lower @ vectors).T
    signs = row_signs(directions)[:, None]
    return Basis(
        mean=mean.astype(np.float32),
        directions=(directions * signs).astype(np.float32),
        dual=(dual * signs).astype(np.float32),
        std=np.sqrt(np.maximum(variances, 0)).astype(np.float32),
        num_samples=len(centred),
        metric=name,
    )


def regularised(metric: np.ndarray) -> np.ndarray:
    """The metric with `REGULARISATION` times its mean diagonal added, symmetric, float64."""
    metric = np.asarray(metric, np.float64)
    share = REGULARISATION * np.trace(metric) / len(metric)
    return (metric + metric.T) / 2 + share * np.eye(len(metric))
