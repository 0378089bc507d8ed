"""NVIDIA's pickles: persistent PyTorch objects and TensorFlow networks, from stand-in classes."""

import pickle
import sys
import types

import numpy as np
import pytest

from checkpoints_convert.readers import (
    CheckpointError,
    LazyTensor,
    Limits,
    Opaque,
    find,
    is_persistent,
    is_tf_network,
    persistent_state_dict,
    read,
    tf_network,
)

torch = pytest.importorskip("torch", reason="torch writes the modules that are read back")


def inject(monkeypatch, name: str, **members) -> types.ModuleType:
    """Make `name` importable with these members, whose pickles then name it."""
    module = types.ModuleType(name)
    for key, member in members.items():
        member.__module__, member.__qualname__, member.__name__ = name, key, key
        setattr(module, key, member)
    monkeypatch.setitem(sys.modules, name, module)
    return module


@pytest.fixture
def dnnlib(monkeypatch):
    class EasyDict(dict):
        def __getattr__(self, name):
            try:
                return self[name]
            except KeyError:
                raise AttributeError(name) from None

    class Network:
        def __getstate__(self):
            return {**self.__dict__}

    inject(monkeypatch, "dnnlib")
    inject(monkeypatch, "dnnlib.util", EasyDict=EasyDict)
    inject(monkeypatch, "dnnlib.tflib")
    return inject(monkeypatch, "dnnlib.tflib.network", Network=Network), EasyDict


@pytest.fixture
def persistent(monkeypatch, tmp_path):
    """A class decorator whose objects pickle as torch_utils.persistence pickles them."""

    def _reconstruct_persistent_obj(meta):
        (tmp_path / "canary").touch()

    inject(monkeypatch, "torch_utils")
    module = inject(
        monkeypatch,
        "torch_utils.persistence",
        _reconstruct_persistent_obj=_reconstruct_persistent_obj,
    )

    def decorate(cls):
        class Persistent(cls):
            def __init__(self, *args, **kwargs):
                super().__init__(*args, **kwargs)
                self._init_args, self._init_kwargs = args, kwargs

            def __reduce__(self):
                meta = {
                    "type": "class",
                    "version": 6,
                    "module_src": "import os\nos.system('true')\n",
                    "class_name": cls.__name__,
                    "state": super().__reduce__()[2],
                }
                return module._reconstruct_persistent_obj, (meta,), None

        return Persistent

    yield decorate
    assert not (tmp_path / "canary").exists(), "the reader called what the pickle names"


def networks(persistent, settings=()):
    @persistent
    class Layer(torch.nn.Module):
        def __init__(self, width):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(width, width))
            self.noise_strength = torch.nn.Parameter(torch.zeros([]))
            self.register_buffer("resample_filter", torch.ones(4, 4))
            self.register_buffer("scratch", torch.ones(1), persistent=False)
            self.register_parameter("bias", None)

    @persistent
    class Generator(torch.nn.Module):
        def __init__(self, z_dim, *, width=3, synthesis_kwargs=()):
            super().__init__()
            self.mapping = Layer(z_dim)
            self.blocks = torch.nn.ModuleList([Layer(width), torch.nn.Linear(2, 2)])
            self.register_buffer("w_avg", torch.randn(5))

    return Generator(4, width=3, synthesis_kwargs=settings)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_persistent_generators_give_their_state_dict(tmp_path, persistent, dnnlib, protocol):
    generator = networks(persistent, dnnlib[1](channel_base=16, inner=[dnnlib[1](x=1)]))
    snapshot = {"G_ema": generator, "training_set_kwargs": dnnlib[1](xflip=True)}
    (tmp_path / "n.pkl").write_bytes(pickle.dumps(snapshot, protocol))
    checkpoint = read(tmp_path / "n.pkl")
    assert checkpoint.format == "pickle"
    assert checkpoint.tree["training_set_kwargs"].entries == {"xflip": True}
    assert find(checkpoint.tree, is_persistent)[0] == ("G_ema", checkpoint.tree["G_ema"])

    name, args, kwargs, tensors = persistent_state_dict(checkpoint.tree["G_ema"])
    assert (name, args, kwargs["width"]) == ("Generator", (4,), 3)
    assert kwargs["synthesis_kwargs"] == {"channel_base": 16, "inner": [{"x": 1}]}
    state = generator.state_dict()
    assert set(tensors) == set(state)
    for key, expected in state.items():
        np.testing.assert_array_equal(tensors[key].numpy(), expected.numpy())


