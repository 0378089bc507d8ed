"""What happened to a file, as studies state it: noise of a level, or an attack.

A number is the standard deviation of white noise in the file, images in [-1, 1], 0 for rounding
alone; a text is an attack as `fpjax.attacks.parse` reads it. Of an attack, a file can be made, and
of some the observation that describes it is known, which predictions need.
"""

from __future__ import annotations

import io
from collections.abc import Iterable

import jax
import numpy as np

from fpjax.attacks import (
    Attack,
    AttackError,
    Brightness,
    Chain,
    Contrast,
    GaussianBlur,
    GaussianNoise,
    Identity,
    Jpeg,
    Resize,
    Shift,
    parse,
)
from fpjax.attacks.base import from_pillow, to_pillow
from fpjax.attacks.compression import Codec, decode
from fpjax.attacks.linear import KERNELS
from fpjax.errors import InputError
from fpjax.inversion.observation import ROUNDING_STD, Gaussian, Observation, Rounded8Bit
from fpjax.inversion.observation_filtered import Filter, Filtered
from fpjax.inversion.observation_jpeg import Jpeg as JpegObservation
from fpjax.inversion.resizes import ROUNDED_TWICE
from fpjax.io.images import from_uint8
from fpjax.io.jpeg_dct import YCBCR_FROM_RGB

History = float | str

_ROUND_BETWEEN = (Resize, Brightness, Contrast)
"""Attacks that round, or cut off, more than once."""

_DESCRIBED = (Identity, Jpeg, GaussianNoise, GaussianBlur, Shift, *_ROUND_BETWEEN)


def attack_label(text: str) -> str:
    """An attack's text in its full form.

    Raises:
      InputError: for no attack.

    >>> attack_label("paper/jpeg")
    'jpeg:quality=50,subsampling=4:2:0'
    """
    try:
        return parse(text).label
    except AttackError as error:
        raise InputError(str(error)) from error


def in_order(histories: Iterable[History]) -> list[History]:
    """Each once: noises by their level, then attacks as they came.

    >>> in_order(["jpeg", 0.1, 0.0, 0.1])
    [0.0, 0.1, 'jpeg']
    """
    each = list(dict.fromkeys(histories))
    return [
        *sorted(h for h in each if not isinstance(h, str)),
        *(h for h in each if isinstance(h, str)),
    ]


def history_name(history: History | None) -> str:
    """A noise level or an attack for people; None is all that a study looks at.

    >>> history_name(0.0), history_name(0.05), history_name("paper/combination")
    ('8-bit rounding', 'noise 0.05', 'gaussian_blur 0.5 25 + gaussian_noise 0.1 + jpeg 50 4:2:0')
    """
    if history is None:
        return "all of these"
    if not isinstance(history, str):
        return f"noise {history:g}" if history else "8-bit rounding"
    parts = []
    for step in _steps(parse(history)):
        values = (f"{v:g}" if isinstance(v, float) else str(v) for v in step.parameters.values())
        parts.append(" ".join([step.name, *values]))
    return " + ".join(parts)


def noise_variance(history: History) -> float:
    """Of a pixel, images in [-1, 1], rounding included; 1 for an attack, whose residuals are in
    units of their noise.

    >>> noise_variance("jpeg:quality=75"), round(noise_variance(0.1), 4)
    (1.0, 0.01)
    """
    return 1.0 if isinstance(history, str) else history**2 + ROUNDING_STD**2


def file_of(attack: Attack, key: jax.Array, image: np.ndarray) -> tuple[bytes, str]:
    """The file of an attacked picture, and its suffix: that of the last codec, else PNG.

    Args:
      attack: what is done.
      key: PRNG key, for attacks that draw.
      image: (H, W, C) uint8.

    >>> file_of(Jpeg(quality=75), jax.random.key(0), np.zeros((8, 8, 3), np.uint8))[1]
    '.jpg'
    """
    steps = _steps(attack)
    for number, step in enumerate(steps):
        last = number == len(steps) - 1
        if last and isinstance(step, Codec):
            return step.encode(image), step.suffix
        # The keys of a chain, so that its pictures are those of the chain itself.
        own = jax.random.fold_in(key, number) if isinstance(attack, Chain) else key
        image = step(own, image[None])[0]
    buffer = io.BytesIO()
    to_pillow(image).save(buffer, "PNG")
    return buffer.getvalue(), ".png"


