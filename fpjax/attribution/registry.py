"""Who holds which key: one SQLite file, private to its owner, safe with several writers.

Whoever reads a registry can embed anyone's key, so that the file is created readable by its owner
only; SQLite gives its journals the permissions of the file. Several processes may issue keys at
once on a local file system. Network file systems whose locks don't work are no place for one.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import secrets
import sqlite3
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fpjax.errors import FpjaxError
from fpjax.fingerprint.keys import hamming_distances, pack_words

if TYPE_CHECKING:
    from typing import Self

FORMAT_VERSION = 1
MAX_USER_LENGTH = 200
_APPLICATION_ID = int.from_bytes(b"fpjx", "big")
_MAX_DRAWS = 200
# AUTOINCREMENT: numbers are never used twice, so "all keys after this number" finds every new one.
_SCHEMA = """
CREATE TABLE settings (
  scheme_id TEXT NOT NULL,
  key_length INTEGER NOT NULL,
  minimum_distance INTEGER NOT NULL,
  removals INTEGER NOT NULL
);
CREATE TABLE keys (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  user TEXT NOT NULL UNIQUE,
  key BLOB NOT NULL UNIQUE CHECK (typeof(key) = 'blob' AND length(key) = {width})
);
"""


class RegistryError(FpjaxError):
    """A registry that can't be used, or an entry it refuses; the message is one line."""


class UnknownUserError(RegistryError):
    """A user who holds no key."""


