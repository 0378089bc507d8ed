"""Candidates of a verdict: keys, who holds each, and which of them are revoked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from fpjax.errors import InputError
from fpjax.fingerprint.stored import KeySource, StoredKeys


@dataclasses.dataclass(frozen=True, eq=False)
class Candidates:
    """N keys to compare an image with.

    Attributes:
      source: the keys, or None where there are none.
      holder: name of the holder of key i, 0 <= i < N.
      revoked: when keys were revoked, by their number; they stay candidates, so that a picture
        with a leaked key is not taken for somebody else's.

    >>> Candidates.of(["ada"], np.array([[0, 1]])).holder(0)
    'ada'
    """

    source: KeySource | None
    holder: Callable[[int], str]
    revoked: Mapping[int, str] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return 0 if self.source is None else len(self.source)

    @classmethod
    def of(cls, users: Sequence[str], keys: np.ndarray, length: int | None = None) -> Candidates:
        """Candidates of a list of names and their keys.

        Args:
          users: N names.
          keys: (N, L) bits, or (N, W) uint64 words as `pack_words` makes them.
          length: bits of a key, L; needed for words.

        Raises:
          InputError: if the keys are not of this shape.
        """
        from fpjax.fingerprint.keys import as_bits, unpack_words  # imports JAX; registries do not

        if len(users) == 0:
            return cls(None, users.__getitem__)
        keys = np.asarray(keys)
        length = keys.shape[-1] if length is None and keys.ndim else length
        assert length is not None
        packed = keys.dtype == np.uint64
        shape = (len(users), -(-length // 64)) if packed else (len(users), length)
        if keys.shape != shape:
            raise InputError(f"keys have shape {keys.shape}: expected {shape} for {length} bits")
        bits = unpack_words(keys, length) if packed else as_bits(keys, "keys")
        return cls(StoredKeys.from_bits(bits), users.__getitem__)


@runtime_checkable
class Directory(Protocol):
    """What `attribute` needs of a registry, whoever keeps it."""

    scheme_id: str
    """The scheme its keys belong to."""
    key_length: int
    """Bits of a key."""

    @property
    def path(self) -> Any:
        """Where it is kept, for messages."""
        ...

    def candidates(self) -> Candidates:
        """All keys as they are now."""
        ...


def candidates_of(registry: Directory | Candidates | KeySource) -> Candidates:
    """Candidates of a registry, or of a bare source of keys, whose holders are numbers.

    >>> from fpjax.fingerprint.derived import DerivedKeys
    >>> found = candidates_of(DerivedKeys(bytes(32), 1000, 64))
    >>> len(found), found.holder(7)
    (1000, '7')
    """
    if isinstance(registry, Candidates):
        return registry
    if isinstance(registry, Directory):
        return registry.candidates()
    return Candidates(registry, getattr(registry, "holder", str))
