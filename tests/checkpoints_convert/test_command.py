"""The command: plans, hostile files, what it writes, and that it needs no PyTorch."""

import json
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fpjax
from checkpoints_convert import output
from checkpoints_convert.command import run
from checkpoints_convert.convert import convert_file
from checkpoints_convert.detect import recognise
from checkpoints_convert.readers import read
from checkpoints_convert.request import Request
from checkpoints_convert.table import ConversionError
from tests.checkpoints_convert.foreign import fixture_arrays, write_persistent
from tests.checkpoints_convert.readers.forge import dumps, torch_stream, torch_zip, touch
from tests.reference import fixture

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def generator_file():
    return fixture("rosinality_sg2_r32_random.pt")


def command(file, out, *flags):
    return run([str(file), str(out), *map(str, flags)])


def refused(capsys, tmp_path, file, *flags, code=1):
    """The one line that a refused file gives; nothing is written, not even in part."""
    before = set(tmp_path.iterdir())
    assert command(file, tmp_path / "out", *flags) == code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("fpjax-convert: ")
    assert set(tmp_path.iterdir()) == before
    return err


def test_dry_run_prints_every_step_and_writes_nothing(tmp_path, capsys, generator_file):
    assert command(generator_file, tmp_path / "out", "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        "convs.0.conv.weight (1, 64, 64, 3, 3) -> synthesis/b8/conv0/weight (3, 3, 64, 64) "
        "[modulated_kernel]"
    ) in lines
    plan = recognise(generator_file, Request()).parts[0].plan
    assert len([line for line in lines if " -> " in line]) == len(plan.steps) == 64
    assert any(line.startswith("left out: ") and "FIR filter" in line for line in lines)
    assert "  convs.0.conv.blur.kernel" in lines
    assert list(tmp_path.iterdir()) == []


def test_config_json_says_where_the_weights_come_from(tmp_path, generator_file):
    assert command(generator_file, tmp_path / "out") == 0
    header = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (header["format_version"], header["architecture"]) == (1, "stylegan2")
    info = header["info"]
    assert info["source"] == generator_file.name
    assert info["source_sha256"] == read(generator_file).sha256()
    assert info["source_kind"] == "StyleGAN2, rosinality"
    assert info["converter"] == f"fpjax-convert {fpjax.__version__}"
    assert any("multiplier 0.01 is assumed" in note for note in info["notes"])


def test_a_flag_overrides_what_is_assumed(tmp_path, generator_file):
    assert command(generator_file, tmp_path / "out", "--mapping-lr-multiplier=0.02") == 0
    assert fpjax.load_generator(tmp_path / "out").config.mapping_lr_multiplier == 0.02


def test_an_existing_folder_is_left_alone(tmp_path, capsys, generator_file):
    (tmp_path / "out").mkdir()
    assert "exists already" in refused(capsys, tmp_path, generator_file)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("build", [pickle.dumps, torch_zip, torch_stream])
def test_files_that_call_what_they_name_are_refused_unexecuted(tmp_path, capsys, build):
    canary = tmp_path / "canary"
    data = dumps({"g_ema": touch(canary), "latent_avg": touch(canary)})
    data = build(data) if build is not pickle.dumps else data
    (tmp_path / "hostile.pt").write_bytes(data)
    error = refused(capsys, tmp_path, tmp_path / "hostile.pt")
    assert len(error.splitlines()) == 1 and not canary.exists()
    assert "nothing known" in error and "system" in error


def test_names_of_a_hostile_file_cannot_steer_the_terminal(tmp_path, capsys):
    (tmp_path / "h.pkl").write_bytes(pickle.dumps({"\x1b]0;owned\x07\x1b[2J": 1}))
    error = refused(capsys, tmp_path, tmp_path / "h.pkl")
    assert "\x1b" not in error and "\\x1b" in error


