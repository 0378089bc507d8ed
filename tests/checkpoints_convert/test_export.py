"""StyleGAN2 written back in published layouts: as published, and the same when converted again."""

import json

import jax
import numpy as np
import pytest

import fpjax
from checkpoints_convert.command import run
from checkpoints_convert.export import LAYOUTS, export_stylegan2
from checkpoints_convert.inverse import published
from checkpoints_convert.readers import read
from checkpoints_convert.table import ConversionError, Rule
from fpjax.models import stylegan2
from fpjax.models.parameters import flatten
from fpjax.models.stylegan2 import StyleGAN2Config
from tests.checkpoints_convert.foreign import fixture_arrays
from tests.reference import fixture

FILES = {
    "rosinality": "rosinality_sg2_r32_random.pt",
    "nvidia": "nvlabs_sg2ada_r32_random.npz",
}


def convert(path, out, *flags):
    assert run([str(path), str(out), *flags]) == 0
    return fpjax.load_generator(out)


def export(generator, folder, layout):
    export_stylegan2(folder, generator.config, generator.params, layout)
    return folder / "generator.safetensors"


def assert_same_bits(params, others):
    params, others = flatten(params), flatten(others)
    assert params.keys() == others.keys()
    for path, leaf in params.items():
        assert np.asarray(leaf).tobytes() == np.asarray(others[path]).tobytes(), path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_file_has_the_tensors_of_the_publishers_program(tmp_path, layout):
    """Names, shapes and bits of a state dict that the program itself wrote, buffers included."""
    generator = convert(fixture(FILES[layout]), tmp_path / "fpjax")
    file = read(export(generator, tmp_path / "back", layout))
    made = {name: tensor.numpy() for name, tensor in file.tensors().items()}
    if layout == "rosinality":
        expected = {n: t.numpy() for n, t in read(fixture(FILES[layout])).tensors().items()}
    else:
        expected = fixture_arrays(FILES[layout])[0]
    assert made.keys() == expected.keys()
    for name, array in expected.items():
        if name == "latent_avg":
            array = array.reshape(-1)  # in files of either form
        assert made[name].shape == array.shape, name
        np.testing.assert_array_equal(made[name], array, err_msg=name)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_converted_again_a_generator_is_the_same_bit_for_bit(tmp_path, layout):
    generator = convert(fixture(FILES[layout]), tmp_path / "fpjax")
    again = convert(export(generator, tmp_path / "back", layout), tmp_path / "again")
    assert_same_bits(again.params, generator.params)
    assert again.config == generator.config and again.sha256 == generator.sha256


def test_what_no_weight_shows_comes_back_too(tmp_path):
    config = StyleGAN2Config(
        16, 12, 16, 3, 0.1, channels=((4, 16), (8, 12), (16, 6)), fir=(1.0, 2.0, 2.0, 1.0)
    )
    clamped = StyleGAN2Config(8, 16, 16, 2, conv_clamp=256.0, channels=((4, 8), (8, 4)))
    square = StyleGAN2Config(8, 16, 16, 2, 0.5, channels=((4, 8), (8, 4)))
    cases = [("nvidia", config), ("nvidia", clamped), ("rosinality", square)]
    for number, (layout, config) in enumerate(cases):
        params = stylegan2.init(config, jax.random.key(number))
        export_stylegan2(tmp_path / f"{number}", config, params, layout)
        file = tmp_path / f"{number}" / "generator.safetensors"
        again = convert(file, tmp_path / f"{number}-again")
        assert again.config == config
        assert_same_bits(again.params, params)


@pytest.mark.parametrize(
    ("config", "base", "widest"),
    [
        (StyleGAN2Config.ffhq1024(), 32768, 512),
        (StyleGAN2Config.ffhq256_ada(), 16384, 512),
        (StyleGAN2Config(32, channels=((4, 128), (8, 128), (16, 96), (32, 48))), 1536, 128),
    ],
)
def test_constructor_arguments_give_the_channels(config, base, widest):
    """Of nvidia's program, whose generators have min(base // side, most) of them."""
    params = jax.tree.map(lambda leaf: np.zeros((), "f4"), stylegan2.param_shapes(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("checkpoints_convert.publishers.nvidia.published", lambda *_: {})
        _, arguments, notes = LAYOUTS["nvidia"](config, params)
    settings = arguments["synthesis_kwargs"]
    assert (settings["channel_base"], settings["channel_max"], notes) == (base, widest, ())


def test_channels_that_the_program_would_not_construct_are_said(tmp_path):
    config = StyleGAN2Config(8, 16, 16, 2, channels=((4, 8), (8, 16)))
    params = stylegan2.init(config, jax.random.key(0))
    for layout, where in [("nvidia", "channels_dict"), ("rosinality", "self.channels")]:
        (note,) = export_stylegan2(tmp_path / layout, config, params, layout)
        assert f"{where} must be {{4: 8, 8: 16}}" in note
        json.loads((tmp_path / layout / "arguments.json").read_text("utf-8"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"z_dim": 8}, "a z of 8 and a w of 16"), ({"conv_clamp": 256.0}, "clamp of 256")],
)
def test_what_the_rosinality_program_lacks_is_refused(tmp_path, changes, message):
    settings = {"z_dim": 16, "w_dim": 16, "num_mapping_layers": 2, "channel_base": 64} | changes
    config = StyleGAN2Config(8, **settings)
    params = stylegan2.init(config, jax.random.key(0))
    with pytest.raises(ConversionError, match=message):
        export_stylegan2(tmp_path / "out", config, params, "rosinality")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["[1]", "{", "[" * 100_000])
def test_arguments_that_are_no_settings_are_refused_on_one_line(tmp_path, text, capsys):
    from safetensors.numpy import load_file, save_file

    config = StyleGAN2Config(8, 16, 16, 2, channel_base=64)
    params = stylegan2.init(config, jax.random.key(0))
    export_stylegan2(tmp_path / "out", config, params, "nvidia")
    tensors = load_file(tmp_path / "out" / "generator.safetensors")
    save_file(tensors, tmp_path / "x.safetensors", {"stylegan2_arguments": text})
    assert run([str(tmp_path / "x.safetensors"), str(tmp_path / "again")]) == 1
    error = capsys.readouterr().err
    assert "expected a JSON object" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([Rule(r"a.*", "a")], "names and groups alone"),
        ([Rule(r"(a)(b)", r"\1")], "does not name each group"),
        ([Rule(r"a", ("a", "b"))], "several targets"),
        ([Rule(r"b", "b")], "0 rules fill a"),
        ([Rule(r"x", "a"), Rule(r"y", "a")], "2 rules fill a"),
        ([Rule(r"x", "a", "squeeze")], "has no inverse"),
        ([Rule(r"x", "a", "twice")], "is no bijection"),
    ],
)
def test_a_table_that_has_no_inverse_is_refused(rules, message):
    with pytest.raises(ValueError, match=message):
        published(
            {"a": np.ones(2, "f4")}, rules, {"twice": lambda x: 2 * x}, {"twice": lambda x: x}
        )
