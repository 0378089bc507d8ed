"""The command itself: help, wrong calls, errors on one line, signals, and generators by name."""

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fpjax.cli import basis, common
from fpjax.cli.main import COMMANDS, run
from fpjax.errors import FpjaxError

OWN = Path(__file__).parent / "own_generator.py"


def test_help_names_every_command(capsys):
    assert run(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in COMMANDS)
    assert run(["help"]) == 0
    assert capsys.readouterr().out == printed
    assert run([]) == 2


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_with_its_flags(name, capsys):
    assert run([*name.split(), "--help"]) == 0
    printed = capsys.readouterr().out
    assert f"fpjax {name}" in printed and "Flags:" in printed
    assert all(len(line) <= 100 for line in printed.splitlines())


def test_help_loads_no_heavy_package():
    """A person who asks for help waits for the interpreter alone."""
    code = (
        "import sys; from fpjax.cli.main import run; run(['attribute', '--help']);"
        "print(*{'jax', 'numpy', 'rich', 'jinja2', 'PIL', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.splitlines()[-1] == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["atribute"], "invalid choice: 'atribute'"),
        (["user"], "user add or user list or user revoke"),
        (["user", "remove"], "invalid choice: 'remove'"),
        (["attribute"], "name the images"),
        (["attribute", "x.png", "--speed=9"], "--speed=9; see fpjax attribute --help"),
        (["attribute", "x.png", "--false_positive_rate=2"], "false_positive_rate"),
        (["attribute", "x.png", "--false_positive_rate=nan"], "false_positive_rate"),
        (["attribute", "x.png", "--noise=0"], "noise"),
        (["attribute", "x.png", "--resume"], "--json"),
        (["attribute", "x.png", "--resume", "--json=-"], "--json"),
        (["generate"], "name one user"),
        (["generate", "ada", "blaise"], "blaise"),
        (["generate", "ada", "--num=0"], "num"),
        (["generate", "ada", "--resume"], "--seed"),
        (["demo", "extra"], "extra"),
        (["scheme", "create"], "--out"),
        (["scheme", "create", "--out=x", "--metric=pixels"], "metric"),
        (["basis", "--num_samples=1"], "num_samples"),
        (["basis", "--seed=x"], "seed"),
        (["basis", "--flagfile=nowhere"], "nowhere"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_code_2(arguments, message, capsys):
    assert run(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def _basis_raises(monkeypatch, error):
    def main(args):
        raise error

    monkeypatch.setattr(basis, "main", main)


def test_an_error_of_the_library_is_one_line_that_no_terminal_obeys(monkeypatch, capsys):
    _basis_raises(monkeypatch, FpjaxError("a\nb \x1b[31m \u202eevil"))
    assert run(["basis"]) == 1
    assert capsys.readouterr().err == "fpjax: a b \\x1b[31m \\u202eevil\n"


def test_an_error_of_the_system_is_one_line(monkeypatch, capsys):
    _basis_raises(monkeypatch, PermissionError(13, "Permission denied", "secret"))
    assert run(["basis"]) == 1
    assert "Permission denied: 'secret'" in capsys.readouterr().err


@pytest.mark.parametrize("error", [ValueError("of JAX"), RuntimeError(), KeyError("x")])
def test_a_bug_shows_its_traceback(monkeypatch, error):
    """What is not a person's to mend must not be hidden behind one line."""
    _basis_raises(monkeypatch, error)
    with pytest.raises(type(error)):
        run(["basis"])


def test_ctrl_c_is_one_line_and_exit_code_130(monkeypatch, capsys):
    _basis_raises(monkeypatch, KeyboardInterrupt())
    assert run(["basis"]) == 130
    assert capsys.readouterr().err == "fpjax: interrupted\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_unwinds_what_is_being_done(monkeypatch, number, capsys):
    unwound = []

    def main(args):
        try:
            os.kill(os.getpid(), number)
            pytest.fail("the signal did not arrive")
        finally:
            unwound.append(True)

    monkeypatch.setattr(basis, "main", main)
    assert run(["basis"]) == 128 + number
    assert unwound and capsys.readouterr().err == f"fpjax: stopped by {number.name}\n"
    assert signal.getsignal(number) is signal.SIG_DFL


def test_a_signal_that_is_ignored_stays_ignored(monkeypatch):
    """As under nohup."""
    monkeypatch.setattr(basis, "main", lambda args: os.kill(os.getpid(), signal.SIGHUP) or 0)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run(["basis"]) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_reader_that_has_gone_is_exit_code_1(monkeypatch):
    """As in `fpjax ... | head -1`: no traceback, also when the interpreter ends."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        monkeypatch.setattr(basis, "main", lambda args: print("x" * 100) or 0)
        assert run(["basis"]) == 1


def test_what_the_terminal_cannot_show_is_escaped(monkeypatch):
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setattr(basis, "main", lambda args: print("Zoë") or 0)
    assert run(["basis"]) == 0
    assert stdout.buffer.getvalue() == b"Zo\\xeb\n"


def test_a_generator_is_a_bundled_name_a_folder_or_a_function(tmp_path, tiny_generator):
    tiny_generator.save(tmp_path / "tiny")
    assert common.open_generator("avatars-stylegan2").image_shape == (32, 32, 3)
    assert common.open_generator(str(tmp_path / "tiny")).sha256 == tiny_generator.sha256
    assert common.open_generator(f"{OWN}:make").image_shape == (12, 10, 1)
    assert common.open_generator("tests.cli.own_generator:make").name == "own"


def test_a_file_with_a_generator_can_import_what_lies_beside_it(tmp_path, monkeypatch):
    """As a script can."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own_weights_beside.py").write_text(OWN.read_text())
    (tmp_path / "entry.py").write_text("from own_weights_beside import make\n")
    assert common.open_generator(f"{tmp_path / 'entry.py'}:make").name == "own"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "ada", "--scheme=nowhere"], "no scheme.json"),
        (["generate", "ada", "--generator=nowhere"], "neither a bundled generator"),
        (["basis", "--generator=nowhere"], "neither a bundled generator"),
        (["basis", "--generator=nowhere.py:make"], "nowhere.py"),
        (["basis", "--generator=os:getcwd"], "expected a fpjax.Generator"),
        (["user", "list", "--registry=nowhere"], "no registry nowhere"),
    ],
)
def test_what_is_not_there_is_named_on_one_line(arguments, message, capsys):
    assert run(arguments) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_scheme_of_another_generator_is_refused_with_both_hashes(
    workplace, tiny_generator, tmp_path, capsys
):
    tiny_generator.save(tmp_path / "tiny")
    other = f"--generator={tmp_path / 'tiny'}"
    assert run(["generate", "ada", *workplace.flags, other, f"--out={tmp_path}"]) == 1
    assert tiny_generator.sha256 in capsys.readouterr().err


