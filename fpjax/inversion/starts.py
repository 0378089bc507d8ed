"""Where inversion starts: a Latin hypercube around the mean; a linear read-out of the pixels, which
an average Jacobian then takes nearer; or what the generator's encoder reads, read again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Float, PRNGKeyArray

from fpjax.errors import InputError
from fpjax.fingerprint.basis import sample_latents
from fpjax.fingerprint.calibration import LinearStart
from fpjax.fingerprint.decode import decode_images
from fpjax.fingerprint.embed import embed, project
from fpjax.fingerprint.keys import level_range, sample_keys
from fpjax.fingerprint.scheme import Scheme
from fpjax.inversion.broyden import descend, product
from fpjax.inversion.observation import ROUNDING_STD, Observation, Rounded8Bit
from fpjax.inversion.prior import GaussianPrior
from fpjax.inversion.problem import Problem
from fpjax.precision import full_precision
from fpjax.programs import program

Array = jax.Array

NUM_FITTED_IMAGES = 12_000
LOW_PASS_SIDE = 32

_ENCODED = 16
"""Images that are encoded at once, at most."""
_ENCODED_VALUES = 1 << 20
"""Pixel values of the images that are encoded at once, so that large ones go one by one."""


def latin_hypercube_starts(
    problem: Problem, num_starts: int, seed: int = 0
) -> Float[np.ndarray, "num_starts unknowns"]:
    """The published starts: alpha from a centred Latin hypercube in [-s, s], kappa from 0.

    Returns:
      (num_starts, K) float32; symbols start in the middle.

    Source: Nie et al. 2023, Section 4; `scipy.stats.qmc.LatinHypercube` without scrambling.
    """
    from scipy.stats import qmc

    scheme = problem.scheme
    sampler = qmc.LatinHypercube(d=scheme.num_alpha, scramble=False, rng=seed)
    alpha = (2 * sampler.random(num_starts) - 1) * scheme.alpha_std[None]
    centre, _ = level_range(scheme.levels)
    middle = 0.0 if problem.symbols == "sigmoid" else centre
    symbols = np.full((num_starts, scheme.num_symbols), middle)
    return np.concatenate([alpha, symbols], axis=1).astype(np.float32)


def low_pass(images: Array) -> Array:
    """Images (B, H, W, C) reduced to at most 32 a side and flattened, (B, F).

    Sides that are multiples of 32 are averaged over boxes, others resampled with an antialiased
    triangle filter.

    >>> low_pass(jnp.ones((2, 100, 48, 1))).shape
    (2, 1024)
    """
    batch, height, width, channels = images.shape
    rows, columns = min(height, LOW_PASS_SIDE), min(width, LOW_PASS_SIDE)
    if height % rows or width % columns:
        shape = (batch, rows, columns, channels)
        images = jax.image.resize(images, shape, "linear", antialias=True)
    elif (height, width) != (rows, columns):
        shape = (batch, rows, height // rows, columns, width // columns, channels)
        images = images.reshape(shape).mean(axis=(2, 4))
    return images.reshape(batch, -1)


@program()
@full_precision
def _read(images: Array, weight: Array, bias: Array) -> Array:
    return low_pass(images) @ weight.astype(jnp.float32) + bias[None]


def linear_starts(
    problem: Problem, images: Float[np.ndarray, "batch height width channels"]
) -> Float[np.ndarray, "batch unknowns"]:
    """The calibrated linear start of each image, (B, K) float32, or the encoder's where calibration
    fitted none.

    Raises:
      InputError: if the scheme was never calibrated.
    """
    calibration = problem.scheme.calibration
    if calibration is None:
        raise InputError(
            "the scheme has no start for inversions: make one with fpjax.calibrate(scheme, key), "
            "or pass starts"
        )
    start = calibration.start
    if start is None:
        return encoder_starts(problem, images)
    return linear_read_out(start, images)


def linear_read_out(
    start: LinearStart, images: Float[np.ndarray, "batch height width channels"]
) -> Float[np.ndarray, "batch unknowns"]:
    """What a linear start reads in images in [-1, 1], (B, K) float32."""
    operands = jax.device_put((images, start.weight, start.bias))
    return np.asarray(jax.device_get(_read(*operands)))


def reads_first(scheme: Scheme) -> bool:
    """Whether anything reads images before an inversion: a calibrated start, or an encoder."""
    calibrated = scheme.calibration is not None and scheme.calibration.start is not None
    return calibrated or scheme.generator.encode is not None


def first_readings(
    scheme: Scheme, images: Float[np.ndarray, "batch height width channels"]
) -> Float[np.ndarray, "batch unknowns"]:
    """What the calibrated start reads in images in [-1, 1], or else the encoder, once, (B, K).

    Raises:
      InputError: if the scheme was never calibrated, and its generator has no encoder.
    """
    if not reads_first(scheme):
        raise InputError(
            "the scheme has no start for inversions: make one with fpjax.calibrate(scheme, key), "
            "or pass starts"
        )
    start = None if scheme.calibration is None else scheme.calibration.start
    if start is not None:
        return linear_read_out(start, images)
    return encoder_readings(scheme, images, rereadings=0)[0]


_NEARER_STEPS = 40


def nearer_start(
    problem: Problem,
    start: Float[Array, " unknowns"],
    target: Float[Array, "height width channels"],
    steps: int = _NEARER_STEPS,
    average: tuple[Array, Array] | None = None,
) -> Float[Array, " unknowns"]:
    """A start (K,) that explains an image's low-passed pixels better, by forward passes alone.

    Descends with the average Jacobian of the calibration in place of the image's own, for at most
    `steps` forward passes. Where the first steps make it worse, the start stays what it is.

    Args:
      problem, start, target, steps: what is started, from where, of which image, and how far.
      average: `average_jacobian(problem)`, where it is at hand.
    """
    assert isinstance(problem.prior, GaussianPrior)
    mean, std = problem.prior.mean_and_std(problem.scheme)
    wanted, noise = low_pass(target[None])[0], _noise_of(problem)
    rows, gram = average_jacobian(problem) if average is None else average

    def objective(unknowns):
        image = jnp.clip(problem.image(unknowns), -1, 1)
        residual = (low_pass(image[None])[0] - wanted) / noise
        cost = 0.5 * (residual @ residual) + problem.prior.penalty(problem.scheme, unknowns)
        ratio = jnp.sqrt(jnp.mean(residual**2))
        return residual, jnp.where(jnp.isfinite(cost), cost, jnp.inf), ratio

    return descend(
        objective,
        rows,
        (start, *objective(start)),
        (mean, 1 / std**2),
        jnp.ones((), jnp.float32),
        bounded=problem.bounded,
        steps=steps,
        gram=gram,
    ).unknowns


def average_jacobian(
    problem: Problem,
) -> tuple[Float[Array, "unknowns values"], Float[Array, "unknowns unknowns"]]:
    """The average Jacobian that calibration found, as rows in units of the noise, and their Gram
    matrix."""
    assert problem.average_rows is not None
    rows = jnp.asarray(problem.average_rows, jnp.float32) / _noise_of(problem)
    return rows, product(rows, rows.T)


def _noise_of(problem: Problem) -> Array:
    """Noise of the pixels that is assumed: what is noise in the file must not be fitted."""
    return jnp.asarray(getattr(problem.observation, "pixel_std", ROUNDING_STD), jnp.float32)


REREADINGS = 12
"""How often what an encoder read is decoded and read again."""
_RELAXATION = 0.7
"""Share of the difference of two readings that is gone: an encoder may answer too strongly."""
_REMEMBERED = 3
"""Readings before the last one that the next one is extrapolated from."""
_RIDGE = 1e-4
"""Of that extrapolation, as a share of the mean square of the readings' changes."""


