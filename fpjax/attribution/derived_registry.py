"""Registries of derived keys: 10^9 users are one secret, a number, and the names that are wanted.

The file says how many keys are issued, who has a name, and which keys are revoked. The keys
themselves are in no file: they follow from the secret (`fpjax.fingerprint.derived`), which is kept
in a file of its own. User i without a name is called "i", in decimal.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fpjax.attribution.candidates import Candidates
from fpjax.attribution.registry import Registry
from fpjax.attribution.registry_base import RegistryFile, create_file
from fpjax.attribution.registry_file import (
    DERIVED_APPLICATION_ID,
    begin_file,
    check_there,
    connect,
    format_version,
    put_revocation,
    storage_errors,
)
from fpjax.attribution.registry_names import (
    RegistryError,
    check_user,
    look,
    revoked_key,
    stored_form,
    unknown_user,
)
from fpjax.fingerprint.derived import DerivedKeys, read_secret

if TYPE_CHECKING:
    from typing import Self

DERIVED_FORMAT_VERSION = 1
_MOST = 1 << 33
"""Users, at most, whatever the key's length; DerivedKeys may allow fewer."""
_SCHEMA = """
CREATE TABLE settings (
  scheme_id TEXT NOT NULL,
  key_length INTEGER NOT NULL,
  count INTEGER NOT NULL,
  secret_digest BLOB NOT NULL
);
CREATE TABLE names (
  number INTEGER PRIMARY KEY,
  user TEXT NOT NULL UNIQUE,
  look TEXT NOT NULL
);
CREATE INDEX looks ON names (look);
CREATE TABLE revocations (number INTEGER PRIMARY KEY, at TEXT NOT NULL)
"""


