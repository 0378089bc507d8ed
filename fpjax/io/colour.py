"""Pictures in other colour spaces to sRGB: ICC profiles, and what PNG and AVIF say without one.

Generators make sRGB. A picture of the same colours in another space has other numbers, and would
be taken for another picture. What a file says is taken as viewers take it: an ICC profile wins,
in PNG the chunk cICP over it, then sRGB, then gAMA and cHRM (PNG specification, third edition).
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

SRGB_PRIMARIES = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
"""x and y of white, red, green and blue."""
SRGB_GAMMA = 1 / 2.2
_PRIMARIES = {  # ITU-T H.273, table 2
    1: ("BT.709", SRGB_PRIMARIES),
    9: ("BT.2020", (0.3127, 0.3290, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046)),
    12: ("Display P3", (0.3127, 0.3290, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060)),
}
_TRANSFERS = {1: "BT.709", 4: "gamma 2.2", 5: "gamma 2.8", 8: "linear", 13: "sRGB"}  # table 3
_TRANSFERS |= dict.fromkeys((6, 14, 15), "BT.709")
_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
_PROFILE_BYTES = 4 << 20  # real ones have 0.5 to 600 kB
_CHUNKS_BYTES = 1 << 20  # of all small chunks that are looked at
_HEAD_BYTES = 1 << 16
_SAME = 2  # 8-bit levels: profiles of sRGB differ by one, from rounding and white points


class ColourError(ValueError):
    """An encoding of colours that cannot be converted; the message says which."""


@dataclass(frozen=True)
class Encoding:
    """What a PNG or AVIF says of its colours.

    Attributes:
      name: in words.
      primaries: x and y of white, red, green and blue.
      linear: (256,) light of each 8-bit value, 0 to 1.
    """

    name: str
    primaries: tuple[float, ...]
    linear: np.ndarray


def icc_to_srgb(picture: Image.Image, profile: bytes) -> tuple[Image.Image, str]:
    """A picture (mode RGB or L) with its embedded ICC profile applied, as Pillow's ImageCms does.

    Returns:
      The picture in sRGB (the same one if the profile is sRGB's own), and a note of what was done,
      empty if nothing.
    """
    from PIL import Image, ImageCms

    if len(profile) > _PROFILE_BYTES:
        return picture, f"its ICC profile of {len(profile):,} bytes was left out"
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        name = ImageCms.getProfileDescription(source).strip()[:60] or "an unnamed profile"
        if source.profile.xcolor_space == "RGB ":  # pyright: ignore[reportAttributeAccessIssue]
            picture = picture.convert("RGB")
        convert = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            picture.mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.NOOPTIMIZE,  # the optimised tables are off by up to 10 levels
        )
        levels = np.arange(0, 256, 15).astype(np.uint8)
        if picture.mode == "RGB":
            grid = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
        else:
            grid = levels[None]
        swatch = Image.fromarray(grid)
        moved = np.asarray(ImageCms.applyTransform(swatch, convert), np.int16)
        if np.abs(moved - np.asarray(swatch.convert("RGB"), np.int16)).max() <= _SAME:
            return picture, ""
        converted = ImageCms.applyTransform(picture, convert)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return picture, "its ICC profile cannot be used and was left out"
    return converted or picture, f"converted to sRGB from its ICC profile ({name})"


def png_encoding(file: BinaryIO) -> Encoding | None:
    """What a PNG file says of its colours other than by an ICC profile; None where it is sRGB.

    Raises:
      ColourError: for high dynamic range, and primaries or transfers that are not known.
    """
    chunks = _chunks(file)
    if len(chunks.get(b"cICP", b"")) == 4:
        primaries, transfer, matrix, full = chunks[b"cICP"]
        if primaries not in _PRIMARIES or transfer not in _TRANSFERS or matrix or full != 1:
            numbers = "/".join(map(str, chunks[b"cICP"]))
            raise ColourError(f"its colours are coded as {numbers} (cICP)")
        if (primaries, transfer) == (1, 13):
            return None
        name, where = _PRIMARIES[primaries]
        return Encoding(f"{name}, {_TRANSFERS[transfer]} (cICP)", where, _linear(transfer))
    if b"iCCP" in chunks or b"sRGB" in chunks:
        return None
    primaries, gamma = SRGB_PRIMARIES, SRGB_GAMMA
    if len(chunks.get(b"cHRM", b"")) == 32:
        primaries = tuple(value / 100_000 for value in struct.unpack(">8L", chunks[b"cHRM"]))
    if len(chunks.get(b"gAMA", b"")) == 4:
        gamma = struct.unpack(">L", chunks[b"gAMA"])[0] / 100_000
    same_gamma = abs(gamma - SRGB_GAMMA) < 0.005  # 0.45455 stands for sRGB's curve
    same_primaries = np.abs(np.subtract(primaries, SRGB_PRIMARIES)).max() < 0.005
    if same_gamma and same_primaries:
        return None
    if not 0.01 <= gamma <= 10 or not _plausible(primaries):
        raise ColourError("its gamma or primaries (gAMA, cHRM) cannot be")
    curve = np.linspace(0, 1, 256) ** (1 / gamma) if b"gAMA" in chunks else _linear(13)
    names = [] if same_gamma else [f"gamma {gamma:g}"]
    names += [] if same_primaries else ["other primaries"]
    return Encoding(" and ".join(names), SRGB_PRIMARIES if same_primaries else primaries, curve)


def avif_encoding(file: BinaryIO) -> Encoding | None:
    """What an AVIF file without an ICC profile says of its colours; None where it is sRGB.

    BT.709's transfer and what is unspecified are taken as sRGB, as viewers do.

    Raises:
      ColourError: for high dynamic range, and primaries or transfers that are not known.
    """
    file.seek(0)
    head = file.read(_HEAD_BYTES)
    at = head.find(b"colrnclx")
    if at < 0 or len(head) < at + 14:
        return None
    primaries, transfer = struct.unpack_from(">2H", head, at + 8)
    transfer = 13 if transfer in (1, 2, 6, 14, 15) else transfer
    primaries = 1 if primaries in (2, 5, 6) else primaries
    if primaries not in _PRIMARIES or transfer not in _TRANSFERS:
        raise ColourError(f"its colours are coded as {primaries}/{transfer} (nclx)")
    if (primaries, transfer) == (1, 13):
        return None
    name, where = _PRIMARIES[primaries]
    return Encoding(f"{name}, {_TRANSFERS[transfer]} (nclx)", where, _linear(transfer))


def to_srgb(pixels: np.ndarray, encoding: Encoding) -> np.ndarray:
    """Pixels (H, W, 1 or 3) uint8 of an encoding, as sRGB of the same shape; clipped to its gamut.

    >>> linear = Encoding("linear", SRGB_PRIMARIES, np.linspace(0, 1, 256))
    >>> to_srgb(np.array([[[55, 55, 55]]], np.uint8), linear).tolist()
    [[[128, 128, 128]]]
    """
    light = encoding.linear.astype(np.float32)[pixels]
    if pixels.shape[-1] == 3 and encoding.primaries != SRGB_PRIMARIES:
        matrix = np.linalg.inv(_to_xyz(SRGB_PRIMARIES)) @ _to_xyz(encoding.primaries)
        light = np.clip(light @ matrix.T.astype(np.float32), 0, 1)
    curve = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.rint(curve * 255).astype(np.uint8)


def _linear(transfer: int) -> np.ndarray:
    value = np.linspace(0, 1, 256)
    name = _TRANSFERS[transfer]
    if name == "sRGB":
        return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    if name == "BT.709":
        return np.where(value < 0.081, value / 4.5, ((value + 0.099) / 1.099) ** (1 / 0.45))
    return value ** {"gamma 2.2": 2.2, "gamma 2.8": 2.8, "linear": 1.0}[name]


def _to_xyz(primaries: tuple[float, ...]) -> np.ndarray:
    """Linear RGB to XYZ under D65; another white is adapted by Bradford's matrix."""
    white, *colours = (_xyz(*pair) for pair in zip(primaries[::2], primaries[1::2], strict=True))
    matrix = np.stack(colours, 1)
    matrix = matrix * np.linalg.solve(matrix, white)
    wanted = _BRADFORD @ _xyz(*SRGB_PRIMARIES[:2])
    return np.linalg.inv(_BRADFORD) @ np.diag(wanted / (_BRADFORD @ white)) @ _BRADFORD @ matrix


def _xyz(x: float, y: float) -> np.ndarray:
    return np.array([x / y, 1.0, (1 - x - y) / y])


def _plausible(primaries: tuple[float, ...]) -> bool:
    if not all(
        0 <= x <= 1 and 0.01 <= y <= 1 for x, y in zip(primaries[::2], primaries[1::2], strict=True)
    ):
        return False
    (_, _), (rx, ry), (gx, gy), (bx, by) = zip(primaries[::2], primaries[1::2], strict=True)
    return abs((gx - rx) * (by - ry) - (bx - rx) * (gy - ry)) > 1e-3  # they span a triangle


def _chunks(file: BinaryIO) -> dict[bytes, bytes]:
    """The small chunks before the pixels of a PNG, by type; the first of each."""
    chunks: dict[bytes, bytes] = {}
    file.seek(8)
    total = 0
    while len(head := file.read(8)) == 8 and total < _CHUNKS_BYTES:
        length, kind = struct.unpack(">L4s", head)
        if kind in (b"IDAT", b"IEND"):
            break
        if length <= 64:
            chunks.setdefault(kind, file.read(length))
            file.seek(4, 1)
        else:
            chunks.setdefault(kind, b"")
            file.seek(length + 4, 1)
        total += 12 + min(length, 64)
    return chunks
