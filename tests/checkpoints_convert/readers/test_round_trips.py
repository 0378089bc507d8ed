"""What torch, pickle, NumPy and safetensors write is read back equal, bit for bit."""

import hashlib
import io
import pickle
import zipfile
from collections import OrderedDict, defaultdict

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoints_convert.readers import (
    CheckpointError,
    LazyTensor,
    Limits,
    Opaque,
    find,
    nonfinite,
    read,
)
from tests.checkpoints_convert.readers.forge import (
    StorageReference,
    dumps,
    npy,
    tensor,
    torch_stream,
    torch_zip,
)
from tests.reference import fixture

torch = pytest.importorskip("torch", reason="torch writes the files that are read back")

FLOAT8 = ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"]
FLOATS = ["float16", "float32", "float64", "complex64", "complex128"]
WIDE = [*FLOATS, "bool", "uint8", "int8", "int16", "int32", "int64"]
UNSIGNED = ["uint16", "uint32", "uint64"]
DTYPES = WIDE + UNSIGNED + FLOAT8 + ["bfloat16"]
FORMATS = {"torch-zip": True, "torch-legacy": False}

many = settings(max_examples=60, deadline=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("round_trips")


def bits(tensor) -> bytes:
    flat = torch.empty(tensor.numel(), dtype=tensor.dtype)
    flat.copy_(tensor.detach().reshape(-1))
    return flat.view(torch.uint8).numpy().tobytes()


def assert_same(lazy: LazyTensor, tensor) -> None:
    array = lazy.numpy()
    assert array.shape == lazy.shape == tuple(tensor.shape)
    assert str(array.dtype) == str(lazy.dtype) == str(tensor.dtype).removeprefix("torch.")
    assert array.tobytes() == bits(tensor)
    assert not array.flags.writeable


def random_tensor(draw, dtype: str):
    """A tensor of random bits, at times transposed, strided, offset, expanded or 0-d."""
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    itemsize = getattr(torch, dtype).itemsize
    count = int(np.prod(shape)) * itemsize
    raw = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 256, count, np.uint8)
    raw = raw & 1 if dtype == "bool" else raw
    flat = torch.from_numpy(raw).view(getattr(torch, dtype)) if count else torch.empty(0)
    tensor = flat.to(getattr(torch, dtype)).reshape(shape)
    if tensor.ndim >= 2 and draw(st.booleans()):
        tensor = tensor.transpose(0, 1)
    if tensor.ndim and draw(st.booleans()):
        tensor = tensor[draw(st.integers(0, 2)) :: draw(st.integers(1, 3))]
    if draw(st.integers(0, 4)) == 0:
        tensor = tensor.unsqueeze(0).expand(3, *tensor.shape)
    return tensor


@st.composite
def state_dicts(draw, dtypes=DTYPES):
    names = draw(
        st.lists(st.text(st.characters(codec="utf-8"), max_size=8), max_size=5, unique=True)
    )
    names = [name.replace(".", "_") or "_" for name in names]
    return {name: random_tensor(draw, draw(st.sampled_from(dtypes))) for name in names}


@many
@given(state=state_dicts(), kind=st.sampled_from(sorted(FORMATS)))
def test_torch_state_dicts(folder, state, kind):
    path = folder / "state.pt"
    torch.save(state, path, _use_new_zipfile_serialization=FORMATS[kind])
    checkpoint = read(path)
    assert checkpoint.format == kind
    assert list(checkpoint.tree) == list(state)
    for name in state:
        assert_same(checkpoint.tree[name], state[name])


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_each_dtype_in_each_torch_format(tmp_path, kind, dtype):
    tensor = torch.arange(16 * 16, dtype=torch.uint8).view(getattr(torch, dtype))
    tensor = tensor != 0 if dtype == "bool" else tensor
    torch.save(tensor, tmp_path / "t", _use_new_zipfile_serialization=FORMATS[kind])
    assert_same(read(tmp_path / "t").tensors()[""], tensor)


@pytest.mark.parametrize("kind", FORMATS)
def test_shared_storages_stay_shared_and_parameters_are_tensors(tmp_path, kind):
    base = torch.arange(24.0)
    state = OrderedDict(
        head=base[2:8].reshape(2, 3),
        tail=base[8:].reshape(4, 4).T,
        parameter=torch.nn.Parameter(base),
        nested=[{"x": base[5]}, (base[:0],)],
    )
    torch.save(state, tmp_path / "t", _use_new_zipfile_serialization=FORMATS[kind])
    tensors = read(tmp_path / "t").tensors()
    assert list(tensors) == ["head", "tail", "parameter", "nested.0.x", "nested.1.0"]
    assert len({id(tensor.storage) for tensor in tensors.values()}) == 1
    for name in ("head", "tail", "parameter"):
        assert_same(tensors[name], state[name])
    assert_same(tensors["nested.0.x"], base[5])


