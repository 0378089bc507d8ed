"""The protocol of an attack: 8-bit images and a PRNG key in, 8-bit images out.

An attack is a frozen dataclass. Its fields are its parameters, each with a stated range that is
checked when it is made. Its class says whether it is linear and differentiable, and where it was
published. Heavy packages (Pillow, SciPy) are imported when an attack is called.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import numpy as np

from fpjax.errors import InputError


class AttackError(InputError):
    """A parameter out of range, an unknown attack, or images that an attack cannot take."""


def number(
    default: int | float, low: int | float, high: int | float, unit: str, *, odd: bool = False
) -> Any:
    """A dataclass field for a number in [low, high]; `unit` says what it measures.

    A whole default makes it a field for whole numbers, only odd ones with `odd`.

    >>> field = number(50, 1, 100, "JPEG quality")
    >>> field.default, field.metadata["high"]
    (50, 100)
    """
    metadata = {"low": low, "high": high, "unit": unit, "odd": odd}
    return dataclasses.field(default=default, metadata=metadata)


def choice(default: Any, choices: tuple, meaning: str) -> Any:
    """A dataclass field that takes one of `choices`.

    >>> choice("black", ("black", "white"), "colour").metadata["choices"]
    ('black', 'white')
    """
    return dataclasses.field(default=default, metadata={"choices": choices, "unit": meaning})


@dataclasses.dataclass(frozen=True)
class Attack:
    """Base of all attacks: checks parameters and images, and leaves the rest to `_apply`.

    Class attributes:
      name: the stable identifier used by `fpjax.attacks.parse`, in files and in plots.
      linear: whether the result is a linear (or affine) function of the pixels, up to clipping and
        the final rounding to 8 bits. The linear map may depend on the key.
      differentiable: whether the result has a useful derivative with respect to the pixels, with
        the final rounding left out.
      random: whether the result depends on the key.
      keeps_size: whether height and width stay as they are.
      mixes: whether a picture's result depends on the others of its batch.
      source: where the attack, or its use against watermarks, was published.
      channels: the numbers of channels it takes.

    >>> from fpjax.attacks import Jpeg
    >>> attack = Jpeg(quality=75)
    >>> attack(jax.random.key(0), np.zeros((2, 24, 40, 3), np.uint8)).shape
    (2, 24, 40, 3)
    """

    name: ClassVar[str]
    linear: ClassVar[bool]
    differentiable: ClassVar[bool]
    random: ClassVar[bool] = False
    keeps_size: ClassVar[bool] = True
    mixes: ClassVar[bool] = False
    source: ClassVar[str]
    channels: ClassVar[tuple[int, ...]] = (1, 3)

    def __post_init__(self):
        for field in dataclasses.fields(self):
            _check_parameter(self.name, field, getattr(self, field.name))

    def __call__(self, key: jax.Array | None, images) -> np.ndarray:
        """Attacks a batch.

        Args:
          key: PRNG key. Image i sees only `jax.random.fold_in(key, i)`, so that its result does not
            depend on the size of the batch. Attacks with `random = False` ignore it, and take None.
          images: uint8, (B, H, W, C), any height and width, C in `channels`.

        Returns:
          uint8, (B, H', W', C); H' = H and W' = W where `keeps_size` is true.

        Raises:
          AttackError: for another dtype, rank or number of channels, or a missing key.
        """
        images = check_images(images, self.label, self.channels)
        if key is None and self.random:
            raise AttackError(f"{self.label}: needs a PRNG key, such as jax.random.key(0)")
        if images.shape[0] == 0:
            return images.copy()
        return self._apply(key, images)

    def _apply(self, key: Any, images: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters by name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def ranges(cls) -> dict[str, tuple]:
        """What each parameter may be: (low, high, unit) of a number, or its choices.

        >>> from fpjax.attacks import GaussianNoise
        >>> GaussianNoise.ranges()
        {'std': (0.0, 2.0, 'standard deviation for images in [-1, 1]')}
        """
        out = {}
        for field in dataclasses.fields(cls):
            meta = field.metadata
            if "choices" in meta:
                out[field.name] = tuple(meta["choices"])
            elif "low" in meta:
                out[field.name] = (meta["low"], meta["high"], meta["unit"])
        return out

    @property
    def label(self) -> str:
        """The attack in one line, which `fpjax.attacks.parse` reads back.

        >>> from fpjax.attacks import Jpeg
        >>> Jpeg(quality=75).label
        'jpeg:quality=75,subsampling=4:2:0'
        """
        parameters = ",".join(f"{name}={value}" for name, value in self.parameters.items())
        return f"{self.name}:{parameters}" if parameters else self.name

    def to_json(self) -> dict[str, Any]:
        """Name and parameters as plain values; `fpjax.attacks.from_json` reads them back."""
        return {"name": self.name, **self.parameters}


def _check_parameter(name: str, field: dataclasses.Field, value: Any) -> None:
    meta = field.metadata
    if "choices" in meta:
        same_type = [c for c in meta["choices"] if type(c) is type(value) and c == value]
        if not same_type:
            allowed = ", ".join(str(c) for c in meta["choices"])
            raise AttackError(f"{name}: {field.name} is {value!r}, expected one of {allowed}")
        return
    if "low" not in meta:
        return
    wants_int = isinstance(field.default, int)
    kinds = (int,) if wants_int else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds):
        kind = "a whole number" if wants_int else "a number"
        raise AttackError(f"{name}: {field.name} is {value!r}, expected {kind}")
    if not meta["low"] <= value <= meta["high"]:
        raise AttackError(
            f"{name}: {field.name} is {value}, expected {meta['low']} to {meta['high']} "
            f"({meta['unit']})"
        )
    if meta["odd"] and value % 2 == 0:
        raise AttackError(f"{name}: {field.name} is {value}, expected an odd number")


def check_images(images, name: str, channels: tuple[int, ...] = (1, 3)) -> np.ndarray:
    """`images` as a uint8 array (B, H, W, C) on the host, or an `AttackError` that says why not."""
    images = np.asarray(images)
    if images.dtype != np.uint8:
        raise AttackError(
            f"{name}: images are {images.dtype}, expected uint8; round images in [-1, 1] to 8 bits "
            "first, as a file does"
        )
    if images.ndim != 4:
        raise AttackError(f"{name}: images have shape {images.shape}, expected (B, H, W, C)")
    if images.shape[3] not in channels:
        wanted = " or ".join(str(c) for c in channels)
        raise AttackError(f"{name}: images have {images.shape[3]} channels, expected {wanted}")
    if 0 in images.shape[1:3]:
        raise AttackError(f"{name}: images have no pixels, shape {images.shape}")
    return images


def image_keys(key: jax.Array, count: int) -> jax.Array:
    """One key for each image, the same whatever the size of the batch.

    >>> keys = image_keys(jax.random.key(0), 4)
    >>> bool((jax.random.key_data(keys[1]) == jax.random.key_data(
    ...     jax.random.fold_in(jax.random.key(0), 1))).all())
    True
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(key, np.arange(count, dtype=np.uint32))