class Registry:
    """Users and their keys. Made by `Registry.create` or `Registry.open`; a context manager.

    Attributes:
      path: the file.
      scheme_id: the scheme its keys belong to.
      key_length: bits of a key, L.
      minimum_distance: least number of bits in which any two keys differ.

    A registry belongs to the process and thread that opened it; others open their own.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with Registry.create(f"{folder}/keys.db", key_length=64, scheme_id="demo") as registry:
    ...         key = registry.issue("ada")
    ...         bool((registry.key_of("ada") == key).all()), registry.users()
    (True, ['ada'])
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, timeout: float) -> None:
        self.path = path
        self._connection = connection
        self._timeout = timeout
        self._process = os.getpid()
        self._words = np.zeros((0, 0), np.uint64)
        self._seen = (-1, 0)  # removals and last number that `_words` was read at
        with self._storage("read the settings"):
            rows = connection.execute(
                "SELECT scheme_id, key_length, minimum_distance FROM settings"
            ).fetchall()
        if len(rows) != 1:
            raise RegistryError(f"{path} is damaged: it has {len(rows)} rows of settings, not 1")
        self.scheme_id, self.key_length, self.minimum_distance = rows[0]

    @classmethod
    def create(
        cls,
        path: str | os.PathLike,
        *,
        key_length: int,
        scheme_id: str,
        minimum_distance: int = 0,
        timeout: float = 30.0,
    ) -> Self:
        """Makes an empty registry in a new file of mode 0600.

        Args:
          path: the file; there must be none yet, and its folder must exist.
          key_length: bits of a key, at least 1.
          scheme_id: the scheme that embeds these keys.
          minimum_distance: least Hamming distance between any two keys; 0 and 1 both mean that
            keys differ.
          timeout: seconds to wait for another process that is writing.

        Raises:
          RegistryError: if the file exists or can't be made.
          ValueError: for a length, distance or scheme that can't be.
        """
        if key_length < 1:
            raise ValueError(f"key_length is {key_length}: a key has at least 1 bit")
        if not 0 <= minimum_distance <= key_length:
            raise ValueError(
                f"minimum_distance is {minimum_distance}: keys of {key_length} bits differ in "
                f"0 to {key_length}"
            )
        if not scheme_id:
            raise ValueError("scheme_id is empty: a registry belongs to one scheme")
        path = Path(path)
        try:
            # Exclusive, and private from its first moment: no key is ever in a readable file.
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except FileExistsError:
            raise RegistryError(
                f"{path} exists already: open it, or create the registry under another name"
            ) from None
        except OSError as error:
            raise RegistryError(f"can't create the registry {path}: {error.strerror}") from error
        try:
            connection = _connect(path, timeout)
            try:
                with _storage_errors(path, "create the registry", timeout), connection:
                    connection.execute("BEGIN IMMEDIATE")
                    connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                    connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
                    for statement in _SCHEMA.format(width=_width(key_length)).split(";"):
                        connection.execute(statement)
                    connection.execute(
                        "INSERT INTO settings VALUES (?, ?, ?, 0)",
                        (scheme_id, int(key_length), int(minimum_distance)),
                    )
                return cls(path, connection, timeout)
            except BaseException:
                connection.close()
                raise
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    @classmethod
    def open(
        cls, path: str | os.PathLike, *, scheme_id: str | None = None, timeout: float = 30.0
    ) -> Self:
        """Opens a registry that exists.

        Args:
          path: the file.
          scheme_id: the scheme it must belong to; None takes any.
          timeout: seconds to wait for another process that is writing.

        Raises:
          RegistryError: if the file is missing, is no registry, was written by a newer fpjax, or
            belongs to another scheme.
        """
        path = Path(path)
        if not path.exists():
            raise RegistryError(f"there is no registry {path}: create one, or correct the path")
        if path.is_file() and path.stat().st_size == 0:
            raise RegistryError(
                f"{path} is empty, left by a creation that was interrupted: remove it and create "
                "the registry again"
            )
        connection = _connect(path, timeout)
        try:
            with _storage_errors(path, "open the registry", timeout):
                application = connection.execute("PRAGMA application_id").fetchone()[0]
                version = connection.execute("PRAGMA user_version").fetchone()[0]
            if application != _APPLICATION_ID:
                raise RegistryError(f"{path} is a database, but not a registry of keys")
            if version > FORMAT_VERSION:
                raise RegistryError(
                    f"{path} has format version {version}, and this fpjax reads up to "
                    f"{FORMAT_VERSION}: upgrade fpjax"
                )
            registry = cls(path, connection, timeout)
            if scheme_id is not None and registry.scheme_id != scheme_id:
                raise RegistryError(
                    f"{path} belongs to the scheme {registry.scheme_id!r}, not to {scheme_id!r}: "
                    "its keys would be read in the wrong directions"
                )
            return registry
        except BaseException:
            connection.close()
            raise

    def issue(
        self,
        user: str,
        *,
        key: np.ndarray | None = None,
        rng: np.random.Generator | None = None,
    ) -> np.ndarray:
        """Gives a new user a key, and returns it once it is safely on disk.

        Checks and writing are one transaction: processes that issue at the same time see each
        other's keys, and one that dies leaves either the user with the key or nothing.

        Args:
          user: name; taken in Unicode's NFC form without surrounding spaces.
          key: (L,) bits to register, for keys drawn elsewhere; None draws a uniformly random one.
          rng: draws the key repeatably, for studies. By default bits come from the operating
            system's cryptographic source, as keys of real users must.

        Returns:
          (L,) uint8 of 0 and 1.

        Raises:
          RegistryError: if the name can't be used or has a key, if the given key is another
            user's or too near to it, if no key far enough from all others turned up, or if the
            file can't be written.
          ValueError: if the given key isn't L bits, or both `key` and `rng` are given.
        """
        user = check_user(user)
        if key is not None:
            if rng is not None:
                raise ValueError("give a key, or an rng to draw one from, not both")
            key = self._check_key(key)
        with self._transaction(f"issue a key to {user!r}") as connection:
            if connection.execute("SELECT 1 FROM keys WHERE user = ?", (user,)).fetchone():
                raise RegistryError(f"{user!r} has a key already in {self.path}")
            if self.minimum_distance > 1:
                self._refresh()
            if key is None:
                key = self._draw(rng)
            elif (near := self._too_near(key)) is not None:
                distance, other = near
                raise RegistryError(
                    f"the key for {user!r} is "
                    + (f"{distance} bits from the key" if distance else "the key")
                    + f" of {other!r}: keys in {self.path} differ in at least "
                    f"{max(1, self.minimum_distance)} bits"
                )
            packed = np.packbits(key).tobytes()
            connection.execute("INSERT INTO keys (user, key) VALUES (?, ?)", (user, packed))
        return key

    def key_of(self, user: str) -> np.ndarray:
        """The key of a user, (L,) uint8.

        Raises:
          UnknownUserError: if the user holds none; the message names users of similar names.
        """
        user = check_user(user)
        with self._storage("read a key"):
            row = self._connection.execute(
                "SELECT key FROM keys WHERE user = ?", (user,)
            ).fetchone()
        if row is None:
            raise self._unknown(user)
        return self._unpack(row[0], 1)[0]

    def users(self) -> list[str]:
        """Names in order of issue."""
        with self._storage("read the users"):
            rows = self._connection.execute("SELECT user FROM keys ORDER BY number").fetchall()
        return [user for (user,) in rows]

    def keys(self) -> tuple[list[str], np.ndarray]:
        """All users and their keys in order of issue: N names, and (N, L) uint8."""
        with self._storage("read the keys"):
            rows = self._connection.execute("SELECT user, key FROM keys ORDER BY number").fetchall()
        return [user for user, _ in rows], self._unpack(b"".join(key for _, key in rows), len(rows))

    def remove(self, user: str) -> None:
        """Forgets a user and overwrites the key in the file.

        Images that carry the key can't be attributed any more, and new keys keep no distance from
        it.

        Raises:
          UnknownUserError: if the user holds no key.
        """
        user = check_user(user)
        with self._transaction(f"remove {user!r}") as connection:
            if not connection.execute("DELETE FROM keys WHERE user = ?", (user,)).rowcount:
                raise self._unknown(user)
            connection.execute("UPDATE settings SET removals = removals + 1")

    def close(self) -> None:
        """Closes the file; the registry can't be used after."""
        self._connection.close()

    def __len__(self) -> int:
        with self._storage("count the users"):
            return self._connection.execute("SELECT count(*) FROM keys").fetchone()[0]

    def __bool__(self) -> bool:
        return True  # an empty registry is still a registry: `registry or default` must keep it

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Registry({str(self.path)!r}, scheme_id={self.scheme_id!r})"

    def _storage(self, action: str) -> contextlib.AbstractContextManager[None]:
        if os.getpid() != self._process:
            # SQLite's locks belong to a process; a fork that used them could damage the file.
            raise RegistryError(f"{self.path} was opened in another process: open it in this one")
        return _storage_errors(self.path, action, self._timeout)

    @contextlib.contextmanager
    def _transaction(self, action: str) -> Iterator[sqlite3.Connection]:
        with self._storage(action):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _refresh(self) -> None:
        """Reads the keys that were issued since the last call, or all after a removal."""
        removals = self._connection.execute("SELECT removals FROM settings").fetchone()[0]
        last = self._seen[1] if removals == self._seen[0] else 0
        rows = self._connection.execute(
            "SELECT number, key FROM keys WHERE number > ? ORDER BY number", (last,)
        ).fetchall()
        new = pack_words(self._unpack(b"".join(key for _, key in rows), len(rows)))
        self._words = np.concatenate([self._words, new]) if last else new
        self._seen = (removals, rows[-1][0] if rows else last)

    def _draw(self, rng: np.random.Generator | None) -> np.ndarray:
        for _ in range(_MAX_DRAWS):
            if rng is None:
                raw = np.frombuffer(secrets.token_bytes(_width(self.key_length)), np.uint8)
                key = np.unpackbits(raw, count=self.key_length)
            else:
                key = rng.integers(0, 2, self.key_length, np.uint8)
            if self._too_near(key) is None:
                return key
        raise RegistryError(
            f"no key of {self.key_length} bits that differs in {max(1, self.minimum_distance)} "
            f"from all {len(self)} keys in {self.path} turned up in {_MAX_DRAWS} draws: this "
            "registry is full"
        )

    def _too_near(self, key: np.ndarray) -> tuple[int, str] | None:
        """Distance and name of the nearest user whose key is too near, or None."""
        if self.minimum_distance <= 1:
            row = self._connection.execute(
                "SELECT user FROM keys WHERE key = ?", (np.packbits(key).tobytes(),)
            ).fetchone()
            return (0, row[0]) if row else None
        if not len(self._words):
            return None
        distances = hamming_distances(self._words, pack_words(key))
        nearest = int(distances.argmin())
        if distances[nearest] >= self.minimum_distance:
            return None
        row = self._connection.execute(
            "SELECT user FROM keys ORDER BY number LIMIT 1 OFFSET ?", (nearest,)
        ).fetchone()
        return int(distances[nearest]), row[0]

    def _check_key(self, key: np.ndarray) -> np.ndarray:
        key = np.asarray(key)
        if key.shape != (self.key_length,):
            raise ValueError(f"key has shape {key.shape}: expected ({self.key_length},) bits")
        if not np.isin(key, (0, 1)).all():
            raise ValueError("key holds other values than the bits 0 and 1")
        return key.astype(np.uint8)

    def _unpack(self, packed: bytes, num: int) -> np.ndarray:
        width = _width(self.key_length)
        if len(packed) != num * width:
            raise RegistryError(f"{self.path} is damaged: it holds keys that aren't {width} bytes")
        rows = np.frombuffer(packed, np.uint8).reshape(num, width)
        return np.unpackbits(rows, axis=1, count=self.key_length)

    def _unknown(self, user: str) -> UnknownUserError:
        close = _similar_names(user, self.users())
        hint = f"; the closest names are {', '.join(map(repr, close))}" if close else ""
        return UnknownUserError(f"{user!r} holds no key in {self.path}{hint}")


