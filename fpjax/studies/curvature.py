"""What pictures say about symbols, from Jacobians alone: curvatures, information, expected errors.

With W the product of a natural latent's Jacobian and that of another latent which explains a file
of the first as well, of pixels that are not saturated or of an attacked file's residual, the
curvature of the negative log-likelihood along directions T is T W T^T over the noise's variance.
Profiling alpha out of it gives the information S about the symbols (`inversion.information`), and S
says how the solver's estimates scatter, so that decisions can be drawn instead of inverting
pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from fpjax.fingerprint.basis import Basis
from fpjax.fingerprint.codes import Code, IndependentBits
from fpjax.fingerprint.scheme import Scheme
from fpjax.inversion.observation import Observation
from fpjax.io.images import from_uint8, to_uint8
from fpjax.models.generator import Generator
from fpjax.models.jacobian import DEFAULT_MEMORY, jacobian_rows, tangent_bytes, tangents_at_once
from fpjax.parallel import concurrently, cores, one_blas_thread
from fpjax.precision import full_precision
from fpjax.programs import program
from fpjax.studies.histories import History, attacked, noise_variance

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
def _picture_rows(generator: Generator, latent: jax.Array, block: int):
    """A latent's picture (H, W, C), not clipped, and its Jacobian as rows (D, M)."""

    def image(flat):
        latents = flat.reshape(1, *generator.latent_shape)
        return generator.decode(generator.params, latents).reshape(-1)

    tangents = jnp.eye(generator.latent_size, dtype=jnp.float32)
    value, rows = jacobian_rows(image, latent, tangents, block=block)
    return value.reshape(generator.image_shape), rows


@jax.jit
def _unsaturated(image: jax.Array, rows: jax.Array) -> jax.Array:
    """Rows (D, M) of a picture, zero for pixels that are saturated."""
    return rows * (jnp.abs(image.reshape(-1)) < _EDGE).astype(rows.dtype)[None]


@program(static_argnums=4)
@full_precision
def _residual_rows(
    observation: Observation, image: jax.Array, rows: jax.Array, target: jax.Array, block: int
) -> jax.Array:
    """Rows (D, R) of an observation's residual, of those of the picture, some at a time."""
    _, derivative = jax.linearize(lambda seen: observation.residual(seen, target), image)
    return jax.lax.map(derivative, rows.reshape(-1, *image.shape), batch_size=block)


@jax.jit
def product(rows: jax.Array, others: jax.Array) -> jax.Array:
    """Of rows (D, M) and others (E, M), (D, E) in full single precision."""
    return jnp.matmul(rows, others.T, precision="highest")


def pixel_grams(
    generator: Generator,
    prior: Basis,
    key: jax.Array,
    histories: Sequence[History] = (0.0,),
    num_latents: int = NUM_LATENTS,
    *,
    memory: int = DEFAULT_MEMORY,
    progress: Callable[[int, int], None] | None = None,
) -> dict[History, np.ndarray]:
    """What `iter_pixel_grams` yields, for each history (N, D, D) float32.

    Args:
      generator, prior, key, histories, memory: see there.
      num_latents: how many, N.
      progress: called with (latents done, in all).

    Returns:
      By history, the grams of the latents in order.
    """
    found: list[dict[History, np.ndarray]] = [{} for _ in range(num_latents)]
    done = iter_pixel_grams(generator, prior, key, histories, num_latents, memory=memory)
    for count, (i, grams) in enumerate(done, 1):
        found[i] = grams
        if progress is not None:
            progress(count, num_latents)
    return {history: np.stack([grams[history] for grams in found]) for history in histories}


