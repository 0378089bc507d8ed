"""What a JPEG file says about itself: tables, sampling, quality, and the coefficients it stores.

The coefficients are the measurement that a JPEG file is. Decoded pixels are a lossy copy of it
(clipped, rounded, chroma interpolated), so an observation compares coefficients:

>>> import numpy as np, jax.numpy as jnp
>>> from fpjax.attacks import Jpeg
>>> from fpjax.io.jpeg_dct import jpeg_coefficients, quantisation_steps
>>> picture = np.random.default_rng(0).integers(0, 256, (40, 56, 3)).astype(np.uint8)
>>> file = Jpeg(quality=50).encode(picture)
>>> header = read_jpeg_header(file)
>>> header.layout.subsampling, header.quality, header.standard
('4:2:0', 50, True)
>>> true = jpeg_coefficients(jnp.asarray(picture, jnp.float32) / 127.5 - 1, header.layout)
>>> steps = quantisation_steps(header.layout, header.tables)
>>> error = (dequantised_coefficients(file) - true) / steps
>>> bool(np.abs(error).max() < 0.6)   # half a step, and the rounding of luma and chroma
True

See `fpjax.io.jpeg_dct` for the layout, the linear map and the noise.
"""

from __future__ import annotations

import dataclasses
import io
import os
import tempfile
from pathlib import Path

import numpy as np

from fpjax.io.jpeg_dct import JpegError, JpegLayout

# ITU-T T.81, Annex K.1: the example tables, which libjpeg scales by its quality.
_LUMA = (
    "16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 "
    "14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62 "
    "18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 "
    "72 92 95 98 112 100 103 99"
)
_CHROMA_CORNER = ((17, 18, 24, 47), (18, 21, 26, 66), (24, 26, 56, 99), (47, 66, 99, 99))

# What Pillow's decoder raises on damaged files.
_DECODER_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError)


def standard_tables(quality: int) -> np.ndarray:
    """libjpeg's tables for luma and chroma at a quality of 1 to 100.

    Returns:
      int32, (2, 8, 8); the first index of a table is the vertical frequency.

    Raises:
      JpegError: for another quality.

    >>> standard_tables(50)[0, 0, :4].tolist(), standard_tables(90)[1, 0, 0].item()
    ([16, 11, 10, 16], 3)
    """
    if not 1 <= quality <= 100:
        raise JpegError(f"quality is {quality}, expected 1 to 100")
    chroma = np.full((8, 8), 99)
    chroma[:4, :4] = _CHROMA_CORNER
    base = np.stack([np.array(_LUMA.split(), int).reshape(8, 8), chroma])
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return np.clip((base * percent + 50) // 100, 1, 255).astype(np.int32)


@dataclasses.dataclass(frozen=True, eq=False)
class JpegHeader:
    """What the header of a JPEG file says.

    Attributes:
      layout: size, sampling factors and colour of the components.
      tables: int32, (components, 8, 8): quantisation steps of each component; the first index is
        the vertical frequency.
      progressive: whether the coefficients come in several scans (they are no others for that).
      quality: of the libjpeg tables that are nearest, 1 to 100.
      standard: whether the tables are exactly libjpeg's at that quality.
    """

    layout: JpegLayout
    tables: np.ndarray
    progressive: bool
    quality: int
    standard: bool


def nearest_quality(tables) -> tuple[int, bool]:
    """The quality whose libjpeg tables are nearest to (components, 8, 8) tables, and if they agree.

    Nearest in the mean absolute logarithm of the ratio; the highest of several.

    >>> nearest_quality(standard_tables(83)[[0, 1, 1]])
    (83, True)
    """
    tables = np.asarray(tables)
    expected = np.stack([standard_tables(q) for q in range(1, 101)])
    expected = expected[:, [min(c, 1) for c in range(len(tables))]]
    distance = np.abs(np.log(expected / tables)).mean((1, 2, 3))
    best = 99 - int(np.argmin(distance[::-1]))
    return best + 1, bool(np.array_equal(expected[best], tables))


def _read(source: str | os.PathLike | bytes) -> tuple[bytes, str]:
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source), "JPEG data"
    try:
        return Path(source).read_bytes(), str(source)
    except OSError as error:
        raise JpegError(f"{source}: cannot be read ({error.strerror or error})") from error


def read_jpeg_header(source: str | os.PathLike | bytes) -> JpegHeader:
    """Reads the header of a JPEG file, and decodes it once to see that it is whole.

    Args:
      source: a path, or the bytes of a file.

    Raises:
      JpegError: if it is missing, damaged, no JPEG file, has four components (CMYK), or a layout
        that `JpegLayout` refuses.
    """
    return _header(*_read(source))


