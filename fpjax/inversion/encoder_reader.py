"""Keys read by the generator's encoder alone: a few forward passes, no inversion.

What the encoder reads along a fingerprint direction is the symbol, times a gain, plus an error that
depends on the picture. Much of that error goes where the reading is decoded and read again. Gain,
offset and the covariance of what is left are measured once on files of the scheme's own with random
keys; after that a reading is a Gaussian measurement of the symbols, with information and score like
any inversion's, and goes through the same verdicts.

It reads what the encoder sees. Along directions that the encoder smooths away an inversion can
still read a key, and the measured information says so before any image is attributed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
import numpy as np
from jaxtyping import Float, PRNGKeyArray, Shaped

from fpjax.errors import InputError
from fpjax.fingerprint.basis import sample_latents
from fpjax.fingerprint.calibration import MOST_REREADINGS, EncoderErrors
from fpjax.fingerprint.decode import decode_images
from fpjax.fingerprint.embed import embed, project
from fpjax.fingerprint.keys import level_range, sample_keys, to_symbols
from fpjax.fingerprint.scheme import Scheme
from fpjax.inversion.information import decide_bits
from fpjax.inversion.observation import Observation, Rounded8Bit
from fpjax.inversion.prior import GaussianPrior
from fpjax.inversion.problem import Problem, check_images
from fpjax.inversion.solution import Solution, Status
from fpjax.inversion.starts import REREADINGS, encoder_readings

Array = jax.Array

EXPLAINED_RATIO = 1.5
"""Size of a reading's error, in units of the measured one, up to which an image is solved."""

_BATCH = 32


@dataclasses.dataclass(frozen=True, eq=False)
class EncoderReader:
    """The encoder of a scheme's generator, with what its readings were measured to be worth.

    It goes wherever a solver goes in `fpjax.attribute`. Made by `fit_encoder_reader`, or read from
    a calibration by `EncoderReader.of`.

    Attributes:
      errors: what was measured, and for which scheme.

    >>> errors = EncoderErrors("", np.eye(2), np.zeros(2), np.eye(2) / 4, 10_000, "rounded-8bit", 0)
    >>> EncoderReader(errors).name
    'encoder'
    """

    errors: EncoderErrors

    name: ClassVar[str] = "encoder"

    @classmethod
    def of(cls, scheme: Scheme) -> EncoderReader:
        """The reader that a scheme was calibrated with.

        Raises:
          InputError: if it was calibrated with none, or changed since.
        """
        if scheme.calibration is None or scheme.calibration.encoder is None:
            raise InputError(
                "the scheme's calibration measured no encoder: fpjax.calibrate(encoder_only=True) "
                "does, and fpjax.fit_encoder_reader(scheme, key) makes a reader of its own"
            )
        if scheme.calibration.encoder.scheme_id != scheme.id:
            raise InputError(
                "the encoder was measured for another scheme than this one: calibrate it again"
            )
        return cls(scheme.calibration.encoder)

    def refuses(self, problem: Problem) -> str | None:
        """Why it does not read a problem's files, or None where it does."""
        if problem.scheme.id != self.errors.scheme_id:
            return f"this reader was measured for scheme {self.errors.scheme_id:.12}"
        if problem.observation.name != self.errors.observation:
            return (
                f"this reader was measured on files seen through {self.errors.observation!r}, not "
                f"{problem.observation.name!r}"
            )
        if problem.symbols != "relaxed" or problem.prior != GaussianPrior():
            return "this reader knows the default prior and relaxed symbols alone"
        if problem.degradation is not None:
            return "this reader knows undegraded pictures alone"
        return None

    def read(
        self,
        scheme: Scheme,
        images: Shaped[Array | np.ndarray, "batch height width channels"],
        progress: Callable[[int, int], None] | None = None,
    ) -> Solution:
        """Reads the keys of files (B, H, W, C), uint8 or float in [-1, 1].

        Returns:
          The `Solution`: `noise_ratio` is the size of the reading's error after the decision, in
          units of the measured one, and a file whose error is no larger than usual is `SOLVED`;
          `alpha` is what the encoder reads, and `residual` what the picture it reads leaves.

        Raises:
          InputError: for another scheme, or images that do not fit it.
        """
        if scheme.id != self.errors.scheme_id:
            raise InputError(f"this reader was measured for scheme {self.errors.scheme_id:.12}")
        errors, length = self.errors, scheme.num_symbols
        files = check_images(Problem(scheme), images)
        usable = np.nan_to_num(files, posinf=1.0, neginf=-1.0)
        found, left = encoder_readings(scheme, usable, errors.rereadings, progress)
        alpha, readings = found[:, : scheme.num_alpha], found[:, scheme.num_alpha :]
        finite = np.logical_and(
            np.isfinite(files).all(axis=(1, 2, 3)), np.isfinite(found).all(axis=1)
        )
        readings = np.where(finite[:, None], readings.astype(np.float64), errors.offset[None])
        information = errors.information
        weight = errors.share * np.linalg.solve(errors.covariance, errors.gain)
        linear = (readings - errors.offset) @ weight
        centre, half = level_range(scheme.levels)
        posterior = information + np.eye(length) / half**2
        symbols = np.linalg.solve(posterior, (linear + centre / half**2).T).T
        soft = 0.5 + (symbols - centre) / (2 * half)
        count = len(files)
        in_bits = np.broadcast_to(posterior * (2 * half) ** 2, (count, length, length))
        keys = decide_bits(soft, in_bits)
        error = readings - errors.offset - to_symbols(keys, scheme.levels) @ errors.gain.T
        whitened = np.linalg.solve(errors.covariance, error.T).T
        # What so few files overstate, and what they leave open about the gain.
        fair = errors.share / (1 + (length + 1) / errors.num_images)
        ratio = np.sqrt(fair * np.sum(error * whitened, axis=1) / length)
        status = np.where(ratio <= EXPLAINED_RATIO, Status.SOLVED, Status.CONVERGED)
        return Solution(
            keys=keys,
            soft_bits=soft.astype(np.float32),
            alpha=alpha.astype(np.float32),
            residual=np.where(finite, left, np.nan).astype(np.float32),
            noise_ratio=ratio.astype(np.float32),
            loss=(0.5 * ratio**2 * length).astype(np.float32),
            steps=np.zeros(count, np.int32),
            status=np.where(finite, status, Status.NOT_FINITE).astype(np.int32),
            information=np.broadcast_to(information, (count, length, length)).astype(np.float32),
            linear=linear.astype(np.float32),
        )