def check_user(user: str) -> str:
    """A user's name as it is stored: NFC, no spaces around it.

    Raises:
      RegistryError: if it is empty, longer than 200 characters, or has characters that control a
        terminal or the direction of text, in which a report could be made to name someone else.

    >>> check_user(" Zoe\\u0308 ") == "Zo\\u00eb"
    True
    """
    if not isinstance(user, str):
        raise TypeError(f"a user's name is text, got {type(user).__name__}")
    for character in user:
        category = unicodedata.category(character)
        direction = unicodedata.bidirectional(character)
        if category in ("Cc", "Cs", "Zl", "Zp") or direction in _DIRECTION_CONTROLS:
            raise RegistryError(
                f"the user's name {user[:MAX_USER_LENGTH]!a} contains the control character "
                f"U+{ord(character):04X}"
            )
    user = unicodedata.normalize("NFC", user).strip()
    if not user:
        raise RegistryError("the user's name is empty")
    if len(user) > MAX_USER_LENGTH:
        raise RegistryError(
            f"the user's name {user[:20]!r}... has {len(user)} characters: at most "
            f"{MAX_USER_LENGTH} are kept"
        )
    return user


_DIRECTION_CONTROLS = frozenset({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})


def _similar_names(name: str, names: list[str], num: int = 3) -> list[str]:
    """The closest of many names: a quick count of shared pairs of letters, then `difflib`."""
    folded = name.casefold()
    pairs = {folded[i : i + 2] for i in range(len(folded) - 1)} or {folded}
    shared = [(sum(pair in other.casefold() for pair in pairs), other) for other in names]
    # difflib takes about 20 us a name: a second and more for 100,000 of them.
    shortlist = [other for count, other in sorted(shared, reverse=True)[:200] if count]
    by_folded = {other.casefold(): other for other in shortlist}
    return [by_folded[match] for match in difflib.get_close_matches(folded, by_folded, num)]


