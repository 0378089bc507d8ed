"""Principal directions of a generator's latents, in which keys are written.

A basis is fitted once, saved with the scheme and never refitted: a key read in another basis is
noise.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np

from fpjax.models.generator import Generator


@dataclasses.dataclass(frozen=True, eq=False)
class Basis:
    """PCA of latents.

    Attributes:
      mean: (D,) float32.
      components: (K, D) float32 orthonormal rows, by descending variance; each row's entry of
        largest magnitude is positive, so that the basis does not depend on the linear algebra
        library.
      std: (K,) float32 standard deviations of the latents along the components.
      num_samples: latents it was fitted on.
    """

    mean: np.ndarray
    components: np.ndarray
    std: np.ndarray
    num_samples: int

    @property
    def dimension(self) -> int:
        """Length D of a flattened latent."""
        return self.components.shape[1]

    def __len__(self) -> int:
        return self.components.shape[0]


def pca(latents: np.ndarray) -> Basis:
    """Exact principal component analysis, accumulated in float64.

    Args:
      latents: (N, D); D is the flattened length.

    Returns:
      The basis of min(N - 1, D) components. Standard deviations use N - 1.

    Raises:
      ValueError: for fewer than two latents, or values that are not finite.

    >>> basis = pca(np.array([[0.0, 0.0], [2.0, 0.0], [4.0, 0.1]]))
    >>> basis.components.shape, bool(basis.components[0, 0] > 0.9)
    ((2, 2), True)
    """
    latents = np.asarray(latents)
    if latents.ndim != 2 or latents.shape[0] < 2:
        raise ValueError(f"latents have shape {latents.shape}: expected (at least 2, D)")
    if not np.isfinite(latents).all():
        raise ValueError("latents contain values that are not finite")
    num, dimension = latents.shape
    mean = latents.mean(axis=0, dtype=np.float64)
    centred = latents.astype(np.float64) - mean
    if num > dimension:
        variances, vectors = np.linalg.eigh(centred.T @ centred / (num - 1))
        order = np.argsort(variances)[::-1]
        variances, components = variances[order], vectors[:, order].T
    else:
        _, singular, components = np.linalg.svd(centred, full_matrices=False)
        variances, components = singular[: num - 1] ** 2 / (num - 1), components[: num - 1]
    rows = np.arange(len(components))
    signs = np.sign(components[rows, np.abs(components).argmax(axis=1)])
    return Basis(
        mean=mean.astype(np.float32),
        components=(components * signs[:, None]).astype(np.float32),
        std=np.sqrt(np.maximum(variances, 0)).astype(np.float32),
        num_samples=num,
    )


@functools.lru_cache(maxsize=8)
def _sampler(generator: Generator, batch: int):
    return jax.jit(lambda params, key: generator.sample_latents(params, key, batch))


def sample_latents(generator: Generator, key: jax.Array, num: int, batch: int = 1000) -> np.ndarray:
    """Draws (num, D) natural latents, flattened, a batch at a time through one program."""
    if num < 1:
        raise ValueError(f"num {num}: draw at least one latent")
    batch = min(batch, num)
    draw = _sampler(generator, batch)
    count = -(-num // batch)
    parts = [np.asarray(draw(generator.params, k)) for k in jax.random.split(key, count)]
    return np.concatenate(parts)[:num].reshape(num, -1)


def fit_basis(generator: Generator, key: jax.Array, num_samples: int = 10_000) -> Basis:
    """Fits the basis of a generator's natural latents.

    Args:
      generator: where the latents come from.
      key: PRNG key of the draws.
      num_samples: how many; the published protocol takes 10,000.

    Returns:
      The `Basis`.
    """
    return pca(sample_latents(generator, key, num_samples))
