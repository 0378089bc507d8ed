"""Spans of bytes, read when asked: of a file, of memory, or of a deflated archive entry."""

import hashlib
import os
import stat
import weakref
import zlib

import numpy as np

from checkpoints_convert.readers.limits import CheckpointError, Limits, over_limit

MAP_BYTES = 1 << 20  # smaller spans are read: a process may hold only some 65,000 maps
PEEK_BYTES = 1 << 17  # so much of a deflated entry is unpacked to look at its header


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
        except OSError as error:
            raise self._unreadable(error) from error
        if left:
            raise CheckpointError("a file that was cut short", "the same file", path=self.path)
        return np.frombuffer(b"".join(parts), np.uint8)

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

    def __init__(self, data: bytes):
        self.data = data

    def read(self, start: int, stop: int) -> np.ndarray:
        """Bytes [start, stop) as a read-only uint8 array."""
        return np.frombuffer(self.data, np.uint8)[start:stop]


class DeflateBacking:
    """A deflated archive entry, unpacked on access and checked against its stated size and CRC."""

    def __init__(self, packed: "Region", size: int, crc: int, name: str):
        self.packed, self.size, self.crc, self.name = packed, size, crc, name
        self._unpacked = lambda: None

    def _inflate(self, at_most: int) -> bytes:
        unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            # One byte more than stated, so that a longer stream shows itself.
            data = unpacker.decompress(self.packed.array().data, at_most + 1)
        except zlib.error as error:
            raise self._damaged(f"deflate data that does not unpack ({error})") from error
        if at_most < self.size:
            if len(data) < at_most:
                raise self._damaged(f"{len(data):,} bytes unpacked")
            return data
        if len(data) != self.size or not unpacker.eof or unpacker.unused_data:
            raise self._damaged(f"{len(data):,} bytes unpacked or data left over")
        if zlib.crc32(data) != self.crc:
            raise self._damaged("another CRC-32")
        return data

    def _damaged(self, found: str) -> CheckpointError:
        path = getattr(self.packed.backing, "path", "")
        stated = f"{self.size:,} bytes as stated"
        return CheckpointError(f"{found} in entry {self.name!r}", stated, path=path)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Unpacked bytes [start, stop) as a read-only uint8 array."""
        whole = self._unpacked()
        if whole is None:
            if stop <= PEEK_BYTES < self.size:
                return np.frombuffer(self._inflate(PEEK_BYTES), np.uint8)[start:stop]
            whole = np.frombuffer(self._inflate(self.size), np.uint8)
            self._unpacked = weakref.ref(whole)  # several tensors may share one entry
        return whole[start:stop]


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

    def slice(self, start: int, stop: int, what: str) -> "Region":
        """Bytes [start, stop) of this region; CheckpointError, naming `what`, if not inside."""
        if not 0 <= start <= stop <= len(self):
            raise CheckpointError(
                f"{what} at bytes {start:,} to {stop:,}", f"it inside the {len(self):,} bytes"
            )
        return Region(self.backing, self.start + start, self.start + stop)
