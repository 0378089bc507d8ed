"""`fpjax attribute`: verdicts from files, and no finished answer lost however a run ends."""

import io
import json
import os
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fpjax.attribution import files
from fpjax.attribution.registry import Registry
from fpjax.cli.main import run
from fpjax.io.images import load_image, save_image

BATCH = 8
"""Images answered at once on a CPU: what an early end may cost."""


def read(path) -> dict:
    return json.loads(Path(path).read_text())


@pytest.fixture
def in_second_batch(monkeypatch):
    """Does something instead of answering the second batch; returns the sizes of all batches."""
    real, sizes = files.attribute, []

    def arrange(event):
        def attribute(scheme, images, *rest, **options):
            sizes.append(len(images))
            if len(sizes) == 2:
                event()
            return real(scheme, images, *rest, **options)

        monkeypatch.setattr(files, "attribute", attribute)
        return sizes

    return arrange


def test_images_are_traced_and_bad_files_do_not_stop_the_others(workplace, tmp_path, capsys):
    """Two good images, and every kind of file that cannot be answered."""
    good = workplace.images[:2]
    (tmp_path / "text.png").write_text("no picture")
    save_image(tmp_path / "large.png", np.zeros((64, 48, 3), np.uint8))
    (tmp_path / "broken.png").write_bytes(Path(good[0]).read_bytes()[:90])
    os.mkfifo(tmp_path / "pipe.png")  # nobody writes to it: it must not be waited for
    messages = {
        "text.png": "not an image file",
        "large.png": "the image is 48x64, the generator makes 10x12",
        "broken.png": "cannot be read",
        "missing.png": "no such file",
        "pipe.png": "no regular file",
    }
    bad = [str(tmp_path / name) for name in messages]
    out = tmp_path / "answers.json"
    assert workplace.attribute(*bad, *good, "/dev/zero", f"--json={out}") == 1
    printed = capsys.readouterr()
    for path, message in zip([*bad, "/dev/zero"], [*messages.values(), "file"], strict=True):
        line = next(line for line in printed.err.splitlines() if path in line)
        assert message in line
    assert printed.out.count(": ada (8/8 bits") == 2
    answers = read(out)
    assert [entry["status"] for entry in answers["images"]] == [
        *["error"] * 5,
        *["attributed"] * 2,
        "error",
    ]
    assert {entry["user"] for entry in answers["images"][5:7]} == {"ada"}


def test_an_image_of_nobody_is_turned_away_with_exit_code_0(workplace, tmp_path, capsys):
    image = load_image(workplace.images[0], (12, 10, 1))
    save_image(tmp_path / "negative.png", 255 - image[::-1])
    assert workplace.attribute(str(tmp_path / "negative.png"), "--json=-") == 0
    answers = json.loads(capsys.readouterr().out)
    assert answers["complete"] is True
    assert answers["images"][0]["status"] == "not attributed"
    assert answers["images"][0]["user"] is None


def test_answers_say_what_they_rest_on_and_are_private(workplace, tmp_path):
    from fpjax.cli.common import open_generator
    from fpjax.fingerprint.scheme import load_scheme

    out = tmp_path / "answers.json"
    assert workplace.attribute(workplace.images[0], f"--json={out}") == 0
    answers = read(out)
    generator = workplace.flags[0].removeprefix("--generator=")
    scheme = load_scheme(workplace.folder / "scheme", open_generator(generator))
    assert answers["complete"] is True
    assert answers["scheme"] == scheme.id
    assert answers["calibration"] == scheme.calibration.sha256
    assert (answers["observation"], answers["noise"]) == ("file", None)
    assert answers["solver"] == "levenberg-marquardt"
    assert answers["false_positive_rate"] == 0.05
    assert answers["num_users"] == 2
    assert answers["version"]
    entry = answers["images"][0]
    assert (entry["inversion"], entry["explained"]) == ("solved", True)
    assert len(entry["sha256"]) == 64
    assert stat.S_IMODE(out.stat().st_mode) == 0o600


def test_a_decoded_key_is_written_only_when_asked(workplace, tmp_path):
    """It is the registry's secret: whoever reads it can embed it."""
    out = tmp_path / "answers.json"
    with Registry.open(workplace.folder / "users.db") as registry:
        key = np.packbits(registry.key_of("ada")).tobytes().hex()
    assert workplace.attribute(workplace.images[0], f"--json={out}") == 0
    assert "key" not in read(out)["images"][0]
    assert workplace.attribute(workplace.images[0], f"--json={out}", "--show_keys") == 0
    assert read(out)["images"][0]["key"] == key


