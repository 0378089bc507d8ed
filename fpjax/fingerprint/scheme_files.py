"""Schemes on disk: written once, read bit-exactly years later, refused where they do not fit.

    scheme.json              format version, identity, generator, key, strength
    scheme.safetensors       basis, dense or in blocks; for a person's own generator also a
                             picture it made
    calibration.json, calibration.safetensors    what calibration learned, where there is one

Format 1, of the first version of fpjax, stays readable. Schemes with a code are format 3, so that
an fpjax that knows none says so; all others are format 2. A code's mask is in `scheme.json` and as
private as the scheme.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np

from fpjax.errors import FpjaxError, InputError
from fpjax.fingerprint.basis import Basis
from fpjax.fingerprint.block_basis import BlockBasis, Transform, num_blocks
from fpjax.fingerprint.calibration import Calibration
from fpjax.fingerprint.codes import IndependentBits, code_from_json
from fpjax.fingerprint.decode import decode_images
from fpjax.io.atomic import atomic_directory
from fpjax.models.checkpoint import load_tensors
from fpjax.models.generator import Generator

FORMAT_VERSION = 2
FORMAT_VERSION_WITH_CODE = 3
_READABLE = (1, 2, 3)
_PROBE_TOLERANCE = 0.05
"""Largest difference, of images in [-1, 1], between a generator's picture and the recorded one: far
above what devices differ in, far below what another network makes."""

_TYPES: dict[str, type | tuple[type, ...]] = {
    "generator_name": str,
    "generator_sha256": str,
    "scheme_id": str,
    "basis_num_samples": int,
    "key_length": int,
    "shift": int,
    "strength": (int, float),
    "levels": str,
    "code": (str, dict),
}


class SchemeError(FpjaxError, ValueError):
    """A scheme that is damaged, of a newer format, or of another generator.

    >>> from fpjax.fingerprint.scheme import load_scheme
    >>> load_scheme("no-such-folder")
    Traceback (most recent call last):
        ...
    fpjax.fingerprint.scheme_files.SchemeError: ...
    """


def save_scheme(scheme: Any, path: str | os.PathLike) -> None:
    """Writes a scheme to a new folder, atomically.

    Raises:
      FileExistsError: if it exists already.
    """
    from safetensors.numpy import save_file

    basis = scheme.basis
    arrays = {f"basis/{name}": array for name, array in basis.arrays().items()}
    if type(scheme.generator) is Generator:
        arrays["probe/image"] = _probe(scheme.generator, basis.mean)
    version = FORMAT_VERSION if scheme.code is None else FORMAT_VERSION_WITH_CODE
    header = {"format_version": version, "scheme_id": scheme.id, **scheme.header()}
    with atomic_directory(path) as folder:
        text = json.dumps(header, indent=2, allow_nan=False) + "\n"
        (folder / "scheme.json").write_text(text, "utf-8")
        save_file(
            {name: np.array(array, order="C") for name, array in arrays.items()},
            folder / "scheme.safetensors",
        )
        if scheme.calibration is not None:
            scheme.calibration.write(folder)


def open_scheme(
    create: Callable[..., Any], path: str | os.PathLike, generator: Generator | None = None
) -> Any:
    """Opens a saved scheme.

    Args:
      create: `Scheme.create`.
      path: the folder.
      generator: the generator it belongs to; by default the bundled one of the recorded name.

    Raises:
      SchemeError: if the folder is no scheme, damaged, or of another generator.
    """
    path = Path(path)
    header = _read_header(path)
    generator = _bound_generator(path, header, generator)
    try:
        arrays = load_tensors(path / "scheme.safetensors")
        old = header["format_version"] == 1
        basis = _read_basis(header, arrays, generator)
        scheme = create(
            generator,
            basis,
            *(header[name] for name in ("key_length", "shift", "strength", "levels")),
            _read_code(header["code"]),
            keep_all=True,
        )
        if old:
            notes = header.get("notes")
            calibration = Calibration.of_version_1(arrays, notes if isinstance(notes, dict) else {})
        else:
            calibration = Calibration.read(path)
    except (FpjaxError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise SchemeError(f"{path}: damaged ({error})") from error
    if scheme.id != header["scheme_id"]:
        raise SchemeError(f"{path}: damaged (its contents do not give its recorded identity)")
    if type(generator) is Generator:
        _compare_probe(path, generator, arrays["basis/mean"], arrays.get("probe/image"))
    return scheme.replace(calibration=calibration)


def _read_code(value: str | dict[str, Any]):
    if isinstance(value, dict):
        return code_from_json(value)
    if value != IndependentBits.name:
        raise SchemeError(f"code {value!r:.40} is unknown")
    return None


def _read_basis(
    header: dict[str, Any], arrays: dict[str, np.ndarray], generator: Generator
) -> Basis | BlockBasis:
    """The basis of a scheme's file, checked as far as it must be to be used.

    Raises:
      SchemeError, KeyError, TypeError, ValueError: for what is no basis.
    """
    metric, samples = header.get("basis_metric", "latent"), header["basis_num_samples"]
    found = {name[6:]: array for name, array in arrays.items() if name.startswith("basis/")}
    sizes = {"mean": 1, "directions": 2, "dual": 2, "std": 1, "blocks": 3, "dual_blocks": 3}
    for name, array in found.items():
        if name in sizes and (
            array.dtype != np.float32 or array.ndim != sizes[name] or not np.isfinite(array).all()
        ):
            raise SchemeError(f"its basis has a {name} of {array.dtype} {array.shape}")
    if "basis_transform" not in header:
        directions = found["components" if header["format_version"] == 1 else "directions"]
        if directions.dtype != np.float32 or directions.ndim != 2:
            raise SchemeError(f"its basis has directions of {directions.dtype} {directions.shape}")
        dual = directions if metric == "latent" else found["dual"]
        return Basis(found["mean"], directions, dual, found["std"], samples, metric)
    transform, grid = header["basis_transform"], tuple(header["basis_grid"])
    if transform not in get_args(Transform) or grid != generator.latent_shape or len(grid) != 3:
        raise SchemeError(f"its basis has blocks {transform!r:.20} of latents {grid!r:.80}")
    blocks, owner, size = found["blocks"], found["owner"], len(found["mean"])
    dual = blocks if metric == "latent" else found["dual_blocks"]
    count = num_blocks(transform, grid)
    if (
        blocks.shape[0] * blocks.shape[2] != size
        or blocks.shape[0] != count
        or dual.shape != blocks.shape
        or owner.dtype != np.int32
        or owner.shape != (count * blocks.shape[1],)
        or set(owner.tolist()) - {-1} != set(range(len(found["std"])))
    ):
        raise SchemeError(f"its basis has blocks {blocks.shape} and owners {owner.shape}")
    return BlockBasis(
        found["mean"], blocks, dual, owner, found["std"], grid, transform, samples, metric
    )


def _bound_generator(path: Path, header: dict[str, Any], generator: Generator | None) -> Generator:
    name = header["generator_name"]
    if generator is None:
        from fpjax import zoo
        from fpjax.zoo.load import load_generator

        if name not in zoo.names():
            raise SchemeError(
                f"{path}: made for generator {name!r:.80}, which is not bundled; say where it is"
            )
        generator = load_generator(name)
    noise = header.get("noise", "const")
    if noise != generator.noise:
        with_noise = getattr(generator, "with_noise", None)
        try:
            if with_noise is None:
                raise InputError("it has no modes")
            generator = cast(Generator, with_noise(noise))
        except (InputError, TypeError, ValueError) as error:
            raise SchemeError(
                f"{path}: made with noise {noise!r:.20}, unknown to this generator"
            ) from error
    if header["generator_sha256"] != generator.sha256:
        raise SchemeError(
            f"{path}: made for generator {name!r:.80} with SHA-256 "
            f"{header['generator_sha256']:.64}, but {generator.name!r} has {generator.sha256}"
        )
    return generator


def _probe(generator: Generator, mean: np.ndarray) -> np.ndarray:
    """The picture (height, width, channels) of the mean latent, clipped."""
    return decode_images(generator, mean.reshape(1, *generator.latent_shape))[0]


def _compare_probe(path: Path, generator: Generator, mean: np.ndarray, recorded) -> None:
    if recorded is None:
        raise SchemeError(f"{path}: damaged (the picture of its generator is missing)")
    probe = _probe(generator, mean)
    if probe.shape != recorded.shape or not np.abs(probe - recorded).max() <= _PROBE_TOLERANCE:
        raise SchemeError(
            f"{path}: generator {generator.name!r} has the recorded parameters, but makes another "
            "picture of the mean latent: its functions are not those the scheme was made with"
        )


def _read_header(path: Path) -> dict[str, Any]:
    file = path / "scheme.json"
    if file.exists() and not file.is_file():
        raise SchemeError(f"{file}: not a regular file")  # a named pipe would be waited for
    try:
        header = json.loads(file.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise SchemeError(f"{path}: no scheme.json, so this is no scheme") from None
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise SchemeError(f"{file}: damaged ({error})") from error
    if not isinstance(header, dict) or "format_version" not in header:
        raise SchemeError(f"{file}: not the description of a scheme")
    if header["format_version"] not in _READABLE:
        raise SchemeError(
            f"{file}: format version {header['format_version']!r:.20}, this fpjax reads "
            f"{' and '.join(map(str, _READABLE))}"
        )
    for name, kinds in _TYPES.items():
        if not isinstance(header.get(name), kinds) or isinstance(header.get(name), bool):
            raise SchemeError(f"{file}: damaged ({name} is missing or of the wrong type)")
    return header
