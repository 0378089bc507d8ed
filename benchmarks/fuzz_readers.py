"""Fuzz the checkpoint readers: on any bytes, only CheckpointError may come out.

    pip install atheris
    python benchmarks/fuzz_readers.py --runs 500000 --json fuzz.json

An input's first byte chooses what the rest becomes: a file as it is, the pickle of a torch zip or
of a torch stream, a safetensors header with data, an entry of an npz, an npy header with data, or
instructions that `assemble` turns into a pickle of working calls, so that mutations reach behind
lengths, checksums and stack underflows; or JSON or YAML settings. Every file that is accepted is
also listed, searched and read. Prints executions, outcomes, exceptions other than CheckpointError
with the inputs that caused them, and peak memory; exits with 1 if there was any such exception.
"""

import argparse
import collections
import io
import json
import math
import os
import pickle
import resource
import struct
import sys
import tempfile
import time
import traceback
import zipfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
STREAM_START = MAGIC + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
STORAGE = np.arange(16, dtype="<f4").tobytes()
WORDS = [
    *("torch._utils\n_rebuild_tensor_v2\n", "torch._utils\n_rebuild_tensor_v3\n"),
    *("torch._utils\n_rebuild_parameter\n", "torch.storage\n_load_from_bytes\n"),
    *("torch\nFloatStorage\n", "torch\nHalfStorage\n", "torch\nUntypedStorage\n", "storage"),
    *("collections\nOrderedDict\n", "builtins\nset\n", "builtins\nbytearray\n"),
    *("numpy._core.multiarray\n_reconstruct\n", "numpy._core.multiarray\nscalar\n"),
    *("numpy\nndarray\n", "numpy\ndtype\n", "numpy._core.numeric\n_frombuffer\n", "f4"),
    *("_codecs\nencode\n", "latin1", "copyreg\n_reconstructor\n", "builtins\nobject\n"),
    *("torch_utils.persistence\n_reconstruct_persistent_obj\n", "_parameters", "_modules"),
    *("dnnlib.tflib.network\nNetwork\n", "dnnlib.util\nEasyDict\n", "variables", "state"),
    *('"dtype":"F32"', '"shape":', '"data_offsets":', "__metadata__", "'descr': '<f4'"),
    *("'fortran_order': True", "'shape': (2, 2)", "PK\1\2", "PK\3\4", "PK\5\6", "PK\6\6"),
]