def test_noisy_files_are_read_as_such(workplace, tmp_path):
    """Taken for clean files they are unexplained; with --noise the residual is at the noise."""
    rng = np.random.default_rng(0)
    noisy = []
    for i, image in enumerate(workplace.images[:2]):
        pixels = load_image(image, (12, 10, 1)) + rng.normal(0, 0.05 * 127.5, (12, 10, 1))
        noisy.append(str(tmp_path / f"{i}.png"))
        save_image(noisy[-1], np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
    out = tmp_path / "answers.json"
    assert workplace.attribute(*noisy, f"--json={out}", "--noise=0.05") == 0
    answers = read(out)
    assert (answers["observation"], answers["noise"]) == ("gaussian-noise", 0.05)
    assert all(entry["explained"] for entry in answers["images"])
    assert workplace.attribute(*noisy, f"--json={out}") == 0
    assert not any(entry["explained"] for entry in read(out)["images"])


def test_names_cannot_forge_a_verdict_or_command_the_terminal(workplace, tmp_path, capsys):
    names = [
        "a\nb.png: eve (8 of 8 bits)",
        "\x1b[2J.png",
        "\u202egnp.png",
        "a.png: eve (8 of 8 bits)",
    ]
    for name in names:
        (tmp_path / name).write_bytes(Path(workplace.images[0]).read_bytes())
    missing = str(tmp_path / "no\nsuch\x1b.png")
    assert workplace.attribute(*(str(tmp_path / name) for name in names), missing) == 1
    printed = capsys.readouterr()
    lines = [line.removeprefix(f"{tmp_path}/") for line in printed.out.splitlines()]
    assert len(lines) == 4  # one an image
    assert lines[0].startswith(f"'{tmp_path}/a\\nb.png: eve (8 of 8 bits)': ada (")
    assert lines[1].startswith("\\x1b[2J.png: ada (")
    assert lines[2].startswith("\\u202egnp.png: ada (")
    assert lines[3].startswith(f"'{tmp_path}/a.png: eve (8 of 8 bits)': ada (")
    assert printed.err.count("\n") == 1 and "no\\nsuch\\x1b.png" in printed.err


def test_a_name_that_the_terminal_cannot_show_costs_nothing(workplace, tmp_path, monkeypatch):
    """Neither what its encoding lacks, nor bytes that are no text."""
    names = ["Zoë.png", os.fsdecode(b"\xff.png")]
    for name in names:
        (tmp_path / name).write_bytes(Path(workplace.images[0]).read_bytes())
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stdout)
    out = tmp_path / "answers.json"
    assert workplace.attribute(*(str(tmp_path / n) for n in names), f"--json={out}") == 0
    assert b"Zo\\xeb.png: ada" in stdout.buffer.getvalue()
    assert b"\\udcff.png: ada" in stdout.buffer.getvalue()
    assert [Path(entry["image"]).name for entry in read(out)["images"]] == names


def test_what_was_done_to_a_file_is_said(workplace, tmp_path, capsys):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 3
    pixels = load_image(workplace.images[0], (12, 10, 1))[::-1, ::-1, 0]
    turned = tmp_path / "turned.png"
    Image.fromarray(np.ascontiguousarray(pixels)).save(turned, exif=exif)
    out = tmp_path / "answers.json"
    assert workplace.attribute(str(turned), f"--json={out}") == 0
    assert "ada (8/8 bits" in (printed := capsys.readouterr().out)
    note = "turned by 180 degrees as its EXIF orientation says"
    assert note in printed and read(out)["images"][0]["notes"] == [note]


def test_files_are_opened_when_their_turn_comes(workplace, tmp_path, in_second_batch):
    """Not all ten thousand at first: a file of a later batch may still be on its way."""
    late = tmp_path / "late.png"
    images = [*workplace.images[:BATCH], str(late), workplace.images[-1]]
    real = late.write_bytes
    data = Path(workplace.images[0]).read_bytes()
    sizes = in_second_batch(lambda: None)
    out = tmp_path / "answers.json"

    from fpjax.cli.answers import Answers

    save = Answers.save

    def saved(answers, *rest, **options):
        save(answers, *rest, **options)
        if sizes == [BATCH]:
            real(data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Answers, "save", saved)
        assert workplace.attribute(*images, f"--json={out}") == 0
    assert sizes == [BATCH, 2]


def _kept(path, capsys, resume_hint=True):
    """Answers of a run that ended in its second batch."""
    answers = read(path)
    assert answers["complete"] is False
    assert len(answers["images"]) == BATCH
    assert all(entry["status"] == "attributed" for entry in answers["images"])
    error = capsys.readouterr().err
    assert ("8 of 10 images were answered" in error and "--resume" in error) is resume_hint
    return answers


