"""Energies of keys under an image's information, and decision feedback, which walks through them.

An inversion leaves two things about the L symbols of an image: the information S (L, L) and the
linear term h (L,), the negative gradient of half the misfit at zero. The energy of a key with
symbols k is

    E(k) = 1/2 k^T S k - h^T k,

half the log-likelihood ratio's usual form: (k - k_hat)^T S (k - k_hat) = 2 E(k) + constant for any
k_hat with S k_hat = h, but E needs no such k_hat, and exists where S is singular. The most likely
key has the lowest energy.

Symbols are -1 and +1 here, so that k_i^2 = 1: a diagonal added to S moves every energy by the same
amount and changes no comparison. `antipodal_form` brings levels 0 and 1 to this form. Everything is
computed in float64 on the host: energies of a precise image differ in their seventh digit.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

Levels = Literal["binary", "antipodal"]


class Quadratic(NamedTuple):
    """Energies of B images over symbols -1 and +1.

    Attributes:
      information: (B, L, L) float64, symmetric.
      linear: (B, L) float64.
      offset: (B,) float64, added to every energy of the image.
    """

    information: np.ndarray
    linear: np.ndarray
    offset: np.ndarray


def antipodal_form(information, linear, levels: Levels = "antipodal") -> Quadratic:
    """Checks the information of one image or several, and writes it for symbols -1 and +1.

    Levels 0 and 1 are b = (1 + k) / 2, so that 1/2 b^T S b - h^T b is the energy of k under
    S / 4 and h / 2 - S 1 / 4, plus 1^T S 1 / 8 - h^T 1 / 2.

    Args:
      information: (L, L) or (B, L, L), positive semi-definite up to rounding; its antisymmetric
        part does not count.
      linear: (L,) or (B, L).
      levels: what the information is about.

    Raises:
      ValueError: for shapes that don't belong together, or values that are not finite.

    >>> quadratic = antipodal_form(np.eye(2), np.array([3.0, -1.0]), "binary")
    >>> energies(quadratic, np.array([[1, 0]])).tolist()
    [[-2.5]]
    """
    information = np.asarray(information, np.float64)
    linear = np.asarray(linear, np.float64)
    if information.ndim == 2 and linear.ndim == 1:
        information, linear = information[None], linear[None]
    if linear.ndim != 2 or information.shape != (*linear.shape, linear.shape[-1]):
        raise ValueError(
            f"information {information.shape} and linear term {linear.shape} don't belong "
            "together: expected (L, L) and (L,), or (B, L, L) and (B, L)"
        )
    if linear.shape[1] == 0:
        raise ValueError("the information is about no symbols: expected at least one")
    if not (np.isfinite(information).all() and np.isfinite(linear).all()):
        raise ValueError("information or linear term is not finite: leave out such an image")
    information = (information + information.swapaxes(1, 2)) / 2
    offset = np.zeros(len(linear))
    if levels == "binary":
        offset = information.sum((1, 2)) / 8 - linear.sum(1) / 2
        linear = linear / 2 - information.sum(2) / 4
        information = information / 4
    elif levels != "antipodal":
        raise ValueError(f"levels are {levels!r}: expected 'binary' or 'antipodal'")
    return Quadratic(information, linear, offset)


def energies(quadratic: Quadratic, bits: np.ndarray) -> np.ndarray:
    """Energies of keys, lowest for the most likely one.

    Args:
      quadratic: of B images, from `antipodal_form`.
      bits: (N, L) keys of 0 and 1 for every image, or (B, N, L) others for each.

    Returns:
      (B, N) float64, in units of log-likelihood.

    Raises:
      ValueError: if the keys have another length.

    >>> quadratic = antipodal_form(np.eye(2), np.array([1.0, -1.0]))
    >>> energies(quadratic, np.array([[1, 0], [0, 1]])).tolist()
    [[-1.0, 3.0]]
    """
    information, linear, offset = quadratic
    bits = np.asarray(bits)
    count, length = linear.shape
    if bits.shape not in ((*bits.shape[:1], length), (count, *bits.shape[1:2], length)):
        raise ValueError(
            f"keys have shape {bits.shape}: expected (N, {length}) or ({count}, N, {length})"
        )
    symbols = 2.0 * bits - 1.0
    # (k S) k in one matrix product an image; einsum would loop.
    return np.sum(
        (symbols @ (information / 2) - linear[:, None]) * symbols, -1, dtype=np.float64
    ) + offset.reshape(-1, 1)


def rounding_slack(quadratic: Quadratic) -> np.ndarray:
    """Bound on the rounding error of an energy, (B,): energies this close count as equal."""
    information, linear, _ = quadratic
    return 1e-13 * (np.abs(information).sum((1, 2)) + np.abs(linear).sum(1))


def indefiniteness(information: np.ndarray) -> np.ndarray | np.float64:
    """What must be added to the diagonal to make an information positive semi-definite, (...).

    >>> indefiniteness(np.diag([1.0, -0.5])).tolist()
    0.5
    """
    return np.maximum(0.0, -np.linalg.eigvalsh(information)[..., 0])


class Feedback(NamedTuple):
    """Decision feedback: the log-odds of each bit given the bits decided before it.

    Half the log-odds of symbol i being +1 are `offset[i] + gain[i] @ k`, where the row `gain[i]` is
    zero for the symbols that come later in `order`.

    Attributes:
      order: (..., L) integers, the symbol decided first, second, ...
      gain: (..., L, L) float64, symbols in their natural order.
      offset: (..., L) float64.
      diagonal: (..., L) float64, root of each symbol's precision at its decision, natural order.
    """

    order: np.ndarray
    gain: np.ndarray
    offset: np.ndarray
    diagonal: np.ndarray


def decision_feedback(information: np.ndarray, linear: np.ndarray, inverse_temperature):
    """Orders symbols by how surely they are known, and gives each one's odds given those before.

    The law exp(-theta E(k)) over uniform keys is approximated by the Gaussian of precision
    theta S + 1: undecided symbols are taken as Gaussian of variance 1, the variance of a uniform
    symbol. (Where rounding has left S a negative eigenvalue -d, it is theta (S + d) + 1.) At each
    step the symbol with the least variance, given those decided, is next; and its odds are those
    of the two values under that Gaussian. (Sequential decoding of lattices, known as ordered
    successive interference cancellation: Wolniansky et al., "V-BLAST", 1998.)

    Args:
      information: (..., L, L) float64.
      linear: (..., L) float64.
      inverse_temperature: theta >= 0, of a shape that broadcasts with the leading axes.

    Returns:
      `Feedback` with the leading axes broadcast.

    >>> found = decision_feedback(np.diag([1.0, 9.0]), np.array([1.0, -9.0]), 1.0)
    >>> found.order.tolist(), found.offset.round(6).tolist()
    ([1, 0], [1.0, -9.0])
    """
    theta = np.asarray(inverse_temperature, np.float64)
    covariance = np.linalg.inv(
        theta[..., None, None] * information
        + (1 + theta * indefiniteness(information))[..., None, None] * np.eye(linear.shape[-1])
    )
    mean = (covariance @ (theta[..., None] * linear)[..., None])[..., 0]
    shape, length = mean.shape[:-1], mean.shape[-1]
    rest = covariance.reshape(-1, length, length).copy()
    rows = np.arange(len(rest))
    factor = np.zeros_like(rest)
    order = np.zeros((len(rest), length), np.int64)
    undecided = np.ones((len(rest), length), bool)
    for step in range(length):
        variances = np.where(undecided, np.diagonal(rest, axis1=1, axis2=2), np.inf)
        chosen = variances.argmin(1)
        column = rest[rows, :, chosen] / np.sqrt(variances[rows, chosen])[:, None]
        rest -= column[:, :, None] * column[:, None, :]
        factor[:, :, step] = column * undecided
        order[:, step] = chosen
        undecided[rows, chosen] = False
    # Rows in the order of decision make the factor triangular; its inverse whitens k - mean.
    whitening = np.linalg.inv(np.take_along_axis(factor, order[:, :, None], 1))
    ordered_mean = np.take_along_axis(mean.reshape(-1, length), order, 1)
    diagonal = np.diagonal(whitening, axis1=1, axis2=2)
    offset = diagonal * (whitening @ ordered_mean[:, :, None])[:, :, 0]
    gain = -diagonal[:, :, None] * np.tril(whitening, -1)
    natural = np.argsort(order, 1)
    gain = np.take_along_axis(np.take_along_axis(gain, natural[:, :, None], 1), natural[:, None], 2)
    return Feedback(
        order.reshape(*shape, length),
        gain.reshape(*shape, length, length),
        np.take_along_axis(offset, natural, 1).reshape(*shape, length),
        np.take_along_axis(diagonal, natural, 1).reshape(*shape, length),
    )


def decode_by_feedback(feedback: Feedback) -> np.ndarray:
    """Bits (..., L) uint8 that decision feedback decides, each by its likelier value.

    >>> decode_by_feedback(decision_feedback(np.eye(3), np.array([2.0, -1.0, 0.5]), 1.0))
    array([1, 0, 1], dtype=uint8)
    """
    order, gain, offset, _ = feedback
    length = order.shape[-1]
    flat = order.reshape(-1, length)
    rows = np.arange(len(flat))
    odds = offset.reshape(-1, length).copy()
    gain = gain.reshape(-1, length, length)
    symbols = np.zeros_like(odds)
    for step in range(length):
        chosen = flat[:, step]
        value = np.where(odds[rows, chosen] >= 0, 1.0, -1.0)
        symbols[rows, chosen] = value
        odds += gain[rows, :, chosen] * value[:, None]
    return (symbols > 0).astype(np.uint8).reshape(order.shape)
