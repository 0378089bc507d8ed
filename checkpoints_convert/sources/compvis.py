"""CompVis files: whole latent diffusion checkpoints, first stages alone, U-Nets alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from checkpoints_convert.mappings import compvis_ldm
from checkpoints_convert.mappings.table import select
from checkpoints_convert.readers.nvidia import mapping as items_of
from checkpoints_convert.readers.nvidia import plain
from checkpoints_convert.settings import Settings, from_compvis_config, read_yaml
from checkpoints_convert.sources.found import Found, Recognised, Request, at, recognised
from fpjax.models import diffusion


def _settings(found: Found, request: Request) -> Settings:
    """What the flags say, else the config file, else hyper-parameters kept in the checkpoint."""
    settings = request.settings
    if request.config is not None:
        settings = settings.over(from_compvis_config(read_yaml(request.config)))
    tree = found.file.tree
    if type(tree) is dict and (stored := items_of(tree.get("hyper_parameters"))):
        settings = settings.over(from_compvis_config(plain(stored, found.file.limits)))
    return settings


def from_whole(found: Found, request: Request) -> Recognised | None:
    """A checkpoint with a first stage and a U-Net, each below its own prefix."""
    stage = "first_stage_model.decoder.conv_in.weight"
    for anchor in (
        "model.diffusion_model.input_blocks.0.0.weight",
        "model_ema.diffusion_modelinput_blocks00weight",
    ):
        if (here := at(found, request.weights, stage, anchor)) is not None:
            break
    else:
        return None
    settings = _settings(found, request)
    tensors, notes = here.tensors, _schedule(here.tensors, settings)
    tensors.update(notes.tensors)
    if settings.scale_factor is not None and "scale_factor" not in tensors:
        tensors["scale_factor"] = np.float32(settings.scale_factor)
    conversion = compvis_ldm.convert_ldm(
        tensors,
        resolution=settings.resolution or 256,
        use_ema=request.weights == "ema",
        **settings.heads(),
    )
    return recognised("latent diffusion, CompVis", here, conversion, notes.sentences)


@dataclass(frozen=True)
class _Schedule:
    tensors: Mapping[str, Any]
    sentences: tuple[str, ...]


def _schedule(tensors: Mapping[str, Any], settings: Settings) -> _Schedule:
    """The signal variances a mapping needs, where the file leaves them out."""
    if "alphas_cumprod" in tensors:
        return _Schedule({}, ())
    if "betas" in tensors:
        betas = np.asarray(tensors["betas"].numpy(), np.float64)
        return _Schedule({"alphas_cumprod": np.cumprod(1 - betas)}, ())
    schedule = settings.schedule()
    steps, name, start, end = schedule
    sentence = f"no tensor tells the noise schedule: {steps} steps, {name}, betas {start} to {end}"
    return _Schedule({"alphas_cumprod": diffusion.alphas_cumprod(*schedule)}, (sentence,))


def from_first_stage(found: Found, request: Request) -> Recognised | None:
    """A first stage alone, or below `first_stage_model.` of a file without a U-Net."""
    anchors = ("decoder.mid.block_1.norm1.weight", "post_quant_conv.weight")
    here = at(found, "ema", *anchors)
    if here is None:
        return None
    settings = _settings(found, request)
    conversion = compvis_ldm.convert_autoencoder(
        here.tensors,
        resolution=settings.resolution or 256,
        scale_factor=1.0 if settings.scale_factor is None else settings.scale_factor,
    )
    return recognised("first stage of latent diffusion, CompVis", here, conversion)


def from_unet(found: Found, request: Request) -> Recognised | None:
    """A U-Net alone, bare or below `model.diffusion_model.`, with its averages if it has any."""
    here = at(found, "ema", "input_blocks.0.0.weight", "time_embed.0.weight")
    if here is None:
        return None
    settings = _settings(found, request)
    tensors, origins = here.tensors, here.origins
    notes: tuple[str, ...] = ()
    start = here.prefix.removesuffix("model.diffusion_model.")
    averaged = compvis_ldm.averaged_unet(select(here.all, start))
    if averaged and request.weights == "ema" and start != here.prefix:
        tensors = {name: here.all[start + full] for name, full in averaged.items()}
        origins = {name: (here.file.path, start + full) for name, full in averaged.items()}
        notes = ("the U-Net's averaged (EMA) weights are used",)
    around = {name: full for name in ("alphas_cumprod", "betas") if (full := here.beside(name))}
    schedule = _schedule({name: here.all[full] for name, full in around.items()}, settings)
    alphas = schedule.tensors.get("alphas_cumprod")
    alphas = here.all[around["alphas_cumprod"]] if alphas is None else alphas
    conversion = compvis_ldm.convert_unet(
        tensors,
        image_size=settings.image_size or (settings.resolution or 256) // 4,
        **settings.heads(),
    )
    config = compvis_ldm.infer_schedule(conversion.config, {"alphas_cumprod": alphas})
    conversion = replace(conversion, architecture="diffusion", config=config)
    notes += schedule.sentences
    return recognised("U-Net of latent diffusion, CompVis", here, conversion, notes, (), origins)
