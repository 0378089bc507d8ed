"""No small file takes much memory or time: limits set by the operating system, not by the readers.

A file of N bytes may take 64 MiB and 4 N bytes of memory, and CPU time in proportion to N.
"""

import json
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from checkpoints_convert.readers import read
from tests.checkpoints_convert.readers.forge import (
    Applied,
    StorageReference,
    dumps,
    npy,
    safetensors,
    tensor,
    torch_stream,
    torch_zip,
)

pytest.importorskip("resource", reason="limits are the operating system's")

MIB = 1 << 20
MANY = 2 * MIB
OPEN, PICKLE = b"\x80\x04(", b"\x80\x04"
SECONDS = 6.0  # for a file of no bytes, on a busy machine; a quadratic reader takes minutes
SECONDS_PER_MIB = 12.0


def text(word: bytes) -> bytes:
    return b"X" + struct.pack("<L", len(word)) + word


def shared_entry(count: int, storages: int, size: int) -> bytes:
    """A deflated archive of storages of zeros, and tensors that name them in turn."""
    reference = [StorageReference("FloatStorage", str(i), size // 4) for i in range(storages)]
    tensors = {str(i): tensor(reference[i % storages], (1,), (1,)) for i in range(count)}
    zeros = {str(i): bytes(size) for i in range(storages)}
    return torch_zip(dumps(tensors), zeros, compression=zipfile.ZIP_DEFLATED)


def persistent(shared: int) -> bytes:
    """A persistent module that holds one module many times."""
    inner = Applied("torch", "M", state={"_parameters": {}, "_modules": {}})
    inner.state["_parameters"] = {
        str(i): tensor(StorageReference("FloatStorage", "0", 2)) for i in range(300)
    }
    modules = {f"{'m' * 200}{i}": inner for i in range(shared)}
    meta = {"class_name": "G", "state": {"_parameters": {}, "_modules": modules}}
    one = Applied("torch_utils.persistence", "_reconstruct_persistent_obj", meta)
    return torch_zip(dumps(one, 4), {"0": bytes(8)})


def many_keys(*keys: bytes) -> bytes:
    return PICKLE + b"}(" + b"".join(key + b"N" for key in keys) + b"u."


def floats_of_one_hash() -> list[bytes]:
    """All hash to 1 or a power of 2 below 2**61: equal hashes by the thousand with few bits."""
    p = (1 << 61) - 1
    found = [(m << e) for m in range(1, 64) for e in range(0, 960, 61)]
    assert len({hash(float(value)) % p for value in found}) < 70
    return [b"G" + struct.pack(">d", float(value)) for value in found]


def complex_of_one_hash(count: int) -> list[bytes]:
    """hash(a + bj) is hash(a) + 1000003 hash(b), modulo 2**64."""
    values = [complex(-1000003.0 * b, b) for b in range(1, count + 1)]
    assert len({hash(value) for value in values}) == 1
    call = b"cbuiltins\ncomplex\n"
    pack = struct.Struct(">d").pack
    return [call + b"G" + pack(v.real) + b"G" + pack(v.imag) + b"\x86R" for v in values]


LAUGHS = b"\x80\x02]" + b"q\x00h\x00h\x00\x87" * 40 + b"."
HIGH = "\U0001f600".encode()
ENTRY = b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'

FULL = {  # as many as the reader lets pass: its costs are not below those of the system
    "sets": lambda: OPEN + b"\x8f" * 117_000 + b"l.",
    "lists": lambda: OPEN + b"]" * 187_000 + b"l.",
    "tuples": lambda: OPEN + b"N\x85" * 210_000 + b"l.",
    "small sets": lambda: OPEN + b"\x8f(NK\x01\x90" * 46_000 + b"l.",
    "small dicts": lambda: OPEN + b"}NNs" * 93_000 + b"l.",
    "records": lambda: PICKLE + b"ca\nb\n\x940(" + b"h\x00)RNNs" * 46_000 + b"l.",
    "int keys": lambda: many_keys(*(b"J" + struct.pack("<l", i) for i in range(280_000))),
    "memo slots": lambda: (
        PICKLE + b"N" + b"".join(b"r" + struct.pack("<L", 7 * i + 5) for i in range(280_000)) + b"."
    ),
    "strings": lambda: OPEN + text("é".encode()) * 420_000 + b"l.",
    "storages": lambda: torch_zip(
        dumps([tensor(StorageReference("FloatStorage", str(i), 1), (), ()) for i in range(15_000)]),
        {str(i): bytes(4) for i in range(15_000)},
    ),
}
FILES = {
    "empty sets": lambda: OPEN + b"\x8f" * MANY + b"l.",
    "empty lists": lambda: OPEN + b"]" * MANY + b"l.",
    "empty dicts": lambda: OPEN + b"}" * MANY + b"t.",
    "small tuples": lambda: OPEN + b"N\x85" * MANY + b"l.",
    "small sets": lambda: OPEN + b"\x8f(NK\x01\x90" * (MANY // 4) + b"l.",
    "small frozensets": lambda: OPEN + b"(K\x01\x91" * (MANY // 3) + b"l.",
    "small dicts": lambda: OPEN + b"}NNs" * (MANY // 4) + b"l.",
    "marks": lambda: PICKLE + b"(" * MANY,
    "marks and lists": lambda: PICKLE + b"(" * MANY + b"l" * (MANY - 1) + b".",
    "memo slots": lambda: PICKLE + b"N" + b"\x94" * MANY + b".",
    "globals": lambda: OPEN + b"ca\nb\n" * (MANY // 4) + b"l.",
    "records": lambda: PICKLE + b"ca\nb\n\x94(" + b"h\x00)R" * (MANY // 4) + b"l.",
    "calls of records": lambda: PICKLE + b"ca\nb\n" + b")R" * MANY + b".",
    "floats": lambda: OPEN + (b"G" + struct.pack(">d", 0.5)) * (MANY // 9) + b"l.",
    "floats as text": lambda: OPEN + b"F1\n" * (MANY // 3) + b"l.",
    "long ints": lambda: OPEN + (b"\x8a\xff" + b"\x7f" * 255) * (MANY // 257) + b"l.",
    "short strings": lambda: OPEN + text("é".encode()) * (MANY // 7) + b"l.",
    "wide strings": lambda: OPEN + (b"\x8c\x08abcd" + HIGH) * (MANY // 10) + b"l.",
    "one wide string": lambda: PICKLE + text(b"a" * (15 * MIB) + HIGH) + b".",
    "wide strings of 4 MiB": lambda: OPEN + text(b"a" * (4 * MIB) + HIGH) * 8 + b"l.",
    "unescaped text": lambda: OPEN + (b"V" + b"\\u0100" * MIB + b"\n") * 2 + b"l.",
    "unescaped bytes": lambda: OPEN + (b"S'" + b"\\n" * (4 * MIB) + b"'\n") * 2 + b"l.",
    "text encoded again and again": lambda: (
        PICKLE
        + b"c_codecs\nencode\n\x94"
        + text("é".encode() * MIB)
        + b"\x94\x8c\x06latin1\x94("
        + b"h\x00h\x01h\x02\x86R" * 10_000
        + b"l."
    ),
    "sets of one list": lambda: (
        PICKLE
        + b"](" + b"".join(b"M" + struct.pack("<H", i) for i in range(60_000)) + b"e\x94"
        + b"cbuiltins\nset\n\x94(" + b"h\x01h\x00\x85R" * 10_000 + b"l."
    ),
    "int keys": lambda: many_keys(*(b"J" + struct.pack("<l", i) for i in range(400_000))),
    "complex keys of one hash": lambda: many_keys(*complex_of_one_hash(20_000)),
    "tuple keys of one hash": lambda: many_keys(
        *(key + b"\x85" for key in complex_of_one_hash(20_000))
    ),
    "float keys of one hash": lambda: many_keys(*floats_of_one_hash()),
    "billion laughs": lambda: LAUGHS,
    "strides of 0": lambda: torch_zip(
        dumps(
            [
                tensor(StorageReference("FloatStorage", "0", 1), (1 << 24,), (0,))
                for _ in range(700)
            ]
        ),
        {"0": bytes(4)},
    ),
    "a stride of 0 read as a whole": lambda: torch_zip(
        dumps(tensor(StorageReference("FloatStorage", "0", 1), (15 << 20, 1), (0, 0))),
        {"0": bytes(4)},
    ),
    "a bomb": lambda: shared_entry(3, 1, 200 * MIB),
    "many small bombs": lambda: shared_entry(40, 40, 4 * MIB),
    "one entry unpacked for each tensor": lambda: shared_entry(3000, 1, 32 * MIB),
    "two entries unpacked in turn": lambda: shared_entry(3000, 2, 16 * MIB),
    "tiny tensors": lambda: torch_stream(
        dumps([tensor(StorageReference("FloatStorage", "0", 2), (), ()) for _ in range(40_000)]),
        {"0": bytes(8)},
    ),
    "a module met again and again": lambda: persistent(3000),
    "long names": lambda: (
        PICKLE
        + b"}" + (text(b"n" * 900) + b"}") * 4 + text(b"x") + b"](" + b"ca\nb\n)R" * 20_000 + b"es"
        + b"s" * 4 + b"."
    ),
    "empty entries": lambda: empty_entries(20_000),
    "JSON objects": lambda: safetensors(b'{"a":[' + b"{}," * MANY + b"{}]}"),
    "JSON lists": lambda: safetensors(b'{"a":[' + b"[]," * MANY + b"[]]}"),
    "JSON names": lambda: safetensors(
        b"{" + b",".join(ENTRY % number for number in range(60_000)) + b"}"
    ),
    "JSON text that widens": lambda: safetensors(
        b'{"__metadata__":{"a":"' + b"a" * (20 * MIB) + b'\\ud83d\\ude00"}}'
    ),
    "deep JSON": lambda: safetensors(b'{"a":' + b"[" * MANY),
}  # fmt: skip
FILES |= {f"nearly too many {name}": make for name, make in FULL.items()}


def empty_entries(count: int) -> bytes:
    import io

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number in range(count):
            archive.writestr(f"{number}.npy", npy(np.zeros(0, "u1")))
    return buffer.getvalue()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What a reader under limits of the operating system makes of each file, and in what time."""
    folder = tmp_path_factory.mktemp("bounds")
    paths = {}
    for number, (name, make) in enumerate(FILES.items()):
        paths[name] = folder / f"file{number}"
        paths[name].write_bytes(make())
    done = subprocess.run(
        [sys.executable, "-m", "tests.checkpoints_convert.readers.bounded", *paths.values()],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    results = dict(zip(paths, json.loads(done.stdout), strict=True))
    return {name: (*results[name], path.stat().st_size) for name, path in paths.items()}


@pytest.mark.parametrize("name", FILES)
def test_memory_and_time_are_bounded_by_the_size_of_the_file(outcomes, name):
    outcome, seconds, size = outcomes[name]
    assert outcome.startswith("read ") or "found" in outcome, outcome
    assert "fits in memory" not in outcome  # the limit of the system was met, not the reader's
    assert seconds < SECONDS + SECONDS_PER_MIB * size / MIB


@pytest.mark.parametrize("name", FULL)
def test_what_is_just_allowed_is_read_within_the_systems_limit(outcomes, name):
    assert outcomes[f"nearly too many {name}"][0].startswith("read ")


def test_checkpoints_of_thousands_of_tiny_tensors_are_read(tmp_path):
    torch = pytest.importorskip("torch")
    names = [f"model.block{i // 10}.layer{i % 10}.weight" for i in range(3000)]
    state = {i: {"step": torch.tensor(1.0), "exp_avg": torch.ones(4)} for i in range(1000)}
    saved = {
        "state_dict": {name: torch.ones(4) for name in names},
        "optimizer": {"state": state, "param_groups": [{"params": list(range(1000))}]},
        "log": [{"loss": float(step), "step": step} for step in range(3000)],
    }
    for new in (True, False):
        torch.save(saved, tmp_path / "t", _use_new_zipfile_serialization=new)
        assert len(read(tmp_path / "t").tensors()) == 5000


def test_text_of_a_hostile_value_is_cut_before_it_is_built(tmp_path):
    from checkpoints_convert.describe import describe

    laughs: list = []
    for _ in range(60):
        laughs = [laughs] * 10
    loop: list = []
    loop += [loop, loop]
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    long = ["x" * (1 << 20)] * 1000
    for value in (laughs, loop, deep, long, "\n\x1b[31m\u202e\ud800" * 10_000, 10**100_000):
        for limit in (16, 80, 1000):
            shown = describe(value, limit)
            assert len(shown) <= limit and shown.isprintable()
    assert describe({"a": (1, "b", None)}) == "{'a': (1, 'b', None)}"
    assert pickle.dumps(laughs)  # a file of this kind has some hundred bytes
