"""Binary BCH codes: generator matrices, from the arithmetic of GF(2^m).

Bose & Ray-Chaudhuri 1960, Hocquenghem 1959; notation as in Lin & Costello, "Error Control Coding",
2nd edition, chapter 6. Polynomials over GF(2) are whole numbers, bit i the coefficient of x^i.
"""

from __future__ import annotations

import functools

import numpy as np

_PRIMITIVE = {
    2: 0b111,
    3: 0b1011,
    4: 0b10011,
    5: 0b100101,
    6: 0b1000011,
    7: 0b10001001,
    8: 0b100011101,
    9: 0b1000010001,
    10: 0b10000001001,
}
MAX_LENGTH = 1024


@functools.lru_cache(maxsize=16)
def _generator_polynomials(m: int) -> tuple[tuple[int, int], ...]:
    """(t, g(x)) of the primitive narrow-sense codes of length 2^m - 1, for growing t.

    g is the least common multiple of the minimal polynomials of a, a^3, ..., a^(2t-1); of several t
    with the same g the largest is kept.
    """
    size = (1 << m) - 1
    powers = [1]
    for _ in range(size - 1):
        shifted = powers[-1] << 1
        powers.append(shifted ^ _PRIMITIVE[m] if shifted >> m else shifted)
    logs = {value: exponent for exponent, value in enumerate(powers)}
    found: dict[int, int] = {}
    polynomial, covered = 1, set()
    for t in range(1, size // 2 + 1):
        root = 2 * t - 1
        if root not in covered:
            conjugates = []
            while root not in covered:
                covered.add(root)
                conjugates.append(root)
                root = 2 * root % size
            polynomial = _multiply(polynomial, _from_roots(conjugates, powers, logs, size))
        found[polynomial] = t
    return tuple((t, polynomial) for polynomial, t in found.items())


def _from_roots(exponents, powers, logs, size) -> int:
    """Product of (x + a^e): its coefficients are 0 and 1 for a set of conjugates."""
    coefficients = [1]
    for exponent in exponents:
        scaled = [powers[(logs[c] + exponent) % size] if c else 0 for c in coefficients] + [0]
        coefficients = [a ^ b for a, b in zip(scaled, [0, *coefficients], strict=True)]
    return sum(bit << i for i, bit in enumerate(coefficients))


def _multiply(a: int, b: int) -> int:
    product = 0
    while b:
        product ^= a * (b & -b)
        b &= b - 1
    return product


def _remainder(a: int, b: int) -> int:
    while a.bit_length() >= b.bit_length():
        a ^= b << (a.bit_length() - b.bit_length())
    return a


def _layout(length: int) -> tuple[int, int, bool]:
    """(m, symbols taken off, whether a parity bit is added) for a code of this length."""
    if not 3 <= length <= MAX_LENGTH:
        raise ValueError(f"a BCH code has 3 to {MAX_LENGTH} symbols, not {length}")
    m = (length - 1).bit_length()
    extended = length == 1 << m
    return m, 0 if extended else (1 << m) - 1 - length, extended


def bch_payloads(length: int) -> dict[int, int]:
    """Payloads of the BCH codes of this length, and their designed distances, largest first.

    Args:
      length: symbols, 3 to 1024; a power of two means a code of one symbol fewer with a parity bit,
        any other number a code of 2^m - 1 symbols with payload bits left out.

    Raises:
      ValueError: for another length.

    >>> bch_payloads(16)
    {11: 4, 7: 6, 5: 8, 1: 16}
    """
    m, removed, extended = _layout(length)
    payloads = {}
    for t, polynomial in _generator_polynomials(m):
        payload = (1 << m) - polynomial.bit_length() - removed
        if payload > 0:
            payloads[payload] = 2 * t + 1 + extended
    return payloads


@functools.lru_cache(maxsize=16)
def bch_generator(length: int, payload: int) -> np.ndarray:
    """Generator matrix (payload, length) uint8, systematic: the payload first, then the parity.

    A word read from left to right holds the coefficients of its polynomial, highest first.

    Raises:
      ValueError: if there is no such code.

    >>> bch_generator(7, 4)
    array([[1, 0, 0, 0, 1, 0, 1],
           [0, 1, 0, 0, 1, 1, 1],
           [0, 0, 1, 0, 1, 1, 0],
           [0, 0, 0, 1, 0, 1, 1]], dtype=uint8)
    """
    m, removed, extended = _layout(length)
    for _, polynomial in _generator_polynomials(m):
        if (1 << m) - polynomial.bit_length() - removed == payload:
            break
    else:
        raise ValueError(f"there is no BCH code of {length} symbols and {payload} bits")
    checks = polynomial.bit_length() - 1
    rows = []
    for i in range(payload):
        shifted = 1 << (checks + payload - 1 - i)
        word = shifted | _remainder(shifted, polynomial)
        row = [int(digit) for digit in f"{word:0{payload + checks}b}"]
        rows.append([*row, sum(row) % 2] if extended else row)
    matrix = np.array(rows, np.uint8)
    matrix.setflags(write=False)
    return matrix
