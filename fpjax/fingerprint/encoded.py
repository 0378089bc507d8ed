"""A source of code words: the keys of another source, encoded where they are searched."""

from __future__ import annotations

import numpy as np

from fpjax.fingerprint.codes import Code
from fpjax.fingerprint.packed import num_words, pack_keys
from fpjax.fingerprint.stored import KeySource


class EncodedKeys:
    """Words of a source's keys under a code, packed; itself a source, of keys of L symbols.

    Codes are linear up to their mask, so that a word is the exclusive or of one table entry for
    each byte of its key.

    Args:
      source: keys of `code.payload_bits` bits.
      code: what turns them into words.

    Raises:
      ValueError: if the keys have another length.

    >>> from fpjax.fingerprint.codes import Repetition
    >>> from fpjax.fingerprint.stored import StoredKeys
    >>> keys = StoredKeys.from_bits(np.array([[1, 0], [1, 1]]))
    >>> EncodedKeys(keys, Repetition(2, 3)).words(0, 2).tolist()
    [[7], [63]]
    """

    def __init__(self, source: KeySource, code: Code) -> None:
        length = code.payload_bits
        if source.key_length != length:
            raise ValueError(f"keys of {source.key_length} bits: the code carries {length}")
        self.source, self.key_length = source, code.num_symbols
        base = code.encode(np.zeros((1, length), np.uint8))
        self._base = pack_keys(base)
        rows = pack_keys(code.encode(np.eye(length, dtype=np.uint8)) ^ base)
        octets = -(-length // 8)
        rows = np.pad(rows, ((0, 8 * octets - length), (0, 0))).reshape(octets, 8, -1)
        tables = np.zeros((octets, 256, num_words(code.num_symbols)), np.uint32)
        for bit in range(8):
            tables[:, 1 << bit : 2 << bit] = tables[:, : 1 << bit] ^ rows[:, bit, None]
        self._tables = tables

    def __len__(self) -> int:
        return len(self.source)

    def words(self, start: int, size: int) -> np.ndarray:
        """Words (size, W) uint32 of keys from `start` on; see `KeySource.words`."""
        keys = np.ascontiguousarray(np.asarray(self.source.words(start, size)), "<u4")
        octets = keys.view(np.uint8)
        found = np.repeat(self._base, len(keys), axis=0)
        for place, table in enumerate(self._tables):
            found ^= table[octets[:, place]]
        return found
