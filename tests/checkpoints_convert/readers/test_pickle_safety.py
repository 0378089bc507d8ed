"""No pickle runs anything, whatever it says, and none can exhaust the reader."""

import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from checkpoints_convert.readers import CheckpointError, Limits, Opaque, find, read
from tests.checkpoints_convert.readers.forge import (
    Applied,
    Call,
    Name,
    dumps,
    torch_stream,
    torch_zip,
    touch,
)

WRAPPINGS = {"bare": bytes, "zip": torch_zip, "stream": torch_stream}


@pytest.fixture
def canary(tmp_path):
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "code in the file has run"


@pytest.fixture
def load(tmp_path):
    def load(data: bytes, **limits):
        path = tmp_path / "file"
        path.write_bytes(data)
        return read(path, limits=Limits(**limits))

    return load


def names(tree) -> set[str]:
    return {f"{node.module}.{node.name}" for _, node in find(tree, lambda n: type(n) is Opaque)}


def test_the_attack_these_tests_use_does_work_on_pickle_itself(tmp_path):
    pickle.loads(pickle.dumps(touch(tmp_path / "made")))
    assert (tmp_path / "made").exists()


@pytest.mark.parametrize("wrap", WRAPPINGS)
@pytest.mark.parametrize("protocol", range(6))
def test_os_system_is_a_record_and_is_not_called(load, canary, wrap, protocol):
    tree = load(WRAPPINGS[wrap](pickle.dumps(touch(canary), protocol))).tree
    assert (tree.module, tree.name) == (os.system.__module__, "system")
    assert tree.args == (f"touch {canary}",)


def test_builtins_eval_and_exec_are_not_called(load, canary):
    code = f"open({str(canary)!r}, 'w')"
    tree = load(
        pickle.dumps([Call(eval, code), Call(exec, code), Call(open, str(canary), "w")])
    ).tree
    assert names(tree) >= {"builtins.eval", "builtins.exec"}


def test_reduce_chains_that_call_what_a_call_returned_are_not_called(load, canary):
    system = Call(getattr, Call(__import__, "os"), "system")
    called = Applied("", "", f"touch {canary}")
    called.function = system
    tree = load(dumps(called)).tree
    assert names(tree) == {"builtins.getattr", "builtins.__import__", ".<call of an object>"}


def test_subprocess_through_newobj_and_build_is_not_called(load, canary):
    popen = b"\x80\x02csubprocess\nPopen\n(X\x05\x00\x00\x00touchX" + struct.pack(
        "<I", len(str(canary))
    )
    data = popen + str(canary).encode() + b"l\x85\x81}X\x01\x00\x00\x00aK\x01sb."
    tree = load(data).tree
    assert (tree.module, tree.name, tree.state) == (
        "subprocess",
        subprocess.Popen.__name__,
        {"a": 1},
    )


def test_inst_and_obj_opcodes_of_protocol_0_and_1_are_not_called(load, canary):
    command = f"V touch {canary}\n".encode()
    for data in (b"(" + command + b"ios\nsystem\n.", b"(cos\nsystem\n" + command + b"o."):
        tree = load(data).tree
        assert (tree.module, tree.name) == ("os", "system")


def test_stack_global_with_computed_strings_stays_a_name(load, canary):
    # The module name is produced by a call (_codecs.encode) and by the memo, not written out.
    parts = pickle.dumps(["sys", f"touch {canary}"], 4)[:-1]  # puts both in the memo
    data = parts + b"0\x8c\x02os\x94\x8c\x06system\x93h\x02\x85R."
    tree = load(data).tree
    assert (tree.module, tree.name, tree.args) == ("os", "system", (f"touch {canary}",))


def test_stack_global_whose_name_is_an_object_is_refused(load):
    with pytest.raises(CheckpointError, match="name of a global"):
        load(b"\x80\x04\x8c\x02os]\x93.")
    encoded = b"\x80\x04c_codecs\nencode\n\x8c\x02os\x8c\x06latin1\x86R\x8c\x06system\x93."
    with pytest.raises(CheckpointError, match="bytes as the name of a global"):
        load(encoded)


