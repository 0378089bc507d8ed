"""8-bit image files in and out."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fpjax.data.atomic import atomic_write


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
        with Image.open(path) as picture:
            if resolution is not None and picture.size != (resolution, resolution):
                width, height = picture.size
                raise ImageError(
                    f"{path}: the image is {width}x{height}, the generator makes "
                    f"{resolution}x{resolution}"
                )
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
    except (OSError, SyntaxError, ValueError) as error:
        raise ImageError(f"{path}: cannot be read ({error})") from error


def stack_images(images: Sequence[np.ndarray]) -> np.ndarray:
    """Stacks equal-sized (H, W, 3) uint8 images to (N, H, W, 3) float32 in [-1, 1]."""
    return from_uint8(np.stack(images))
