"""Design without inverting: what directions, length and strength can be expected to give.

One Jacobian of each of a few dozen natural latents, by the latent itself, serves every basis,
shift, length and strength: with W = J J^T over the pixels that are not saturated and directions T,
the curvature of any design is T W T^T over the noise's variance. From it come the information S
about the symbols (`inversion.information`), the share of bits that decision feedback gets right,
the chance that all are right, and the mutual information of the key. Quality is measured on
pictures that are made, since distortion is not linear in the strength.

This is the paper's question (which directions, what strength, how many bits) as a tool.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fpjax.errors import InputError
from fpjax.fingerprint.basis import Basis
from fpjax.fingerprint.embed import generate
from fpjax.fingerprint.keys import sample_keys
from fpjax.fingerprint.scheme import Scheme
from fpjax.inversion.information import decide_bits
from fpjax.inversion.observation import ROUNDING_STD
from fpjax.models.generator import Generator
from fpjax.models.jacobian import DEFAULT_MEMORY, block_size, jacobian_rows, tangent_bytes

NUM_LATENTS = 32
DRAWS = 32
"""Noise draws a latent, for the shares of bits and keys that are right."""

_EDGE = 1 - 1 / 255


@dataclasses.dataclass(frozen=True)
class Design:
    """A choice to be judged.

    Attributes:
      basis: name of one of the bases given to the study.
      key_length: bits.
      shift: first fingerprint direction, or None for the last ones.
      strength: in the basis's units; or None, and `psnr` says it.
      psnr: decibels between original and fingerprinted, on average.
      noise: standard deviation of the noise in the file, on [-1, 1]; 0 is rounding alone.
    """

    basis: str
    key_length: int = 64
    shift: int | None = None
    strength: float | None = None
    psnr: float | None = None
    noise: float = 0.0

    def __post_init__(self):
        if (self.strength is None) == (self.psnr is None):
            raise InputError("a design states its strength or its PSNR: one of the two")


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a design is expected to give.

    Attributes:
      design: the choice.
      strength: sigma, solved for where the design states a PSNR.
      psnr: measured mean PSNR in decibels of 8-bit pictures; `psnr_min` the lowest.
      bit_error: expected share of wrong bits.
      exact: expected share of images with every bit right.
      mutual_information: bits of information about the key, 1/2 log2 det(I + S), averaged.
    """

    design: Design
    strength: float
    psnr: float
    psnr_min: float
    bit_error: float
    exact: float
    mutual_information: float

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)