def iter_pixel_grams(
    generator: Generator,
    prior: Basis,
    key: jax.Array,
    histories: Sequence[History] = (0.0,),
    num_latents: int = NUM_LATENTS,
    *,
    wanted: Sequence[int] | None = None,
    memory: int = DEFAULT_MEMORY,
) -> Iterator[tuple[int, dict[History, np.ndarray]]]:
    """Yields products of Jacobians of natural latents, over what their files say.

    Who reads a noisy file does not know the Jacobian of the latent that made it, but that of some
    latent which explains the file as well: only what their Jacobians have in common says anything.
    So a gram is J(w) J(w')^T, w a natural latent and w' one drawn from what a file of w leaves
    open (its posterior, with the Jacobian at w). Averaged, it is that of the Jacobian's posterior
    mean; J(w) J(w)^T would count what nobody can know. The wider a posterior, the more this
    matters: of 64 bits of the image basis of the bundled generator at 34 dB and noise of 0.1, the
    latter expects 11.6% to be wrong, the former 15.0%, and 17.0% of 48 inversions are.

    Of noise, J is the picture's Jacobian, over the pixels that are not saturated. Of an attack it
    is that of the residual of a file which is made and attacked, in units of its noise.

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
      histories: standard deviations in the file, images in [-1, 1], rounding is added to each; or
        attacks, as `fpjax.attacks.parse` reads them.
      num_latents: how many latents the key stands for.
      wanted: numbers of the latents to do, by default all.
      memory: bytes that Jacobians may take, four of them and tangents on their way for each core
        that works; one core works whatever they take.

    Yields:
      Number of the latent, and the gram (D, D) float32 for each history; on CPUs some cores work
      at once, and numbers come in any order.

    Raises:
      InputError: for an attack that no observation describes.

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
    # Of two latents, each of the picture and of what a file says of it.
    held = 16 * generator.latent_size * math.prod(generator.image_shape)
    threads = 1
    if jax.default_backend() == "cpu":
        each = held + tangent * tangents_at_once(generator.latent_size, tangent, memory)
        threads = max(1, min(len(rest), cores(), memory // each))
    left = memory // threads - held
    block = tangents_at_once(generator.latent_size, tangent, max(tangent, left))
    # `natural_latents` may split its key, and `fold_in` gives what `split` does.
    draws, attacks = (jax.random.fold_in(key, 2**32 - number) for number in (1, 2))
    directions, dual = (np.asarray(a, np.float64) for a in (prior.directions, prior.dual))
    std = np.asarray(prior.std, np.float64)[:, None]
    wide = (std > 1e-6 * std.max())[:, 0]
    spread, unspread = directions[wide] * std[wide], dual[wide] / std[wide]
    mean = np.asarray(prior.mean, np.float64)

    def picture(latent: np.ndarray) -> tuple[jax.Array, jax.Array]:
        return _picture_rows(generator, jax.device_put(latent), block)

    def said(seen: tuple[Observation, jax.Array] | None, image: jax.Array, rows: jax.Array):
        if seen is None:
            return _unsaturated(image, rows)
        return _residual_rows(seen[0], image, rows, seen[1], block)

    def one(i: int) -> tuple[int, dict[History, np.ndarray]]:
        image, rows = picture(latents[i])
        truth, found, posteriors = unspread @ (latents[i] - mean), {}, {}
        for history in histories:
            seen, name = None, ""
            if isinstance(history, str):
                name = history
                pixels = to_uint8(jax.device_get(image))
                observation, pixels = attacked(history, jax.random.fold_in(attacks, i), pixels)
                seen = jax.device_put((observation, from_uint8(pixels)))
            here = said(seen, image, rows)
            if name not in posteriors:
                gram = np.asarray(jax.device_get(product(here, here)), np.float64)
                information = spread @ gram @ spread.T
                posteriors[name] = _Posterior(information, truth, jax.random.fold_in(draws, i))
            other = posteriors[name].draw(noise_variance(history))
            moved = latents[i] + (other - truth) @ spread
            there = said(seen, *picture(moved.astype(np.float32)))
            common = np.asarray(jax.device_get(product(here, there)), np.float64)
            common = nearest_positive(directions @ common @ directions.T)
            found[history] = (dual.T @ common @ dual).astype(np.float32)
        return i, found

    with one_blas_thread:
        yield from concurrently([map(one, rest[t::threads]) for t in range(threads)], alone=1)


def posterior_draw(information: np.ndarray, truth: np.ndarray, key: jax.Array) -> np.ndarray:
    """A draw of the posterior of unit normal unknowns after a measurement of them.

    Args:
      information: (K, K) of the measurement.
      truth: (K,) what they are.
      key: PRNG key, of the measurement's noise and of the draw.

    >>> exact = np.diag([1e12, 0.0, -1e-3])
    >>> drawn = posterior_draw(exact, np.ones(3), jax.random.key(0))
    >>> bool(abs(drawn[0] - 1) < 1e-5), bool(abs(drawn[1] - 1) < 1e-5)
    (True, False)
    """
    return _Posterior(information, truth, key).draw(1.0)


class _Posterior:
    """Of unit normal unknowns whose measurement may have noise of several variances."""

    def __init__(self, information: np.ndarray, truth: np.ndarray, key: jax.Array) -> None:
        values, self._vectors = np.linalg.eigh(information)
        self._information = np.maximum(values, 0)  # rounding may leave less
        drawn = jax.random.normal(key, (2, len(truth)), jnp.float32)
        # Turned from the unknowns' own axes, so that signs of eigenvectors do not count.
        self._drawn = np.asarray(jax.device_get(drawn), np.float64) @ self._vectors
        self._truth = truth @ self._vectors

    def draw(self, variance: float) -> np.ndarray:
        """Unknowns (K,) that are as likely as the truth, once noise has this variance."""
        information = self._information / variance
        measured = information * self._truth + np.sqrt(information) * self._drawn[0]
        precision = 1 + information
        return self._vectors @ (measured / precision + self._drawn[1] / np.sqrt(precision))


def nearest_positive(matrix: np.ndarray) -> np.ndarray:
    """The nearest symmetric positive semi-definite matrix."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * np.maximum(values, 0)) @ vectors.T


