"""Damage that leaves a zip's structure alone is found by its checksums."""

import contextlib
import shlex
import zipfile

import numpy as np
import pytest

from checkpoints_convert.readers import CheckpointError, read
from tests.checkpoints_convert.readers.forge import (
    Applied,
    StorageReference,
    dumps,
    npy,
    tensor,
    torch_zip,
)
from tests.checkpoints_convert.readers.test_damaged_files import (
    FLOATS,
    GOOD_ZIP,
    directory_of,
    load,
    refused,
    zip_of,
)

__all__ = ["load"]


def zips_of_values() -> dict[str, bytes]:
    values = np.arange(1 << 18, dtype="<f4")  # a storage of 1 MiB is mapped and not read
    state = dumps({"a": tensor(StorageReference("FloatStorage", "0", 1 << 18), (1 << 18,))})
    big = {"0": values.tobytes()}
    inner = torch_zip(dumps({"a": tensor(StorageReference("FloatStorage", "0", 4))}), {"0": FLOATS})
    return {
        "torch zip": torch_zip(state, big),
        "deflated torch zip": torch_zip(state, big, compression=zipfile.ZIP_DEFLATED),
        "npz": zip_of(("a.npy", npy(values))),
        "npz deflated": zip_of(("a.npy", npy(values)), method=zipfile.ZIP_DEFLATED),
        "npz in npz order": zip_of(("a.npy", npy(values[:10])), ("b.npy", npy(values[:7]))),
        "nested zip": torch_zip(dumps(Applied("torch.storage", "_load_from_bytes", inner))),
    }


@pytest.mark.parametrize("name", zips_of_values())
def test_one_flipped_bit_in_what_is_read_of_a_zip_is_refused(load, name):
    good = zips_of_values()[name]
    checkpoint = load(good)
    assert checkpoint.checksums
    assert all(lazy.numpy() is not None for lazy in checkpoint.tensors().values())
    rng = np.random.default_rng(0)
    unused = good.find(b"model/version")  # an entry that holds nothing of the weights
    end = directory_of(good) if unused < 0 else unused - 30
    for position in rng.integers(0, end, 40).tolist():
        data = bytearray(good)
        data[position] ^= 1 << int(rng.integers(8))
        # What a header says that two places hold or nobody asks for (dates, versions) may differ.
        with contextlib.suppress(CheckpointError):
            found = load(bytes(data)).tensors()
            for key, lazy in checkpoint.tensors().items():
                assert found[key].numpy().tobytes() == lazy.numpy().tobytes()


@pytest.mark.parametrize("name", ["torch zip", "npz"])
def test_a_flipped_bit_of_a_stored_weight_is_named_as_damage(load, name):
    good = zips_of_values()[name]
    position = good.index(np.arange(1000, 1004, dtype="<f4").tobytes())
    data = good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :]
    tensors = load(data).tensors()
    for _ in range(2):  # a first refusal must not pass for a check
        with pytest.raises(CheckpointError, match=r"with another CRC-32.*get the file again"):
            tensors["a"].numpy()


def test_a_flipped_bit_of_the_pickle_is_refused_though_it_would_parse(load):
    name = b"X\x01\x00\x00\x00"
    assert GOOD_ZIP.count(name + b"a") == 1
    refused(load, GOOD_ZIP.replace(name + b"a", name + b"c"), "another CRC-32")


def test_archives_without_checksums_are_read_and_say_so(load, tmp_path):
    torch = pytest.importorskip("torch")
    before = torch.serialization.get_crc32_options()
    try:
        torch.serialization.set_crc32_options(False)
        torch.save({"a": torch.arange(4.0)}, tmp_path / "t")
    finally:
        torch.serialization.set_crc32_options(before)
    checkpoint = read(tmp_path / "t")
    assert not checkpoint.checksums
    np.testing.assert_array_equal(checkpoint.tensors()["a"].numpy(), range(4))
    assert not load(npy(np.ones(2))).checksums


# Unpacked


@pytest.mark.parametrize("inside", [False, True])
def test_an_unpacked_torch_archive_is_to_be_zipped_again(tmp_path, inside):
    (tmp_path / "zipped").write_bytes(GOOD_ZIP)
    folder = tmp_path / "it's here" if inside else tmp_path
    with zipfile.ZipFile(tmp_path / "zipped") as archive:
        archive.extractall(folder)
    for path in (folder / "model", folder / "model" / "data.pkl", *([folder] if inside else [])):
        with pytest.raises(CheckpointError, match=r"unpacked.*zip it again") as caught:
            read(path)
        command = str(caught.value).partition("zip it again: ")[2]
        assert command == f"cd {shlex.quote(str(folder))} && zip -0 -r model.pt model"
    again = zip_of(*((f"model/{n}", (folder / "model" / n).read_bytes()) for n in ("data.pkl",)))
    with pytest.raises(CheckpointError, match="without its entry"):
        (tmp_path / "part").write_bytes(again)
        read(tmp_path / "part")
