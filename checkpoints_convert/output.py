"""Converted parameters on disk: safetensors written tensor by tensor, or an Orbax checkpoint.

A safetensors header gives every place in advance, and a plan knows every shape before anything is
read, so the file is written in one pass and no more than one tensor is held.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from checkpoints_convert.printable import name
from checkpoints_convert.readers.tensors import dtype_named
from checkpoints_convert.table import ConversionError, Plan, Step, unflatten

Format = Literal["safetensors", "orbax"]
Report = Callable[[int], None]
"""Called with the bytes written since the last call."""

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
ALIGNMENT = 8
PIECE = 1 << 22


def write_params(
    folder: Path, plan: Plan, dtype: str, file_format: Format, report: Report
) -> list[str]:
    """Writes a plan's parameters into a folder.

    Args:
        folder: gets `params.safetensors`, or a folder `params` of Orbax.
        plan: what to write.
        dtype: "float32", "float16" or "bfloat16", for all of them.
        file_format: "safetensors" holds one tensor in memory at a time; "orbax" holds all.
        report: progress.

    Returns:
        Names of the source tensors that hold a NaN or an infinity.

    Raises:
        ConversionError: if a value does not fit float16.
    """
    nonfinite: list[str] = []
    arrays = _cast(plan, dtype, nonfinite, report)
    if file_format == "safetensors":
        _write_safetensors(folder / "params.safetensors", plan, dtype, arrays)
    else:
        import orbax.checkpoint

        tree = unflatten({step.target: array for step, array in arrays})
        with orbax.checkpoint.PyTreeCheckpointer() as checkpointer:
            checkpointer.save((folder / "params").absolute(), tree)
    return list(dict.fromkeys(nonfinite))


def stored_bytes(plan: Plan, dtype: str) -> int:
    """Bytes that the parameters take on disk."""
    size = dtype_named(dtype).itemsize
    return sum(math.prod(step.shape) for step in plan.steps) * size


def cast(array: np.ndarray, dtype: str) -> np.ndarray:
    """A contiguous copy in another dtype; values past its range become infinite.

    >>> cast(np.ones((2, 3)), "bfloat16").dtype
    dtype(bfloat16)
    """
    with np.errstate(over="ignore"):
        return np.array(array, dtype=dtype_named(dtype), order="C")


def _cast(
    plan: Plan, dtype: str, nonfinite: list[str], report: Report
) -> Iterator[tuple[Step, np.ndarray]]:
    for step, part in plan.arrays():
        array = cast(part, dtype)
        if not _finite(array):
            if _finite(part):
                raise ConversionError(
                    f"{name(step.source)} has values that {dtype} cannot hold: choose --dtype "
                    "bfloat16 or float32"
                )
            nonfinite.append(step.source)
        yield step, array
        report(array.nbytes)


def _finite(array: np.ndarray) -> bool:
    if array.size <= PIECE:
        return bool(np.isfinite(array).all())
    # Pieces along the longest axis: no mask as long as a large tensor, no copy of a view.
    axis = int(np.argmax(array.shape))
    rows = array.size // array.shape[axis]
    step = max(1, PIECE // rows)
    pieces = np.moveaxis(array, axis, 0)
    return all(np.isfinite(pieces[i : i + step]).all() for i in range(0, array.shape[axis], step))


def _write_safetensors(
    file: Path, plan: Plan, dtype: str, arrays: Iterator[tuple[Step, np.ndarray]]
) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "np"}}
    position, size = 0, dtype_named(dtype).itemsize
    for step in _in_order(plan):
        end = position + math.prod(step.shape) * size
        header[step.target] = {
            "dtype": DTYPES[dtype],
            "shape": list(step.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with open(file, "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for _, array in arrays:
            little = array.astype(array.dtype.newbyteorder("<"), copy=False)
            stream.write(little.view(np.uint8).data if little.ndim else little.tobytes())


def _in_order(plan: Plan) -> list[Step]:
    """Steps in the order in which `Plan.arrays` gives them: those of one source together."""
    first: dict[str, int] = {}
    for index, step in enumerate(plan.steps):
        first.setdefault(step.source, index)
    return sorted(plan.steps, key=lambda step: first[step.source])