def test_a_named_pipe_for_a_scheme_is_not_waited_for(tmp_path, capsys):
    os.mkfifo(tmp_path / "scheme.json")
    assert run(["user", "add", "ada", f"--scheme={tmp_path}"]) == 1
    assert "not a regular file" in capsys.readouterr().err


@pytest.mark.parametrize("metric", ["latent", "image"])
def test_basis_shows_the_spectrum_and_writes_it(metric, tmp_path, capsys):
    import numpy as np

    out = tmp_path / "basis.npz"
    small = ["--num_samples=100", "--num_jacobians=4", f"--metric={metric}"]
    assert run(["basis", f"--generator={OWN}:make", f"--out={out}", *small]) == 0
    assert "10 directions of 10-d latents" in capsys.readouterr().out
    arrays = np.load(out)
    product = arrays["dual"] @ arrays["directions"].T
    np.testing.assert_allclose(product, np.eye(10), atol=1e-4)  # float32


def test_directions_are_fitted_as_flags_say(monkeypatch, capsys):
    from fpjax.fingerprint import fit, grid_metric

    assert basis.NUM_PROBES == grid_metric.NUM_PROBES

    def fitted(generator, key, num_samples, **options):
        raise FpjaxError(f"asked for {num_samples}, {options['num_probes']}")

    monkeypatch.setattr(fit, "fit_basis", fitted)
    flags = ["--num_samples=100", "--num_probes=40"]
    assert run(["basis", f"--generator={OWN}:make", *flags]) == 1
    assert "asked for 100, 40" in capsys.readouterr().err


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
