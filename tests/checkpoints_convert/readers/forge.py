"""Builders of hostile and of ordinary checkpoint files for the tests."""

import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np

MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
VERSION = pickle.dumps(1001, 2)
SYSTEM = pickle.dumps({"little_endian": True}, 2)


class Call:
    """Pickles as a call of `function`: pickle.loads would carry it out."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def touch(canary: Path) -> Call:
    """An object whose unpickling creates the canary file."""
    return Call(os.system, f"touch {canary}")


def torch_zip(data: bytes, storages: dict[str, bytes] | None = None, **options) -> bytes:
    """A torch zip around a pickle; `options` go to `zipfile.ZipFile`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as archive:
        archive.writestr("model/data.pkl", data)
        for key, content in (storages or {}).items():
            archive.writestr(f"model/data/{key}", content)
        archive.writestr("model/version", "3\n")
    return buffer.getvalue()


def torch_stream(data: bytes, storages: dict[str, bytes] | None = None, itemsize: int = 4) -> bytes:
    """A torch file of the format before 1.6 around a pickle."""
    storages = storages or {}
    parts = [MAGIC, VERSION, SYSTEM, data, pickle.dumps(list(storages), 2)]
    for content in storages.values():
        parts += [struct.pack("<q", len(content) // itemsize), content]
    return b"".join(parts)


class StorageReference:
    """Stands for a storage in `dumps`, which writes it as torch's persistent id."""

    def __init__(self, kind: str, key: str, size: int, *view):
        self.identity = ("storage", Name("torch", kind), key, "cpu", size, *view)


class Name:
    """A global in `dumps`, whether it exists or not."""

    def __init__(self, module: str, name: str):
        self.module, self.name = module, name


class Applied:
    """A call in `dumps` of a global that need not exist, with state for BUILD."""

    def __init__(self, module: str, name: str, *args, state=None):
        self.function, self.args, self.state = Name(module, name), args, state


class _Pickler(pickle._Pickler):
    def persistent_id(self, value):
        return value.identity if isinstance(value, StorageReference) else None

    def save(self, value, save_persistent_id=True):
        if isinstance(value, Name):
            self.write(f"c{value.module}\n{value.name}\n".encode())
        elif isinstance(value, Applied):
            self.save(value.function)
            self.save(value.args)
            self.write(b"R")
            if value.state is not None:
                self.save(value.state)
                self.write(b"b")
        else:
            super().save(value, save_persistent_id)


def dumps(value: object, protocol: int = 2) -> bytes:
    """A pickle that may mention globals by name, calls of them, and torch storages."""
    buffer = io.BytesIO()
    _Pickler(buffer, protocol).dump(value)
    return buffer.getvalue()


def tensor(storage, shape=(2,), strides=(1,), offset=0, *rest) -> Applied:
    """A torch tensor of `storage` in `dumps`."""
    args = (storage, offset, shape, strides, False, {}, *rest)
    return Applied("torch._utils", "_rebuild_tensor_v2", *args)


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with any header, and any stated header length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def npy(array: np.ndarray) -> bytes:
    """An npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def npy_with_header(text: str, data: bytes = b"") -> bytes:
    """An npy file with any header."""
    raw = text.encode("latin-1")
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(raw)) + raw + data
