"""A second opinion: the source read by PyTorch, against what was written.

PyTorch is asked for nothing that runs code (`weights_only=True`), and is imported only here.
"""

from __future__ import annotations

import importlib
import pickle
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from checkpoints_convert.output import cast
from checkpoints_convert.printable import name as shown_name
from checkpoints_convert.printable import printable
from checkpoints_convert.readers import read
from checkpoints_convert.readers.tensors import dtype_named
from checkpoints_convert.readers.tree import label
from checkpoints_convert.recognised import Origins, Part
from checkpoints_convert.table import ConversionError

MIN_TORCH = (2, 10)  # older ones have published holes in torch.load, with weights_only too
MAX_NODES, MAX_NAME = 1_000_000, 4096  # of what PyTorch loads: a file may hold itself


class NotVerifiable(Exception):
    """Why PyTorch cannot give a second opinion on a file."""


def load_with_torch(path: str) -> dict[str, Any]:
    """Every tensor that PyTorch finds in a file, by dotted name.

    Raises:
        NotVerifiable: if PyTorch is not installed or older than 2.10, or would have to run what
            the file contains.
    """
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise NotVerifiable("PyTorch is not installed") from error
    version = re.match(r"(\d+)\.(\d+)", str(torch.__version__))
    if version is None or (int(version[1]), int(version[2])) < MIN_TORCH:
        raise NotVerifiable(
            f"PyTorch {printable(torch.__version__, 40)} is installed, and versions before "
            f"{'.'.join(map(str, MIN_TORCH))} have published holes in torch.load: pip install "
            "'torch>=2.10'"
        )
    file_format = read(path).format
    if file_format == "safetensors":
        return dict(importlib.import_module("safetensors.torch").load_file(path))
    if file_format in ("npz", "npy"):
        raise NotVerifiable("it is a NumPy file, which PyTorch does not read")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, TypeError, EOFError) as error:
        first = printable((str(error).strip().splitlines() or [type(error).__name__])[0], 200)
        raise NotVerifiable(f"PyTorch refuses it without running its code ({first})") from error
    found: dict[str, Any] = {}
    stack: list[tuple[str, Any]] = [("", loaded)]
    for _ in range(MAX_NODES):
        if not stack:
            return found
        name, node = stack.pop()
        if len(name) > MAX_NAME:
            break
        if isinstance(node, torch.Tensor):
            found[name] = node
            continue
        if isinstance(node, Mapping):
            items = [(label(key), value) for key, value in node.items()]
        elif isinstance(node, (list, tuple)):
            items = [(str(index), value) for index, value in enumerate(node)]
        else:
            continue
        stack += [(f"{name}.{key}" if name else key, value) for key, value in items]
    raise NotVerifiable("what PyTorch loads has too many nodes, or contains itself")


def compare(
    parts: tuple[Part, ...], origins: Origins, dtype: str, stored: Mapping[str, Mapping[str, Any]]
) -> int:
    """Compares every stored parameter, bit by bit, with what PyTorch's reading would have given.

    Args:
        parts: what was converted.
        origins: where each source tensor came from.
        dtype: what was stored.
        stored: folder of a part -> parameter -> array, or anything with `.numpy()`.

    Returns:
        How many parameters were compared.

    Raises:
        NotVerifiable: see `load_with_torch`.
        ConversionError: naming the parameters that differ.
    """
    files = {path for path, _ in origins.values()}
    loaded = {path: load_with_torch(path) for path in sorted(files)}
    count, problems = 0, []
    for part in parts:
        for step in part.plan.steps:
            if step.source not in origins:
                continue  # made by the conversion, such as an average of w
            path, name = origins[step.source]
            if name not in loaded[path]:
                problems.append(f"PyTorch finds no tensor {shown_name(name)}")
                continue
            expected = cast(part.plan.transformed(step, _array(loaded[path][name])), dtype)
            actual = stored[part.folder][step.target]
            actual = np.asarray(actual.numpy() if hasattr(actual, "numpy") else actual)
            # As bytes, so that NaNs compare too.
            if actual.shape != expected.shape or actual.tobytes() != expected.tobytes():
                shown = shown_name(name)
                problems.append(f"{step.target} differs from {shown} as PyTorch reads it")
            count += 1
    if problems:
        shown = "; ".join(problems[:5])
        raise ConversionError(f"verification failed for {len(problems)} tensors: {shown}", problems)
    return count


def _array(tensor: Any) -> np.ndarray:
    name = str(tensor.dtype).removeprefix("torch.")
    tensor = tensor.detach().contiguous()
    if name.startswith(("bfloat", "float8")):  # NumPy has no such types; the bits are the same
        torch = importlib.import_module("torch")
        bits = tensor.view(torch.int16 if name == "bfloat16" else torch.uint8).numpy()
        return bits.view(dtype_named(name))
    return tensor.numpy()
