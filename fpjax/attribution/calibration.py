"""Calibration of a scheme: where inversions start, and what is left of its own files.

False-positive rates need none of it: they are exact for every image (`tails.py`).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from fpjax.errors import InputError
from fpjax.fingerprint.basis import sample_latents
from fpjax.fingerprint.block_basis import BlockBasis
from fpjax.fingerprint.calibration import Calibration, LinearStart
from fpjax.fingerprint.decode import decode_images
from fpjax.fingerprint.embed import embed, generate, project
from fpjax.fingerprint.keys import sample_keys, to_symbols
from fpjax.fingerprint.scheme import Scheme
from fpjax.inversion.encoder_reader import EncoderReader, fit_encoder_reader
from fpjax.inversion.problem import Problem
from fpjax.inversion.readers import LEAST_EXPLAINED, Reader, read_files
from fpjax.inversion.solution import Status
from fpjax.inversion.solvers.base import Solver
from fpjax.inversion.solvers.default import default_solver
from fpjax.inversion.solvers.levenberg_marquardt import LevenbergMarquardt
from fpjax.inversion.starts import (
    NUM_FITTED_IMAGES,
    encoder_starts,
    fit_linear_start,
    linear_read_out,
    natural_spread,
)
from fpjax.io.images import from_uint8, to_uint8

NUM_INVERTED_IMAGES = 16
NUM_READ_IMAGES = 1000

_NUM_COMPARED = 32
"""Files that an encoder and a linear start are compared on."""

Stage = Callable[[str, int, int], None]


def calibrate(
    scheme: Scheme,
    key: PRNGKeyArray,
    *,
    num_start_images: int = NUM_FITTED_IMAGES,
    num_inverted_images: int = NUM_INVERTED_IMAGES,
    solver: Solver | None = None,
    encoder_only: bool = False,
    num_read_images: int = NUM_READ_IMAGES,
    progress: Stage | None = None,
) -> Scheme:
    """Fits the start of inversions, checks that they work, and returns the scheme with that.

    Args:
      scheme: generator, directions and strength.
      key: PRNG key of all draws.
      num_start_images: images that the linear start is fitted on. Where the generator has an
        encoder that reads files better, inversions start from that, and nothing is kept of it.
      num_inverted_images: images with keys that are inverted from the fitted start.
      solver: what attribution will use; see `default_solver`.
      encoder_only: whether attribution reads clean files by the generator's encoder alone. Then no
        linear start is fitted; inversions, which other files need, start from the encoder too.
      num_read_images: files that the encoder's errors are measured on, for `encoder_only`.
      progress: called with (stage, done, in all).

    Returns:
      The scheme with its `Calibration`; its `id` stays the same.

    Raises:
      InputError: if half of the scheme's own files or more are not inverted down to the noise, or
        read as well as measured; if there is no encoder for `encoder_only`.

    >>> import fpjax
    >>> from fpjax.models.linear import linear_generator
    >>> generator = linear_generator()
    >>> basis = fpjax.fit_basis(generator, jax.random.key(0), 100, metric="latent")
    >>> scheme = fpjax.Scheme.create(generator, basis, key_length=4, strength=0.5)
    >>> calibrated = calibrate(
    ...     scheme, jax.random.key(1), num_start_images=200, num_inverted_images=2)
    >>> calibrated.calibration.solver, calibrated.id == scheme.id
    ('levenberg-marquardt', True)
    """

    def staged(stage):
        return None if progress is None else functools.partial(progress, stage)

    if encoder_only and solver is not None:
        raise InputError("give a solver or encoder_only, not both")
    scheme = scheme.replace(calibration=None)  # what was learned before is not asked
    reader: Reader = default_solver(scheme) if solver is None else solver
    key_start, key_latents, key_keys = jax.random.split(key, 3)
    start, problem = None, Problem(scheme)
    if encoder_only:
        reader = fit_encoder_reader(
            scheme, key_start, num_read_images, progress=staged("measuring the encoder's errors")
        )
    else:
        stage = staged("fitting the linear start")
        start = _chosen_start(scheme, key_start, num_start_images, stage)
    fitted = Calibration(
        start=start,
        observation=problem.observation.name,
        solver=reader.name,
        max_noise_ratio=LEAST_EXPLAINED,
        own_noise_ratio=1.0,
        num_start_images=0 if start is None else num_start_images,
        num_inverted_images=num_inverted_images,
        encoder=reader.errors if isinstance(reader, EncoderReader) else None,
    )
    scheme = scheme.replace(calibration=fitted)
    keys = sample_keys(key_keys, num_inverted_images, scheme.key_length)
    files = generate(scheme, key_latents, keys).images
    stage = staged("reading images with keys")
    own = read_files(Problem(scheme), files, reader, progress=stage)
    solved = own.status == Status.SOLVED
    if solved.mean() <= 0.5:
        how = "read as well as measured" if encoder_only else "inverted down to the noise"
        raise InputError(
            f"{solved.sum()} of {len(own)} images of the scheme were {how} (median residual "
            f"{np.median(own.noise_ratio):.2f} times the noise): {reader.name} does not work well "
            "enough on this generator"
        )
    largest = float(own.noise_ratio[solved].max())
    measured = dataclasses.replace(
        fitted,
        max_noise_ratio=max(LEAST_EXPLAINED, 2 * largest),
        own_noise_ratio=largest,
        first_noise_ratio=_left_by_one_jacobian(scheme, files[solved], reader),
    )
    return scheme.replace(calibration=measured)


def _left_by_one_jacobian(scheme: Scheme, files: np.ndarray, reader: Reader) -> float | None:
    """The largest residual of files after one Jacobian, or None where no solver judges by it."""
    start = None if scheme.calibration is None else scheme.calibration.start
    if not isinstance(reader, LevenbergMarquardt) or start is None or start.forward is None:
        return None
    # All counts as foreign then: no lane goes back to its start for a second one.
    once = dataclasses.replace(reader, max_steps=1, foreign_ratio=0.0)
    largest = float(read_files(Problem(scheme), files, once).noise_ratio.max())
    return largest if math.isfinite(largest) else None


def _chosen_start(scheme: Scheme, key, num_images: int, progress) -> LinearStart | None:
    """A linear start, or None where the generator's encoder is nearer to the truth.

    For bases in blocks the encoder is taken unseen: a linear start of their size is not kept.
    """
    # Of any symbols, also those that are no code's word: a start must not know a code's mask.
    plain = scheme.without_calibration()
    if scheme.generator.encode is None:
        return fit_linear_start(plain, key, num_images, progress=progress)
    if isinstance(scheme.basis, BlockBasis):
        return None
    key_fit, key_latents, key_keys = jax.random.split(key, 3)
    start = fit_linear_start(plain, key_fit, num_images, progress=progress)
    latents = sample_latents(scheme.generator, key_latents, _NUM_COMPARED)
    latents = latents.reshape(-1, *scheme.generator.latent_shape)
    keys = sample_keys(key_keys, _NUM_COMPARED, scheme.num_symbols)
    alpha = project(plain, latents)
    files = from_uint8(to_uint8(decode_images(scheme.generator, embed(plain, alpha, keys))))
    truth = np.concatenate([alpha, to_symbols(keys, scheme.levels)], axis=1)
    spread = natural_spread(scheme)

    def error(found: np.ndarray) -> float:
        return float(np.median(np.square((found - truth) / spread[None]).sum(axis=1)))

    encoded = error(encoder_starts(Problem(plain), files))
    return None if encoded < error(linear_read_out(start, files)) else start
