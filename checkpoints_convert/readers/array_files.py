"""Array formats without pickles: safetensors, npz and npy.

Both are read here and not by their libraries. `safetensors` gives NumPy no float8 and copies each
tensor, where this maps it, and keeps the last of two entries of one name. `numpy.lib.format`
evaluates headers as Python literals (`ast.literal_eval`, which Python's own manual calls unsafe on
untrusted text: it may exhaust memory or the stack), and takes entries of objects as pickles.
"""

import json
import re
from typing import Any

import numpy as np

from checkpoints_convert.describe import describe
from checkpoints_convert.readers.limits import CheckpointError, Meter, over_limit
from checkpoints_convert.readers.regions import Region
from checkpoints_convert.readers.tensors import (
    LazyTensor,
    Storage,
    contiguous_strides,
    dtype_from_descr,
    dtype_named,
)
from checkpoints_convert.readers.tree import NAME_CHARACTERS, Opaque

SAFETENSORS_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "U16": "uint16",
    "I16": "int16",
    "F16": "float16",
    "BF16": "bfloat16",
    "U32": "uint32",
    "I32": "int32",
    "F32": "float32",
    "U64": "uint64",
    "I64": "int64",
    "F64": "float64",
    "C64": "complex64",
}
NPY_MAGIC = b"\x93NUMPY"
NPY_HEADER = 1 << 16
_DESCR = r"""['"]descr['"]\s*:\s*(?P<descr>'[^'\\]*'|"[^"\\]*"|\[.*\])"""
_ORDER = r"""['"]fortran_order['"]\s*:\s*(?P<order>True|False)"""
_SHAPE = r"""['"]shape['"]\s*:\s*\((?P<shape>[0-9L,\s]*)\)"""
_NPY_FIELDS = [re.compile(rf"\s*{part}\s*(,|(?=\}}))", re.DOTALL) for part in (_DESCR, _ORDER)]
_NPY_FIELDS.append(re.compile(rf"\s*{_SHAPE}\s*(,|(?=\}}))"))


