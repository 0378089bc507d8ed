"""Principal components of latents that are too many, or too long, for `basis.pca`.

Latents arrive in batches and are never held together. Three ways, by what fits:

    covariance   D x D is accumulated: for D up to a few thousand
    Gram         N x N inner products: for fewer samples than dimensions
    randomised   a subspace of the wanted size, improved in a few passes over the batches
                 (Halko, Martinsson and Tropp 2011, algorithm 4.4)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import numpy as np

from fpjax.errors import InputError
from fpjax.fingerprint.basis import Basis, row_signs

Batches = Callable[[], Iterable[np.ndarray]]
"""Gives the same batches (n, D) of latents at every call."""

Method = Literal["covariance", "gram", "randomised"]

PASSES = 4
"""Passes in which the randomised method improves its subspace."""

OVERSAMPLE = 32


def large_pca(
    batches: Batches,
    num_components: int | None = None,
    *,
    method: Method | None = None,
    memory: int = 4 << 30,
    seed: int = 0,
) -> Basis:
    """PCA of latents in batches; see the module's text.

    Args:
      batches: called once for each pass; gives arrays (n, D), the same ones every time.
      num_components: directions wanted, at most min(N - 1, D), which is the default.
      method: by default the exact one that fits `memory`, else "randomised".
      memory: bytes for matrices.
      seed: of the randomised method.

    Returns:
      The `Basis`, metric "latent".

    Raises:
      InputError: for fewer than two latents, values that are not finite, more components than there
        can be, or where no method fits the memory.

    >>> latents = np.random.default_rng(0).normal(size=(50, 3)) * [3.0, 1.0, 0.1]
    >>> large_pca(lambda: [latents[:30], latents[30:]], 2).std.round(0).tolist()
    [3.0, 1.0]
    """
    count, total = 0, np.zeros(0)
    for part in batches():
        if part.ndim != 2 or not np.isfinite(part).all():
            raise InputError(f"latents of shape {part.shape}: expected finite values (n, D)")
        total = part.sum(axis=0, dtype=np.float64) + (total if count else 0)
        count += len(part)
    if count < 2:
        raise InputError(f"{count} latents: PCA needs at least two")
    mean, dimension = total / count, len(total)
    most = min(count - 1, dimension)
    wanted = most if num_components is None else num_components
    if not 1 <= wanted <= most:
        raise InputError(
            f"num_components {wanted}: {count} latents of {dimension} values give 1 to {most}"
        )
    needs = {
        "covariance": 3 * 8 * dimension**2,
        "gram": 8 * (3 * count**2 + 2 * wanted * dimension),
        "randomised": 3 * 8 * min(wanted + OVERSAMPLE, most) * dimension,
    }
    exact = ("covariance", "gram") if dimension <= count else ("gram", "covariance")
    fitting = next((name for name in exact if needs[name] <= memory), "randomised")
    chosen = fitting if method is None else method
    if needs[chosen] > memory:
        raise InputError(
            f"{chosen} PCA of {wanted} components takes {needs[chosen] >> 20} MiB and "
            f"{memory >> 20} MiB are allowed: ask for fewer components or allow more memory"
        )

    def centred() -> Iterable[np.ndarray]:
        for part in batches():
            yield part.astype(np.float64) - mean

    variances, directions = _METHODS[chosen](centred, count, dimension, wanted, seed)
    directions = directions * row_signs(directions)[:, None]
    directions = directions.astype(np.float32)
    return Basis(
        mean=mean.astype(np.float32),
        directions=directions,
        dual=directions,
        std=np.sqrt(np.maximum(variances, 0)).astype(np.float32),
        num_samples=count,
    )


def _covariance(centred, count: int, dimension: int, wanted: int, seed: int):
    del seed
    total = np.zeros((dimension, dimension))
    for part in centred():
        total += part.T @ part
    variances, vectors = np.linalg.eigh(total / (count - 1))
    return variances[::-1][:wanted], vectors[:, ::-1][:, :wanted].T


def _gram(centred, count: int, dimension: int, wanted: int, seed: int):
    del seed
    gram, first = np.empty((count, count)), 0
    for part in centred():
        second = 0
        for other in centred():
            gram[first : first + len(part), second : second + len(other)] = part @ other.T
            second += len(other)
        first += len(part)
    values, vectors = np.linalg.eigh((gram + gram.T) / 2)
    values, vectors = values[::-1][:wanted], vectors[:, ::-1][:, :wanted]
    directions, first = np.zeros((wanted, dimension)), 0
    for part in centred():
        directions += vectors[first : first + len(part)].T @ part
        first += len(part)
    # Orthonormal to rounding, also where variances are small against the first.
    directions = np.linalg.qr(directions.T)[0].T
    return values / (count - 1), directions


def _randomised(centred, count: int, dimension: int, wanted: int, seed: int):
    size = min(wanted + OVERSAMPLE, count - 1, dimension)
    subspace = np.random.default_rng(seed).standard_normal((dimension, size))
    for _ in range(PASSES):
        subspace, _ = np.linalg.qr(subspace)
        image = np.zeros_like(subspace)
        for part in centred():
            image += part.T @ (part @ subspace)
        subspace = image
    subspace, _ = np.linalg.qr(subspace)
    small = np.zeros((size, size))
    for part in centred():
        seen = part @ subspace
        small += seen.T @ seen
    variances, vectors = np.linalg.eigh(small / (count - 1))
    variances, vectors = variances[::-1][:wanted], vectors[:, ::-1][:, :wanted]
    return variances, (subspace @ vectors).T


_METHODS = {"covariance": _covariance, "gram": _gram, "randomised": _randomised}