def _solve_positive(matrix: Array, vector: Array) -> Array:
    """The solution (n,) for a positive definite matrix (n, n) of a few rows, unrolled: batched
    factorisations wait for the thread pool that they run in.

    >>> _solve_positive(jnp.array([[2.0, 1.0], [1.0, 2.0]]), jnp.array([3.0, 3.0])).tolist()
    [1.0, 1.0]
    """
    rows = jnp.concatenate([matrix, vector[:, None]], axis=1)
    for i in range(matrix.shape[0]):
        pivot = rows[i] / rows[i, i]
        rows = (rows - rows[:, i : i + 1] * pivot[None]).at[i].set(pivot)
    return rows[:, -1]


def _extrapolated(unknowns: Array, gaps: Array, past: Array, past_gaps: Array, known: Array):
    """Anderson's mixing (1965): the next unknowns (K,), from these, the gap (K,) of their reading,
    and those of a few readings before, (M, K) each, the first `known` of which are real."""
    real = (jnp.arange(_REMEMBERED) < known)[:, None]
    steps = jnp.where(real, past - unknowns[None], 0)
    changes = jnp.where(real, past_gaps - gaps[None], 0)
    gram = jnp.matmul(changes, changes.T, precision=jax.lax.Precision.HIGHEST)
    ridge = _RIDGE * jnp.trace(gram) / _REMEMBERED + jnp.finfo(gram.dtype).tiny
    gram = gram + ridge * jnp.eye(_REMEMBERED, dtype=gram.dtype)
    weights = -_solve_positive(gram, changes @ gaps)
    return unknowns + weights @ steps + _RELAXATION * (gaps + weights @ changes)


