"""`torch.save(model)`: a module of any class gives its state_dict, and converts as that does."""

import json

import numpy as np
import pytest

from checkpoints_convert.convert import convert_file
from checkpoints_convert.readers import is_module, read
from fpjax.models.checkpoint import load_leaves
from tests.checkpoints_convert.foreign import fixture_arrays
from tests.checkpoints_convert.readers.test_round_trips import FORMATS, assert_same

torch = pytest.importorskip("torch", reason="torch writes the modules")


class Stranger(torch.nn.Module):
    """A class that no converter knows; its name in the pickle is never looked up."""


def module_of(state: dict[str, np.ndarray]) -> torch.nn.Module:
    """A tree of modules whose state_dict is `state`."""
    root = Stranger()
    for name, value in state.items():
        *path, last = name.split(".")
        node = root
        for part in path:
            if part not in node._modules:
                node.add_module(part, Stranger())
            node = node._modules[part]
        node.register_parameter(last, torch.nn.Parameter(torch.from_numpy(np.array(value)), False))
    return root


@pytest.mark.parametrize("kind", FORMATS)
def test_whole_modules_give_their_state_dict(tmp_path, kind):
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    module.add_module("shared", module[0])
    module.register_buffer("scratch", torch.ones(9), persistent=False)
    module.register_buffer("unset", None)
    saved = {"g_ema": torch.nn.DataParallel(module), "args": {"lr": 0.1}}
    for name, value in (("m", module), ("d", saved)):
        torch.save(value, tmp_path / name, _use_new_zipfile_serialization=FORMATS[kind])
    alone, inside = read(tmp_path / "m"), read(tmp_path / "d")
    assert (alone.tree.module, alone.tree.name) == ("torch.nn.modules.container", "Sequential")
    assert is_module(alone.tree) and is_module(inside.tree["g_ema"]) and not is_module(inside.tree)
    expected = module.state_dict()
    assert list(alone.tensors()) == list(inside.tensors("g_ema.module")) == list(expected)
    for name, value in expected.items():
        assert_same(alone.tensors()[name], value)
        assert_same(inside.tensors()[f"g_ema.module.{name}"], value)


def test_a_module_inside_itself_is_refused_or_ends(tmp_path):
    module = torch.nn.Linear(2, 3)
    module._modules["again"] = module
    torch.save(module, tmp_path / "m")
    assert set(read(tmp_path / "m").tensors()) == {"weight", "bias"}


@pytest.mark.parametrize("wrap", [lambda module: module, lambda module: {"g": module}])
def test_a_whole_module_converts_as_its_state_dict_does(tmp_path, wrap):
    state, _ = fixture_arrays("compvis_kl_f4_tiny_random.npz")
    module = module_of(state)
    assert set(module.state_dict()) == set(state)
    torch.save(module.state_dict(), tmp_path / "plain.ckpt")
    torch.save(wrap(module), tmp_path / "whole.ckpt")
    leaves = {}
    for name in ("plain", "whole"):
        out = tmp_path / name
        convert_file(tmp_path / f"{name}.ckpt", out)
        leaves[name] = {key: np.asarray(leaf) for key, leaf in load_leaves(out).items()}
        assert json.loads((out / "config.json").read_text())
    assert leaves["plain"].keys() == leaves["whole"].keys()
    for key, value in leaves["plain"].items():
        np.testing.assert_array_equal(leaves["whole"][key], value)


def test_unknown_values_among_parameters_are_no_tensors(tmp_path):
    module = Stranger()
    module.weight = torch.nn.Parameter(torch.ones(2))
    module._parameters["odd"] = "text"
    module._buffers["sparse"] = torch.eye(2)
    torch.save(module, tmp_path / "m")
    assert set(read(tmp_path / "m").tensors()) == {"weight", "sparse"}
