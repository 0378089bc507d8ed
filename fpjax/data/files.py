"""8-bit image files in and out."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path

import numpy as np

from fpjax.data.atomic import atomic_write

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")

# What Pillow's decoders raise on damaged files.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    NotImplementedError,
    struct.error,
)


class ImageError(ValueError):
    """An image file that cannot be used; the message says which and why, on one line."""


def to_uint8(images) -> np.ndarray:
    """Rounds images in [-1, 1] (any shape, clipped) to 8-bit values.

    >>> to_uint8(np.array([-1.0, 0.0, 1.0, 2.0]))
    array([  0, 128, 255, 255], dtype=uint8)
    """
    scaled = np.asarray(images, np.float32) * 127.5 + 127.5
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def from_uint8(images) -> np.ndarray:
    """Maps 8-bit values to float32 in [-1, 1].

    >>> from_uint8(np.array([0, 255], np.uint8))
    array([-1.,  1.], dtype=float32)
    """
    return np.asarray(images, np.float32) / 127.5 - 1.0


def image_grid(images: np.ndarray, columns: int) -> np.ndarray:
    """Tiles (N, H, W, 3) images row by row into one, white where the last row is short.

    >>> image_grid(np.zeros((5, 2, 2, 3), np.uint8), 3).shape
    (4, 6, 3)
    """
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    filler = np.full((rows * columns - count, height, width, channels), 255, images.dtype)
    tiles = np.concatenate([images, filler]).reshape(rows, columns, height, width, channels)
    return tiles.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, channels)


def save_image(path: str | os.PathLike, image: np.ndarray) -> None:
    """Writes an (H, W, 3) uint8 image; the format follows the suffix, and the name appears whole.

    Raises:
      ValueError: for another dtype or shape, or a suffix that is no image format.
    """
    from PIL import Image

    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image is {image.dtype} {image.shape}: expected uint8 (H, W, 3)")
    path = Path(path)
    suffix = path.suffix.lower()
    formats = Image.registered_extensions()
    if suffix not in formats:
        raise ValueError(f"{path}: {suffix or 'no suffix'} is no image format; try .png")
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format=formats[suffix])
    with atomic_write(path) as file:
        file.write(buffer.getvalue())


def load_image(path: str | os.PathLike, resolution: int | None = None) -> np.ndarray:
    """Reads an 8-bit image file (PNG, JPEG, WebP, ...) as (H, W, 3) uint8.

    Args:
      path: the file; its content decides the format, not its name.
      resolution: if given, the side that the image must have.

    Raises:
      ImageError: if it is missing, broken, no image, not 8-bit, or of another size.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        # A closed list: other plugins of Pillow start programs or read half of a format.
        with Image.open(path, formats=_FORMATS) as picture:
            if resolution is not None and picture.size != (resolution, resolution):
                width, height = picture.size
                raise ImageError(
                    f"{path}: the image is {width}x{height}, the generator makes "
                    f"{resolution}x{resolution}"
                )
            if getattr(picture, "n_frames", 1) > 1:
                raise ImageError(f"{path}: holds {picture.n_frames} frames, expected one image")
            if any(";16" in str(tile[3]) for tile in picture.tile):
                raise ImageError(f"{path}: 16 bits a channel, expected an 8-bit colour image")
            if picture.mode not in ("RGB", "RGBA", "L", "LA", "P"):
                raise ImageError(f"{path}: mode {picture.mode} is not an 8-bit colour image")
            if "A" in picture.mode or "transparency" in picture.info:
                opaque = picture.convert("RGBA").getchannel("A").getextrema() == (255, 255)
                if not opaque:
                    raise ImageError(f"{path}: the image has transparent pixels")
            return np.asarray(picture.convert("RGB"))
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such file") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{path}: not an image file") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path}: refused, its pixels would not fit in memory") from error
    except _DECODER_ERRORS as error:
        raise ImageError(f"{path}: cannot be read ({error})") from error
