"""`fpjax generate`: images that carry a key, each whole, none overwritten, none of another user."""

import os
import signal
import stat

import pytest

from fpjax.cli.main import run
from fpjax.io import images as files
from fpjax.io.images import load_image


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def test_a_seed_repeats_its_images(workplace, tmp_path, capsys):
    assert workplace.generate("ada", "--num=10", "--seed=5", f"--out={tmp_path}") == 0
    assert capsys.readouterr().out.split() == sorted(str(path) for path in tmp_path.glob("*.png"))
    assert contents(tmp_path) == contents(workplace.folder / "ada")
    assert load_image(tmp_path / "5-0000.png", (12, 10, 1)).shape == (12, 10, 1)


def test_without_a_seed_images_are_fresh(workplace, tmp_path):
    for _ in range(2):
        assert workplace.generate("ada", "--num=1", f"--out={tmp_path}") == 0
    assert len(set(contents(tmp_path).values())) == 2


def test_images_are_never_overwritten(workplace, capsys):
    before = contents(workplace.folder / "ada")
    again = ["ada", "--num=2", "--seed=5", f"--out={workplace.folder / 'ada'}"]
    assert workplace.generate(*again) == 1
    assert "exists already" in capsys.readouterr().err
    assert contents(workplace.folder / "ada") == before


@pytest.fixture
def third_image(monkeypatch):
    """Does something instead of writing the third image."""
    real, written = files.save_image, []

    def arrange(event):
        def save_image(path, image):
            if len(written) == 2:
                event()
            real(path, image)
            written.append(path)

        monkeypatch.setattr(files, "save_image", save_image)

    yield arrange


def _full_disk():
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("event", "code"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGTERM), 128 + signal.SIGTERM),
        (lambda: os.kill(os.getpid(), signal.SIGINT), 130),
        (_full_disk, 1),
    ],
)
def test_an_early_end_says_how_many_are_written_and_resume_makes_the_others(
    workplace, tmp_path, third_image, monkeypatch, capsys, event, code
):
    """The images are those of a run that did not end early."""
    third_image(event)
    arguments = ["ada", "--num=10", "--seed=5", f"--out={tmp_path}"]
    assert workplace.generate(*arguments) == code
    assert "2 of 10 images are in" in (error := capsys.readouterr().err)
    assert "--seed 5 --resume" in error
    assert len(contents(tmp_path)) == 2
    monkeypatch.undo()
    assert workplace.generate(*arguments, "--resume") == 0
    assert capsys.readouterr().out.count("\n") == 8
    assert contents(tmp_path) == contents(workplace.folder / "ada")


def test_resume_adds_to_a_seed_and_changes_nothing_that_is_there(workplace, tmp_path):
    assert workplace.generate("ada", "--num=2", "--seed=7", f"--out={tmp_path}") == 0
    before = contents(tmp_path)
    assert workplace.generate("ada", "--num=3", "--seed=7", f"--out={tmp_path}", "--resume") == 0
    after = contents(tmp_path)
    assert len(after) == 3 and before.items() <= after.items()
    assert len(set(after.values())) == 3


def test_resume_does_not_take_one_users_images_for_anothers(workplace, tmp_path, capsys):
    assert workplace.generate("ada", "--num=1", "--seed=5", f"--out={tmp_path}") == 0
    again = ["blaise", "--num=2", "--seed=5", f"--out={tmp_path}", "--resume"]
    assert workplace.generate(*again) == 1
    assert "of user ada, not blaise" in capsys.readouterr().err
    (tmp_path / ".5.json").unlink()
    assert workplace.generate(*again) == 1
    assert "does not say whose" in capsys.readouterr().err
    assert len(contents(tmp_path)) == 1


@pytest.mark.parametrize("where", ["file", "file/images", "/dev/null"])
def test_an_unwritable_folder_fails_at_the_start(tmp_path, monkeypatch, where, capsys):
    from fpjax.cli import common

    monkeypatch.setattr(common, "open_scheme", lambda args: pytest.fail("the work has begun"))
    (tmp_path / "file").touch()
    assert run(["generate", "ada", f"--out={tmp_path / where}"]) == 1
    assert "nothing can be written there" in capsys.readouterr().err


def test_an_unknown_user_gets_a_hint_and_no_folder(workplace, tmp_path, capsys):
    assert workplace.generate("adda", f"--out={tmp_path / 'images'}") == 1
    assert "'ada'" in capsys.readouterr().err
    assert not (tmp_path / "images").exists()


def test_the_registry_is_private(workplace):
    assert stat.S_IMODE((workplace.folder / "users.db").stat().st_mode) == 0o600


def test_user_list_shows_keys_only_when_asked(workplace, capsys):
    registry = workplace.flags[-1]
    assert run(["user", "list", registry]) == 0
    assert capsys.readouterr().out.split() == ["ada", "blaise"]
    assert run(["user", "list", "--nokeys", registry]) == 0
    assert capsys.readouterr().out.split() == ["ada", "blaise"]
    assert run(["user", "list", "--keys", registry]) == 0
    assert len(capsys.readouterr().out.split()[1]) == 2  # eight bits


def test_a_distance_that_keys_cannot_have_is_a_wrong_call(workplace, tmp_path, capsys):
    flags = [*workplace.flags[:2], f"--registry={tmp_path / 'users.db'}"]
    assert run(["user", "add", "ada", "--minimum_distance=9", *flags]) == 2
    assert "keys of this scheme have 8 bits" in capsys.readouterr().err
    assert not (tmp_path / "users.db").exists()
    assert run(["user", "add", "ada", "--minimum_distance=8", *flags]) == 0