def test_tensors_with_attributes_and_numpy_arrays_in_torch_files(tmp_path):
    tagged = torch.ones(2)
    tagged.tag = "x"
    state = {"tagged": tagged, "array": np.arange(3), "scalar": np.float32(1.5), "step": 7}
    torch.save(state, tmp_path / "t")
    tree = read(tmp_path / "t").tree
    assert_same(tree["tagged"], tagged)
    np.testing.assert_array_equal(tree["array"].numpy(), state["array"])
    assert tree["scalar"] == 1.5 and tree["step"] == 7


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_archives_can_be_searched_for_tensors(tmp_path):
    module = torch.jit.script(torch.nn.Linear(2, 3))
    torch.jit.save(module, str(tmp_path / "m.pt"))
    found = dict(find(read(tmp_path / "m.pt").tree, lambda node: type(node) is LazyTensor))
    assert {path.rpartition(".")[2] for path in found} == {"weight", "bias"}


@pytest.mark.parametrize("dtype", ["float32", "complex64", "bfloat16", "int16", "uint8", "bool"])
def test_big_endian_torch_zips(tmp_path, dtype):
    tensor = torch.arange(48, dtype=torch.uint8).view(getattr(torch, dtype))
    tensor = tensor != 0 if dtype == "bool" else tensor
    width = tensor.element_size() // 2 if dtype == "complex64" else tensor.element_size()
    path = tmp_path / "t"
    torch.save(tensor, path)
    big = io.BytesIO()
    with zipfile.ZipFile(path) as little, zipfile.ZipFile(big, "w") as archive:
        for name in little.namelist():
            content = little.read(name)
            if name.endswith("byteorder"):
                content = b"big"
            elif "/data/" in name:
                content = np.frombuffer(content, f"u{width}").byteswap().tobytes()
            archive.writestr(name, content)
    path.write_bytes(big.getvalue())
    assert_same(read(path).tensors()[""], tensor)


def test_aligned_and_deflated_torch_zips(tmp_path):
    state = {"a": torch.arange(10.0), "b": torch.arange(10.0)[3:]}
    torch.save(state, tmp_path / "t")
    deflated = io.BytesIO()
    with (
        zipfile.ZipFile(tmp_path / "t") as source,
        zipfile.ZipFile(deflated, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name in source.namelist():
            archive.writestr(name, source.read(name))
    (tmp_path / "d").write_bytes(deflated.getvalue())
    for name in ("t", "d"):
        assert_same(read(tmp_path / name).tree["b"], state["b"])


def test_large_tensors_are_mapped_and_not_read(tmp_path):
    torch.save({"big": torch.zeros(1 << 20)}, tmp_path / "t")
    array = read(tmp_path / "t").tree["big"].numpy()
    base = array
    while getattr(base, "base", None) is not None and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)


def test_the_views_of_storages_that_torch_before_0_4_wrote(tmp_path):
    view = StorageReference("FloatStorage", "7", 6, ("8", 2, 3))
    values = np.arange(6, dtype="<f4")
    (tmp_path / "t").write_bytes(torch_stream(dumps(tensor(view, (3,))), {"7": values.tobytes()}))
    np.testing.assert_array_equal(read(tmp_path / "t").tree.numpy(), values[2:5])


# Pickles


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8"), max_size=20)
    | st.binary(max_size=20)
    | st.complex_numbers(allow_nan=False)
    | st.frozensets(st.integers(-(1 << 63), 1 << 63), max_size=3)  # longer ones are refused
    | st.sets(st.text(st.characters(codec="utf-8"), max_size=3), max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=3), inner, max_size=4)
    ),
    max_leaves=20,
)


@many
@given(value=plain, protocol=st.integers(0, 5))
def test_plain_data_equals_what_pickle_gives(folder, value, protocol):
    path = folder / "plain.pkl"
    path.write_bytes(pickle.dumps(value, protocol))
    assert read(path).tree == value