def test_code_inside_storage_bytes_is_not_called(load, canary):
    for inner in (torch_stream(pickle.dumps(touch(canary), 2)), torch_zip(dumps(touch(canary)))):
        tree = load(dumps(Applied("torch.storage", "_load_from_bytes", inner))).tree
        assert tree.name == "system"
    bare = Applied("torch.storage", "_load_from_bytes", pickle.dumps(touch(canary), 2))
    with pytest.raises(CheckpointError, match="bare pickle"):
        load(dumps(bare))


def test_code_in_every_pickle_of_a_stream_is_not_called(load, canary):
    attack = pickle.dumps(touch(canary), 2)
    whole = torch_stream(attack)
    for part in (pickle.dumps(1001, 2), pickle.dumps({"little_endian": True}, 2), attack[:-1]):
        try:
            load(whole.replace(part, attack, 1))
        except CheckpointError as error:
            assert "stream" in str(error) or "pickle" in str(error)


def test_setstate_and_dict_subclasses_are_not_called(load, canary):
    data = dumps(Applied("collections", "Counter", {"a": touch(canary)}, state=touch(canary)))
    assert names(load(data).tree) == {"collections.Counter", f"{os.system.__module__}.system"}


def test_checkpoints_nested_too_deep_are_refused(load):
    data = torch_stream(dumps([]))
    for _ in range(6):
        data = torch_stream(dumps(Applied("torch.storage", "_load_from_bytes", data)))
    with pytest.raises(CheckpointError, match="nesting"):
        load(data)


def test_the_same_nested_checkpoint_loaded_a_million_times_is_refused(load):
    inner = torch_stream(dumps([]))
    one = b"\x80\x04]ctorch.storage\n_load_from_bytes\n\x94C" + bytes([len(inner)]) + inner
    repeats = b"h\x00h\x01\x85Ra" * 50_000
    with pytest.raises(CheckpointError, match="objects"):
        load(one + b"\x9400" + repeats + b".", objects=100_000)


def test_memo_bomb_is_refused(load):
    with pytest.raises(CheckpointError, match="more memory"):
        load(b"\x80\x04N" + b"\x94" * 50_000 + b".", base_bytes=1 << 20)
    with pytest.raises(CheckpointError, match="memo slot"):
        load(b"I1\np99999999999999999999\n.")
    tree = load(b"\x80\x04Nr\xff\xff\xff\xff.").tree  # a huge index takes no memory
    assert tree is None


def test_billion_laughs_is_refused(load):
    laughs = b"\x80\x02]" + b"q\x00h\x00h\x00\x87" * 40 + b"."  # 3**40 nodes when walked
    with pytest.raises(CheckpointError, match="objects"):
        load(laughs)
    for container in (b"](h\x00h\x00e", b"}(Nh\x00K\x01h\x00u", b"ca\nb\nh\x00h\x00\x86R"):
        laughs = b"\x80\x02N" + (b"q\x000" + container) * 40 + b"."
        with pytest.raises(CheckpointError, match="objects"):
            load(laughs)


def test_deep_nesting_is_refused_without_recursion(load):
    tuples = b"N" + b"\x85" * 20_000
    lists = b"]" * 20_000 + b"a" * 19_999
    records = b"ca\nb\nq\x000)" + b"q\x010h\x00h\x01R\x85" * 20_000
    for body in (tuples, lists, records):
        with pytest.raises(CheckpointError, match="depth"):
            load(b"\x80\x02" + body + b".")


def test_deep_tuples_and_long_numbers_as_dict_keys_are_refused(load):
    with pytest.raises(CheckpointError, match="as key"):
        load(b"\x80\x02}N" + b"\x85" * 20_000 + b"Ns.")
    with pytest.raises(CheckpointError, match="as key"):
        load(b"\x80\x02}]Ns.")
    with pytest.raises(CheckpointError, match="64 bits"):
        load(b"\x80\x02}\x8a\x09" + b"\x00" * 8 + b"\x01Ns.")