class DerivedRegistry(RegistryFile):
    """Users whose keys follow from a secret. Made by `create` or `open`; a context manager.

    Attributes:
      path: the file.
      scheme_id: the scheme its keys belong to.
      key_length: bits of a key.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path, secret = f"{folder}/keys.db", bytes(32)
    ...     options = {"key_length": 64, "scheme_id": "demo"}
    ...     with DerivedRegistry.create(path, secret, **options) as registry:
    ...         key = registry.issue("ada")
    ...         registry.extend(10**6)
    ...         len(registry), registry.holder(0), registry.holder(999_999)
    range(1, 1000001)
    (1000001, 'ada', '999999')
    """

    def __init__(
        self, path: Path, connection: sqlite3.Connection, secret: bytes | None, timeout: float
    ) -> None:
        super().__init__(path, connection, timeout)
        self._secret = secret
        settings = self._settings("scheme_id, key_length, secret_digest")
        self.scheme_id, self.key_length, digest = settings
        if secret is not None and _digest(secret) != digest:
            raise RegistryError(
                f"the secret is not the one that the keys of {path} are derived from: its users "
                "would be given other keys"
            )

    @classmethod
    def create(
        cls,
        path: str | os.PathLike,
        secret: bytes,
        *,
        key_length: int,
        scheme_id: str,
        timeout: float = 30.0,
    ) -> Self:
        """Makes an empty registry in a new file of mode 0600.

        Args:
          path: the file; there must be none yet, and its folder must exist.
          secret: 32 bytes, as `create_secret` makes and `read_secret` reads them.
          key_length: bits of a key.
          scheme_id: the scheme that embeds these keys.
          timeout: seconds to wait for another process that is writing.

        Raises:
          RegistryError: if the file exists or can't be made.
          SecretError, ValueError: for a secret or length that can't be.
        """
        DerivedKeys(secret, 1, key_length)  # checks both
        if not scheme_id:
            raise ValueError("scheme_id is empty: a registry belongs to one scheme")
        path = Path(path)

        def fill(connection: sqlite3.Connection) -> None:
            begin_file(connection, DERIVED_APPLICATION_ID, DERIVED_FORMAT_VERSION, _SCHEMA)
            connection.execute(
                "INSERT INTO settings VALUES (?, ?, 0, ?)",
                (scheme_id, int(key_length), _digest(secret)),
            )

        return create_file(path, timeout, fill, lambda made: cls(path, made, secret, timeout))

    @classmethod
    def open(
        cls,
        path: str | os.PathLike,
        secret: bytes | None,
        *,
        scheme_id: str | None = None,
        timeout: float = 30.0,
    ) -> Self:
        """Opens a registry that exists.

        Args:
          path: the file.
          secret: the one it was created with; None for names and revocations alone.
          scheme_id: the scheme it must belong to; None takes any.
          timeout: seconds to wait for another process that is writing.

        Raises:
          RegistryError: if the file is missing, is no registry of derived keys, was written by a
            newer fpjax, belongs to another scheme, or to another secret.
        """
        path = Path(path)
        check_there(path)
        connection = connect(path, timeout)
        try:
            with storage_errors(path, "open the registry", timeout):
                format_version(connection, path, DERIVED_APPLICATION_ID, DERIVED_FORMAT_VERSION)
            registry = cls(path, connection, secret, timeout)
            registry._check_scheme(scheme_id)
            with registry._storage("check the file"):
                if connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
                    raise RegistryError(f"{path} is damaged: restore it from a copy")
            return registry
        except BaseException:
            connection.close()
            raise

    def issue(self, user: str) -> np.ndarray:
        """Gives the next key to a new user of this name, and returns it once that is on disk.

        Returns:
          (key_length,) uint8 of 0 and 1.

        Raises:
          RegistryError: if the name can't be used, is a number, has a key, or looks like another's;
            if there is no secret, or no key left.
        """
        user = check_user(user)
        if user.isdecimal():
            raise RegistryError(
                f"the user's name {user!r} is a number, as users without a name are"
            )
        self._needed_secret()
        with self._transaction(f"issue a key to {user!r}") as connection:
            self._check_new(connection, "names", user)
            number = self._take(connection, 1)
            connection.execute("INSERT INTO names VALUES (?, ?, ?)", (number, user, look(user)))
        return self._keys(number + 1).key(number)

    def extend(self, num: int) -> range:
        """Issues the next `num` keys, to users who are known by number.

        Raises:
          RegistryError: if there are not so many keys.
        """
        if num < 1:
            raise ValueError(f"num is {num}: expected at least 1")
        with self._transaction(f"issue {num} keys") as connection:
            first = self._take(connection, num)
        return range(first, first + num)

    def holder(self, number: int) -> str:
        """Name of user `number`, or the number itself in decimal.

        Raises:
          IndexError: if there is no such user.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"there is no user {number}: there are {len(self)}, from 0")
        with self._storage("read a name"):
            row = self._connection.execute(
                "SELECT user FROM names WHERE number = ?", (int(number),)
            ).fetchone()
        return row[0] if row else str(number)

    def key_of(self, user: str, *, revoked: bool = False) -> np.ndarray:
        """The key of a user, (key_length,) uint8.

        Args:
          user: a name, or a number in decimal.
          revoked: give a revoked key too, to look at; nothing should be made with it.

        Raises:
          UnknownUserError: if there is no such user.
          RegistryError: if the key is revoked, or there is no secret.
        """
        number = self._number(user)
        with self._storage("read the revocations"):
            row = self._connection.execute(
                "SELECT at FROM revocations WHERE number = ?", (number,)
            ).fetchone()
        if row and not revoked:
            raise revoked_key(user, self.path, row[0])
        return self._keys(number + 1).key(number)

    def users(self) -> list[str]:
        """Users who have a name, in order of issue."""
        with self._storage("read the users"):
            rows = self._connection.execute("SELECT user FROM names ORDER BY number").fetchall()
        return [user for (user,) in rows]

    def revoked(self) -> dict[str, str]:
        """Users whose key is revoked, and since when, as ISO 8601 in UTC."""
        return {self.holder(number): at for number, at in self._revocations().items()}

    def revoke(self, user: str) -> None:
        """Marks a user's key as leaked; see `Registry.revoke`.

        Raises:
          UnknownUserError: if there is no such user.
        """
        number = self._number(user)
        with self._transaction(f"revoke the key of {user!r}") as connection:
            put_revocation(connection, number)

    def candidates(self) -> Candidates:
        """All keys as they are now, for verdicts.

        Raises:
          RegistryError: if there is no secret.
        """
        count = len(self)
        source = self._keys(count) if count else None
        return Candidates(source, self.holder, self._revocations())

    def __len__(self) -> int:
        with self._storage("count the users"):
            return self._connection.execute("SELECT count FROM settings").fetchone()[0]

    def _needed_secret(self) -> bytes:
        if self._secret is None:
            raise RegistryError(
                f"the keys of {self.path} are derived from a secret: name its file too (--secret)"
            )
        return self._secret

    def _keys(self, count: int) -> DerivedKeys:
        return DerivedKeys(self._needed_secret(), count, self.key_length)

    def _take(self, connection: sqlite3.Connection, num: int) -> int:
        first = connection.execute("SELECT count FROM settings").fetchone()[0]
        try:
            if first + num > _MOST:
                raise ValueError(f"a registry has at most {_MOST} users")
            DerivedKeys(bytes(32), first + num, self.key_length)
        except ValueError as error:
            raise RegistryError(f"{self.path} has {first} users, no {num} more: {error}") from None
        connection.execute("UPDATE settings SET count = ?", (first + num,))
        return first

    def _number(self, user: str) -> int:
        user = stored_form(user)
        with self._storage("look up a user"):
            row = self._connection.execute(
                "SELECT number FROM names WHERE user = ?", (user,)
            ).fetchone()
        if row is not None:
            return row[0]
        if user.isascii() and user.isdecimal() and len(user) < 12 and int(user) < len(self):
            return int(user)
        raise unknown_user(user, self.path, self.users())

    def _revocations(self) -> dict[int, str]:
        with self._storage("read the revocations"):
            rows = self._connection.execute("SELECT number, at FROM revocations ORDER BY number")
            return dict(rows.fetchall())


def _digest(secret: bytes) -> bytes:
    """Tells secrets apart, and gives none of them away: a keyed hash of 256 random bits."""
    return hashlib.blake2b(b"fpjax registry of derived keys", key=secret, digest_size=16).digest()


def open_registry(
    path: str | os.PathLike,
    secret_file: str | os.PathLike | None = None,
    *,
    scheme_id: str | None = None,
) -> Registry | DerivedRegistry:
    """Opens a registry of either kind: with a secret's file, one whose keys are derived.

    Raises:
      RegistryError: see `Registry.open` and `DerivedRegistry.open`; for the other kind of registry.
      SecretError: if the secret can't be read, is readable by others, or is not of 32 bytes.
    """
    if secret_file is None:
        return Registry.open(path, scheme_id=scheme_id)
    return DerivedRegistry.open(path, read_secret(secret_file), scheme_id=scheme_id)
