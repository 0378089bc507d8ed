"""Spans of bytes, read when asked: of a file, of memory, or of an archive's entry.

An entry of an archive is compared with its CRC-32 before the first of its bytes is used.
"""

import hashlib
import os
import stat
import zlib

import numpy as np

from checkpoints_convert.describe import describe
from checkpoints_convert.readers.limits import CheckpointError, Limits, over_limit

MAP_BYTES = 1 << 20  # smaller spans are read: a process may hold only some 65,000 maps
PIECE_BYTES = 1 << 20  # unpacked at a time


class FileBacking:
    """A file that is opened for each read and must not change between them.

    A file that another process cuts short while a map of it is held makes the system send SIGBUS
    on access, as with every memory map.
    """

    def __init__(self, path, limits: Limits):
        self.path = os.path.abspath(os.fsdecode(path))
        self.identity = None
        try:
            with self._open() as file:
                status = os.fstat(file.fileno())
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            if isinstance(error, CheckpointError):
                raise
            raise self._unreadable(error) from error
        if status.st_size > limits.file_bytes:
            raise over_limit(limits, "file_bytes")
        self.identity = self._identity(status)
        self.size = status.st_size

    @staticmethod
    def _identity(status) -> tuple:
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns

    def _unreadable(self, error: Exception) -> CheckpointError:
        reason = getattr(error, "strerror", None) or str(error)
        return CheckpointError(reason, "a readable file", "check the path", path=self.path)

    def _open(self):
        # O_NONBLOCK: opening a named pipe must not wait for its writer.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        file = os.fdopen(os.open(self.path, flags), "rb", buffering=0)
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            file.close()
            raise CheckpointError("no regular file", "a file", "check the path", path=self.path)
        if self.identity is not None and self._identity(status) != self.identity:
            file.close()
            raise CheckpointError(
                "a file that changed since it was read",
                "the same file",
                "call read() again",
                path=self.path,
            )
        return file

    def read(self, start: int, stop: int) -> np.ndarray:
        """Bytes [start, stop) as a read-only uint8 array, mapped if large."""
        try:
            with self._open() as file:
                if stop - start >= MAP_BYTES:
                    shape = (stop - start,)
                    return np.asarray(np.memmap(file, np.uint8, "r", offset=start, shape=shape))
                file.seek(start)
                parts, left = [], stop - start
                while left and (part := file.read(left)):
                    parts.append(part)
                    left -= len(part)
        except (OSError, ValueError) as error:  # ValueError: the file shrank since it was opened
            if isinstance(error, CheckpointError):
                raise
            raise self._unreadable(error) from error
        if left:
            raise CheckpointError("a file that was cut short", "the same file", path=self.path)
        return np.frombuffer(b"".join(parts), np.uint8)

    peek = read

    def sha256(self) -> str:
        """Hexadecimal SHA-256 of the whole file, read in pieces."""
        digest = hashlib.sha256()
        try:
            with self._open() as file:
                while part := file.read(MAP_BYTES):
                    digest.update(part)
        except OSError as error:
            raise self._unreadable(error) from error
        return digest.hexdigest()


class BytesBacking:
    """Bytes in memory."""

    path = ""

    def __init__(self, data: bytes):
        self.data = data

    def read(self, start: int, stop: int) -> np.ndarray:
        """Bytes [start, stop) as a read-only uint8 array."""
        return np.frombuffer(self.data, np.uint8)[start:stop]

    peek = read


class StoredBacking:
    """An archive entry as it lies in the file, compared with its CRC-32 when first read."""

    __slots__ = ("checked", "crc", "name", "packed")

    def __init__(self, packed: "Region", crc: int, name: str):
        self.packed, self.crc, self.name, self.checked = packed, crc, name, False

    @property
    def path(self) -> str:
        """The file."""
        return self.packed.path

    def read(self, start: int, stop: int) -> np.ndarray:
        """Bytes [start, stop) as a read-only uint8 array."""
        if self.checked:
            return self.peek(start, stop)
        whole = self.packed.array()  # a part of this, and no map of its own, saves page faults
        if zlib.crc32(whole.data) != self.crc:
            raise another_crc(self.name, self.path)
        self.checked = True
        return whole[start:stop]

    def peek(self, start: int, stop: int) -> np.ndarray:
        """The same without the comparison."""
        return self.packed.slice(start, stop, "a part").array()


