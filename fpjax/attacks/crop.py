"""Crops: a window of the picture on a plain ground, or enlarged to the picture's size."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from fpjax.attacks.base import (
    Attack,
    choice,
    from_pillow,
    number,
    to_pillow,
    uniform_per_image,
)
from fpjax.attacks.resize import FILTERS, resize_pillow

POSITIONS = ("random", "centre")


def windows(key, shape: tuple[int, int, int], side: float, position: str) -> list[tuple]:
    """One window a picture, as (top, left, height, width) in whole pixels.

    Args:
      key: PRNG key; used by "random" alone.
      shape: (B, H, W).
      side: side of the window / side of the picture; at least one pixel is kept.
      position: "random" (uniform over all places) or "centre".
    """
    count, height, width = shape
    kept_height, kept_width = (max(1, round(side * length)) for length in (height, width))
    spare = np.array([height - kept_height, width - kept_width])
    if position == "centre":
        corners = np.tile(spare // 2, (count, 1))
    else:
        drawn = (uniform_per_image(key, count, 2) * (spare + 1)).astype(int)
        corners = np.minimum(drawn, spare)  # A draw that rounds up to one stays inside.
    return [(int(top), int(left), kept_height, kept_width) for top, left in corners]


@dataclasses.dataclass(frozen=True)
class CropPad(Attack):
    """Keeps a window where it is and fills everything around it with one grey level.

    >>> import jax
    >>> image = np.full((1, 10, 20, 3), 200, np.uint8)
    >>> out = CropPad(side=0.5, position="centre", fill=0)(jax.random.key(0), image)
    >>> float((out == 200).mean())
    0.25
    """

    name: ClassVar[str] = "crop_pad"
    linear: ClassVar[bool] = True
    differentiable: ClassVar[bool] = True
    random: ClassVar[bool] = True
    source: ClassVar[str] = "Yang et al., Gaussian Shading, CVPR 2024 (arXiv 2404.04956)"

    side: float = number(0.9, 0.05, 1.0, "side kept / side of the picture")
    position: str = choice("random", POSITIONS, "place of the window")
    fill: int = number(0, 0, 255, "grey level around the window")

    def _apply(self, key, images):
        out = np.full_like(images, self.fill)
        places = windows(key, images.shape[:3], self.side, self.position)
        for index, (top, left, height, width) in enumerate(places):
            window = (index, slice(top, top + height), slice(left, left + width))
            out[window] = images[window]
        return out


@dataclasses.dataclass(frozen=True)
class CropResize(Attack):
    """Keeps a window and enlarges it to the size of the picture.

    >>> import jax
    >>> image = np.full((1, 10, 20, 3), 200, np.uint8)
    >>> CropResize(side=0.5)(jax.random.key(0), image).shape
    (1, 10, 20, 3)
    """

    name: ClassVar[str] = "crop_resize"
    linear: ClassVar[bool] = True
    differentiable: ClassVar[bool] = True
    random: ClassVar[bool] = True
    source: ClassVar[str] = "An et al., WAVES, ICML 2024 (arXiv 2401.08573), resized crop"

    side: float = number(0.9, 0.05, 1.0, "side kept / side of the picture")
    position: str = choice("random", POSITIONS, "place of the window")
    filter: str = choice("bicubic", FILTERS, "interpolation")

    def _apply(self, key, images):
        out = np.empty_like(images)
        places = windows(key, images.shape[:3], self.side, self.position)
        for index, (top, left, height, width) in enumerate(places):
            window = to_pillow(images[index, top : top + height, left : left + width])
            enlarged = resize_pillow(window, images.shape[1:3], self.filter)
            out[index] = from_pillow(enlarged, images.shape[3])
        return out
