"""Keys packed into 32-bit words: 8 bytes for a key of 64 bits.

Bit i of a key is bit i mod 32, counted from the least significant, of word i // 32; the last word
ends in zeros. That order is the same on every machine. In memory, words of an even count may be
viewed as little-endian 64-bit words.
"""

from __future__ import annotations

import numpy as np


def num_words(key_length: int) -> int:
    """32-bit words of a packed key.

    >>> num_words(64), num_words(65)
    (2, 3)
    """
    if key_length < 1:
        raise ValueError(f"key_length is {key_length}: a key has at least 1 bit")
    return -(-key_length // 32)


def pack_keys(bits: np.ndarray) -> np.ndarray:
    """Keys (N, L) of 0 and 1 to words (N, W) uint32.

    Raises:
      ValueError: if `bits` is no matrix of bits.

    >>> pack_keys(np.array([[1, 0, 1]])).tolist()
    [[5]]
    """
    bits = np.asarray(bits)
    if bits.ndim != 2 or bits.shape[1] == 0:
        raise ValueError(f"keys have shape {bits.shape}: expected (N, L) bits")
    if not ((bits == 0) | (bits == 1)).all():
        raise ValueError("keys hold other values than the bits 0 and 1")
    packed = np.packbits(bits.astype(np.uint8), axis=1, bitorder="little")
    if padding := 4 * num_words(bits.shape[1]) - packed.shape[1]:
        packed = np.pad(packed, ((0, 0), (0, padding)))
    packed = np.ascontiguousarray(packed)
    return packed.view("<u4").astype(np.uint32, copy=False)


def from_packbits(octets: np.ndarray) -> np.ndarray:
    """Keys as `np.packbits` writes them, (N, bytes) uint8, to words (N, W) uint32.

    >>> from_packbits(np.packbits([[1, 0, 1]], axis=1)).tolist()
    [[5]]
    """
    turned = _REVERSED[octets]
    turned = np.ascontiguousarray(np.pad(turned, ((0, 0), (0, -turned.shape[1] % 4))))
    return turned.view("<u4").astype(np.uint32, copy=False)


_REVERSED = np.packbits(
    np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"), axis=1
)[:, 0]
"""Each byte with its bits in reverse order."""


def unpack_keys(words: np.ndarray, key_length: int) -> np.ndarray:
    """The inverse of `pack_keys`: words (..., W) uint32 to bits (..., L) uint8.

    Raises:
      ValueError: if keys of this length have another number of words.

    >>> unpack_keys(np.array([[5]], np.uint32), 3).tolist()
    [[1, 0, 1]]
    """
    words = np.asarray(words)
    if words.dtype != np.uint32 or words.shape[-1:] != (num_words(key_length),):
        raise ValueError(
            f"words are {words.dtype} {words.shape}: keys of {key_length} bits take uint32 "
            f"(..., {num_words(key_length)})"
        )
    octets = np.ascontiguousarray(words, "<u4").view(np.uint8)
    return np.unpackbits(octets, axis=-1, bitorder="little")[..., :key_length]
