"""Directions of latents with a picture's shape, without a matrix as large as the latent squared.

A latent (H, W, C) of a first stage has thousands of values, and a dense basis of it would have as
many rows of as many entries. Here a fixed orthonormal transform comes first, and what is left is
one small matrix for each block:

    "dct"       a 2-D cosine transform over H and W; one block of C values for each frequency
    "channels"  nothing but an order: one block of H W values for each channel
    "none"      one block of all values, with as many rows as are wanted

Several rows may share one coordinate: a symbol that is written in all three channels, or repeated
along three components, is one coordinate that owns three rows.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fpjax.errors import InputError
from fpjax.fingerprint.basis import Basis, Metric
from fpjax.models.generator import static
from fpjax.precision import full_precision
from fpjax.programs import program

Transform = Literal["dct", "channels", "none"]

DENSE_LIMIT = 1 << 26
"""Entries that `BlockBasis.dense` writes at most: 256 MiB of float32."""


def cosine_transform(size: int) -> np.ndarray:
    """The orthonormal DCT-II as a matrix (size, size) float64, lowest frequency first.

    >>> cosine_transform(2).round(3).tolist()
    [[0.707, 0.707], [0.707, -0.707]]
    """
    angles = np.pi / size * np.outer(np.arange(size), np.arange(size) + 0.5)
    matrix = np.sqrt(2 / size) * np.cos(angles)
    matrix[0] /= np.sqrt(2)
    return matrix


def num_blocks(transform: Transform, grid: tuple[int, int, int]) -> int:
    """Blocks that a transform cuts a latent of shape `grid` into.

    >>> num_blocks("dct", (16, 16, 3)), num_blocks("channels", (16, 16, 3))
    (256, 3)
    """
    height, width, channels = grid
    return {"dct": height * width, "channels": channels, "none": 1}[transform]


def to_blocks(
    transform: Transform, grid: tuple[int, int, int], flat: Float[Array, "batch size"]
) -> Float[Array, "batch blocks values"]:
    """Flattened latents (B, D) in blocks (B, n, D / n).

    >>> jnp.abs(to_blocks("dct", (2, 2, 1), jnp.ones((1, 4)))).round(3)[0, :, 0].tolist()
    [2.0, 0.0, 0.0, 0.0]
    """
    height, width, channels = grid
    batch = flat.shape[0]
    latents = flat.reshape(batch, height, width, channels)
    if transform == "none":
        return flat[:, None]
    if transform == "channels":
        return latents.transpose(0, 3, 1, 2).reshape(batch, channels, height * width)
    return _along_sides(latents, inverse=False).reshape(batch, height * width, channels)


def from_blocks(
    transform: Transform, grid: tuple[int, int, int], blocks: Float[Array, "batch blocks values"]
) -> Float[Array, "batch size"]:
    """The inverse of `to_blocks`, and its transpose."""
    height, width, channels = grid
    batch = blocks.shape[0]
    if transform == "channels":
        blocks = blocks.reshape(batch, channels, height, width).transpose(0, 2, 3, 1)
    elif transform == "dct":
        blocks = _along_sides(blocks.reshape(batch, height, width, channels), inverse=True)
    return blocks.reshape(batch, height * width * channels)


def _along_sides(x: Array, *, inverse: bool) -> Array:
    rows, columns = (cosine_transform(side).astype(np.float32) for side in x.shape[1:3])
    if inverse:
        rows, columns = rows.T, columns.T
    exact = jax.lax.Precision.HIGHEST
    x = jnp.einsum("kh,bhwc->bkwc", jnp.asarray(rows), x, precision=exact)
    return jnp.einsum("lw,bkwc->bklc", jnp.asarray(columns), x, precision=exact)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class BlockBasis:
    """Mean, directions in blocks, their dual, and how far natural latents spread along them.

    It stands where a `Basis` does: a latent is `mean` plus coordinates times directions.

    Attributes:
      mean: (D,) float32, D = H W C.
      blocks: (n, r, D / n) float32: r directions of each block, in the transformed latent.
      dual_blocks: (n, r, D / n); `blocks` itself where they are orthonormal (metric "latent").
      owner: (n * r,) int32: the coordinate that each row belongs to, or -1 where it is not in use
        and latents keep the mean.
      std: (K,) float32 natural standard deviations of the coordinates.
      grid: (H, W, C).
      transform: "dct", "channels" or "none".
      num_samples: latents it was fitted on.
      metric: "latent" or "image", as in `Basis`.

    >>> unit = np.broadcast_to(np.eye(2, dtype=np.float32), (4, 2, 2))
    >>> basis = BlockBasis(mean=np.zeros(8, np.float32), blocks=unit, dual_blocks=unit,
    ...     owner=np.arange(8, dtype=np.int32), std=np.ones(8, np.float32), grid=(2, 2, 2),
    ...     transform="dct", num_samples=10)
    >>> latents = basis.latents(jnp.eye(8)[:1])  # the lowest frequency of the first channel
    >>> latents.reshape(4, 2).round(3).tolist()
    [[0.5, 0.0], [0.5, 0.0], [0.5, 0.0], [0.5, 0.0]]
    >>> basis.coordinates(latents).round(3)[0, :2].tolist()
    [1.0, 0.0]
    """

    mean: Float[Array | np.ndarray, " size"]
    blocks: Float[Array | np.ndarray, "blocks rows values"]
    dual_blocks: Float[Array | np.ndarray, "blocks rows values"]
    owner: Int[Array | np.ndarray, " all_rows"]
    std: Float[Array | np.ndarray, " directions"]
    grid: tuple[int, int, int] = static()
    transform: Transform = static()
    num_samples: int = static()
    metric: Metric = static(default="latent")

    @property
    def dimension(self) -> int:
        """Length D of a flattened latent."""
        return self.mean.shape[0]

    def __len__(self) -> int:
        return self.std.shape[0]

    def select(self, rows) -> BlockBasis:
        """The basis of some of the coordinates; latents keep the mean along the others."""
        rows = np.asarray(rows)
        new = np.full(len(self) + 1, -1, np.int32)  # the last for rows without an owner
        new[rows] = np.arange(len(rows), dtype=np.int32)
        owner = new[np.asarray(self.owner)]
        return dataclasses.replace(self, owner=owner, std=np.asarray(self.std)[rows])

    def latents(self, coordinates: Float[Array, "batch directions"]) -> Float[Array, "batch size"]:
        """Flattened latents (B, D) of coordinates (B, K)."""
        batch = coordinates.shape[0]
        nothing = jnp.zeros((batch, 1), coordinates.dtype)
        # Rows without an owner, -1, take the last column.
        spread = jnp.concatenate([coordinates, nothing], axis=1)[:, jnp.asarray(self.owner)]
        count, rows, _ = self.blocks.shape
        values = jnp.einsum(
            "bnr,nrs->bns",
            spread.reshape(batch, count, rows),
            jnp.asarray(self.blocks),
            precision=jax.lax.Precision.HIGHEST,
        )
        return jnp.asarray(self.mean)[None] + from_blocks(self.transform, self.grid, values)

    def coordinates(self, flat: Float[Array, "batch size"]) -> Float[Array, "batch directions"]:
        """Coordinates (B, K) of flattened latents (B, D)."""
        flat = flat - jnp.asarray(self.mean)[None]
        values = to_blocks(self.transform, self.grid, flat)
        found = jnp.einsum(
            "bns,nrs->bnr",
            values,
            jnp.asarray(self.dual_blocks),
            precision=jax.lax.Precision.HIGHEST,
        ).reshape(flat.shape[0], -1)
        owner = jnp.asarray(self.owner)
        place = jnp.where(owner < 0, jnp.int32(len(self)), owner)
        sums = jnp.zeros((flat.shape[0], len(self) + 1), flat.dtype).at[:, place].add(found)
        shares = jnp.zeros(len(self) + 1, flat.dtype).at[place].add(1.0)
        return (sums / jnp.maximum(shares, 1)[None])[:, :-1]

    def dense(self) -> Basis:
        """The same as a `Basis`, for latents small enough.

        Raises:
          InputError: for a basis of more than `DENSE_LIMIT` entries.
        """
        if len(self) * self.dimension > DENSE_LIMIT:
            raise InputError(
                f"{len(self)} directions of {self.dimension} values do not fit memory as one "
                "matrix: use what works on blocks (`latents`, `coordinates`, MatrixFree)"
            )
        directions, dual = jax.tree.map(np.asarray, jax.device_get(_dense(jax.device_put(self))))
        mean, std = (np.asarray(jax.device_get(x), np.float32) for x in (self.mean, self.std))
        return Basis(mean, directions, dual, std, self.num_samples, self.metric)

    @property
    def directions(self) -> np.ndarray:
        """(K, D) rows, as in `Basis`; see `dense`."""
        return np.asarray(self.dense().directions)

    @property
    def dual(self) -> np.ndarray:
        """(K, D) rows, as in `Basis`; see `dense`."""
        return np.asarray(self.dense().dual)

    def arrays(self) -> dict[str, Array | np.ndarray]:
        """What a scheme saves, by name."""
        named = {"mean": self.mean, "blocks": self.blocks, "owner": self.owner, "std": self.std}
        return named if self.metric == "latent" else named | {"dual_blocks": self.dual_blocks}


@program()
@full_precision
def _dense(basis: BlockBasis) -> tuple[Array, Array]:
    unit = jnp.eye(len(basis), dtype=jnp.float32)
    directions = basis.latents(unit) - jnp.asarray(basis.mean)[None]
    values = jnp.eye(basis.dimension, dtype=jnp.float32) + jnp.asarray(basis.mean)[None]
    return directions, basis.coordinates(values).T


def check_grid(grid: tuple[int, ...]) -> tuple[int, int, int]:
    """The shape (H, W, C) of a latent.

    Raises:
      InputError: for a latent that has no picture's shape.

    >>> check_grid((16, 16, 3))
    (16, 16, 3)
    """
    if len(grid) != 3:
        raise InputError(
            f"latents of shape {grid}: this basis is for latents with a picture's shape "
            "(height, width, channels)"
        )
    height, width, channels = grid
    return height, width, channels


@functools.partial(jax.jit, static_argnums=(0, 1))
@full_precision
def blocks_of(transform: Transform, grid: tuple[int, int, int], flat: Array) -> Array:
    """`to_blocks`, compiled."""
    return to_blocks(transform, grid, flat)
