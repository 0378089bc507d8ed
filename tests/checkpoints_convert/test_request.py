"""Every word that is said about a file counts: a flag without effect is an error that says so."""

import numpy as np
import pytest

from checkpoints_convert.command import run
from checkpoints_convert.detect import recognise
from checkpoints_convert.request import Request
from checkpoints_convert.table import ConversionError
from fpjax.perceptual import alexnet_shapes
from tests.checkpoints_convert.foreign import (
    fixture_arrays,
    to_basicsr,
    to_genforce,
    write_persistent,
)
from tests.reference import fixture

ALL = {
    "resolution": 64,
    "num_head_channels": 16,
    "num_heads": 2,
    "new_attention_order": True,
    "scale_factor": 2.0,
    "shift_factor": 0.5,
    "mapping_lr_multiplier": 0.1,
}
TAKEN = {
    "rosinality": {"mapping_lr_multiplier"},
    "basicsr": {"mapping_lr_multiplier"},
    "genforce": {"mapping_lr_multiplier"},
    "nvidia": {"mapping_lr_multiplier"},
    "persistent": {"mapping_lr_multiplier"},
    "first stage": {"resolution", "scale_factor", "shift_factor"},
    "unet": {"resolution", "num_head_channels", "num_heads", "new_attention_order"},
    "taesd": {"resolution"},
    "alexnet": set(),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    port = fixture_arrays("rosinality_sg2_r32_random.npz")[0]
    ada = fixture_arrays("nvlabs_sg2ada_r32_random.npz")[0]
    alexnet = {}
    shapes = zip((0, 3, 6, 8, 10), alexnet_shapes().values(), strict=True)
    for position, layer in shapes:
        height, width, before, after = layer["weight"].shape
        alexnet[f"features.{position}.weight"] = np.ones((after, before, height, width), "f4")
        alexnet[f"features.{position}.bias"] = np.ones(after, "f4")
    states = {
        "rosinality": port,
        "basicsr": to_basicsr(port),
        "genforce": to_genforce(ada),
        "nvidia": ada,
        "alexnet": alexnet,
    }
    paths = {}
    for name, state in states.items():
        paths[name] = folder / f"{name}.npz"
        np.savez(paths[name], **state)
    with pytest.MonkeyPatch.context() as patch:
        pytest.importorskip("torch", reason="torch writes the pickle")
        paths["persistent"] = folder / "n.pkl"
        networks = {"G_ema": ("Generator", ada)}
        write_persistent(patch, paths["persistent"], networks, {}, lambda path: {})
    paths["first stage"] = fixture("compvis_vq_f4_small_random.npz")
    paths["unet"] = fixture("compvis_unet_small_random.npz")
    paths["taesd"] = fixture("taef2_decoder.pth")
    return paths


@pytest.mark.parametrize("kind", TAKEN)
def test_flags_that_have_no_meaning_for_a_file_are_errors(files, kind):
    for name, value in ALL.items():
        if name in TAKEN[kind]:
            recognise(files[kind], Request(options={name: value}))
            continue
        flag = "--" + name.replace("_", "-")
        with pytest.raises(ConversionError, match=f"^{flag} has no meaning for .*: leave it out"):
            recognise(files[kind], Request(options={name: value}))


@pytest.mark.parametrize("kind", TAKEN)
def test_further_files_that_do_not_belong_are_errors(files, kind, tmp_path):
    (tmp_path / "config.yaml").write_text("model: {}")
    fitting = {"first stage": "config", "unet": "config", "taesd": "encoder", "alexnet": "heads"}
    for name in ("config", "encoder", "heads"):
        if fitting.get(kind) == name:
            continue
        with pytest.raises(ConversionError, match=f"^--{name} has no meaning for "):
            recognise(files[kind], Request(**{name: tmp_path / "config.yaml"}))


@pytest.mark.parametrize("kind", [kind for kind in TAKEN if kind != "persistent"])
def test_a_file_of_one_network_has_no_choice_of_weights(files, kind):
    for weights in ("ema", "raw"):
        with pytest.raises(ConversionError, match=r"--weights has no meaning|no single network"):
            recognise(files[kind], Request(weights=weights))


def test_the_options_that_a_file_takes_have_effect(files):
    config = recognise(files["taesd"], Request(options={"resolution": 64})).parts[0].config
    assert config["resolution"] == 64
    for kind in ("rosinality", "basicsr", "genforce", "nvidia", "persistent"):
        source = recognise(files[kind], Request(options={"mapping_lr_multiplier": 0.1}))
        assert source.parts[0].config["mapping_lr_multiplier"] == 0.1
    options = {"resolution": 512, "scale_factor": 2.0, "shift_factor": 0.5}
    config = recognise(files["first stage"], Request(options=options)).parts[0].config
    assert [config[name] for name in options] == [512, 2.0, 0.5]


@pytest.mark.parametrize(
    "options",
    [
        {"resolution": 0},
        {"resolution": True},
        {"scale_factor": float("nan")},
        {"scale_factor": -1.0},
        {"shift_factor": float("inf")},
        {"new_attention_order": 1},
        {"surprise": 1},
    ],
)
def test_options_of_another_form_are_misuse(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Request(options=options)


@pytest.mark.parametrize(
    "flag", ["--scale-factor=nan", "--scale-factor=0", "--shift-factor=inf", "--sha256=xyz"]
)
def test_flags_of_another_form_exit_with_2(files, tmp_path, capsys, flag):
    assert run([str(files["first stage"]), str(tmp_path / "out"), flag]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
