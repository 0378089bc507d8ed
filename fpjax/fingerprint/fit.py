"""Fits the basis of a generator's natural latents: by PCA, or by the image metric."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import PRNGKeyArray

from fpjax.errors import InputError
from fpjax.fingerprint.basis import Basis, Metric, pca, sample_latents
from fpjax.fingerprint.block_basis import BlockBasis
from fpjax.fingerprint.grid_metric import NUM_PROBES, check_probes, grid_basis, grid_metric
from fpjax.fingerprint.image_metric import Residuals, image_basis, image_metric
from fpjax.models.generator import Generator

MOST_DENSE = 2048
"""Values of a latent up to which its whole metric is taken by default: 16 MiB, and one eigenproblem
of seconds."""


def default_num_jacobians(generator: Generator) -> int:
    """Latents that a metric is averaged over: 256, and 64 for pictures of more than 64 x 64 pixels,
    whose Jacobians take minutes.

    Directions are chosen for what the average says of them, so that the last ones are those that
    it overrates most: with 64 Jacobians of the bundled StyleGAN2 1.5 to 1.7 times as many bits are
    wrong as with 256, with 32 about twice as many (`python benchmarks/metrics.py --output FILE`).

    >>> from fpjax.models.linear import linear_generator
    >>> default_num_jacobians(linear_generator())
    256
    """
    height, width, _ = generator.image_shape
    return 256 if height * width <= 64 * 64 else 64


def fit_basis(
    generator: Generator,
    key: PRNGKeyArray,
    num_samples: int = 10_000,
    *,
    metric: Metric | Residuals = "image",
    num_jacobians: int | None = None,
    num_probes: int = NUM_PROBES,
    in_blocks: bool | None = None,
    memory: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Basis | BlockBasis:
    """Fits the basis of a generator's natural latents.

    Args:
      generator: where the latents come from.
      key: PRNG key of the draws.
      num_samples: latents for mean and covariance; the published protocol takes 10,000.
      metric: "latent" is PCA, as published. "image" orders directions by how much natural images
        vary along them for the change they cost; see `image_metric.image_basis`. "lpips" is the
        same with the change measured by LPIPS-VGG16 (needs `fpjax[lpips]`, colour images). An
        `Observation` of one picture is the same with the change of files in units of their noise:
        the last directions are those in which natural files vary least for what they say. Both
        take whole Jacobians, however large latents are.
      num_jacobians: latents that the metric is averaged over; by default `default_num_jacobians`.
      num_probes: random products that the image metric is estimated from, in blocks.
      in_blocks: whether the image metric is taken block by block in a cosine transform, which needs
        latents with a picture's shape (H, W, C) and makes no matrix as large as a latent squared.
        It is an approximation: by default for such latents of more than `MOST_DENSE` values.
      memory: bytes that the tangents of a Jacobian may take; by default 4 GiB.
      progress: called with (Jacobians done, in all).

    Returns:
      The `Basis`, or a `BlockBasis` (`grid_metric`).

    Raises:
      InputError: for another metric, a generator that draws no latents, or blocks of latents that
        have no picture's shape.

    >>> from fpjax.models.linear import linear_generator
    >>> basis = fit_basis(linear_generator(), jax.random.key(0), 200, num_jacobians=2)
    >>> basis.directions.shape, basis.metric
    ((16, 16), 'image')
    """
    if isinstance(metric, Residuals):
        name: Metric = "observation"
    elif metric in ("image", "latent", "lpips"):
        name = metric
    else:
        raise InputError(f"metric {metric!r}: choose 'image', 'latent', 'lpips' or an observation")
    key_latents, key_metric = jax.random.split(key)
    if name == "latent":
        return pca(sample_latents(generator, key, num_samples))
    picture = len(generator.latent_shape) == 3
    if in_blocks is None:
        in_blocks = name == "image" and picture and generator.latent_size > MOST_DENSE
    elif in_blocks and not (name == "image" and picture):
        raise InputError(
            f"latents of shape {generator.latent_shape}, metric {name!r}: blocks need (H, W, C) "
            "and the image metric"
        )
    if in_blocks:
        check_probes(generator, num_probes)  # before latents are drawn, which may take hours
    latents = sample_latents(generator, key_latents, num_samples)
    if num_jacobians is None:
        num_jacobians = default_num_jacobians(generator)
    at = sample_latents(generator, key_metric, num_jacobians)
    if in_blocks:
        return grid_basis(
            latents,
            grid_metric(generator, at, key_metric, num_probes, progress=progress),
            generator.latent_shape,
        )
    options: dict[str, Any] = {} if memory is None else {"memory": memory}
    if name == "lpips":
        from fpjax import perceptual

        options["lpips"] = perceptual.load_lpips("vgg")
    elif isinstance(metric, Residuals):
        options["observation"] = metric
    gram = image_metric(generator, at, progress=progress, **options)
    return image_basis(latents, gram, name)
