"""Files as other programs write them, with objects of classes that fpjax does not have."""

import pickle
import re
import sys
import types
from pathlib import Path

import numpy as np

from checkpoints_convert.detect import recognise
from checkpoints_convert.request import Request
from checkpoints_convert.table import flatten, select
from tests.reference import fixture


def fixture_arrays(name: str) -> tuple[dict, dict]:
    """(state dict, all arrays) of a reference file."""
    arrays = dict(np.load(fixture(name), allow_pickle=False))
    return select(arrays, "sd/"), arrays


def nhwc(images):
    return np.transpose(images, (0, 2, 3, 1))


def nested(flat: dict) -> dict:
    """Dotted names as dicts in dicts."""
    tree: dict = {}
    for name, value in flat.items():
        *parents, last = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree


def inject(monkeypatch, name: str, **members) -> types.ModuleType:
    """Make `name` importable with these members, whose pickles then name it."""
    module = types.ModuleType(name)
    for key, member in members.items():
        member.__module__, member.__qualname__, member.__name__ = name, key, key
        setattr(module, key, member)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def write_persistent(monkeypatch, path: Path, networks: dict, kwargs: dict, attributes) -> None:
    """A pickle as stylegan2-ada-pytorch writes it: each module a call of a reconstructor.

    Args:
        networks: key of the pickle -> (class name, state dict).
        kwargs: constructor arguments of each generator.
        attributes: (dotted name of a module) -> what its `__dict__` holds besides.
    """
    import torch

    def _reconstruct_persistent_obj(meta):
        raise AssertionError("the pickle was executed")

    inject(monkeypatch, "torch_utils")
    persistence = inject(
        monkeypatch,
        "torch_utils.persistence",
        _reconstruct_persistent_obj=_reconstruct_persistent_obj,
    )

    class Module(torch.nn.Module):
        def __reduce__(self):
            state = dict(self.__dict__)
            name = state.pop("foreign_name")
            meta = {"type": "class", "version": 6, "module_src": "import os\n", "class_name": name}
            return persistence._reconstruct_persistent_obj, ({**meta, "state": state},), None

    def build(name, path, tree):
        module = Module()
        module.foreign_name = name
        module._init_args, module._init_kwargs = (), {} if path else kwargs
        for key, value in attributes(path).items():
            setattr(module, key, value)
        for key, value in tree.items():
            where = f"{path}.{key}" if path else key
            if isinstance(value, dict):
                module.add_module(key, build("Layer", where, value))
            elif key in ("weight", "bias", "const", "noise_strength"):
                module.register_parameter(key, torch.nn.Parameter(torch.tensor(value)))
            else:
                module.register_buffer(key, torch.tensor(value))
        return module

    snapshot = {key: build(name, "", nested(state)) for key, (name, state) in networks.items()}
    path.write_bytes(pickle.dumps({**snapshot, "augment_pipe": None, "training_set_kwargs": {}}))


def write_tensorflow(monkeypatch, path: Path, networks, protocol: int = 4) -> None:
    """A pickle as dnnlib writes it: `networks` are nested (name, kwargs, variables, components)."""

    class EasyDict(dict):
        pass

    class Network:
        pass

    inject(monkeypatch, "dnnlib")
    easy_dict = inject(monkeypatch, "dnnlib.util", EasyDict=EasyDict).EasyDict
    inject(monkeypatch, "dnnlib.tflib")
    cls = inject(monkeypatch, "dnnlib.tflib.network", Network=Network).Network

    def build(name, kwargs, variables, components):
        network = cls()
        network.version, network.name = 4, name
        network.static_kwargs = easy_dict(kwargs)
        network.components = easy_dict({k: build(*v) for k, v in components.items()})
        network.build_module_src, network.build_func_name = "import os\n", "G_main"
        network.variables = list(variables.items())
        return network

    path.write_bytes(pickle.dumps(tuple(build(*network) for network in networks), protocol))