def least_images(num_symbols: int) -> int:
    """Fewest files that an encoder's errors in so many symbols are measured on.

    >>> least_images(64)
    256
    """
    return max(4 * num_symbols, 2 * num_symbols + 8)


def fit_encoder_reader(
    scheme: Scheme,
    key: PRNGKeyArray,
    num_images: int = 1000,
    *,
    observation: Observation | None = None,
    rereadings: int = REREADINGS,
    latents: Float[np.ndarray, "num size"] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> EncoderReader:
    """Measures what the encoder's readings are worth, on files with random keys.

    Args:
      scheme: its generator has an encoder.
      key: PRNG key of latents, keys and files.
      num_images: files, at least `least_images(L)`.
      observation: how the pictures become files; by default `Rounded8Bit`.
      rereadings: how often a file's reading is decoded and read again, which brings it much nearer
        (`starts.encoder_readings`); 0 reads in one forward pass.
      latents: (N, D) natural latents to take in turn, where nothing draws them.
      progress: called with (files done, in all).

    Raises:
      InputError: if there is no encoder, it reads nothing, or too few files are asked for.

    >>> import jax.numpy as jnp
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
    # Any symbols, also those that are no code's word.
    plain = scheme.without_calibration()
    generator, length = scheme.generator, scheme.num_symbols
    if generator.encode is None:
        raise InputError(f"generator {generator.name!r} has no encoder to read with")
    if num_images < (least := least_images(length)):
        raise InputError(f"{num_images} images for {length} symbols: take at least {least}")
    if not 0 <= rereadings <= MOST_REREADINGS:
        raise InputError(f"rereadings {rereadings}: expected 0 to {MOST_REREADINGS}")
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
        pictures = decode_images(generator, embed(plain, alpha, keys[part]), _BATCH)
        folded = jax.random.fold_in(key_files, jax.device_put(np.uint32(first)))
        files = simulate(*jax.device_put((observation, folded, pictures)))
        files = np.asarray(jax.device_get(files), np.float32) / np.float32(127.5) - 1
        found, _ = encoder_readings(scheme, files, rereadings)
        readings.append(found[:, scheme.num_alpha :].astype(np.float64))
        if progress is not None:
            progress(min(first + _BATCH, num_images), num_images)
    read = np.concatenate(readings)
    symbols = to_symbols(keys, scheme.levels).astype(np.float64)
    regressors = np.concatenate([symbols, np.ones((num_images, 1))], axis=1)
    weight = np.linalg.lstsq(regressors, read, rcond=None)[0]
    error = read - regressors @ weight
    covariance = error.T @ error / (num_images - length - 1)
    try:
        errors = EncoderErrors(
            scheme.id, weight[:-1].T, weight[-1], covariance, num_images, observation.name,
            rereadings,
        )  # fmt: skip
    except ValueError as error:
        raise InputError(
            f"the encoder of {generator.name!r} reads nothing of these keys ({error})"
        ) from error
    return EncoderReader(errors)
