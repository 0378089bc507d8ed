"""StyleGAN2 files that would convert into another network, each refused in a line that says why."""

import time

import numpy as np
import pytest

from checkpoints_convert.command import run
from checkpoints_convert.detect import recognise
from checkpoints_convert.publishers import nvidia as nvidia_names
from checkpoints_convert.publishers import nvidia_tf, rosinality
from checkpoints_convert.request import Request
from checkpoints_convert.table import ConversionError
from tests.checkpoints_convert.foreign import (
    converted,
    fixture_arrays,
    to_basicsr,
    to_genforce,
    to_tensorflow,
    write_persistent,
    write_tensorflow,
)

torch = pytest.importorskip("torch", reason="torch writes the files that are read back")


@pytest.fixture(scope="module")
def port():
    return fixture_arrays("rosinality_sg2_r32_random.npz")[0]


@pytest.fixture(scope="module")
def ada():
    return fixture_arrays("nvlabs_sg2ada_r32_random.npz")[0]


def saved(path, tree):
    def tensors(node):
        if isinstance(node, dict):
            return {name: tensors(value) for name, value in node.items()}
        return torch.tensor(np.array(node)) if isinstance(node, (np.ndarray, np.generic)) else node

    torch.save(tensors(tree), path)
    return path


def refused(path, **request):
    with pytest.raises(ConversionError) as error:
        recognise(path, Request(**request))
    message = str(error.value)
    assert "\n" not in message and len(message) < 600
    return message


def twice(weight):
    return np.concatenate([weight, weight], axis=1)


def test_a_conditional_generator_whose_embedding_an_exporter_dropped(
    tmp_path, monkeypatch, port, ada
):
    """The mapping network then reads z and the embedding, 2 w values."""
    wide = {**port, "style.1.weight": twice(port["style.1.weight"])}
    for name, state in (("r", wide), ("b", to_basicsr(wide))):
        message = refused(saved(tmp_path / f"{name}.pt", {"g_ema": state}))
        assert "reads 128 values, twice the 64 of w: a conditional generator" in message
    wide = {**ada, "mapping.fc0.weight": twice(ada["mapping.fc0.weight"])}
    assert "a conditional generator" in refused(saved(tmp_path / "n.pt", wide))
    assert "a conditional generator" in refused(saved(tmp_path / "g.pt", to_genforce(wide)))
    networks = [("Gs", {}, to_tensorflow(wide), {})] * 3
    write_tensorflow(monkeypatch, tmp_path / "t.pkl", networks)
    assert "a conditional generator" in refused(tmp_path / "t.pkl")
    kwargs = {"z_dim": 64, "c_dim": 0}
    write_persistent(
        monkeypatch, tmp_path / "n.pkl", {"G_ema": ("Generator", wide)}, kwargs, lambda path: {}
    )
    assert "more than the 64 of z that the file states" in refused(tmp_path / "n.pkl")


def test_a_conditional_generator_that_says_so(tmp_path, monkeypatch, ada):
    kwargs = {"z_dim": 64, "c_dim": 10}
    networks = {"G_ema": ("Generator", ada)}
    write_persistent(monkeypatch, tmp_path / "n.pkl", networks, kwargs, lambda path: {})
    assert "the generator is conditional (c_dim = 10)" in refused(tmp_path / "n.pkl")
    with pytest.raises(ConversionError, match="label_size = 10 has no counterpart"):
        nvidia_tf.infer_config({}, {"label_size": 10})
    labelled = {**to_genforce(ada), "mapping.label_weight": np.ones((3, 64), "f4")}
    assert "conditional" in refused(saved(tmp_path / "g.pt", labelled))


def test_other_shapes_of_a_square_mapping_layer(tmp_path, port):
    odd = {**port, "style.2.weight": np.zeros((64, 32), "f4")}
    assert "style.2.weight reads 32 values and writes 64" in refused(saved(tmp_path / "o.pt", odd))


