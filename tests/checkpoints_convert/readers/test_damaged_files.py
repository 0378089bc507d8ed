"""Archives and array files that lie about themselves are refused; so is any file cut short."""

import contextlib
import io
import json
import os
import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoints_convert.readers import CheckpointError, Limits, find, read
from checkpoints_convert.readers.tensors import LazyTensor
from tests.checkpoints_convert.readers.forge import (
    Applied,
    Name,
    StorageReference,
    dumps,
    npy,
    npy_with_header,
    safetensors,
    tensor,
    torch_stream,
    torch_zip,
    touch,
)
from tests.reference import fixture

FLOATS = np.arange(4, dtype="<f4").tobytes()
ONE = dumps({"a": tensor(StorageReference("FloatStorage", "0", 4))})
GOOD_ZIP = torch_zip(ONE, {"0": FLOATS})


@pytest.fixture
def load(tmp_path):
    def load(data: bytes, **limits):
        (tmp_path / "file").write_bytes(data)
        return read(tmp_path / "file", limits=Limits(**limits))

    return load


def refused(load, data: bytes, match: str, **limits) -> None:
    with pytest.raises(CheckpointError, match=match):
        checkpoint = load(data, **limits)
        for lazy in checkpoint.tensors().values():
            lazy.numpy()


def zip_of(*entries: tuple[str, bytes], method=zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in entries:
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return buffer.getvalue()


def directory_of(data: bytes) -> int:
    return struct.unpack("<L", data[-6:-2])[0]


def patched(data: bytes, position: int, layout: str, *values) -> bytes:
    packed = struct.pack(layout, *values)
    return data[:position] + packed + data[position + len(packed) :]


def test_the_forged_files_are_good_before_they_are_damaged(load):
    for data in (GOOD_ZIP, torch_stream(ONE, {"0": FLOATS})):
        np.testing.assert_array_equal(load(data).tensors()["a"].numpy(), [0, 1])


# Zip


def test_zip_bombs_are_refused_before_they_are_unpacked(load):
    bomb = zip_of(("a.npy", npy(np.zeros(64 << 20, "u1"))), method=zipfile.ZIP_DEFLATED)
    tracemalloc.start()
    refused(load, bomb, "more memory than the file's size allows; .*zip -0 -r")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert load(bomb, base_bytes=1 << 28).tree["a"].numpy().nbytes == 64 << 20


@pytest.mark.parametrize(
    "name",
    ["../a.npy", "/etc/a.npy", "a/../../b.npy", "a\\b.npy", "c:/a.npy", "./a.npy", "a//b.npy"],
)
def test_path_traversal_names_are_refused(load, name):
    info = zipfile.ZipInfo("placeholder.npy")
    info.filename = name
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(info, npy(np.ones(1)))
    refused(load, buffer.getvalue(), "an entry named")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicate_names_are_refused(load):
    refused(load, zip_of(("a.npy", npy(np.ones(1))), ("a.npy", npy(np.zeros(1)))), "two entries")


def test_overlapping_entries_are_refused(load):
    data = zip_of(("a.npy", npy(np.ones(1))), ("b.npy", npy(np.ones(1))))
    at = directory_of(data)
    second = data.index(b"PK\1\2", at + 4)
    # Both directory entries point at the first header, under the first one's name.
    both = patched(data, second + 42, "<L", 0)
    refused(load, both, "described in two ways")
    inner = zip_of(("a.npy", npy(np.ones(1))))
    inner = inner[: directory_of(inner)]
    outer = zip_of(("b.npy", inner), ("a.npy", npy(np.ones(1))))
    second = outer.index(b"PK\1\2", directory_of(outer) + 4)
    quoted = patched(outer, second + 42, "<L", outer.index(inner[:10], 10))
    refused(load, quoted, "inside entry")


@pytest.mark.parametrize(("field", "what"), [(20, "stored"), (24, "stored"), (42, "header|inside")])
def test_lying_sizes_and_offsets_in_the_directory_are_refused(load, field, what):
    for value in (1, 0x7FFFFFFF, 0xFFFFFFFF):
        refused(load, patched(GOOD_ZIP, directory_of(GOOD_ZIP) + field, "<L", value), "entry")


def test_a_local_header_that_differs_from_the_directory_is_refused(load):
    for field, value in ((18, 3), (22, 3), (8, 8)):
        layout = "<H" if field == 8 else "<L"
        refused(load, patched(GOOD_ZIP, field, layout, value), "two ways")
    renamed = GOOD_ZIP.replace(b"data.pkl", b"evil.pkl", 1)
    refused(load, renamed, "two ways")


def test_a_directory_outside_the_file_or_with_a_wrong_count_is_refused(load):
    end = len(GOOD_ZIP) - 22
    for field, layout, value in (
        (8, "<2H", (1, 1)),
        (8, "<2H", (9, 9)),
        (8, "<2H", (3, 4)),
        (12, "<L", (5,)),
        (16, "<L", (0xFFFFFFF0,)),
        (4, "<H", (1,)),
    ):
        refused(
            load, patched(GOOD_ZIP, end + field, layout, *value), "director|entries|parts|bytes"
        )


def test_both_sizes_of_a_deflated_entry_are_checked(load):
    good = zip_of(("a.npy", npy(np.arange(1000.0))), method=zipfile.ZIP_DEFLATED)
    at = directory_of(good)
    size = struct.unpack_from("<L", good, at + 24)[0]
    for lie in (size - 8, size + 8):
        data = patched(patched(good, at + 24, "<L", lie), 22, "<L", lie)
        refused(load, data, "bytes")
    refused(load, patched(good, 60, "<L", 0x12345678), "unpack|CRC|npy")
    crc = patched(patched(good, at + 16, "<L", 7), 14, "<L", 7)
    refused(load, crc, "CRC")


def test_encrypted_and_split_and_exotically_compressed_archives_are_refused(load):
    at = directory_of(GOOD_ZIP)
    refused(load, patched(GOOD_ZIP, at + 8, "<H", 1), "encrypted")
    refused(load, patched(GOOD_ZIP, at + 34, "<H", 1), "parts")
    lzma = zip_of(("a.npy", npy(np.ones(9))), method=zipfile.ZIP_LZMA)
    refused(load, lzma, "method 14")


def test_zips_that_are_no_checkpoints_are_refused(load):
    refused(load, zip_of(("readme.txt", b"hello")), "readme.txt")
    two = zip_of(("a/data.pkl", ONE), ("b/data.pkl", ONE))
    refused(load, two, "2 data.pkl")


def test_a_comment_that_looks_like_a_directory_does_not_hide_the_real_one(load):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.npy", npy(np.ones(2)))
        archive.comment = b"PK\5\6" + b"\0" * 10
    assert list(load(buffer.getvalue()).tree) == ["a"]


# Torch


@pytest.mark.parametrize(
    ("what", "args"),
    {
        "past the end": ((5,), (1,), 0),
        "offset past the end": ((2,), (1,), 3),
        "stride past the end": ((2, 2), (3, 2), 0),
        "negative size": ((-1,), (1,), 0),
        "negative stride": ((2,), (-1,), 0),
        "negative offset": ((1,), (1,), -1),
        "huge size": ((1 << 62,), (0,), 0),
        "huge product": ((1 << 40, 1 << 40, 0), (0, 0, 0), 0),
        "size over int64": ((1 << 70, 0), (0, 0), 0),
        "fewer strides": ((1, 1), (1,), 0),
        "65 dimensions": ((1,) * 65, (0,) * 65, 0),
        "bool size": ((True,), (1,), 0),
        "float size": ((1.0,), (1,), 0),
        "storage as a list": None,
    }.items(),
)
def test_tensors_outside_their_storage_are_refused(load, what, args):
    storage = StorageReference("FloatStorage", "0", 4)
    one = tensor([], (1,)) if args is None else tensor(storage, *args)
    refused(load, torch_zip(dumps(one), {"0": FLOATS}), "tensor|tensor_bytes|sizes")


@pytest.mark.parametrize("wrap", [torch_zip, torch_stream])
def test_storages_of_another_size_than_pickled_are_refused(load, wrap):
    for size in (0, 3, 5, 1 << 59, 1 << 70, -1, "4"):
        data = dumps(tensor(StorageReference("FloatStorage", "0", size), ()))
        refused(load, wrap(data, {"0": FLOATS}), "storage|element")


@pytest.mark.parametrize("wrap", [torch_zip, torch_stream])
def test_missing_unknown_and_odd_storages_are_refused(load, wrap):
    def one(*args):
        return wrap(dumps(tensor(StorageReference(*args))), {"0": FLOATS})

    refused(load, one("FloatStorage", "1", 4), "storage")
    refused(load, one("FloatStorage", "../0", 4), "storage")
    refused(load, one("Float4Storage", "0", 4), "class 'torch.Float4Storage'")
    refused(load, one("QInt8Storage", "0", 16), "quantised|sizes|elements")
    odd = StorageReference("FloatStorage", "0", 4)
    for identity in (("storage",), "0", ("module", 1), ("storage", 1, "0", "cpu", 4), None):
        odd.identity = identity or ()
        refused(load, wrap(dumps([odd]), {"0": FLOATS}), "persistent id")


def test_one_storage_under_two_types_or_sizes_is_refused_in_streams(load):
    for other in (("HalfStorage", "0", 4), ("FloatStorage", "0", 3)):
        both = [tensor(StorageReference("FloatStorage", "0", 4)), tensor(StorageReference(*other))]
        refused(load, torch_stream(dumps(both), {"0": FLOATS}), "two types or sizes")
    view = StorageReference("FloatStorage", "0", 4, ("1", 3, 2))
    refused(load, torch_stream(dumps(tensor(view)), {"0": FLOATS}), "view")


def test_streams_with_other_keys_versions_or_trailing_data_are_refused(load):
    good = torch_stream(ONE, {"0": FLOATS})
    refused(load, good + b"\0", "after the last storage")
    refused(load, good.replace(pickle.dumps(1001, 2), pickle.dumps(1002, 2)), "version")
    for keys in (["1"], ["0", "0"], [], "0", [["0"]]):
        changed = good.replace(pickle.dumps(["0"], 2), pickle.dumps(keys, 2))
        refused(load, changed, "storage|keys")


def test_an_unknown_byte_order_is_refused(load):
    data = zip_of(("m/data.pkl", ONE), ("m/byteorder", b"middle"), ("m/data/0", FLOATS))
    refused(load, data, "byteorder")


def test_numpy_arrays_of_another_size_than_pickled_are_refused(load):
    for state in (
        (1, (3,), np.dtype("f4"), False, FLOATS),
        (1, (-4,), np.dtype("f4"), False, FLOATS),
        (1, (1 << 70,), np.dtype("f4"), False, FLOATS),
        (1, ("4",), np.dtype("f4"), False, FLOATS),
        (1, (4,), np.dtype("f4"), False, None),
        (4,),
    ):
        array = Applied(
            "numpy.core.multiarray",
            "_reconstruct",
            Name("numpy", "ndarray"),
            (0,),
            b"b",
            state=state,
        )
        refused(load, dumps(array), "array|__setstate__")


# safetensors


def entry(start: int, stop: int, shape=None, dtype="F32") -> dict:
    shape = [(stop - start) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def test_safetensors_header_lengths_past_the_file_are_refused(load):
    for length in (1000, 1 << 40, 24 << 20):
        refused(load, safetensors({"a": entry(0, 16)}, FLOATS, length), "header")
    refused(load, safetensors({"a": entry(0, 16)}, FLOATS), "header_bytes", header_bytes=10)
    refused(load, struct.pack("<Q", (1 << 64) - 1) + b"{" + b" " * 20, "starts with")


def test_safetensors_overlapping_offsets_are_refused(load):
    refused(load, safetensors({"a": entry(0, 12), "b": entry(8, 16)}, FLOATS), "overlapping")
    refused(load, safetensors({"a": entry(0, 16), "b": entry(0, 16)}, FLOATS), "overlapping")


def test_safetensors_gaps_and_uncovered_data_are_refused(load):
    refused(load, safetensors({"a": entry(0, 4), "b": entry(8, 16)}, FLOATS), "gap")
    refused(load, safetensors({"a": entry(4, 16)}, FLOATS), "gap")
    refused(load, safetensors({"a": entry(0, 12)}, FLOATS), "no tensor covers")
    refused(load, safetensors({}, FLOATS), "no tensor covers")


def test_safetensors_offsets_outside_the_data_are_refused(load):
    refused(load, safetensors({"a": entry(0, 20)}, FLOATS), "inside")
    for offsets in (
        [16, 0],
        [-4, 16],
        [0],
        [0, 8, 16],
        [0, 1 << 64],
        [0.0, 16.0],
        ["0", "16"],
        None,
    ):
        header = {"a": {"dtype": "F32", "shape": [4], "data_offsets": offsets}}
        refused(load, safetensors(header, FLOATS), "numbers|data_offsets")


def test_safetensors_shapes_that_differ_from_the_data_are_refused(load):
    for shape in ([3], [5], [2, 3], [-4], [4.0], [True], "4", [1 << 62, 4], [1 << 70], [0]):
        refused(load, safetensors({"a": entry(0, 16, shape)}, FLOATS), "shape|numbers|bytes")
    refused(load, safetensors({"a": entry(0, 16, [1] * 65)}, FLOATS), "65 sizes")


def test_safetensors_unknown_dtypes_are_refused(load):
    for dtype in ("F4", "F32 ", "float32", 5, None, ["F32"]):
        refused(load, safetensors({"a": entry(0, 16, [4], dtype)}, FLOATS), "dtype")


@pytest.mark.parametrize(
    "header",
    {
        "duplicate": b'{"a":' + json.dumps(entry(0, 16)).encode() + b',"a":{}}',
        "deep": b'{"a":' + b"[" * 100_000,
        "deep and closed": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "not UTF-8": b'{"\xff":{}}',
        "not JSON": b"{a}",
        "long number": b'{"a":' + b"9" * 10_000 + b"}",
        "extra key": json.dumps({"a": {**entry(0, 16), "x": 1}}).encode(),
        "missing key": b'{"a":{"dtype":"F32"}}',
        "entry as list": b'{"a":[1]}',
        "surrogate": b'{"\\ud800":' + json.dumps(entry(0, 16)).encode() + b"}",
        "surrogate in metadata": b'{"__metadata__":{"a":"\\udfff"}}',
        "metadata as list": b'{"__metadata__":[]}',
        "metadata with numbers": b'{"__metadata__":{"a":1}}',
    }.items(),
    ids=lambda item: item[0],
)
def test_safetensors_headers_of_another_form_are_refused(load, header):
    refused(load, safetensors(header[1], FLOATS), "header|described|__metadata__|surrogate")


# npy


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (5,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-4,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4,,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': 4, }",
        "{'descr': '<f4', 'fortran_order': 2, 'shape': (4,), }",
        "{'descr': '<f4', 'fortran_order': False, }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4,), 'x': 1}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4,), } and more",
        "__import__('os').system('true')",
        "(" * 1000,
        "",
    ],
)
def test_npy_headers_that_lie_or_hold_other_things_are_refused(load, header):
    refused(load, npy_with_header(header, FLOATS), "array|npy|shape|bytes|sizes")


def test_object_arrays_in_npz_are_not_unpickled(load, tmp_path):
    data = npy_with_header(
        "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
        pickle.dumps(touch(tmp_path / "canary")),
    )
    assert load(zip_of(("a.npy", data))).tree["a"].args == ((1,), "|O")
    assert not (tmp_path / "canary").exists()


def test_npy_headers_without_end_are_refused(load):
    refused(load, b"\x93NUMPY\x02\x00\xff\xff\xff\xff", "header")
    refused(load, b"\x93NUMPY\x01\x00\xff\xff", "header")
    refused(load, b"\x93NUMPY\x09\x00\x00\x00", "header")
    refused(load, b"\x93NUMPY", "header")


# Cut short


def small_files() -> dict[str, bytes]:
    values = np.arange(1500, dtype="<f4")
    header = {"a": entry(0, 6000)}
    storage = StorageReference("FloatStorage", "0", 1500)
    state = dumps({"a": tensor(storage, (1500,))})
    return {
        "torch zip": torch_zip(state, {"0": values.tobytes()}),
        "torch stream": torch_stream(state, {"0": values.tobytes()}),
        "pickle": pickle.dumps({"a": values, "b": list(range(1000))}),
        "safetensors": safetensors(header, values.tobytes()),
        "npz": zip_of(("a.npy", npy(values))),
        "npz deflated": zip_of(("a.npy", npy(values)), method=zipfile.ZIP_DEFLATED),
        "npy": npy(values),
    }


@pytest.mark.parametrize("name", small_files())
def test_small_files_cut_anywhere_are_refused(load, name):
    data = small_files()[name]
    found = find(load(data).tree, lambda node: type(node) is LazyTensor)
    np.testing.assert_array_equal(found[0][1].numpy(), np.arange(1500))
    for length in [*range(0, len(data), 97), len(data) - 1]:
        refused(load, data[:length], "found")


@pytest.mark.parametrize("name", ["rosinality_sg2_r32_random.pt", "taef2_decoder.pth"])
def test_real_files_cut_at_every_kibibyte_are_refused(tmp_path, name):
    path = tmp_path / "cut"
    path.write_bytes(fixture(name).read_bytes())
    assert read(path).tensors()
    for length in range(path.stat().st_size - 1 & ~1023, -1, -1024):
        os.truncate(path, length)
        with pytest.raises(CheckpointError):
            read(path)


@settings(max_examples=200, deadline=None)
@given(
    name=st.sampled_from(sorted(small_files())),
    flips=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6),
    near=st.sampled_from([0.02, 0.2, 1.0]),
    end=st.booleans(),
)
def test_changed_bytes_give_values_or_the_one_error(tmp_path_factory, name, flips, near, end):
    data = bytearray(small_files()[name])
    for where, value in flips:  # near either end, where the structure is, or anywhere
        position = int(where * near * (len(data) - 1))
        data[len(data) - 1 - position if end else position] = value
    (path := tmp_path_factory.getbasetemp() / "flipped").write_bytes(data)
    with contextlib.suppress(CheckpointError):
        for lazy in read(path).tensors().values():
            lazy.numpy()
