"""What registries of both kinds are: an SQLite file with settings, transactions and errors."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fpjax import zoo
from fpjax.attribution.registry_file import connect, create_private, storage_errors
from fpjax.attribution.registry_names import RegistryError, look

if TYPE_CHECKING:
    from typing import Self


Opened = TypeVar("Opened")


class RegistryFile:
    """A registry that is open. It belongs to the process and thread that opened it.

    Attributes:
      path: the file.
      scheme_id: the scheme its keys belong to.
      key_length: bits of a key.
    """

    scheme_id: str
    key_length: int

    def __init__(self, path: Path, connection: sqlite3.Connection, timeout: float) -> None:
        self.path = path
        self._connection, self._timeout = connection, timeout
        self._process = os.getpid()

    def close(self) -> None:
        """Closes the file; the registry can't be used after."""
        self._connection.close()

    def __bool__(self) -> bool:
        return True  # an empty registry is still a registry: `registry or default` must keep it

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r}, scheme_id={self.scheme_id!r})"

    def _settings(self, columns: str) -> tuple[Any, ...]:
        """The one row of settings."""
        with self._storage("read the settings"):
            rows = self._connection.execute(f"SELECT {columns} FROM settings").fetchall()
        if len(rows) != 1:
            raise RegistryError(
                f"{self.path} is damaged: it has {len(rows)} rows of settings, not 1"
            )
        return rows[0]

    def _check_scheme(self, scheme_id: str | None) -> None:
        if scheme_id is not None and self.scheme_id != scheme_id:
            bundled = zoo.scheme_of(self.scheme_id)
            name = f" ({bundled})" if bundled else ""
            raise RegistryError(
                f"{self.path} belongs to the scheme {self.scheme_id!r}{name}, not to "
                f"{scheme_id!r}: its keys would be read in the wrong directions"
            )

    def _check_new(self, connection: sqlite3.Connection, table: str, user: str) -> None:
        """Refuses a name that has a key, or looks like one that has."""
        if connection.execute(f"SELECT 1 FROM {table} WHERE user = ?", (user,)).fetchone():
            raise RegistryError(f"{user!r} has a key already in {self.path}")
        seen = connection.execute(f"SELECT user FROM {table} WHERE look = ?", (look(user),))
        if (other := seen.fetchone()) is not None:
            raise RegistryError(
                f"the user's name {user!a} looks like {other[0]!a}, who has a key in "
                f"{self.path}: choose another"
            )

    def _storage(self, action: str) -> contextlib.AbstractContextManager[None]:
        if os.getpid() != self._process:
            # SQLite's locks belong to a process; a fork that used them could damage the file.
            raise RegistryError(f"{self.path} was opened in another process: open it in this one")
        return storage_errors(self.path, action, self._timeout)

    def _prepare(self) -> None:
        """Called within each transaction, before anything is changed."""

    @contextlib.contextmanager
    def _transaction(self, action: str) -> Iterator[sqlite3.Connection]:
        with self._storage(action):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._prepare()
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise


def create_file(
    path: Path,
    timeout: float,
    fill: Callable[[sqlite3.Connection], None],
    opened: Callable[[sqlite3.Connection], Opened],
) -> Opened:
    """Makes a registry in a new file of mode 0600; nothing is left of one that could not be made.

    Args:
      path: the file; there must be none yet.
      timeout: seconds to wait for another process.
      fill: makes tables and settings, in one transaction.
      opened: the registry of the connection.
    """
    create_private(path)
    try:
        connection = connect(path, timeout)
        try:
            with storage_errors(path, "create the registry", timeout), connection:
                fill(connection)
            return opened(connection)
        except BaseException:
            connection.close()
            raise
    except BaseException:
        path.unlink(missing_ok=True)
        raise
