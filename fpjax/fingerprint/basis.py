"""Directions of a generator's latents in which keys are written, and the coordinates along them.

A basis is fitted once, saved with the scheme and never refitted: a key read in another basis is
noise. `fit_basis` offers two: principal components, as published, and the generalised eigenvectors
of the latents' covariance in the image metric (`image_metric.py`).
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from fpjax.errors import InputError
from fpjax.models.generator import Generator, static

Metric = Literal["image", "latent", "lpips", "observation"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Basis:
    """Mean, directions, their dual, and how far natural latents spread along them.

    A latent is `mean + coordinates @ directions`; its coordinates are `dual @ (latent - mean)`.

    Attributes:
      mean: (D,) float32.
      directions: (K, D) float32 rows, by descending natural standard deviation; each row's entry of
        largest magnitude is positive, so that a basis does not depend on the linear algebra
        library. Orthonormal in the latent metric, of unit image effect in the image metric. A
        secret rotation of some of them (`rotation.py`) keeps that, but not order and sign.
      dual: (K, D) float32; `dual @ directions.T` is the identity. Equal to `directions` where they
        are orthonormal.
      std: (K,) float32 natural standard deviations of the coordinates. In the image metric a
        coordinate of 1 changes the image by 1 (root of the summed squares, images in [-1, 1]), so
        that these are standard deviations in image units; in others it changes LPIPS features, or
        an observation's residual, by 1.
      num_samples: latents it was fitted on.
      metric: "latent", "image", "lpips" or "observation".

    >>> basis = pca(np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32))
    >>> len(basis), basis.std.shape, basis.metric
    (3, (3,), 'latent')
    """

    mean: Float[Array | np.ndarray, " size"]
    directions: Float[Array | np.ndarray, "directions size"]
    dual: Float[Array | np.ndarray, "directions size"]
    std: Float[Array | np.ndarray, " directions"]
    num_samples: int = static()
    metric: Metric = static(default="latent")

    @property
    def dimension(self) -> int:
        """Length D of a flattened latent."""
        return self.directions.shape[1]

    def __len__(self) -> int:
        return self.directions.shape[0]

    def arrays(self) -> dict[str, Array | np.ndarray]:
        """What a scheme saves, by name."""
        named = {"mean": self.mean, "directions": self.directions, "std": self.std}
        return named if self.metric == "latent" else named | {"dual": self.dual}

    def select(self, rows) -> Basis:
        """The basis of some of the directions; latents keep the mean along the others.

        >>> basis = pca(np.array([[0.0, 0.0], [2.0, 0.0], [4.0, 0.1]]))
        >>> len(basis.select([1]))
        1
        """
        rows = np.asarray(rows)
        return dataclasses.replace(
            self, directions=self.directions[rows], dual=self.dual[rows], std=self.std[rows]
        )


def pca(latents: Float[np.ndarray, "num size"]) -> Basis:
    """Exact principal component analysis, accumulated in float64.

    Args:
      latents: (N, D); D is the flattened length.

    Returns:
      The basis of min(N - 1, D) components. Standard deviations use N - 1.

    Raises:
      InputError: for fewer than two latents, or values that are not finite.

    >>> basis = pca(np.array([[0.0, 0.0], [2.0, 0.0], [4.0, 0.1]]))
    >>> basis.directions.shape, bool(basis.directions[0, 0] > 0.9)
    ((2, 2), True)
    """
    centred, mean = centre(latents)
    num, dimension = centred.shape
    if num > dimension:
        variances, vectors = np.linalg.eigh(centred.T @ centred / (num - 1))
        order = np.argsort(variances)[::-1]
        variances, directions = variances[order], vectors[:, order].T
    else:
        _, singular, directions = np.linalg.svd(centred, full_matrices=False)
        variances, directions = singular[: num - 1] ** 2 / (num - 1), directions[: num - 1]
    directions = (directions * row_signs(directions)[:, None]).astype(np.float32)
    return Basis(
        mean=mean.astype(np.float32),
        directions=directions,
        dual=directions,
        std=np.sqrt(np.maximum(variances, 0)).astype(np.float32),
        num_samples=num,
    )


def centre(latents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Checked latents (N, D) less their mean, in float64, and the mean (D,).

    Raises:
      InputError: for fewer than two latents, or values that are not finite.
    """
    latents = np.asarray(latents)
    if latents.ndim != 2 or latents.shape[0] < 2:
        raise InputError(f"latents have shape {latents.shape}: expected (at least 2, D)")
    if not np.isfinite(latents).all():
        raise InputError("latents contain values that are not finite")
    mean = latents.mean(axis=0, dtype=np.float64)
    return latents.astype(np.float64) - mean, mean


def row_signs(directions: np.ndarray) -> np.ndarray:
    """Signs (K,) that make each row's entry of largest magnitude positive."""
    rows = np.arange(len(directions))
    return np.sign(directions[rows, np.abs(directions).argmax(axis=1)])


def sample_latents(
    generator: Generator, key: PRNGKeyArray, num: int, batch: int = 1000
) -> Float[np.ndarray, "num size"]:
    """Draws (num, D) natural latents, flattened, a batch at a time through one program.

    Raises:
      InputError: if num is not positive, or the generator draws no latents.
    """
    if num < 1:
        raise InputError(f"num {num}: draw at least one latent")
    batch = min(batch, num)
    keys = jax.random.split(key, -(-num // batch))
    parts = [jax.device_get(generator.natural_latents(k, batch)) for k in keys]
    return np.concatenate(parts)[:num].reshape(num, -1)
