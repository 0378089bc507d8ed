"""Zip archives read strictly: what two programs could understand differently is refused.

Entries keep their place in the file, so that tensors are mapped and not copied. The structure
follows PKWARE's APPNOTE 6.3; only stored and deflated entries of a single-disk archive without
encryption are read.

Python's `zipfile` is not used: it gives streams that copy, and it takes what must be refused here,
since torch's reader takes it differently: bytes before the first header, local headers that state
other sizes than the directory, a name twice.
"""

import itertools
import struct
from dataclasses import dataclass

from checkpoints_convert.describe import describe
from checkpoints_convert.readers.limits import CheckpointError, Meter
from checkpoints_convert.readers.regions import DeflateBacking, Region, StoredBacking, Unpacked

END = struct.Struct("<4s4H2LH")
END64_LOCATOR = struct.Struct("<4sLQL")
END64 = struct.Struct("<4sQ2H2L4Q")
CENTRAL = struct.Struct("<4s4B4HL2L5H2L")
LOCAL = struct.Struct("<4s2B4HL2L2H")
FULL16, FULL32 = 0xFFFF, 0xFFFFFFFF
ENCRYPTED = 0x2041  # encrypted, strongly encrypted, or masked headers
SIZES_FOLLOW = 0x0008
STORED, DEFLATED = 0, 8
ENTRY_COST = 1000  # bytes of memory that an entry takes here, beside its name


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of an archive, as its central directory and its local header agree on."""

    name: str
    method: int
    crc: int
    packed_size: int
    size: int
    header: int
    """Position of the local header."""


def read_archive(region: Region, meter: Meter) -> dict[str, Region]:
    """Contents by name, in the order of the directory; folders are left out.

    An entry's CRC-32 is compared when it is read, but for archives that have none at all, as
    `torch.serialization.set_crc32_options(False)` makes them.

    Raises CheckpointError for an archive that is damaged, ambiguous or encrypted, whose names
    leave its folder or repeat, whose entries overlap, or which unpacks to more than its size
    allows.
    """
    data = region.array().data
    start, stop, count = _directory(data)
    meter.count(count)
    meter.make(count * ENTRY_COST + 4 * (stop - start))
    entries = _central_entries(data, start, stop, count)
    checked = has_checksums(entries)
    contents: dict[str, Region] = {}
    names: set[str] = set()
    spans = []
    unpacked = Unpacked(meter.limits)
    for entry in entries:
        _check_name(entry.name)
        if entry.name in names:
            raise CheckpointError(f"two entries named {describe(entry.name)}", "one of each name")
        names.add(entry.name)
        begin, end = _check_local(data, entry, start)
        spans.append((entry.header, end, entry.name))
        packed = region.slice(begin, end, f"entry {describe(entry.name)}")
        if entry.method == DEFLATED:
            if entry.size > meter.memory:
                raise CheckpointError(
                    f"entry {describe(entry.name)} that unpacks to {entry.size:,} bytes, more "
                    "memory than the file's size allows",
                    f"at most {max(0, meter.memory):,} more",
                    "if its origin is trusted, unpack it, and zip it again without compression "
                    "(zip -0 -r)",
                )
            meter.make(entry.size)
            backing = DeflateBacking(packed, entry.size, entry.crc, entry.name, unpacked)
            packed = Region(backing, 0, entry.size)
        elif checked:
            packed = Region(StoredBacking(packed, entry.crc, entry.name), 0, entry.size)
        if not entry.name.endswith("/"):
            contents[entry.name] = packed
    spans.sort()
    for (_, end, name), (following, _, other) in itertools.pairwise(spans):
        if end > following:
            raise CheckpointError(
                f"entry {describe(other)} inside entry {describe(name)}", "separate entries"
            )
    return contents


def has_checksums(entries: list[Entry]) -> bool:
    """Whether the writer of an archive stored CRC-32s: one that did not stores zeros."""
    return any(entry.crc or entry.method == DEFLATED for entry in entries)


def _unpack(layout: struct.Struct, data: memoryview, position: int, magic: bytes, what: str):
    if position < 0 or position + layout.size > len(data):
        raise CheckpointError(f"{what} outside the file", "a complete zip archive")
    fields = layout.unpack_from(data, position)
    if fields[0] != magic:
        raise CheckpointError(f"no {what} at byte {position:,}", "a complete zip archive")
    return fields[1:]


def _directory(data: memoryview) -> tuple[int, int, int]:
    """(start, stop, number of entries) of the central directory."""
    tail_start = max(0, len(data) - END.size - FULL16)
    tail = bytes(data[tail_start:])
    found = tail.rfind(b"PK\5\6", 0, max(0, len(tail) - END.size + 4))
    while found >= 0:
        if found + END.size + END.unpack_from(tail, found)[-1] == len(tail):
            break
        found = tail.rfind(b"PK\5\6", 0, found + 3)
    else:
        raise CheckpointError("no directory at the end", "a complete zip archive (cut short?)")
    end = tail_start + found
    fields = _unpack(END, data, end, b"PK\5\6", "end of directory")
    disk, first_disk, here, count, size, start, _ = fields
    locator = end - END64_LOCATOR.size
    if bytes(data[max(0, locator) : end]).startswith(b"PK\6\7"):
        end = _unpack(END64_LOCATOR, data, locator, b"PK\6\7", "zip64 locator")[1]
        wide = _unpack(END64, data, end, b"PK\6\6", "zip64 end of directory")[3:]
        if end + END64.size > locator:
            raise CheckpointError("zip64 records that overlap", "separate records")
        for narrow, value, full in zip(fields, wide, [FULL16] * 4 + [FULL32] * 2, strict=False):
            if narrow not in (value, full):
                raise CheckpointError("two directories that differ", "one directory")
        disk, first_disk, here, count, size, start = wide
    if disk or first_disk or here != count:
        raise CheckpointError("an archive in several parts", "one file")
    if start + size != end:
        raise CheckpointError(
            f"a directory of {size:,} bytes at {start:,}", f"one that ends at byte {end:,}"
        )
    if count * CENTRAL.size > size:
        raise CheckpointError(f"{count:,} entries in {size:,} bytes", "46 bytes or more for each")
    return start, end, count


def _central_entries(data: memoryview, start: int, stop: int, count: int) -> list[Entry]:
    entries = []
    for _ in range(count):
        fields = _unpack(CENTRAL, data, start, b"PK\1\2", "directory entry")
        _, _, _, _, flags, method, _, _, crc, packed, size = fields[:11]
        name_length, extra_length, comment_length, disk = fields[11:15]
        header = fields[17]
        name_at = start + CENTRAL.size
        extra_at = name_at + name_length
        start = extra_at + extra_length + comment_length
        if start > stop:
            raise CheckpointError("a directory entry past the directory", "one inside it")
        name = _name(bytes(data[name_at:extra_at]))
        if flags & ENCRYPTED:
            raise CheckpointError(
                f"entry {describe(name)} encrypted", "plain entries", "decrypt it first"
            )
        extra = bytes(data[extra_at : extra_at + extra_length])
        size, packed, header = _zip64(extra, [size, packed, header], name)
        if disk:
            raise CheckpointError("an archive in several parts", "one file")
        if method not in (STORED, DEFLATED):
            raise CheckpointError(
                f"entry {describe(name)} compressed by method {method}",
                "stored or deflated entries",
            )
        if method == STORED and packed != size:
            raise CheckpointError(
                f"entry {describe(name)}: {size:,} bytes stored in {packed:,}", "equal sizes"
            )
        entries.append(Entry(name, method, crc, packed, size, header))
    if start != stop:
        raise CheckpointError(f"{stop - start:,} bytes after the last entry", "none")
    return entries


def _zip64(extra: bytes, values: list[int], name: str) -> list[int]:
    """`values`, those that do not fit in 32 bits replaced from the zip64 extra field."""
    wanted = values.count(FULL32)
    position = 0
    while wanted and position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        field = extra[position + 4 : position + 4 + length]
        if kind == 1 and len(field) == length and length >= 8 * wanted:
            wide = iter(struct.unpack_from(f"<{wanted}Q", field))
            return [next(wide) if value == FULL32 else value for value in values]
        position += 4 + length
    if wanted:
        raise CheckpointError(f"entry {describe(name)} without its zip64 sizes", "a zip64 field")
    return values


def _name(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("cp437")  # the zip format's own default; it has no invalid byte


def _check_name(name: str) -> None:
    parts = name.removesuffix("/").split("/")
    if "\\" in name or "\0" in name or name[1:2] == ":" or {"", ".", ".."} & set(parts):
        raise CheckpointError(f"an entry named {describe(name)}", "a relative name without '..'")


def _check_local(data: memoryview, entry: Entry, limit: int) -> tuple[int, int]:
    """Where the entry's bytes lie; its local header must say what the directory says."""
    fields = _unpack(
        LOCAL, data, entry.header, b"PK\3\4", f"header of entry {describe(entry.name)}"
    )
    _, _, flags, method, _, _, _, packed, size, name_length, extra_length = fields
    name_at = entry.header + LOCAL.size
    begin = name_at + name_length + extra_length
    end = begin + entry.packed_size
    if end > limit:
        raise CheckpointError(
            f"entry {describe(entry.name)} of {entry.packed_size:,} bytes at {begin:,}",
            f"it before the directory at {limit:,}",
        )
    extra = bytes(data[name_at + name_length : begin])
    name = _name(bytes(data[name_at : name_at + name_length]))
    sizes = _zip64(extra, [size, packed], entry.name)
    if flags & SIZES_FOLLOW and sizes == [0, 0]:
        sizes = [entry.size, entry.packed_size]
    if (name, method, *sizes) != (entry.name, entry.method, entry.size, entry.packed_size) or (
        flags & ENCRYPTED
    ):
        raise CheckpointError(
            f"entry {describe(entry.name)} described in two ways",
            "a header that equals the directory",
        )
    return begin, end
