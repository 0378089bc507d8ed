"""Keys derived from one secret: 10^9 users are 32 bytes and a number.

The key of user i is a part of the key stream of ChaCha20 (RFC 8439) under the secret, so that it is
found again from i alone, and nobody without the secret can tell it from random bits. Blocks of keys
are made where they are searched, on the device.

Derived keys are independent: two of N users share a key of L bits with probability about
N^2 / 2^(L+1), which is 3 % for 10^9 users and 64 bits, and there is no minimum distance.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from fpjax.errors import FpjaxError
from fpjax.fingerprint.packed import num_words, unpack_keys

SECRET_BYTES = 32
_BLOCK_WORDS = 16
_COLUMNS = 1024
"""Key stream blocks computed together: their state, 64 KiB, stays in a core's cache."""
_CONSTANTS = (0x61707865, 0x3320646E, 0x79622D32, 0x6B206574)  # "expand 32-byte k"
_NONCE_TAG = int.from_bytes(b"fpjx", "little")


class SecretError(FpjaxError, ValueError):
    """A secret, or its file, that can't be used; the message is one line.

    >>> issubclass(SecretError, ValueError)
    True
    """


def chacha20_block(key: jax.Array, counters: jax.Array, nonce: jax.Array) -> jax.Array:
    """The ChaCha20 block function, RFC 8439 section 2.3.

    Args:
      key: (8,) uint32, little-endian words of the 32 bytes.
      counters: (N,) uint32.
      nonce: (3,) uint32.

    Returns:
      (N, 16) uint32, the key stream in little-endian words.

    >>> zeros = jnp.zeros(8, jnp.uint32)
    >>> stream = chacha20_block(zeros, jnp.zeros(1, jnp.uint32), zeros[:3])
    >>> np.asarray(stream)[0, :1].tobytes().hex()
    '76b8e0ad'
    """
    state = [
        *(jnp.full(counters.shape, np.uint32(constant)) for constant in _CONSTANTS),
        *(jnp.broadcast_to(word, counters.shape) for word in key),
        counters,
        *(jnp.broadcast_to(word, counters.shape) for word in nonce),
    ]
    # A loop, not 20 rounds in one expression: XLA would compute every word's history anew.
    mixed = jax.lax.fori_loop(0, 10, lambda _, words: _double_round(words), tuple(state))
    return jnp.stack([a + b for a, b in zip(mixed, state, strict=True)], axis=1)


