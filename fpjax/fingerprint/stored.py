"""Sources of candidate keys, and the one that has them in memory or in a file."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol, runtime_checkable

import numpy as np

from fpjax.fingerprint.packed import num_words, pack_keys


@runtime_checkable
class KeySource(Protocol):
    """Where candidate keys come from: N of them, packed, by number."""

    @property
    def key_length(self) -> int:
        """Bits of a key, L."""
        ...

    def __len__(self) -> int:
        """Keys, N."""
        ...

    def words(self, start: int, size: int) -> Any:
        """Words (size, W) uint32 of keys from `start` on, on the host or a device.

        `start` and `size` are multiples of 2^15; rows beyond N hold anything.
        """
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class StoredKeys:
    """Keys in an array or a memory-mapped file.

    Attributes:
      packed: (N, W) uint32, as `pack_keys` makes them, or the same memory as (N, W / 2) or (N,)
        little-endian uint64.
      key_length: bits of a key, L.

    Raises:
      ValueError: for an array of another kind or width, or without keys.

    >>> StoredKeys.from_bits(np.array([[1, 0, 1], [1, 1, 1]])).packed.tolist()
    [[5], [7]]
    """

    packed: np.ndarray
    key_length: int

    def __post_init__(self) -> None:
        packed, width = self.packed, num_words(self.key_length)
        if not isinstance(packed, np.ndarray) or packed.dtype not in (np.uint32, np.uint64):
            raise ValueError("packed keys are a NumPy array of uint32 or uint64 words")
        if packed.dtype == np.uint64:
            width = -(-width // 2)
            packed = packed.reshape(-1, 1) if packed.ndim == 1 else packed
        if packed.ndim != 2 or packed.shape[1] != width or not packed.flags.c_contiguous:
            raise ValueError(
                f"packed keys have shape {packed.shape}: keys of {self.key_length} bits take "
                f"(N, {width}) {packed.dtype}, contiguous"
            )
        if len(packed) == 0:
            raise ValueError("there are no keys to search: register a user first")
        object.__setattr__(self, "packed", packed)

    @classmethod
    def from_bits(cls, bits: np.ndarray) -> StoredKeys:
        """Packs keys (N, L) of 0 and 1."""
        return cls(pack_keys(bits), np.shape(bits)[1])

    def __len__(self) -> int:
        return len(self.packed)

    def words(self, start: int, size: int) -> np.ndarray:
        """Words of keys from `start` on, (size, W) uint32, zeros beyond the last."""
        found = self._part(start, size)
        return found.view(np.uint32)[:, : num_words(self.key_length)]

    def words64(self, start: int, size: int) -> np.ndarray:
        """The same as (size, V) uint64, without a copy where the memory allows it."""
        return as_uint64(self._part(start, size))

    def _part(self, start: int, size: int) -> np.ndarray:
        found = self.packed[start : start + size]
        if len(found) < size:
            found = np.pad(found, ((0, size - len(found)), (0, 0)))
        return found


def as_uint64(words: np.ndarray) -> np.ndarray:
    """Words (..., W) uint32 as (..., V) uint64, which they may be already."""
    if words.dtype == np.uint64:
        return words
    if words.shape[-1] % 2:
        words = np.pad(words, [(0, 0)] * (words.ndim - 1) + [(0, 1)])
    return np.ascontiguousarray(words).view(np.uint64)
