"""What a JPEG encoder measures of a picture: DCT coefficients, as a linear map in JAX.

The encoder turns RGB into luma and chroma, averages the chroma planes where they are subsampled,
repeats the edges to whole 8 x 8 blocks, and takes the DCT of each block. All of that is linear in
the pixels. It then divides by the quantisation table and rounds.

The noise of a file. A stored coefficient times its quantisation step q is the true one plus noise
that is uniform on [-q/2, q/2] (standard deviation q / sqrt(12)); over many pictures it is smaller
where coefficients hardly ever leave the step around zero. Two roundings to whole levels come before
it, that of luma and chroma and that of the averaged chroma; `coefficient_noise_std` counts them in,
and they matter at quality 95 and above. Pictures are clipped to 0..255 *before* all of this: clip
the generator's picture to [-1, 1] first, then apply `jpeg_coefficients`.

Source: ITU-T T.81 (DCT, sampling), T.871 (JFIF, the colour transform), and for the treatment of
edges, which neither fixes, what libjpeg does.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from fpjax.errors import InputError
from fpjax.precision import full_precision

# JFIF: full-range luma and chroma of ITU-R BT.601; rows are Y, Cb, Cr.
YCBCR_FROM_RGB = np.array(
    [
        [0.299, 0.587, 0.114],
        [-0.299 / 1.772, -0.587 / 1.772, 0.5],
        [0.5, -0.587 / 1.402, -0.114 / 1.402],
    ]
)

_SUBSAMPLINGS = {
    "4:4:4": (1, 1),
    "4:2:2": (2, 1),
    "4:4:0": (1, 2),
    "4:2:0": (2, 2),
    "4:1:1": (4, 1),
}


class JpegError(InputError):
    """A JPEG file that cannot be used, or a layout that no JPEG file has."""


def dct_matrix() -> np.ndarray:
    """The orthonormal 8-point DCT-II as a matrix; its rows are the frequencies.

    >>> matrix = dct_matrix()
    >>> bool(np.allclose(matrix @ matrix.T, np.eye(8)))
    True
    """
    frequency, place = np.mgrid[:8, :8]
    matrix = np.cos(math.pi * (2 * place + 1) * frequency / 16) / 2
    matrix[0] /= math.sqrt(2)
    return matrix


@dataclasses.dataclass(frozen=True)
class JpegLayout:
    """How a picture is cut into components and blocks. Hashable: a static argument under `jit`.

    Attributes:
      height, width: pixels, 1 to 65535.
      sampling: (horizontal, vertical) sampling factors of each component, one or three of them.
      colour: "ycbcr", "rgb" (components are stored as they are) or "grey" (luma alone).

    >>> layout = JpegLayout.of(48, 40, "4:2:0")
    >>> layout.block_grids, layout.num_coefficients
    (((6, 5), (3, 3), (3, 3)), 3072)
    """

    height: int
    width: int
    sampling: tuple[tuple[int, int], ...]
    colour: str = "ycbcr"

    def __post_init__(self):
        if not (1 <= self.height <= 65535 and 1 <= self.width <= 65535):
            raise JpegError(
                f"a JPEG picture has 1 to 65535 pixels a side, got {self.height} x {self.width}"
            )
        components = {"ycbcr": 3, "rgb": 3, "grey": 1}.get(self.colour)
        if components is None:
            raise JpegError(f"colour is {self.colour!r}, expected 'ycbcr', 'rgb' or 'grey'")
        if len(self.sampling) != components:
            raise JpegError(
                f"{self.colour} has {components} components, got sampling factors for "
                f"{len(self.sampling)}: {self.sampling}"
            )
        for horizontal, vertical in self.sampling:
            if not (1 <= horizontal <= 4 and 1 <= vertical <= 4):
                raise JpegError(f"sampling factors are 1 to 4, got {self.sampling}")
            most_horizontal, most_vertical = self._most
            if most_horizontal % horizontal or most_vertical % vertical:
                raise JpegError(
                    f"sampling factors {self.sampling} ask for means over parts of pixels, which "
                    "is not supported"
                )

    @classmethod
    def of(cls, height: int, width: int, subsampling: str = "4:2:0") -> JpegLayout:
        """The layout of a picture with "4:4:4", "4:2:2", "4:4:0", "4:2:0", "4:1:1" or "grey"."""
        if subsampling == "grey":
            return cls(height, width, ((1, 1),), "grey")
        if subsampling not in _SUBSAMPLINGS:
            known = ", ".join([*_SUBSAMPLINGS, "grey"])
            raise JpegError(f"subsampling is {subsampling!r}, expected one of {known}")
        return cls(height, width, (_SUBSAMPLINGS[subsampling], (1, 1), (1, 1)))

    @property
    def _most(self) -> tuple[int, int]:
        return max(h for h, _ in self.sampling), max(v for _, v in self.sampling)

    @property
    def reductions(self) -> tuple[tuple[int, int], ...]:
        """(horizontal, vertical) number of pixels that one sample of each component averages."""
        most_horizontal, most_vertical = self._most
        return tuple((most_horizontal // h, most_vertical // v) for h, v in self.sampling)

    @property
    def subsampling(self) -> str:
        """Its usual name, such as "4:2:0" or "grey", or "other"."""
        if self.colour == "grey":
            return "grey"
        luma, *chroma = self.reductions
        names = {pair: name for name, pair in _SUBSAMPLINGS.items()}
        if luma != (1, 1) or chroma[0] != chroma[1]:
            return "other"
        return names.get(chroma[0], "other")

    @property
    def upsampling(self) -> str:
        """How libjpeg's decoder, as it is usually called, brings chroma back to full size.

        "none", "triangle" (linear interpolation between the two nearest samples, weights 3/4 and
        1/4, along each halved axis) or "replicate".
        """
        reductions = set(self.reductions)
        if reductions == {(1, 1)}:
            return "none"
        for horizontal, vertical in reductions - {(1, 1)}:
            halved = (horizontal, vertical) in ((2, 1), (1, 2), (2, 2))
            if not halved or (horizontal == 2 and -(-self.width // 2) <= 2):
                return "replicate"
        return "triangle"

    @property
    def block_grids(self) -> tuple[tuple[int, int], ...]:
        """(rows, columns) of 8 x 8 blocks of each component."""
        most_horizontal, most_vertical = self._most
        return tuple(
            (
                -(-self.height * vertical // (8 * most_vertical)),
                -(-self.width * horizontal // (8 * most_horizontal)),
            )
            for horizontal, vertical in self.sampling
        )

    @property
    def num_coefficients(self) -> int:
        """Length of a flat vector of coefficients: 64 for each block."""
        return sum(64 * rows * columns for rows, columns in self.block_grids)

    def split(self, coefficients):
        """Cuts (..., num_coefficients) into one (..., rows, columns, 8, 8) array a component.

        Within a block the first index is the vertical frequency.

        >>> [part.shape for part in JpegLayout.of(16, 16).split(np.zeros((2, 384)))]
        [(2, 2, 2, 8, 8), (2, 1, 1, 8, 8), (2, 1, 1, 8, 8)]
        """
        if coefficients.shape[-1] != self.num_coefficients:
            raise JpegError(
                f"got {coefficients.shape[-1]} coefficients, expected {self.num_coefficients} for "
                f"{self}"
            )
        parts, start = [], 0
        for rows, columns in self.block_grids:
            stop = start + 64 * rows * columns
            shape = (*coefficients.shape[:-1], rows, columns, 8, 8)
            parts.append(coefficients[..., start:stop].reshape(shape))
            start = stop
        return parts


@functools.partial(jax.jit, static_argnames="layout")
@full_precision
def jpeg_coefficients(images: jax.Array, layout: JpegLayout) -> jax.Array:
    """DCT coefficients of the blocks of a picture, before quantisation.

    Linear in the images (so it goes through `jvp`, `vjp`, `vmap` and `linear_transpose`). Zero is
    mid-grey, 127.5 on the scale of 8 bits; `dequantised_coefficients` uses the same origin.

    Args:
      images: floating point in [-1, 1], (..., H, W, C), C = 3, or 1 for grey pictures (which have
        no chroma). Clip them first.
      layout: that of the file; its height and width are those of the images.

    Returns:
      (..., layout.num_coefficients), of the images' dtype, in 8-bit levels: the orthonormal DCT of
      values on the scale 0..255. Components one after the other, each in rows of blocks, each block
      in rows of frequencies. `layout.split` cuts them apart.

    Raises:
      JpegError: for images of another size, dtype or number of channels.

    >>> coefficients = jpeg_coefficients(jnp.ones((16, 16, 3)), JpegLayout.of(16, 16))
    >>> coefficients.shape, round(float(coefficients[0]), 3)   # 8 times half of the range
    ((384,), 1020.0)
    """
    images = jnp.asarray(images)
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise JpegError(f"images are {images.dtype}, expected floating point in [-1, 1]")
    if images.ndim < 3 or images.shape[-3:-1] != (layout.height, layout.width):
        raise JpegError(
            f"images have shape {images.shape}, expected (..., {layout.height}, {layout.width}, C)"
        )
    matrix = jnp.asarray(dct_matrix(), images.dtype)
    parts = []
    for plane, reduction, grid in zip(
        _planes(images * 127.5, layout), layout.reductions, layout.block_grids, strict=True
    ):
        rows, columns = grid
        plane = _downsample(plane, reduction, grid, layout._most[1])
        blocks = plane.reshape(*plane.shape[:-2], rows, 8, columns, 8)
        transformed = jnp.einsum(
            "ij,...njmk,lk->...nmil", matrix, blocks, matrix, precision=jax.lax.Precision.HIGHEST
        )
        parts.append(transformed.reshape(*transformed.shape[:-4], 64 * rows * columns))
    return jnp.concatenate(parts, axis=-1)


@functools.partial(jax.jit, static_argnames=("layout", "channels"))
@full_precision
def jpeg_pixels(coefficients: jax.Array, layout: JpegLayout, channels: int = 3) -> jax.Array:
    """The picture that coefficients stand for, before it is clipped and rounded.

    Chroma is brought to full size as libjpeg's decoder does (`layout.upsampling`), in exact
    arithmetic. At full sampling it is the inverse of `jpeg_coefficients`.

    Args:
      coefficients: (..., layout.num_coefficients), as `jpeg_coefficients` gives them.
      layout: that of the file.
      channels: 3, or 1 for luma alone.

    Returns:
      (..., H, W, channels) of the coefficients' dtype, nominally in [-1, 1].

    >>> layout = JpegLayout.of(16, 16)
    >>> picture = 0.3 * jnp.ones((16, 16, 3))
    >>> bool(jnp.allclose(jpeg_pixels(jpeg_coefficients(picture, layout), layout), picture))
    True
    """
    coefficients = jnp.asarray(coefficients)
    matrix = jnp.asarray(dct_matrix(), coefficients.dtype)
    planes = []
    for part, reduction, (rows, columns) in zip(
        layout.split(coefficients), layout.reductions, layout.block_grids, strict=True
    ):
        blocks = jnp.einsum(
            "ji,...nmjk,kl->...nmil", matrix, part, matrix, precision=jax.lax.Precision.HIGHEST
        )
        plane = jnp.swapaxes(blocks, -3, -2).reshape(*part.shape[:-4], 8 * rows, 8 * columns)
        for axis, factor, size in (
            (-1, reduction[0], layout.width),
            (-2, reduction[1], layout.height),
        ):
            # The encoder's padding is no part of the picture.
            kept = jax.lax.slice_in_dim(plane, 0, -(-size // factor), axis=axis)
            if factor > 1:
                weights = _upsampling(layout.upsampling, size, factor).astype(np.float32)
                kept = jnp.moveaxis(
                    jnp.tensordot(
                        kept,
                        jnp.asarray(weights, plane.dtype),
                        (axis, 1),
                        precision=jax.lax.Precision.HIGHEST,
                    ),
                    -1,
                    axis,
                )
            plane = kept
        planes.append(plane)
    if layout.colour == "ycbcr" and channels == 3:
        mixing = jnp.asarray(np.linalg.inv(YCBCR_FROM_RGB), coefficients.dtype)
        stacked = jnp.stack(planes, axis=-1)
        values = jnp.einsum("...k,ck->...c", stacked, mixing, precision=jax.lax.Precision.HIGHEST)
    else:
        values = jnp.stack((planes * channels)[:channels], axis=-1)
    return values / 127.5


def _upsampling(kind: str, length: int, factor: int) -> np.ndarray:
    """Samples at full size from means over `factor` pixels, as weights (length, means)."""
    if kind == "triangle":
        return triangle_upsampling(length)
    means = -(-length // factor)
    return np.repeat(np.eye(means), factor, axis=0)[:length]


def triangle_upsampling(length: int) -> np.ndarray:
    """Linear interpolation of ceil(length / 2) samples to `length`, weights 3/4 and 1/4.

    >>> triangle_upsampling(3).tolist()
    [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75]]
    """
    half = -(-length // 2)
    matrix = np.zeros((2 * half, half))
    for place in range(2 * half):
        near = place // 2
        far = np.clip(near + (1 if place % 2 else -1), 0, half - 1)
        matrix[place, near] += 0.75
        matrix[place, far] += 0.25
    return matrix[:length]


def _planes(values: jax.Array, layout: JpegLayout) -> list[jax.Array]:
    """The components of a picture at full size, each (..., H, W)."""
    channels = values.shape[-1]
    if channels not in (1, 3):
        raise JpegError(f"images have {channels} channels, expected 1 or 3")
    if channels == 1:
        grey = values[..., 0]
        if layout.colour == "ycbcr":
            return [grey, jnp.zeros_like(grey), jnp.zeros_like(grey)]
        return [grey] * len(layout.sampling)
    if layout.colour == "rgb":
        return [values[..., c] for c in range(3)]
    weights = jnp.asarray(YCBCR_FROM_RGB[: len(layout.sampling)], values.dtype)
    mixed = jnp.einsum("...c,kc->...k", values, weights, precision=jax.lax.Precision.HIGHEST)
    return [mixed[..., k] for k in range(len(layout.sampling))]


def _pad_edge(plane: jax.Array, rows: int, columns: int) -> jax.Array:
    pads = [(0, 0)] * (plane.ndim - 2) + [(0, rows), (0, columns)]
    return jnp.pad(plane, pads, mode="edge") if rows or columns else plane


def _downsample(plane: jax.Array, reduction, grid, most_vertical: int) -> jax.Array:
    """Means over `reduction` pixels of a plane whose edges are repeated as libjpeg does.

    Columns are repeated before the mean is taken. Rows are repeated before it only as far as one
    group of rows of the widest component goes, and the last row of means after that: the two
    differ in the last chroma blocks of pictures whose height is no multiple of 16.
    """
    horizontal, vertical = reduction
    rows, columns = 8 * grid[0], 8 * grid[1]
    height, width = plane.shape[-2:]
    group = -height % most_vertical
    plane = _pad_edge(plane, group, columns * horizontal - width)
    shape = (*plane.shape[:-2], (height + group) // vertical, vertical, columns, horizontal)
    if horizontal * vertical > 1:
        plane = plane.reshape(shape).mean((-3, -1))
    # Luma of a picture with few rows may have been repeated beyond its last block.
    plane = plane[..., :rows, :]
    return _pad_edge(plane, rows - plane.shape[-2], 0)


def quantisation_steps(layout: JpegLayout, tables) -> np.ndarray:
    """The step q of every coefficient of the flat vector.

    Args:
      layout: that of the file.
      tables: (components, 8, 8), one table for each component.

    Returns:
      float32, (layout.num_coefficients,).

    >>> quantisation_steps(JpegLayout.of(8, 8, "grey"), np.full((1, 8, 8), 16)).max()
    np.float32(16.0)
    """
    tables = np.asarray(tables)
    if tables.shape != (len(layout.sampling), 8, 8):
        raise JpegError(
            f"tables have shape {tables.shape}, expected {(len(layout.sampling), 8, 8)}: one for "
            "each component"
        )
    parts = [
        np.broadcast_to(table, (*grid, 8, 8)).reshape(-1)
        for table, grid in zip(tables, layout.block_grids, strict=True)
    ]
    return np.concatenate(parts).astype(np.float32)


def coefficient_noise_std(layout: JpegLayout, tables) -> np.ndarray:
    """Standard deviation of stored coefficients times their steps around the true ones.

    `sqrt((q^2 + r) / 12)`: q is the quantisation step, and r counts the roundings to whole levels
    before it. That is 1 for a component at full size (0 for a grey picture or stored RGB, which are
    whole already), and 1/n + (1 + 2/n^2) for one whose samples are the means of n pixels: the
    second part is the rounding of a mean, which is a multiple of 1/n, ties alternating.

    Args:
      layout, tables: see `quantisation_steps`.

    Returns:
      float32, (layout.num_coefficients,), in 8-bit levels.

    >>> std = coefficient_noise_std(JpegLayout.of(8, 8), np.full((3, 8, 8), 12))
    >>> round(float(std[0]), 3)
    3.476
    """
    steps = quantisation_steps(layout, tables)
    roundings = []
    for (horizontal, vertical), (rows, columns) in zip(
        layout.reductions, layout.block_grids, strict=True
    ):
        pixels = horizontal * vertical
        colour = 1.0 if layout.colour == "ycbcr" else 0.0
        mean = 0.0 if pixels == 1 else 1 + 2 / pixels**2
        roundings.append(np.full(64 * rows * columns, colour / pixels + mean))
    return np.sqrt((steps**2 + np.concatenate(roundings)) / 12).astype(np.float32)