@program(static_argnums=2)
@full_precision
def _read_again(scheme: Scheme, images: Array, rereadings: int) -> tuple[Array, Array]:
    """Unknowns (B, K), and the root mean square (B,) of what the picture that they make leaves."""
    encode, params = scheme.generator.encode, scheme.generator.params
    assert encode is not None
    centre, _ = level_range(scheme.levels)

    def read(pictures: Array) -> Array:
        return jnp.concatenate(scheme.read(encode(params, pictures)), axis=1)

    def picture(unknowns: Array) -> Array:
        alpha, symbols = jnp.split(unknowns, [scheme.num_alpha], axis=1)
        return jnp.clip(scheme.decode(scheme.latents_of(alpha, symbols)), -1, 1)

    def better(best, unknowns: Array, pictures: Array):
        error = jnp.square(pictures - images).mean(axis=(1, 2, 3))
        nearer = error < best[1]  # false of what is not finite
        return jnp.where(nearer[:, None], unknowns, best[0]), jnp.where(nearer, error, best[1])

    def reread(carry, index):
        unknowns, best, past, past_gaps = carry
        pictures = picture(unknowns)
        gaps = first - read(pictures)
        onward = jax.vmap(_extrapolated, (0, 0, 0, 0, None))
        further = onward(unknowns, gaps, past, past_gaps, index)
        past = jnp.concatenate([unknowns[:, None], past[:, :-1]], axis=1)
        past_gaps = jnp.concatenate([gaps[:, None], past_gaps[:, :-1]], axis=1)
        return (further, better(best, unknowns, pictures), past, past_gaps), None

    first = read(images)
    if rereadings == 0:
        return first, jnp.sqrt(jnp.square(picture(first) - images).mean(axis=(1, 2, 3)))
    mean = jnp.full_like(first, centre).at[:, : scheme.num_alpha].set(0.0)
    nothing = jnp.zeros((first.shape[0], _REMEMBERED, first.shape[1]), first.dtype)
    unread = (mean, jnp.full(first.shape[:1], jnp.inf, first.dtype))
    best = better(unread, mean, picture(mean[:1]))
    begun = (first, best, nothing, nothing)
    (last, best, _, _), _ = jax.lax.scan(reread, begun, jnp.arange(rereadings))
    best, error = better(best, last, picture(last))
    return best, jnp.sqrt(error)