def _resumes(workplace, path, sizes, capsys, kept):
    """--resume answers the other images, and leaves those that are answered as they are."""
    sizes.clear()
    assert workplace.attribute(*workplace.images, f"--json={path}", "--resume") == 0
    answers = read(path)
    assert sizes == [2]
    assert answers["complete"] is True
    assert answers["images"][:BATCH] == kept["images"]
    assert [entry["image"] for entry in answers["images"]] == list(workplace.images)
    assert capsys.readouterr().out.count("\n") == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_costs_one_batch(workplace, tmp_path, in_second_batch, capsys, number):
    sizes = in_second_batch(lambda: os.kill(os.getpid(), number))
    out = tmp_path / "answers.json"
    code = 130 if number == signal.SIGINT else 128 + number
    assert workplace.attribute(*workplace.images, f"--json={out}") == code
    _resumes(workplace, out, sizes, capsys, _kept(out, capsys))


def test_kill_9_costs_one_batch(workplace, tmp_path, in_second_batch, capsys):
    out = tmp_path / "answers.json"
    code = f"""
import os, sys
from fpjax.attribution import files
from fpjax.cli.main import run
real, sizes = files.attribute, []
def attribute(*given, **options):
    sizes.append(1)
    if len(sizes) == 2:
        os.kill(os.getpid(), 9)
    return real(*given, **options)
files.attribute = attribute
run(["attribute", *sys.argv[1:], "--false_positive_rate=0.05", "--json={out}"])
"""
    arguments = [*workplace.images, *workplace.flags]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL
    assert done.stdout.count(": ada (") == BATCH  # each batch is printed when it is answered
    kept = _kept(out, capsys, resume_hint=False)
    _resumes(workplace, out, in_second_batch(lambda: None), capsys, kept)


def test_a_full_disk_costs_one_batch(workplace, tmp_path, in_second_batch, capsys):
    """A limit on the size of files stands for the disk."""
    out = tmp_path / "answers.json"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    sizes = in_second_batch(
        lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (out.stat().st_size, limits[1]))
    )
    try:
        code = workplace.attribute(*workplace.images, f"--json={out}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 1
    error = capsys.readouterr().err
    assert "File too large" in error and "--resume" in error
    assert [path.name for path in tmp_path.iterdir()] == ["answers.json"]  # no half file
    kept = read(out)
    assert kept["complete"] is False and len(kept["images"]) == BATCH
    _resumes(workplace, out, sizes, capsys, kept)


def test_a_closed_pipe_costs_nothing_that_was_answered(workplace, tmp_path, in_second_batch):
    """As in `fpjax attribute ... --json FILE | head -1`: the batch is saved, then printed."""
    in_second_batch(lambda: pytest.fail("nobody reads what comes now"))
    out = tmp_path / "answers.json"
    reader, writer = os.pipe()
    os.close(reader)
    with pytest.MonkeyPatch.context() as patch, os.fdopen(writer, "w") as stdout:
        patch.setattr(sys, "stdout", stdout)
        assert workplace.attribute(*workplace.images, f"--json={out}") == 1
    answers = read(out)
    assert answers["complete"] is False and len(answers["images"]) == BATCH


def test_an_early_end_still_writes_what_there_is_to_standard_output(
    workplace, in_second_batch, capsys
):
    in_second_batch(lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert workplace.attribute(*workplace.images, "--json=-") == 128 + signal.SIGTERM
    answers = json.loads(capsys.readouterr().out)
    assert answers["complete"] is False and len(answers["images"]) == BATCH


def test_answers_of_a_run_that_ended_early_are_not_overwritten(
    workplace, tmp_path, in_second_batch, capsys
):
    sizes = in_second_batch(lambda: os.kill(os.getpid(), signal.SIGTERM))
    out = tmp_path / "answers.json"
    workplace.attribute(*workplace.images, f"--json={out}")
    kept = out.read_bytes()
    assert workplace.attribute(*workplace.images, f"--json={out}") == 1
    assert "go on with --resume" in capsys.readouterr().err
    assert out.read_bytes() == kept and len(sizes) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--noise=0.1", "observation"),
        ("--false_positive_rate=0.04", "false-positive rate"),
        ("version", "version of fpjax"),
        ("scheme", "scheme"),
        ("calibration", "calibration"),
        ("num_users", "number of registered users"),
    ],
)
def test_answers_of_other_settings_are_not_mixed(workplace, tmp_path, capsys, change, message):
    out = tmp_path / "answers.json"
    arguments = [*workplace.images[:1], *workplace.flags, f"--json={out}"]
    assert run(["attribute", *arguments, "--false_positive_rate=0.05"]) == 0
    if not change.startswith("--"):
        out.write_text(json.dumps({**read(out), change: "another"}))
    before = out.read_bytes()
    flags = ["--resume", "--false_positive_rate=0.05"]
    flags += [change] if change.startswith("--") else []
    assert run(["attribute", *arguments, *flags]) == 1
    error = capsys.readouterr().err
    assert f"begun with {message} " in error and error.count("\n") == 1
    assert out.read_bytes() == before


