"""Changes of tone and colour, pixel by pixel: brightness, contrast, saturation, hue, gamma, ..."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from fpjax.attacks.base import Attack, map_pillow, number, round_to_uint8

_WAVES = "An et al., WAVES, ICML 2024 (arXiv 2401.08573): up to 2"
_MARKDIFFUSION = "Pan et al., MarkDiffusion, 2025 (arXiv 2509.10569)"


@dataclasses.dataclass(frozen=True)
class Brightness(Attack):
    """Multiplies all values by a factor.

    >>> Brightness(factor=1.5)(None, np.full((1, 1, 1, 1), 100, np.uint8)).item()
    150
    """

    name: ClassVar[str] = "brightness"
    linear: ClassVar[bool] = True
    differentiable: ClassVar[bool] = True
    source: ClassVar[str] = _WAVES

    factor: float = number(1.1, 0.0, 10.0, "1 leaves the picture as it is")

    def _apply(self, key, images):
        from PIL import ImageEnhance

        return map_pillow(lambda p: ImageEnhance.Brightness(p).enhance(self.factor), images)


@dataclasses.dataclass(frozen=True)
class Contrast(Attack):
    """Multiplies the distance of all values from the picture's mean grey by a factor.

    >>> image = np.array([90, 110], np.uint8).reshape(1, 1, 2, 1)
    >>> Contrast(factor=0.5)(None, image).ravel().tolist()
    [95, 105]
    """

    name: ClassVar[str] = "contrast"
    linear: ClassVar[bool] = True
    differentiable: ClassVar[bool] = True
    source: ClassVar[str] = _WAVES

    factor: float = number(0.9, 0.0, 10.0, "1 leaves the picture as it is")

    def _apply(self, key, images):
        from PIL import ImageEnhance

        return map_pillow(lambda p: ImageEnhance.Contrast(p).enhance(self.factor), images)


@dataclasses.dataclass(frozen=True)
class Saturation(Attack):
    """Multiplies the distance of each pixel from its own grey by a factor.

    >>> image = np.array([200, 100, 100], np.uint8).reshape(1, 1, 1, 3)
    >>> Saturation(factor=0.0)(None, image).ravel().tolist()
    [130, 130, 130]
    """

    name: ClassVar[str] = "saturation"
    linear: ClassVar[bool] = True
    differentiable: ClassVar[bool] = True
    channels: ClassVar[tuple[int, ...]] = (3,)
    source: ClassVar[str] = _MARKDIFFUSION

    factor: float = number(1.2, 0.0, 10.0, "1 leaves the picture as it is")

    def _apply(self, key, images):
        from PIL import ImageEnhance

        return map_pillow(lambda p: ImageEnhance.Color(p).enhance(self.factor), images)


@dataclasses.dataclass(frozen=True)
class Hue(Attack):
    """Turns the hue circle, in Pillow's 8-bit HSV.

    >>> image = np.array([200, 100, 100], np.uint8).reshape(1, 1, 1, 3)
    >>> Hue(turns=0.5)(None, image).ravel().tolist()
    [100, 199, 200]
    """

    name: ClassVar[str] = "hue"
    linear: ClassVar[bool] = False
    differentiable: ClassVar[bool] = True
    channels: ClassVar[tuple[int, ...]] = (3,)
    source: ClassVar[str] = _MARKDIFFUSION

    turns: float = number(0.05, -0.5, 0.5, "turns of the hue circle")

    def _apply(self, key, images):
        from PIL import Image

        step = round(self.turns * 256)
        if step % 256 == 0:
            return images.copy()  # HSV of 8 bits would still round the colours.

        def turn(picture):
            hue, saturation, value = picture.convert("HSV").split()
            turned = Image.fromarray(((np.asarray(hue).astype(int) + step) % 256).astype(np.uint8))
            return Image.merge("HSV", (turned, saturation, value)).convert("RGB")

        return map_pillow(turn, images)


@dataclasses.dataclass(frozen=True)
class Gamma(Attack):
    """Raises values, as shares of 255, to a power: above 1 darkens.

    >>> Gamma(gamma=2.0)(None, np.full((1, 1, 1, 1), 51, np.uint8)).item()
    10
    """

    name: ClassVar[str] = "gamma"
    linear: ClassVar[bool] = False
    differentiable: ClassVar[bool] = True
    source: ClassVar[str] = _MARKDIFFUSION

    gamma: float = number(1.2, 0.1, 10.0, "exponent; 1 leaves the picture as it is")

    def _apply(self, key, images):
        table = round_to_uint8(255 * (np.arange(256) / 255) ** self.gamma)
        return table[images]


@dataclasses.dataclass(frozen=True)
class Grey(Attack):
    """Replaces each pixel by its luma (ITU-R BT.601), in all three channels.

    >>> image = np.array([200, 100, 100], np.uint8).reshape(1, 1, 1, 3)
    >>> Grey()(None, image).ravel().tolist()
    [130, 130, 130]
    """

    name: ClassVar[str] = "grey"
    linear: ClassVar[bool] = True
    differentiable: ClassVar[bool] = True
    source: ClassVar[str] = _MARKDIFFUSION

    def _apply(self, key, images):
        return map_pillow(lambda picture: picture.convert("L"), images)


@dataclasses.dataclass(frozen=True)
class Posterise(Attack):
    """Keeps the highest `bits` bits of each value and clears the others.

    >>> Posterise(bits=2)(None, np.full((1, 1, 1, 1), 201, np.uint8)).item()
    192
    """

    name: ClassVar[str] = "posterise"
    linear: ClassVar[bool] = False
    differentiable: ClassVar[bool] = False
    source: ClassVar[str] = "Cubuk et al., AutoAugment, CVPR 2019 (arXiv 1805.09501)"

    bits: int = number(4, 1, 8, "bits kept of 8")

    def _apply(self, key, images):
        from PIL import ImageOps

        return map_pillow(lambda picture: ImageOps.posterize(picture, self.bits), images)