def looks_like_safetensors(head: bytes, size: int) -> bool:
    """Whether a file of `size` bytes that starts with `head` (9 bytes or more) may be one."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 48 and size > 9


def read_safetensors(region: Region, meter: Meter) -> tuple[dict, dict]:
    """(tensors by name, metadata) of a safetensors file.

    The header must be a JSON object without repeated keys, and the tensors must fill the data
    exactly: no gaps, no overlap, nothing behind the last one.
    """
    length = int.from_bytes(bytes(region.slice(0, 8, "the header's length")), "little")
    if length > meter.limits.header_bytes:
        raise over_limit(meter.limits, "header_bytes")
    text = bytes(region.slice(8, 8 + length, "the header"))
    meter.make(_cost_of_json(text))
    header = _json(text)
    data = region.slice(8 + length, len(region), "the data")
    if type(header) is not dict:
        raise CheckpointError("a header that is no object", "a JSON object")
    meter.count(len(header))
    metadata = header.pop("__metadata__", {})
    if type(metadata) is not dict or any(type(value) is not str for value in metadata.values()):
        raise CheckpointError("__metadata__ with other values than strings", "strings only")
    tensors, spans = {}, []
    for word in (*header, *metadata, *metadata.values()):
        if re.search("[\ud800-\udfff]", word):  # JSON can write them; no file or terminal can
            raise CheckpointError("half of a surrogate pair in a name", "Unicode text")
    for name, entry in header.items():
        if len(name) > NAME_CHARACTERS:
            raise CheckpointError("a tensor name of over 4096 characters", "a shorter one")
        dtype, shape, start, stop = _safetensors_entry(name, entry)
        storage_size = (stop - start) // dtype.itemsize
        storage = Storage(dtype, storage_size, data.slice(start, stop, f"tensor {describe(name)}"))
        tensors[name] = LazyTensor(shape, dtype, contiguous_strides(shape), 0, storage, meter)
        if tensors[name].nbytes != stop - start:
            raise CheckpointError(
                f"tensor {describe(name)} of shape {describe(shape)} in {stop - start:,} bytes",
                f"{tensors[name].nbytes:,} bytes",
            )
        spans.append((start, stop))
    end = 0
    for start, stop in sorted(spans):
        if start != end:
            kind = "overlapping tensors" if start < end else "a gap between tensors"
            raise CheckpointError(f"{kind} at byte {start:,} of the data", f"a start at {end:,}")
        end = stop
    if end != len(data):
        raise CheckpointError(f"{len(data) - end:,} bytes that no tensor covers", "none")
    return tensors, metadata


def _cost_of_json(text: bytes) -> int:
    """Bytes, or more, that parsing takes: the text twice, and what its marks can stand for."""
    width = 1 if text.isascii() and b"\\u" not in text else 4  # one wide character widens all
    objects, lists, items = (text.count(mark) for mark in (b"{", b"[", b","))
    strings = text.count(b'"') // 2
    return (1 + 2 * width) * len(text) + 350 * objects + 110 * lists + 48 * items + 130 * strings


def _json(text: bytes) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise CheckpointError("a header that names something twice", "unique names")
        return result

    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            "a header that is not JSON", f"JSON ({describe(str(error), 200)})"
        ) from error


def _safetensors_entry(name: str, entry: Any) -> tuple[np.dtype, tuple, int, int]:
    if type(entry) is not dict or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(
            f"tensor {describe(name)} described otherwise", "dtype, shape, data_offsets"
        )
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if type(kind) is not str or kind not in SAFETENSORS_DTYPES:
        raise CheckpointError(
            f"tensor {describe(name)} of dtype {describe(kind)}",
            f"one of {', '.join(SAFETENSORS_DTYPES)}",
            "save it in one of these",
        )
    for numbers in (shape, offsets):
        ok = type(numbers) is list and all(type(n) is int and 0 <= n < 1 << 63 for n in numbers)
        if not ok:
            raise CheckpointError(
                f"tensor {describe(name)} with bad numbers", "ints from 0 to 2**63 - 1"
            )
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(
            f"tensor {describe(name)} with data_offsets {describe(offsets)}", "[start, stop]"
        )
    return dtype_named(SAFETENSORS_DTYPES[kind]), tuple(shape), *offsets


def read_npz(entries: dict[str, Region], meter: Meter) -> dict[str, LazyTensor | Opaque]:
    """Arrays by name, without ".npy", of an archive that `read_archive` gave."""
    others = [name for name in entries if not name.endswith(".npy")]
    if others:
        raise CheckpointError(f"an entry {describe(others[0])}", "only .npy entries")
    arrays = {}
    for name, region in entries.items():
        try:
            arrays[name.removesuffix(".npy")] = read_npy(region, meter)
        except CheckpointError as error:
            error.found = f"{error.found} in array {describe(name)}"
            raise
    return arrays


def read_npy(region: Region, meter: Meter) -> LazyTensor | Opaque:
    """The array of an npy file; an Opaque with its shape and descr if it is not numeric.

    Object arrays are pickles inside; they are left alone.
    """
    # A peek: unpacking or summing up whole entries is for when their values are asked for.
    head = region.peek(12 + NPY_HEADER)
    version = head[6:8]
    if head[:6] != NPY_MAGIC or version not in (b"\1\0", b"\2\0", b"\3\0"):
        raise CheckpointError("no npy header", "NUMPY and version 1.0, 2.0 or 3.0")
    start = 10 if version == b"\1\0" else 12
    length = int.from_bytes(head[8:start], "little")
    if length > NPY_HEADER:
        raise CheckpointError(f"an npy header of {length:,} bytes", f"at most {NPY_HEADER:,}")
    data = region.slice(start + length, len(region), "the array")
    text = head[start : start + length].decode("latin-1")
    descr, fortran, shape = _npy_header(text)
    found = dtype_from_descr(descr)
    if found is None:
        reason = "an array of objects, text, records or dates, not of numbers"
        return Opaque("numpy", "ndarray", (shape, descr), unsupported=reason)
    dtype, big_endian = found
    strides = contiguous_strides(shape[::-1])[::-1] if fortran else contiguous_strides(shape)
    storage = Storage(dtype, len(data) // dtype.itemsize, data, big_endian)
    tensor = LazyTensor(shape, dtype, strides, 0, storage, meter)
    if tensor.nbytes != len(data):
        raise CheckpointError(
            f"{len(data):,} bytes for shape {describe(shape)}", f"{tensor.nbytes:,} bytes"
        )
    return tensor


def _npy_header(text: str) -> tuple[str, bool, tuple[int, ...]]:
    """(descr, Fortran order, shape) of the header, a dict literal, read without evaluating it."""
    body, values = text.strip(), {}
    position = 1
    while body[:1] == "{" and position < len(body):
        match = next((m for field in _NPY_FIELDS if (m := field.match(body, position))), None)
        if match is None:
            break
        values.update(match.groupdict())
        position = match.end()
    if body[:1] != "{" or body[position:].strip() != "}" or len(values) != 3:
        raise CheckpointError("an npy header of another form", "descr, fortran_order and shape")
    sizes = [part.strip().removesuffix("L") for part in values["shape"].split(",")]
    if sizes and not sizes[-1]:
        sizes.pop()
    if len(sizes) > 64 or not all(part.isdigit() and len(part) < 20 for part in sizes):
        raise CheckpointError("an npy shape of another form", "ints, at most 64")
    return values["descr"].strip("'\""), values["order"] == "True", tuple(map(int, sizes))
