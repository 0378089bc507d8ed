"""Neighbourhood filters: Gaussian, median and box blur, sharpening."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from fpjax.attacks.base import Attack, number, round_to_uint8


def gaussian_kernel(sigma: float, size: int) -> np.ndarray:
    """Samples of a Gaussian at whole pixels, of odd length `size`, that sum to one.

    >>> gaussian_kernel(0.5, 3).round(4)
    array([0.1065, 0.787 , 0.1065])
    """
    distance = np.arange(size) - (size - 1) / 2
    weights = np.exp(-0.5 * (distance / sigma) ** 2)
    return weights / weights.sum()


@dataclasses.dataclass(frozen=True)
class GaussianBlur(Attack):
    """Convolution with a Gaussian of `size` x `size` samples, edges mirrored without repetition.

    The default is the blur of the published StyleGAN2 protocol: sigma 0.5, 25 x 25 samples.

    >>> image = np.zeros((1, 5, 5, 1), np.uint8); image[0, 2, 2] = 255
    >>> GaussianBlur(sigma=0.5, size=3)(None, image)[0, 2, :, 0]
    array([  0,  21, 158,  21,   0], dtype=uint8)
    """

    name: ClassVar[str] = "gaussian_blur"
    linear: ClassVar[bool] = True
    differentiable: ClassVar[bool] = True
    source: ClassVar[str] = "Nie et al., ICML 2023 (arXiv 2304.09752): sigma 0.5, 25 x 25"

    sigma: float = number(0.5, 0.05, 20.0, "pixels")
    size: int = number(25, 1, 201, "samples along each side, odd", odd=True)

    def _apply(self, key, images):
        from scipy.ndimage import correlate1d

        kernel = gaussian_kernel(self.sigma, self.size)
        values = images.astype(np.float64)
        for axis in (1, 2):
            values = correlate1d(values, kernel, axis, mode="mirror")
        return round_to_uint8(values)


@dataclasses.dataclass(frozen=True)
class BoxBlur(Attack):
    """Mean over squares of `size` x `size` pixels, edges repeated.

    >>> image = np.zeros((1, 5, 5, 1), np.uint8); image[0, 2, 2] = 255
    >>> BoxBlur(size=3)(None, image)[0, 2, :, 0]
    array([ 0, 28, 28, 28,  0], dtype=uint8)
    """

    name: ClassVar[str] = "box_blur"
    linear: ClassVar[bool] = True
    differentiable: ClassVar[bool] = True
    source: ClassVar[str] = "Pan et al., MarkDiffusion, 2025 (arXiv 2509.10569)"

    size: int = number(3, 1, 51, "pixels along each side, odd", odd=True)

    def _apply(self, key, images):
        from scipy.ndimage import uniform_filter

        values = images.astype(np.float64)
        return round_to_uint8(uniform_filter(values, self.size, mode="nearest", axes=(1, 2)))


@dataclasses.dataclass(frozen=True)
class MedianBlur(Attack):
    """Median over squares of `size` x `size` pixels, each channel by itself, edges repeated.

    >>> image = np.zeros((1, 5, 5, 1), np.uint8); image[0, 2, 2] = 255
    >>> int(MedianBlur(size=3)(None, image).max())
    0
    """

    name: ClassVar[str] = "median_blur"
    linear: ClassVar[bool] = False
    differentiable: ClassVar[bool] = True
    source: ClassVar[str] = "Yang et al., Gaussian Shading, CVPR 2024 (arXiv 2404.04956): size 7"

    size: int = number(3, 1, 51, "pixels along each side, odd", odd=True)

    def _apply(self, key, images):
        from scipy.ndimage import median_filter

        return median_filter(images, (1, self.size, self.size, 1), mode="nearest")


@dataclasses.dataclass(frozen=True)
class Sharpen(Attack):
    """Unsharp masking: adds `amount` times the difference from a Gaussian blur.

    >>> flat = np.full((1, 6, 6, 3), 90, np.uint8)
    >>> bool((Sharpen(amount=2.0)(None, flat) == flat).all())
    True
    """

    name: ClassVar[str] = "sharpen"
    linear: ClassVar[bool] = True
    differentiable: ClassVar[bool] = True
    source: ClassVar[str] = "Gonzalez & Woods, Digital Image Processing, section 3.6"

    amount: float = number(1.0, 0.0, 10.0, "share of the removed detail that is added")
    sigma: float = number(1.0, 0.05, 20.0, "pixels")

    def _apply(self, key, images):
        from scipy.ndimage import gaussian_filter

        values = images.astype(np.float64)
        blurred = gaussian_filter(values, (0, self.sigma, self.sigma, 0), mode="mirror")
        return round_to_uint8(values + self.amount * (values - blurred))