def zip_of(entries: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return buffer.getvalue()


def as_zip(body: bytes) -> bytes:
    order = b"big" if body[:1] == b"\xff" else b"little"
    return zip_of({"m/data.pkl": body, "m/byteorder": order, "m/data/0": STORAGE})


def as_stream(body: bytes) -> bytes:
    keys = pickle.dumps(["0"], 2)
    return STREAM_START + body + keys + struct.pack("<q", 16) + STORAGE


def as_safetensors(body: bytes) -> bytes:
    header, _, data = body.partition(b"\0")
    return struct.pack("<Q", len(header)) + header + data


def as_npz(body: bytes) -> bytes:
    method = zipfile.ZIP_DEFLATED if len(body) % 2 else zipfile.ZIP_STORED
    return zip_of({"a.npy": body}, method)


def as_npy(body: bytes) -> bytes:
    header, _, data = body.partition(b"\0")
    return b"\x93NUMPY\2\0" + struct.pack("<L", len(header)) + header + data


def assemble(program: bytes, swap: dict[bytes, bytes]) -> bytes:
    """The body of a pickle that pushes one value: each byte is an instruction.

    An instruction is skipped where the stack or the memo does not have what it takes. Random
    bytes hardly ever spell a pickle that gets past its first call; these do. `swap` replaces
    instructions by others that push the same type.
    """
    out, stack, marks, slots = [], "", [], {}
    for byte in program:
        code, takes, gives = INSTRUCTIONS[byte % len(INSTRUCTIONS)]
        bottom = marks[-1] if marks else 0
        if takes == "(":
            marks.append(len(stack))
        elif takes.startswith("mark"):
            target = takes[4:]  # what must lie below the mark
            if not marks or not stack[: marks[-1]].endswith(target) or bottom < len(target):
                continue
            if code in PAIRS and (len(stack) - bottom) % 2:
                continue
            stack = stack[: marks.pop()]
            stack = stack.removesuffix(target) + gives
        elif code[:1] == b"h":
            if code not in slots:
                continue
            stack += slots[code]
        else:
            top = stack[max(bottom, len(stack) - len(takes)) :]
            fits = len(top) == len(takes)
            if not fits or any(
                want not in (have, "?") for want, have in zip(takes, top, strict=True)
            ):
                continue
            if code[:1] == b"q":
                slots[b"h" + code[1:]] = top
            else:
                stack = stack[: len(stack) - len(takes)] + gives
        out.append(swap.get(code, code))
    while marks:
        out.append(b"t")
        stack = stack[: marks.pop()] + "t"
    return b"".join(out) + (b"N" if not stack else b"\x86" * (len(stack) - 1))


def constants(kind: str, *codes: bytes) -> list[tuple[bytes, str, str]]:
    return [(code, "", kind) for code in codes]


def text(word: str) -> bytes:
    return b"\x8c" + bytes([len(word)]) + word.encode()


FLOAT_STORAGE = (
    b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x10tQ"
)
DTYPE = b"cnumpy\ndtype\n" + text("f4") + b"\x89\x88\x87R(K\x03" + text(">") + b"NNNK\0K\0K\0tb"
ARRAY = b"cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85C\x01b\x87R"
NESTED = as_stream(b"\x80\x02" + FLOAT_STORAGE + b".")
LOADED = b"ctorch.storage\n_load_from_bytes\nB" + struct.pack("<L", len(NESTED)) + NESTED + b"\x85R"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n(" + FLOAT_STORAGE + b"K\0K\2\x85K\1\x85\x89}tR"
NAMES = ("0", "cpu", "f4", "<", ">", "C", "K", "latin1", "state", "class_name", "_parameters")
NAMES += ("_buffers", "_modules", "variables", "components", "_init_kwargs")
NAMES += ("_non_persistent_buffers_set",)
PAIRS = (b"d", b"u")

# (code, types of the top of the stack, type of the result): n number, s text, b bytes, g global,
# t tuple, l list, d dict, e set, o object, ? any. "mark?" takes what is above the last mark.
INSTRUCTIONS: list[tuple[bytes, str, str]] = [(b"(", "(", "")] * 8
INSTRUCTIONS += constants("g", *(b"c" + word.encode() for word in WORDS if word.count("\n") == 2))
INSTRUCTIONS += constants(
    "n", *(b"K" + bytes([n]) for n in (0, 1, 2, 3, 4, 16, 255)), b"N", b"\x89"
)
INSTRUCTIONS += constants("n", b"\x8a\x09" + b"\xff" * 8 + b"\0", b"J\xff\xff\xff\xff")
INSTRUCTIONS += constants("s", *map(text, NAMES))
INSTRUCTIONS += constants("b", b"C\x08" + bytes(range(8)), b"C\0")
INSTRUCTIONS += constants("o", FLOAT_STORAGE, FLOAT_STORAGE, DTYPE, DTYPE, ARRAY, LOADED, TENSOR)
INSTRUCTIONS += [(b")", "", "t"), (b"]", "", "l"), (b"}", "", "d"), (b"\x8f", "", "e")]
INSTRUCTIONS += [(b"q" + bytes([slot]), "?", "") for slot in range(4)]
INSTRUCTIONS += [(b"h" + bytes([slot]), "", "") for slot in range(4)]
INSTRUCTIONS += [(b"\x85", "?", "t"), (b"\x86", "??", "t"), (b"\x87", "???", "t")] * 2
INSTRUCTIONS += [(b"R", "gt", "o")] * 8 + [(b"\x81", "gt", "o"), (b"\x92", "gtd", "o")]
INSTRUCTIONS += [(b"R", "ot", "o"), (b"\x93", "ss", "g"), (b"0", "?", "")]
INSTRUCTIONS += [(b"a", "l?", "l"), (b"s", "ds?", "d"), (b"s", "dn?", "d"), (b"s", "os?", "o")]
INSTRUCTIONS += [(b"b", "o?", "o"), (b"b", "od", "o"), (b"b", "ot", "o"), (b"b", "d?", "d")]
INSTRUCTIONS += [(b"t", "mark", "t")] * 6 + [(b"l", "mark", "l"), (b"d", "mark", "d")]
INSTRUCTIONS += [(b"e", "markl", "l"), (b"u", "markd", "d"), (b"u", "marko", "o")]
INSTRUCTIONS += [(b"\x90", "marke", "e"), (b"\x91", "mark", "e"), (b"1", "mark", "")]


# A bare pickle cannot refer to storages outside itself.
BARE = {FLOAT_STORAGE: LOADED, TENSOR: TENSOR.replace(FLOAT_STORAGE, LOADED)}


def program(body: bytes, wrap=None) -> bytes:
    if wrap is None:
        return b"\x80\x04" + assemble(body, BARE) + b"."
    return wrap(b"\x80\x04" + FLOAT_STORAGE + assemble(body, {}) + b"\x86.")


SHAPES = [lambda body: body, as_zip, as_stream, as_safetensors, as_npz, as_npy]
SHAPES += [program, lambda body: program(body, as_zip), lambda body: program(body, as_stream)]
SETTINGS = ("read_json", "read_yaml")  # what reads the inputs of the shapes behind these
SHAPES += [lambda body: body] * len(SETTINGS)


def seeds() -> list[bytes]:
    """Small valid inputs of every shape, and the pickle of a fixture if the tests are at hand."""
    array = {"a": np.arange(6.0).reshape(2, 3), "s": np.float32(1), "set": {1}, "b": b"x" * 5}
    persistent = {"type": "class", "class_name": "G", "state": {"_parameters": {}, "_modules": {}}}
    pickles = [pickle.dumps(array, protocol) for protocol in range(6)]
    pickles += [pickle.dumps([persistent, {"variables": [("a", np.ones(2))]}], 2)]
    tensor = (
        b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storage"
        b"ctorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x10tQK\x00K\x02K\x03\x86"
        b"K\x03K\x01\x86\x89ccollections\nOrderedDict\n)RtRs."
    )
    pickles.append(tensor)
    nested = as_stream(tensor)
    length = struct.pack("<L", len(nested))
    pickles.append(b"\x80\x03ctorch.storage\n_load_from_bytes\nB" + length + nested + b"\x85R.")
    network = b"\x80\x02cdnnlib.tflib.network\nNetwork\n)\x81}X\x09\x00\x00\x00variables]sb."
    module = pickle.dumps(persistent, 2)[2:-1]
    call = b"\x80\x02ctorch_utils.persistence\n_reconstruct_persistent_obj\n" + module + b"\x85R."
    pickles += [network, call, whole_module()]
    try:
        with zipfile.ZipFile(ROOT / "tests/fixtures/rosinality_sg2_r32_random.pt") as archive:
            pickles.append(archive.read(next(n for n in archive.namelist() if "data.pkl" in n)))
    except FileNotFoundError:
        print("no fixtures: fuzzing from generated files only")
    npy = io.BytesIO()
    np.save(npy, np.arange(4, dtype=">i2").reshape(2, 2, order="F"))
    header = {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}
    text = json.dumps({"__metadata__": {"k": "v"}, **header}).encode()
    npy_text = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2), }"
    found = [bytes([shape]) + data for shape in (0, 1, 2) for data in pickles]
    rng = np.random.default_rng(0)
    found += [bytes([6 + index % 3]) + rng.bytes(20 + index) for index in range(60)]
    found += [b"\3" + text + b"\0" + STORAGE[:16], b"\4" + npy.getvalue()]
    found += [b"\4" + npy.getvalue() + b"\0", b"\5" + npy_text + b"\0" + STORAGE[:16]]
    found += [b"\0" + make(data) for make in (as_zip, as_stream) for data in (pickles[2], tensor)]
    settings = {"model": {"params": {"ch_mult": [1, 2], "lr": 1.0e-06, "attn": [], "x": None}}}
    found += [b"\x09" + json.dumps(settings).encode(), b"\x0a" + json.dumps(settings).encode()]
    found += [b"\x0amodel:\n  params:\n    - !!int '1'\n    - &a {b: 2001-01-01}\n  <<: *a\n"]
    found += [b"\0" + as_npz(npy.getvalue()), b"\0" + as_safetensors(text + b"\0" + STORAGE[:16])]
    return found


