"""A picture that was filtered before it became the file: blur, resize, shift, crop, gain, offset.

All of these are one linear map: a matrix along the rows, a matrix along the columns, and
`gain * x + offset`. The matrices are arrays, so that another width, factor or distance compiles
nothing. What follows (rounding, noise, JPEG) is an observation of its own, of the filtered picture;
the file may have another size than the generator's pictures.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PRNGKeyArray, UInt8

from fpjax.attacks import linear
from fpjax.errors import InputError
from fpjax.inversion.observation import ROUNDING_STD, Observation, leaky_clip

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Filter:
    """A separable linear map of pictures in [-1, 1]: rows, columns, then gain and offset.

    Attributes:
      rows: (H', H).
      columns: (W', W).
      gain, offset: scalars.

    >>> Filter.resize(8, 6, (4, 3), "box")(jnp.ones((8, 6, 3))).shape
    (4, 3, 3)
    """

    rows: Array | np.ndarray
    columns: Array | np.ndarray
    gain: Array | float = 1.0
    offset: Array | float = 0.0

    def __call__(
        self, image: Float[Array, "*batch height width channels"]
    ) -> Float[Array, "*batch rows columns channels"]:
        """The filtered pictures, neither clipped nor rounded."""
        highest = jax.lax.Precision.HIGHEST
        image = jnp.einsum("ih,...hwc->...iwc", jnp.asarray(self.rows), image, precision=highest)
        image = jnp.einsum("jw,...iwc->...ijc", jnp.asarray(self.columns), image, precision=highest)
        gain, offset = (
            jnp.broadcast_to(jnp.asarray(value, image.dtype), image.shape)
            for value in (self.gain, self.offset)
        )
        return gain * image + offset

    @classmethod
    def identity(cls, height: int, width: int, gain: float = 1.0, offset: float = 0.0) -> Filter:
        """Gain and offset alone: brightness f is gain f, offset f - 1; contrast has the gain f.

        >>> Filter.identity(2, 2, 1.5)(jnp.ones((2, 2, 1))).max().item()
        1.5
        """
        return cls(np.eye(height, dtype=np.float32), np.eye(width, dtype=np.float32), gain, offset)

    @classmethod
    def blur(cls, height: int, width: int, sigma: float, size: int = 25) -> Filter:
        """The attack `GaussianBlur` of `sigma` pixels and `size` samples a side."""
        return cls(*_matrices(lambda x: linear.gaussian_blur(x, sigma, size), height, width))

    @classmethod
    def resize(cls, height: int, width: int, shape: tuple[int, int], filter: str) -> Filter:
        """Resizing to `shape` with one of Pillow's filters."""
        return cls(*_matrices(lambda x: linear.resize(x, shape, filter), height, width))

    @classmethod
    def resize_and_back(cls, height: int, width: int, scale: float, filter: str) -> Filter:
        """The attack `Resize`: by `scale`, and back to the size it had.

        >>> Filter.resize_and_back(8, 8, 0.5, "box")(jnp.ones((8, 8, 1))).shape
        (8, 8, 1)
        """
        between = max(1, round(scale * height)), max(1, round(scale * width))
        return cls.resize_through(height, width, between, filter)

    @classmethod
    def resize_through(
        cls, height: int, width: int, between: tuple[int, int], filter: str
    ) -> Filter:
        """Resizing to `between` (height, width), and back to the size it had.

        >>> Filter.resize_through(8, 8, (4, 5), "box")(jnp.ones((8, 8, 1))).shape
        (8, 8, 1)
        """
        there = cls.resize(height, width, between, filter)
        back = cls.resize(*between, (height, width), filter)
        return cls(back.rows @ there.rows, back.columns @ there.columns)

    @classmethod
    def shift(cls, height: int, width: int, down: float, right: float) -> Filter:
        """The attack `Shift`, also by fractions of pixels; what comes in repeats the edge."""
        return cls(*_matrices(lambda x: linear.shift(x, down, right), height, width))

    @classmethod
    def crop(
        cls, height: int, width: int, box: tuple[float, float, float, float], filter: str
    ) -> Filter:
        """The window (top, left, bottom, right) of a picture, resized to the whole of it."""
        return cls(
            *_matrices(lambda x: linear.resize(x, (height, width), filter, box), height, width)
        )


def _matrices(operation, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of a separable operation that keeps constants.

    A picture that is constant along one axis shows what happens along the other.
    """

    def along(axis: int, length: int) -> np.ndarray:
        # Channel c holds a picture that is 1 in row (or column) c alone.
        shape = (length, 1, length) if axis == 0 else (1, length, length)
        units = np.eye(length, dtype=np.float32).reshape(shape)
        other = width if axis == 0 else height
        units = np.broadcast_to(
            units, (length, other, length) if axis == 0 else (other, length, length)
        )
        out = np.asarray(jax.device_get(operation(jax.device_put(units))))
        return np.ascontiguousarray(out[:, 0] if axis == 0 else out[0])

    return along(0, height), along(1, width)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Filtered:
    """A file of a filtered picture: clip, filter, then what another observation says.

    Attributes:
      filter: what was done.
      picture: (H', W', C) float32 in [-1, 1], the file's pixels at the file's size.
      inner: how the filtered picture became the file.

    >>> from fpjax.inversion.observation import Rounded8Bit
    >>> image = jnp.full((8, 8, 1), 0.2)
    >>> brighter = Filter.identity(8, 8, gain=1.5)
    >>> seen = Filtered(brighter, jnp.full((8, 8, 1), 0.3), Rounded8Bit())
    >>> bool(jnp.max(jnp.abs(seen.residual(image, image))) < 1e-3)
    True
    """

    filter: Filter
    picture: Array | np.ndarray
    inner: Observation

    name: ClassVar[str] = "filtered"

    def __post_init__(self):
        shapes = [getattr(part, "shape", None) for part in (self.filter.rows, self.picture)]
        if all(shape is not None and len(shape) in (2, 3) for shape in shapes):
            rows, columns = np.shape(self.filter.rows)[0], np.shape(self.filter.columns)[0]
            if np.shape(self.picture)[:2] != (rows, columns):
                raise InputError(
                    f"the picture is {np.shape(self.picture)}, the filter gives {rows} x {columns}"
                )

    @property
    def pixel_std(self) -> Array | float:
        """That of the inner observation: starts do not fit what is smaller."""
        return getattr(self.inner, "pixel_std", ROUNDING_STD)

    def _seen(self, image: Array, leak: Array | float) -> Array:
        return self.filter(leaky_clip(image, jnp.asarray(leak, image.dtype)))

    def residual(
        self,
        image: Float[Array, "height width channels"],
        target: Float[Array, "height width channels"],
        leak: Array | float = 0.0,
    ) -> Float[Array, " residuals"]:
        """See `Observation`; the file's pixels are in the observation, not in the target."""
        del target
        return self.inner.residual(self._seen(image, leak), jnp.asarray(self.picture), leak)

    def counted(
        self,
        image: Float[Array, "height width channels"],
        target: Float[Array, "height width channels"],
    ) -> Float[Array, " residuals"]:
        """Those that the inner observation counts."""
        del target
        return self.inner.counted(self._seen(image, 0.0), jnp.asarray(self.picture))

    def filtered(self, image: Array, target: Array) -> tuple[Array, Array]:
        """What the picture becomes, and the file's pixels, both of the file's size."""
        del target
        return self._seen(image, 0.0), jnp.asarray(self.picture)

    def simulate(
        self, key: PRNGKeyArray, images: Float[Array, "batch height width channels"]
    ) -> UInt8[Array, "batch rows columns channels"]:
        """Clips, filters, and makes files as the inner observation does."""
        return self.inner.simulate(key, self.filter(jnp.clip(images, -1, 1)))