def test_resume_looks_again_at_a_file_that_changed_or_could_not_be_read(
    workplace, tmp_path, in_second_batch, capsys
):
    images = [tmp_path / f"{i}.png" for i in range(3)]
    for image in images[:2]:
        image.write_bytes(Path(workplace.images[0]).read_bytes())
    names, out = [str(image) for image in images], tmp_path / "answers.json"
    assert workplace.attribute(*names, f"--json={out}") == 1
    before = read(out)["images"]
    images[1].write_bytes(Path(workplace.images[1]).read_bytes())
    images[2].write_bytes(Path(workplace.images[2]).read_bytes())
    sizes = in_second_batch(lambda: None)
    assert workplace.attribute(*names, f"--json={out}", "--resume") == 0
    after = read(out)["images"]
    assert sizes == [2]
    assert after[0] == before[0]
    assert after[1]["sha256"] != before[1]["sha256"]
    assert after[2]["status"] == "attributed"


def test_resume_keeps_answers_of_images_that_are_not_named_or_are_gone(workplace, tmp_path):
    gone = tmp_path / "gone.png"
    gone.write_bytes(Path(workplace.images[0]).read_bytes())
    out = tmp_path / "answers.json"
    assert workplace.attribute(str(gone), workplace.images[1], f"--json={out}") == 0
    gone.unlink()
    again = [workplace.images[2], str(gone)]
    assert workplace.attribute(*again, f"--json={out}", "--resume") == 0
    answers = read(out)["images"]
    assert [entry["image"] for entry in answers] == [workplace.images[1], *again]
    assert all(entry["status"] == "attributed" for entry in answers)


def test_resume_without_a_file_starts_one(workplace, tmp_path):
    out = tmp_path / "answers.json"
    assert workplace.attribute(workplace.images[0], f"--json={out}", "--resume") == 0
    assert read(out)["complete"] is True


def test_flags_may_stand_between_images(workplace, tmp_path):
    out = tmp_path / "answers.json"
    first, second = workplace.images[:2]
    assert workplace.attribute(first, "--json", str(out), second, "--quiet", first) == 0
    assert [entry["image"] for entry in read(out)["images"]] == [first, second]


@pytest.fixture
def never_read(monkeypatch):
    """Fails where a scheme is opened: what cannot be written is refused before any work."""
    from fpjax.cli import common

    monkeypatch.setattr(common, "open_scheme", lambda args: pytest.fail("the work has begun"))


@pytest.mark.parametrize("where", ["folder", "file/answers.json", "pipe", "/dev/null"])
def test_an_unwritable_json_fails_at_the_start(tmp_path, never_read, where, capsys):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    assert run(["attribute", "x.png", f"--json={tmp_path / where}"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("fpjax: --json ") and error.count("\n") == 1


@pytest.mark.parametrize(
    "content", ["picture", "[]", '{"images": 3}', '{"images": [{}]}', "[" * 9999]
)
def test_a_file_of_other_things_is_not_overwritten(tmp_path, never_read, content, capsys):
    """As by `fpjax attribute --json *.png`."""
    out = tmp_path / "a.png"
    out.write_text(content)
    assert run(["attribute", "x.png", f"--json={out}"]) == 1
    assert "something else than answers" in capsys.readouterr().err
    assert out.read_text() == content


def test_a_jpeg_file_is_answered_with_what_was_done_to_it(workplace, tmp_path, capsys):
    pixels = load_image(workplace.images[0], (12, 10, 1))
    save_image(tmp_path / "sent.jpg", pixels)
    out = tmp_path / "answers.json"
    assert workplace.attribute(str(tmp_path / "sent.jpg"), f"--json={out}") == 0
    assert ": ada (after JPEG 75, " in capsys.readouterr().out
    (entry,) = read(out)["images"]
    assert entry["finding"] == "own file after JPEG 75"
    assert (entry["history"], entry["attempts"]) == ("JPEG 75", 1)


def test_noise_that_is_stated_is_not_looked_for(workplace, capsys):
    options = ["--noise=0.1", "--observation=auto"]
    assert workplace.attribute(workplace.images[0], *options) == 2
    assert "give one" in capsys.readouterr().err
