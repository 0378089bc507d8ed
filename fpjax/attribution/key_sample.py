"""A weighted sample of keys in which the rare ones, that fit an image well, are common.

Keys are drawn from a mixture of sequential proposals, one for each of several temperatures, from
uniform keys to those that fit as well as the image allows. A proposal fixes the bits in the order
of decision feedback, each from its two-point law given those before it (`decision_feedback`). A
key's weight is its uniform probability over the probability of the whole mixture (the balance
heuristic of Veach & Guibas, 1995), so that weighted frequencies are unbiased for uniform keys
whatever the proposals are, and no weight exceeds their number.

The sample depends on the image's information alone, not on any key or score: its randomness is the
SHA-256 digest of those numbers. It is drawn on the host's CPU whatever the default device is, so
that a verdict does not depend on the accelerator, up to rounding.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fpjax.fingerprint.energy import Feedback, Quadratic, decision_feedback, indefiniteness
from fpjax.precision import full_precision

NUM_PROPOSALS = 8
_COLDEST = 2.0
"""Largest inverse temperature: 1 is the law of keys given the image; beyond, keys nearer to its
most likely key than the right one usually is."""
_FIRST_BITS = 2.0
"""Mutual information in bits at which the least of the tempered proposals begins."""
_COLUMNS = 128
"""Keys drawn together: (proposals x L x 128) float64 stay in a core's cache at L = 64."""
_LN2 = np.log(2.0)


class Mixture(NamedTuple):
    """The proposals of one image.

    Attributes:
      inverse_temperatures: (J,) float64, the first one 0: uniform keys.
      feedback: `Feedback` of each, leading axis J.
    """

    inverse_temperatures: np.ndarray
    feedback: Feedback


def proposals(information: np.ndarray, linear: np.ndarray) -> Mixture:
    """Temperatures that lead in equal ratios from uniform keys to the likeliest ones.

    Args:
      information: (L, L) float64 for symbols -1 and +1.
      linear: (L,) float64.
    """
    # The linear term counts as information too: with S = 0 it alone tells keys apart.
    spectrum = np.linalg.eigvalsh(information + np.diag(np.abs(linear)))
    spectrum = np.maximum(spectrum, 0.0)
    theta = np.zeros(NUM_PROPOSALS)
    if spectrum[-1] > 0:
        low, high = -80.0, np.log(0.5)
        for _ in range(40):
            middle = (low + high) / 2
            bits = np.log1p(np.exp(middle) * spectrum).sum() / (2 * _LN2)
            low, high = (middle, high) if bits < _FIRST_BITS else (low, middle)
        theta[1:] = np.geomspace(np.exp(high), _COLDEST, NUM_PROPOSALS - 1)
    return Mixture(theta, decision_feedback(information, linear, theta))


class KeySample(NamedTuple):
    """Keys drawn for one image, by ascending energy.

    Attributes:
      energies: (N,) float64.
      log_weights: (N,) float64, natural logarithms; the mean weight is 1 up to chance.
      mixture: what they were drawn from.
    """

    energies: np.ndarray
    log_weights: np.ndarray
    mixture: Mixture


