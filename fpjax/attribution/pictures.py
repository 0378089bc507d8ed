"""One file as it is known: its pixels, what it says of its own history, and observations of it."""

from __future__ import annotations

import dataclasses
import os

import jax
import numpy as np

from fpjax.fingerprint.scheme import Scheme
from fpjax.inversion.degradation import Degradation
from fpjax.inversion.noise_power import NoisePower, noise_power
from fpjax.inversion.observation import Gaussian, Observation, Rounded8Bit
from fpjax.inversion.observation_filtered import Filter, Filtered
from fpjax.inversion.observation_jpeg import Jpeg
from fpjax.inversion.problem import Problem, shown
from fpjax.io.images import from_uint8, read_image
from fpjax.io.jpeg import JpegHeader, read_jpeg_header
from fpjax.io.jpeg_dct import JpegError
from fpjax.io.jpeg_history import JpegStatus, estimate_jpeg_tables
from fpjax.io.jpeg_recover import recover_coefficients

RESIZE_FILTER = "bicubic"
"""What pictures of another size are taken to have been resized with."""

MUCH_NOISE = 0.3
"""Noise that is assumed at first of pictures that are far from explained. With a fifth more than
the first look had left, three of 24 resizes were not recognised that are with this."""

LEAST_NOISE, MOST_NOISE = 0.002, 0.5
"""That is assumed of pictures whose noise is estimated: a fourth of a grey level at least."""

_BELIEVED = 0.75
"""Share of pixels that recovered coefficients must give back."""
_FINEST = 2
"""The largest of a JPEG's steps is at least this: steps of 1 look like rounding, and half of all
small pictures as if they had them."""


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
    """A file, as far as it is known.

    Attributes:
      pixels: (H', W', C) uint8 as decoded, of any size.
      jpeg: its coefficients and their noise, where it is a JPEG file.
      history: what was done to it according to the file, in words; empty for nothing.
      notes: see `fpjax.io.images.ImageFile`.

    >>> Picture(np.zeros((8, 8, 3), np.uint8)).jpeg is None
    True
    """

    pixels: np.ndarray
    jpeg: Jpeg | None = None
    history: str = ""
    notes: tuple[str, ...] = ()


def read_picture(
    path: str | os.PathLike, image_shape: tuple[int, int, int], *, resize: bool = False
) -> Picture:
    """Reads a file with what it says about its own history.

    Args:
      path: an image file.
      image_shape: (height, width, channels) of the generator.
      resize: whether pictures of another size are taken; they are refused otherwise.

    Raises:
      ImageError: see `fpjax.io.images.read_image`.

    >>> import tempfile
    >>> from fpjax.attacks import Jpeg as Attack
    >>> with tempfile.NamedTemporaryFile(suffix=".jpg") as file:
    ...     _ = file.write(Attack(quality=75).encode(np.zeros((16, 16, 3), np.uint8)))
    ...     file.flush()
    ...     read_picture(file.name, (16, 16, 3)).history
    'JPEG 75'
    """
    file = read_image(path, None if resize else image_shape)
    pixels, notes = file.pixels, file.notes
    if pixels.shape[-1] != image_shape[-1]:
        pixels = np.rint(pixels.mean(-1, keepdims=True)).astype(np.uint8)
    history = []
    if pixels.shape[:2] != image_shape[:2]:
        history.append(f"a change of size to {pixels.shape[1]}x{pixels.shape[0]}")
    jpeg = None
    # Turned pictures and converted colours are no longer what the coefficients say.
    if not notes and _is_jpeg(path):
        try:
            header = read_jpeg_header(path)
        except JpegError as error:
            notes = (*notes, f"read by its pixels ({error})")
        else:
            history.append(_jpeg_words(header))
            try:
                jpeg = Jpeg.of_file(path)
            except ImportError:
                jpeg = Jpeg.of_pixels(pixels, header.layout, header.tables)
                notes = (*notes, "coefficients from its pixels: pip install 'fpjax[jpeg]'")
    return Picture(pixels, jpeg, " and ".join(history), notes)


def _is_jpeg(path: str | os.PathLike) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"\xff\xd8"


def _jpeg_words(header: JpegHeader) -> str:
    about = "" if header.standard else "about "
    return f"JPEG {about}{header.quality}"


def stated(picture: Picture, shape: tuple[int, int, int]) -> Observation:
    """The observation that a file itself states."""
    return sized(picture, shape, Rounded8Bit() if picture.jpeg is None else picture.jpeg)


def sized(picture: Picture, shape: tuple[int, int, int], inner: Observation) -> Observation:
    """An observation of the file's pixels, where they are of another size than the generator's."""
    size = picture.pixels.shape[:2]
    if size == shape[:2]:
        return inner
    filter = Filter.resize(*shape[:2], size, RESIZE_FILTER)
    return Filtered(filter, from_uint8(picture.pixels), inner)


def at_size(pixels: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Pixels at the generator's size: where inversions start."""
    if pixels.shape == shape:
        return from_uint8(pixels)
    filter = Filter.resize(pixels.shape[0], pixels.shape[1], shape[:2], RESIZE_FILTER)
    resized = filter(jax.device_put(from_uint8(pixels)))
    return np.clip(np.asarray(jax.device_get(resized)), -1, 1)


def once_jpeg(picture: Picture) -> tuple[Jpeg, str] | None:
    """What a lossless file was, if its pixels give away that it was once a JPEG."""
    found = estimate_jpeg_tables(picture.pixels)
    if found.status != JpegStatus.STANDARD or found.grid != (0, 0):
        return None
    if found.layout is None or found.tables is None or found.tables.max() < _FINEST:
        return None
    recovered = recover_coefficients(picture.pixels, found.layout, found.tables)
    if recovered.agreeing < _BELIEVED:
        return None
    jpeg = Jpeg.of_pixels(picture.pixels, found.layout, found.tables)
    return jpeg, f"JPEG {found.quality}, by its pixels"


def with_noise(jpeg: Jpeg | None, std: float) -> Observation:
    """Noise of `std` that was added before the picture was rounded, or compressed."""
    if jpeg is None:
        return Gaussian(float(std))
    return jpeg.with_noise(std)


def added_noise(residual: float) -> float:
    """Noise that was added before a picture was rounded, from the residual of a rough fit; not
    limited."""
    return residual if np.isfinite(residual) else MUCH_NOISE


def on_device(scheme: Scheme, degradation: Degradation | None = None) -> Problem:
    """A problem for `more_noise` and `shown`: without calibration, its weights on the device."""
    return jax.device_put(Problem(scheme.without_calibration(), degradation=degradation))


def more_noise(
    problem: Problem, unknowns: np.ndarray, observation: Observation, jpeg: Jpeg
) -> NoisePower:
    """Noise of a JPEG file beside that of its own tables, of what unknowns (K,) say it shows.

    Args:
      problem: as `on_device` gives it.
      unknowns: (K,).
      observation: of the file, whose filter brings pictures to its size where it has one.
      jpeg: the file.
    """
    return noise_power(jpeg, shown(problem, unknowns, getattr(observation, "filter", None)))