def psnr_db(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of uint8 images (B, H, W, C) in decibels, (B,).

    >>> psnr_db(np.zeros((1, 2, 2, 3), np.uint8), np.full((1, 2, 2, 3), 255, np.uint8))
    array([0.])
    """
    error = np.mean((a.astype(np.float64) - b) ** 2, axis=(1, 2, 3))
    return 20 * np.log10(255) - 10 * np.log10(np.maximum(error, 1e-12))


@functools.partial(jax.jit, static_argnums=2)
def _gram(generator: Generator, latent: jax.Array, block: int) -> jax.Array:
    """J J^T over unsaturated pixels, (D, D)."""

    def image(flat):
        latents = flat.reshape(1, *generator.latent_shape)
        return generator.decode(generator.params, latents).reshape(-1)

    tangents = jnp.eye(generator.latent_size, dtype=jnp.float32)
    value, rows = jacobian_rows(image, latent, tangents, block=block)
    rows = rows * (jnp.abs(value) < _EDGE).astype(rows.dtype)[None]
    return jnp.matmul(rows, rows.T, precision="highest")


def pixel_grams(
    generator: Generator,
    key: jax.Array,
    num_latents: int = NUM_LATENTS,
    *,
    memory: int = DEFAULT_MEMORY,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """J J^T of natural latents over the pixels that are not saturated, (N, D, D) float32.

    Args:
      generator: what makes the images.
      key: PRNG key of the latents.
      num_latents: how many, N.
      memory: bytes that a Jacobian's tangents may take.
      progress: called with (latents done, in all).
    """
    latents = jax.device_get(generator.natural_latents(key, num_latents))
    latents = np.asarray(latents, np.float32).reshape(num_latents, -1)
    point = jax.ShapeDtypeStruct((generator.latent_size,), jnp.float32)
    shaped = lambda x, g: g.decode(g.params, x.reshape(1, *g.latent_shape))  # noqa: E731
    block = block_size(generator.latent_size, tangent_bytes(shaped, point, generator), memory)
    grams = []
    for i, latent in enumerate(latents):
        grams.append(np.asarray(jax.device_get(_gram(generator, jax.device_put(latent), block))))
        if progress is not None:
            progress(i + 1, num_latents)
    return np.stack(grams)


def key_information_of(grams: np.ndarray, scheme: Scheme, noise: float) -> np.ndarray:
    """S about the symbols for each latent, (N, L, L) float64, from `pixel_grams`.

    Args:
      grams: (N, D, D).
      scheme: directions, strength, levels.
      noise: standard deviation of the noise; rounding is added to it.
    """
    directions = np.asarray(scheme.basis.directions, np.float64)
    free, fingerprint = scheme.split(directions)
    both = np.concatenate([free, scheme.strength * fingerprint])
    count = scheme.num_alpha
    precision = 1 / np.maximum(scheme.alpha_std.astype(np.float64), 1e-9) ** 2
    found = []
    for gram in grams:
        curvature = both @ gram.astype(np.float64) @ both.T / (noise**2 + ROUNDING_STD**2)
        alpha = curvature[:count, :count] + np.diag(precision)
        cross = curvature[:count, count:]
        schur = curvature[count:, count:] - cross.T @ np.linalg.solve(alpha, cross)
        found.append((schur + schur.T) / 2)
    return np.stack(found)


def decoding_errors(
    information: np.ndarray, seed: int = 0, draws: int = DRAWS
) -> tuple[float, float]:
    """Expected share of wrong bits, and of keys with every bit right, by decision feedback.

    Estimates scatter around the true symbols with the inverse of the information and the symbols'
    prior, as the solver's do; they are drawn and decoded.

    Args:
      information: (N, L, L) about symbols -1 and +1.
      seed: of the draws.
      draws: for each of the N.
    """
    rng = np.random.default_rng(seed)
    count, length = information.shape[:2]
    wrong = exact = 0.0
    for matrix in information:
        values, vectors = np.linalg.eigh(matrix)
        values = np.maximum(values, 0)
        bits = rng.integers(0, 2, (draws, length))
        symbols = 2.0 * bits - 1
        # The score h = S k + noise of covariance S; the posterior mean has the prior's precision 1.
        noise = rng.standard_normal((draws, length)) * np.sqrt(values)
        rotated = symbols @ vectors * values + noise
        mean = (rotated / (values + 1)) @ vectors.T
        posterior = np.broadcast_to(4 * (matrix + np.eye(length)), (draws, length, length))
        decided = decide_bits(0.5 + mean / 2, posterior)
        wrong += np.mean(decided != bits)
        exact += np.mean((decided == bits).all(axis=1))
    return wrong / count, exact / count


class Study:
    """Predicts designs of one generator; Jacobians and bases are taken once.

    Args:
      generator: what makes the images.
      bases: by name.
      key: PRNG key of latents and keys.
      num_latents: natural latents whose Jacobians are taken.
      num_pictures: pictures that quality is measured on.
      grams: those of `pixel_grams`, where they are at hand.
      progress: called with (Jacobians done, in all).
    """

    def __init__(
        self,
        generator: Generator,
        bases: Mapping[str, Basis],
        key: jax.Array,
        *,
        num_latents: int = NUM_LATENTS,
        num_pictures: int = 64,
        grams: np.ndarray | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.generator, self.bases = generator, dict(bases)
        key_latents, self._key_pictures, self._key_keys = jax.random.split(key, 3)
        if grams is None:
            grams = pixel_grams(generator, key_latents, num_latents, progress=progress)
        self.grams = grams
        self.num_pictures = num_pictures

    def scheme(self, design: Design) -> Scheme:
        """The scheme of a design, its strength solved for where it states a PSNR."""
        if design.basis not in self.bases:
            raise InputError(
                f"basis {design.basis!r}: this study has {', '.join(sorted(self.bases))}"
            )
        make = functools.partial(
            Scheme.create,
            self.generator,
            self.bases[design.basis],
            design.key_length,
            design.shift,
            levels="antipodal",
        )
        if design.strength is not None:
            return make(strength=design.strength)
        scheme = make(strength=1.0)
        low, high = math.log(1e-3), math.log(1e3)
        # Distortion grows with strength: halving the logarithm's interval 14 times is 0.1 %.
        for _ in range(14):
            middle = (low + high) / 2
            scheme = scheme.replace(strength=math.exp(middle))
            if self.quality(scheme).mean() > design.psnr:
                low = middle
            else:
                high = middle
        reached = float(self.quality(scheme).mean())
        if abs(reached - design.psnr) > 0.5:
            raise InputError(
                f"{design}: no strength gives {design.psnr:g} dB, the nearest is {reached:.1f} dB "
                "(what the basis leaves out bounds it)"
            )
        return scheme

    def quality(self, scheme: Scheme) -> np.ndarray:
        """PSNR of each picture, (num_pictures,) decibels."""
        keys = sample_keys(self._key_keys, self.num_pictures, scheme.key_length)
        made = generate(scheme, self._key_pictures, keys)
        return psnr_db(made.originals, made.images)

    def predict(self, design: Design) -> Prediction:
        """What a design is expected to give."""
        scheme = self.scheme(design)
        quality = self.quality(scheme)
        information = key_information_of(self.grams, scheme, design.noise)
        bit_error, exact = decoding_errors(information)
        values = np.maximum(np.linalg.eigvalsh(information), 0)
        mutual = float(0.5 * np.log2(1 + values).sum(axis=1).mean())
        return Prediction(
            design,
            float(scheme.strength),
            float(quality.mean()),
            float(quality.min()),
            float(bit_error),
            float(exact),
            mutual,
        )


def recommend(predictions: Sequence[Prediction], exact: float) -> Prediction | None:
    """The design of highest PSNR whose expected share of exact keys is at least `exact`."""
    good = [prediction for prediction in predictions if prediction.exact >= exact]
    return max(good, key=lambda prediction: prediction.psnr, default=None)
