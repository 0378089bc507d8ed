"""Compiled loops over blocks of packed keys: for each tile of keys, a bound on its best score.

A block of n keys is read as groups of T rows of 128 keys; a tile is one column of a group, T keys
with 128 between one and the next. (Neighbouring keys then sit in neighbouring lanes of a vector
register, and the minimum over a tile needs no shuffling: that is what makes the loop as fast as
memory.) Results are (queries, tiles), lowest is best, so that a search looks at few keys itself.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fpjax.fingerprint.energy import Quadratic, indefiniteness

COLUMNS = 128
MATCHING_ROWS = 256
SOFT_ROWS = 32


def tile_keys(rows: int, tiles: np.ndarray) -> np.ndarray:
    """Places (P, T) in the block of the keys of given tiles (P,)."""
    group, column = np.divmod(tiles, COLUMNS)
    first = group * (rows * COLUMNS) + column
    return first[:, None] + COLUMNS * np.arange(rows)


@functools.partial(jax.jit, static_argnames=("key_length",))
def tile_distances(words, queries, *, key_length: int):
    """Least number of differing bits in each tile. Call it under `jax.enable_x64(True)`.

    Args:
      words: (n, V) uint64 or (n, W) uint32, n a multiple of 256 x 128.
      queries: (B, V) uint64.
      key_length: bits, of which 255 or fewer are counted in 8 bits.

    Returns:
      (B, n / 256) uint8, or uint16 for longer keys.
    """
    words = _as_uint64(words)
    counter = jnp.uint8 if key_length <= 255 else jnp.uint16
    width = words.shape[1]
    groups = words.reshape(-1, MATCHING_ROWS, COLUMNS * width)

    def distances(some, query):
        row = jnp.tile(query, COLUMNS).reshape((1,) * (some.ndim - 1) + (-1,))
        ones = jax.lax.population_count(some ^ row).astype(counter)
        if width > 1:
            ones = jnp.sum(ones.reshape(*ones.shape[:-1], COLUMNS, width), -1, dtype=counter)
        return jnp.min(ones, axis=-2)

    if len(queries) == 1:
        return distances(groups, queries[0]).reshape(1, -1)

    def group(some):  # 256 KiB of keys stay in cache while all queries pass over them
        return jax.lax.map(lambda query: distances(some, query), queries)

    found = jax.lax.map(group, groups)
    return jnp.moveaxis(found, 0, 1).reshape(len(queries), -1)


def _as_uint64(words):
    if words.dtype == jnp.uint64:
        return words
    if words.shape[1] % 2:
        words = jnp.pad(words, ((0, 0), (0, 1)))
    low, high = words[:, ::2].astype(jnp.uint64), words[:, 1::2].astype(jnp.uint64)
    return low | (high << np.uint64(32))


class SoftBound(NamedTuple):
    """Linear forms of symbols whose squares bound the energy of a key from below.

    E(k) >= constant + 1/2 sum_j (forms_j k)^2 - linear k, up to `margin` in float32.

    Attributes:
      forms: (B, L, m + 1) float32, the largest last but for the very last, the linear term.
      constant: (B,) float64.
      margin: (B,) float64, bound on the rounding error.
    """

    forms: np.ndarray
    constant: np.ndarray
    margin: np.ndarray

    def keep(self, num_forms: int) -> SoftBound:
        """The bound by the `num_forms` largest forms only."""
        return self._replace(forms=self.forms[:, :, self.forms.shape[2] - 1 - num_forms :])


def soft_bound(quadratic: Quadratic) -> SoftBound:
    """Bounds of energies by as many forms as there are symbols, with which they are equalities.

    A diagonal D is worth the same for every key, since symbols square to 1. As much as keeps S - D
    positive semi-definite is counted whole (in the proportions of 1 / (S^-1)_ii, which leaves
    nothing of a diagonal S); the forms are the eigenvectors of the rest, and what `keep` leaves out
    is at least 0.
    """
    information, linear, offset = quadratic
    length = linear.shape[1]
    identity = np.eye(length)
    lift = indefiniteness(information)
    lift = lift + 1e-12 * np.trace(information, axis1=1, axis2=2).clip(0) + 1e-300
    regular = information + lift[:, None, None] * identity
    shares = 1 / np.diagonal(np.linalg.inv(regular), axis1=1, axis2=2)
    roots = np.sqrt(shares)
    ratio = np.linalg.eigvalsh(regular / roots[:, :, None] / roots[:, None, :])[:, 0]
    diagonal = ratio.clip(0)[:, None] * shares - lift[:, None]
    values, vectors = np.linalg.eigh(information - diagonal[:, :, None] * identity)
    negative = (-values[:, 0]).clip(0)  # by rounding
    forms = np.concatenate([np.sqrt(values.clip(0))[:, None] * vectors, linear[:, :, None]], axis=2)
    constant = offset + diagonal.sum(1) / 2 - negative * length / 2
    sizes = np.abs(forms).sum(1)
    error = 4 * (length + 2) * float(np.finfo(np.float32).eps)
    margin = error * ((sizes[:, :-1] ** 2).sum(1) + sizes[:, -1])
    return SoftBound(forms.astype(np.float32), constant, margin)


@functools.partial(jax.jit, static_argnames=("key_length",))
def tile_energies(words, forms, *, key_length: int):
    """Least bound of the energy in each tile, without the constants.

    Args:
      words: (n, W) uint32, n a multiple of 32 x 128.
      forms: (Q, L, q, m + 1) float32, B = Q q queries.
      key_length: bits, L.

    Returns:
      (B, n / 32) float32.
    """
    width = words.shape[1]
    shifts = jnp.arange(32, dtype=jnp.uint32)
    num, length, each, count = forms.shape

    def group(some):
        bits = (some[:, :, None] >> shifts[None, None]) & np.uint32(1)
        symbols = 2 * bits.reshape(-1, 32 * width)[:, :key_length].astype(jnp.float32) - 1

        def queries(form):
            products = jnp.dot(
                symbols, form.reshape(length, each * count), precision=jax.lax.Precision.HIGHEST
            ).reshape(-1, each, count)
            bounds = jnp.sum(products[..., :-1] ** 2, -1) / 2 - products[..., -1]
            return jnp.min(bounds.reshape(SOFT_ROWS, COLUMNS, each), axis=0).T

        return jax.lax.map(queries, forms).reshape(num * each, COLUMNS)

    found = jax.lax.map(group, words.reshape(-1, SOFT_ROWS * COLUMNS, width))
    return jnp.moveaxis(found, 0, 1).reshape(num * each, -1)
