"""Rotation, flip, shear, perspective and shift: the picture stays at its size."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import numpy as np

from fpjax.attacks.base import Attack, choice, map_pillow, number, uniform_per_image

INTERPOLATIONS = ("nearest", "bilinear", "bicubic")


def _resampling(interpolation: str):
    from PIL import Image

    return Image.Resampling[interpolation.upper()]


def _fill(picture, level: int):
    return level if picture.mode == "L" else (level,) * 3


@dataclasses.dataclass(frozen=True)
class Rotate(Attack):
    """Rotates counter-clockwise about the centre; corners that come from outside are filled.

    >>> image = np.arange(9, dtype=np.uint8).reshape(1, 3, 3, 1)
    >>> Rotate(degrees=90.0)(None, image)[0, :, :, 0].tolist()
    [[2, 5, 8], [1, 4, 7], [0, 3, 6]]
    """

    name: ClassVar[str] = "rotate"
    linear: ClassVar[bool] = True
    differentiable: ClassVar[bool] = True
    source: ClassVar[str] = "An et al., WAVES, ICML 2024 (arXiv 2401.08573): 9 to 45 degrees"

    degrees: float = number(9.0, -180.0, 180.0, "degrees, counter-clockwise")
    interpolation: str = choice("bicubic", INTERPOLATIONS, "interpolation")
    fill: int = number(0, 0, 255, "grey level outside the picture")

    def _apply(self, key, images):
        def rotate(picture):
            return picture.rotate(
                self.degrees,
                _resampling(self.interpolation),
                fillcolor=_fill(picture, self.fill),
            )

        return map_pillow(rotate, images)


@dataclasses.dataclass(frozen=True)
class Flip(Attack):
    """Mirrors left and right, or top and bottom.

    >>> image = np.array([[1, 2, 3]], np.uint8).reshape(1, 1, 3, 1)
    >>> Flip()(None, image).ravel().tolist()
    [3, 2, 1]
    """

    name: ClassVar[str] = "flip"
    linear: ClassVar[bool] = True
    differentiable: ClassVar[bool] = True
    source: ClassVar[str] = "Pan et al., MarkDiffusion, 2025 (arXiv 2509.10569)"

    axis: str = choice("horizontal", ("horizontal", "vertical"), "direction of the exchange")

    def _apply(self, key, images):
        return np.flip(images, 2 if self.axis == "horizontal" else 1).copy()


@dataclasses.dataclass(frozen=True)
class Shear(Attack):
    """Slides rows sideways, in proportion to their distance from the middle row.

    Rows above the middle go right for a positive angle.

    >>> Shear(degrees=10.0)(None, np.zeros((1, 12, 8, 3), np.uint8)).shape
    (1, 12, 8, 3)
    """

    name: ClassVar[str] = "shear"
    linear: ClassVar[bool] = True
    differentiable: ClassVar[bool] = True
    source: ClassVar[str] = "Petitcolas, Anderson & Kuhn, StirMark, IH 1998"

    degrees: float = number(5.0, -60.0, 60.0, "angle of the vertical edges")
    interpolation: str = choice("bicubic", INTERPOLATIONS, "interpolation")
    fill: int = number(0, 0, 255, "grey level outside the picture")

    def _apply(self, key, images):
        from PIL import Image

        slope = math.tan(math.radians(self.degrees))
        # Pillow wants the place in the source of each pixel of the result.
        affine = (1.0, slope, -slope * images.shape[1] / 2, 0.0, 1.0, 0.0)

        def shear(picture):
            return picture.transform(
                picture.size,
                Image.Transform.AFFINE,
                affine,
                _resampling(self.interpolation),
                fillcolor=_fill(picture, self.fill),
            )

        return map_pillow(shear, images)


@dataclasses.dataclass(frozen=True)
class Perspective(Attack):
    """Moves each corner inwards by up to `distortion` of half a side, drawn from the key.

    >>> import jax
    >>> image = np.full((1, 16, 24, 3), 9, np.uint8)
    >>> bool((Perspective(distortion=0.0)(jax.random.key(0), image) == image).all())
    True
    """

    name: ClassVar[str] = "perspective"
    linear: ClassVar[bool] = True
    differentiable: ClassVar[bool] = True
    random: ClassVar[bool] = True
    source: ClassVar[str] = "Petitcolas, Anderson & Kuhn, StirMark, IH 1998"

    distortion: float = number(0.2, 0.0, 0.9, "largest move of a corner / half a side")
    interpolation: str = choice("bicubic", INTERPOLATIONS, "interpolation")
    fill: int = number(0, 0, 255, "grey level outside the picture")

    def _apply(self, key, images):
        from PIL import Image

        count, height, width = images.shape[:3]
        size = np.array([width, height], np.float64)
        corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * size
        inwards = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) * size / 2 * self.distortion
        moves = uniform_per_image(key, count, 8).reshape(count, 4, 2) * inwards
        places = [perspective_coefficients(corners + move, corners) for move in moves]

        def warp(picture, place):
            return picture.transform(
                picture.size,
                Image.Transform.PERSPECTIVE,
                place,
                _resampling(self.interpolation),
                fillcolor=_fill(picture, self.fill),
            )

        return map_pillow(warp, images, places)


def perspective_coefficients(points: np.ndarray, images: np.ndarray) -> tuple[float, ...]:
    """The perspective map (a .. h) that takes four `points` to `images`, both (4, 2) as (x, y).

    `x' = (a x + b y + c) / (g x + h y + 1)`, `y' = (d x + e y + f) / (g x + h y + 1)`.

    >>> square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    >>> np.round(perspective_coefficients(square, square + 1), 9).tolist()
    [1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0]
    """
    rows, values = [], []
    for (x, y), (u, v) in zip(points, images, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    solution = np.linalg.solve(np.array(rows, np.float64), np.array(values, np.float64))
    return tuple(solution.tolist())


@dataclasses.dataclass(frozen=True)
class Shift(Attack):
    """Moves the picture by whole pixels; the edge that comes in repeats the last row or column.

    >>> image = np.array([[1, 2, 3]], np.uint8).reshape(1, 1, 3, 1)
    >>> Shift(down=0, right=1)(None, image).ravel().tolist()
    [1, 1, 2]
    """

    name: ClassVar[str] = "shift"
    linear: ClassVar[bool] = True
    differentiable: ClassVar[bool] = True
    source: ClassVar[str] = "Petitcolas, Anderson & Kuhn, StirMark, IH 1998"

    down: int = number(1, -1024, 1024, "pixels")
    right: int = number(1, -1024, 1024, "pixels")

    def _apply(self, key, images):
        rows = np.clip(np.arange(images.shape[1]) - self.down, 0, images.shape[1] - 1)
        columns = np.clip(np.arange(images.shape[2]) - self.right, 0, images.shape[2] - 1)
        return images[:, rows][:, :, columns]