DUAL = {
    **{f"style.{i}.weight": np.zeros((4, 4), "f4") for i in range(19)},
    **{f"res.{i}.weight": np.zeros((4, 4), "f4") for i in range(19)},
}


@pytest.mark.parametrize("wrap", [lambda state: {"g_ema": state}, lambda state: state])
def test_a_network_inside_a_larger_one(tmp_path, capsys, port, wrap):
    """DualStyleGAN: the inner generator's images are not those of the whole."""
    inner = {f"generator.{name}": value for name, value in port.items()}
    path = saved(tmp_path / "dual.pt", wrap(inner | DUAL))
    message = refused(path)
    assert "is inside a larger one, with 38 tensors beside it (" in message
    assert "the inner network alone would make other images" in message
    # Ten names, the count of the rest, and all with --dry-run.
    assert run([str(path), str(tmp_path / "out")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 12 and lines[-1] == "  ... and 28 more; --dry-run lists all"
    assert run([str(path), str(tmp_path / "out"), "--dry-run"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 39


@pytest.mark.parametrize("container", ["safetensors", "npz"])
def test_a_network_inside_a_larger_one_in_one_flat_file(tmp_path, port, container):
    from safetensors.numpy import save_file

    flat = {f"g_ema.generator.{name}": np.array(value) for name, value in port.items()}
    flat |= {f"g_ema.{name}": value for name, value in DUAL.items()}
    if container == "npz":
        np.savez(tmp_path / "m.npz", **flat)
    else:
        save_file(flat, tmp_path / "m.safetensors")
    assert "38 tensors beside it" in refused(tmp_path / f"m.{container}")


def test_gfpgan_is_a_larger_network(tmp_path, port):
    state = {f"stylegan_decoder.{name}": value for name, value in to_basicsr(port).items()}
    state |= {"conv_body_first.weight": np.zeros((8, 3, 1, 1), "f4")}
    assert "inside a larger one" in refused(saved(tmp_path / "g.pth", {"params_ema": state}))


def test_gfpgans_clean_generator_resamples_otherwise(tmp_path, port):
    state = {
        name.replace(".activate.bias", ".bias"): value for name, value in to_basicsr(port).items()
    }
    message = refused(saved(tmp_path / "g.pth", {"params_ema": state}))
    assert "resamples by bilinear interpolation" in message


def test_what_accompanies_a_generator_is_left_out_and_listed(tmp_path, capsys, port):
    tree = {
        "g_ema": port,
        "d": {f"convs.{i}.weight": np.zeros(2, "f4") for i in range(12)},
        "g_optim": {"state": {0: {"exp_avg": np.zeros(2, "f4")}}},
        "ada_aug_p": np.float32(0.1),
        "latent_avg": np.zeros(64, "f4"),
    }
    assert run([str(saved(tmp_path / "t.pt", tree)), str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "left out: 14 tensors: not below 'g_ema', where the network is" in out
    assert "  d.convs.0.weight\n" in out and "  ... and 4 more; --dry-run lists all" in out
    assert "g_optim" not in out
    assert run([str(tmp_path / "t.pt"), str(tmp_path / "again"), "--dry-run"]) == 0
    assert "  g_optim.state.0.exp_avg\n" in capsys.readouterr().out


def test_raw_weights_beside_averages_without_names(tmp_path, port):
    tree = {
        "model": port,
        "ema": {"decay": 0.999, "shadow_params": [np.zeros((2, 2), "f4")] * 3},
    }
    path = saved(tmp_path / "t.pt", tree)
    message = refused(path)
    assert "raw weights beside averages that have no names of this network" in message
    assert "--weights raw" in message
    names = {f"g.{name}": value for name, value in port.items()}
    names |= {f"g_ema.{i}": np.zeros((2, 2), "f4") for i in range(3)}
    path = saved(tmp_path / "n.pt", names)
    assert "ema" in refused(path)
    converted(path, weights="raw")


def layers(conv_clamp=None, mapping="lrelu", affine="linear"):
    def of(path):
        last = path.rpartition(".")[2]
        if last.startswith("fc"):
            return {"bias_gain": 0.01, "activation": mapping}
        if last == "affine":
            return {"bias_gain": 1.0, "activation": affine}
        return {"conv_clamp": conv_clamp, "activation": "lrelu"} if "conv" in last else {}

    return of


@pytest.mark.parametrize(
    ("kwargs", "attributes", "message"),
    [
        ({}, layers(mapping="relu"), "mapping network's activation = 'relu'"),
        ({}, layers(affine="lrelu"), "activation of the style's affine layer = 'lrelu'"),
        ({"mapping_kwargs": {"activation": "swish"}}, layers(), "activation = 'swish'"),
        ({"synthesis_kwargs": {"activation": "relu"}}, layers(), "activation = 'relu'"),
        ({"synthesis_kwargs": {"architecture": "orig"}}, layers(), "architecture = 'orig'"),
    ],
)
def test_other_activations_also_in_the_mapping_network(
    tmp_path, monkeypatch, ada, kwargs, attributes, message
):
    networks = {"G_ema": ("Generator", ada)}
    write_persistent(monkeypatch, tmp_path / "n.pkl", networks, kwargs, attributes)
    assert message in refused(tmp_path / "n.pkl")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mapping_nonlinearity": "relu"}, "mapping_nonlinearity = 'relu'"),
        ({"nonlinearity": "relu"}, "nonlinearity = 'relu'"),
        ({"normalize_latents": False}, "normalize_latents = False"),
        ({"resample_kernel": [1.0] * 12}, r"resample_kernel = \[1.0, .*: expected four numbers"),
        ({"mapping_lrmul": [1]}, r"mapping_lrmul = \[1\]: expected a number"),
        ({"conv_clamp": 10**400}, "conv_clamp = an int of 1,329 bits: expected a number"),
    ],
)
def test_other_settings_of_tensorflow_networks(ada, settings, message):
    variables = nvidia_tf.variables_of(
        {"variables": to_tensorflow(ada), "components": {}, "static_kwargs": {}}
    )
    with pytest.raises(ConversionError, match=message):
        nvidia_tf.convert_generator(variables, settings)


def test_networks_that_are_not_square(tmp_path, monkeypatch, port, ada):
    wide = {**port, "input.input": np.zeros((1, 64, 4, 8), "f4")}
    assert refused(saved(tmp_path / "r.pt", wide)).startswith("not square: the network starts from")
    wide = {**ada, "synthesis.b4.const": np.zeros((64, 4, 8), "f4")}
    for name, state in (("n", wide), ("g", to_genforce(wide))):
        assert refused(saved(tmp_path / f"{name}.pt", state)).startswith("not square")
    write_tensorflow(monkeypatch, tmp_path / "t.pkl", [("Gs", {}, to_tensorflow(wide), {})] * 3)
    assert refused(tmp_path / "t.pkl").startswith("not square")


@pytest.mark.parametrize(("channels", "what"), [(1, "grey"), (4, "RGB with alpha")])
def test_images_of_1_or_4_channels(tmp_path, port, ada, channels, what):
    state = {
        name: np.repeat(value[:, :1], channels, axis=1)
        if "to_rgb" in name and value.ndim == 5
        else value
        for name, value in port.items()
    }
    assert f"images of {channels} channels ({what})" in refused(saved(tmp_path / "r.pt", state))
    state = {
        name: np.repeat(value[:1], channels, axis=0) if name.endswith("torgb.weight") else value
        for name, value in ada.items()
    }
    assert f"images of {channels} channels ({what})" in refused(saved(tmp_path / "n.pt", state))


def test_networks_without_a_mapping(tmp_path, port, ada):
    state = {name: value for name, value in port.items() if not name.startswith("style.")}
    assert "without a mapping network" in refused(saved(tmp_path / "r.pt", state))
    state = {name: value for name, value in ada.items() if not name.startswith("mapping.")}
    assert "without a mapping network" in refused(saved(tmp_path / "n.pt", state))
    bare = {name.removeprefix("synthesis."): value for name, value in state.items()}
    assert "without a mapping network" in refused(saved(tmp_path / "b.pt", bare))


def test_lucidrains_files_are_named(tmp_path):
    gan = {"S.net.0.weight": 1, "S.net.2.weight": 1, "G.blocks.0.conv1.weight": 1, "D.x": 1}
    tree = {"GAN": {name: np.zeros((2, 2), "f4") for name in gan}, "version": "1.8.0"}
    assert "lucidrains' stylegan2-pytorch" in refused(saved(tmp_path / "s.pt", tree))
    names = ("init_conv.weight", "downs.0.0.block1.proj.weight", "final_conv.weight")
    model = {f"model.{name}": np.zeros((2, 2), "f4") for name in names}
    path = saved(tmp_path / "d.pt", {"step": 3, "model": model, "ema": model})
    assert "lucidrains' denoising-diffusion-pytorch" in refused(path)


class Unknown(torch.nn.Linear):
    """A module whose parameters no table knows."""


def test_a_bare_module_of_unknown_class(tmp_path):
    torch.save(Unknown(2, 3), tmp_path / "m.pt")
    message = refused(tmp_path / "m.pt")
    assert "a whole module of class" in message and "Unknown" in message
    assert "save that one's state_dict()" in message
    torch.save({"net": Unknown(2, 3)}, tmp_path / "d.pt")
    assert "below 'net'" in refused(tmp_path / "d.pt")


def strided(*shape):
    """A tensor of any size in a few bytes: every element is the same one."""
    return torch.zeros(1).expand(*shape)


def test_estimating_a_missing_average_is_bounded(tmp_path, port):
    """200 layers that repeat one stored element would take minutes for a file of 100 kB."""
    width, layers = 512, 60
    state = {name: torch.tensor(np.array(value)) for name, value in port.items()}
    state = {name: value for name, value in state.items() if not name.startswith("style.")}
    for name in [name for name in state if name.endswith("modulation.weight")]:
        state[name] = strided(state[name].shape[0], width)
    for i in range(layers):
        state |= {
            f"style.{i + 1}.weight": strided(width, width),
            f"style.{i + 1}.bias": strided(width),
        }
    start = time.monotonic()
    with pytest.raises(ConversionError, match="too large to estimate it: store the mean of w"):
        rosinality.convert_generator({name: value.numpy() for name, value in state.items()})
    for i in range(layers, 200):
        state[f"style.{i + 1}.weight"] = strided(width, width)
    with pytest.raises(ConversionError, match="a mapping network of 65 layers"):
        rosinality.convert_generator({name: value.numpy() for name, value in state.items()})
    assert time.monotonic() - start < 5


def test_resampling_filters_other_than_four_taps(tmp_path, ada):
    """The product of a filter of 67 million taps is never built."""
    big = np.lib.stride_tricks.as_strided(np.ones(1, "f4"), (1 << 26,), (0,))
    for value, message in (
        (big, "a resampling filter of shape"),
        (np.ones((12, 12), "f4"), "a resampling filter of shape"),
        (np.eye(4, dtype="f4") + 0.1, "not separable"),
        (np.full((4, 4), np.nan, "f4"), "a tap of 0, NaN or infinity"),
    ):
        state = {**ada, "synthesis.b8.conv1.resample_filter": value}
        with pytest.raises(ConversionError, match=message):
            nvidia_names.convert_generator(state)
    different = np.outer([1, 2, 2, 1], [1, 2, 2, 1]).astype("f4") / 36
    with pytest.raises(ConversionError, match="filters that differ by layer"):
        nvidia_names.convert_generator({**ada, "synthesis.b8.resample_filter": different})
