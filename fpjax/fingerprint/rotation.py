"""A secret rotation of the fingerprint directions: the same subspace, other directions of bits.

A basis is a function of the generator and a seed, so that whoever holds the generator may fit the
directions of a scheme again. Random orthogonal combinations of them span the same subspace, cost
the same image change in the image metric, and are known to those alone who hold the scheme.
"""

from __future__ import annotations

import dataclasses
import secrets

import numpy as np

from fpjax.fingerprint.basis import Basis


def secret_rotation(length: int) -> np.ndarray:
    """A uniformly random orthogonal matrix (L, L) float64, from the operating system's source.

    >>> rotation = secret_rotation(5)
    >>> np.allclose(rotation @ rotation.T, np.eye(5))
    True
    """
    rng = np.random.default_rng(secrets.randbits(256))
    q, r = np.linalg.qr(rng.standard_normal((length, length)))
    # Signs that make the law uniform (Mezzadri 2007).
    return q * np.sign(np.diag(r))


def rotated(basis: Basis, first: int, rotation: np.ndarray) -> Basis:
    """A basis whose directions first, ..., first + L - 1 are replaced by combinations of them.

    Coordinates along the others stay what they are, since the span and its dual do.

    Args:
      basis: any.
      first: index of the first direction that is replaced.
      rotation: (L, L) orthogonal.

    >>> from fpjax.fingerprint.basis import pca
    >>> basis = pca(np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32))
    >>> turned = rotated(basis, 2, secret_rotation(2))
    >>> np.allclose(turned.dual @ turned.directions.T, np.eye(4), atol=1e-5)
    True
    """
    rows = slice(first, first + len(rotation))

    def turn(array):
        turned = np.array(array, np.float64)
        turned[rows] = rotation @ turned[rows]
        return turned.astype(np.float32)

    directions = turn(basis.directions)
    dual = directions if basis.dual is basis.directions else turn(basis.dual)
    std = np.array(basis.std, np.float32)
    # Natural coordinates were uncorrelated.
    std[rows] = np.sqrt(rotation**2 @ std[rows].astype(np.float64) ** 2)
    return dataclasses.replace(basis, directions=directions, dual=dual, std=std)
