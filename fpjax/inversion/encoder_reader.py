"""Keys read by the generator's encoder alone: one forward pass, no inversion.

What the encoder reads along a fingerprint direction is the symbol, times a gain, plus an error that
depends on the picture. Gain, offset and the covariance of the errors are measured once on files of
the scheme's own with random keys; after that a reading is a Gaussian measurement of the symbols,
with information and score like any inversion's, and goes through the same verdicts.

It reads what the encoder sees. Along directions that the encoder smooths away an inversion can
still read a key, and the measured information says so before any image is attributed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Float, PRNGKeyArray, Shaped

from fpjax.errors import InputError
from fpjax.fingerprint.basis import sample_latents
from fpjax.fingerprint.decode import decode_images
from fpjax.fingerprint.embed import embed, project
from fpjax.fingerprint.keys import level_range, sample_keys, to_symbols
from fpjax.fingerprint.scheme import Scheme
from fpjax.inversion.information import decide_bits
from fpjax.inversion.observation import Observation, Rounded8Bit
from fpjax.inversion.problem import Problem, check_images
from fpjax.inversion.solution import Solution, Status

Array = jax.Array

EXPLAINED_RATIO = 1.5
"""Size of a reading's error, in units of the measured one, up to which an image is solved."""

_BATCH = 32


@dataclasses.dataclass(frozen=True, eq=False)
class EncoderReader:
    """What the encoder's readings of a scheme's symbols are worth.

    A reading is r = gain k + offset + e, e normal with `covariance`.

    Attributes:
      scheme_id: of the scheme it was measured for.
      gain: (L, L).
      offset: (L,).
      covariance: (L, L) of the errors.
      num_images: files that it was measured on.
      observation: name of the observation that they were seen through.

    >>> reader = EncoderReader("", np.eye(2), np.zeros(2), np.eye(2) / 4, 10_000, "rounded-8bit")
    >>> np.diag(reader.information).round(2).tolist()  # 1 / variance
    [4.0, 4.0]
    """

    scheme_id: str
    gain: Float[np.ndarray, "length length"]
    offset: Float[np.ndarray, " length"]
    covariance: Float[np.ndarray, "length length"]
    num_images: int
    observation: str

    @property
    def information(self) -> Float[np.ndarray, "length length"]:
        """S of every image, (L, L) float64: gain^T covariance^-1 gain, less what the estimate of a
        covariance from so many files overstates (Hartlap et al. 2007)."""
        length = len(self.offset)
        share = (self.num_images - 2 * length - 3) / (self.num_images - length - 1)
        return share * self.gain.T @ np.linalg.solve(self.covariance, self.gain)

    def read(
        self,
        scheme: Scheme,
        images: Shaped[Array | np.ndarray, "batch height width channels"],
    ) -> Solution:
        """Reads the keys of files (B, H, W, C), uint8 or float in [-1, 1].

        Returns:
          The `Solution`: `noise_ratio` is the size of the reading's error after the decision, in
          units of the measured one; `residual`, which needs a decode, is NaN; `alpha` is what the
          encoder reads.

        Raises:
          InputError: for another scheme, or images that do not fit it.
        """
        if scheme.id != self.scheme_id:
            raise InputError(f"this reader was measured for scheme {self.scheme_id:.12}")
        files = check_images(Problem(scheme), images)
        alpha, readings = _readings(scheme, np.nan_to_num(files, posinf=1.0, neginf=-1.0))
        length = scheme.key_length
        information = self.information
        share = np.trace(information) / np.trace(
            self.gain.T @ np.linalg.solve(self.covariance, self.gain)
        )
        linear = share * (readings - self.offset) @ np.linalg.solve(self.covariance, self.gain)
        centre, half = level_range(scheme.levels)
        posterior = information + np.eye(length) / half**2
        symbols = np.linalg.solve(posterior, (linear + centre / half**2).T).T
        soft = 0.5 + (symbols - centre) / (2 * half)
        count = len(files)
        in_bits = np.broadcast_to(posterior * (2 * half) ** 2, (count, length, length))
        keys = decide_bits(soft, in_bits)
        error = readings - self.offset - to_symbols(keys, scheme.levels) @ self.gain.T
        whitened = np.linalg.solve(self.covariance, error.T).T
        ratio = np.sqrt(np.sum(error * whitened, axis=1) / length)
        finite = np.isfinite(files).all(axis=(1, 2, 3))
        status = np.where(ratio <= EXPLAINED_RATIO, Status.SOLVED, Status.CONVERGED)
        return Solution(
            keys=keys,
            soft_bits=soft.astype(np.float32),
            alpha=alpha.astype(np.float32),
            residual=np.full(count, np.nan, np.float32),
            noise_ratio=ratio.astype(np.float32),
            loss=(0.5 * ratio**2 * length).astype(np.float32),
            steps=np.zeros(count, np.int32),
            status=np.where(finite, status, Status.NOT_FINITE).astype(np.int32),
            information=np.broadcast_to(information, (count, length, length)).astype(np.float32),
            linear=linear.astype(np.float32),
        )


