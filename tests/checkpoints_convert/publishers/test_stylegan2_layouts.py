"""StyleGAN2 in every layout that is a renaming: the same parameters as from the plain layout."""

import jax.numpy as jnp
import numpy as np
import pytest

import fpjax
from checkpoints_convert.command import run
from checkpoints_convert.detect import recognise
from checkpoints_convert.request import Request
from checkpoints_convert.table import ConversionError
from tests.checkpoints_convert.foreign import (
    converted,
    fixture_arrays,
    nested,
    nhwc,
    same,
    to_basicsr,
    to_genforce,
    to_tensorflow,
    write_persistent,
    write_tensorflow,
)
from tests.reference import relative_error

torch = pytest.importorskip("torch", reason="torch writes the files that are read back")

BOUND = 1e-4  # of the images' standard deviation: float32 sums in another order
AVERAGE = np.linspace(-1, 1, 64, dtype=np.float32)


@pytest.fixture(scope="module")
def rosinality():
    return fixture_arrays("rosinality_sg2_r32_random.npz")


@pytest.fixture(scope="module")
def nvidia():
    return fixture_arrays("nvlabs_sg2ada_r32_random.npz")


@pytest.fixture(scope="module")
def plain(rosinality, tmp_path_factory):
    """Parameters from the plain layout: a generator's state dict and its average."""
    path = tmp_path_factory.mktemp("plain") / "plain.pt"
    torch.save({"g_ema": tensors(rosinality[0]), "latent_avg": torch.tensor(AVERAGE)}, path)
    return converted(path)


def tensors(state, prefix=""):
    return {prefix + name: torch.tensor(np.array(value)) for name, value in state.items()}


def doubled(state):
    return {name: 2 * np.asarray(value) for name, value in state.items()}


def check_images(path, out, arrays, *flags):
    assert run([str(path), str(out), *flags]) == 0
    generator = fpjax.load_generator(out)
    images = generator.decode(generator.params, jnp.asarray(arrays["w"]))
    assert relative_error(images, nhwc(arrays["img"])) <= BOUND
    w = generator.map(generator.params, jnp.asarray(arrays["z"]))
    expected = arrays["w"] if arrays["w"].ndim == 2 else arrays["w"][:, 0]
    assert relative_error(w, expected) <= BOUND
    return generator


def test_psp_files_with_an_average_for_each_layer(tmp_path, rosinality, plain):
    encoder = {"encoder.input_layer.0.weight": torch.ones(2, 3, 3, 3)}
    state = {**tensors(rosinality[0], "decoder."), **encoder}
    saved = {"state_dict": state, "latent_avg": torch.tensor(AVERAGE).repeat(8, 1), "opts": {}}
    torch.save(saved, tmp_path / "psp.pt")
    same(converted(tmp_path / "psp.pt"), plain)
    saved["latent_avg"][3] += 1
    torch.save(saved, tmp_path / "other.pt")
    with pytest.raises(ConversionError, match="latent_avg differs from layer to layer"):
        converted(tmp_path / "other.pt")


@pytest.mark.parametrize(
    ("averaged", "raw"),
    [
        ("g_ema.", "g."),
        ("g_ema.module.", "g.module."),
        ("module.g_ema.", "module.g."),
        ("generator_ema.", "generator."),
        ("params_ema.", "params."),
        ("g_running.", "generator."),
        ("generator_smooth.", "generator."),
        ("netG_ema.", "netG."),
        ("ema.generator.", "model.generator."),
    ],
)
@pytest.mark.parametrize("container", ["state dicts", "one flat dict"])
def test_any_part_of_a_prefix_tells_averages_from_raw_weights(
    tmp_path, rosinality, plain, averaged, raw, container
):
    both = tensors(rosinality[0], averaged) | tensors(doubled(rosinality[0]), raw)
    both["latent_avg"] = torch.tensor(AVERAGE)
    if container == "state dicts":
        split = {}
        for name, value in both.items():
            first, dot, rest = name.partition(".")
            if dot:
                split.setdefault(first, {})[rest] = value
            else:
                split[first] = value
        both = split
    torch.save(both, tmp_path / "both.pt")
    same(converted(tmp_path / "both.pt"), plain)
    same(converted(tmp_path / "both.pt", weights="ema"), plain)
    doubled_const = converted(tmp_path / "both.pt", weights="raw")["synthesis/b4/const"]
    np.testing.assert_array_equal(doubled_const, 2 * plain["synthesis/b4/const"])