@pytest.mark.parametrize("keep", [0, 1, 100, 1024, 0.5, 0.999])
def test_truncated_files_are_refused_in_one_line(tmp_path, capsys, generator_file, keep):
    data = generator_file.read_bytes()
    length = int(len(data) * keep) if isinstance(keep, float) else keep
    (tmp_path / "cut.pt").write_bytes(data[:length])
    assert len(refused(capsys, tmp_path, tmp_path / "cut.pt").splitlines()) == 1


ANCHORS = (
    ("input.input", "conv1.conv.modulation.weight"),
    ("synthesis.b4.const", "synthesis.b4.conv1.affine.weight"),
    ("first_stage_model.decoder.conv_in.weight", "model.diffusion_model.input_blocks.0.0.weight"),
    ("decoder.mid.block_1.norm1.weight", "post_quant_conv.weight"),
    ("input_blocks.0.0.weight", "time_embed.0.weight"),
    ("3.conv.0.weight", "1.weight"),
    ("lin0.model.1.weight", "net.slice1.0.weight"),
    ("features.28.weight", "features.0.weight"),
    ("features.10.weight", "features.0.weight"),
    ("Mixed_7c.branch_pool.conv.weight",),
)


@pytest.mark.parametrize("shape", [(), (0,), (3,), (0, 0, 0, 0), (2, 3, 1, 1)])
@pytest.mark.parametrize("anchors", ANCHORS, ids="+".join)
def test_a_networks_names_on_other_tensors_are_refused(tmp_path, capsys, anchors, shape):
    np.savez(tmp_path / "x.npz", **{name: np.zeros(shape, "f4") for name in anchors})
    refused(capsys, tmp_path, tmp_path / "x.npz")


@pytest.mark.parametrize("settings", [[1], {"conv_clamp": "much"}, {"lr_multiplier": [1]}])
def test_settings_of_other_types_are_refused(tmp_path, capsys, monkeypatch, settings):
    state, _ = fixture_arrays("nvlabs_sg2ada_r32_random.npz")
    kwargs = {"synthesis_kwargs": settings, "mapping_kwargs": settings}
    networks = {"G_ema": ("Generator", state)}
    write_persistent(monkeypatch, tmp_path / "n.pkl", networks, kwargs, lambda path: {})
    monkeypatch.undo()
    refused(capsys, tmp_path, tmp_path / "n.pkl")


def test_missing_files_and_folders_without_a_model(tmp_path, capsys):
    assert "check the path" in refused(capsys, tmp_path, tmp_path / "absent.pt")
    (tmp_path / "empty").mkdir()
    assert "a folder without a model" in refused(capsys, tmp_path, tmp_path / "empty")


def test_misuse_exits_with_2_in_one_line(tmp_path, capsys, generator_file):
    for flags in (["--dtype=int8"], ["--weights=best"], ["--resolution=0"], ["--surprise"]):
        error = refused(capsys, tmp_path, generator_file, *flags, code=2)
        assert len(error.splitlines()) == 1 and "--help" in error


def test_help_is_for_people(capsys):
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    assert "examples:" in text and "--dry-run" in text
    assert max(map(len, text.splitlines())) <= 100


def test_unknown_weights_are_described_with_what_is_known(tmp_path, capsys):
    np.savez(tmp_path / "x.npz", **{"layer.weight": np.ones((2, 3))})
    error = refused(capsys, tmp_path, tmp_path / "x.npz")
    assert "layer.weight: tensor (2, 3)" in error and "diffusers" in error


def test_unmapped_and_unfilled_are_listed(tmp_path, capsys):
    state, _ = fixture_arrays("rosinality_sg2_r32_random.npz")
    state["extra.weight"] = np.ones(3, "f4")
    del state["to_rgbs.0.bias"]
    np.savez(tmp_path / "x.npz", **state)
    error = refused(capsys, tmp_path, tmp_path / "x.npz")
    assert "no rule for source tensor extra.weight (3,)" in error
    assert "nothing fills parameter synthesis/b8/torgb/bias (3,)" in error


