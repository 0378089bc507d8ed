"""8-bit image files in and out."""

from __future__ import annotations

import io
import os
import stat
import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from fpjax.errors import FpjaxError
from fpjax.io.atomic import atomic_write
from fpjax.io.colour import ColourError, avif_encoding, icc_to_srgb, png_encoding, to_srgb
from fpjax.io.text import printable

if TYPE_CHECKING:
    from PIL import Image
    from PIL.ImageFile import ImageFile as OpenedImage

# A closed list: other plugins of Pillow start programs or read half of a format.
_FORMATS = (
    *("PNG", "JPEG", "MPO", "WEBP", "AVIF", "JPEG2000", "GIF", "TIFF", "BMP"),
    *("PPM", "QOI", "ICO", "TGA"),  # the last one has no signature
)
_HEAD_BYTES = 1 << 16
_TURNS = {2: "mirrored", 3: "turned by 180 degrees", 4: "mirrored", 5: "mirrored and turned"}
_TURNS |= {6: "turned by 90 degrees", 7: "mirrored and turned", 8: "turned by 270 degrees"}
_ORIENTATION = 0x0112

# What Pillow's decoders raise on damaged files.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    ArithmeticError,
    TypeError,
    AttributeError,
    AssertionError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
)


class ImageError(FpjaxError, ValueError):
    """An image file that cannot be used; the message says which and why, on one line.

    >>> load_image("no-such-file.png")
    Traceback (most recent call last):
        ...
    fpjax.io.images.ImageError: ...
    """


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
    """Writes a colour (H, W, 3) or grey (H, W, 1) uint8 image in the format of the suffix.

    The name appears whole or not at all.

    Raises:
      ValueError: for another dtype or shape, or a suffix that is no image format.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_image(f"{folder}/grey.png", np.full((4, 6, 1), 9, np.uint8))
    ...     load_image(f"{folder}/grey.png", (4, 6, 1)).shape
    (4, 6, 1)
    """
    from PIL import Image

    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
        raise ValueError(f"image is {image.dtype} {image.shape}: expected uint8 (H, W, 1 or 3)")
    path = Path(path)
    suffix = path.suffix.lower()
    formats = Image.registered_extensions()
    if suffix not in formats:
        raise ValueError(f"{printable(path)}: {suffix or 'no suffix'} is no image format; try .png")
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(
        buffer, format=formats[suffix]
    )
    with atomic_write(path) as file:
        file.write(buffer.getvalue())


@dataclass(frozen=True)
class ImageFile:
    """A picture as a viewer shows it.

    Attributes:
      pixels: (H, W, 3) uint8, sRGB; (H, W, 1) if one channel was asked for.
      notes: what was done to the stored values to get there, each a few words; often empty.
    """

    pixels: np.ndarray
    notes: tuple[str, ...]


def load_image(
    path: str | os.PathLike, image_shape: tuple[int, int, int] | None = None
) -> np.ndarray:
    """The pixels that `read_image` gives, (H, W, 3) or (H, W, 1) uint8.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_image(f"{folder}/red.png", np.full((4, 6, 3), (255, 0, 0), np.uint8))
    ...     load_image(f"{folder}/red.png")[0, 0].tolist()
    [255, 0, 0]
    """
    return read_image(path, image_shape).pixels


