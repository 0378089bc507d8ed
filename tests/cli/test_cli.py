"""The command line, as a person uses it: help, whole jobs on the bundled model, and bad input."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fpjax.cli.main import COMMANDS, run
from fpjax.data.files import load_image, save_image


def test_help_names_every_command(capsys):
    assert run(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in COMMANDS)
    assert run([]) == 2


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_with_its_flags(name, capsys):
    assert run([*name.split(), "--help"]) == 0
    printed = capsys.readouterr().out
    assert f"fpjax {name}" in printed and "Flags:" in printed
    assert all(len(line) <= 100 for line in printed.splitlines())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["atribute"], "no command 'atribute'"),
        (["user"], "user add or user list"),
        (["attribute"], "name the images"),
        (["attribute", "x.png", "--speed=9"], "Unknown command line flag 'speed'"),
        (["attribute", "x.png", "--false_positive_rate=2"], "false_positive_rate"),
        (["generate"], "name one user"),
        (["demo", "extra"], "flags only"),
        (["scheme", "create"], "--out"),
        (["basis", "--num_samples=1"], "num_samples"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_code_2(arguments, message, capsys):
    assert run(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """Two registered users, and two images of the first."""
    folder = tmp_path_factory.mktemp("cli")
    registry = f"--registry={folder / 'users.db'}"
    assert run(["user", "add", "ada", "blaise", registry]) == 0
    assert run(["generate", "ada", "--num=2", "--seed=5", f"--out={folder / 'ada'}", registry]) == 0
    return folder, registry


def test_the_registry_is_private(workplace):
    mode = stat.S_IMODE(os.stat(workplace[0] / "users.db").st_mode)
    assert mode == 0o600


def test_user_list_shows_keys_only_when_asked(workplace, capsys):
    assert run(["user", "list", workplace[1]]) == 0
    assert capsys.readouterr().out.split() == ["ada", "blaise"]
    assert run(["user", "list", "--keys", workplace[1]]) == 0
    assert len(capsys.readouterr().out.split()[1]) == 16


def test_images_are_traced_and_bad_files_do_not_stop_the_others(workplace, capsys):
    """One batch: two good images, and every kind of file that cannot be answered."""
    folder, registry = workplace
    good = sorted(str(path) for path in (folder / "ada").glob("*.png"))
    (folder / "text.png").write_text("no picture")
    save_image(folder / "large.png", np.zeros((64, 64, 3), np.uint8))
    (folder / "broken.png").write_bytes(Path(good[0]).read_bytes()[:200])
    bad = [str(folder / name) for name in ("text.png", "large.png", "broken.png", "missing.png")]
    out = folder / "answers.json"
    assert run(["attribute", *bad, *good, registry, f"--json={out}"]) == 1
    printed = capsys.readouterr()
    for path, message in zip(
        bad,
        ("not an image file", "the image is 64x64", "cannot be read", "no such file"),
        strict=True,
    ):
        line = next(line for line in printed.err.splitlines() if path in line)
        assert message in line
    assert printed.out.count(": ada (") == 2
    answers = json.loads(out.read_text())["images"]
    assert [entry["status"] for entry in answers] == ["error"] * 4 + ["attributed"] * 2
    assert {entry["user"] for entry in answers[4:]} == {"ada"}


def test_an_image_of_nobody_is_turned_away_with_exit_code_0(workplace, capsys):
    folder, registry = workplace
    image = load_image(next((folder / "ada").glob("*.png")))
    save_image(folder / "negative.png", 255 - image)
    assert run(["attribute", str(folder / "negative.png"), registry, "--json=-"]) == 0
    answers = json.loads(capsys.readouterr().out)["images"]
    assert answers[0]["status"] == "not attributed" and answers[0]["user"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "adda"], "ada"),
        (["generate", "ada", "--scheme=nowhere"], "no scheme.json"),
        (["generate", "ada", "--generator=nowhere"], "nowhere"),
        (["basis", "--generator=nowhere"], "neither a bundled generator"),
    ],
)
def test_what_is_not_there_is_named_on_one_line(workplace, arguments, message, capsys):
    arguments = [*arguments, workplace[1]] if arguments[0] == "generate" else arguments
    assert run(arguments) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_scheme_of_another_generator_is_refused_with_both_hashes(
    workplace, tiny_generator, tmp_path, capsys
):
    tiny_generator.save(tmp_path / "tiny")
    assert run(["generate", "ada", workplace[1], f"--generator={tmp_path / 'tiny'}"]) == 1
    assert tiny_generator.sha256 in capsys.readouterr().err


def test_images_are_never_overwritten(workplace, capsys):
    folder, registry = workplace
    again = ["generate", "ada", "--num=2", "--seed=5", f"--out={folder / 'ada'}", registry]
    assert run(again) == 1
    assert "exists already" in capsys.readouterr().err


def test_the_demo_does_not_replace_a_folder_of_other_things(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("chapter 1")
    assert run(["demo", f"--out={tmp_path}"]) == 1
    assert "other things" in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").exists()


def test_basis_shows_the_spectrum_and_writes_it(tmp_path, capsys):
    out = tmp_path / "basis.npz"
    assert run(["basis", "--num_samples=600", f"--out={out}"]) == 0
    assert "512 components of 512-d latents" in capsys.readouterr().out
    assert np.load(out)["components"].shape == (512, 512)


def test_scheme_create_makes_a_scheme_that_attribute_can_use(tiny_generator, tmp_path, capsys):
    tiny_generator.save(tmp_path / "generator")
    arguments = ["--key_length=6", "--strength=0.5", "--num_samples=500", "--num_null_images=6"]
    arguments += ["--num_start_images=500", f"--generator={tmp_path / 'generator'}"]
    with pytest.warns(UserWarning, match="images"):
        assert run(["scheme", "create", f"--out={tmp_path / 'scheme'}", *arguments]) == 0
    assert "residuals" in capsys.readouterr().out
    from fpjax.fingerprint.scheme import Scheme

    assert "calibration" in Scheme.load(tmp_path / "scheme", tiny_generator).notes
    assert run(["scheme", "create", f"--out={tmp_path / 'scheme'}", *arguments]) == 2


def test_ctrl_c_is_one_line_and_exit_code_130(monkeypatch, capsys):
    from fpjax.cli import basis

    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(basis, "main", interrupted)
    assert run(["basis"]) == 130
    assert capsys.readouterr().err == "fpjax: interrupted\n"


def test_the_console_scripts_are_installed_with_the_bundled_model(tmp_path):
    """From another folder, so that the installed package answers and not the checkout."""
    scripts = Path(sys.executable).parent
    for arguments in (["fpjax", "--version"], ["fpjax", "user", "list", "--help"]):
        command = [scripts / arguments[0], *arguments[1:]]
        subprocess.run(command, capture_output=True, check=True, cwd=tmp_path)
    subprocess.run(
        [scripts / "fpjax-convert", "--help"], capture_output=True, check=True, cwd=tmp_path
    )
    code = "import fpjax; print(fpjax.load_scheme('avatars-stylegan2').id)"
    environment = {name: v for name, v in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, cwd=tmp_path, env=environment
    )
