"""Parts of the picture that are painted over: erasing and stickers."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import numpy as np

from fpjax.attacks.base import Attack, number, round_to_uint8, uniform_per_image


def _rectangle(shape, area: float, aspect: float, place) -> tuple[slice, slice]:
    """A rectangle of about `area` of the picture at a drawn place, inside it."""
    height, width = shape
    pixels = area * height * width
    rows = min(height, max(1, round(math.sqrt(pixels / aspect))))
    columns = min(width, max(1, round(pixels / rows)))
    top = min(int(place[0] * (height - rows + 1)), height - rows)
    left = min(int(place[1] * (width - columns + 1)), width - columns)
    return slice(top, top + rows), slice(left, left + columns)


@dataclasses.dataclass(frozen=True)
class Erase(Attack):
    """Fills a rectangle at a random place with one grey level.

    The rectangle is as near to the ratio `aspect` as the picture and whole pixels allow, and its
    area is right to half a row.

    >>> import jax
    >>> image = np.full((1, 20, 20, 1), 9, np.uint8)
    >>> float((Erase(area=0.25)(jax.random.key(0), image) == 0).mean())
    0.25
    """

    name: ClassVar[str] = "erase"
    linear: ClassVar[bool] = True
    differentiable: ClassVar[bool] = True
    random: ClassVar[bool] = True
    source: ClassVar[str] = "An et al., WAVES, ICML 2024 (arXiv 2401.08573): area 0.05 to 0.25"

    area: float = number(0.1, 0.0, 1.0, "share of the picture")
    aspect: float = number(1.0, 0.05, 20.0, "width / height")
    fill: int = number(0, 0, 255, "grey level")

    def _apply(self, key, images):
        out = images.copy()
        if self.area == 0:
            return out
        for index, place in enumerate(uniform_per_image(key, len(images), 2)):
            rectangle = _rectangle(images.shape[1:3], self.area, self.aspect, place)
            out[(index, *rectangle)] = self.fill
        return out


@dataclasses.dataclass(frozen=True)
class Overlay(Attack):
    """Blends an ellipse of a random colour into a random place: a sticker, a logo.

    `area` is that of the rectangle around the ellipse.

    >>> import jax
    >>> image = np.full((1, 20, 20, 3), 9, np.uint8)
    >>> bool((Overlay(opacity=0.0)(jax.random.key(0), image) == image).all())
    True
    """

    name: ClassVar[str] = "overlay"
    linear: ClassVar[bool] = True
    differentiable: ClassVar[bool] = True
    random: ClassVar[bool] = True
    source: ClassVar[str] = "Bitton & Papakipos, AugLy, 2022 (arXiv 2201.06494)"

    area: float = number(0.1, 0.0, 1.0, "share of the picture")
    opacity: float = number(0.8, 0.0, 1.0, "share of the sticker's colour in the blend")
    aspect: float = number(1.0, 0.05, 20.0, "width / height")

    def _apply(self, key, images):
        out = images.copy()
        if self.area == 0:
            return out
        channels = images.shape[3]
        for index, drawn in enumerate(uniform_per_image(key, len(images), 5)):
            rectangle = _rectangle(images.shape[1:3], self.area, self.aspect, drawn)
            window = out[(index, *rectangle)]
            weight = self.opacity * _ellipse(window.shape[:2])[..., None]
            colour = np.floor(256 * drawn[2 : 2 + channels])
            out[(index, *rectangle)] = round_to_uint8(window * (1 - weight) + weight * colour)
        return out


def _ellipse(shape: tuple[int, int]) -> np.ndarray:
    """1 inside the ellipse that touches the sides of the rectangle, 0 outside."""
    rows, columns = (((np.arange(n) + 0.5) / n * 2 - 1) ** 2 for n in shape)
    return (rows[:, None] + columns <= 1).astype(np.float64)