@pytest.mark.parametrize("protocol", range(6))
def test_containers_and_numpy_in_every_protocol(tmp_path, protocol):
    arrays = {
        "c": np.arange(6.0).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6, dtype="i2").reshape(2, 3)),
        "permuted": np.arange(24).reshape(2, 3, 4).transpose(1, 0, 2).copy(order="K"),
        "big": np.arange(5, dtype=">f8"),
        "bf16": np.arange(4).astype(ml_dtypes.bfloat16),
        "scalar": np.array(2.5),
        "empty": np.zeros((0, 3)),
        "long": np.arange(5000),
    }
    value = [
        OrderedDict(a=1),
        defaultdict(list, b=[2]),
        bytearray(b"bytes"),
        {1, 2},
        frozenset([3]),
        np.int64(4),
        np.float32(0.5),
        np.bool_(True),
        np.complex64(1 + 2j),
        arrays,
        ml_dtypes.bfloat16(1.5),
        np.array([2.5], ">f8")[0],
    ]
    (tmp_path / "p").write_bytes(pickle.dumps(value, protocol))
    tree = read(tmp_path / "p").tree
    assert tree[:9] == [{"a": 1}, {"b": [2]}, b"bytes", {1, 2}, {3}, 4, 0.5, True, 1 + 2j]
    assert tree[10:] == [1.5, 2.5]
    for name, array in arrays.items():
        found = tree[9][name].numpy()
        assert found.dtype == array.dtype.newbyteorder("=") and found.shape == array.shape
        np.testing.assert_array_equal(found.astype("f8"), array.astype("f8"))


def test_python_2_strings_are_text_if_ascii_and_bytes_otherwise(tmp_path):
    (tmp_path / "p").write_bytes(b"(S'a\\x41\\n\\101\\''\nU\x02\xe9\xe8T\x01\x00\x00\x00bl.")
    assert read(tmp_path / "p").tree == ["aA\nA'", b"\xe9\xe8", "b"]


def test_arrays_of_objects_are_listed_but_have_no_values(tmp_path):
    (tmp_path / "p").write_bytes(pickle.dumps({"o": np.array([{}, None]), "f": np.ones(2)}))
    checkpoint = read(tmp_path / "p")
    with pytest.raises(CheckpointError, match="objects"):
        checkpoint.tree["o"].numpy()
    with pytest.raises(CheckpointError, match="'o'"):
        checkpoint.tensors()


# Tensors of other kinds


def unsupported_tensors():
    complex_view = torch.ones(2, dtype=torch.complex64).conj()
    return {
        "quantised": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        "sparse": torch.eye(2).to_sparse(),
        "csr": torch.eye(2).to_sparse_csr(),
        "conjugated": complex_view,
        "meta": torch.ones(2, device="meta"),
        "complex32": torch.ones(2, dtype=torch.complex32),
    }


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.parametrize("kind", ["quantised", "sparse", "csr", "conjugated", "meta", "complex32"])
def test_tensors_of_other_kinds_are_named_with_advice(tmp_path, kind):
    torch.save({"x": {"odd": unsupported_tensors()[kind]}, "y": torch.ones(2)}, tmp_path / "t")
    checkpoint = read(tmp_path / "t")
    assert type(checkpoint.tree["x"]["odd"]) is Opaque
    with pytest.raises(CheckpointError, match=r"x\.odd"):
        checkpoint.tensors()
    checkpoint = read(tmp_path / "t")
    assert isinstance(checkpoint.tree["y"], LazyTensor)


# safetensors, npz


@many
@given(
    state=state_dicts([name for name in DTYPES if name != "complex128"]),  # it has no such type
    metadata=st.dictionaries(st.text("ab"), st.text("cd"), max_size=2),
)
def test_safetensors(folder, state, metadata):
    writer = pytest.importorskip("safetensors.torch")
    state = {name: tensor.clone().contiguous() for name, tensor in state.items()}
    path = folder / "s.bin"
    writer.save_file(state, path, metadata or None)
    checkpoint = read(path)
    assert checkpoint.format == "safetensors" and checkpoint.metadata == metadata
    assert set(checkpoint.tree) == set(state)
    for name in state:
        assert_same(checkpoint.tree[name], state[name])


@many
@given(data=st.data(), compressed=st.booleans())
def test_npz_and_npy(folder, data, compressed):
    arrays = {}
    for name in data.draw(st.lists(st.text("abc", min_size=1), max_size=4, unique=True)):
        dtype = data.draw(st.sampled_from(WIDE + UNSIGNED))
        array = random_tensor(data.draw, dtype).clone().contiguous().numpy()
        array = np.asfortranarray(array) if data.draw(st.booleans()) else array
        arrays[name] = array.astype(array.dtype.newbyteorder(data.draw(st.sampled_from("<>"))))
    path = folder / "a.npz"
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    if not arrays:
        with pytest.raises(CheckpointError, match="empty zip"):
            read(path)
        return
    checkpoint = read(path)
    assert checkpoint.format == "npz" and list(checkpoint.tree) == list(arrays)
    for name, array in arrays.items():
        found = checkpoint.tree[name].numpy()
        assert found.dtype == array.dtype.newbyteorder("=")
        assert found.tobytes() == array.astype(found.dtype).tobytes()
        path.with_suffix(".npy").write_bytes(npy(array))
        alone = read(path.with_suffix(".npy"))
        assert alone.format == "npy" and alone.tree.numpy().tobytes() == found.tobytes()


