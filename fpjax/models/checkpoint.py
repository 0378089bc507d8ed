"""Parameter trees on disk: a folder with `config.json` and `params.safetensors`.

    config.json         {"format_version", "architecture", "config", "info"}
    params.safetensors  one tensor for each leaf, named by its path, parts joined by "/"
    params/             instead of that file, where `fpjax-convert --format orbax` wrote it: the
                        parameter tree as an Orbax checkpoint
    prior/              such a folder again: the diffusion prior of a latent diffusion model, whose
                        first stage is the folder itself

Folders are written under a temporary name and renamed, so a reader never sees half of one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fpjax.errors import FpjaxError
from fpjax.io.atomic import atomic_directory
from fpjax.models.parameters import flatten, mismatches, unflatten

FORMAT_VERSION = 1
HEADER_BYTES = 4 << 20


class CheckpointFormatError(FpjaxError, ValueError):
    """A folder that is no fpjax checkpoint, or a damaged one.

    >>> issubclass(CheckpointFormatError, (FpjaxError, ValueError))
    True
    """


def _arrays(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in flatten(params).items()}


def canonical_json(value: Any) -> str:
    """JSON text that is the same for equal values: sorted keys, no spaces.

    >>> canonical_json({"b": 1, "a": (2, 3)})
    '{"a":[2,3],"b":1}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def params_sha256(architecture: str, config: Mapping[str, Any], params: Mapping[str, Any]) -> str:
    """Hash of what a generator computes: architecture, config, and every parameter in float32.

    Independent of the file format, of the machine's byte order and of the order of names.

    >>> params_sha256("stylegan2", {"resolution": 8}, {"a": np.ones(2)})[:8]
    '1db4cbd4'
    """
    digest = hashlib.sha256()
    digest.update(canonical_json([architecture, config]).encode())
    for path, leaf in _arrays(params).items():
        digest.update(canonical_json([path, list(leaf.shape)]).encode())
        digest.update(np.ascontiguousarray(leaf, dtype="<f4").tobytes())
    return digest.hexdigest()


def config_to_json(config: Any) -> dict[str, Any]:
    """A frozen config dataclass as plain JSON values.

    >>> from fpjax.models.stylegan2 import StyleGAN2Config
    >>> config_to_json(StyleGAN2Config(8))["fir"]
    [1.0, 3.0, 3.0, 1.0]
    """
    return json.loads(canonical_json(dataclasses.asdict(config)))


