"""StyleGAN2 files of both PyTorch communities: parity from the file, and every choice made."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fpjax
from checkpoints_convert.command import run
from checkpoints_convert.detect import recognise
from checkpoints_convert.publishers import nvidia, rosinality
from checkpoints_convert.request import Request
from checkpoints_convert.table import ConversionError
from fpjax.models import checkpoint, stylegan2
from fpjax.models.stylegan2 import StyleGAN2Config
from tests.checkpoints_convert.foreign import fixture_arrays, nhwc, write_persistent
from tests.reference import fixture, relative_error

torch = pytest.importorskip("torch", reason="torch writes the files that are read back")

# The bound of every parity test: 1e-4 of the output's standard deviation, in float32.
BOUND = 1e-4


@pytest.fixture(scope="module")
def rosinality_case():
    return fixture_arrays("rosinality_sg2_r32_random.npz")


@pytest.fixture(scope="module")
def nvidia_case():
    return fixture_arrays("nvlabs_sg2ada_r32_random.npz")


def convert(path, out, *flags):
    assert run([str(path), str(out), *flags]) == 0
    return fpjax.load_generator(out)


def check(generator, arrays):
    w = generator.map(generator.params, jnp.asarray(arrays["z"]))
    expected = arrays["w"] if arrays["w"].ndim == 2 else arrays["w"][:, 0]
    assert relative_error(w, expected) <= BOUND
    images = generator.decode(generator.params, jnp.asarray(arrays["w"]))
    assert relative_error(images, nhwc(arrays["img"])) <= BOUND


def torch_state(state):
    return {name: torch.tensor(value) for name, value in state.items()}


@pytest.mark.parametrize("name", ["rosinality_sg2_r32_random.pt", "rosinality_sg2_r32_random.npz"])
def test_the_published_rosinality_layout_converts_without_flags(tmp_path, name, rosinality_case):
    generator = convert(fixture(name), tmp_path / "out")
    check(generator, rosinality_case[1])
    assert generator.image_shape == (32, 32, 3) and generator.latent_shape == (64,)


def test_the_average_latent_of_the_file_is_the_centre_of_truncation(tmp_path):
    path = fixture("rosinality_sg2_r32_random.pt")
    generator = convert(path, tmp_path / "out")
    stored = torch.load(path, weights_only=True)["latent_avg"].numpy()
    centre = generator.map(generator.params, jnp.ones((1, 64)), 0.0)
    np.testing.assert_array_equal(centre[0], stored.reshape(-1))


@pytest.mark.parametrize("legacy", [False, True])
def test_averaged_weights_are_preferred_and_raw_ones_on_request(tmp_path, rosinality_case, legacy):
    state = torch_state(rosinality_case[0])
    raw = {name: 2 * value for name, value in state.items()}
    saved = {
        "g": raw,
        "d": {"convs.0.0.weight": torch.ones(3)},
        "g_ema": state,
        "g_optim": {"state": {0: {"step": 3, "exp_avg": torch.ones(2)}}, "param_groups": []},
        "latent_avg": torch.zeros(1, 64),
    }
    torch.save(saved, tmp_path / "t.pt", _use_new_zipfile_serialization=not legacy)
    averaged = convert(tmp_path / "t.pt", tmp_path / "ema")
    check(averaged, rosinality_case[1])
    assert "the weights of g_ema are used" in averaged.info["notes"]
    other = convert(tmp_path / "t.pt", tmp_path / "raw", "--weights=raw")
    bias = lambda g: g.params["synthesis"]["b8"]["conv1"]["bias"]  # noqa: E731
    np.testing.assert_array_equal(bias(other), 2 * bias(averaged))
    ignored = dict(recognise(tmp_path / "t.pt", Request()).ignored)
    assert {"d.convs.0.0.weight", "g_optim.state.0.exp_avg", "g.input.input"} <= ignored.keys()


def test_bare_state_dicts_and_missing_averages_or_noise_are_said(tmp_path, rosinality_case):
    state = {k: v for k, v in torch_state(rosinality_case[0]).items() if "noises." not in k}
    torch.save(state, tmp_path / "bare.pt")
    generator = convert(tmp_path / "bare.pt", tmp_path / "out")
    notes = " ".join(generator.info["notes"])
    assert "no latent_avg in the file" in notes and "no noise maps in the file" in notes
    # The mean of 16,384 draws, against one of as many others: standard error of a component.
    z = jax.random.normal(jax.random.key(5), (16_384, 64))
    w = stylegan2.mapping(generator.config, generator.params, z)
    average = generator.params["mapping"]["w_avg"]
    assert float(jnp.max(jnp.abs(w.mean(0) - average) / (w.std(0) / 128))) < 8


@pytest.mark.parametrize("multiplier", [1, 2])
@pytest.mark.parametrize("size", [16, 64, 1024])
def test_architecture_is_read_from_rosinality_files_of_other_sizes(size, multiplier):
    channels = {side: min(32, 512 * multiplier // side) for side in (4, 8, 16, 32, 64, 128, 256)}
    channels |= {512: multiplier, 1024: multiplier}
    config = StyleGAN2Config(
        size, 24, 24, 3, channels=tuple((r, c) for r, c in channels.items() if r <= size)
    )
    conversion = rosinality.convert_generator(rosinality_state(config), np.zeros(24, "f4"))
    assert conversion.config == config


def rosinality_state(config):
    """Zeros in the names and shapes of that program's generator."""
    w, table = config.w_dim, dict(config.channels)
    state = {"input.input": (1, table[4], 4, 4)}
    for i in range(config.num_mapping_layers):
        state |= {f"style.{i + 1}.weight": (w, w), f"style.{i + 1}.bias": (w,)}
    layers = [("conv1", table[4], table[4])]
    for i, side in enumerate(config.block_resolutions[1:]):
        layers.append((f"convs.{2 * i}", table[side // 2], table[side]))
        layers.append((f"convs.{2 * i + 1}", table[side], table[side]))
    for name, before, after in layers:
        state[f"{name}.conv.weight"] = (1, after, before, 3, 3)
        state[f"{name}.conv.modulation.weight"] = (before, w)
        state[f"{name}.conv.modulation.bias"] = (before,)
        state |= {f"{name}.noise.weight": (1,), f"{name}.activate.bias": (after,)}
    for i, side in enumerate(config.block_resolutions):
        name = f"to_rgbs.{i - 1}" if i else "to_rgb1"
        state[f"{name}.conv.weight"] = (1, 3, table[side], 1, 1)
        state[f"{name}.conv.modulation.weight"] = (table[side], w)
        state[f"{name}.conv.modulation.bias"] = (table[side],)
        state[f"{name}.bias"] = (1, 3, 1, 1)
    return {name: np.zeros(shape, "f4") for name, shape in state.items()}


def attributes(conv_clamp, activation="lrelu", architecture="skip"):
    """What the programs' layers keep in their `__dict__`, by a module's dotted name."""

    def of(path):
        last = path.rpartition(".")[2]
        if last in ("conv0", "conv1"):
            return {"conv_clamp": conv_clamp, "activation": activation}
        if last.startswith("b") and path.startswith("synthesis."):
            return {"architecture": architecture}
        return {"bias_gain": 0.01, "weight_gain": 1.0} if last.startswith("fc") else {}

    return of


ADA = {
    "z_dim": 64,
    "mapping_kwargs": {"num_layers": 2},
    "synthesis_kwargs": {"channel_base": 1024, "channel_max": 64},
}
STYLEGAN3_ERA = {"z_dim": 64, "channel_base": 1024, "fused_modconv_default": "inference_only"}


@pytest.mark.parametrize(("kwargs", "clamp"), [(ADA, None), (STYLEGAN3_ERA, 256)])
def test_pickles_of_persistent_objects_convert_without_flags(
    tmp_path, monkeypatch, nvidia_case, kwargs, clamp
):
    state, arrays = nvidia_case
    networks = {
        "G": ("Generator", {n: v * np.float32(2) for n, v in state.items()}),
        "D": ("Discriminator", {"b4.conv.weight": np.ones((1, 1), "f4")}),
        "G_ema": ("Generator", state),
    }
    write_persistent(monkeypatch, tmp_path / "n.pkl", networks, kwargs, attributes(clamp))
    monkeypatch.undo()  # the classes are gone, as where the file is converted
    generator = convert(tmp_path / "n.pkl", tmp_path / "out")
    check(generator, arrays)
    truncated = generator.map(generator.params, jnp.asarray(arrays["z"]), 0.7)
    images = generator.decode(generator.params, truncated)
    assert relative_error(images, nhwc(arrays["img_psi07"])) <= BOUND
    assert generator.config.conv_clamp == clamp
    notes = generator.info["notes"]
    assert "the weights of G_ema are used" in notes
    assert "other networks of the file are left out: G, D" in notes
    raw = convert(tmp_path / "n.pkl", tmp_path / "raw", "--weights=raw")
    np.testing.assert_array_equal(
        raw.params["mapping"]["w_avg"], 2 * generator.params["mapping"]["w_avg"]
    )


@pytest.mark.parametrize(
    ("attributes_of", "message"),
    [
        (attributes(None, architecture="resnet"), "architecture = 'resnet'"),
        (attributes(None, activation="linear"), "activation = 'linear'"),
    ],
)
def test_other_skeletons_of_the_same_class_are_refused(
    tmp_path, monkeypatch, nvidia_case, attributes_of, message
):
    networks = {"G_ema": ("Generator", nvidia_case[0])}
    write_persistent(monkeypatch, tmp_path / "n.pkl", networks, ADA, attributes_of)
    with pytest.raises(ConversionError, match=message):
        recognise(tmp_path / "n.pkl", Request())


def test_stylegan3_is_refused_by_name(tmp_path, monkeypatch):
    state = {
        "synthesis.input.weight": np.ones((4, 4), "f4"),
        "synthesis.L0_36_512.weight": np.ones((4, 4, 3, 3), "f4"),
    }
    write_persistent(
        monkeypatch, tmp_path / "n.pkl", {"G_ema": ("Generator", state)}, {}, attributes(None)
    )
    with pytest.raises(ConversionError, match="is a StyleGAN3 generator"):
        recognise(tmp_path / "n.pkl", Request())
    np.savez(tmp_path / "n.npz", **state)
    with pytest.raises(ConversionError, match="a StyleGAN3 generator"):
        recognise(tmp_path / "n.npz", Request())


@pytest.mark.parametrize("prefix", ["", "G_ema.", "sd/", "model.G_ema."])
def test_nvidia_state_dicts_convert_below_any_prefix(tmp_path, nvidia_case, prefix):
    state, arrays = nvidia_case
    saved = {prefix + name: torch.tensor(value) for name, value in state.items()}
    torch.save(saved, tmp_path / "s.pth")
    check(convert(tmp_path / "s.pth", tmp_path / "out"), arrays)


def test_conditional_generators_and_left_over_tensors_are_refused(nvidia_case):
    state = nvidia_case[0]
    with pytest.raises(ConversionError, match="conditional"):
        nvidia.convert_generator({**state, "mapping.embed.weight": np.zeros((1, 1), "f4")})
    with pytest.raises(ConversionError, match=r"no rule for source tensor synthesis\.b8\.skip"):
        nvidia.convert_generator({**state, "synthesis.b8.skip.weight": np.zeros((1,), "f4")})
    whole = {k: v for k, v in state.items() if k != "synthesis.b8.conv1.noise_const"}
    with pytest.raises(ConversionError, match=r"nothing fills parameter .*b8/conv1/noise_const"):
        nvidia.convert_generator(whole)
    integers = {**state, "mapping.w_avg": np.zeros(64, "i8")}
    with pytest.raises(ConversionError, match=r"mapping\.w_avg .* is of int64, expected floats"):
        nvidia.convert_generator(integers)


def test_the_same_weights_have_the_same_hash_whatever_they_are_stored_in(tmp_path):
    path = fixture("rosinality_sg2_r32_random.pt")
    first = convert(path, tmp_path / "safetensors")
    second = convert(path, tmp_path / "orbax", "--format=orbax")
    assert first.sha256 == second.sha256
    first.save(tmp_path / "saved")
    assert fpjax.load_generator(tmp_path / "saved").sha256 == first.sha256
    halved = checkpoint.load_leaves(convert_only(path, tmp_path / "half", "--dtype=bfloat16"))
    assert {str(leaf.dtype) for leaf in halved.values()} == {"bfloat16"}


def convert_only(path, out, *flags):
    convert(path, out, *flags)
    return out