def read_image(
    path: str | os.PathLike, image_shape: tuple[int, int, int] | None = None
) -> ImageFile:
    """Reads an 8-bit image file (PNG, JPEG, WebP, AVIF, ...) as viewers show it.

    The EXIF orientation is honoured and colours are converted to sRGB, from an ICC profile or from
    what a PNG or AVIF states; the notes say so. Stored sRGB values are given back exactly. Of an
    MPO the first picture is read, of an ICO the largest; 16-bit PNGs are taken if they hold 8-bit
    values.

    Args:
      path: the file; its content decides the format, not its name.
      image_shape: (height, width, channels) that the picture must have, channels 1 or 3; grey is
        made of colour if one is asked for. None takes any size, as RGB.

    Raises:
      ImageError: if it is missing, no regular file (a pipe is not waited for), broken, no image,
        not 8-bit, transparent, or of another size.
    """
    name = printable(path)
    if image_shape is not None and (len(image_shape) != 3 or image_shape[2] not in (1, 3)):
        raise ValueError(f"image_shape is {image_shape}: expected (height, width, 1 or 3)")
    from PIL import Image, UnidentifiedImageError

    try:
        with _open(path) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of files that are odd, but can be read
            Image.init()
            formats = [name for name in _FORMATS if name in Image.OPEN]
            with Image.open(file, formats=formats) as picture:
                return _read(picture, file, image_shape)
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such file") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: not an image file") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: refused, its pixels would not fit in memory") from error
    except ColourError as error:
        raise ImageError(f"{name}: {error}: convert it to sRGB") from error
    except _DECODER_ERRORS as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ImageError(f"{name}: cannot be read ({printable(reason)[:200]})") from error