def test_nested_storages_in_the_zip_format_are_read_too(tmp_path, persistent, monkeypatch):
    import io

    def reduce(self):
        buffer = io.BytesIO()
        torch.save(self, buffer)
        return torch.storage._load_from_bytes, (buffer.getvalue(),)

    for cls in (torch.storage.TypedStorage, torch.storage.UntypedStorage):
        monkeypatch.setattr(cls, "__reduce__", reduce)
    generator = networks(persistent)
    (tmp_path / "n.pkl").write_bytes(pickle.dumps(generator))
    monkeypatch.undo()
    tensors = persistent_state_dict(read(tmp_path / "n.pkl").tree)[3]
    expected = generator.state_dict()["w_avg"].numpy()
    np.testing.assert_array_equal(tensors["w_avg"].numpy(), expected)


def test_other_objects_are_refused_with_advice(tmp_path):
    for value in (Opaque("a", "b"), {}, None, Opaque("torch_utils.persistence", "x", ({},))):
        with pytest.raises(CheckpointError, match="find"):
            persistent_state_dict(value)
        with pytest.raises(CheckpointError, match="find"):
            tf_network(value)


def test_modules_inside_themselves_are_refused_not_followed_for_ever():
    meta = {"type": "class", "class_name": "Loop", "state": {"_parameters": {}}}
    loop = Opaque("torch_utils.persistence", "_reconstruct_persistent_obj", (meta,))
    meta["state"]["_modules"] = {"again": loop}
    with pytest.raises(CheckpointError, match="depth"):
        persistent_state_dict(loop)
    meta["state"]["_modules"] = {"a": loop, "b": loop}
    with pytest.raises(CheckpointError, match=r"depth|objects"):
        persistent_state_dict(loop, limits=Limits(objects=10_000))


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_tensorflow_networks_give_their_variables(tmp_path, dnnlib, protocol):
    module, easy_dict = dnnlib

    def network(name, variables, components=None):
        made = module.Network()
        made.version, made.name = 4, name
        made.static_kwargs = easy_dict(num_channels=3, resolution=32)
        made.components = easy_dict(components or {})
        made.build_module_src, made.build_func_name = "import os", "G_main"
        made.variables = variables
        return made

    weights = {"4x4/Const/const": np.ones((1, 8, 4, 4), "f4"), "lod": np.float32(0)}
    listed = [(key, np.asarray(value)) for key, value in weights.items()]
    parts = {
        "synthesis": network("G_synthesis", listed),
        "mapping": network("G_mapping", [("Dense0/weight", np.arange(6000, dtype="f4"))]),
    }
    trio = (network("G", []), network("D", []), network("Gs", [("dlatent_avg", np.ones(4))], parts))
    (tmp_path / "n.pkl").write_bytes(pickle.dumps(trio, protocol))

    tree = read(tmp_path / "n.pkl").tree
    assert type(tree) is tuple and all(is_tf_network(node) for node in tree)
    found = tf_network(tree[2])
    assert found["name"] == "Gs"
    assert found["static_kwargs"] == {"num_channels": 3, "resolution": 32}
    assert list(found["variables"]) == ["dlatent_avg"]
    synthesis = found["components"]["synthesis"]["variables"]
    for key, value in weights.items():
        assert type(synthesis[key]) is LazyTensor
        np.testing.assert_array_equal(synthesis[key].numpy(), value)
    dense = found["components"]["mapping"]["variables"]["Dense0/weight"].numpy()
    np.testing.assert_array_equal(dense, np.arange(6000))