def test_npz_with_text_and_objects_keeps_its_numbers(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.ones(2), text=np.array(["a"]), rec=np.zeros(2, "i4,f4"))
    tree = read(tmp_path / "a.npz").tree
    assert tree["x"].numpy().tolist() == [1, 1]
    assert type(tree["text"]) is type(tree["rec"]) is Opaque
    with pytest.raises(CheckpointError, match="text"):
        read(tmp_path / "a.npz").tensors()


# Listing


def test_prefixes_select_and_strip(tmp_path):
    torch.save(
        {"g_ema": {"a.b": torch.ones(1), "c": [torch.ones(2)]}, "g": torch.ones(3)}, tmp_path / "t"
    )
    checkpoint = read(tmp_path / "t")
    assert list(checkpoint.tensors()) == ["g_ema.a.b", "g_ema.c.0", "g"]
    assert list(checkpoint.tensors("g_ema")) == list(checkpoint.tensors("g_ema.")) == ["a.b", "c.0"]
    with pytest.raises(CheckpointError, match="'g_ema', 'g'"):
        checkpoint.tensors("generator")


def test_two_tensors_with_one_name_are_refused(tmp_path):
    torch.save({"a.b": torch.ones(1), "a": {"b": torch.ones(1)}}, tmp_path / "t")
    with pytest.raises(CheckpointError, match=r"a\.b"):
        read(tmp_path / "t").tensors()


def test_nan_and_infinity_are_reported_by_name(tmp_path):
    state = {
        "fine": torch.ones(3),
        "nan": torch.tensor([1.0, float("nan")]),
        "infinite": torch.tensor([[float("-inf")]], dtype=torch.bfloat16),
        "complex": torch.tensor([complex(0, float("inf"))]),
        "float8": torch.tensor([float("nan")]).to(torch.float8_e4m3fn),
        "scales": torch.tensor([float("nan")]).to(torch.float8_e8m0fnu),
        "integers": torch.ones(2, dtype=torch.int32),
        "none": torch.ones(0),
    }
    torch.save(state, tmp_path / "t")
    names = nonfinite(read(tmp_path / "t").tensors())
    assert names == ["nan", "infinite", "complex", "float8", "scales"]


def test_a_file_that_changed_since_it_was_read_is_refused(tmp_path):
    torch.save({"a": torch.ones(3)}, tmp_path / "t")
    checkpoint = read(tmp_path / "t")
    torch.save({"a": torch.zeros(4)}, tmp_path / "t")
    for access in (checkpoint.sha256, checkpoint.tensors()["a"].numpy):
        with pytest.raises(CheckpointError, match="changed"):
            access()


def test_sha256_is_the_files(tmp_path):
    (tmp_path / "p").write_bytes(pickle.dumps({"a": 1}))
    assert (
        read(tmp_path / "p").sha256() == hashlib.sha256((tmp_path / "p").read_bytes()).hexdigest()
    )


@pytest.mark.parametrize("name", ["rosinality_sg2_r32_random.pt", "taef2_decoder.pth"])
def test_real_files_equal_what_torch_loads(name):
    path = fixture(name)
    state = torch.load(path, weights_only=True)
    state = state.get("g_ema", state)
    tensors = read(path).tensors("g_ema" if "rosinality" in name else "")
    assert list(tensors) == list(state)
    for key in state:
        assert_same(tensors[key], state[key])


def test_limits_on_tensors_hold(tmp_path):
    torch.save({"a": torch.ones(100), "b": torch.ones(1).expand(1 << 20)}, tmp_path / "t")
    with pytest.raises(CheckpointError, match="more tensors than its size allows"):
        read(tmp_path / "t", limits=Limits(base_bytes=1 << 20))
    assert read(tmp_path / "t").tensors()["b"].numpy().sum() == 1 << 20
    (tmp_path / "z").write_bytes(torch_zip(b"\x80\x02}."))
    with pytest.raises(CheckpointError, match="objects"):
        read(tmp_path / "z", limits=Limits(objects=1))
