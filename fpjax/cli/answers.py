"""The file of answers: written whole after every batch, and taken up again by `--resume`.

    {"complete": false, "version": ..., "scheme": ..., ..., "images": [{"image": PATH, ...}, ...]}

What stands before "images" are the settings that all its answers share; a run goes on only with the
same. Names of users belong to nobody else, so the file is readable by its owner only.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

from fpjax.cli.common import CommandError, check_file
from fpjax.io.atomic import atomic_write

_NAMES = {
    "version": "version of fpjax",
    "scheme": "scheme",
    "calibration": "calibration",
    "observation": "observation",
    "noise": "noise",
    "resize": "resize",
    "solver": "solver",
    "false_positive_rate": "false-positive rate",
    "num_users": "number of registered users",
    "num_revoked": "number of revoked keys",
}


class Answers:
    """Answers by image, in a file, on standard output ("-"), or only in memory (None).

    Args:
      path: where they go.
      resume: take up the answers that are in the file already.

    Raises:
      CommandError: if the file cannot be written, holds something else than answers, or holds those
        of a run that ended early and `resume` is not set.
    """

    def __init__(self, path: str | None, *, resume: bool = False):
        self.settings: dict[str, Any] = {}
        self.entries: dict[str, dict[str, Any]] = {}
        self._to_stdout = path == "-"
        self._path: Path | None = None
        self._earlier: dict[str, Any] | None = None
        if path is None or self._to_stdout:
            return
        check_file("--json", path)
        self._path = Path(os.path.realpath(path))
        earlier = _read(self._path)
        if resume:
            self._earlier = earlier
        elif earlier is not None and not earlier["complete"]:
            raise CommandError(
                f"{path} holds {len(earlier['images'])} answers of a run that ended early: go on "
                "with --resume, or remove it"
            )

    def begin(self, settings: dict[str, Any]) -> None:
        """Sets what all answers share, and takes up those of an earlier run.

        Raises:
          CommandError: if the earlier run had other settings.
        """
        self.settings = settings
        if self._earlier is None:
            return
        for name, value in settings.items():
            before = self._earlier.get(name)
            if before != value:
                raise CommandError(
                    f"{self._path} was begun with {_NAMES[name]} {before!s:.80}, and this run has "
                    f"{value!s:.80}: its answers would not belong together; name another --json"
                )
        self.entries = {entry["image"]: entry for entry in self._earlier["images"]}

    def settled(self, image: str) -> bool:
        """Whether an image needs no other look: it has its answer, and its file is the same."""
        entry = self.entries.get(image)
        if entry is None or entry["status"] == "error":
            return False
        digest = file_sha256(image)
        return digest is None or digest == entry.get("sha256")

    def save(self, order: list[str], *, complete: bool) -> None:
        """Writes all answers: those of earlier runs, then the named images in order."""
        if self._path is None and not (self._to_stdout and complete):
            return
        self._write(order, complete)

    def abandon(self, order: list[str]) -> None:
        """Writes what there is to standard output, if that is where answers go."""
        if self._to_stdout:
            self._write(order, complete=False)

    def _write(self, order: list[str], complete: bool) -> None:
        named = set(order)
        entries = [entry for image, entry in self.entries.items() if image not in named]
        entries += [self.entries[image] for image in order if image in self.entries]
        document = {"complete": complete, **self.settings, "images": entries}
        text = json.dumps(document, indent=2, allow_nan=False) + "\n"
        if self._path is None:
            sys.stdout.write(text)
            sys.stdout.flush()
            return
        with atomic_write(self._path, "w", permissions=0o600) as file:
            file.write(text)

    @property
    def kept_in(self) -> Path | None:
        """The file, where answers go to one."""
        return self._path


def file_sha256(path: str | os.PathLike) -> str | None:
    """Hash of a regular file's bytes, hexadecimal; None for what is not there, or is no such file.

    >>> file_sha256("/dev/zero") is None
    True
    """
    try:
        # Opening a named pipe must not wait for its writer.
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):  # ValueError: a name with a zero byte
        pass
    return None


def _read(path: Path) -> dict[str, Any] | None:
    """The answers in a file, None where there is none or it is empty."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CommandError(f"{path}: cannot be read ({error.strerror})") from error
    if not text:
        return None
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if not _is_answers(document):
        raise CommandError(f"{path} holds something else than answers: name another --json")
    return document


def _is_answers(document: object) -> bool:
    return (
        isinstance(document, dict)
        and isinstance(document.get("complete", True), bool)
        and isinstance(document.get("images"), list)
        and all(
            isinstance(entry, dict)
            and isinstance(entry.get("image"), str)
            and isinstance(entry.get("status"), str)
            for entry in document["images"]
        )
    )
