"""Keys: where their bits come from, how they are packed and written down, and their levels."""

from __future__ import annotations

import functools
import secrets
from typing import Literal

import jax
import numpy as np
from jaxtyping import PRNGKeyArray, UInt8

from fpjax.errors import InputError

Levels = Literal["binary", "antipodal"]


def sample_keys(key: PRNGKeyArray, num: int, length: int) -> UInt8[np.ndarray, "num length"]:
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
    # In single precision whatever the program's default, so that a seed always gives these keys.
    uniform = _uniform(key, (num, length))
    return (np.asarray(jax.device_get(uniform)) < 0.5).astype(np.uint8)


@functools.partial(jax.jit, static_argnums=1)
def _uniform(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
    return jax.random.uniform(key, shape, "float32")


def secret_keys(num: int, length: int) -> UInt8[np.ndarray, "num length"]:
    """Draws keys from the operating system's cryptographic source.

    Returns:
      (num, length) uint8 of 0 and 1.

    >>> secret_keys(2, 10).shape
    (2, 10)
    """
    count = -(-num * length // 8)
    bits = np.unpackbits(np.frombuffer(secrets.token_bytes(count), np.uint8))
    return bits[: num * length].reshape(num, length)


def as_bits(value, what: str) -> np.ndarray:
    """A value as uint8 bits, or a complaint that it holds something else.

    Raises:
      InputError: naming `what` holds other values than 0 and 1.

    >>> as_bits([True, False], "bits")
    array([1, 0], dtype=uint8)
    """
    value = np.asarray(value)
    if value.dtype.kind not in "biuf":
        raise InputError(f"{what} have dtype {value.dtype}: expected bits 0 and 1")
    # Registries hold millions of bits: the common dtype is checked in one pass.
    fine = value.max(initial=0) <= 1 if value.dtype == np.uint8 else np.isin(value, (0, 1)).all()
    if not fine:
        raise InputError(f"{what} hold other values than the bits 0 and 1")
    return value.astype(np.uint8, copy=False)


def check_keys(keys, length: int) -> np.ndarray:
    """Keys as (N, length) uint8, or what is wrong with them.

    Raises:
      InputError: if they are not bits of this length.

    >>> check_keys([0, 1, 1], 3)
    array([[0, 1, 1]], dtype=uint8)
    """
    keys = np.atleast_2d(np.asarray(keys))
    if keys.ndim != 2 or keys.shape[1] != length:
        raise InputError(f"keys have shape {keys.shape}: expected (N, {length}) bits")
    return as_bits(keys, "keys")


def to_symbols(bits, levels: Levels) -> np.ndarray:
    """Bits {0, 1} to the values a latent is shifted by: themselves, or {-1, +1}.

    >>> to_symbols(np.array([0, 1]), "antipodal")
    array([-1.,  1.], dtype=float32)
    """
    centre, half = level_range(levels)
    bits = np.asarray(bits, np.float32)
    return np.asarray(centre + half * (2 * bits - 1), np.float32)


def level_range(levels: Levels) -> tuple[float, float]:
    """Middle of the two levels, and the distance from it to either.

    >>> level_range("binary"), level_range("antipodal")
    ((0.5, 0.5), (0.0, 1.0))
    """
    return (0.5, 0.5) if levels == "binary" else (0.0, 1.0)


def pack_words(bits: np.ndarray) -> np.ndarray:
    """Packs bits (..., L) into 64-bit words (..., ceil(L / 64)), zeros appended.

    The order of bits within a word depends on the machine: for comparisons, not for files.

    >>> pack_words(np.ones((3, 70), np.uint8)).shape
    (3, 2)
    """
    packed = np.packbits(np.asarray(bits, np.uint8), axis=-1)
    padding = -packed.shape[-1] % 8
    widths = [(0, 0)] * (packed.ndim - 1) + [(0, padding)]
    return np.ascontiguousarray(np.pad(packed, widths)).view(np.uint64)


def unpack_words(words: np.ndarray, length: int) -> np.ndarray:
    """The inverse of `pack_words`: words (..., W) to bits (..., length) uint8.

    >>> unpack_words(pack_words(np.array([0, 1, 1])), 3)
    array([0, 1, 1], dtype=uint8)
    """
    packed = np.ascontiguousarray(words, np.uint64).view(np.uint8)
    return np.unpackbits(packed, axis=-1, count=length)


def hamming_distances(words: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Number of bits in which packed keys (N, W) differ from a packed query (W,): (N,) int64.

    >>> words = pack_words(np.array([[0, 1, 1], [1, 1, 1]]))
    >>> hamming_distances(words, words[0]).tolist()
    [0, 1]
    """
    return np.bitwise_count(words ^ query[None]).sum(-1, dtype=np.int64)


def to_hex(key: np.ndarray) -> str:
    """A key (L,) as hexadecimal text, first bit highest, zeros appended to a whole byte.

    >>> to_hex(np.array([1, 0, 1, 0, 1, 1, 1, 1]))
    'af'
    """
    return np.packbits(np.asarray(key, np.uint8)).tobytes().hex()


def from_hex(text: str, length: int) -> np.ndarray:
    """The inverse of `to_hex`.

    Raises:
      InputError: if the text is not hexadecimal or not of this length.

    >>> from_hex("af", 8)
    array([1, 0, 1, 0, 1, 1, 1, 1], dtype=uint8)
    """
    digits = 2 * -(-length // 8)
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raise InputError(f"key {text!r} is not hexadecimal") from None
    if len(text) != digits:
        raise InputError(f"key {text!r} has {len(text)} digits: {length} bits take {digits}")
    bits = np.unpackbits(np.frombuffer(raw, np.uint8))
    if bits[length:].any():
        raise InputError(f"key {text!r} has bits set beyond the first {length}")
    return bits[:length]
