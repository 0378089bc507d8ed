"""Configuration files of strangers: bounded memory and time, and values described in a line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from checkpoints_convert import documents
from checkpoints_convert.readers import CheckpointError
from checkpoints_convert.readers.settings_files import read_json, read_yaml
from checkpoints_convert.table import ConversionError

ROOT = Path(__file__).resolve().parents[2]

CHILD = """
import resource, sys
from pathlib import Path
from checkpoints_convert.readers import CheckpointError
from checkpoints_convert.readers.settings_files import read_json, read_yaml
from checkpoints_convert.table import ConversionError
import yaml
kind, path = sys.argv[1], Path(sys.argv[2])
if b"unet_config" in path.read_bytes():
    from checkpoints_convert.publishers import compvis
memory = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
limit = memory + (64 << 20) + 4 * path.stat().st_size
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
try:
    document = read_yaml(path) if kind == "yaml" else read_json(path)
    if "compvis" in globals():
        compvis.stated_in(document)
    print("read")
except (CheckpointError, ConversionError) as error:
    assert len(str(error)) < 1000, len(str(error))
    print("refused", error)
"""


def bounded(tmp_path, kind, text):
    """Reads a document in a process that may take 64 MiB and four times the file."""
    path = tmp_path / f"document.{kind}"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    done = subprocess.run(
        [sys.executable, "-c", CHILD, kind, str(path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def laughs(levels=30):
    """A list of lists of the same lists: 9^30 elements in a kilobyte."""
    lines = ["a0: &a0 [x]"]
    lines += [f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]" for i in range(levels)]
    use = f"model: {{params: {{linear_start: *a{levels}, unet_config: {{params: {{a: 1}}}}}}}}"
    return "\n".join([*lines, use])


def merges(levels=30):
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{i + 1}: &a{i + 1} {{<<: [{', '.join([f'*a{i}'] * 9)}]}}" for i in range(levels)]
    return "\n".join(lines)


INNER = '"unet_config": {"params": {"a": 1}}'


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("yaml", laughs(), "an alias"),
        ("yaml", merges(), "an alias"),
        ("yaml", "a: " + "[" * 50_000, "text that cannot be parsed"),
        ("yaml", "a: [" + "b," * 30_000 + "]", "read"),
        ("yaml", "a: " + "1" * 60_000, ""),
        ("yaml", "? " * 30_000, "text that cannot be parsed"),
        ("yaml", "a: !!python/object/apply:os.abort []", "text that cannot be parsed"),
        ("yaml", "x" * 100_000, "100,000 bytes"),
        ("yaml", b"\xff\xfe\x00", "text that cannot be parsed"),
        ("yaml", "- a", "names with values"),
        ("json", "[" * 900_000, "text that cannot be parsed"),
        ("json", '{"a": [' + "[]," * 300_000 + "[]]}", "read"),
        ("json", '{"a": ' + "9" * 100_000 + "}", "text that cannot be parsed"),
        ("json", '{"linear_start": "' + "x" * 900_000 + f'", {INNER}}}', "xxx"),
        ("json", '{"timesteps": 1' + "0" * 400 + f", {INNER}}}", "an int of"),
        ("json", " " * (3 << 20), "3,145,728 bytes"),
        ("json", "[1]", "names with values"),
    ],
)  # fmt: skip
def test_documents_take_bounded_memory_and_time(tmp_path, kind, text, said):
    assert said in bounded(tmp_path, kind, text)


def test_a_pipe_or_a_device_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    for path in (tmp_path / "config.json", Path("/dev/zero")):
        for read in (read_json, read_yaml):
            with pytest.raises(CheckpointError):
                read(path)


WRONG = [True, "8", -1, 0, 1.5, [], {}, [1], 10**400, float("inf"), float("nan"), "x" * 10**6]


@pytest.mark.parametrize("value", WRONG, ids=lambda value: str(type(value).__name__))
def test_a_value_of_another_type_is_described_in_a_line(value):
    document = {"n": value}
    for call in (
        lambda: documents.integer(document, "n", most=64),
        lambda: documents.integers(document, "n", (1,), least=2, most=64),
        lambda: documents.texts(document, "n", ("a",)),
        lambda: documents.choice(document, "n", ("a", "b")),
    ):
        with pytest.raises(ConversionError, match=r"^n = ") as error:
            call()
        assert len(str(error.value)) < 300 and "\n" not in str(error.value)


def test_numbers_are_not_truth_values():
    with pytest.raises(ConversionError):
        documents.choice({"n": 1}, "n", (True,))
    with pytest.raises(ConversionError):
        documents.choice({"n": False}, "n", (0, 1))
    assert documents.choice({"n": 1.0}, "n", (1,)) == 1.0
    assert documents.number({"n": 3}, "n") == 3.0
