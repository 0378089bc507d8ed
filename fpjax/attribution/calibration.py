"""Calibration of a scheme: where inversions start, and what is left of its own files.

False-positive rates need none of it: they are exact for every image (`tails.py`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from fpjax.errors import InputError
from fpjax.fingerprint.calibration import Calibration
from fpjax.fingerprint.embed import generate
from fpjax.fingerprint.keys import sample_keys
from fpjax.fingerprint.scheme import Scheme
from fpjax.inversion.driver import invert
from fpjax.inversion.problem import Problem
from fpjax.inversion.solution import Status
from fpjax.inversion.solvers.base import Solver
from fpjax.inversion.solvers.default import default_solver, starts_from_encoder
from fpjax.inversion.starts import NUM_FITTED_IMAGES, fit_linear_start

NUM_INVERTED_IMAGES = 16

_LEAST_RATIO = 1.5
"""Noise ratio that counts as explained at least: 1 is noise alone."""

Stage = Callable[[str, int, int], None]


def calibrate(
    scheme: Scheme,
    key: PRNGKeyArray,
    *,
    num_start_images: int = NUM_FITTED_IMAGES,
    num_inverted_images: int = NUM_INVERTED_IMAGES,
    solver: Solver | None = None,
    progress: Stage | None = None,
) -> Scheme:
    """Fits the start of inversions, checks that they work, and returns the scheme with that.

    Args:
      scheme: generator, directions and strength.
      key: PRNG key of all draws.
      num_start_images: images that the linear start is fitted on; none where inversions start from
        the generator's encoder.
      num_inverted_images: images with keys that are inverted from the fitted start.
      solver: what attribution will use; see `default_solver`.
      progress: called with (stage, done, in all).

    Returns:
      The scheme with its `Calibration`; its `id` stays the same.

    Raises:
      InputError: if more than half of the scheme's own files are not inverted down to the noise.

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

    solver = default_solver(scheme) if solver is None else solver
    key_start, key_latents, key_keys = jax.random.split(key, 3)
    start = None
    if starts_from_encoder(scheme):
        num_start_images = 0
    else:
        start = fit_linear_start(
            scheme, key_start, num_start_images, progress=staged("fitting the linear start")
        )
    problem = Problem(scheme)
    fitted = Calibration(
        start=start,
        observation=problem.observation.name,
        solver=solver.name,
        max_noise_ratio=_LEAST_RATIO,
        own_noise_ratio=1.0,
        num_start_images=num_start_images,
        num_inverted_images=num_inverted_images,
    )
    scheme = scheme.replace(calibration=fitted)
    keys = sample_keys(key_keys, num_inverted_images, scheme.key_length)
    own = invert(
        Problem(scheme),
        generate(scheme, key_latents, keys).images,
        solver,
        progress=staged("inverting images with keys"),
    )
    solved = own.status == Status.SOLVED
    if solved.mean() <= 0.5:
        raise InputError(
            f"{solved.sum()} of {len(own)} images of the scheme were inverted down to the noise "
            f"(median residual {np.median(own.noise_ratio):.2f} times the noise): inversion does "
            "not work well enough on this generator"
        )
    largest = float(own.noise_ratio[solved].max())
    return scheme.replace(
        calibration=Calibration(
            start=start,
            observation=problem.observation.name,
            solver=solver.name,
            max_noise_ratio=max(_LEAST_RATIO, 2 * largest),
            own_noise_ratio=largest,
            num_start_images=num_start_images,
            num_inverted_images=num_inverted_images,
        )
    )
