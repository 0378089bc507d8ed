"""diffusers files and folders: one model with its `config.json`, or a whole pipeline.

A model's weights may be one file, a variant of it (`*.fp16.safetensors`), or several with an index
that says which tensor is where. A pipeline has a first stage (`vae` or `vqvae`) and a U-Net, or a
U-Net alone (DDPM); the oldest ones have the U-Net's files beside `model_index.json`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from checkpoints_convert.describe import describe
from checkpoints_convert.documents import below
from checkpoints_convert.found import Found, at, check_alone, check_averages, tensors_of
from checkpoints_convert.printable import name as shown_name
from checkpoints_convert.printable import printable
from checkpoints_convert.publishers.compvis_unet import check_channels
from checkpoints_convert.publishers.diffusers_autoencoder import (
    AutoencoderOptions,
    TinyOptions,
    convert_autoencoder,
    convert_autoencoder_tiny,
)
from checkpoints_convert.publishers.diffusers_unet import convert_unet
from checkpoints_convert.readers import read
from checkpoints_convert.readers.settings_files import read_json
from checkpoints_convert.recognised import Recognised, recognised
from checkpoints_convert.request import NoOptions, Request
from checkpoints_convert.table import ConversionError

CLASSES = ("AutoencoderKL", "VQModel", "AutoencoderTiny", "UNet2DModel")

_ANCHORS = {
    "AutoencoderKL or VQModel": ("decoder.mid_block.resnets.0.conv1.weight",),
    "AutoencoderTiny": ("decoder.layers.0.weight",),
    "UNet2DModel": ("mid_block.resnets.0.conv1.weight",),
}
_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
_ENDS = (".safetensors", ".bin")
MAX_SHARDS = 1000
MAX_LISTED = 10_000  # entries of a folder that are looked at


def from_file(found: Found, request: Request) -> Recognised | None:
    """One model whose `config.json` lies beside it or is given."""
    told = ((what, at(found, request, *anchors)) for what, anchors in _ANCHORS.items())
    what, here = next(((what, here) for what, here in told if here is not None), ("", None))
    if here is None:
        return None
    folder = Path(found.file.path).parent
    refuse_shard(found)
    config = request.config or folder / "config.json"
    if not config.is_file():
        raise ConversionError(
            f"a diffusers {what}: its config.json is needed, beside the file or with --config"
        )
    check_alone(here)
    check_averages(here, request)
    return _model(here, config, folder, request, ("config",))


def refuse_shard(found: Found) -> None:
    """Refuses one of several files of a model, by its name."""
    if re.fullmatch(r"(.+)-\d+-of-\d+(\.\w+)", Path(found.file.path).name):
        raise ConversionError(
            "one of several files of a model: give the folder, whose index says what is in each"
        )


def _model(
    found: Found,
    config_file: Path,
    folder: Path,
    request: Request,
    files: tuple[str, ...] = (),
    scheduler_class: Any = None,
) -> Recognised:
    config = read_json(config_file)
    name = config.get("_class_name")
    if type(name) is not str or name not in CLASSES:
        raise ConversionError(
            f"{printable(config_file)} is of a model of class {describe(name, 60)}: fpjax has "
            f"{', '.join(CLASSES)}"
        )
    kind = f"{name}, diffusers"
    if name == "UNet2DModel":
        request.read(kind, NoOptions, files=files, weights=found.weighted)
        scheduler = _scheduler(folder, config_file.parent, scheduler_class)
        conversion = convert_unet(found.tensors, config, scheduler)
    elif name == "AutoencoderTiny":
        options = request.read(kind, TinyOptions, files=files, weights=found.weighted)
        conversion = convert_autoencoder_tiny(found.tensors, config, options)
    else:
        options = request.read(kind, AutoencoderOptions, files=files, weights=found.weighted)
        conversion = convert_autoencoder(found.tensors, config, options)
    return recognised(kind, found, conversion, found.note)


def _scheduler(folder: Path, beside: Path, scheduler_class: Any) -> Mapping[str, Any] | None:
    """The scheduler's config, else its class alone where the pipeline names it."""
    for place in (folder, folder.parent / "scheduler", beside, beside.parent / "scheduler"):
        if (place / "scheduler_config.json").is_file():
            return read_json(place / "scheduler_config.json")
    return None if scheduler_class is None else {"_class_name": scheduler_class}


def from_folder(path: Path, request: Request) -> Recognised:
    """One model's folder, or a pipeline's with a first stage, a U-Net, or both.

    Raises:
        ConversionError: for another folder; it says what is expected, or what this one is.
    """
    _refuse_unpacked(path)
    has_index = (path / "model_index.json").is_file()
    if (path / "config.json").is_file():
        return _from_model_folder(path, request, _scheduler_class(path) if has_index else None)
    stages = [path / name for name in ("vqvae", "vae") if (path / name / "config.json").is_file()]
    has_unet = (path / "unet" / "config.json").is_file()
    scheduler_class = _scheduler_class(path) if has_index else None
    if has_unet and stages:
        stage = _from_model_folder(stages[0], request)
        prior = _from_model_folder(path / "unet", Request(), scheduler_class)
        return _join(stage, prior)
    if has_unet:
        return _from_model_folder(path / "unet", request, scheduler_class)
    if stages:
        shown = printable(stages[0])
        raise ConversionError(
            f"{printable(path)}: a pipeline without an unconditional U-Net; its first stage "
            f"converts alone: fpjax-convert {shown} OUT_DIR"
        )
    if has_index:
        raise ConversionError(
            f"{printable(path)}: a pipeline without a first stage (vae, vqvae) and a U-Net (unet)"
        )
    raise _no_model(path)