def curvature_along(grams: np.ndarray, scheme: Scheme) -> np.ndarray:
    """Squared image change along a scheme's unknowns, (N, K, K) float64: alpha, then symbols.

    Args:
      grams: (N, D, D) of `pixel_grams`, for one history.
      scheme: its strength is not in the result: symbols count as at strength 1.
    """
    directions = np.concatenate(scheme.split(np.asarray(scheme.basis.directions, np.float64)))
    return np.stack([directions @ gram.astype(np.float64) @ directions.T for gram in grams])


def information_of(curvature: np.ndarray, alpha_std: np.ndarray, variance: float) -> np.ndarray:
    """S about symbols of strength 1 for each latent, (N, L, L) float64.

    At another strength it is strength^2 times this.

    Args:
      curvature: (N, K, K) of `curvature_along`.
      alpha_std: (K - L,) natural standard deviations, alpha's prior.
      variance: of the noise in units of which the curvature is, see `noise_variance`.

    >>> information_of(np.array([[[1.0, 0.5], [0.5, 1.0]]]), np.array([1e6]), 1.0).round(3)
    array([[[0.75]]])
    """
    count = len(alpha_std)
    precision = np.diag(1 / np.maximum(alpha_std.astype(np.float64), 1e-9) ** 2)
    found = []
    for matrix in curvature / variance:
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


def payload_errors(information: np.ndarray, code: Code | None) -> tuple[float, float]:
    """`decoding_errors`, or `coded_errors` of as many draws as it takes, where there is a code.

    Args:
      information: (N, L, L) about symbols -1 and +1.
      code: what symbols carry; None and `IndependentBits` are a bit each.

    >>> payload_errors(1e4 * np.eye(8)[None], None)
    (0.0, 1.0)
    """
    if code is None or isinstance(code, IndependentBits):
        return decoding_errors(information)
    wrong, exact = coded_errors(information, code)
    return coded_errors(information, code, draws=DRAWS) if exact == 1 else (wrong, exact)


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
