"""What pictures say about symbols, from Jacobians alone: curvatures, information, expected errors.

With W the product of a natural latent's Jacobian and that of another latent which explains a noisy
file of the first as well, over the pixels that are not saturated, the curvature of the negative
log-likelihood along directions T is T W T^T over the noise's variance. Profiling alpha out
of it gives the information S about the symbols (`inversion.information`), and S says how the
solver's estimates scatter, so that decisions can be drawn instead of inverting pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from fpjax.fingerprint.basis import Basis
from fpjax.fingerprint.codes import Code
from fpjax.fingerprint.scheme import Scheme
from fpjax.inversion.observation import ROUNDING_STD
from fpjax.models.generator import Generator
from fpjax.models.jacobian import DEFAULT_MEMORY, jacobian_rows, tangent_bytes, tangents_at_once
from fpjax.parallel import concurrently, cores, one_blas_thread
from fpjax.precision import full_precision
from fpjax.programs import program

NUM_LATENTS = 32
DRAWS = 96
"""Noise draws a latent, for the shares of bits and keys that are right. With 32 latents that is
3072 keys: all of them right means a share above 0.999 with 95% confidence."""

CODE_DRAWS = 16
"""The same for codes, whose decoding takes a hundredth of a second; `DRAWS` where all of these are
right."""

_EDGE = 1 - 1 / 255


@program(static_argnums=2)
@full_precision
def _rows(generator: Generator, latent: jax.Array, block: int) -> jax.Array:
    """J of a latent as rows (D, M), zero for pixels that are saturated."""

    def image(flat):
        latents = flat.reshape(1, *generator.latent_shape)
        return generator.decode(generator.params, latents).reshape(-1)

    tangents = jnp.eye(generator.latent_size, dtype=jnp.float32)
    value, rows = jacobian_rows(image, latent, tangents, block=block)
    return rows * (jnp.abs(value) < _EDGE).astype(rows.dtype)[None]


@jax.jit
def _product(rows: jax.Array, others: jax.Array) -> jax.Array:
    return jnp.matmul(rows, others.T, precision="highest")


def pixel_grams(
    generator: Generator,
    prior: Basis,
    key: jax.Array,
    noises: Sequence[float] = (0.0,),
    num_latents: int = NUM_LATENTS,
    *,
    memory: int = DEFAULT_MEMORY,
    progress: Callable[[int, int], None] | None = None,
) -> dict[float, np.ndarray]:
    """What `iter_pixel_grams` yields, for each noise (N, D, D) float32.

    Args:
      generator, prior, key, noises, memory: see there.
      num_latents: how many, N.
      progress: called with (latents done, in all).

    Returns:
      By noise, the grams of the latents in order.
    """
    found: list[dict[float, np.ndarray]] = [{} for _ in range(num_latents)]
    done = iter_pixel_grams(generator, prior, key, noises, num_latents, memory=memory)
    for count, (i, grams) in enumerate(done, 1):
        found[i] = grams
        if progress is not None:
            progress(count, num_latents)
    return {noise: np.stack([grams[noise] for grams in found]) for noise in noises}


def iter_pixel_grams(
    generator: Generator,
    prior: Basis,
    key: jax.Array,
    noises: Sequence[float] = (0.0,),
    num_latents: int = NUM_LATENTS,
    *,
    wanted: Sequence[int] | None = None,
    memory: int = DEFAULT_MEMORY,
) -> Iterator[tuple[int, dict[float, np.ndarray]]]:
    """Yields products of Jacobians of natural latents over the pixels that are not saturated.

    Who reads a noisy file does not know the Jacobian of the latent that made it, but that of some
    latent which explains the file as well: only what their Jacobians have in common says anything.
    So a gram is J(w) J(w')^T, w a natural latent and w' one drawn from what a file of w leaves
    open (its posterior, with the Jacobian at w). Averaged, it is that of the Jacobian's posterior
    mean; J(w) J(w)^T would count what nobody can know. The wider a posterior, the more this
    matters: of 64 bits of the image basis of the bundled generator at 34 dB and noise of 0.1, the
    latter expects 11.6% to be wrong, the former 15.0%, and 17.0% of 48 inversions are.

    Latents are natural, along a key's directions too: that the key has another strength there is
    left out, which matters for keys in the first directions.

    A single product is neither symmetric nor positive: it is made so along the directions of
    `prior`. Those of the image metric are in units of the image, where an error is equally large
    along all of them; in others large ones spoil the small, and promise more.

    Args:
      generator: what makes the images.
      prior: directions and natural standard deviations of latents, best of the image metric. Along
        directions that it lacks, latents count as known, and as without effect on a picture.
      key: PRNG key of the latents, and of what is drawn.
      noises: standard deviations in the file, images in [-1, 1]; rounding is added to each.
      num_latents: how many latents the key stands for.
      wanted: numbers of the latents to do, by default all.
      memory: bytes that Jacobians may take, two of them and tangents on their way for each core
        that works; one core works whatever they take.

    Yields:
      Number of the latent, and the gram (D, D) float32 for each noise; on CPUs some cores work at
      once, and numbers come in any order.

    >>> from fpjax.fingerprint.fit import fit_basis
    >>> from fpjax.models.linear import linear_generator
    >>> generator = linear_generator()
    >>> prior = fit_basis(generator, jax.random.key(0), 100, metric="latent")
    >>> found = iter_pixel_grams(generator, prior, jax.random.key(1), (0.0, 0.1), 2)
    >>> [(i, grams[0.1].shape) for i, grams in sorted(found)]
    [(0, (16, 16)), (1, (16, 16))]
    """
    rest = list(range(num_latents) if wanted is None else wanted)
    if not rest:
        return
    latents = jax.device_get(generator.natural_latents(key, num_latents))
    latents = np.asarray(latents, np.float32).reshape(num_latents, -1)
    point = jax.ShapeDtypeStruct((generator.latent_size,), jnp.float32)
    shaped = lambda x, g: g.decode(g.params, x.reshape(1, *g.latent_shape))  # noqa: E731
    tangent = tangent_bytes(shaped, point, generator)
    both = 8 * generator.latent_size * math.prod(generator.image_shape)
    threads = 1
    if jax.default_backend() == "cpu":
        each = both + tangent * tangents_at_once(generator.latent_size, tangent, memory)
        threads = max(1, min(len(rest), cores(), memory // each))
    left = memory // threads - both
    block = tangents_at_once(generator.latent_size, tangent, max(tangent, left))
    # `natural_latents` may split its key, and `fold_in` gives what `split` does.
    draws = jax.random.fold_in(key, 2**32 - 1)
    directions, dual = (np.asarray(a, np.float64) for a in (prior.directions, prior.dual))
    std = np.asarray(prior.std, np.float64)[:, None]
    wide = (std > 1e-6 * std.max())[:, 0]
    spread, unspread = directions[wide] * std[wide], dual[wide] / std[wide]
    mean = np.asarray(prior.mean, np.float64)

    def one(i: int) -> tuple[int, dict[float, np.ndarray]]:
        rows = _rows(generator, jax.device_put(latents[i]), block)
        gram = np.asarray(jax.device_get(_product(rows, rows)), np.float64)
        values, vectors = np.linalg.eigh(spread @ gram @ spread.T)
        drawn = jax.random.normal(jax.random.fold_in(draws, i), (2, len(spread)), jnp.float32)
        # Along the prior's directions, so that signs of eigenvectors do not count.
        drawn = np.asarray(jax.device_get(drawn), np.float64) @ vectors
        here = vectors.T @ (unspread @ (latents[i] - mean))
        found = {}
        for noise in noises:
            other = _drawn(values / (noise**2 + ROUNDING_STD**2), here, drawn)
            moved = latents[i] + ((other - here) @ vectors.T) @ spread
            others = _rows(generator, jax.device_put(moved.astype(np.float32)), block)
            product = np.asarray(jax.device_get(_product(rows, others)), np.float64)
            product = _positive(directions @ product @ directions.T)
            found[noise] = (dual.T @ product @ dual).astype(np.float32)
        return i, found

    with one_blas_thread:
        yield from concurrently([map(one, rest[t::threads]) for t in range(threads)], alone=1)


def _drawn(information: np.ndarray, truth: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """A draw of the posterior of unit normal unknowns whose measurements are independent.

    Args:
      information: (K,) of the measurement of each.
      truth: (K,) what they are.
      drawn: (2, K) standard normal numbers, of the measurement and of the draw.

    >>> _drawn(np.array([1e12, 0.0, -1e-3]), np.ones(3), np.array([[1.0] * 3, [2.0] * 3])).round(3)
    array([1., 2., 2.])
    """
    information = np.maximum(information, 0)  # rounding may leave less
    measured = information * truth + np.sqrt(information) * drawn[0]
    precision = 1 + information
    return measured / precision + drawn[1] / np.sqrt(precision)


def _positive(matrix: np.ndarray) -> np.ndarray:
    """The nearest symmetric positive semi-definite matrix."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * np.maximum(values, 0)) @ vectors.T


def curvature_along(grams: np.ndarray, scheme: Scheme) -> np.ndarray:
    """Squared image change along a scheme's unknowns, (N, K, K) float64: alpha, then symbols.

    Args:
      grams: (N, D, D) of `pixel_grams`, for one noise.
      scheme: its strength is not in the result: symbols count as at strength 1.
    """
    directions = np.concatenate(scheme.split(np.asarray(scheme.basis.directions, np.float64)))
    return np.stack([directions @ gram.astype(np.float64) @ directions.T for gram in grams])


def information_of(curvature: np.ndarray, alpha_std: np.ndarray, noise: float) -> np.ndarray:
    """S about symbols of strength 1 for each latent, (N, L, L) float64.

    At another strength it is strength^2 times this.

    Args:
      curvature: (N, K, K) of `curvature_along`.
      alpha_std: (K - L,) natural standard deviations, alpha's prior.
      noise: standard deviation of the noise, images in [-1, 1]; rounding is added to it.

    >>> information_of(np.array([[[1.0, 0.5], [0.5, 1.0]]]), np.array([1e6]), 1.0).round(3)
    array([[[0.75]]])
    """
    count = len(alpha_std)
    precision = np.diag(1 / np.maximum(alpha_std.astype(np.float64), 1e-9) ** 2)
    found = []
    for matrix in curvature / (noise**2 + ROUNDING_STD**2):
        cross = matrix[:count, count:]
        factor = scipy.linalg.cho_factor(matrix[:count, :count] + precision)
        schur = matrix[count:, count:] - cross.T @ scipy.linalg.cho_solve(factor, cross)
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

    >>> decoding_errors(1e4 * np.eye(8)[None])
    (0.0, 1.0)
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
        mean = ((symbols @ vectors * values + noise) / (values + 1)) @ vectors.T
        right = decide_symbols(mean, (vectors / (values + 1)) @ vectors.T) == symbols
        wrong += 1 - float(right.mean())
        exact += float(right.all(axis=1).mean())
    return wrong / count, exact / count


def coded_errors(
    information: np.ndarray, code: Code, seed: int = 0, draws: int = CODE_DRAWS
) -> tuple[float, float]:
    """Expected share of wrong payload bits, and of payloads with every bit right.

    Scores are drawn as for `decoding_errors`, and decoded as the code decodes what an inversion
    finds.

    Args:
      information: (N, L, L) about symbols -1 and +1; L is the code's `num_symbols`.
      code: payloads to symbols, and back.
      seed: of the draws.
      draws: for each of the N.

    >>> from fpjax.fingerprint.codes import Repetition
    >>> coded_errors(0.5 * np.eye(60)[None], Repetition(2, 30), draws=50)
    (0.0, 1.0)
    """
    rng = np.random.default_rng(seed)
    wrong = exact = 0.0
    for matrix in information:
        values, vectors = np.linalg.eigh(matrix)
        root = vectors * np.sqrt(np.maximum(values, 0))
        payloads = rng.integers(0, 2, (draws, code.payload_bits), np.uint8)
        symbols = 2.0 * code.encode(payloads) - 1
        linear = symbols @ matrix + rng.standard_normal(symbols.shape) @ root.T
        read, _ = code.decode(np.broadcast_to(matrix, (draws, *matrix.shape)), linear)
        wrong += float((read != payloads).mean())
        exact += float((read == payloads).all(axis=1).mean())
    return wrong / len(information), exact / len(information)


def decide_symbols(means: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Symbols by decision feedback, many estimates of one covariance at a time.

    Decides as `inversion.information.decide_bits` does. Since all estimates share a covariance, its
    columns are corrected only when they are needed, which is several times as fast.

    Args:
      means: (B, L) estimates of symbols -1 and +1.
      covariance: (L, L) of their errors.

    Returns:
      (B, L) of -1 and +1.

    >>> decide_symbols(np.array([[0.8, -0.1]]), np.array([[0.1, -0.08], [-0.08, 0.1]])).tolist()
    [[1.0, -1.0]]
    """
    means = np.array(means, np.float64)
    count, length = means.shape
    rows = np.arange(count)
    variance = np.repeat(np.diag(covariance)[None], count, axis=0)
    # Column j of the covariance after t decisions: covariance[:, j] - sum_t taken_t taken_t[j].
    taken = np.zeros((count, length, length))
    symbols = np.zeros((count, length))
    for step in range(length):
        certainty = np.abs(means) / np.sqrt(np.maximum(variance, 1e-30))
        certainty[symbols != 0] = -1
        surest = certainty.argmax(axis=1)
        symbols[rows, surest] = np.where(means[rows, surest] > 0, 1, -1)
        before = taken[:, :step]
        weights = before[rows, :, surest][:, None]
        deviation = np.sqrt(np.maximum(variance[rows, surest], 1e-30))[:, None]
        column = (covariance[surest] - (weights @ before)[:, 0]) / deviation
        pull = (symbols - means)[rows, surest][:, None] / deviation
        means += column * pull
        variance -= column**2
        taken[:, step] = column
    return symbols