def whole_module() -> bytes:
    """The pickle of a module with a parameter, a buffer that is not saved, and a module inside."""
    names = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "w", "b")
    parameters, buffers, modules, skipped, w, b = (text(name) for name in names)
    inside = (
        b"ctorch.nn\nLinear\n)\x81}(" + parameters + b"}" + w + TENSOR + b"s" + modules + b"}ub"
    )
    own = parameters + b"}" + buffers + b"}" + b + TENSOR + b"s" + skipped + b"\x8f(" + b + b"\x90"
    return b"\x80\x04ctorch.nn\nModule\n)\x81}(" + own + modules + b"}" + w + inside + b"sub."


class Harness:
    """Reads one input after another and counts what happens."""

    def __init__(self, runs: int, minutes: float, report: str | None, keep: Path):
        self.runs, self.seconds, self.report, self.keep = runs, 60 * minutes, report, keep
        self.outcomes: collections.Counter = collections.Counter()
        self.unexpected: dict[str, dict] = {}
        self.slowest, self.started = 0.0, time.monotonic()
        fast = "/dev/shm" if os.path.isdir("/dev/shm") else None
        self.path = os.path.join(tempfile.mkdtemp(prefix="fuzz_readers_", dir=fast), "input")

    def exercise(self, shape: int) -> str:
        from checkpoints_convert import describe, readers
        from checkpoints_convert.readers import settings_files

        if (kind := shape - len(SHAPES) + len(SETTINGS)) >= 0:
            try:
                settings = getattr(settings_files, SETTINGS[kind])(self.path)
            except readers.CheckpointError as error:
                return "settings refused" if len(str(error)) < 3000 else "a long error"
            return f"settings read as {type(settings).__name__}"
        limits = readers.Limits(objects=50_000, base_bytes=1 << 22, string_bytes=1 << 20)
        try:
            checkpoint = readers.read(self.path, limits=limits)
        except readers.CheckpointError as error:
            str(error)
            return "refused"
        tree = checkpoint.tree
        for uses in (
            lambda: readers.nonfinite(checkpoint.tensors()),
            lambda: [
                node.numpy()
                for _, node in readers.find(tree, lambda n: type(n) is readers.LazyTensor)
            ],
            lambda: [
                describe.describe(node, 60) for _, node in readers.find(tree, lambda n: True)[:50]
            ],
            lambda: [readers.tf_network(n) for _, n in readers.find(tree, readers.is_tf_network)],
            lambda: [
                readers.persistent_state_dict(n)
                for _, n in readers.find(tree, readers.is_persistent)
            ],
        ):
            try:
                uses()
            except readers.CheckpointError:
                self.outcomes["refused on use"] += 1
        return f"read as {checkpoint.format}"

    def __call__(self, data: bytes) -> None:
        if data:
            with open(self.path, "wb") as file:
                file.write(SHAPES[data[0] % len(SHAPES)](data[1:]))
            start = time.process_time()
            try:
                self.outcomes[self.exercise(data[0] % len(SHAPES))] += 1
            except Exception as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                key = f"{type(error).__name__} at {Path(where.filename).name}:{where.lineno}"
                if key not in self.unexpected:
                    saved = self.keep / f"{type(error).__name__}_{len(self.unexpected)}"
                    saved.write_bytes(Path(self.path).read_bytes())
                    self.unexpected[key] = {
                        "count": 0,
                        "text": str(error)[:200],
                        "input": saved.name,
                    }
                    traceback.print_exc()
                self.unexpected[key]["count"] += 1
            self.slowest = max(self.slowest, time.process_time() - start)
        self.outcomes["executions"] += 1
        late = time.monotonic() - self.started > self.seconds
        if late or self.outcomes["executions"] >= self.runs:
            self.finish()

    def finish(self) -> None:
        seconds = time.monotonic() - self.started
        result = {
            "executions": self.outcomes.pop("executions"),
            "seconds": round(seconds, 1),
            "outcomes": dict(self.outcomes.most_common()),
            "unexpected_exceptions": self.unexpected,
            "slowest_cpu_seconds": round(self.slowest, 3),
            "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }
        text = json.dumps(result, indent=2)
        print(text, flush=True)
        if self.report:
            Path(self.report).write_text(text + "\n")
        os.remove(self.path)
        os.rmdir(os.path.dirname(self.path))
        os._exit(bool(self.unexpected))  # libFuzzer would go on otherwise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=500_000, help="executions before the report")
    parser.add_argument("--minutes", type=float, default=math.inf, help="or this long, if less")
    parser.add_argument("--seed", type=int, default=1, help="of the mutations")
    parser.add_argument("--max-len", type=int, default=10_000, help="bytes of one input")
    parser.add_argument("--json", help="write the report here too")
    parser.add_argument("--keep", default=None, help="folder for inputs that broke a reader")
    options = parser.parse_args()

    import atheris

    with atheris.instrument_imports(include=["checkpoints_convert"]):
        import checkpoints_convert.readers.settings_files  # noqa: F401

    work = Path(options.keep or tempfile.mkdtemp(prefix="fuzz_readers_keep_"))
    work.mkdir(parents=True, exist_ok=True)
    corpus = Path(tempfile.mkdtemp(prefix="fuzz_readers_corpus_"))
    for index, data in enumerate(seeds()):
        (corpus / f"seed{index}").write_bytes(data)
    quoted = ("".join(f"\\x{byte:02x}" for byte in word.encode()) for word in WORDS)
    (work / "words.dict").write_text("".join(f'"{word}"\n' for word in quoted))
    harness = Harness(options.runs, options.minutes, options.json, work)
    arguments = [f"-seed={options.seed}", f"-max_len={options.max_len}", "-timeout=600"]
    arguments += [
        "-rss_limit_mb=4096",
        f"-artifact_prefix={work}/",
        f"-dict={work / 'words.dict'}",
        str(corpus),
    ]
    atheris.Setup([sys.argv[0], *arguments], harness)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
