"""How a picture got from the generator to the file: observations own the residual and its noise.

An observation says two things. `simulate` makes files of the generator's output, as that history
would. `residual` compares the generator's output with a file, in units of the observation's own
noise, so that half its square is a negative log-likelihood and 1 is what noise alone leaves.

Values outside [-1, 1] need care, since generators overshoot. A file holds 0 or 255 there, which is
a censored measurement: it says "at least this", not "exactly this".
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr
from jax.scipy.stats import norm
from jaxtyping import Float, PRNGKeyArray, UInt8

from fpjax.errors import InputError

Array = jax.Array

ROUNDING_STD = 2 / 255 / math.sqrt(12)
"""Standard deviation of rounding to 8 bits, for images in [-1, 1]."""

# Half a grey level: an 8-bit value at either end stands for everything beyond it.
_EDGE = 1 - 1 / 255

LEAK = 0.1
"""Derivative of the clip outside [-1, 1] while a solver is far away, so that it can come back."""


@runtime_checkable
class Observation(Protocol):
    """What an inversion needs to know about a file's history.

    >>> isinstance(Rounded8Bit(), Observation)
    True
    """

    name: ClassVar[str]
    """Short and stable; reported with every answer."""

    def residual(
        self,
        image: Float[Array, "height width channels"],
        target: Float[Array, "height width channels"],
        leak: Array | float = 0.0,
    ) -> Float[Array, " residuals"]:
        """Differences in units of the noise.

        Args:
          image: (H, W, C) float32, the generator's output, not clipped.
          target: (H, W, C) float32, the file's pixels in [-1, 1].
          leak: derivative given to the clip outside [-1, 1]; 0 is the true one.

        Returns:
          (M,) float32; half the sum of squares is the negative log-likelihood up to a constant.
        """
        ...

    def counted(
        self,
        image: Float[Array, "height width channels"],
        target: Float[Array, "height width channels"],
    ) -> Float[Array, " residuals"]:
        """(M,) float32 of 0 and 1: the entries of the residual that say something."""
        ...

    def simulate(
        self, key: PRNGKeyArray, images: Float[Array, "batch height width channels"]
    ) -> UInt8[Array, "batch height width channels"]:
        """Files of images: (B, H, W, C) float32, not clipped -> the same shape, uint8."""
        ...


@jax.custom_jvp
def leaky_clip(x: Array, leak: Array) -> Array:
    """Clips to [-1, 1]; outside, the derivative is `leak` instead of 0.

    >>> jax.jvp(lambda x: leaky_clip(x, 0.1), (jnp.float32(2),), (jnp.float32(1),))
    (Array(1., dtype=float32), Array(0.1, dtype=float32))
    """
    del leak
    return jnp.clip(x, -1, 1)


@leaky_clip.defjvp
def _leaky_clip_jvp(primals, tangents):
    x, leak = primals
    slope = jnp.where(jnp.abs(x) < 1, jnp.ones_like(x), jnp.asarray(leak, x.dtype))
    return jnp.clip(x, -1, 1), tangents[0] * slope


def mean_of_clipped(x: Array, std: Array) -> Array:
    """Mean of x + noise of `std` once it is clipped to [-1, 1]; x itself where there is no noise.

    >>> mean_of_clipped(jnp.asarray([0.0, 1.0]), jnp.float32(0.1)).round(2)
    Array([0.  , 0.96], dtype=float32)
    """
    scale = jnp.maximum(std, 1e-6)
    low, high = (-1 - x) / scale, (1 - x) / scale
    inside = x * (norm.cdf(high) - norm.cdf(low)) + scale * (norm.pdf(low) - norm.pdf(high))
    return jnp.where(std > 0, inside + norm.cdf(-high) - norm.cdf(low), x)


def to_8bit(images: Array) -> Array:
    """Rounds images in [-1, 1] to uint8, clipping what is outside.

    >>> to_8bit(jnp.asarray([-1.5, 0.0, 1.0])).tolist()
    [0, 128, 255]
    """
    return jnp.rint(jnp.clip(images * 127.5 + 127.5, 0, 255)).astype(jnp.uint8)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rounded8Bit:
    """A lossless 8-bit file: rounding is the only noise; 0 and 255 are censored.

    >>> image = jnp.asarray([[[1.3], [0.5]]])
    >>> target = jnp.asarray([[[1.0], [0.5]]])
    >>> Rounded8Bit().residual(image, target).tolist()
    [0.0, 0.0]
    """

    name: ClassVar[str] = "rounded-8bit"

    def residual(
        self,
        image: Float[Array, "height width channels"],
        target: Float[Array, "height width channels"],
        leak: Array | float = 0.0,
    ) -> Float[Array, " residuals"]:
        """See `Observation`; overshooting a saturated pixel costs nothing, so no leak is needed."""
        del leak
        return _censored(image, target).reshape(-1) / ROUNDING_STD

    def counted(
        self,
        image: Float[Array, "height width channels"],
        target: Float[Array, "height width channels"],
    ) -> Float[Array, " residuals"]:
        """All pixels but the saturated ones that the generator overshoots."""
        said = (jnp.abs(target) < _EDGE) | (_censored(image, target) != 0)
        return said.reshape(-1).astype(jnp.float32)

    def simulate(
        self, key: PRNGKeyArray, images: Float[Array, "batch height width channels"]
    ) -> UInt8[Array, "batch height width channels"]:
        """Rounds; the PRNG key is not used."""
        del key
        return to_8bit(images)


def _censored(image: Array, target: Array) -> Array:
    difference = image - target
    difference = jnp.where(target >= _EDGE, jnp.minimum(difference, 0), difference)
    return jnp.where(target <= -_EDGE, jnp.maximum(difference, 0), difference)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Gaussian:
    """White noise after the picture was clipped: clip, add noise, clip again and round.

    Pixels at 0 or 255 are censored with their exact likelihood (Tobin 1958), written as a residual
    r = sqrt(-2 log Phi), so that sums of squares stay log-likelihoods.

    Attributes:
      std: standard deviation of the noise, images in [-1, 1]; rounding is added to it.

    >>> y = Gaussian(0.1).simulate(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    >>> round(float(jnp.std(y.astype(jnp.float32) / 127.5 - 1)), 2)
    0.1
    """

    std: Array | float

    name: ClassVar[str] = "gaussian-noise"

    def __post_init__(self):
        if isinstance(self.std, (int, float)) and not (
            math.isfinite(self.std) and 0 <= self.std <= 2
        ):
            raise InputError(
                f"std {self.std}: expected the noise's standard deviation on [-1, 1], 0 to 2"
            )

    @property
    def pixel_std(self) -> Array:
        """Noise of a pixel, images in [-1, 1]: starts do not fit what is smaller."""
        return self.total_std

    @property
    def total_std(self) -> Array:
        """Noise and rounding together."""
        return jnp.sqrt(jnp.asarray(self.std, jnp.float32) ** 2 + ROUNDING_STD**2)

    def residual(
        self,
        image: Float[Array, "height width channels"],
        target: Float[Array, "height width channels"],
        leak: Array | float = 0.0,
    ) -> Float[Array, " residuals"]:
        """See `Observation`."""
        clipped = leaky_clip(image, jnp.asarray(leak, image.dtype))
        std = self.total_std
        plain = (clipped - target) / std
        high = _tobit((clipped - _EDGE) / std)
        low = _tobit((-_EDGE - clipped) / std)
        residual = jnp.where(target >= _EDGE, high, jnp.where(target <= -_EDGE, low, plain))
        return residual.reshape(-1)

    def counted(
        self,
        image: Float[Array, "height width channels"],
        target: Float[Array, "height width channels"],
    ) -> Float[Array, " residuals"]:
        """Unsaturated pixels: there the residual has unit variance."""
        del image
        return (jnp.abs(target) < _EDGE).reshape(-1).astype(jnp.float32)

    def simulate(
        self, key: PRNGKeyArray, images: Float[Array, "batch height width channels"]
    ) -> UInt8[Array, "batch height width channels"]:
        """Clips, adds noise, clips and rounds."""
        noise = jax.random.normal(key, images.shape, jnp.float32)
        return to_8bit(jnp.clip(images, -1, 1) + jnp.asarray(self.std, jnp.float32) * noise)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class PerImage:
    """Each image of a batch has an observation of its own: one history, other numbers.

    `Problem` takes it like an observation of all; the driver gives every image its part.

    Attributes:
      observation: one whose leaves have the images' axis in front.

    >>> PerImage.stack([Gaussian(0.1), Gaussian(0.2)]).observation.std.shape
    (2,)
    """

    observation: Observation

    name: ClassVar[str] = "per-image"

    def residual(self, image: Array, target: Array, leak: Array | float = 0.0) -> Array:
        """Refused: one image has one observation, which the driver takes out."""
        raise InputError("PerImage is of a batch: use fpjax.invert, or one image's observation")

    def counted(self, image: Array, target: Array) -> Array:
        """Refused, as `residual`."""
        return self.residual(image, target)

    def simulate(self, key: PRNGKeyArray, images: Array) -> Array:
        """Refused, as `residual`."""
        del key
        return self.residual(images, images)

    @classmethod
    def stack(cls, observations: Sequence[Observation]) -> PerImage:
        """Observations of several images as one.

        Raises:
          InputError: for none, or such that differ in more than numbers.
        """
        kinds = {jax.tree.structure(observation) for observation in observations}
        if len(kinds) != 1:
            raise InputError(
                f"{len(observations)} observations of {len(kinds)} kinds: images that are read "
                "together differ in numbers only"
            )

        def join(*leaves):
            parts = [np.asarray(jax.device_get(leaf), np.float32) for leaf in leaves]
            if len({part.shape for part in parts}) != 1:
                raise InputError("observations of pictures of different sizes: read them apart")
            return np.stack(parts)

        return cls(jax.tree.map(join, *observations))


def _tobit(margin: Array) -> Array:
    """sqrt(-2 log Phi(margin)): half its square is the censored negative log-likelihood."""
    return jnp.sqrt(jnp.maximum(-2 * log_ndtr(margin), 1e-12))


def noise_ratio(observation: Observation, image: Array, target: Array) -> Array:
    """Root-mean-square residual of one image in units of the observation's own noise, ().

    1 means that nothing but the expected noise is left. Entries that say nothing are left out.
    """
    residual = observation.residual(image, target)
    weight = observation.counted(image, target)
    return jnp.sqrt(jnp.sum(weight * residual**2) / jnp.maximum(jnp.sum(weight), 1))


def says_noise(observation: Observation) -> bool:
    """Whether an observation has a noise of its own, beside what rounding to 8 bits leaves.

    >>> says_noise(Rounded8Bit()), says_noise(Gaussian(0.05))
    (False, True)
    """
    return hasattr(observation, "pixel_std")


def relative_noise(observation: Observation) -> Array:
    """Noise of a pixel, about, in units of what rounding to 8 bits leaves; 1 where it says nothing.

    >>> float(relative_noise(Rounded8Bit()))
    1.0
    """
    std = getattr(observation, "pixel_std", ROUNDING_STD)
    return jnp.maximum(jnp.asarray(std, jnp.float32) / ROUNDING_STD, 1.0)


def pixel_residual(observation: Observation, image: Array, target: Array) -> Array:
    """Root-mean-square difference of the file's unsaturated pixels on [-1, 1], (): the same for
    every observation, for people to compare. Where an observation changes pixels before they are
    written, it has a method `filtered` with (what they become, the file's); pixels that it believes
    less count by its `pixel_weights`."""
    change = getattr(observation, "filtered", None)
    if change is not None:
        image, target = change(image, target)
    weight = (jnp.abs(target) < _EDGE).astype(jnp.float32)
    weight = weight * jnp.asarray(getattr(observation, "pixel_weights", 1.0), jnp.float32)
    error = jnp.sum(weight * (jnp.clip(image, -1, 1) - target) ** 2)
    return jnp.sqrt(error / jnp.maximum(jnp.sum(weight), 1))