def draw_key_sample(quadratic: Quadratic, image: int, num_samples: int) -> KeySample:
    """Draws the sample of one image.

    Args:
      quadratic: energies of B images.
      image: which one.
      num_samples: keys to draw, N.
    """
    information, linear = quadratic.information[image], quadratic.linear[image]
    mixture = proposals(information, linear)
    generator = np.random.Philox(key=_digest(information, linear, num_samples))
    # Independent draws from the mixture: how many fall to each proposal is random too. Only the raw
    # stream is used, which NumPy promises not to change.
    counts = np.bincount(
        (generator.random_raw(num_samples) % NUM_PROPOSALS).astype(np.intp), minlength=NUM_PROPOSALS
    )
    labels, used = _chunks(counts, num_samples)
    length = len(linear)
    noise = generator.random_raw(len(labels) * length * _COLUMNS // 2).view(np.uint32)
    order, gain, offset, _ = mixture.feedback
    ordered = np.take_along_axis(np.take_along_axis(gain, order[:, :, None], 1), order[:, None], 2)
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        operands = (
            labels,
            noise.reshape(len(labels), length, _COLUMNS),
            ordered,
            np.take_along_axis(offset, order, 1),
            order,
            gain,
            offset,
            information,
            linear,
        )
        found = jax.device_get(_draw(*jax.device_put(operands)))
        energies, log_weights = (np.asarray(part)[used] for part in found)
    ascending = np.argsort(energies, kind="stable")
    energies = energies[ascending] + quadratic.offset[image]
    return KeySample(energies, log_weights[ascending], mixture)


def log_weights_of(mixture: Mixture, bits: np.ndarray) -> np.ndarray:
    """Logarithms of the weights that given keys would have had in the sample.

    Args:
      mixture: of one image.
      bits: (N, L) of 0 and 1.

    Returns:
      (N,) float64.
    """
    symbols = 2.0 * np.asarray(bits) - 1.0
    gain, offset = mixture.feedback.gain, mixture.feedback.offset
    found = np.zeros(len(symbols))
    for start in range(0, len(symbols), 4096):
        block = symbols[start : start + 4096]
        odds = -2.0 * (block @ gain.swapaxes(1, 2) + offset[:, None]) * block
        log_chances = -np.logaddexp(0.0, odds).sum(-1)
        mixed = np.logaddexp.reduce(log_chances, 0) - np.log(len(gain))
        found[start : start + 4096] = -symbols.shape[1] * _LN2 - mixed
    return found


def log_weight_bound(mixture: Mixture, information, linear, energy: np.ndarray) -> np.ndarray:
    """Bound on the logarithm of every weight among keys of this energy or less.

    With theta S + 1 = R^T R in the order of decision, c = R^-T theta h, and t_i what c_i leaves for
    symbol i after those decided before it, the weight under one proposal is exactly

        log w = theta E + L/2 + |c|^2 / 2 - 1/2 sum r_ii^2 + sum (log cosh(r_ii t_i) - t_i^2 / 2),

    and each term of the last sum is bounded over all t_i. A mixture of J proposals gives at most J
    times the least of their weights.

    Args:
      mixture: of the image whose `information` (L, L) and `linear` (L,) these are.
      energy: (...) float64, without the image's offset.

    Returns:
      (...) float64; exp of it is a rigorous bound on the tail as well.
    """
    theta, diagonal = mixture.inverse_temperatures, mixture.feedback.diagonal
    # The proposals' precision is theta S + ridge, and |k|^2 = L moves its energies by a constant.
    ridge = 1 + theta * indefiniteness(information)
    precision = theta[:, None, None] * information + ridge[:, None, None] * np.eye(linear.size)
    constant = theta**2 / 2 * (linear * np.linalg.solve(precision, linear[:, None])[..., 0]).sum(-1)
    t = diagonal.copy()
    for _ in range(200):  # the largest solution of t = r tanh(r t), from above
        t = diagonal * np.tanh(diagonal * t)
    growth = np.logaddexp(diagonal * t, -diagonal * t) - _LN2 - t**2 / 2
    constant += (ridge[:, None] / 2 - diagonal**2 / 2 + growth).sum(1) + np.log(len(theta))
    return (theta * np.asarray(energy)[..., None] + constant).min(-1)


def _digest(information: np.ndarray, linear: np.ndarray, num_samples: int) -> int:
    digest = hashlib.sha256(b"fpjax key sample 1")
    digest.update(num_samples.to_bytes(8, "little"))
    for array in (information, linear):
        digest.update(np.ascontiguousarray(array, "<f8").tobytes())
    return int.from_bytes(digest.digest()[:16], "little")


def _chunks(counts: np.ndarray, num_samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels of chunks of one proposal each, and which of their places are used.

    The number of chunks is the same for all counts, so that one program serves all images.
    """
    total = num_samples // _COLUMNS + len(counts)
    labels = np.zeros(total, np.int32)
    used = np.zeros((total, _COLUMNS), bool)
    chunk = 0
    for proposal, count in enumerate(counts):
        for start in range(0, count, _COLUMNS):
            labels[chunk] = proposal
            used[chunk, : count - start] = True
            chunk += 1
    return labels, used


@jax.jit
@full_precision
def _draw(labels, noise, ordered_gain, ordered_offset, order, gain, offset, information, linear):
    """Energies and logarithms of weights of keys, (C, 128) each, in float64.

    `ordered_gain` and `ordered_offset` are in the order of decision, `gain` (J, L, L) and `offset`
    (J, L) in the symbols' own order. `noise` holds (C, L, 128) uniformly random words.
    """
    num, length = offset.shape
    half = np.float64(0.5)

    def chunk(entry):
        label, words = entry
        uniform = (words.astype(np.float64) + half) * np.float64(2.0**-32)
        gains, offsets = ordered_gain[label], ordered_offset[label]

        def decide(i, symbols):
            # Rows of symbols not decided yet are zero, and so are their gains.
            odds = gains[i] @ symbols + offsets[i]
            plus = uniform[i] * (1 + jnp.exp(-2 * odds)) < 1
            return symbols.at[i].set(jnp.where(plus, np.float64(1), np.float64(-1)))

        symbols = jax.lax.fori_loop(0, length, decide, jnp.zeros((length, _COLUMNS)))
        symbols = jnp.zeros((length, _COLUMNS)).at[order[label]].set(symbols)
        odds = gain.reshape(num * length, length) @ symbols + offset.reshape(-1, 1)
        odds = -2 * odds.reshape(num, length, _COLUMNS) * symbols[None]
        log_chances = -jnp.sum(jnp.maximum(odds, 0), 1) - _sum_log1p_exp(-jnp.abs(odds))
        mixed = jax.nn.logsumexp(log_chances, axis=0) - np.log(num)
        energies = half * jnp.sum(symbols * (information @ symbols), 0) - linear @ symbols
        return energies, -length * _LN2 - mixed

    return jax.lax.map(chunk, (labels, noise))


def _sum_log1p_exp(x):
    """Sum of log(1 + exp(x)) over axis 1 of x <= 0, to 1e-5.

    Exponentials in float32, and one logarithm for 64 of them: their product is at most 2^64.
    """
    num, length, columns = x.shape
    groups = -(-length // 64)
    x = jnp.pad(x, ((0, 0), (0, groups * 64 - length), (0, 0)), constant_values=-jnp.inf)
    factors = 1 + jnp.exp(x.astype(jnp.float32)).reshape(num, groups, 64, columns)
    return jnp.sum(jnp.log(jnp.prod(factors, axis=2)), axis=1).astype(jnp.float64)
