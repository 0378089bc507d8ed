"""The SQLite file of a registry: tables, versions, checks, and SQLite's errors in words."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import sqlite3
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fpjax.attribution.candidates import Candidates
from fpjax.attribution.registry_names import RegistryError, look
from fpjax.fingerprint.packed import from_packbits
from fpjax.fingerprint.stored import StoredKeys

FORMAT_VERSION = 3
APPLICATION_ID = int.from_bytes(b"fpjx", "big")
DERIVED_APPLICATION_ID = int.from_bytes(b"fpjd", "big")
"""Of registries whose keys are derived from a secret and not in the file."""
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
CREATE TABLE revocations (number INTEGER PRIMARY KEY, at TEXT NOT NULL);
"""
_TO_FORMAT_2 = """
ALTER TABLE keys ADD COLUMN checksum BLOB;
ALTER TABLE keys ADD COLUMN look TEXT;
CREATE INDEX looks ON keys (look);
"""
_TO_FORMAT_3 = "CREATE TABLE revocations (number INTEGER PRIMARY KEY, at TEXT NOT NULL)"


class RegistryWarning(UserWarning):
    """A registry that works, and whose keys may not be secret."""


def make_tables(connection: sqlite3.Connection, width: int) -> None:
    """Begins a transaction and makes an empty registry in it, for keys of `width` bytes."""
    begin_file(connection, APPLICATION_ID, FORMAT_VERSION, _SCHEMA.format(width=width))


def begin_file(connection: sqlite3.Connection, application: int, version: int, schema: str) -> None:
    """Begins a transaction and makes a file's tables in it."""
    connection.execute("BEGIN IMMEDIATE")
    connection.execute(f"PRAGMA application_id = {application}")
    connection.execute(f"PRAGMA user_version = {version}")
    for statement in schema.split(";"):
        connection.execute(statement)


def format_version(
    connection: sqlite3.Connection,
    path: Path,
    application: int = APPLICATION_ID,
    newest: int = FORMAT_VERSION,
) -> int:
    """The version of a registry's file; RegistryError if it is none, or a newer one."""
    found = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if found != application and found == DERIVED_APPLICATION_ID:
        raise RegistryError(
            f"{path} is a registry of keys derived from a secret: name the secret's file too "
            "(--secret)"
        )
    if found != application and found == APPLICATION_ID:
        raise RegistryError(f"{path} keeps its keys itself: leave the secret out")
    if found != application:
        raise RegistryError(f"{path} is a database, but not a registry of keys")
    if version > newest:
        raise RegistryError(
            f"{path} has format version {version}, and this fpjax reads up to {newest}: "
            "upgrade fpjax"
        )
    return version


def bring_up_to_date(connection: sqlite3.Connection, path: Path) -> None:
    """Gives an older registry what it lacks, within the transaction that is open."""
    version = format_version(connection, path)
    if version == FORMAT_VERSION:
        return
    if version < 2:
        for statement in _TO_FORMAT_2.split(";"):
            connection.execute(statement)
        rows = connection.execute("SELECT number, user, key FROM keys").fetchall()
        connection.executemany(
            "UPDATE keys SET checksum = ?, look = ? WHERE number = ?",
            ((checksum(user, key), look(user), number) for number, user, key in rows),
        )
    connection.execute(_TO_FORMAT_3)
    connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")


def revocations(connection: sqlite3.Connection) -> dict[int, str]:
    """When keys were revoked, by their number in the file; none before format 3."""
    if connection.execute("PRAGMA user_version").fetchone()[0] < 3:
        return {}
    return dict(connection.execute("SELECT number, at FROM revocations").fetchall())


def put_revocation(connection: sqlite3.Connection, number: int) -> None:
    """Marks a key as revoked from now on; the first time counts."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    connection.execute("INSERT OR IGNORE INTO revocations VALUES (?, ?)", (number, now))


def check_rows(connection: sqlite3.Connection, path: Path, version: int) -> None:
    """RegistryError if the file's structure or a row's checksum is wrong."""
    if connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
        raise RegistryError(f"{path} is damaged: restore it from a copy")
    if version < 2:
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


def create_private(path: Path) -> None:
    """Makes an empty file of mode 0600: no key is ever in a readable file.

    Raises:
      RegistryError: if it exists or can't be made.
    """
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        raise RegistryError(
            f"{path} exists already: open it, or create the registry under another name"
        ) from None
    except OSError as error:
        raise RegistryError(f"can't create the registry {path}: {error.strerror}") from error


def check_there(path: Path) -> None:
    """RegistryError if there is no file, or an empty one."""
    if not path.exists():
        raise RegistryError(f"there is no registry {path}: create one, or correct the path")
    if path.is_file() and path.stat().st_size == 0:
        raise RegistryError(
            f"{path} is empty, left by a creation that was interrupted: remove it and create "
            "the registry again"
        )


def packed_rows(path: Path, packed: bytes, key_length: int) -> np.ndarray:
    """Keys as the file has them, (N, bytes) uint8; RegistryError if they are of another size."""
    width = width_of(key_length)
    if len(packed) % width:
        raise RegistryError(f"{path} is damaged: it holds keys that aren't {width} bytes")
    return np.frombuffer(packed, np.uint8).reshape(-1, width)


def read_candidates(connection: sqlite3.Connection, path: Path, key_length: int) -> Candidates:
    """All keys, who holds them, and which are revoked."""
    rows = connection.execute("SELECT number, user, key FROM keys ORDER BY number").fetchall()
    dates = revocations(connection)
    users = [user for _, user, _ in rows]
    if not rows:
        return Candidates(None, users.__getitem__)
    packed = from_packbits(packed_rows(path, b"".join(key for _, _, key in rows), key_length))
    revoked = {place: dates[row[0]] for place, row in enumerate(rows) if row[0] in dates}
    return Candidates(StoredKeys(packed, key_length), users.__getitem__, revoked)


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