class Unpacked:
    """What is unpacked of an archive: its last entry, for the tensors that share it.

    Keeping all would take the memory of all, keeping none the time of unpacking a shared entry
    for each of its tensors. `left` is how many bytes may be unpacked still.
    """

    __slots__ = ("data", "left", "limits", "owner")

    def __init__(self, limits: Limits):
        self.limits, self.left = limits, 0
        self.owner, self.data = None, np.empty(0, np.uint8)

    def of(self, owner: "DeflateBacking", stop: int) -> np.ndarray:
        """At least the first `stop` bytes of an entry."""
        if self.owner is not owner or len(self.data) < stop:
            self.left -= stop
            if self.left < 0:
                raise CheckpointError(
                    f"a compressed archive unpacked {self.limits.unpackings} times",
                    "entries that few tensors share",
                    "unpack it, and zip it again without compression (zip -0)",
                    owner.path,
                )
            self.owner, self.data = None, np.empty(0, np.uint8)  # freed before the next is made
            self.owner, self.data = owner, owner.unpack(stop)
        return self.data


class DeflateBacking:
    """A deflated archive entry, unpacked on access and checked against its stated size and CRC."""

    def __init__(self, packed: "Region", size: int, crc: int, name: str, unpacked: Unpacked):
        self.packed, self.size, self.crc, self.name = packed, size, crc, name
        self.unpacked = unpacked
        unpacked.left += unpacked.limits.unpackings * size

    @property
    def path(self) -> str:
        """The file."""
        return self.packed.path

    def unpack(self, stop: int) -> np.ndarray:
        """The first `stop` bytes; checked if they are all."""
        data = np.empty(stop, np.uint8)
        unpacker, position, crc = zlib.decompressobj(-zlib.MAX_WBITS), 0, 0
        pending = self.packed.array().data
        try:
            while position < stop and not unpacker.eof:
                piece = unpacker.decompress(pending, min(PIECE_BYTES, stop - position))
                pending = unpacker.unconsumed_tail
                if not piece and not pending:
                    break
                data[position : position + len(piece)] = np.frombuffer(piece, np.uint8)
                position += len(piece)
                crc = zlib.crc32(piece, crc)
            more = b"" if stop < self.size or unpacker.eof else unpacker.decompress(pending, 1)
        except zlib.error as error:
            raise self._damaged(f"deflate data that does not unpack ({error})") from error
        if position < stop or more:
            raise self._damaged(f"{position + len(more):,} bytes unpacked")
        if stop == self.size:
            if not unpacker.eof or unpacker.unused_data:
                raise self._damaged("data left over")
            if crc != self.crc:
                raise another_crc(self.name, self.path)
        data.flags.writeable = False
        return data

    def _damaged(self, found: str) -> CheckpointError:
        stated = f"{self.size:,} bytes as stated"
        return CheckpointError(f"{found} in entry {describe(self.name)}", stated, path=self.path)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Unpacked bytes [start, stop) as a read-only uint8 array."""
        return self.unpacked.of(self, self.size)[start:stop]

    def peek(self, start: int, stop: int) -> np.ndarray:
        """The same, without unpacking what lies behind."""
        return self.unpacked.of(self, stop)[start:stop]


def another_crc(name: str, path: str) -> CheckpointError:
    """The error for an entry that differs from its checksum."""
    return CheckpointError(
        f"entry {describe(name)} with another CRC-32", "the one of the archive", path=path
    )


class Region:
    """A span of bytes of a file that is read only when asked. Inert; `bytes(region)` copies it."""

    __slots__ = ("backing", "start", "stop")

    def __init__(self, backing, start: int, stop: int):
        self.backing, self.start, self.stop = backing, start, stop

    @classmethod
    def of_bytes(cls, data: bytes) -> "Region":
        """A region over bytes in memory."""
        return cls(BytesBacking(data), 0, len(data))

    def __len__(self) -> int:
        return self.stop - self.start

    def __bytes__(self) -> bytes:
        return self.array().tobytes()

    def __repr__(self) -> str:
        return f"Region({len(self):,} bytes)"

    def array(self) -> np.ndarray:
        """All bytes as a read-only uint8 array; a memory map when they are many."""
        return self.backing.read(self.start, self.stop)

    @property
    def path(self) -> str:
        """The file that the bytes are of; empty if they are in memory."""
        return self.backing.path

    def peek(self, count: int) -> bytes:
        """The first `count` bytes, or all if there are fewer, before any checksum is compared.

        What they say must be taken back when the comparison of the whole fails later.
        """
        return self.backing.peek(self.start, min(self.start + count, self.stop)).tobytes()

    def slice(self, start: int, stop: int, what: str) -> "Region":
        """Bytes [start, stop) of this region; CheckpointError, naming `what`, if not inside."""
        if not 0 <= start <= stop <= len(self):
            raise CheckpointError(
                f"{what} at bytes {start:,} to {stop:,}", f"it inside the {len(self):,} bytes"
            )
        return Region(self.backing, self.start + start, self.start + stop)