def test_keys_whose_hashes_a_file_can_choose_are_refused_or_few(load):
    with pytest.raises(CheckpointError, match="a complex as key"):
        load(pickle.dumps({1 + 2j: 0}))
    with pytest.raises(CheckpointError, match="a complex as key"):
        load(pickle.dumps({(1, 2j)}))
    for make in (float, lambda number: (number, "x")):
        keys = {make(number): number for number in range(1000)}
        assert load(pickle.dumps(keys)).tree == keys
        with pytest.raises(CheckpointError, match="odd_keys"):
            load(pickle.dumps({**keys, make(1000): 0}))


def test_huge_arguments_are_not_put_into_text(load):
    # Refusals describe what they got by type: repr() of these would recurse or fill the memory.
    laughs = b"]" + b"q\x00h\x00h\x00\x87" * 40
    deep = b"N" + b"\x85" * 20_000
    for value in (laughs, deep):
        for function, more in (
            ("torch._tensor\n_rebuild_from_type_v2", 3),
            ("torch._utils\n_rebuild_tensor", 3),
            ("torch._utils\n_rebuild_tensor_v2", 4),
            ("torch\ndevice", 0),
            ("torch\nSize", 0),
            ("numpy._core.multiarray\nscalar", 1),
            ("numpy._core.multiarray\n_reconstruct", 2),
            ("copyreg\n_reconstructor", 2),
            ("collections\nOrderedDict", 0),
        ):
            call = b"(" + value + b"2" * more + b"t"
            with pytest.raises(CheckpointError):
                load(b"\x80\x02c" + function.encode() + b"\n" + call + b"R.")
        with pytest.raises(CheckpointError):
            load(torch_zip(b"\x80\x02" + value + b"Q."))
        with pytest.raises(CheckpointError):
            load(b"\x80\x02" + value + b"NR.")


def test_a_list_inside_itself_can_be_read_and_listed(load):
    loop: list = [1]
    loop += [loop, {"again": loop}]
    checkpoint = load(pickle.dumps(loop, 2))
    assert checkpoint.tree[1] is checkpoint.tree
    assert checkpoint.tensors() == {}
    assert [path for path, _ in find(checkpoint.tree, lambda node: node == 1)] == ["0"]


@pytest.mark.parametrize(
    ("what", "data"),
    {
        "BINBYTES": b"\x80\x03B\xff\xff\xff\xffab.",
        "BINBYTES8": b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fab.",
        "BYTEARRAY8": b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\xffab.",
        "BINUNICODE": b"\x80\x02X\xff\xff\xff\x7fab.",
        "BINUNICODE8": b"\x80\x04\x8d\x00\x00\x00\x00\x00\x01\x00\x00ab.",
        "BINSTRING": b"\x80\x02T\xff\xff\xff\xffab.",
        "LONG4": b"\x80\x02\x8b\xff\xff\xff\x7fab.",
        "FRAME": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xffN.",
    }.items(),
)
def test_lying_lengths_in_pickles_are_refused(load, what, data):
    with pytest.raises(CheckpointError):
        load(data)