def encoder_readings(
    scheme: Scheme,
    images: Float[np.ndarray, "batch height width channels"],
    rereadings: int = REREADINGS,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Float[np.ndarray, "batch unknowns"], Float[np.ndarray, " batch"]]:
    """What the generator's encoder reads in images in [-1, 1], and reads again.

    An encoder reads its own decoder's pictures with an error that depends on the picture. So what
    it read is decoded and read once more, the unknowns move by the difference of the two readings,
    extrapolated from the last few, and so on: a picture that reads like the file is near to it. Of
    what was found on the way (the mean among it, as an untrained encoder misreads everything) the
    nearest to the file's pixels is returned. Without rereadings it is the first reading.

    Returns:
      Unknowns (B, K), and what the picture that they make leaves of the file, the root of the mean
      square (B,), both float32.

    Raises:
      InputError: if the generator has no encoder.
    """
    scheme = scheme.without_calibration()
    if scheme.generator.encode is None:
        raise InputError(f"generator {scheme.generator.name!r} has no encoder to read with")
    batch = max(1, min(_ENCODED, _ENCODED_VALUES // max(1, images[:1].size)))
    operand = jax.device_put(scheme)
    unknowns = np.empty((len(images), scheme.num_alpha + scheme.num_symbols), np.float32)
    left = np.empty(len(images), np.float32)
    for first in range(0, len(images), batch):
        part = images[first : first + batch]
        # One program, whatever the number of images.
        padded = np.concatenate([part, np.repeat(part[-1:], batch - len(part), axis=0)])
        found = jax.device_get(_read_again(operand, jax.device_put(padded), rereadings))
        unknowns[first : first + batch] = found[0][: len(part)]
        left[first : first + batch] = found[1][: len(part)]
        if progress is not None:
            progress(first + len(part), len(images))
    return unknowns, left


def encoder_starts(
    problem: Problem, images: Float[np.ndarray, "batch height width channels"]
) -> Float[np.ndarray, "batch unknowns"]:
    """`encoder_readings` of each image, (B, K) float32, symbols kept near their levels.

    Raises:
      InputError: if the generator has no encoder.
    """
    scheme = problem.scheme
    found, _ = encoder_readings(scheme, images)
    centre, half = level_range(scheme.levels)
    symbols = np.clip(found[:, scheme.num_alpha :], centre - 2 * half, centre + 2 * half)
    return np.concatenate([found[:, : scheme.num_alpha], symbols], axis=1)


def natural_spread(scheme: Scheme) -> Float[np.ndarray, " unknowns"]:
    """Standard deviation of the unknowns (K,) over files with random keys, alpha first, above 0."""
    _, half = level_range(scheme.levels)
    alpha = np.maximum(scheme.alpha_std, 1e-6 * scheme.alpha_std.max(initial=1e-30))
    return np.concatenate([alpha, np.full(scheme.num_symbols, half, np.float32)])


def fit_linear_start(
    scheme: Scheme,
    key: PRNGKeyArray,
    num_images: int = NUM_FITTED_IMAGES,
    *,
    observation: Observation | None = None,
    batch: int = 250,
    progress: Callable[[int, int], None] | None = None,
) -> LinearStart:
    """Fits the linear start and its reverse in closed form, on images with random keys.

    The ridge is chosen on held-out images (one batch in ten), by the error of the symbols and of
    alpha in units of their spread.

    Args:
      scheme: generator and directions.
      key: PRNG key of latents and keys.
      num_images: how many images to generate; memory stays that of one batch.
      observation: how the images become files; by default `Rounded8Bit`.
      batch: images generated at a time.
      progress: called with (images done, images in all).
    """
    observation = Rounded8Bit() if observation is None else observation
    key_latents, key_keys, key_files = jax.random.split(key, 3)
    batch = min(batch, num_images)
    count = max(2, num_images // batch)
    latents = sample_latents(scheme.generator, key_latents, count * batch)
    latents = latents.reshape(-1, *scheme.generator.latent_shape)
    keys = sample_keys(key_keys, count * batch, scheme.key_length)
    spread = natural_spread(scheme)
    simulate, reduce = jax.jit(type(observation).simulate), jax.jit(low_pass)
    gram: Any = None
    cross: Any = None
    spread_gram: Any = None
    held = []
    for i, key_file in enumerate(jax.random.split(key_files, count)):
        part = slice(i * batch, (i + 1) * batch)
        alpha = project(scheme, latents[part])
        images = decode_images(scheme.generator, embed(scheme, alpha, keys[part]), batch)
        files = simulate(observation, key_file, jax.device_put(images))
        files = np.asarray(jax.device_get(files), np.float32) / np.float32(127.5) - 1
        features = np.asarray(jax.device_get(reduce(jax.device_put(files))), np.float64)
        features = np.concatenate([features, np.ones((batch, 1))], axis=1)
        symbols = scheme.symbols_of(keys[part]).astype(np.float64)
        targets = np.concatenate([alpha.astype(np.float64), symbols], axis=1) / spread[None]
        if i % 10 == 9 or i == count - 1:
            held.append((features, targets))
        else:
            gram = features.T @ features + (0 if gram is None else gram)
            cross = features.T @ targets + (0 if cross is None else cross)
            causes = np.concatenate([targets, np.ones((batch, 1))], axis=1)
            spread_gram = causes.T @ causes + (0 if spread_gram is None else spread_gram)
        if progress is not None:
            progress((i + 1) * batch, count * batch)
    features = np.concatenate([f for f, _ in held])
    targets = np.concatenate([t for _, t in held])
    best = None
    for ridge in np.trace(gram) / len(gram) * np.logspace(-6, -1, 6):
        regularised = gram + ridge * np.eye(len(gram))
        weight = scipy.linalg.solve(regularised, cross, assume_a="pos", overwrite_a=True)
        error = np.mean((features @ weight - targets) ** 2)
        if best is None or error < best[0]:
            best = (error, weight)
    assert best is not None
    weight = best[1] * spread[None]
    # Back from the unknowns to the pixels: the last of `features` are ones, whose products with the
    # targets are the targets' sums.
    size = len(spread)
    reverse = np.concatenate([cross[:-1].T, gram[-1:, :-1]])
    spread_gram[np.diag_indices(size)] += 1e-6 * np.trace(spread_gram) / len(spread_gram)
    forward = scipy.linalg.solve(spread_gram, reverse, assume_a="pos")[:size] / spread[:, None]
    return LinearStart(
        weight[:-1].astype(np.float16),
        weight[-1].astype(np.float32),
        forward.astype(np.float16),
    )