def _header(data: bytes, name: str) -> JpegHeader:
    from PIL import Image, UnidentifiedImageError
    from PIL.JpegImagePlugin import JpegImageFile

    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as picture:
            assert isinstance(picture, JpegImageFile)  # The only format asked for.
            layers, tables = list(picture.layer), dict(picture.quantization)
            info, (width, height) = dict(picture.info), picture.size
            picture.load()
    except UnidentifiedImageError as error:
        raise JpegError(f"{name}: not a JPEG file") from error
    except Image.DecompressionBombError as error:
        raise JpegError(f"{name}: refused, its pixels would not fit in memory") from error
    except _DECODER_ERRORS as error:
        raise JpegError(f"{name}: cannot be decoded ({error})") from error
    if len(layers) not in (1, 3):
        raise JpegError(f"{name}: {len(layers)} components, expected 1 (grey) or 3 (colour)")
    try:
        steps = [np.array(tables[layer[3]], np.int32).reshape(8, 8) for layer in layers]
        sampling = tuple((layer[1], layer[2]) for layer in layers)
        layout = JpegLayout(height, width, sampling, _colour(layers, info))
    except (KeyError, ValueError) as error:
        raise JpegError(f"{name}: {error}") from error
    if min(table.min() for table in steps) < 1:
        raise JpegError(f"{name}: a quantisation table holds a step of 0")
    quality, standard = nearest_quality(steps)
    progressive = bool(info.get("progressive"))
    return JpegHeader(layout, np.stack(steps), progressive, quality, standard)


def _colour(layers, info) -> str:
    """The meaning of the components, by libjpeg's rules (JFIF, then Adobe, then their names)."""
    if len(layers) == 1:
        return "grey"
    if "jfif" in info:
        return "ycbcr"
    if "adobe_transform" in info:
        return "rgb" if info["adobe_transform"] == 0 else "ycbcr"
    names = [layer[0] for layer in layers]
    return "rgb" if names in ([0x52, 0x47, 0x42], ["R", "G", "B"]) else "ycbcr"


def stored_coefficients(source: str | os.PathLike | bytes) -> list[np.ndarray]:
    """The whole numbers that a JPEG file stores, read by libjpeg without decoding to pixels.

    Returns:
      One int16 (rows, columns, 8, 8) array for each component. The first index within a block is
      the vertical frequency.

    Raises:
      JpegError: as `read_jpeg_header`.
      ImportError: if the package `jpeglib` is not installed.

    >>> from fpjax.attacks import Jpeg
    >>> [part.shape for part in stored_coefficients(Jpeg().encode(np.zeros((24, 40, 3), np.uint8)))]
    [(3, 5, 8, 8), (2, 3, 8, 8), (2, 3, 8, 8)]
    """
    data, name = _read(source)
    return _stored(data, name, _header(data, name))


def _stored(data: bytes, name: str, header: JpegHeader) -> list[np.ndarray]:
    try:
        import jpeglib
    except ImportError as error:
        raise ImportError(
            "reading the coefficients of JPEG files takes the package jpeglib: "
            "pip install 'fpjax[jpeg]'"
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.jpg"  # jpeglib reads paths only.
        path.write_bytes(data)
        try:
            picture = jpeglib.read_dct(str(path))
            parts = [picture.Y, picture.Cb, picture.Cr][: len(header.layout.sampling)]
        except OSError as error:
            raise JpegError(f"{name}: its coefficients cannot be read") from error
    shapes = tuple(part.shape[:2] for part in parts)
    if shapes != header.layout.block_grids:
        raise JpegError(
            f"{name}: holds blocks {shapes}, but its header says {header.layout.block_grids}"
        )
    return [np.array(part, np.int16) for part in parts]


def dequantised_coefficients(source: str | os.PathLike | bytes) -> np.ndarray:
    """The coefficients that a JPEG file stores times its tables, as `jpeg_coefficients` gives them.

    The zero of `jpeg_coefficients` is mid-grey, 127.5, while files count from 128: half a level is
    added to luma (to all components of stored RGB), that is 4 to the first coefficient of a block.

    Args:
      source: a path, or the bytes of a file.

    Returns:
      float32, (layout.num_coefficients,), in 8-bit levels.

    Raises:
      JpegError: as `read_jpeg_header`.
      ImportError: if the package `jpeglib` is not installed.
    """
    data, name = _read(source)
    header = _header(data, name)
    flat = []
    for index, part in enumerate(_stored(data, name, header)):
        values = part.astype(np.float32) * header.tables[index].astype(np.float32)
        if index == 0 or header.layout.colour == "rgb":
            values[..., 0, 0] += 4
        flat.append(values.reshape(-1))
    return np.concatenate(flat)