def _open(path: str | os.PathLike) -> BinaryIO:
    """A regular file; opening a named pipe must not wait for its writer."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ImageError("no regular file, expected an image file")
    return os.fdopen(descriptor, "rb")


def _read(opened: OpenedImage, file: BinaryIO, image_shape) -> ImageFile:
    from PIL import Image, ImageOps

    picture: Image.Image = opened
    expected = None if image_shape is None else (image_shape[1], image_shape[0])
    if expected and sorted(picture.size) != sorted(expected):  # either way up
        raise _other_size(picture.size, expected)
    notes = [_frames(picture)]
    position = file.tell()  # decoders go on from where they are
    _check_depth(opened, file)
    encoding = png_encoding(file) if picture.format == "PNG" else None
    profile = picture.info.get("icc_profile")
    if picture.format == "JPEG2000":
        profile = _jp2_profile(file)
    elif picture.format == "AVIF" and not profile:
        encoding = avif_encoding(file)
    elif encoding is not None and encoding.name.endswith("(cICP)"):
        profile = None
    file.seek(position)
    sixteen = picture.format == "PNG" and any("16" in str(tile[3]) for tile in opened.tile)
    if sixteen:
        picture = _eight_of_sixteen(opened, file)
        notes.append("its 16-bit values are 8-bit ones")
    if picture.mode not in ("1", "RGB", "RGBA", "L", "LA", "P"):
        raise ImageError(f"mode {picture.mode} is not an 8-bit colour image")
    try:
        # Pillow turns a TIFF as it is loaded; EXIF data of a PNG may lie behind the pixels.
        orientation = picture.getexif().get(_ORIENTATION, 1) if picture.format == "TIFF" else None
        picture.load()
        orientation = orientation or picture.getexif().get(_ORIENTATION, 1)
        turned = ImageOps.exif_transpose(picture)
    except _DECODER_ERRORS:
        picture.load()  # raises again if it was this that failed
        orientation, turned = 1, picture
        notes.append("its EXIF data are damaged and were left out")
    if orientation in _TURNS:
        notes.append(f"{_TURNS[orientation]} as its EXIF orientation says")
    if expected and turned.size != expected:
        raise _other_size(turned.size, expected)
    alpha = "A" in turned.mode or "transparency" in turned.info
    if alpha and turned.convert("RGBA").getchannel("A").getextrema() != (255, 255):
        raise ImageError("the image has transparent pixels")
    grey = turned.mode in ("1", "L", "LA")
    flat = turned.convert("L" if grey else "RGB")
    if profile:
        flat, note = icc_to_srgb(flat, profile)
        notes.append(printable(note))
    elif encoding is not None:
        pixels = np.asarray(flat).reshape(*flat.size[::-1], -1)
        flat = Image.fromarray(
            to_srgb(pixels, encoding).squeeze(-1) if grey else to_srgb(pixels, encoding)
        )
        notes.append(f"converted to sRGB from {encoding.name}")
    if image_shape is not None and image_shape[2] == 1:
        pixels = np.asarray(flat.convert("L"))[..., None]
        if (np.asarray(flat.convert("RGB")) != pixels).any():
            notes.append("made grey")
    else:
        pixels = np.asarray(flat.convert("RGB"))
    return ImageFile(pixels, tuple(note for note in notes if note))


def _other_size(found: tuple[int, int], expected: tuple[int, int]) -> ImageError:
    found_text, expected_text = (f"{width}x{height}" for width, height in (found, expected))
    return ImageError(f"the image is {found_text}, the generator makes {expected_text}")


def _frames(picture: Image.Image) -> str:
    """A note if one of several pictures is taken; ImageError where none is the picture."""
    count = getattr(picture, "n_frames", 1)
    if picture.format == "ICO":
        count = len(picture.info.get("sizes", ()))
        return f"the largest of {count} pictures" if count > 1 else ""
    if count == 1:
        return ""
    if picture.format == "MPO":
        return f"the first of {count} pictures"
    raise ImageError(f"holds {count} frames, expected one image")


def _check_depth(picture: OpenedImage, file: BinaryIO) -> None:
    """ImageError for files of other than 8 bits that Pillow would round without a word."""
    args = str([tile[3] for tile in picture.tile])
    deep = ";16" in args and picture.format != "PNG"
    if picture.format == "PPM":
        ends = [tile[3] for tile in picture.tile if tile[0] in ("ppm", "ppm_plain")]
        maxima = [end[-1] for end in ends if end]
        deep = deep or any(type(value) is int and value not in (1, 255) for value in maxima)
    file.seek(0)
    head = file.read(_HEAD_BYTES)
    if picture.format == "JPEG2000":  # the SIZ marker states the depth of each component
        at = head.find(b"\xff\x4f\xff\x51")
        count = int.from_bytes(head[at + 40 : at + 42], "big")
        deep = at < 0 or any(depth & 0x7F != 7 for depth in head[at + 42 : at + 42 + 3 * count : 3])
    if picture.format == "AVIF":  # the configuration box has a bit for more than 8
        at = head.find(b"av1C")
        deep = at < 0 or bool(head[at + 6] & 0x40)
    if deep:
        raise ImageError("not 8 bits a channel, expected an 8-bit colour image")


def _eight_of_sixteen(picture: OpenedImage, file: BinaryIO) -> Image.Image:
    """A 16-bit PNG whose values are 257 times 8-bit ones, as those; ImageError for another."""
    from PIL import Image

    raw = str(picture.tile[0][3])
    if "transparency" in picture.info:
        raise ImageError("16 bits a channel and a transparent colour, expected 8 bits")
    if picture.mode == "I;16":
        values = np.asarray(picture)
        high, low = values >> 8, values & 255
    elif raw.startswith("LA"):
        pairs = np.asarray(_decoded(file, "RGBA", "RGBA"))  # its four bytes are the two values'
        high, low = pairs[..., ::2], pairs[..., 1::2]
    else:
        # Pillow takes the first byte of big-endian values, and the second of little-endian ones.
        high = np.asarray(picture)
        low = np.asarray(_decoded(file, picture.mode, f"{picture.mode};16L"))
    if not np.array_equal(high, low):
        raise ImageError("16 bits a channel, expected an 8-bit colour image")
    eight = Image.fromarray(np.ascontiguousarray(high, np.uint8))
    eight.info.update(picture.info)
    return eight


def _decoded(file: BinaryIO, mode: str, raw: str) -> Image.Image:
    """A PNG whose pixels are unpacked by another rule."""
    from PIL import Image

    file.seek(0)
    picture = Image.open(file, formats=("PNG",))
    picture._mode = mode
    picture.tile = [tile._replace(args=raw) for tile in picture.tile]
    picture.load()
    return picture


def _jp2_profile(file: BinaryIO) -> bytes | None:
    """The ICC profile of a JPEG 2000 file's colour box."""
    file.seek(0)
    head = file.read(_HEAD_BYTES * 64)
    at = head.find(b"colr")
    if at < 4 or head[at + 4 : at + 5] not in (b"\2", b"\3"):
        return None
    return head[at + 7 : at - 4 + int.from_bytes(head[at - 4 : at], "big")]
