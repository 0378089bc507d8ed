"""Design without inverting: what directions, length and strength can be expected to give.

Jacobians of a few dozen natural latents, by the latent itself, and for each noise or attack of
others that explain their files as well, serve every basis, shift, length and strength
(`curvature.py`). From them come the information about the symbols, the share of bits that decision
feedback gets right, the chance that all are right, and the mutual information of the key. Quality
is measured on pictures that are made, since distortion is not linear in the strength.

This is the paper's question (which directions, what strength, how many bits) as a tool.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import jax
import numpy as np
import scipy.optimize

from fpjax.errors import InputError
from fpjax.fingerprint.basis import Basis
from fpjax.fingerprint.decode import decode_images
from fpjax.fingerprint.embed import embed, project
from fpjax.fingerprint.keys import sample_keys
from fpjax.fingerprint.scheme import Scheme
from fpjax.io.images import to_uint8
from fpjax.models.generator import Generator
from fpjax.studies.curvature import (
    NUM_LATENTS,
    curvature_along,
    information_of,
    payload_errors,
    pixel_grams,
)
from fpjax.studies.designs import Design, Prediction
from fpjax.studies.histories import History, noise_variance
from fpjax.studies.quality import Distance, psnr_db

NUM_PICTURES = 64

_TOLERANCE_DB = 0.01
"""Strengths are solved for to this; 0.1% of a strength is 0.009 dB."""

_WORST_DB = 0.5
_MOST_TRIALS = 16
_RANGE = math.log(1e12)
"""Range of strengths that are looked through, in nats."""


class UnreachableQuality(InputError):
    """No strength gives the quality that a design states."""


@dataclasses.dataclass
class _Placement:
    """A scheme of strength 1, and what its Jacobians say; the information of the last history."""

    design: tuple[str, int, int | None]
    scheme: Scheme
    curvatures: dict[History, np.ndarray] = dataclasses.field(default_factory=dict)
    history: History | None = None
    information: np.ndarray | None = None
    floor: np.ndarray | None = None
    """Squared errors of pictures without a key, in units of the squared range of grey levels."""


class Study:
    """Predicts designs of one generator; Jacobians, bases and original pictures are taken once.

    Jacobians for a history that `grams` does not have are taken when a design asks for it. Designs
    that share basis, length and shift are quickest one after the other, and of these those
    that share their noise or attack.

    Args:
      generator: what makes the images.
      bases: by name.
      key: PRNG key of latents and keys.
      num_latents: natural latents whose Jacobians are taken.
      num_pictures: pictures that quality is measured on.
      grams: those of `curvature.pixel_grams` by history, where they are at hand.
      perceptual: distance of two batches of uint8 images, such as `quality.lpips_distance` gives.
      keep_all: see `Scheme.create`.
      progress: called with (Jacobians done, in all).

    Attributes:
      originals: the pictures without a key that quality is measured on, (num_pictures, H, W, C)
        uint8.

    Raises:
      InputError: for Jacobians of another generator.
    """

    def __init__(
        self,
        generator: Generator,
        bases: Mapping[str, Basis],
        key: jax.Array,
        *,
        num_latents: int = NUM_LATENTS,
        num_pictures: int = NUM_PICTURES,
        grams: Mapping[History, np.ndarray] | None = None,
        perceptual: Distance | None = None,
        keep_all: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.keep_all = keep_all
        self.generator, self.bases, self.perceptual = generator, dict(bases), perceptual
        self._key_latents, key_pictures, self._key_keys = study_keys(key)
        size = generator.latent_size
        self.grams = dict(grams or {})
        for history, grams_of in self.grams.items():
            if grams_of.ndim != 3 or grams_of.shape[1:] != (size, size) or not len(grams_of):
                raise InputError(
                    f"grams of {history} have shape {grams_of.shape}: expected (N, {size}, {size})"
                )
        self.num_latents, self._progress = num_latents, progress
        self.num_pictures = num_pictures
        self._natural = generator.natural_latents(key_pictures, num_pictures)
        self.originals = to_uint8(decode_images(generator, self._natural))
        self._placed: _Placement | None = None
        self._solved: dict[tuple, tuple[float, float]] = {}
        self._qualities: dict[tuple, tuple[float, float, float | None]] = {}

    def scheme(self, design: Design) -> Scheme:
        """The scheme of a design, its strength solved for where it states a PSNR.

        Raises:
          UnreachableQuality: if no strength gives the PSNR.
          InputError: for a basis that the study does not have, or directions that its basis does
            not have.
        """
        placed = self._placement(design)
        return placed.scheme.replace(strength=self._strength(placed, design))

    def pictures(self, scheme: Scheme) -> np.ndarray:
        """The study's natural latents with random keys, (num_pictures, H, W, C) uint8."""
        keys = sample_keys(self._key_keys, self.num_pictures, scheme.key_length)
        latents = embed(scheme, project(scheme, self._natural), keys)
        return to_uint8(decode_images(self.generator, latents))

    def quality(self, scheme: Scheme) -> np.ndarray:
        """PSNR of each picture, (num_pictures,) decibels."""
        return psnr_db(self.originals, self.pictures(scheme))

    def information(self, design: Design) -> np.ndarray:
        """S about the symbols of a design for each latent, (N, L, L) float64."""
        placed = self._placement(design)
        return self._unit_information(placed, design.history) * self._strength(placed, design) ** 2

    def predict(self, design: Design) -> Prediction:
        """What a design is expected to give.

        Raises:
          UnreachableQuality, InputError: see `scheme`.
        """
        placed = self._placement(design)
        strength = self._strength(placed, design)
        psnr, psnr_min, lpips = self._quality(placed, strength)
        information = self.information(design)
        bit_error, exact = payload_errors(information, design.made_code)
        values = np.maximum(np.linalg.eigvalsh(information), 0)
        return Prediction(
            design,
            first_direction=_first_direction(design, self.bases[design.basis]),
            strength=strength,
            psnr=psnr,
            psnr_min=psnr_min,
            bit_error=bit_error,
            exact=exact,
            mutual_information=float(0.5 * np.log2(1 + values).sum(axis=1).mean()),
            lpips=lpips,
        )

    def _placement(self, design: Design) -> _Placement:
        """Only the last one is kept: curvatures of many directions are large."""
        where = (design.basis, design.key_length, design.shift)
        if self._placed is None or self._placed.design != where:
            if design.basis not in self.bases:
                raise InputError(
                    f"basis {design.basis!r}: this study has {', '.join(sorted(self.bases))}"
                )
            scheme = Scheme.create(
                self.generator,
                self.bases[design.basis],
                design.key_length,
                design.shift,
                strength=1.0,
                levels="antipodal",
                keep_all=self.keep_all,
            )
            self._placed = _Placement(where, scheme)
        return self._placed

    def _curvature(self, placed: _Placement, history: History) -> np.ndarray:
        if history not in self.grams:
            self.grams |= pixel_grams(
                self.generator,
                prior_of(self.bases),
                self._key_latents,
                (history,),
                self.num_latents,
                progress=self._progress,
            )
        if history not in placed.curvatures:
            placed.curvatures[history] = curvature_along(self.grams[history], placed.scheme)
        return placed.curvatures[history]

    def _unit_information(self, placed: _Placement, history: History) -> np.ndarray:
        if placed.information is None or placed.history != history:
            placed.history = history
            alpha_std = np.asarray(placed.scheme.alpha_std)
            curvature = self._curvature(placed, history)
            placed.information = information_of(curvature, alpha_std, noise_variance(history))
        return placed.information

    def _quality(self, placed: _Placement, strength: float) -> tuple[float, float, float | None]:
        """Mean and lowest PSNR, and mean LPIPS."""
        where = (*placed.design, strength)
        if where not in self._qualities:
            made = self.pictures(placed.scheme.replace(strength=strength))
            psnr, lpips = psnr_db(self.originals, made), None
            if self.perceptual is not None:
                lpips = float(self.perceptual(self.originals, made).mean())
            self._qualities[where] = (float(psnr.mean()), float(psnr.min()), lpips)
        return self._qualities[where]

    def _strength(self, placed: _Placement, design: Design) -> float:
        kind, value = design.quality
        if kind == "strength":
            return float(value)
        where = (*placed.design, value)
        if where not in self._solved:
            self._solved[where] = self._solve(placed, value)
        strength, reached = self._solved[where]
        if not strength or abs(reached - value) > _WORST_DB:
            why = (
                ""
                if strength
                else " (without a key: pictures lose their natural variation along its directions, "
                "and along those that the scheme leaves out)"
            )
            raise UnreachableQuality(
                f"{design}: no strength gives {value:g} dB, the nearest is {reached:.1f} dB{why}"
            )
        return strength

    def _solve(self, placed: _Placement, psnr: float) -> tuple[float, float]:
        """The strength nearest to a PSNR, and its PSNR; strength 0 where the PSNR is too high.

        The squared error of picture i is modelled as a_i + c_i s + b s^2: a_i is measured once
        without a key, b is a linear generator's, and c_i is what makes the last trial exact.
        """
        if placed.floor is None:
            placed.floor = 10 ** (-self.quality(placed.scheme.replace(strength=0.0)) / 10)
        floor, highest = placed.floor, float(-10 * np.log10(placed.floor).mean())
        if highest <= psnr:
            return 0.0, highest
        length = placed.scheme.key_length
        # Of no noise, whatever the design's: its strength is that of the same with another.
        curvature = self._curvature(placed, 0.0)
        change = np.einsum("nii->n", curvature[:, -length:, -length:]).mean()
        square = float(change) / (4 * math.prod(self.generator.image_shape))
        slope = np.zeros_like(floor)
        low, high, nearest = -math.inf, math.inf, (0.0, math.inf)
        for _ in range(_MOST_TRIALS):
            position = _model_position(floor, slope, square, psnr)
            if not low < position < high:
                position = (low + high) / 2
            if not math.isfinite(position):
                break
            strength = math.exp(position)
            quality = self.quality(placed.scheme.replace(strength=strength))
            reached = float(quality.mean())
            if abs(reached - psnr) < abs(nearest[1] - psnr):
                nearest = (strength, reached)
            # The distortion of 8-bit pictures is not quite continuous.
            if abs(reached - psnr) <= _TOLERANCE_DB or high - low < 1e-5:
                break
            low, high = (position, high) if reached > psnr else (low, position)
            slope = (10 ** (-quality / 10) - floor) / strength - square * strength
        return nearest


