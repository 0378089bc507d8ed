"""Changes of size, with the filters of Pillow (antialiased when shrinking)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from fpjax.attacks.base import Attack, choice, map_pillow, number

FILTERS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")


def resize_pillow(picture, shape: tuple[int, int], filter: str):
    """A Pillow image resized to `shape` (height, width)."""
    from PIL import Image

    return picture.resize((shape[1], shape[0]), Image.Resampling[filter.upper()])


@dataclasses.dataclass(frozen=True)
class Resize(Attack):
    """Resizes both sides by `scale` and back to the size they had.

    >>> Resize(scale=0.5)(None, np.zeros((1, 30, 20, 3), np.uint8)).shape
    (1, 30, 20, 3)
    """

    name: ClassVar[str] = "resize"
    linear: ClassVar[bool] = True
    differentiable: ClassVar[bool] = True
    source: ClassVar[str] = "Yang et al., Gaussian Shading, CVPR 2024 (arXiv 2404.04956): 0.25"

    scale: float = number(0.5, 0.02, 8.0, "side between / side of the picture")
    filter: str = choice("bicubic", FILTERS, "interpolation, both times")

    def _apply(self, key, images):
        shape, between = images.shape[1:3], scaled_shape(images, self.scale)

        def there_and_back(picture):
            return resize_pillow(resize_pillow(picture, between, self.filter), shape, self.filter)

        return map_pillow(there_and_back, images)


@dataclasses.dataclass(frozen=True)
class Rescale(Attack):
    """Resizes both sides by `scale` and leaves the picture at that size.

    >>> Rescale(scale=0.5)(None, np.zeros((1, 30, 20, 3), np.uint8)).shape
    (1, 15, 10, 3)
    """

    name: ClassVar[str] = "rescale"
    linear: ClassVar[bool] = True
    differentiable: ClassVar[bool] = True
    keeps_size: ClassVar[bool] = False
    source: ClassVar[str] = "Yang et al., Gaussian Shading, CVPR 2024 (arXiv 2404.04956)"

    scale: float = number(0.5, 0.02, 8.0, "side after / side before")
    filter: str = choice("bicubic", FILTERS, "interpolation")

    def _apply(self, key, images):
        shape = scaled_shape(images, self.scale)
        return map_pillow(lambda picture: resize_pillow(picture, shape, self.filter), images)


def scaled_shape(images: np.ndarray, scale: float) -> tuple[int, int]:
    """Height and width of a batch times `scale`, rounded, at least one pixel."""
    height, width = (max(1, round(scale * side)) for side in images.shape[1:3])
    return height, width