def _scheduler_class(path: Path) -> Any:
    stated = read_json(path / "model_index.json").get("scheduler")
    return stated[1] if type(stated) is list and len(stated) == 2 else None


def _no_model(path: Path) -> ConversionError:
    return ConversionError(
        f"{printable(path)}: a folder without a model: expected config.json and one of "
        f"{', '.join(stem + end for stem in _STEMS for end in _ENDS)}"
    )


def _from_model_folder(path: Path, request: Request, scheduler_class: Any = None) -> Recognised:
    found, more, note = _weights(path)
    made = _model(found, path / "config.json", path, request, scheduler_class=scheduler_class)
    files = made.files + tuple(file.file for file in more)
    return replace(made, files=files, notes=made.notes + note)


def _weights(path: Path) -> tuple[Found, tuple[Found, ...], tuple[str, ...]]:
    """(tensors, further files, notes) of a model's folder."""
    for stem in _STEMS:
        for end in _ENDS:
            if (path / f"{stem}{end}").is_file():
                return tensors_of(read(path / f"{stem}{end}")), (), ()
    names = []
    for entry, _ in zip(path.iterdir(), range(MAX_LISTED), strict=False):
        names.append(entry.name)
    for stem in _STEMS:
        indices = sorted(
            name for name in names if re.fullmatch(rf"{stem}\.\w+\.index(\.\w+)?\.json", name)
        )
        if indices:
            return _shards(path, indices[0])
        variants = sorted(
            name for name in names if re.fullmatch(rf"{stem}\.\w+\.(safetensors|bin)", name)
        )
        # Half precision of the same weights before anything else; safetensors before pickles.
        variants.sort(key=lambda name: (".fp16." not in name, not name.endswith("safetensors")))
        if variants:
            note = f"the variant {shown_name(variants[0])} is used: the folder has no whole one"
            return tensors_of(read(path / variants[0])), (), (note,)
    raise _no_model(path)


def _shards(path: Path, index: str) -> tuple[Found, tuple[Found, ...], tuple[str, ...]]:
    """A model in several files, by the index that says which tensor is in which."""
    places = below(read_json(path / index), "weight_map")
    shown = printable(path / index)
    plain = all(
        type(file) is str and re.fullmatch(r"[\w.-]+\.(safetensors|bin)", file)
        for file in places.values()
    )
    files = sorted(set(places.values())) if plain else []
    if not files or len(files) > MAX_SHARDS:
        raise ConversionError(
            f"{shown}: expected a weight_map from tensors to 1 to {MAX_SHARDS} files beside it"
        )
    tensors: dict[str, Any] = {}
    at_path: dict[str, str] = {}
    shards = [tensors_of(read(path / file)) for file in files]
    for file, shard in zip(files, shards, strict=True):
        for name, tensor in shard.all.items():
            if places.get(name) != file:
                raise ConversionError(
                    f"{shown}: tensor {shown_name(name)} of {file} is in another file, or in none"
                )
            tensors[name] = tensor
            at_path[name] = shard.file.path
    if missing := [name for name in places if name not in tensors]:
        raise ConversionError(f"{shown}: no file has tensor {shown_name(missing[0])}")
    found = replace(shards[0], all=tensors, places=at_path)
    return found, tuple(shards[1:]), (f"the weights are in {len(files)} files",)


def _refuse_unpacked(path: Path) -> None:
    """A torch file whose zip archive was unpacked, by hand or by a browser."""
    for place in (path, path / "archive", path / path.name):
        if (place / "data.pkl").is_file():
            shown = printable(place.resolve().name)
            raise ConversionError(
                f"{printable(path)}: a torch file that was unpacked; zip it again, without "
                f"compression, from the folder above: zip -0 -r {shown}.pt {shown}"
            )


def _join(stage: Recognised, prior: Recognised) -> Recognised:
    """A first stage and a prior from two files."""
    if [part.architecture for part in prior.parts] != ["diffusion"]:
        raise ConversionError("the pipeline's unet folder holds no U-Net")
    if stage.parts[0].architecture == "diffusion":
        raise ConversionError("the pipeline's first stage is a U-Net")
    config = stage.parts[0].config
    latent = config.get("embed_dim", config.get("latent_channels"))
    inner = prior.parts[0].config["unet"]
    check_channels(inner["in_channels"], inner["out_channels"], latent)
    moved = tuple(replace(part, folder="prior") for part in prior.parts)
    return Recognised(
        "latent diffusion, diffusers",
        stage.parts + moved,
        stage.notes + prior.notes,
        stage.ignored + prior.ignored,
        {**stage.origins, **prior.origins},
        stage.files + prior.files,
    )