def _model_position(floor: np.ndarray, slope: np.ndarray, square: float, psnr: float) -> float:
    """log s where the mean over i of -10 log10(floor_i + slope_i s + square s^2) is `psnr`.

    Infinite where it is so nowhere.
    """

    def gap(position: float) -> float:
        strength = math.exp(position)
        error = floor + slope * strength + square * strength**2
        return float(-10 * np.log10(np.maximum(error, 1e-9)).mean()) - psnr

    bounds = (-0.5 * _RANGE, 0.5 * _RANGE)
    if not gap(bounds[0]) > 0 > gap(bounds[1]):
        return math.inf
    return float(scipy.optimize.root_scalar(gap, bracket=bounds, method="brentq").root)


def prior_of(bases: Mapping[str, Basis]) -> Basis:
    """The basis that says how natural latents spread: that of most directions, of the image metric
    where several have them."""
    return max(bases.values(), key=lambda basis: (len(basis), basis.metric == "image"))


def study_keys(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """PRNG keys of a study's Jacobians, of its pictures, and of the keys in them."""
    latents, pictures, keys = jax.random.split(key, 3)
    return latents, pictures, keys


def _first_direction(design: Design, basis: Basis) -> int:
    return len(basis) - design.key_length if design.shift is None else design.shift