@pytest.mark.parametrize(
    ("what", "data"),
    {
        "unknown opcode": b"\x80\x02\xff.",
        "protocol 6": b"\x80\x06N.",
        "EXT1": b"\x80\x02\x82\x01.",
        "EXT2": b"\x80\x02\x83\x01\x00.",
        "EXT4": b"\x80\x02\x84\x01\x00\x00\x00.",
        "NEXT_BUFFER": b"\x80\x05\x97.",
        "READONLY_BUFFER": b"\x80\x05N\x98.",
        "PERSID": b"Pstorage\n.",
        "BINPERSID outside a torch file": b"\x80\x02NQ.",
        "STOP on nothing": b"\x80\x02.",
        "STOP on two values": b"\x80\x02NN.",
        "STOP below a mark": b"\x80\x02(N.",
        "no STOP": b"\x80\x02N",
        "no MARK": b"\x80\x02Nt.",
        "TUPLE3 of two": b"\x80\x02NN\x87.",
        "SETITEMS of three": b"\x80\x02}(NNNu.",
        "SETITEM on a list": b"\x80\x02]NNs.",
        "APPEND to a dict": b"\x80\x02}Na.",
        "ADDITEMS to a list": b"\x80\x04](N\x90.",
        "BUILD of a list": b"\x80\x02]}b.",
        "BUILD twice": b"\x80\x02ca\nb\n)R}b}b.",
        "REDUCE of a string": b"\x80\x02X\x01\x00\x00\x00a)R.",
        "REDUCE without a tuple": b"\x80\x02ca\nb\n]R.",
        "OBJ of nothing": b"(o.",
        "unset memo slot": b"\x80\x02h\x07.",
        "negative memo slot": b"Np-1\n.",
        "invalid UTF-8": b"\x80\x02X\x01\x00\x00\x00\xff.",
        "surrogate": b"V\\ud800\n.",
        "INT without digits": b"Ix\n.",
        "INT of 5000 digits": b"I" + b"9" * 5000 + b"\n.",
        "FLOAT without digits": b"Fx\n.",
        "STRING without quotes": b"Sabc\n.",
        "line without end": b"Vabc",
        "data after STOP": b"\x80\x02N.N.",
        "array never filled": dumps(
            Applied("numpy.core.multiarray", "_reconstruct", Name("numpy", "ndarray"), (0,), b"b")
        ),
        "BINBYTES as Latin-1 text over 255": dumps(
            Applied("_codecs", "encode", "\u20ac", "latin1")
        ),
    }.items(),
)
def test_what_no_pickler_writes_is_refused(load, what, data):
    with pytest.raises(CheckpointError):
        load(data)


def test_limits_on_strings_and_on_decoded_text_hold(load):
    with pytest.raises(CheckpointError, match="string_bytes"):
        load(pickle.dumps("a" * 1000, 2), string_bytes=999)
    with pytest.raises(CheckpointError, match="more memory"):
        load(pickle.dumps(["a" * 50_000, "b" * 50_000], 2), base_bytes=1000, ratio=0)
    again = Applied("_codecs", "encode", "a" * 400, "latin1")
    with pytest.raises(CheckpointError, match="more memory"):
        load(dumps([again] * 1000), base_bytes=1000, ratio=4)
    with pytest.raises(CheckpointError, match="file_bytes"):
        load(b"\x80\x02N.", file_bytes=3)


def test_a_shared_list_given_to_a_million_dicts_is_refused(load):
    pairs = b"](" + b"NN\x86" * 1000 + b"e"
    data = b"\x80\x02" + pairs + b"q\x000ccollections\nOrderedDict\nq\x01"
    with pytest.raises(CheckpointError, match="objects"):
        load(data + b"(" + b"h\x01h\x00\x85R" * 20_000 + b"l\x86.", objects=200_000)


def test_errors_name_the_file_and_say_what_to_do(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(b"\x80\x02X\x10\x00\x00\x00ab.")
    with pytest.raises(CheckpointError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "expected" in str(caught.value) and "SHA-256" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"", "empty file"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"\x89HDF\r\n", "HDF5"),
        (b"PK\x05\x06" + b"\0" * 18, "empty zip"),
        (b"\0" * 257 + b"ustar" + b"\0" * 250, "tar archive"),
        (b"\x89PNG\r\n", "starts with"),
    ],
)
def test_files_of_other_kinds_get_advice(load, content, hint):
    with pytest.raises(CheckpointError, match=hint):
        load(content)


def test_missing_files_folders_and_pipes_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "missing", tmp_path, tmp_path / "pipe", "with\0zero"):
        with pytest.raises(CheckpointError):
            read(path)


def test_the_readers_import_no_framework():
    code = (
        "import sys, checkpoints_convert.readers; "
        "print([m for m in ('torch', 'tensorflow', 'jax') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