def test_nan_and_infinite_weights_are_converted_and_named(tmp_path, capsys):
    state, _ = fixture_arrays("nvlabs_sg2ada_r32_random.npz")
    state["synthesis.b8.conv1.bias"] = state["synthesis.b8.conv1.bias"].copy()
    state["synthesis.b8.conv1.bias"][3] = np.nan
    state["mapping.w_avg"] = np.full(64, np.inf, "f4")
    np.savez(tmp_path / "x.npz", **state)
    assert command(tmp_path / "x.npz", tmp_path / "out") == 0
    error = capsys.readouterr().err
    assert "NaN or infinity in synthesis.b8.conv1.bias" in error
    assert "NaN or infinity in mapping.w_avg" in error
    params = fpjax.load_generator(tmp_path / "out").params
    assert np.isnan(params["synthesis"]["b8"]["conv1"]["bias"][3])


def test_values_that_float16_cannot_hold_are_refused_not_made_infinite(tmp_path, capsys):
    state, _ = fixture_arrays("nvlabs_sg2ada_r32_random.npz")
    state["mapping.w_avg"] = np.full(64, 1e6, "f4")
    np.savez(tmp_path / "x.npz", **state)
    error = refused(capsys, tmp_path, tmp_path / "x.npz", "--dtype=float16")
    assert "mapping.w_avg has values that float16 cannot hold" in error
    assert command(tmp_path / "x.npz", tmp_path / "out", "--dtype=bfloat16") == 0


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("file_format", ["safetensors", "orbax"])
def test_every_format_and_dtype_is_verified_against_torch(
    tmp_path, capsys, generator_file, dtype, file_format
):
    pytest.importorskip("torch", reason="--verify asks torch")
    flags = ("--verify", f"--dtype={dtype}", f"--format={file_format}")
    assert command(generator_file, tmp_path / "out", *flags) == 0
    assert "verified: 64 parameters" in capsys.readouterr().out
    fpjax.load_generator(tmp_path / "out")


def test_a_difference_from_torch_is_an_error_and_nothing_is_written(
    tmp_path, capsys, monkeypatch, generator_file
):
    pytest.importorskip("torch", reason="--verify asks torch")
    whole = output.cast
    monkeypatch.setattr(output, "cast", lambda array, dtype: whole(array, dtype) + 1)
    assert command(generator_file, tmp_path / "out", "--verify") == 1
    assert "verification failed for 64 tensors" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_torch_would_have_to_run_is_said_to_be_unverified(tmp_path, capsys):
    assert command(fixture("nvlabs_sg2ada_r32_random.npz"), tmp_path / "out", "--verify") == 0
    assert "not verified: it is a NumPy file" in capsys.readouterr().err


def test_safetensors_is_written_as_its_library_would(tmp_path, generator_file):
    """The streamed file has no gaps, starts its data aligned, and reads back elsewhere."""
    from safetensors.numpy import load_file

    assert command(generator_file, tmp_path / "out") == 0
    file = tmp_path / "out" / "params.safetensors"
    (length,) = struct.unpack("<Q", file.read_bytes()[:8])
    assert length % 8 == 0
    tensors = load_file(file)
    assert len(tensors) == 64
    plan = recognise(generator_file, Request()).parts[0].plan
    for step, array in plan.arrays():
        np.testing.assert_array_equal(tensors[step.target], array)


def test_one_tensor_is_held_at_a_time(tmp_path):
    """Peak memory is of the order of the largest tensor, not of the file (64 MiB here)."""
    import tracemalloc

    from checkpoints_convert.table import Rule, convert

    np.savez(tmp_path / "x.npz", **{f"l{i}": np.ones((1024, 1024), "f4") for i in range(16)})
    tensors = read(tmp_path / "x.npz").tensors()
    shapes = {name: (1024, 1024) for name in tensors}
    plan = convert(tensors, [Rule(r"(l\d+)", r"\1", "transpose")], [], shapes)
    tracemalloc.start()
    output.write_params(tmp_path, plan, "float32", "safetensors", lambda count: None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "params.safetensors").stat().st_size > 16 * 4 << 20
    # 4 MiB a tensor: the copy being written, the next one, and their masks.
    assert peak < 4 * 4 << 20


