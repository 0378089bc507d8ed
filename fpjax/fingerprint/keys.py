"""Keys: where their bits come from, how they are written down, and which levels they take."""

from __future__ import annotations

import secrets
from typing import Literal

import jax
import numpy as np

Levels = Literal["binary", "antipodal"]


def sample_keys(key: jax.Array, num: int, length: int) -> np.ndarray:
    """Draws keys from a PRNG key: repeatable, for studies.

    Whoever knows the PRNG key knows the keys; `secret_keys` is for real users.

    Args:
      key: PRNG key.
      num: how many.
      length: bits of each.

    Returns:
      (num, length) uint8 of 0 and 1.

    >>> sample_keys(jax.random.key(0), 3, 64).shape
    (3, 64)
    """
    return np.asarray(jax.random.bernoulli(key, shape=(num, length)), np.uint8)


def secret_keys(num: int, length: int) -> np.ndarray:
    """Draws keys from the operating system's cryptographic source.

    Returns:
      (num, length) uint8 of 0 and 1.

    >>> secret_keys(2, 10).shape
    (2, 10)
    """
    count = -(-num * length // 8)
    bits = np.unpackbits(np.frombuffer(secrets.token_bytes(count), np.uint8))
    return bits[: num * length].reshape(num, length)


def check_keys(keys: np.ndarray, length: int) -> np.ndarray:
    """Returns keys as (N, length) uint8, or says what is wrong with them.

    >>> check_keys([0, 1, 1], 3)
    array([[0, 1, 1]], dtype=uint8)
    """
    keys = np.atleast_2d(np.asarray(keys))
    if keys.ndim != 2 or keys.shape[1] != length:
        raise ValueError(f"keys have shape {keys.shape}: expected (N, {length}) bits")
    if not np.isin(keys, (0, 1)).all():
        raise ValueError("keys hold other values than the bits 0 and 1")
    return keys.astype(np.uint8)


def to_levels(bits, levels: Levels):
    """Bits {0, 1} to the values a latent is shifted by: themselves, or {-1, +1}.

    >>> to_levels(np.array([0, 1]), "antipodal")
    array([-1.,  1.], dtype=float32)
    """
    bits = np.asarray(bits, np.float32)
    return bits if levels == "binary" else 2 * bits - 1


def to_hex(key: np.ndarray) -> str:
    """A key (L,) as hexadecimal text, first bit highest, zeros appended to a whole byte.

    >>> to_hex(np.array([1, 0, 1, 0, 1, 1, 1, 1]))
    'af'
    """
    return np.packbits(np.asarray(key, np.uint8)).tobytes().hex()


def from_hex(text: str, length: int) -> np.ndarray:
    """The inverse of `to_hex`.

    Raises:
      ValueError: if the text is not hexadecimal or not of this length.

    >>> from_hex("af", 8)
    array([1, 0, 1, 0, 1, 1, 1, 1], dtype=uint8)
    """
    digits = 2 * -(-length // 8)
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raise ValueError(f"key {text!r} is not hexadecimal") from None
    if len(text) != digits:
        raise ValueError(f"key {text!r} has {len(text)} digits: {length} bits take {digits}")
    bits = np.unpackbits(np.frombuffer(raw, np.uint8))
    if bits[length:].any():
        raise ValueError(f"key {text!r} has bits set beyond the first {length}")
    return bits[:length]
