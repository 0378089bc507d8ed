"""Who holds which key: one SQLite file, private to its owner, safe with several writers.

Whoever reads a registry can embed anyone's key, so that the file is created readable by its owner
only; SQLite gives its journals the permissions of the file. Several processes may issue keys at
once on a local file system. Network file systems whose locks don't work are no place for one.

Each row has a checksum, compared when a registry is opened, so that no verdict rests on a flipped
bit. Registries of older formats lack that, or revocations: they are read as they are, and become
the newest format with the first key that is issued, revoked or removed.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fpjax.attribution.candidates import Candidates
from fpjax.attribution.registry_base import RegistryFile, create_file
from fpjax.attribution.registry_file import (
    FORMAT_VERSION,
    RegistryWarning,
    bring_up_to_date,
    check_rows,
    check_there,
    checksum,
    connect,
    format_version,
    make_tables,
    packed_rows,
    put_revocation,
    read_candidates,
    revocations,
    storage_errors,
    warn_if_open_to_others,
    width_of,
)
from fpjax.attribution.registry_names import (
    MAX_USER_LENGTH,
    RegistryError,
    UnknownUserError,
    check_user,
    look,
    revoked_key,
    stored_form,
    unknown_user,
)

if TYPE_CHECKING:
    from typing import Self

__all__ = [
    "FORMAT_VERSION",
    "MAX_USER_LENGTH",
    "Registry",
    "RegistryError",
    "RegistryWarning",
    "UnknownUserError",
    "check_user",
]

_MAX_DRAWS = 200


class Registry(RegistryFile):
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
        super().__init__(path, connection, timeout)
        self._words = np.zeros((0, 0), np.uint64)
        self._seen = (-1, 0)  # removals and last number that `_words` was read at
        settings = self._settings("scheme_id, key_length, minimum_distance")
        self.scheme_id, self.key_length, self.minimum_distance = settings

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

        def fill(connection: sqlite3.Connection) -> None:
            make_tables(connection, width_of(key_length))
            connection.execute(
                "INSERT INTO settings VALUES (?, ?, ?, 0)",
                (scheme_id, int(key_length), int(minimum_distance)),
            )

        return create_file(path, timeout, fill, lambda made: cls(path, made, timeout))

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
          RegistryError: if the file is missing, is no registry, is damaged, was written by a newer
            fpjax, or belongs to another scheme.

        Warns:
          RegistryWarning: if others than its owner may read or write the file.
        """
        path = Path(path)
        check_there(path)
        connection = connect(path, timeout)
        try:
            with storage_errors(path, "open the registry", timeout):
                version = format_version(connection, path)
            registry = cls(path, connection, timeout)
            registry._check_scheme(scheme_id)
            with registry._storage("check the keys"):
                check_rows(connection, path, version)
            warn_if_open_to_others(path)
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
          RegistryError: if the name can't be used, has a key, or looks like the name of someone who
            has, if the given key is another user's or too near to it, if no key far enough from
            all others turned up, or if the file can't be written.
          ValueError: if the given key isn't L bits, or both `key` and `rng` are given.
        """
        user = check_user(user)
        if key is not None:
            if rng is not None:
                raise ValueError("give a key, or an rng to draw one from, not both")
            key = self._check_key(key)
        with self._transaction(f"issue a key to {user!r}") as connection:
            self._check_new(connection, "keys", user)
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
            connection.execute(
                "INSERT INTO keys (user, key, checksum, look) VALUES (?, ?, ?, ?)",
                (user, packed, checksum(user, packed), look(user)),
            )
        return key

    def key_of(self, user: str, *, revoked: bool = False) -> np.ndarray:
        """The key of a user, (L,) uint8.

        Args:
          user: name.
          revoked: give a revoked key too, to look at; nothing should be made with it.

        Raises:
          UnknownUserError: if the user holds none; the message names users of similar names.
          RegistryError: if the key is revoked.
        """
        user = stored_form(user)
        with self._storage("read a key"):
            row = self._connection.execute(
                "SELECT key, number FROM keys WHERE user = ?", (user,)
            ).fetchone()
            dates = revocations(self._connection)
        if row is None:
            raise self._unknown(user)
        if row[1] in dates and not revoked:
            raise revoked_key(user, self.path, dates[row[1]])
        return self._unpack(row[0])[0]

    def users(self) -> list[str]:
        """Names in order of issue."""
        with self._storage("read the users"):
            rows = self._connection.execute("SELECT user FROM keys ORDER BY number").fetchall()
        return [user for (user,) in rows]

    def keys(self) -> tuple[list[str], np.ndarray]:
        """All users and their keys in order of issue: N names, and (N, L) uint8."""
        with self._storage("read the keys"):
            rows = self._connection.execute("SELECT user, key FROM keys ORDER BY number").fetchall()
        return [user for user, _ in rows], self._unpack(b"".join(key for _, key in rows))

    def words(self) -> tuple[list[str], np.ndarray]:
        """All users and their packed keys in order of issue, for comparisons by words.

        Returns:
          N names, and (N, ceil(L / 64)) uint64 as `pack_words` makes them of the bits.
        """
        with self._storage("read the keys"):
            rows = self._connection.execute("SELECT user, key FROM keys ORDER BY number").fetchall()
        return [user for user, _ in rows], self._as_words(b"".join(key for _, key in rows))

    def candidates(self) -> Candidates:
        """All keys as they are now, for verdicts."""
        with self._storage("read the keys"):
            return read_candidates(self._connection, self.path, self.key_length)

    def revoked(self) -> dict[str, str]:
        """Users whose key is revoked, and since when, as ISO 8601 in UTC."""
        with self._storage("read the revocations"):
            dates = revocations(self._connection)
            rows = self._connection.execute("SELECT number, user FROM keys").fetchall()
        return {user: dates[number] for number, user in rows if number in dates}

    def revoke(self, user: str) -> None:
        """Marks a user's key as leaked: from now on a verdict about it names nobody, and says so.

        The key stays known, and new keys keep their distance. A second time changes nothing.

        Raises:
          UnknownUserError: if the user holds no key.
        """
        user = stored_form(user)
        with self._transaction(f"revoke the key of {user!r}") as connection:
            row = connection.execute("SELECT number FROM keys WHERE user = ?", (user,)).fetchone()
            if row is None:
                raise self._unknown(user)
            put_revocation(connection, row[0])

    def remove(self, user: str) -> None:
        """Forgets a user and overwrites the key in the file.

        Images that carry the key can't be attributed any more, and new keys keep no distance from
        it; see `revoke`.

        Raises:
          UnknownUserError: if the user holds no key.
        """
        user = stored_form(user)
        with self._transaction(f"remove {user!r}") as connection:
            connection.execute(
                "DELETE FROM revocations WHERE number = (SELECT number FROM keys WHERE user = ?)",
                (user,),
            )
            if not connection.execute("DELETE FROM keys WHERE user = ?", (user,)).rowcount:
                raise self._unknown(user)
            connection.execute("UPDATE settings SET removals = removals + 1")

    def __len__(self) -> int:
        with self._storage("count the users"):
            return self._connection.execute("SELECT count(*) FROM keys").fetchone()[0]

    def _prepare(self) -> None:
        bring_up_to_date(self._connection, self.path)

    def _refresh(self) -> None:
        """Reads the keys that were issued since the last call, or all after a removal."""
        removals = self._connection.execute("SELECT removals FROM settings").fetchone()[0]
        last = self._seen[1] if removals == self._seen[0] else 0
        rows = self._connection.execute(
            "SELECT number, key FROM keys WHERE number > ? ORDER BY number", (last,)
        ).fetchall()
        new = self._as_words(b"".join(key for _, key in rows))
        self._words = np.concatenate([self._words, new]) if last else new
        self._seen = (removals, rows[-1][0] if rows else last)

    def _draw(self, rng: np.random.Generator | None) -> np.ndarray:
        for _ in range(_MAX_DRAWS):
            if rng is None:
                raw = np.frombuffer(secrets.token_bytes(width_of(self.key_length)), np.uint8)
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
        words = self._as_words(np.packbits(key).tobytes())
        distances = np.bitwise_count(self._words ^ words).sum(-1, dtype=np.int64)
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

    def _unpack(self, packed: bytes) -> np.ndarray:
        rows = packed_rows(self.path, packed, self.key_length)
        return np.unpackbits(rows, axis=1, count=self.key_length)

    def _as_words(self, packed: bytes) -> np.ndarray:
        # The file's bytes are packed bits already.
        rows = packed_rows(self.path, packed, self.key_length)
        padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 8)))
        return np.ascontiguousarray(padded).view(np.uint64)

    def _unknown(self, user: str) -> UnknownUserError:
        return unknown_user(user, self.path, self.users())
