"""The SQLite file of a registry: tables, versions, checks, and SQLite's errors in words."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path

from fpjax.attribution.registry_names import RegistryError, look

FORMAT_VERSION = 2
_APPLICATION_ID = int.from_bytes(b"fpjx", "big")
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
  key BLOB NOT NULL UNIQUE CHECK (typeof(key) = 'blob' AND length(key) = {width}),
  checksum BLOB,
  look TEXT
);
CREATE INDEX looks ON keys (look);
"""
_TO_FORMAT_2 = """
ALTER TABLE keys ADD COLUMN checksum BLOB;
ALTER TABLE keys ADD COLUMN look TEXT;
CREATE INDEX looks ON keys (look);
"""


class RegistryWarning(UserWarning):
    """A registry that works, and whose keys may not be secret."""


def make_tables(connection: sqlite3.Connection, width: int) -> None:
    """Begins a transaction and makes an empty registry in it, for keys of `width` bytes."""
    connection.execute("BEGIN IMMEDIATE")
    connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
    for statement in _SCHEMA.format(width=width).split(";"):
        connection.execute(statement)


def format_version(connection: sqlite3.Connection, path: Path) -> int:
    """The version of a registry's file; RegistryError if it is none, or a newer one."""
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if application != _APPLICATION_ID:
        raise RegistryError(f"{path} is a database, but not a registry of keys")
    if version > FORMAT_VERSION:
        raise RegistryError(
            f"{path} has format version {version}, and this fpjax reads up to {FORMAT_VERSION}: "
            "upgrade fpjax"
        )
    return version


def bring_up_to_date(connection: sqlite3.Connection, path: Path) -> None:
    """Gives a registry of format 1 its checksums, within the transaction that is open."""
    if format_version(connection, path) == FORMAT_VERSION:
        return
    for statement in _TO_FORMAT_2.split(";"):
        connection.execute(statement)
    rows = connection.execute("SELECT number, user, key FROM keys").fetchall()
    connection.executemany(
        "UPDATE keys SET checksum = ?, look = ? WHERE number = ?",
        ((checksum(user, key), look(user), number) for number, user, key in rows),
    )
    connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")


def check_rows(connection: sqlite3.Connection, path: Path, version: int) -> None:
    """RegistryError if the file's structure or a row's checksum is wrong."""
    if connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
        raise RegistryError(f"{path} is damaged: restore it from a copy")
    if version < FORMAT_VERSION:
        return
    rows = connection.execute("SELECT number, user, key, checksum FROM keys")
    wrong = [
        number
        for number, user, key, stored in rows
        if stored is not None and stored != checksum(user, key)  # other programs may write none
    ]
    if wrong:
        shown = ", ".join(map(str, wrong[:5])) + (", ..." if len(wrong) > 5 else "")
        raise RegistryError(
            f"{path} is damaged: {len(wrong)} keys differ from their checksums (numbers {shown}): "
            "restore it from a copy"
        )


def checksum(user: str, key: bytes) -> bytes:
    """Of a row, against damage; whoever can write the file can write the checksum too."""
    return hashlib.blake2b(user.encode() + b"\0" + key, digest_size=8).digest()


def warn_if_open_to_others(path: Path) -> None:
    """RegistryWarning if others than the owner of the file may read or write it."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if os.name == "posix" and mode & 0o077:
        warnings.warn(
            f"{path} may be read by others than its owner (mode {mode:04o}), and who reads it can "
            "embed anyone's key: chmod 600, and think of its keys as known",
            RegistryWarning,
            stacklevel=3,
        )


def width_of(key_length: int) -> int:
    """Bytes of a key of so many bits."""
    return -(-key_length // 8)


def connect(path: Path, timeout: float) -> sqlite3.Connection:
    """Opens a file that exists."""
    with storage_errors(path, "open the registry", timeout):
        # mode=rw: a path that vanished must not come back as an empty database.
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=timeout, isolation_level=None
        )
    try:
        with storage_errors(path, "open the registry", timeout):
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA secure_delete = ON")
            connection.execute("PRAGMA trusted_schema = OFF")
    except BaseException:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def storage_errors(path: Path, action: str, timeout: float) -> Iterator[None]:
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
        elif "decode" in str(error):  # of text
            reason = "the file is damaged: restore it from a copy"
        else:
            reason = " ".join(str(error).split())
        raise RegistryError(f"can't {action} in {path}: {reason}") from error
