"""Registries as files: damaged, busy, foreign, private, and with processes that die."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest

from fpjax.attribution.registry import (
    FORMAT_VERSION,
    Registry,
    RegistryError,
)
from tests.attribution.registries import create, fill, mode


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys.db"


@pytest.mark.parametrize(
    "options",
    [
        {"key_length": 0},
        {"key_length": 8, "minimum_distance": 9},
        {"key_length": 8, "minimum_distance": -1},
        {"key_length": 8, "scheme_id": ""},
    ],
)
def test_settings_that_cannot_be_make_no_file(path, options):
    with pytest.raises(ValueError, match="is"):
        Registry.create(path, **{"scheme_id": "scheme-1", **options})
    assert not path.exists()


def test_no_existing_file_is_overwritten(path):
    path.write_text("dear diary")
    with pytest.raises(RegistryError, match="exists already"):
        create(path)
    assert path.read_text() == "dear diary"
    link = path.with_name("link.db")
    link.symlink_to(path.with_name("elsewhere.db"))
    with pytest.raises(RegistryError, match="exists already"):
        create(link)


def test_files_that_are_no_registry_are_refused_with_the_reason(path, tmp_path):
    with pytest.raises(RegistryError, match="there is no registry"):
        Registry.open(path)
    with pytest.raises(RegistryError, match="can't create the registry"):
        create(tmp_path / "no folder" / "keys.db")
    with pytest.raises(RegistryError, match="can't open the registry"):
        Registry.open(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(RegistryError, match="remove it and create"):
        Registry.open(path)
    path.write_bytes(b"user,key\n" * 1000)
    with pytest.raises(RegistryError, match="not a registry of keys"):
        Registry.open(path)
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE keys (user, key)")
    connection.close()
    with pytest.raises(RegistryError, match="is a database, but not a registry"):
        Registry.open(path)


def test_a_newer_format_is_refused(path):
    create(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {FORMAT_VERSION + 1}")
    connection.close()
    with pytest.raises(RegistryError, match=f"version {FORMAT_VERSION + 1}.*upgrade fpjax"):
        Registry.open(path)


def test_another_scheme_is_refused_and_both_are_named(path):
    create(path).close()
    with pytest.raises(RegistryError, match="'scheme-1', not to 'scheme-2'"):
        Registry.open(path, scheme_id="scheme-2")
    with Registry.open(path) as registry:
        assert registry.scheme_id == "scheme-1"


def test_a_damaged_file_is_reported_on_one_line(path):
    with create(path) as registry:
        fill(path, np.random.default_rng(0).integers(0, 2, (2000, 64), np.uint8))
    data = bytearray(path.read_bytes())
    data[4096 * 2 :] = os.urandom(len(data) - 4096 * 2)
    path.write_bytes(data)
    with pytest.raises(RegistryError, match="damaged") as error, Registry.open(path) as registry:
        registry.keys()
    assert "\n" not in str(error.value)


def test_a_busy_registry_is_reported_after_the_timeout(path):
    create(path).close()
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with Registry.open(path, timeout=0.1) as registry:
        with pytest.raises(RegistryError, match=r"writing to it for 0\.1 s: try again"):
            registry.issue("ada")
        blocker.execute("COMMIT")
        registry.issue("ada")
    blocker.close()


def test_a_full_disk_changes_nothing(path):
    with create(path) as registry:
        registry.issue("ada")
        pages = path.stat().st_size // 4096
        registry._connection.execute(f"PRAGMA max_page_count = {pages}")
        issued = ["ada"]
        with pytest.raises(RegistryError, match="the disk is full"):
            for number in range(1000):
                registry.issue(f"{number:0200}")
                issued.append(f"{number:0200}")
        assert registry.users() == issued
        registry._connection.execute("PRAGMA max_page_count = 1000000")
        registry.issue("bob")


@pytest.mark.skipif(os.name == "nt", reason="modes of files are POSIX")
@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_the_file_and_its_journals_are_private_at_any_umask(path, journal):
    umask = os.umask(0)
    try:
        with create(path) as registry:
            assert mode(path) == 0o600
            registry._connection.execute(f"PRAGMA journal_mode = {journal}")
            with registry._transaction("look at the journal") as connection:
                connection.execute("INSERT INTO keys (user, key) VALUES ('a', x'0011223344556677')")
                names = sorted(os.listdir(path.parent))
                assert len(names) > 1
                assert {name: mode(path.parent / name) for name in names} == {
                    name: 0o600 for name in names
                }
    finally:
        os.umask(umask)


def issue_many(path, worker):
    with Registry.open(path) as registry:
        return {f"{worker}-{i}": registry.issue(f"{worker}-{i}").tobytes() for i in range(25)}


def test_four_processes_at_once_lose_and_double_nothing(path):
    create(path, minimum_distance=4).close()
    with ProcessPoolExecutor(4, mp_context=get_context("spawn")) as pool:
        issued = {}
        for part in pool.map(issue_many, [path] * 4, range(4)):
            issued.update(part)
    with Registry.open(path) as registry:
        users, keys = registry.keys()
    assert len(users) == len({key.tobytes() for key in keys}) == 100
    assert {user: key.tobytes() for user, key in zip(users, keys, strict=True)} == issued


DYING_AT_COMMIT = """
import os, signal, sys
from fpjax.attribution.registry import Registry
registry = Registry.open(sys.argv[1])
def die(statement):
    if statement == "COMMIT":
        os.kill(os.getpid(), signal.SIGKILL)
