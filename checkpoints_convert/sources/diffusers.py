"""diffusers files and folders: one model with its `config.json`, or a whole pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from checkpoints_convert.mappings import diffusers
from checkpoints_convert.mappings.table import ConversionError
from checkpoints_convert.readers import read
from checkpoints_convert.settings import read_json
from checkpoints_convert.sources.found import Found, Recognised, Request, recognised, tensors_of

_ANCHORS = {
    "AutoencoderKL or VQModel": "decoder.mid_block.resnets.0.conv1.weight",
    "UNet2DModel": "mid_block.resnets.0.conv1.weight",
    "AutoencoderTiny": "decoder.layers.0.weight",
}


def from_file(found: Found, request: Request) -> Recognised | None:
    """One model whose `config.json` lies beside it or is given."""
    what = [name for name, anchor in _ANCHORS.items() if anchor in found.all]
    if not what:
        return None
    folder = Path(found.file.path).parent
    config = request.config or folder / "config.json"
    if not config.is_file():
        raise ConversionError(
            f"a diffusers {what[0]}: its config.json is needed, beside the file or with --config"
        )
    return _model(found, read_json(config), folder, request)


def _model(found: Found, config: Mapping[str, Any], folder: Path, request: Request):
    notes: tuple[str, ...] = ()
    if config.get("_class_name") in ("AutoencoderKL", "VQModel"):
        scale = request.settings.scale_factor
        conversion = diffusers.convert_autoencoder(found.all, config, scale_factor=scale)
    elif config.get("_class_name") == "UNet2DModel":
        places = (folder, folder.parent / "scheduler")
        files = [p for p in (place / "scheduler_config.json" for place in places) if p.is_file()]
        if not files:
            notes = (
                "the noise schedule is assumed, as no scheduler_config.json is there: diffusers' "
                "default, 1000 steps, betas 0.0001 to 0.02",
            )
        scheduler = read_json(files[0]) if files else {}
        conversion = diffusers.convert_unet(found.all, config, scheduler)
    else:
        conversion = diffusers.convert_model(found.all, config)
    return recognised(f"{config.get('_class_name')}, diffusers", found, conversion, notes)


_FILES = ("diffusion_pytorch_model", "model", "pytorch_model")


def from_folder(path: Path, request: Request) -> Recognised:
    """One model's folder, or a pipeline's with a first stage and an unconditional U-Net."""
    if (path / "model_index.json").is_file():
        stages = [path / name for name in ("vqvae", "vae") if (path / name).is_dir()]
        if not stages or not (path / "unet").is_dir():
            raise ConversionError(f"{path}: a pipeline without a first stage and a U-Net")
        stage = from_folder(stages[0], request)
        prior = from_folder(path / "unet", request)
        return _join(stage, prior)
    names = [path / f"{name}{end}" for name in _FILES for end in (".safetensors", ".bin")]
    files = [name for name in names if name.is_file()]
    if not files or not (path / "config.json").is_file():
        raise ConversionError(
            f"{path}: a folder without a model: expected config.json and one of "
            f"{', '.join(name.name for name in names)}"
        )
    file = read(files[0])
    found = Found(file, tensors_of(file))
    return _model(found, read_json(path / "config.json"), path, request)


def _join(stage: Recognised, prior: Recognised) -> Recognised:
    """A first stage and a prior from two files."""
    if [part.architecture for part in prior.parts] != ["diffusion"]:
        raise ConversionError("the pipeline's U-Net is none")
    moved = tuple(replace(part, folder="prior") for part in prior.parts)
    return Recognised(
        "latent diffusion, diffusers",
        stage.parts + moved,
        stage.notes + prior.notes,
        stage.ignored + prior.ignored,
        {**stage.origins, **prior.origins},
        stage.files + prior.files,
    )
