"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO


def _umask() -> int:
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


def _sync(path: Path) -> None:
    """Flushes a folder's entries to disk, where the platform can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def atomic_write(
    path: str | os.PathLike, mode: str = "wb", permissions: int = 0o666
) -> Iterator[IO]:
    """Opens a temporary file beside `path`, and renames it over `path` if the block succeeds.

    A full disk, an exception or kill -9 leaves what was at `path` before. The file gets
    `permissions`, less what the umask takes.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        encoding = None if "b" in mode else "utf-8"
        with os.fdopen(descriptor, mode, encoding=encoding) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, permissions & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    _sync(path.parent)


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary folder beside `path`, and renames it to `path` if the block succeeds.

    Raises:
      FileExistsError: if `path` exists already.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists already: choose another name or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        for folder, _, names in os.walk(temporary):
            for name in names:
                with open(os.path.join(folder, name), "rb") as file:
                    os.fsync(file.fileno())
                    # Some writers make private files; a folder's parts are as readable as it is.
                    os.fchmod(file.fileno(), 0o666 & ~_umask())
        os.chmod(temporary, 0o777 & ~_umask())
        os.rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync(path.parent)