def uniform_per_image(key: jax.Array, count: int, size: int) -> np.ndarray:
    """(count, size) uniform numbers in [0, 1), row i from image i's own key."""
    keys = image_keys(key, count)
    draw = jax.vmap(lambda k: jax.random.uniform(k, (size,), np.float32))
    return np.asarray(draw(keys), np.float64)


def round_to_uint8(values: np.ndarray) -> np.ndarray:
    """Rounds values on the scale 0..255 to 8 bits, clipped.

    >>> round_to_uint8(np.array([-3.0, 1.6, 300.0]))
    array([  0,   2, 255], dtype=uint8)
    """
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def to_pillow(image: np.ndarray):
    """An (H, W, C) uint8 array as a Pillow image, mode L or RGB."""
    from PIL import Image

    return Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)


def from_pillow(picture, channels: int) -> np.ndarray:
    """A Pillow image as an (H, W, channels) uint8 array."""
    picture = picture.convert("L" if channels == 1 else "RGB")
    array = np.asarray(picture)
    return array[..., None] if channels == 1 else array


def map_pillow(function, images: np.ndarray, *arguments) -> np.ndarray:
    """Applies a function of one Pillow image, and one of each of `arguments`, to a batch."""
    out = [function(to_pillow(i), *rest) for i, *rest in zip(images, *arguments, strict=True)]
    return np.stack([from_pillow(picture, images.shape[3]) for picture in out])
