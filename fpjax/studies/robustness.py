"""What attacks leave of attribution: pictures are attacked, written as files, and read back.

For each scheme and attack: how many bits are right, how many pictures are attributed to their
maker, to nobody, and to somebody else, at the stated rate among the registered users, and what the
attack did to the picture. Beside what is measured stands what the information predicts where the
attack is one that an observation describes.

Everything goes through files, as a user's pictures would.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fpjax.attacks import (
    Attack,
    Brightness,
    Chain,
    Contrast,
    GaussianBlur,
    GaussianNoise,
    Identity,
    Jpeg,
    Resize,
    Shift,
)
from fpjax.attacks.compression import Codec
from fpjax.fingerprint.scheme import Scheme
from fpjax.inversion.information import key_information
from fpjax.inversion.observation import Gaussian, Observation, Rounded8Bit
from fpjax.inversion.observation_filtered import Filter, Filtered
from fpjax.inversion.observation_jpeg import Jpeg as JpegObservation
from fpjax.inversion.problem import Problem
from fpjax.io.images import from_uint8
from fpjax.io.jpeg_dct import YCBCR_FROM_RGB
from fpjax.studies.curvature import decoding_errors

DEFAULT_ATTACKS = (
    "none",
    "jpeg:quality=95",
    "jpeg:quality=90",
    "jpeg:quality=75",
    "jpeg:quality=50",
    "gaussian_noise:std=0.05",
    "gaussian_noise:std=0.1",
    "gaussian_blur:sigma=0.5",
    "gaussian_blur:sigma=0.5+gaussian_noise:std=0.1+jpeg:quality=50",
    "resize:scale=0.75",
    "brightness:factor=1.1",
    "contrast:factor=0.9",
    "shift:down=1,right=0",
    "crop_resize:side=0.9",
)
"""The published four and what the robust scheme was chosen for."""


def file_of(attack: Attack, key: jax.Array, image: np.ndarray) -> tuple[bytes, str]:
    """The file of an attacked picture, and its suffix: that of the last codec, else PNG.

    Args:
      attack: what is done.
      key: PRNG key, for attacks that draw.
      image: (H, W, C) uint8.

    >>> file_of(Jpeg(quality=75), jax.random.key(0), np.zeros((8, 8, 3), np.uint8))[1]
    '.jpg'
    """
    from PIL import Image

    steps = attack.attacks if isinstance(attack, Chain) else (attack,)
    for number, step in enumerate(steps):
        last = number == len(steps) - 1
        if last and isinstance(step, Codec):
            return step.encode(image), step.suffix
        # The keys of a chain, so that its pictures are those of the chain itself.
        own = jax.random.fold_in(key, number) if isinstance(attack, Chain) else key
        image = step(own, image[None])[0]
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(buffer, "PNG")
    return buffer.getvalue(), ".png"


def known_observation(attack: Attack, file: bytes, pixels: np.ndarray) -> Observation | None:
    """The observation that describes an attack, or None where none does.

    Of a chain: a filter at most, then noise, then compression; the rounding and clipping of the
    pictures between them is left out.

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
    filter, noise, compressed = None, 0.0, False
    for step in attack.attacks if isinstance(attack, Chain) else (attack,):
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
    seen: Observation
    if compressed:
        seen = JpegObservation.of_file(file)
        seen = seen.with_noise(noise) if noise else seen
    else:
        seen = Gaussian(noise) if noise else Rounded8Bit()
    return seen if filter is None else Filtered(filter, from_uint8(pixels), seen)


def _linear_map(attack: Attack, pixels: np.ndarray) -> Filter | None:
    """The map that an attack is, or None where it is none, or one that the file does not tell."""
    size = pixels.shape[0], pixels.shape[1]
    if isinstance(attack, GaussianBlur):
        return Filter.blur(*size, attack.sigma)
    if isinstance(attack, Resize):
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


def information_at_truth(
    scheme: Scheme, observation: Observation, alpha: np.ndarray, key: np.ndarray, pixels: np.ndarray
) -> np.ndarray:
    """S of one picture, (L, L), at the latent that made it.

    It is a bound on what the file says, since who reads it does not know that latent (see
    `curvature.iter_pixel_grams`).

    Args:
      scheme: that of the picture.
      observation: of its file.
      alpha: (K - L,).
      key: (L,) bits.
      pixels: (H, W, C) uint8 of the generator's size.
    """
    symbols = np.asarray(scheme.symbols_of(key[None]))[0]
    unknowns = np.concatenate([alpha, symbols]).astype(np.float32)
    found = key_information(Problem(scheme, observation), unknowns[None], pixels[None])
    return np.asarray(found.information[0], np.float64)


def predicted(informations: Sequence[np.ndarray]) -> dict[str, float]:
    """What decoding can be expected to give: share of right bits, and of exact keys.

    >>> predicted([1e6 * np.eye(4)])
    {'bit_accuracy': 1.0, 'exact': 1.0}
    """
    error, exact = decoding_errors(np.stack(informations))
    return {"bit_accuracy": 1 - float(error), "exact": float(exact)}


def wilson_interval(hits: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """95% interval of a share (Wilson, JASA 22, 1927).

    >>> tuple(round(x, 3) for x in wilson_interval(8, 8))
    (0.676, 1.0)
    """
    if count == 0:
        return 0.0, 1.0
    share, spread = hits / count, z * z / count
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    # Of none or all, rounding may leave the share itself outside.
    return min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))


def summary(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Figures of one scheme and attack, with 95% intervals.

    Args:
      records: of the pictures, as `robustness_run` keeps them.

    Returns:
      `num`; `bit_accuracy`, `right`, `none`, `wrong`, `exact` as (share, low, high); mean `psnr`
      (dB) and `lpips` where they were measured, else None. The interval of bits is over pictures,
      whose bits are not independent.
    """
    count = len(records)
    accuracy = np.array([record["bit_accuracy"] for record in records])
    error = 1.96 * accuracy.std(ddof=1) / math.sqrt(count) if count > 1 else 1.0
    mean = float(accuracy.mean())

    def share(test) -> tuple[float, float, float]:
        hits = sum(bool(test(record)) for record in records)
        return (hits / count, *wilson_interval(hits, count))

    # Of pictures whose size changed neither is known; the PSNR was 0 in folders of before.
    perceptual = [record["lpips"] for record in records if record.get("lpips") is not None]
    psnrs = [record["psnr"] for record in records if record["psnr"]]
    return {
        "num": count,
        "bit_accuracy": (mean, max(0.0, mean - error), min(1.0, mean + error)),
        "exact": share(lambda record: record["bit_accuracy"] == 1),
        **{
            outcome: share(lambda record, o=outcome: record["outcome"] == o)
            for outcome in ("right", "none", "wrong")
        },
        "psnr": float(np.mean(psnrs)) if psnrs else None,
        "lpips": float(np.mean(perceptual)) if perceptual else None,
        "seconds": float(np.mean([record["seconds"] for record in records])),
    }