def to_tensorflow(state: dict) -> dict:
    """A PyTorch StyleGAN2 state dict as the variables of the TensorFlow program.

    From the definitions of both: TensorFlow multiplies x @ W where PyTorch has x @ W.T, and stores
    kernels as (height, width, in, out); an upsampling layer there turns its kernel before the
    transposed convolution, which PyTorch's applies as it is; a style there is
    `w @ mod_weight + mod_bias + 1`, where PyTorch's bias starts at one.
    """
    variables = {"lod": np.float32(0), "dlatent_avg": state["mapping.w_avg"]}
    for name, value in state.items():
        parts = name.split(".")
        if parts[0] == "mapping" and parts[1].startswith("fc"):
            value = value.T if parts[2] == "weight" else value
            variables[f"mapping/Dense{parts[1][2:]}/{parts[2]}"] = value
        if parts[0] != "synthesis" or parts[-1] == "resample_filter":
            continue
        side, layer = int(parts[1][1:]), parts[2]
        start = f"synthesis/{side}x{side}"
        if layer == "const":
            variables[f"{start}/Const/const"] = value[None]
            continue
        tf_layer = {"conv0": "Conv0_up", "conv1": "Conv1", "torgb": "ToRGB"}[layer]
        tf_layer = "Conv" if (side, layer) == (4, "conv1") else tf_layer
        kind = ".".join(parts[3:])
        if kind == "noise_const":
            index = 2 * int(np.log2(side)) - (5 if layer == "conv0" else 4)
            variables[f"synthesis/noise{index}"] = value[None, None]
            continue
        if kind == "weight":
            value = np.transpose(value, (2, 3, 1, 0))
            value = value[::-1, ::-1] if layer == "conv0" else value
        elif kind == "affine.weight":
            kind, value = "mod_weight", value.T
        elif kind == "affine.bias":
            kind, value = "mod_bias", value - np.float32(1)
        variables[f"{start}/{tf_layer}/{kind}"] = value
    return {name: np.ascontiguousarray(value) for name, value in variables.items()}


def converted(path, **request) -> dict:
    """Parameters by path that a file's conversion gives, those of all its parts together."""
    source = recognise(Path(path), Request(**request))
    found = {}
    for part in source.parts:
        start = f"{part.folder}/" if part.folder else ""
        for name, value in flatten(part.plan.apply()).items():
            found[start + name] = value
    return found


def same(left: dict, right: dict) -> None:
    """Equal parameters give equal images, bit by bit: nothing needs to be run."""
    assert left.keys() == right.keys()
    for name, value in left.items():
        np.testing.assert_array_equal(value, right[name], err_msg=name)


def to_basicsr(state: dict) -> dict:
    """A state dict of rosinality's port in the names of BasicSR."""
    renamed = {}
    for name, value in state.items():
        if name.endswith(".kernel"):
            continue  # BasicSR keeps its filters outside the state dict
        name = re.sub(r"^style\.", "style_mlp.", name)
        name = re.sub(r"^input\.input$", "constant_input.weight", name)
        name = re.sub(r"^(conv1|convs\.\d+)\.noise\.weight$", r"\1.weight", name)
        name = re.sub(
            r"^(conv1|convs\.\d+|to_rgb1|to_rgbs\.\d+)\.conv\.", r"\1.modulated_conv.", name
        )
        name = re.sub(r"^(conv1|convs)\b", r"style_\1", name)
        renamed[name.replace("noises.noise_", "noises.noise")] = value
    return renamed


def to_genforce(state: dict) -> dict:
    """A state dict of NVIDIA's PyTorch program in the names and conventions of GenForce.

    GenForce turns an upsampling kernel before the transposed convolution, adds 1 to a style when it
    runs, and numbers layers in one row.
    """
    renamed = {"truncation.w_avg": state["mapping.w_avg"]}
    for name, value in state.items():
        parts = name.split(".")
        if parts[0] == "mapping" and parts[1].startswith("fc"):
            renamed[f"mapping.dense{parts[1][2:]}.{parts[2]}"] = value
        if parts[0] != "synthesis" or parts[-1] == "resample_filter":
            continue
        index, layer, kind = int(np.log2(int(parts[1][1:]))) - 2, parts[2], ".".join(parts[3:])
        if layer == "const":
            renamed["synthesis.early_layer.const"] = value[None]
            continue
        number = {"conv0": 2 * index - 1, "conv1": 2 * index, "torgb": index}[layer]
        start = f"synthesis.{'output' if layer == 'torgb' else 'layer'}{number}"
        if kind == "weight" and layer == "conv0":
            value = value[:, :, ::-1, ::-1]
        if kind == "affine.bias":
            value = value - np.float32(1)
        if kind == "noise_const":
            value = value[None, None]
        kind = kind.replace("affine", "style").replace("noise_const", "noise")
        renamed[f"{start}.{kind}"] = np.ascontiguousarray(value)
    taps = np.outer([1, 3, 3, 1], [1, 3, 3, 1]).astype("f4") / 16
    renamed["synthesis.upsample.kernel"] = taps[None, None]
    renamed["synthesis.layer1.filter.kernel"] = taps[None, None]
    return renamed
