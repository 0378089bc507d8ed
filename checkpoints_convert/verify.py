"""A second opinion: the source read by PyTorch, against what was written.

PyTorch is asked for nothing that runs code (`weights_only=True`), and is imported only here.
"""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np

from checkpoints_convert.mappings.table import ConversionError
from checkpoints_convert.output import cast
from checkpoints_convert.readers import read
from checkpoints_convert.readers.tensors import dtype_named
from checkpoints_convert.readers.tree import label
from checkpoints_convert.sources.found import Origins, Part


class NotVerifiable(Exception):
    """Why PyTorch cannot give a second opinion on a file."""


def load_with_torch(path: str) -> dict[str, Any]:
    """Every tensor that PyTorch finds in a file, by dotted name.

    Raises:
        NotVerifiable: if PyTorch is not installed, or would have to run what the file contains.
    """
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise NotVerifiable("PyTorch is not installed") from error
    if read(path).format == "safetensors":
        return dict(importlib.import_module("safetensors.torch").load_file(path))
    if read(path).format in ("npz", "npy"):
        raise NotVerifiable("it is a NumPy file, which PyTorch does not read")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, TypeError, EOFError) as error:
        first = str(error).strip().splitlines()[0][:200] if str(error).strip() else repr(error)
        raise NotVerifiable(f"PyTorch refuses it without running its code ({first})") from error
    found: dict[str, Any] = {}
    stack: list[tuple[str, Any]] = [("", loaded)]
    while stack:
        name, node = stack.pop()
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
    return found


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
                problems.append(f"PyTorch finds no tensor {name}")
                continue
            expected = cast(part.plan.transformed(step, _array(loaded[path][name])), dtype)
            actual = stored[part.folder][step.target]
            actual = np.asarray(actual.numpy() if hasattr(actual, "numpy") else actual)
            # As bytes, so that NaNs compare too.
            if actual.shape != expected.shape or actual.tobytes() != expected.tobytes():
                problems.append(f"{step.target} differs from {name} as PyTorch reads it")
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