@jax.jit
def _encode(scheme: Scheme, images: Array) -> tuple[Array, Array]:
    assert scheme.generator.encode is not None
    return scheme.read(scheme.generator.encode(scheme.generator.params, images))


def _readings(scheme: Scheme, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """alpha (B, K - L) and symbols (B, L) as the encoder reads them, float64."""
    scheme = jax.device_put(scheme.without_calibration())
    alpha, symbols = [], []
    for first in range(0, len(images), _BATCH):
        part = images[first : first + _BATCH]
        padded = np.concatenate([part, np.repeat(part[-1:], _BATCH - len(part), axis=0)])
        found = jax.device_get(_encode(scheme, jax.device_put(padded)))
        alpha.append(found[0][: len(part)])
        symbols.append(found[1][: len(part)])
    return np.concatenate(alpha), np.concatenate(symbols).astype(np.float64)


def fit_encoder_reader(
    scheme: Scheme,
    key: PRNGKeyArray,
    num_images: int = 1000,
    *,
    observation: Observation | None = None,
    latents: Float[np.ndarray, "num size"] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> EncoderReader:
    """Measures what the encoder's readings are worth, on files with random keys.

    Args:
      scheme: its generator has an encoder.
      key: PRNG key of latents, keys and files.
      num_images: files, at least 4 L.
      observation: how the pictures become files; by default `Rounded8Bit`.
      latents: (N, D) natural latents to take in turn, where nothing draws them.
      progress: called with (files done, in all).

    Raises:
      InputError: if there is no encoder, or too few files are asked for.

    >>> import fpjax
    >>> from fpjax.models.linear import linear_generator
    >>> made = linear_generator()
    >>> made = made.replace(encode=lambda params, x: jnp.tensordot(
    ...     x, params, axes=((1, 2, 3), (1, 2, 3))) / jnp.sum(params**2, axis=(1, 2, 3))[None])
    >>> basis = fpjax.fit_basis(made, jax.random.key(0), 100, metric="latent")
    >>> scheme = fpjax.Scheme.create(made, basis, key_length=4, strength=0.5)
    >>> reader = fit_encoder_reader(scheme, jax.random.key(1), 64)
    >>> files = fpjax.generate(scheme, jax.random.key(2), np.asarray([[0, 1, 1, 0]])).images
    >>> reader.read(scheme, files).keys.tolist()
    [[0, 1, 1, 0]]
    """
    generator, length = scheme.generator, scheme.key_length
    if generator.encode is None:
        raise InputError(f"generator {generator.name!r} has no encoder to read with")
    if num_images < 4 * length:
        raise InputError(f"{num_images} images for {length} bits: take at least {4 * length}")
    observation = Rounded8Bit() if observation is None else observation
    key_latents, key_keys, key_files = jax.random.split(key, 3)
    if latents is None:
        latents = sample_latents(generator, key_latents, num_images)
    latents = latents[np.arange(num_images) % len(latents)]
    latents = latents.reshape(num_images, *generator.latent_shape)
    keys = sample_keys(key_keys, num_images, length)
    simulate = jax.jit(type(observation).simulate)
    readings = []
    for first in range(0, num_images, _BATCH):
        part = slice(first, first + _BATCH)
        alpha = project(scheme, latents[part])
        pictures = decode_images(generator, embed(scheme, alpha, keys[part]), _BATCH)
        folded = jax.random.fold_in(key_files, first)
        files = simulate(*jax.device_put((observation, folded, pictures)))
        files = np.asarray(jax.device_get(files), np.float32) / np.float32(127.5) - 1
        readings.append(_readings(scheme, files)[1])
        if progress is not None:
            progress(min(first + _BATCH, num_images), num_images)
    read = np.concatenate(readings)
    symbols = to_symbols(keys, scheme.levels).astype(np.float64)
    regressors = np.concatenate([symbols, np.ones((num_images, 1))], axis=1)
    weight = np.linalg.lstsq(regressors, read, rcond=None)[0]
    error = read - regressors @ weight
    covariance = error.T @ error / (num_images - length - 1)
    return EncoderReader(
        scheme.id, weight[:-1].T, weight[-1], covariance, num_images, observation.name
    )