def test_an_interrupted_conversion_leaves_nothing(tmp_path, monkeypatch, generator_file):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("checkpoints_convert.convert.write_params", interrupt)
    assert command(generator_file, tmp_path / "out") == 130
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_orbax_folder_is_refused(tmp_path, generator_file):
    assert command(generator_file, tmp_path / "out", "--format=orbax") == 0
    for file in (tmp_path / "out" / "params").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(ValueError, match="damaged"):
        fpjax.load_generator(tmp_path / "out")


def test_unknown_formats_are_refused_by_the_function_too(tmp_path, generator_file):
    with pytest.raises(ValueError, match="choose one of float32"):
        convert_file(generator_file, tmp_path / "out", dtype="int8")
    with pytest.raises(ValueError, match="choose safetensors or orbax"):
        convert_file(generator_file, tmp_path / "out", file_format="zip")
    with pytest.raises(ConversionError, match="no single network of --weights raw"):
        convert_file(generator_file, tmp_path / "out", Request(weights="raw"))


def test_names_of_a_file_cannot_forge_a_line(tmp_path, capsys):
    """A line break in a name would print a verdict of its own, ESC would reach the terminal."""
    state, _ = fixture_arrays("rosinality_sg2_r32_random.npz")
    forged = "x\nverified: 64 parameters equal PyTorch's reading\x1b[2J\u202e"
    from safetensors.numpy import save_file

    tree = {f"g_ema.{name}": np.array(value) for name, value in state.items()}
    save_file(tree | {f"d.{forged}": np.ones(2, "f4")}, tmp_path / "left.safetensors")
    save_file({**state, forged: np.ones(2, "f4")}, tmp_path / "refused.safetensors")
    save_file({forged: np.ones(2, "f4")}, tmp_path / "unknown.safetensors")
    for file in ("left", "refused", "unknown"):
        for flags in ((), ("--dry-run",)):
            out = tmp_path / f"{file}{len(flags)}"
            command(tmp_path / f"{file}.safetensors", out, *flags)
            printed = "".join(capsys.readouterr())
            assert "\\nverified: 64" in printed and "\x1b" not in printed
            assert "\u202e" not in printed and "\nverified" not in printed.replace("\\n", "")


def test_a_name_that_the_terminal_cannot_show_is_no_error(tmp_path):
    name = "g\u00fc\u4e2d\U0001f600"
    np.savez(tmp_path / "x.npz", **{name: np.ones(2)})
    done = subprocess.run(
        [sys.executable, "-m", "checkpoints_convert.command", str(tmp_path / "x.npz"), "out"],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "nothing known: a npz file with g" in done.stderr


def test_the_dry_run_says_how_large_the_output_will_be(tmp_path, capsys, generator_file):
    assert command(generator_file, tmp_path / "out", "--dry-run") == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("stylegan2, ")]
    assert command(generator_file, tmp_path / "out", "--dtype=bfloat16") == 0
    size = (tmp_path / "out" / "params.safetensors").stat().st_size
    stated = float(line.split("parameters, ")[1].split(" MiB")[0])
    assert stated == pytest.approx(2 * size / (1 << 20), abs=0.06)
    assert f"{stated / 2:.1f} MiB in bfloat16" in capsys.readouterr().out