def _double_round(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    words = list(state)
    for shift in (0, 1):  # columns, then diagonals
        for i in range(4):
            places = [4 * row + (i + shift * row) % 4 for row in range(4)]
            mixed = _quarter_round(*(words[place] for place in places))
            for place, word in zip(places, mixed, strict=True):
                words[place] = word
    return tuple(words)


def _quarter_round(a, b, c, d):
    a = a + b
    d = _rotate_left(d ^ a, 16)
    c = c + d
    b = _rotate_left(b ^ c, 12)
    a = a + b
    d = _rotate_left(d ^ a, 8)
    c = c + d
    b = _rotate_left(b ^ c, 7)
    return a, b, c, d


def _rotate_left(x, count: int):
    return (x << np.uint32(count)) | (x >> np.uint32(32 - count))


@functools.partial(jax.jit, static_argnames=("num_blocks",))
def _key_stream(key, nonce, first, num_blocks: int):
    """(num_blocks, 16) uint32 of the counters first, first + 1, ..."""
    columns = min(_COLUMNS, num_blocks)
    steps = jnp.arange(num_blocks // columns, dtype=jnp.uint32) * np.uint32(columns)

    def some(step):
        return chacha20_block(key, first + step + jnp.arange(columns, dtype=jnp.uint32), nonce)

    return jax.lax.map(some, steps).reshape(num_blocks, _BLOCK_WORDS)


@dataclasses.dataclass(frozen=True)
class DerivedKeys:
    """Keys of users 0 to `count` - 1, computed when they are asked for.

    A key takes a power of two of words, at least W = ceil(L / 32), of the key stream: user i has
    the words from i times that on. The key length is part of the nonce, so that keys of two lengths
    under one secret have nothing in common. User i has the same key whatever `count` is.

    Attributes:
      secret: 32 bytes, as `create_secret` makes them. Not shown by `repr`.
      count: users, N; they share 2^32 blocks of the key stream, 3.4e10 keys of 64 bits.
      key_length: bits of a key, L, 1 to 65535.

    Raises:
      SecretError: for a secret of another size.
      ValueError: for a count or length out of range.

    >>> keys = DerivedKeys(bytes(32), count=10**9, key_length=64)
    >>> keys.key(123_456_789).shape, keys.holder(123_456_789)
    ((64,), '123456789')
    """

    secret: bytes = dataclasses.field(repr=False)
    count: int
    key_length: int

    def __post_init__(self) -> None:
        if not isinstance(self.secret, bytes) or len(self.secret) != SECRET_BYTES:
            kind = type(self.secret).__name__
            given = len(self.secret) if isinstance(self.secret, bytes) else kind
            raise SecretError(
                f"a secret is {SECRET_BYTES} bytes, not {given}: make one with create_secret"
            )
        if not 1 <= self.key_length < 1 << 16:
            raise ValueError(f"key_length is {self.key_length}: expected 1 to 65535 bits")
        most = (1 << 32) * _BLOCK_WORDS // self._stride
        if not 1 <= self.count <= most:
            raise ValueError(
                f"count is {self.count}: derived keys of {self.key_length} bits serve 1 to {most} "
                "users"
            )

    def __len__(self) -> int:
        return self.count

    @property
    def num_words(self) -> int:
        """32-bit words of a packed key, W."""
        return num_words(self.key_length)

    def holder(self, index: int) -> str:
        """Name of user `index`: the number itself, in decimal.

        Raises:
          IndexError: if there is no such user.
        """
        return str(self._check(index))

    def key(self, index: int) -> np.ndarray:
        """Key of user `index`, (L,) uint8 of 0 and 1.

        Raises:
          IndexError: if there is no such user.
        """
        return self.keys([index])[0]

    def keys(self, indices) -> np.ndarray:
        """Keys of several users, (len(indices), L) uint8.

        Raises:
          IndexError: if there is no such user.
        """
        return unpack_keys(self.words_of(indices), self.key_length)

    def words_of(self, indices) -> np.ndarray:
        """Packed keys of several users, (len(indices), W) uint32 on the host."""
        indices = [self._check(index) for index in indices]
        unit = self.block_unit
        found = np.empty((len(indices), self.num_words), np.uint32)
        blocks = sorted({index // unit for index in indices})
        streams = {block: np.asarray(self._words(block * unit, unit)) for block in blocks}
        for row, index in enumerate(indices):
            found[row] = streams[index // unit][index % unit]
        return found

    def words(self, start: int, size: int) -> jax.Array:
        """Packed keys of users start, ..., start + size - 1, (size, W) uint32 on the device.

        Both must be multiples of the users that share a block of the key stream (8 at 64 bits);
        users beyond `count` are included where the range says so, and are nobody's.

        Raises:
          ValueError: for a range that doesn't begin and end with a block.
        """
        unit = self.block_unit
        if start < 0 or size < 1 or start % unit or size % unit:
            raise ValueError(
                f"users {start} to {start + size}: a range begins and ends at a multiple of {unit}"
            )
        return self._words(start, size)

    def blocks(self, block_size: int = 1 << 20) -> Iterator[tuple[int, jax.Array]]:
        """Yields (first user, words (block_size, W) uint32 on the device) over all users.

        Every block is full, so that one program serves all: in the last one rows beyond `count` are
        words of the key stream that belong to no user.

        Args:
          block_size: users a block, a multiple of `block_unit`.
        """
        for start in range(0, self.count, block_size):
            yield start, self.words(start, block_size)

    @property
    def block_unit(self) -> int:
        """Users whose keys are computed together; ranges and blocks are multiples of it."""
        return max(1, _BLOCK_WORDS // self._stride)

    @property
    def _stride(self) -> int:
        """Words of the key stream from one user to the next: a power of two."""
        return 1 << (self.num_words - 1).bit_length()

    def _words(self, start: int, size: int) -> jax.Array:
        secret = np.frombuffer(self.secret, "<u4").astype(np.uint32)
        nonce = np.array([_NONCE_TAG, self.key_length, 0], np.uint32)
        first = np.uint32(start * self._stride // _BLOCK_WORDS & 0xFFFFFFFF)
        num_blocks = size * self._stride // _BLOCK_WORDS
        # Whole columns: the extra blocks are cut off.
        padded = num_blocks if num_blocks < _COLUMNS else -(-num_blocks // _COLUMNS) * _COLUMNS
        stream = _key_stream(secret, nonce, first, padded)
        return _cut(stream, size, self._stride, self.num_words, self.key_length)

    def _check(self, index: int) -> int:
        index = int(index)
        if not 0 <= index < self.count:
            raise IndexError(f"there is no user {index}: there are {self.count}, from 0")
        return index


@functools.partial(jax.jit, static_argnames=("size", "stride", "width", "key_length"))
def _cut(stream, size: int, stride: int, width: int, key_length: int):
    words = stream.reshape(-1, stride)[:size, :width]
    rest = key_length % 32
    if rest:
        words = words.at[:, -1].set(words[:, -1] & np.uint32((1 << rest) - 1))
    return words


def create_secret(path: str | os.PathLike) -> bytes:
    """Makes a secret of 32 random bytes in a new file of mode 0600, safe on disk when it returns.

    Raises:
      SecretError: if the file exists or can't be made.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     create_secret(f"{folder}/secret") == read_secret(f"{folder}/secret")
    True
    """
    path = Path(path)
    secret = secrets.token_bytes(SECRET_BYTES)
    # Written beside and linked: a file of this name is whole, private, and never another's.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(secret)
                file.flush()
                os.fsync(file.fileno())
            os.link(temporary, path)
        finally:
            os.unlink(temporary)
    except FileExistsError:
        raise SecretError(f"{path} exists already: a secret is never overwritten") from None
    except OSError as error:
        raise SecretError(f"can't write the secret {path}: {error.strerror}") from error
    return secret


def read_secret(path: str | os.PathLike) -> bytes:
    """Reads a secret that only its owner can read.

    Raises:
      SecretError: if the file is missing, is no plain file, is readable by others, or is not of 32
        bytes.

    >>> read_secret("/nowhere/secret")
    Traceback (most recent call last):
    fpjax.fingerprint.derived.SecretError: can't read the secret /nowhere/secret: No such file ...
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise SecretError(f"{path} is no plain file")
            if os.name == "posix" and status.st_mode & 0o077:
                raise SecretError(
                    f"{path} has mode {stat.S_IMODE(status.st_mode):04o}: others can read or "
                    f"change the secret; after making sure that nobody did, chmod 600 {path}"
                )
            secret = file.read(SECRET_BYTES + 1)
    except OSError as error:
        raise SecretError(f"can't read the secret {path}: {error.strerror}") from error
    if len(secret) != SECRET_BYTES:
        size = status.st_size
        raise SecretError(f"{path} has {size} bytes: a secret has {SECRET_BYTES}")
    return secret