@pytest.mark.parametrize("prefix", ["g_ema.module.", "g_ema.", "params_ema.", "generator_ema."])
def test_raw_weights_are_not_made_of_averages(tmp_path, rosinality, prefix):
    torch.save(tensors(rosinality[0], prefix), tmp_path / "ema.pt")
    with pytest.raises(ConversionError, match="no single network of --weights raw"):
        converted(tmp_path / "ema.pt", weights="raw")


def test_averages_are_not_made_of_raw_weights(tmp_path, rosinality):
    torch.save(tensors(rosinality[0], "g."), tmp_path / "raw.pt")
    with pytest.raises(ConversionError, match="no single network of --weights ema"):
        converted(tmp_path / "raw.pt", weights="ema")
    converted(tmp_path / "raw.pt", weights="raw")


def test_basicsr_names(tmp_path, rosinality):
    state, arrays = rosinality
    saved = {
        "params_ema": tensors(to_basicsr(state)),
        "params": tensors(to_basicsr(doubled(state))),
    }
    torch.save(saved, tmp_path / "basicsr.pth")
    generator = check_images(tmp_path / "basicsr.pth", tmp_path / "out", arrays)
    assert generator.info["source_kind"] == "StyleGAN2, BasicSR"
    torch.save(tensors(state), tmp_path / "plain.pt")
    same(converted(tmp_path / "basicsr.pth"), converted(tmp_path / "plain.pt"))


def test_genforce_names_and_conventions(tmp_path, nvidia):
    state, arrays = nvidia
    saved = {
        "models": {
            "generator_smooth": tensors(to_genforce(state)),
            "generator": tensors(to_genforce(doubled(state))),
            "discriminator": {"input0.weight": torch.ones(3)},
        },
        "running_metadata": {"iter": 3},
    }
    torch.save(saved, tmp_path / "genforce.pth")
    generator = check_images(tmp_path / "genforce.pth", tmp_path / "out", arrays)
    assert generator.info["source_kind"] == "StyleGAN2, GenForce"
    np.testing.assert_array_equal(generator.params["mapping"]["w_avg"], state["mapping.w_avg"])


def silent(state, *names):
    return {n: v for n, v in state.items() if not n.endswith(names) and "noises." not in n}


def test_generators_trained_without_noise_have_strength_0(
    tmp_path, monkeypatch, nvidia, rosinality, plain
):
    """`use_noise=False` leaves strengths and maps out; images are those without noise."""
    state, arrays = nvidia
    torch.save(tensors(silent(state, "noise_const", "noise_strength")), tmp_path / "n.pt")
    assert run([str(tmp_path / "n.pt"), str(tmp_path / "out")]) == 0
    generator = fpjax.load_generator(tmp_path / "out")
    np.savez(tmp_path / "whole.npz", **state)
    assert run([str(tmp_path / "whole.npz"), str(tmp_path / "whole")]) == 0
    whole = fpjax.load_generator(tmp_path / "whole")
    w = jnp.asarray(arrays["w"])
    expected = whole.decode(whole.params, w, noise="none")
    assert relative_error(generator.decode(generator.params, w), expected) <= BOUND
    assert any("use_noise=False" in note for note in generator.info["notes"])

    variables = {name: value for name, value in to_tensorflow(state).items() if "noise" not in name}
    write_tensorflow(monkeypatch, tmp_path / "t.pkl", [("Gs", {}, variables, {})] * 3)
    same(converted(tmp_path / "t.pkl"), converted(tmp_path / "n.pt"))

    torch.save(
        {
            "g_ema": tensors(silent(rosinality[0], "noise.weight")),
            "latent_avg": torch.tensor(AVERAGE),
        },
        tmp_path / "r.pt",
    )
    found = converted(tmp_path / "r.pt")
    assert found.keys() == plain.keys()
    for name, value in found.items():
        quiet = "noise" in name.rpartition("/")[2]
        np.testing.assert_array_equal(value, 0 * plain[name] if quiet else plain[name])


