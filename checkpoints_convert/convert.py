"""A checkpoint file to a folder that fpjax opens, as one call: recognise, plan, write, verify."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import fpjax
from checkpoints_convert.detect import recognise
from checkpoints_convert.output import DTYPES, Format, stored_bytes, write_params
from checkpoints_convert.printable import printable
from checkpoints_convert.recognised import Recognised
from checkpoints_convert.request import Request
from checkpoints_convert.table import ConversionError
from checkpoints_convert.verify import NotVerifiable, compare
from fpjax.io.atomic import atomic_directory
from fpjax.models import checkpoint

Progress = Callable[[str, int, int], None]
MIB = 1 << 20


@dataclass(frozen=True)
class Written:
    """What a conversion did.

    Attributes:
        source: what the file was, and the plan.
        nonfinite: source tensors that hold a NaN or an infinity; they are converted as they are.
        verified: parameters that were compared with PyTorch's reading; None if it was not asked.
        not_verified: why PyTorch could not be asked; empty if it was, or was not to be.
    """

    source: Recognised
    nonfinite: tuple[str, ...]
    verified: int | None
    not_verified: str


def convert_file(
    file: str | os.PathLike,
    out_dir: str | os.PathLike,
    request: Request | None = None,
    *,
    dtype: str = "float32",
    file_format: Format = "safetensors",
    verify: bool = False,
    sha256: str | None = None,
    progress: Progress | None = None,
) -> Written:
    """Converts a published checkpoint to a folder for `load_generator` and its siblings.

    Nothing in the file is run, and PyTorch is not needed. The folder appears whole or not at all.

    Args:
        file: the checkpoint, or the folder of a diffusers model or pipeline.
        out_dir: the folder to write; it must not exist.
        request: what the file leaves open; see `Request`.
        dtype: what parameters are stored in, "float32", "float16" or "bfloat16".
        file_format: "safetensors" or "orbax".
        verify: compare every stored parameter with PyTorch's reading of the file.
        sha256: the file's SHA-256 as its publisher states it, whole or at least the first eight
            hexadecimal digits.
        progress: called as (stage, MiB done, MiB in all).

    Raises:
        FileExistsError: if `out_dir` exists.
        CheckpointError: for a file that is damaged, hostile or of another format.
        ConversionError: for one that no mapping fits, listing what is unmapped and unfilled, for
            another SHA-256, or if the verification finds a difference; nothing is written then.
        ValueError: for an argument of another form.

    >>> import numpy, tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> numpy.savez(folder / "x.npz", a=numpy.ones(3))
    >>> convert_file(folder / "x.npz", folder / "out")
    Traceback (most recent call last):
    ...
    checkpoints_convert.table.ConversionError: ...x.npz: nothing known: a npz file with ...
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r}: choose one of {', '.join(DTYPES)}")
    if file_format not in ("safetensors", "orbax"):
        raise ValueError(f"format {file_format!r}: choose safetensors or orbax")
    out_dir = Path(out_dir)
    if out_dir.exists():
        raise FileExistsError(
            f"{printable(out_dir)} exists already: choose another name or remove it"
        )
    source = recognise(Path(file), request or Request())
    check_sha256(source, sha256)
    total = sum(stored_bytes(part.plan, dtype) for part in source.parts)
    done = 0

    def report(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress("writing, MiB", done // MIB, max(1, total // MIB))

    nonfinite: list[str] = []
    verified, not_verified = None, ""
    with atomic_directory(out_dir) as folder:
        for part in source.parts:
            (folder / part.folder).mkdir(exist_ok=True)
            nonfinite += write_params(folder / part.folder, part.plan, dtype, file_format, report)
        if verify:
            # Read back from the disk, so that the writing is verified too.
            stored = {p.folder: checkpoint.load_leaves(folder / p.folder) for p in source.parts}
            try:
                verified = compare(source.parts, source.origins, dtype, stored)
            except NotVerifiable as error:
                not_verified = str(error)
        info = _info(source, nonfinite)
        for part in source.parts:
            header = checkpoint.header(part.architecture, part.config, info)
            text = json.dumps(header, indent=2) + "\n"
            (folder / part.folder / "config.json").write_text(text, "utf-8")
    return Written(source, tuple(nonfinite), verified, not_verified)


def check_sha256(source: Recognised, expected: str | None) -> None:
    """Refuses a file of another SHA-256 than its publisher states; None asks for nothing.

    Raises:
        ValueError: if `expected` is no hexadecimal number of 8 to 64 digits.
        ConversionError: if the file's begins otherwise, or if there are several files.
    """
    if expected is None:
        return
    if not re.fullmatch(r"[0-9a-fA-F]{8,64}", expected):
        raise ValueError("sha256: expected 8 to 64 hexadecimal digits")
    file, *others = source.files
    if others:
        raise ConversionError(
            f"a SHA-256 is of one file, and this conversion reads {1 + len(others)}: convert "
            "without --sha256 and compare those in config.json"
        )
    actual = file.sha256()
    if not actual.startswith(expected.lower()):
        raise ConversionError(
            f"{printable(file.path)} has SHA-256 {actual}, not {expected.lower()}: it "
            "is another file, or damaged; get it again"
        )


def _info(source: Recognised, nonfinite: list[str]) -> dict:
    notes = list(source.notes)
    if nonfinite:
        notes.append(f"NaN or infinity in {', '.join(nonfinite)}")
    first, *others = (
        {"file": Path(file.path).name, "sha256": file.sha256()} for file in source.files
    )
    info = {
        "source": first["file"],
        "source_sha256": first["sha256"],
        "source_kind": source.kind,
        "converter": f"fpjax-convert {fpjax.__version__}",
        "notes": notes,
    }
    return info | ({"further_sources": others} if others else {})
