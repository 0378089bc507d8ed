"""JSON and YAML of strangers: read, or refused by the one error, in bounded memory."""

import contextlib
import os
import tracemalloc

import pytest

from checkpoints_convert.readers import CheckpointError
from checkpoints_convert.readers.settings_files import read_json, read_yaml

JSON = {
    "not JSON": b"{a}",
    "no object": b"[1]",
    "deep": b'{"a":' + b"[" * 100_000,
    "twice": b'{"a":1,"a":2}',
    "long number": b'{"a":' + b"9" * 10_000 + b"}",
    "not UTF-8": b'{"\xff":1}',
    "large": b" " * (2 << 20) + b"{}",
    "empty": b"",
}
LAUGHS = b"a0: &a0 [x]\n" + b"".join(
    b"a%d: &a%d [%s]\n" % (i, i, b",".join([b"*a%d" % (i - 1)] * 9)) for i in range(1, 30)
)
YAML = {
    "aliases": LAUGHS[:457],
    "merges": b"a: &a {x: 1}\nb: {<<: *a}\n",
    "objects": b"a: !!python/object/apply:os.system [true]\n",
    "bad date": b"a: 2001-99-99\n",
    "bad int": b"a: !!int ''\n",
    "long int": b"a: " + b"9" * 10_000 + b"\n",
    "empty float": b"a: !!float ''\n",
    "no bool": b"a: !!bool maybe\n",
    "no time": b"a: !!timestamp x\n",
    "list as key": b"? [a]\n: b\n",
    "deep": b"[" * 10_000,
    "no mapping": b"- a\n",
    "large": b"#" * (1 << 16) + b"\na: 1\n",
    "empty": b"",
    "two documents": b"a: 1\n---\nb: 2\n",
    "control characters": b"a: '\x1b'\n",
}


@pytest.fixture
def write(tmp_path):
    def write(data: bytes):
        (tmp_path / "settings").write_bytes(data)
        return tmp_path / "settings"

    return write


def refused(read, path) -> None:
    with pytest.raises(CheckpointError) as caught:
        read(path)
    text = str(caught.value)
    assert str(path) in text and len(text) < 2000 and text.isprintable()


@pytest.mark.parametrize("name", JSON)
def test_json_that_is_hostile_or_broken_is_refused_on_one_line(write, name):
    refused(read_json, write(JSON[name]))


@pytest.mark.parametrize("name", YAML)
def test_yaml_that_is_hostile_or_broken_is_refused_on_one_line(write, name):
    pytest.importorskip("yaml")
    refused(read_yaml, write(YAML[name]))


def test_pipes_and_missing_files_are_refused_at_once(tmp_path):
    pytest.importorskip("yaml")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path / "missing", tmp_path):
        refused(read_json, path)
        refused(read_yaml, path)


def test_settings_of_publishers_are_read(write):
    pytest.importorskip("yaml")
    text = b"model:\n  base_learning_rate: 1.0e-06\n  params: {ch_mult: [1, 2], attn: []}\n"
    expected = {"base_learning_rate": 1e-6, "params": {"ch_mult": [1, 2], "attn": []}}
    assert read_yaml(write(text)) == {"model": expected}
    assert read_json(write(b'{"a": [1, 2.5, null, "x"]}')) == {"a": [1, 2.5, None, "x"]}


@pytest.mark.parametrize("item", [b"[],", b"? ,"])
def test_the_largest_files_take_less_than_the_allowed_memory(write, item):
    yaml = pytest.importorskip("yaml")
    assert yaml.safe_load("a: 1") == {"a": 1}
    for read, most in ((read_yaml, 1 << 16), (read_json, 2 << 20)):
        path = write(b'{"a": [' + item * ((most - 20) // len(item)) + b"1]}")
        tracemalloc.start()
        with contextlib.suppress(CheckpointError):
            read(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < (64 << 20) + 4 * most
