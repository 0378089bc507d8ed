"""Whether a picture was resized and brought back to its size, told from what an inversion made.

A kernel and a window do not explain such a picture: its weights change from pixel to pixel, with
the phase between the two grids. But the sizes and filters are few, and the right one makes of a
roughly right picture something clearly nearer to the file than every other one does.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from fpjax.attacks.linear import KERNELS
from fpjax.inversion.observation_filtered import Filter
from fpjax.precision import full_precision
from fpjax.programs import droppable, program

Array = jax.Array

SMALLEST = 0.375
"""Scale from which on sizes are tried."""
ROUNDED_TWICE = 0.0055
"""Noise of pictures that were rounded more than once on the way, images in [-1, 1]. Of ten resizes
to 0.75 and back, read to the end, 0.0044 to 0.0067 was left."""
_ALIKE = 1.5 / 32
"""Scales nearer to each other than that are no rivals."""


@dataclasses.dataclass(frozen=True)
class Resized:
    """What fits a file best.

    Attributes:
      between: (height, width) between, pixels.
      scale: side between / side, of the longer one.
      filter: one of Pillow's, both times.
      error: rms of what is left, of [-1, 1].
      margin: the least error at a clearly different scale, or without a resize, over `error`.
    """

    between: tuple[int, int]
    scale: float
    filter: str
    error: float
    margin: float

    def as_filter(self, height: int, width: int) -> Filter:
        """The filter, for pictures of a size."""
        return Filter.resize_through(height, width, self.between, self.filter)

    @property
    def words(self) -> str:
        """For people."""
        return f"a resize to {self.scale:.2f} of its sides and back ({self.filter})"


def resized(
    picture: Float[np.ndarray, "height width channels"],
    file: Float[np.ndarray, "height width channels"],
) -> Resized | None:
    """The resize that leads from one picture to another best; None where none is nearer.

    Args:
      picture: (H, W, C) in [-1, 1], about what the picture was before.
      file: (H, W, C) in [-1, 1]; pixels at the ends of that range are left out.

    >>> picture = np.random.default_rng(0).uniform(-0.5, 0.5, (32, 24, 3)).astype(np.float32)
    >>> file = np.asarray(Filter.resize_and_back(32, 24, 0.75, "bilinear")(picture))
    >>> found = resized(picture, file)
    >>> found.scale, found.filter, found.error < 1e-6, found.margin > 10
    (0.75, 'bilinear', True, True)
    """
    shape = picture.shape[:2]
    sizes = _sizes(*shape)
    errors = _errors(picture, file, sizes)
    kernel, at = np.unravel_index(np.argmin(errors), errors.shape)
    error, own = float(errors[kernel, at]), float(errors[:, -1].min())
    if not error < own:
        return None
    scales = sizes.max(1) / max(shape)
    rivals = np.abs(scales - scales[at]) > _ALIKE
    rival = min(own, float(errors[:, rivals].min(initial=np.inf)))
    between = int(sizes[at, 0]), int(sizes[at, 1])
    return Resized(
        between, float(scales[at]), list(KERNELS)[kernel], error, rival / max(error, 1e-9)
    )


def _sizes(height: int, width: int) -> np.ndarray:
    """Sizes (N, 2) that one scale of both sides comes to, the picture's own last.

    All of them: the phases of neighbours differ by a pixel.

    >>> _sizes(3, 2).tolist()
    [[1, 1], [2, 1], [2, 2], [3, 2]]
    """
    # Sizes change where a scale brings a side to half a pixel.
    edges = [(np.arange(1, side + 1) - 0.5) / side for side in (height, width)]
    edges = np.unique(np.concatenate(edges))
    scales = np.concatenate([(edges[1:] + edges[:-1]) / 2, [1.0]])
    scales = scales[scales >= SMALLEST]
    return np.unique(np.maximum(1, np.rint(scales[:, None] * [height, width])).astype(int), axis=0)


def _errors(picture, file, sizes) -> Float[np.ndarray, "filters sizes"]:
    given = jax.device_put((picture, file, *np.ascontiguousarray(sizes.T, np.float32)))
    return np.stack([jax.device_get(_rms(*given, filter=filter)) for filter in KERNELS])


@droppable
@program(static_argnames="filter")
@full_precision
def _rms(picture: Array, file: Array, heights: Array, widths: Array, *, filter: str) -> Array:
    counted = (jnp.abs(file) < 0.99).astype(file.dtype)

    def rms(sides: tuple[Array, Array]) -> Array:
        rows, columns = (
            there_and_back(length, side, filter)
            for length, side in zip(picture.shape[:2], sides, strict=True)
        )
        seen = jnp.einsum("ih,hwc->iwc", rows, jnp.clip(picture, -1, 1))
        seen = jnp.einsum("jw,iwc->ijc", columns, seen)
        return jnp.sqrt(jnp.sum(counted * jnp.square(seen - file)) / jnp.maximum(counted.sum(), 1))

    return jax.lax.map(rms, (heights, widths))


def there_and_back(length: int, between: Array, filter: str) -> Array:
    """(length, length): an axis resampled to `between` samples and back; `between` is traced.

    >>> there_and_back(4, jnp.float32(2.0), "box")[0].tolist()
    [0.5, 0.5, 0.0, 0.0]
    """
    kernel = KERNELS[filter]
    place = jnp.arange(length).astype(between.dtype) + 0.5
    inside = (place < between).astype(between.dtype)
    step = length / between

    def normal(weights: Array) -> Array:
        total = weights.sum(1, keepdims=True)
        return weights / jnp.where(total == 0, 1, total)

    there = normal(kernel((place[None, :] - place[:, None] * step) / jnp.maximum(step, 1)))
    back = normal(
        inside[None, :] * kernel((place[None, :] - place[:, None] / step) * jnp.minimum(step, 1))
    )
    return jnp.matmul(back, there)