def _width(key_length: int) -> int:
    return -(-key_length // 8)


def _connect(path: Path, timeout: float) -> sqlite3.Connection:
    with _storage_errors(path, "open the registry", timeout):
        # mode=rw: a path that vanished must not come back as an empty database.
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=timeout, isolation_level=None
        )
    try:
        with _storage_errors(path, "open the registry", timeout):
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA secure_delete = ON")
            connection.execute("PRAGMA trusted_schema = OFF")
    except BaseException:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def _storage_errors(path: Path, action: str, timeout: float) -> Iterator[None]:
    """Turns SQLite's errors into one line that says what to do."""
    try:
        yield
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", "")
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            reason = f"another process has been writing to it for {timeout:g} s: try again later"
        elif name.startswith("SQLITE_FULL"):
            reason = "the disk is full: nothing was changed, make room and try again"
        elif name.startswith("SQLITE_NOTADB"):
            reason = "it is not a registry of keys (not an SQLite file)"
        elif name.startswith("SQLITE_CORRUPT"):
            reason = "the file is damaged: restore it from a copy"
        elif name.startswith("SQLITE_READONLY"):
            reason = "the file, or its folder, can't be written to"
        else:
            reason = " ".join(str(error).split())
        raise RegistryError(f"can't {action} in {path}: {reason}") from error