@pytest.mark.parametrize("length", [8, 12, 64])
def test_the_publishers_hash_is_compared(tmp_path, capsys, generator_file, length):
    digest = read(generator_file).sha256()
    for flags in (("--dry-run",), ()):
        flag = f"--sha256={digest[:length].upper()}"
        assert command(generator_file, tmp_path / "out", flag, *flags) == 0
    capsys.readouterr()
    other = f"--sha256={'0' * length}"
    for flags in (("--dry-run",), ()):
        error = refused(capsys, tmp_path, generator_file, other, *flags) if not flags else None
        if flags:
            assert command(generator_file, tmp_path / "no", other, *flags) == 1
            error = capsys.readouterr().err
        assert f"has SHA-256 {digest}, not {'0' * length}" in error or "exists already" in error
    (tmp_path / "x").mkdir()
    with pytest.raises(ConversionError, match="has SHA-256"):
        convert_file(generator_file, tmp_path / "y", sha256="0" * length)
    assert not (tmp_path / "y").exists()
    with pytest.raises(ValueError, match="8 to 64 hexadecimal digits"):
        convert_file(generator_file, tmp_path / "y", sha256="0" * 3)


def test_a_file_without_checksums_is_said_to_have_none(tmp_path, capsys, generator_file):
    """A flipped bit could not show in it; a zip archive's would."""
    from safetensors.numpy import save_file

    state = {name: tensor.numpy() for name, tensor in read(generator_file).tensors("g_ema").items()}
    plain = tmp_path / "plain.safetensors"
    save_file({name: np.ascontiguousarray(value) for name, value in state.items()}, plain)
    digest = read(plain).sha256()
    assert command(plain, tmp_path / "a") == 0
    assert f"plain.safetensors has no checksums inside; its SHA-256 is {digest}" in (
        capsys.readouterr().out
    )
    assert command(plain, tmp_path / "b", f"--sha256={digest}") == 0
    assert command(generator_file, tmp_path / "c") == 0
    assert "no checksums" not in capsys.readouterr().out


def test_a_hash_of_several_files_is_refused(tmp_path, capsys):
    decoder, encoder = fixture("taef2_decoder.pth"), fixture("taef2_encoder.pth")
    flags = (f"--encoder={encoder}", f"--sha256={read(decoder).sha256()}")
    assert "this conversion reads 2" in refused(capsys, tmp_path, decoder, *flags)


@pytest.mark.parametrize(
    ("version", "asked"), [("2.9.1+cpu", True), ("1.13.0", True), ("2.10.0", False), ("3.0", False)]
)
def test_a_second_opinion_is_asked_of_no_torch_with_published_holes(
    tmp_path, capsys, monkeypatch, generator_file, version, asked
):
    torch = pytest.importorskip("torch", reason="a second opinion is torch's")
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr(torch, "load", None if asked else torch.load)  # it must not be called
    assert command(generator_file, tmp_path / "out", "--verify") == 0
    out, err = capsys.readouterr()
    if asked:
        assert f"not verified: PyTorch {version} is installed" in err and "torch>=2.10" in err
    else:
        assert "verified: 64 parameters" in out


def test_a_file_that_holds_itself_does_not_keep_the_verification_busy(tmp_path):
    from checkpoints_convert import verify

    torch = pytest.importorskip("torch", reason="a second opinion is torch's")
    tree = {"a": torch.ones(2)}
    tree["self"] = tree
    torch.save(tree, tmp_path / "cycle.pt")
    with pytest.raises(verify.NotVerifiable, match="contains itself"):
        verify.load_with_torch(str(tmp_path / "cycle.pt"))


BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "tensorflow", "dnnlib", "pickle5"):
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Blocker())
from checkpoints_convert.command import run
code = run(sys.argv[1:])
import fpjax
generator = fpjax.load_generator(sys.argv[2])
assert generator.image_shape == (32, 32, 3)
sys.exit(code)
"""


def test_conversion_needs_no_torch(tmp_path, generator_file):
    arguments = [str(generator_file), str(tmp_path / "out"), "--verify"]
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "not verified: PyTorch is not installed" in done.stderr
