"""Reading a checkpoint file whose format its bytes tell, whatever its name ends in."""

import contextlib
import itertools
import os
import shlex
from dataclasses import dataclass, field
from typing import Any

from checkpoints_convert.describe import describe
from checkpoints_convert.readers.archive import read_archive
from checkpoints_convert.readers.array_files import (
    NPY_MAGIC,
    looks_like_safetensors,
    read_npy,
    read_npz,
    read_safetensors,
)
from checkpoints_convert.readers.limits import CheckpointError, Limits, Meter, one_line
from checkpoints_convert.readers.names import flatten
from checkpoints_convert.readers.regions import FileBacking, Region
from checkpoints_convert.readers.tensors import LazyTensor
from checkpoints_convert.readers.torch_files import DATA, read_pickled, read_torch_zip
from checkpoints_convert.readers.tree import measure

FORMATS = "a torch, pickle, safetensors, npz or npy file"
STRANGERS = {
    b"\x1f\x8b": "a gzip file; unpack it first",
    b"BZh": "a bzip2 file; unpack it first",
    b"\xfd7zXZ": "an xz file; unpack it first",
    b"7z\xbc\xaf": "a 7z archive; unpack it first",
    b"\x89HDF": "an HDF5 file; convert it to safetensors or npz in its framework",
    b"GGUF": "a GGUF file; convert it to safetensors",
    b"version https://git-lfs": "a git-lfs pointer; run `git lfs pull` to get the file itself",
    b"<": "a web page or XML; the download link gave no checkpoint",
    b"PK\x05\x06": "an empty zip archive; get the file again",
}
PICKLE_STARTS = b"\x80(]})cNIJKMLFGSTUVXBC"
"""First bytes of pickles: PROTO, or in protocols 0 and 1 a mark or a value."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a file holds.

    Attributes:
        format: "torch-zip", "torch-legacy", "pickle", "safetensors", "npz" or "npy".
        path: absolute path of the file.
        tree: the inert object tree; see `tree.py` for what its nodes are.
        metadata: `__metadata__` of a safetensors file, else empty.
        limits: the limits it was read under.
        checksums: whether the file has CRC-32s that its tensors are compared with when they are
            read. Only zip archives have; for other files compare `sha256()` with the publisher's.
    """

    format: str
    path: str
    tree: Any = field(repr=False)  # its text could be long
    metadata: dict[str, str]
    limits: Limits
    checksums: bool
    _file: FileBacking = field(repr=False)

    def sha256(self) -> str:
        """Hexadecimal SHA-256 of the file; CheckpointError if it changed since it was read."""
        return self._file.sha256()

    def tensors(self, prefix: str = "") -> dict[str, LazyTensor]:
        """Tensors by dotted name, through dicts, lists, tuples and torch modules saved whole.

        With a prefix, only those below it and without it: `tensors("g_ema")` of a checkpoint
        with `g_ema.style.1.weight` gives `style.1.weight`. A module gives what its `state_dict()`
        would (`is_module` tells one). Other objects (`Opaque`) are not entered: use `find` and
        `persistent_state_dict`. Raises CheckpointError if two tensors get one name, if one is of
        a kind that is not read (quantised, sparse, ...), or if nothing is below the prefix.
        """
        try:
            return flatten(self.tree, self.limits, prefix)
        except CheckpointError as error:
            error.path = error.path or self.path
            raise


def read(path: str | os.PathLike, *, limits: Limits | None = None) -> Checkpoint:
    """Read a checkpoint without running anything in it; tensors stay in the file until asked for.

    Args:
        path: a regular file.
        limits: upper bounds on what it may claim; see `Limits`.

    Raises CheckpointError, and nothing else, for a file that is missing, damaged, hostile, over
    a limit, or of another format.

    >>> import numpy, os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "weights.npz")
    >>> numpy.savez(path, a=numpy.arange(3))
    >>> read(path).tensors()["a"].numpy()
    array([0, 1, 2])
    """
    limits = limits or Limits()
    name = ""
    try:
        name = os.path.abspath(os.fsdecode(path))
        file = FileBacking(name, limits)
        meter = Meter(limits, file.size)
        kind, tree, metadata, checksums = _read(Region(file, 0, file.size), meter)
        measure(tree, meter)
        return Checkpoint(kind, file.path, tree, metadata, limits, checksums, file)
    except CheckpointError as error:
        error.path = error.path or name
        if (archive := _unpacked_archive(error.path)) is not None:
            raise _zip_again(archive, error.path) from error
        raise
    except MemoryError as error:
        raise CheckpointError(
            "more than fits in memory", "a file that fits", "lower the limits or add memory", name
        ) from error


def _unpacked_archive(path: str) -> str | None:
    """The folder of a torch archive that was unpacked, if `path` is it or lies in it."""
    if os.path.basename(path) == DATA:
        candidates = [os.path.dirname(path)]
    elif os.path.isdir(path):
        inside: list[str] = []
        with contextlib.suppress(OSError), os.scandir(path) as entries:
            inside = [entry.path for entry in itertools.islice(entries, 2)]
        candidates = [path, *inside] if len(inside) == 1 else [path]
    else:
        return None
    wanted = (DATA, "data")  # the pickle, and the folder of the storages
    folders = (f for f in candidates if all(os.path.exists(os.path.join(f, w)) for w in wanted))
    return next(folders, None)


def _zip_again(folder: str, path: str) -> CheckpointError:
    parent, name = os.path.split(folder)
    again = f"cd {shlex.quote(parent)} && zip -0 -r {shlex.quote(f'{name}.pt')} {shlex.quote(name)}"
    return CheckpointError(
        "a torch archive that was unpacked",
        "the archive in one file",
        f"zip it again: {one_line(again)}",
        path,
    )


def _read(region: Region, meter: Meter) -> tuple[str, Any, dict, bool]:
    """(format, tree, metadata, whether there are checksums)."""
    head = bytes(region.slice(0, min(512, len(region)), "the start"))
    if head.startswith(b"PK\3\4"):
        entries = read_archive(region, meter)
        checksums = any(entry.backing is not region.backing for entry in entries.values())
        if any(name.endswith(f"/{DATA}") for name in entries):
            return "torch-zip", read_torch_zip(entries, meter), {}, checksums
        return "npz", read_npz(entries, meter), {}, checksums
    if head.startswith(NPY_MAGIC):
        return "npy", read_npy(region, meter), {}, False
    if looks_like_safetensors(head, len(region)):
        return "safetensors", *read_safetensors(region, meter), False
    for start, what in STRANGERS.items():
        if head.startswith(start):
            found, advice = what.split("; ")
            raise CheckpointError(found, FORMATS, advice)
    if head[257:262] == b"ustar":
        raise CheckpointError("a tar archive", FORMATS, "unpack it, or save it again with torch")
    if head and head[0] in PICKLE_STARTS:
        kind, tree = read_pickled(region, meter)
        return kind, tree, {}, False
    found = f"a file that starts with {describe(head[:8])}" if head else "an empty file"
    raise CheckpointError(found, FORMATS)
