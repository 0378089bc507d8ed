"""PyTorch checkpoints: the zip format (since 1.6), the stream before it, and bare pickles."""

from typing import Any

from checkpoints_convert.describe import describe
from checkpoints_convert.readers.archive import read_archive
from checkpoints_convert.readers.limits import CheckpointError, Meter, over_limit
from checkpoints_convert.readers.opcodes import interpret
from checkpoints_convert.readers.regions import Region
from checkpoints_convert.readers.tensors import INT64_MAX, TORCH_STORAGES, Storage, dtype_named
from checkpoints_convert.readers.tree import Global

MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of the stream format
STREAM_VERSION = 1001
DATA = "data.pkl"
TYPED_STORAGES = {"torch", "torch.storage", "torch.cuda"}
WHOLE = "a file that torch.save wrote"
STORAGE_COST = 400  # bytes of memory that a storage takes before it is read


def read_torch_zip(entries: dict[str, Region], meter: Meter, nesting: int = 0) -> Any:
    """Object tree of a torch zip whose entries `read_archive` gave."""
    pickles = [name for name in entries if name.endswith(f"/{DATA}") and name.count("/") == 1]
    if len(pickles) != 1:
        raise CheckpointError(f"a zip with {len(pickles)} {DATA} entries", f"one; {WHOLE}")
    root = pickles[0].removesuffix(DATA)
    order = _short(entries, f"{root}byteorder", b"little")
    if order not in (b"little", b"big"):
        raise CheckpointError(f"byteorder {describe(order)}", "little or big")
    storages: dict[tuple, Storage] = {}

    def persistent(identity: Any) -> Storage:
        kind, key, size, view = _storage_id(identity)
        if view is not None:
            raise CheckpointError("a storage view in a zip", WHOLE)
        if (kind, key) not in storages:
            region = entries.get(f"{root}data/{key}")
            if region is None:
                raise CheckpointError(
                    f"storage {describe(key)} without its entry", describe(f"{root}data/{key}")
                )
            meter.make(STORAGE_COST)
            storage = _new_storage(kind, size)
            if storage.nbytes != len(region):
                raise CheckpointError(
                    f"storage {describe(key)} of {len(region):,} bytes",
                    f"{storage.nbytes:,} as pickled",
                )
            storage.region, storage.big_endian = region, order == b"big"
            storages[kind, key] = storage
        storage = storages[kind, key]
        if storage.size != size:
            raise CheckpointError(f"storage {describe(key)} with two sizes", "one")
        return storage

    nested = _nested_loader(meter, nesting)
    region = entries[pickles[0]]
    if nesting:  # the same nested file may be read again and again
        meter.count(len(region) // 4096)
    tree, end = interpret(region, region.array().data, 0, meter, nested, persistent)
    if end != len(region):
        raise CheckpointError(f"{len(region) - end:,} bytes after the pickle", "none")
    return tree


def _short(entries: dict[str, Region], name: str, default: bytes) -> bytes:
    if name not in entries:
        return default
    region = entries[name]
    if len(region) > 100:
        raise CheckpointError(f"entry {describe(name)} of {len(region):,} bytes", "a single word")
    return bytes(region)


def _storage_id(identity: Any) -> tuple[Global, str, int, Any]:
    """(class, key, number of elements, view) of the persistent id that torch writes."""
    if type(identity) is tuple and len(identity) in (5, 6) and identity[0] == "storage":
        _, kind, key, _, size = identity[:5]
        if type(key) is int and 0 <= key < 1 << 64:
            key = str(key)
        if type(kind) is Global and type(key) is str and type(size) is int and 0 <= size < 1 << 60:
            return kind, str(key), size, identity[5] if len(identity) == 6 else None
    raise CheckpointError("a persistent id of an unknown kind", f"a storage; {WHOLE}")


def _new_storage(kind: Global, size: int) -> Storage:
    if kind.module not in TYPED_STORAGES or kind.name not in TORCH_STORAGES:
        raise CheckpointError(
            f"a storage of class {describe(str(kind))}",
            f"one of {', '.join(TORCH_STORAGES)}",
            "convert the tensors to plain float tensors and save again",
        )
    storage = Storage(dtype_named(TORCH_STORAGES[kind.name]), size, None)
    storage.quantized = kind.name.startswith("Q")
    return storage


def _nested_loader(meter: Meter, nesting: int):
    """Reads a torch file that is a byte string inside another one."""

    def load(region: Region) -> Any:
        if nesting + 1 > meter.limits.nesting:
            raise over_limit(meter.limits, "nesting")
        if bytes(region.slice(0, min(4, len(region)), "a nested file")) == b"PK\3\4":
            return read_torch_zip(read_archive(region, meter), meter, nesting + 1)
        kind, tree = read_pickled(region, meter, nesting + 1)
        if kind != "torch-legacy":
            raise CheckpointError("a bare pickle as a nested file", f"nested bytes: {WHOLE}")
        return tree

    return load


def read_pickled(region: Region, meter: Meter, nesting: int = 0) -> tuple[str, Any]:
    """("torch-legacy" or "pickle", object tree) of a file that begins with a pickle."""
    data = region.array().data
    nested = _nested_loader(meter, nesting)
    first, end = interpret(region, data, 0, meter, nested)
    if type(first) is int and first == MAGIC:
        return "torch-legacy", _read_stream(region, data, end, meter, nested)
    if end != len(region):
        raise CheckpointError(
            f"{len(region) - end:,} bytes after the pickle", "a file with one pickle"
        )
    return "pickle", first


def _read_stream(region: Region, data: memoryview, start: int, meter: Meter, nested) -> Any:
    """Version, machine, object, storage keys; then each storage: its size, and its elements.

    Elements are little-endian whatever machine wrote them.
    """
    storages: dict[str, tuple[Global, Storage]] = {}
    views: dict[tuple, tuple[Storage, Storage, int]] = {}

    def persistent(identity: Any) -> Storage | Global:
        if type(identity) is tuple and len(identity) == 4 and type(identity[1]) is Global:
            return identity[1]  # ("module", class, ...): a model class with its source text
        kind, key, size, view = _storage_id(identity)
        if key not in storages or view is not None:
            meter.make(STORAGE_COST)
        known, storage = storages.get(key) or (kind, _new_storage(kind, size))
        storages[key] = known, storage
        if known != kind or storage.size != size:
            raise CheckpointError(f"storage {describe(key)} with two types or sizes", "one of each")
        if view is None:
            return storage
        if not (type(view) is tuple and len(view) == 3 and type(view[0]) in (str, int)):
            raise CheckpointError("a storage view of an unknown kind", WHOLE)
        _, offset, length = view
        ok = type(offset) is int and type(length) is int and offset >= 0 and length >= 0
        if not ok or offset + length > size:
            raise CheckpointError(f"a view past the end of storage {describe(key)}", WHOLE)
        if (key, offset, length) not in views:
            views[key, offset, length] = _new_storage(kind, length), storage, offset
        return views[key, offset, length][0]

    version, position = interpret(region, data, start, meter, nested)
    if type(version) is not int or version != STREAM_VERSION:
        raise CheckpointError("another version of the stream format", f"{STREAM_VERSION}; {WHOLE}")
    # What kind of machine wrote it, which does not matter to the elements.
    _, position = interpret(region, data, position, meter, nested)
    tree, position = interpret(region, data, position, meter, nested, persistent)
    keys, position = interpret(region, data, position, meter, nested)
    if type(keys) is not list or len(keys) != len(storages):
        raise CheckpointError("a list of storages unlike the tensors", f"{len(storages)} keys")
    for key in keys:
        key = str(key & INT64_MAX) if type(key) is int else key
        storage = storages.get(key, (None, None))[1] if type(key) is str else None
        if storage is None or storage.region is not None:
            raise CheckpointError("a storage key that repeats or no tensor has", WHOLE)
        size = int.from_bytes(bytes(region.slice(position, position + 8, "a size")), "little")
        if size != storage.size:
            raise CheckpointError(f"a storage of {size:,} elements", f"{storage.size:,} as pickled")
        position += 8
        storage.region = region.slice(position, position + storage.nbytes, "a storage")
        position += storage.nbytes
    if position != len(region):
        raise CheckpointError(f"{len(region) - position:,} bytes after the last storage", "none")
    for view, storage, offset in views.values():
        if storage.region is not None:  # checked above: each has one
            start = offset * storage.dtype.itemsize
            view.region = storage.region.slice(start, start + view.nbytes, "a view")
    return tree