def config_from_json(config_class: type, values: Mapping[str, Any]) -> Any:
    """The inverse of `config_to_json`; lists become tuples again.

    Raises:
      CheckpointFormatError: for an unknown or missing field.

    >>> from fpjax.models.stylegan2 import StyleGAN2Config
    >>> config_from_json(StyleGAN2Config, {"resolution": 8, "fir": [1, 2, 2, 1]}).fir
    (1, 2, 2, 1)
    """

    def tuples(value):
        return tuple(tuples(v) for v in value) if isinstance(value, list) else value

    try:
        config = config_class(**{name: tuples(value) for name, value in values.items()})
        hash(config)  # a field of a type that no config has would fail later, under jit
        return config
    except (TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        reason = " ".join(str(error)[:300].split())
        raise CheckpointFormatError(
            f"config.json does not describe a {config_class.__name__}: {reason}"
        ) from error


def save_checkpoint(
    path: str | os.PathLike,
    architecture: str,
    config: Mapping[str, Any],
    params: Mapping[str, Any],
    *,
    info: Mapping[str, Any] | None = None,
    dtype: str | None = None,
) -> None:
    """Writes a parameter tree to a new folder, atomically.

    Args:
      path: the folder; it must not exist.
      architecture: which model the config belongs to, such as "stylegan2".
      config: JSON values that describe the architecture.
      params: nested dict of arrays.
      info: further JSON values: where the weights come from, licences, the source's hash.
      dtype: numpy type the floating-point leaves are stored in; by default their own.

    Raises:
      FileExistsError: if the folder exists.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as parent:
    ...     save_checkpoint(f"{parent}/model", "stylegan2", {}, {"a": {"b": np.ones(2)}})
    ...     print(sorted(file.name for file in Path(parent, "model").iterdir()))
    ['config.json', 'params.safetensors']
    """
    with atomic_directory(path) as folder:
        write_checkpoint(folder, architecture, config, params, info=info, dtype=dtype)


def write_checkpoint(
    folder: Path,
    architecture: str,
    config: Mapping[str, Any],
    params: Mapping[str, Any],
    *,
    info: Mapping[str, Any] | None = None,
    dtype: str | None = None,
) -> None:
    """`save_checkpoint` into a folder that exists, for those who see to it that it is whole."""
    from safetensors.numpy import save_file

    leaves = _arrays(params)
    if dtype is not None:
        leaves = {
            name: leaf.astype(dtype) if np.issubdtype(leaf.dtype, np.floating) else leaf
            for name, leaf in leaves.items()
        }
    contents = header(architecture, config, info)
    (folder / "config.json").write_text(json.dumps(contents, indent=2) + "\n", "utf-8")
    save_file(
        # (np.ascontiguousarray would turn scalars into vectors.)
        {name: np.array(leaf, order="C") for name, leaf in leaves.items()},
        folder / "params.safetensors",
    )


def header(
    architecture: str, config: Mapping[str, Any], info: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The contents of a folder's `config.json`; see `save_checkpoint` for the arguments.

    >>> header("stylegan2", {"resolution": 8})["format_version"]
    1
    """
    return {
        "format_version": FORMAT_VERSION,
        "architecture": architecture,
        "config": dict(config),
        "info": dict(info or {}),
    }


def read_header(path: str | os.PathLike) -> dict[str, Any]:
    """The checked contents of a folder's `config.json`.

    Raises:
      CheckpointFormatError: if it is missing, damaged, or of a newer format.

    >>> read_header("no-such-folder")
    Traceback (most recent call last):
    fpjax.models.checkpoint.CheckpointFormatError: no-such-folder: no config.json, ...
    """
    file = Path(path) / "config.json"
    try:
        if file.stat().st_size > HEADER_BYTES:
            raise CheckpointFormatError(f"{file}: over {HEADER_BYTES >> 20} MiB: no config")
        header = json.loads(file.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointFormatError(
            f"{path}: no config.json, so this is no fpjax checkpoint; fpjax-convert makes one from "
            "published weights"
        ) from None
    except CheckpointFormatError:
        raise
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, a number of 5,000 digits
        raise CheckpointFormatError(f"{file}: damaged ({str(error)[:200]})") from error
    if not isinstance(header, dict) or not {"format_version", "architecture", "config"} <= set(
        header
    ):
        raise CheckpointFormatError(f"{file}: not the config of an fpjax checkpoint")
    if not isinstance(header["architecture"], str) or not isinstance(header["config"], dict):
        raise CheckpointFormatError(f"{file}: damaged (architecture or config of the wrong type)")
    if header["format_version"] != FORMAT_VERSION:
        raise CheckpointFormatError(
            f"{file}: format version {header['format_version']}, this fpjax reads {FORMAT_VERSION}"
        )
    return header


def load_tensors(file: str | os.PathLike) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file.

    Raises:
      CheckpointFormatError: if it is missing or damaged.

    >>> load_tensors("no-such-file")
    Traceback (most recent call last):
    fpjax.models.checkpoint.CheckpointFormatError: no-such-file: no such file
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(file)
    except FileNotFoundError as error:
        raise CheckpointFormatError(f"{file}: no such file") from error
    except (SafetensorError, ValueError, KeyError, OSError) as error:
        raise CheckpointFormatError(f"{file}: damaged ({error})") from error


def load_leaves(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """All parameters of a folder by "/"-joined path, in the dtype they are stored in.

    Raises:
      CheckpointFormatError: if they are missing or damaged.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as parent:
    ...     save_checkpoint(f"{parent}/model", "stylegan2", {}, {"a": {"b": np.ones(2)}})
    ...     print(load_leaves(f"{parent}/model"))
    {'a/b': array([1., 1.])}
    """
    folder = Path(path) / "params"
    if not folder.is_dir():
        return load_tensors(Path(path) / "params.safetensors")
    import orbax.checkpoint  # slow to import, and most folders are safetensors

    try:
        with orbax.checkpoint.PyTreeCheckpointer() as checkpointer:
            return _arrays(checkpointer.restore(folder.absolute()))
    except (ValueError, KeyError, TypeError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointFormatError(f"{folder}: damaged ({reason})") from error


def load_params(path: str | os.PathLike, shapes: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the parameters of a folder in float32, checked against the tree they must fill.

    Args:
      path: the folder.
      shapes: nested dict whose leaves have `.shape`.

    Raises:
      CheckpointFormatError: naming what is missing, unexpected or of another shape.

    >>> import tempfile
    >>> tree = {"a": {"b": np.ones(2, np.float32)}}
    >>> with tempfile.TemporaryDirectory() as parent:
    ...     save_checkpoint(f"{parent}/model", "stylegan2", {}, tree)
    ...     print(load_params(f"{parent}/model", tree))
    {'a': {'b': array([1., 1.], dtype=float32)}}
    """
    leaves = load_leaves(path)
    if problems := mismatches(leaves, shapes):
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointFormatError(f"{path}: {'; '.join(problems[:5])}{more}")
    return unflatten({name: leaf.astype(np.float32) for name, leaf in leaves.items()})