def test_one_missing_noise_map_is_no_network_without_noise(tmp_path, nvidia):
    state = dict(nvidia[0])
    del state["synthesis.b8.conv1.noise_strength"]
    np.savez(tmp_path / "n.npz", **state)
    with pytest.raises(ConversionError, match=r"nothing fills parameter .*noise_strength"):
        converted(tmp_path / "n.npz")


class Layer(torch.nn.Module):
    """A module of a class that fpjax does not have."""


def module_of(tree, path="", attributes=lambda path: {}):
    module = Layer()
    for key, value in attributes(path).items():
        setattr(module, key, value)
    for key, value in tree.items():
        where = f"{path}.{key}" if path else key
        if isinstance(value, dict):
            module.add_module(key, module_of(value, where, attributes))
        elif key.startswith(("noise_", "kernel")):
            module.register_buffer(key, torch.tensor(np.array(value)))
        else:
            module.register_parameter(key, torch.nn.Parameter(torch.tensor(np.array(value))))
    return module


@pytest.mark.parametrize("legacy", [False, True])
def test_whole_modules_convert_as_their_state_dicts(tmp_path, rosinality, plain, legacy):
    def attributes(path):
        first = path.split(".")[0] == "style" and path != "style"
        return {"lr_mul": 0.01, "activation": "fused_lrelu"} if first else {"negative_slope": 0.2}

    module = module_of(nested(rosinality[0]), attributes=attributes)
    assert module.state_dict().keys() == rosinality[0].keys()
    saved = {"g_ema": module, "latent_avg": torch.tensor(AVERAGE)}
    torch.save(saved, tmp_path / "m.pt", _use_new_zipfile_serialization=not legacy)
    same(converted(tmp_path / "m.pt"), plain)
    torch.save(module, tmp_path / "bare.pt", _use_new_zipfile_serialization=not legacy)
    assert converted(tmp_path / "bare.pt").keys() == plain.keys()


def test_a_whole_module_says_its_learning_rate_multiplier_and_activation(tmp_path, rosinality):
    def saved(name, **values):
        def attributes(path):
            return values if path.startswith("style.") else {}

        torch.save(module_of(nested(rosinality[0]), attributes=attributes), tmp_path / name)
        return tmp_path / name

    source = recognise(saved("fast.pt", lr_mul=0.1), Request())
    assert source.parts[0].config["mapping_lr_multiplier"] == 0.1
    with pytest.raises(ConversionError, match="activation = 'relu': fpjax's mapping network"):
        converted(saved("relu.pt", activation="relu"))
    with pytest.raises(ConversionError, match=r"negative_slope = 0\.1: fpjax has leaky ReLUs"):
        converted(saved("slope.pt", negative_slope=0.1))


def test_a_persistent_module_that_is_nested_in_a_dict(tmp_path, monkeypatch, nvidia):
    state, _ = nvidia
    networks = {"G_ema": ("Generator", state)}
    write_persistent(monkeypatch, tmp_path / "n.pkl", networks, {"z_dim": 64}, lambda path: {})
    np.savez(tmp_path / "n.npz", **state)
    same(converted(tmp_path / "n.pkl"), converted(tmp_path / "n.npz"))