registry._connection.set_trace_callback(die)
registry.issue("never")
"""

ISSUING_FOR_EVER = """
import sys
from fpjax.attribution.registry import Registry
registry = Registry.open(sys.argv[1])
for number in range(10**6):
    user = f"{sys.argv[2]}-{number}"
    print(user, registry.issue(user).tobytes().hex(), flush=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_process_killed_before_its_commit_leaves_no_trace(path):
    with create(path) as registry:
        registry.issue("ada")
    died = subprocess.run([sys.executable, "-c", DYING_AT_COMMIT, path], check=False)
    assert died.returncode == -signal.SIGKILL
    with Registry.open(path) as registry:
        assert registry.users() == ["ada"]
        registry.issue("never")


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_process_killed_at_any_moment_keeps_every_key_it_returned(path):
    create(path, minimum_distance=4).close()
    acknowledged = {}
    for attempt in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", ISSUING_FOR_EVER, path, str(attempt)],
            stdout=subprocess.PIPE,
            text=True,
        )
        lines = [process.stdout.readline()]
        time.sleep(0.02 * attempt)
        process.kill()
        lines += process.communicate()[0].splitlines()
        acknowledged.update(line.split() for line in lines)
    with Registry.open(path) as registry:
        users, keys = registry.keys()
        stored = {user: key.tobytes().hex() for user, key in zip(users, keys, strict=True)}
        integrity = registry._connection.execute("PRAGMA integrity_check").fetchone()
    assert integrity == ("ok",)
    assert acknowledged.items() <= stored.items()
    # The process may die between the commit and its report, once each.
    assert len(stored) <= len(acknowledged) + 4


FORKING = """
import os, sys
from fpjax.attribution.registry import Registry, RegistryError
registry = Registry.open(sys.argv[1])
child = os.fork()
if not child:
    try:
        registry.issue("child")
    except RegistryError as error:
        os._exit(7 if "opened in another process" in str(error) else 1)
    os._exit(0)
registry.issue("parent")
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_must_open_its_own(path):
    create(path).close()
    assert subprocess.run([sys.executable, "-c", FORKING, path], check=False).returncode == 7
    with Registry.open(path) as registry:
        assert registry.users() == ["parent"]


def test_using_a_closed_registry_is_a_registry_error(path):
    registry = create(path)
    registry.close()
    registry.close()
    with pytest.raises(RegistryError, match="closed"):
        registry.users()


def test_a_registry_needs_no_jax(path):
    script = (
        "import sys; sys.modules['jax'] = sys.modules['scipy'] = None\n"
        "from fpjax.attribution.registry import Registry\n"
        "Registry.create(sys.argv[1], key_length=64, scheme_id='scheme-1').issue('ada')"
    )
    subprocess.run([sys.executable, "-c", script, path], check=True)
