"""Files and folders appear whole or not at all, also when the writer is killed."""

import os
import signal
import subprocess
import sys
import time

import pytest

from fpjax.io.atomic import atomic_directory, atomic_write


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="No space"), atomic_write(path) as file:
        file.write(b"half of the n")
        raise OSError(28, "No space left on device")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_failed_folder_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), atomic_directory(tmp_path / "folder") as folder:
        (folder / "part").write_text("x")
        raise RuntimeError
    assert os.listdir(tmp_path) == []


def test_an_existing_folder_is_refused_before_any_work(tmp_path):
    (tmp_path / "folder").mkdir()
    with (
        pytest.raises(FileExistsError, match="exists already"),
        atomic_directory(tmp_path / "folder"),
    ):
        pytest.fail("the block must not run")


_KILLED = """
import sys, time
from fpjax.io.atomic import atomic_write, atomic_directory
with atomic_write(sys.argv[1] + "/file") as file, atomic_directory(sys.argv[1] + "/folder") as f:
    file.write(b"new"); (f / "part").write_text("new"); file.flush()
    print("ready", flush=True); time.sleep(60)
"""


def test_kill_9_in_the_middle_leaves_what_was_there(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    arguments = [sys.executable, "-c", _KILLED, tmp_path]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGKILL)
    assert (tmp_path / "file").read_bytes() == b"old"
    assert not (tmp_path / "folder").exists()


def test_files_get_the_permissions_that_others_get(tmp_path):
    with atomic_write(tmp_path / "file") as file:
        file.write(b"x")
    (tmp_path / "plain").write_bytes(b"x")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert time.time() - (tmp_path / "file").stat().st_mtime < 60
