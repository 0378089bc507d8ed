"""The inversion problem: which latent and key explain an image. Solvers are elsewhere.

Unknowns are alpha (K - L coordinates along U) and the key's levels (L coordinates along V). A
problem says how far an image made of them is from the given one, what is assumed about them
beforehand, and how the levels are kept near bits.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from fpjax.fingerprint.scheme import Scheme

Array = jax.Array

ROUNDING_STD = 2 / 255 / math.sqrt(12)
"""Standard deviation of rounding to 8 bits, for images in [-1, 1]."""

# Half a grey level: an 8-bit value at either end stands for everything beyond it.
_SATURATED = 1 - 1 / 255


def _censored_difference(images: Array, targets: Array) -> Array:
    """Differences of pixels; overshooting a saturated target counts as none."""
    difference = images - targets
    difference = jnp.where(targets >= _SATURATED, jnp.minimum(difference, 0), difference)
    return jnp.where(targets <= -_SATURATED, jnp.maximum(difference, 0), difference)


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is minimised.

    Attributes:
      scheme: generator, directions, strength and levels.
      loss: "pixel" (squared difference) or "lpips" (LPIPS-VGG16, needs `fpjax[lpips]`).
      alpha_penalty: "gaussian" takes alpha ~ N(0, (prior_scale * s)^2); "bounds" adds
        `penalty_weight * sum(relu(|alpha| - 3 s))`; "none" leaves it free. s is the basis's std.
      key: "sigmoid" writes levels as a sigmoid of kappa; "relaxed" lets levels be real numbers with
        a Gaussian prior around the middle of the two levels, bounded to at most one spacing beyond
        them.
      penalty_weight: weight of either penalty in `loss_per_image`.
      prior_scale: widening of the Gaussian prior, for latents with heavier tails than normal.
      noise_std: standard deviation of the pixel noise that is expected, images in [-1, 1].
    """

    scheme: Scheme
    loss: Literal["pixel", "lpips"] = "pixel"
    alpha_penalty: Literal["gaussian", "bounds", "none"] = "gaussian"
    key: Literal["relaxed", "sigmoid"] = "relaxed"
    penalty_weight: float = 0.1
    prior_scale: float = 1.0
    noise_std: float = ROUNDING_STD

    def __post_init__(self):
        for name, allowed in (
            ("loss", ("pixel", "lpips")),
            ("alpha_penalty", ("gaussian", "bounds", "none")),
            ("key", ("relaxed", "sigmoid")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} {getattr(self, name)!r}: choose one of {allowed}")
        if self.loss == "lpips":
            _ = self._lpips  # loaded here, so that a missing package is known before any work

    @classmethod
    def paper(cls, scheme: Scheme) -> Problem:
        """The published StyleGAN2 protocol: LPIPS, bounds penalty of weight 0.1, sigmoid."""
        return cls(scheme, loss="lpips", alpha_penalty="bounds", key="sigmoid")

    @property
    def num_alpha(self) -> int:
        """Coordinates of alpha."""
        return len(self.scheme.alpha_indices)

    @property
    def num_unknowns(self) -> int:
        """Coordinates of alpha and key together, alpha first."""
        return self.num_alpha + self.scheme.key_length

    @functools.cached_property
    def alpha_std(self) -> np.ndarray:
        """Standard deviations s of alpha, (K - L,)."""
        return self.scheme.alpha_std

    @property
    def level_centre_and_half_width(self) -> tuple[float, float]:
        """Middle of the two levels, and the distance from it to either."""
        return (0.5, 0.5) if self.scheme.levels == "binary" else (0.0, 1.0)

    @functools.cached_property
    def prior_mean_and_std(self) -> tuple[np.ndarray, np.ndarray]:
        """Gaussian prior of the unknowns, each (num_unknowns,); std is infinite where none is."""
        centre, half = self.level_centre_and_half_width
        scale = self.prior_scale if self.alpha_penalty == "gaussian" else np.inf
        # Directions in which latents never vary still need a finite precision.
        alpha_std = np.maximum(self.alpha_std, 1e-6 * self.alpha_std.max()) * scale
        length = self.scheme.key_length
        mean = np.concatenate([np.zeros(self.num_alpha), np.full(length, centre)])
        std = np.concatenate([alpha_std, np.full(length, half)])
        return mean.astype(np.float32), std.astype(np.float32)

    def levels(self, unknowns: Array) -> Array:
        """Levels (..., L) that the unknowns (..., num_unknowns) stand for."""
        raw = unknowns[..., self.num_alpha :]
        if self.key == "relaxed":
            return raw
        centre, half = self.level_centre_and_half_width
        return centre + half * (2 * jax.nn.sigmoid(raw) - 1)

    def bits(self, unknowns: Array) -> Array:
        """Soft bits (..., L): 0 and 1 are the two levels, 0.5 is undecided."""
        centre, half = self.level_centre_and_half_width
        return 0.5 + (self.levels(unknowns) - centre) / (2 * half)

    def clip(self, unknowns: Array) -> Array:
        """Keeps relaxed levels within one spacing of the two levels."""
        if self.key != "relaxed":
            return unknowns
        centre, half = self.level_centre_and_half_width
        alpha, levels = jnp.split(unknowns, [self.num_alpha], axis=-1)
        levels = jnp.clip(levels, centre - 3 * half, centre + 3 * half)
        return jnp.concatenate([alpha, levels], axis=-1)

    def images(self, params, unknowns: Array) -> Array:
        """Images (B, R, R, 3) of unknowns (B, num_unknowns), not clipped."""
        alpha = unknowns[:, : self.num_alpha]
        latents = self.scheme.latents_of(alpha, self.levels(unknowns))
        return self.scheme.decode(params, latents)

    @functools.cached_property
    def _lpips(self):
        from fpjax import perceptual

        return perceptual.load_lpips("vgg")

    def residuals(self, params, unknowns: Array, targets: Array) -> Array:
        """Differences in units of the expected noise, (B, M); half their square is the loss.

        Pixels at 0 or 255 are censored: an 8-bit file cannot show how far beyond them the
        generator's value was, so overshooting there costs nothing.
        """
        images = self.images(params, unknowns)
        if self.loss == "lpips":
            from fpjax import perceptual

            difference = perceptual.lpips_features(
                self._lpips, jnp.clip(images, -1, 1)
            ) - perceptual.lpips_features(self._lpips, targets)
            return difference.reshape(images.shape[0], -1)
        difference = _censored_difference(images, targets)
        return difference.reshape(images.shape[0], -1) / self.noise_std

    def loss_per_image(self, params, unknowns: Array, targets: Array) -> Array:
        """The published kind of loss, (B,): image distance plus the penalty on alpha.

        Pixel loss is the mean squared difference, LPIPS its usual value.
        """
        images = jnp.clip(self.images(params, unknowns), -1, 1)
        if self.loss == "lpips":
            from fpjax import perceptual

            distance = perceptual.lpips(self._lpips, images, targets)
        else:
            distance = jnp.mean((images - targets) ** 2, axis=(1, 2, 3))
        alpha = unknowns[:, : self.num_alpha]
        if self.alpha_penalty == "bounds":
            excess = jax.nn.relu(jnp.abs(alpha) - 3 * self.alpha_std)
            distance = distance + self.penalty_weight * excess.sum(axis=1)
        elif self.alpha_penalty == "gaussian":
            _, std = self.prior_mean_and_std
            scaled = alpha / std[: self.num_alpha]
            distance = distance + self.penalty_weight * jnp.mean(scaled**2, axis=1)
        return distance


def noise_ratio(problem: Problem, params, unknowns: Array, targets: Array) -> Array:
    """Root-mean-square residual over the pixels that say something, in units of `noise_std`.

    Those are all but the saturated ones that the generator overshoots. 1 means that nothing but
    the expected noise is left; (B,).
    """
    error = _censored_difference(problem.images(params, unknowns), targets) / problem.noise_std
    counted = (jnp.abs(targets) < _SATURATED) | (error != 0)
    count = jnp.maximum(counted.sum(axis=(1, 2, 3)), 1)
    return jnp.sqrt((error**2).sum(axis=(1, 2, 3)) / count)