def known_observation(attack: Attack, file: bytes, pixels: np.ndarray) -> Observation | None:
    """The observation that describes an attack, or None where none does.

    Of a chain: a filter at most, then noise, then compression. Rounding and clipping of pictures
    on the way count where nothing but rounding follows.

    Args:
      attack: what was done.
      file: the attacked picture's file.
      pixels: (H, W, C) uint8, its pixels.

    Raises:
      JpegError: if a JPEG file is damaged.

    >>> image = np.zeros((8, 8, 3), np.uint8)
    >>> attack = Chain((GaussianBlur(0.5), GaussianNoise(0.1), Jpeg(50)))
    >>> file, _ = file_of(attack, jax.random.key(0), image)
    >>> seen = known_observation(attack, file, image)
    >>> seen.name, seen.inner.name
    ('filtered', 'jpeg')
    """
    filter, noise, compressed, rounded = None, 0.0, False, False
    for step in _steps(attack):
        if compressed:
            return None
        if isinstance(step, Identity):
            continue
        if isinstance(step, Jpeg):
            compressed = True
        elif isinstance(step, GaussianNoise) and not noise:
            noise = step.std
        elif filter is not None or noise or (filter := _linear_map(step, pixels)) is None:
            return None
        rounded |= isinstance(step, _ROUND_BETWEEN)
    seen: Observation
    if compressed:
        seen = JpegObservation.of_file(file)
        seen = seen.with_noise(noise) if noise else seen
    else:
        noise = noise or (ROUNDED_TWICE if rounded else 0.0)
        seen = Gaussian(noise) if noise else Rounded8Bit()
    return seen if filter is None else Filtered(filter, from_uint8(pixels), seen)


def _steps(attack: Attack) -> tuple[Attack, ...]:
    return attack.attacks if isinstance(attack, Chain) else (attack,)


def _linear_map(attack: Attack, pixels: np.ndarray) -> Filter | None:
    """The map that an attack is, or None where it is none, or one that the file does not tell."""
    size = pixels.shape[0], pixels.shape[1]
    if isinstance(attack, GaussianBlur):
        return Filter.blur(*size, attack.sigma, attack.size)
    if isinstance(attack, Resize) and attack.filter in KERNELS:
        return Filter.resize_and_back(*size, attack.scale, attack.filter)
    if isinstance(attack, Shift):
        return Filter.shift(*size, float(attack.down), float(attack.right))
    if isinstance(attack, Brightness):
        return Filter.identity(*size, attack.factor, attack.factor - 1)
    if isinstance(attack, Contrast):
        # But for what is clipped it leaves the mean grey, which is in the file for that reason.
        mean = from_uint8(pixels).mean(axis=(0, 1))
        grey = YCBCR_FROM_RGB[0] @ mean if len(mean) == 3 else mean[0]
        return Filter.identity(*size, attack.factor, (1 - attack.factor) * float(grey))
    return None


def described(text: str) -> str:
    """An attack's text in its full form, once it is clear that an observation describes it.

    Raises:
      InputError: for no attack, or one that no observation describes.

    >>> described("jpeg:quality=75+gaussian_noise:std=0.1")
    Traceback (most recent call last):
    ...
    fpjax.errors.InputError: jpeg:...: no observation describes it, so that nothing predicts it
    """
    label = attack_label(text)
    if not all(isinstance(step, _DESCRIBED) for step in _steps(parse(label))):
        raise _not_described(label)  # before what may take long
    try:
        attacked(label, jax.random.key(0), np.full((16, 16, 3), 128, np.uint8))
    except ImportError as error:
        raise InputError(f"{label}: {error}") from error
    return label


def _not_described(label: str) -> InputError:
    return InputError(f"{label}: no observation describes it, so that nothing predicts it")


def attacked(label: str, key: jax.Array, image: np.ndarray) -> tuple[Observation, np.ndarray]:
    """A picture after an attack, as who knows the attack sees it: the observation, and the pixels.

    Args:
      label: the attack.
      key: PRNG key, for attacks that draw.
      image: (H, W, C) uint8.

    Raises:
      InputError: for an attack that no observation describes.

    >>> seen, pixels = attacked("jpeg:quality=75", jax.random.key(0), np.zeros((8, 8, 3), np.uint8))
    >>> seen.name, pixels.shape
    ('jpeg', (8, 8, 3))
    """
    attack = parse(label)
    file, _ = file_of(attack, key, image)
    pixels = from_pillow(decode(file), image.shape[2])
    seen = known_observation(attack, file, pixels) if pixels.shape == image.shape else None
    if seen is None:
        raise _not_described(label)
    return seen, pixels
