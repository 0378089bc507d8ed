"""Lossy files: JPEG, WebP, AVIF, JPEG twice, screenshots. All encoded and decoded by Pillow."""

from __future__ import annotations

import dataclasses
import io
from typing import ClassVar

import numpy as np

from fpjax.attacks.base import (
    Attack,
    AttackError,
    check_images,
    choice,
    from_pillow,
    map_pillow,
    number,
    to_pillow,
)
from fpjax.attacks.resize import FILTERS, resize_pillow, scaled_shape

SUBSAMPLINGS = ("4:4:4", "4:2:2", "4:2:0")


class Codec(Attack):
    """An attack that writes a file: `encode` gives its bytes, calling it reads them back.

    Class attributes:
      suffix: of the files, for example ".jpg".
    """

    suffix: ClassVar[str]
    linear: ClassVar[bool] = False
    differentiable: ClassVar[bool] = False

    def encode(self, image) -> bytes:
        """The file of one (H, W, C) uint8 image.

        Raises:
          AttackError: for an image that is not uint8 with 1 or 3 channels.
        """
        image = np.asarray(image)[None]
        return self._encode(to_pillow(check_images(image, self.label, self.channels)[0]))

    def _encode(self, picture) -> bytes:
        raise NotImplementedError

    def _apply(self, key, images):
        return map_pillow(lambda picture: decode(self._encode(picture)), images)


def decode(data: bytes):
    """The Pillow image in a file's bytes."""
    from PIL import Image

    picture = Image.open(io.BytesIO(data))
    picture.load()
    return picture


def encode_jpeg(picture, quality: int, subsampling: str) -> bytes:
    """A Pillow image (mode L or RGB) as baseline JPEG with libjpeg's tables for `quality`."""
    buffer = io.BytesIO()
    options = {} if picture.mode == "L" else {"subsampling": subsampling}
    picture.save(buffer, "JPEG", quality=quality, **options)
    return buffer.getvalue()


@dataclasses.dataclass(frozen=True)
class Jpeg(Codec):
    """Baseline JPEG. Subsampling means nothing for one channel.

    >>> attack = Jpeg(quality=75, subsampling="4:2:0")
    >>> attack.encode(np.zeros((16, 24, 3), np.uint8))[:2].hex()
    'ffd8'
    """

    name: ClassVar[str] = "jpeg"
    suffix: ClassVar[str] = ".jpg"
    source: ClassVar[str] = "Nie et al., ICML 2023 (arXiv 2304.09752): quality 50"

    quality: int = number(75, 1, 100, "libjpeg's quality")
    subsampling: str = choice("4:2:0", SUBSAMPLINGS, "chroma subsampling")

    def _encode(self, picture):
        return encode_jpeg(picture, self.quality, self.subsampling)


@dataclasses.dataclass(frozen=True)
class DoubleJpeg(Codec):
    """JPEG at one quality, decoded, and JPEG again at another, on the same grid of blocks.

    >>> DoubleJpeg(first=60, second=90).encode(np.zeros((16, 24, 3), np.uint8))[:2].hex()
    'ffd8'
    """

    name: ClassVar[str] = "double_jpeg"
    suffix: ClassVar[str] = ".jpg"
    source: ClassVar[str] = "Popescu & Farid, Statistical Tools for Digital Forensics, IH 2004"

    first: int = number(75, 1, 100, "libjpeg's quality")
    second: int = number(85, 1, 100, "libjpeg's quality")
    subsampling: str = choice("4:2:0", SUBSAMPLINGS, "chroma subsampling, both times")

    def _encode(self, picture):
        once = decode(encode_jpeg(picture, self.first, self.subsampling))
        return encode_jpeg(once, self.second, self.subsampling)


@dataclasses.dataclass(frozen=True)
class WebP(Codec):
    """Lossy WebP, which always subsamples chroma 4:2:0. One channel is stored as grey colour.

    >>> WebP(quality=80).encode(np.zeros((16, 24, 3), np.uint8))[8:12]
    b'WEBP'
    """

    name: ClassVar[str] = "webp"
    suffix: ClassVar[str] = ".webp"
    source: ClassVar[str] = "RFC 9649, WebP Image Format"

    quality: int = number(80, 0, 100, "libwebp's quality")

    def _encode(self, picture):
        _require("webp", "WebP")
        buffer = io.BytesIO()
        picture.save(buffer, "WEBP", quality=self.quality)
        return buffer.getvalue()


@dataclasses.dataclass(frozen=True)
class Avif(Codec):
    """AVIF. One channel is stored as grey colour.

    `speed` is the encoder's (0 slow, 10 fast); it changes the picture, so it is a parameter.

    >>> Avif(quality=60).encode(np.zeros((16, 24, 3), np.uint8))[4:12]
    b'ftypavif'
    """

    name: ClassVar[str] = "avif"
    suffix: ClassVar[str] = ".avif"
    source: ClassVar[str] = "AV1 Image File Format 1.2, Alliance for Open Media"

    quality: int = number(75, 0, 100, "libavif's quality")
    subsampling: str = choice("4:2:0", SUBSAMPLINGS, "chroma subsampling")
    speed: int = number(6, 0, 10, "libavif's speed")

    def _encode(self, picture):
        _require("avif", "AVIF")
        buffer = io.BytesIO()
        # One thread: the encoder's tiles, and with them the bytes, depend on the number of threads.
        picture.convert("RGB").save(
            buffer,
            "AVIF",
            quality=self.quality,
            subsampling=self.subsampling,
            speed=self.speed,
            max_threads=1,
        )
        return buffer.getvalue()


def _require(feature: str, name: str) -> None:
    from PIL import features

    if not features.check(feature):
        raise AttackError(
            f"this build of Pillow cannot write {name}; install Pillow from the package index, "
            "whose wheels can"
        )


@dataclasses.dataclass(frozen=True)
class Screenshot(Attack):
    """A picture shown at another size and captured: resized, JPEG, and resized back.

    >>> Screenshot(scale=0.8)(None, np.zeros((1, 30, 20, 3), np.uint8)).shape
    (1, 30, 20, 3)
    """

    name: ClassVar[str] = "screenshot"
    linear: ClassVar[bool] = False
    differentiable: ClassVar[bool] = False
    source: ClassVar[str] = "An et al., WAVES, ICML 2024 (arXiv 2401.08573), combined distortions"

    scale: float = number(0.8, 0.05, 4.0, "side on the screen / side of the picture")
    quality: int = number(85, 1, 100, "libjpeg's quality")
    subsampling: str = choice("4:2:0", SUBSAMPLINGS, "chroma subsampling")
    filter: str = choice("bilinear", FILTERS, "interpolation, both times")

    def _apply(self, key, images):
        channels = images.shape[3]
        shape = scaled_shape(images, self.scale)
        out = []
        for image in images:
            shown = resize_pillow(to_pillow(image), shape, self.filter)
            captured = decode(encode_jpeg(shown, self.quality, self.subsampling))
            out.append(from_pillow(resize_pillow(captured, image.shape[:2], self.filter), channels))
        return np.stack(out)
