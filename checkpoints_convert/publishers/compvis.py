"""CompVis files: whole latent diffusion checkpoints, first stages alone, U-Nets alone."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from checkpoints_convert.documents import below, choice, flag, integer, number
from checkpoints_convert.found import (
    Found,
    at,
    check_alone,
    check_averages,
    is_averaged,
    state_dict_start,
)
from checkpoints_convert.printable import name as shown_name
from checkpoints_convert.publishers import compvis_first_stage, compvis_unet
from checkpoints_convert.publishers.compvis_first_stage import FirstStageOptions
from checkpoints_convert.publishers.compvis_unet import UNetOptions
from checkpoints_convert.readers.nvidia import mapping as items_of
from checkpoints_convert.readers.nvidia import plain
from checkpoints_convert.readers.settings_files import read_yaml
from checkpoints_convert.recognised import Recognised, recognised
from checkpoints_convert.request import Request, without_effect
from checkpoints_convert.table import (
    Conversion,
    ConversionError,
    Ignorable,
    as_numpy,
    convert,
    real_numbers,
    select,
    under,
)
from fpjax.models import autoencoder, diffusion, unet
from fpjax.models.diffusion import MAX_TIMESTEPS, BetaSchedule
from fpjax.models.layers import MAX_SIZE

STAGE, UNET = "first_stage_model.", "model.diffusion_model."

IGNORABLE: list[Ignorable] = [
    *(
        Ignorable(rf"first_stage_model\.(?:{pattern})", reason)
        for pattern, reason in compvis_first_stage.IGNORABLE
    ),
    *compvis_unet.SCHEDULE_IGNORABLE,
]

BESIDE_A_STAGE = (
    r"model|cond_stage_model|unet|transformer|text_\w+|conditioner|model_\w+|\w*clip\w*"
)
BESIDE_A_UNET = (
    r"first_stage_model|model_ema|betas|\w*alphas\w*|posterior_\w+|lvlb_weights|scale_factor"
    r"|cond_ids|vae|module"
)


@dataclasses.dataclass(frozen=True)
class WholeOptions(UNetOptions):
    """What no tensor of a whole model shows: that of its U-Net, and the scale of its latents."""

    scale_factor: float | None = None
    shift_factor: float | None = None


@dataclasses.dataclass(frozen=True)
class Stated:
    """What a `config.yaml`, or hyper-parameters kept in a checkpoint, say; None where nothing.

    Attributes:
        options: of the first stage and of the U-Net.
        image_size: nominal side of a latent.
        schedule: arguments of `diffusion.alphas_cumprod`; the FFHQ-256 LDM's where nobody says.
    """

    options: WholeOptions = WholeOptions()
    image_size: int | None = None
    schedule: tuple[int, BetaSchedule, float, float] = (1000, "sqrt_linear", 0.0015, 0.0195)


_SCHEDULES: dict[str, BetaSchedule] = {
    "linear": "sqrt_linear",
    "sqrt_linear": "linear",
    "cosine": "cosine",
}
"""CompVis' name of a schedule to ours: theirs, "linear" is linear in sqrt(beta)."""


def stated_in(document: Mapping[str, Any]) -> Stated:
    """What a CompVis `config.yaml`, or its model's parameters, say.

    Args:
        document: the parsed file, `{"model": {"params": ...}}`, or the parameters alone.

    Raises:
        ConversionError: if a value is of another type or range than there, or of a model that
            fpjax does not have.

    >>> inner = {"params": {"num_head_channels": 64}}
    >>> stated_in({"model": {"params": {"unet_config": inner}}}).options.num_head_channels
    64
    """
    model = below(document, "model", "params") or document
    inner = below(model, "unet_config", "params")
    ddconfig = below(model, "first_stage_config", "params", "ddconfig") or below(model, "ddconfig")
    if inner:
        choice(model, "parameterization", ("eps",))
    heads = {
        name: None if inner.get(name) == -1 else integer(inner, name, most=MAX_SIZE)
        for name in ("num_head_channels", "num_heads")
    }
    if heads["num_head_channels"] is not None:
        heads["num_heads"] = None
    options = WholeOptions(
        resolution=integer(ddconfig, "resolution", most=MAX_SIZE),
        new_attention_order=flag(inner, "use_new_attention_order"),
        scale_factor=number(model, "scale_factor"),
        **heads,
    )
    schedule = Stated.schedule
    if inner:
        schedule = (
            integer(model, "timesteps", schedule[0], most=MAX_TIMESTEPS),
            _SCHEDULES[choice(model, "beta_schedule", tuple(_SCHEDULES))],
            number(model, "linear_start", schedule[2]),
            number(model, "linear_end", schedule[3]),
        )
    image_size = integer(model, "image_size", most=MAX_SIZE) if inner else None
    return Stated(options, image_size, schedule)


def _stated(found: Found, request: Request) -> Stated:
    """What the config file says, else hyper-parameters kept in the checkpoint."""
    tree = found.file.tree
    if request.config is not None:
        return stated_in(read_yaml(request.config))
    if type(tree) is dict and (stored := items_of(tree.get("hyper_parameters"))):
        return stated_in(plain(stored, found.file.limits))
    return Stated()


def _over(given: Any, stated: WholeOptions) -> WholeOptions:
    """Flags where they say something, else the configuration."""
    values = dataclasses.asdict(stated)
    said = {name: value for name, value in dataclasses.asdict(given).items() if value is not None}
    if "num_heads" in said or "num_head_channels" in said:
        values["num_heads"] = values["num_head_channels"] = None
    return WholeOptions(**{**values, **said})


def from_whole(found: Found, request: Request) -> Recognised | None:
    """A checkpoint with a first stage and a U-Net, each below its own prefix."""
    anywhere = dataclasses.replace(request, weights=None)
    for anchor in (
        f"{UNET}input_blocks.0.0.weight",
        "model_ema.diffusion_modelinput_blocks00weight",
    ):
        if (here := at(found, anywhere, f"{STAGE}decoder.conv_in.weight", anchor)) is not None:
            break
    else:
        return None
    kind = "latent diffusion, CompVis"
    given = request.read(kind, WholeOptions, files=("config",), weights=True)
    stated = _stated(here, request)
    tensors = here.tensors
    if "scale_factor" in tensors and given.scale_factor is not None:
        raise without_effect("scale_factor", kind, " that states its own")
    options = _over(given, stated.options)
    _check_order(given, tensors, kind)
    schedule, sentences = _schedule(tensors, stated)
    use_ema = {"raw": False, "ema": True}.get(request.weights or "")
    conversion = convert_ldm({**tensors, **schedule}, options, use_ema=use_ema)
    return recognised(kind, here, conversion, sentences)


def convert_ldm(
    tensors: Mapping[str, Any],
    options: WholeOptions | None = None,
    *,
    use_ema: bool | None = None,
) -> Conversion:
    """Maps a whole unconditional latent diffusion checkpoint: its first stage and its prior.

    Args:
      tensors: name -> array, as in the checkpoint's `state_dict`.
      options: what no tensor shows.
      use_ema: take the averaged U-Net weights, as the published samplers do, or the raw ones; None
        takes the averages where there are any.

    Returns:
      The `Conversion`; config and parameters are {"autoencoder": ..., "diffusion": ...}, the
      latter a `DiffusionConfig` and the parameters of its U-Net.

    Raises:
      ConversionError: if anything is missing, left over, or conditional.

    >>> convert_ldm({"model.diffusion_model.out.2.bias": np.zeros(3)})
    Traceback (most recent call last):
    ...
    checkpoints_convert.table.ConversionError: not a CompVis first stage: ...
    """
    options = options or WholeOptions()
    _refuse_conditional(tensors)
    scale = options.scale_factor
    if "scale_factor" in tensors:
        scale = _scalar(tensors["scale_factor"], "scale_factor")
    stage_options = FirstStageOptions(options.resolution, scale, options.shift_factor)
    stage = compvis_first_stage.infer_config(select(tensors, STAGE), stage_options)
    tensors, stage_notes = compvis_first_stage.with_quant_convs(tensors, stage, STAGE)
    raw = select(tensors, UNET)
    if use_ema is False:
        stored = {}
    elif raw:
        stored = compvis_unet.averages(tensors, raw) or {}
    else:
        stored = compvis_unet.averages_alone(tensors)
    if use_ema and not stored:
        raise ConversionError("--weights ema, and the file has no averaged (EMA) weights")
    if use_ema is False and not raw:
        raise ConversionError("--weights raw, and the file has averaged (EMA) weights alone")
    asked, use_ema = use_ema, bool(stored)
    source = {name: tensors[full] for name, full in stored.items()} if use_ema else raw
    resolution = options.resolution or 256
    config = compvis_unet.infer_config(
        source, options, image_size=max(1, resolution // stage.downsampling)
    )
    compvis_unet.check_channels(config.in_channels, config.out_channels, stage.embed_dim)
    table = compvis_unet.rules(config)
    name, full = next(iter(stored.items()), ("", "model_ema.diffusion_model"))
    averaged = re.escape(full.removesuffix(name.replace(".", "")))
    if use_ema:
        # The averaging code drops the dots of the names it keeps.
        table = [rule._replace(pattern=rule.pattern.replace(r"\.", "")) for rule in table]
        table = under(table, averaged, "diffusion/")
        unused = Ignorable(r"model\.diffusion_model\..*", "raw weights; the averages are used")
    else:
        table = under(table, r"model\.diffusion_model\.", "diffusion/")
        unused = Ignorable(
            r"model_ema\.(?!decay$|num_updates$).*", "averages; the raw weights are used"
        )
    plan = convert(
        tensors,
        under(compvis_first_stage.RULES, r"first_stage_model\.", "autoencoder/") + table,
        [*IGNORABLE, unused],
        {"autoencoder": autoencoder.param_shapes(stage), "diffusion": unet.param_shapes(config)},
        compvis_unet.qkv_transforms(config, bool(options.new_attention_order)),
    )
    which = "averaged (EMA)" if use_ema else "raw"
    notes = [
        *stage_notes,
        *options.notes(compvis_unet.is_fused(source)),
        f"the U-Net's {which} weights are used"
        + ("" if stored or asked is False else ": the file has no averaged (EMA) ones"),
    ]
    if options.resolution is None:
        notes.append(f"resolution {resolution} is nominal: no tensor tells it")
    configs = {
        "autoencoder": stage,
        "diffusion": compvis_unet.infer_schedule(config, tensors),
    }
    return Conversion("ldm", configs, plan, tuple(notes))


def from_first_stage(found: Found, request: Request) -> Recognised | None:
    """A first stage alone, or below `first_stage_model.` of a file without a U-Net."""
    here = at(found, request, "decoder.mid.block_1.norm1.weight", "decoder.conv_in.weight")
    if here is None:
        return None
    kind = "first stage of latent diffusion, CompVis"
    given = request.read(kind, FirstStageOptions, files=("config",), weights=here.weighted)
    check_alone(here, also=BESIDE_A_STAGE + "|" + BESIDE_A_UNET)
    stated = _stated(here, request).options
    scale = here.beside("scale_factor")
    if scale is not None:
        if given.scale_factor is not None:
            raise without_effect("scale_factor", kind, " that states its own")
        value = _scalar(here.all[scale], "scale_factor")
        stated = dataclasses.replace(stated, scale_factor=value)
    options = _over(given, stated)
    conversion = compvis_first_stage.convert_autoencoder(
        {name: t for name, t in here.tensors.items() if not _schedule_name(name)},
        FirstStageOptions(options.resolution, options.scale_factor, options.shift_factor),
    )
    return recognised(kind, here, conversion)


def from_unet(found: Found, request: Request) -> Recognised | None:
    """A U-Net alone, bare or below `model.diffusion_model.`, with its averages if it has any."""
    anywhere = dataclasses.replace(request, weights=None)
    anchors = ("input_blocks.0.0.weight", "time_embed.0.weight")
    here = at(found, request if len(_places(found, anchors[0])) > 1 else anywhere, *anchors)
    if here is None:
        return None
    kind = "U-Net of latent diffusion, CompVis"
    start = state_dict_start(here)
    around = select(here.all, start)
    _refuse_conditional(around)
    own = {
        name: tensor
        for name, tensor in here.tensors.items()
        if not name.startswith("model_ema.") and not _schedule_name(name)
    }
    raw = request.weights == "raw"
    stored = None if raw else compvis_unet.averages(here.all, own, start)
    weights = here.weighted or any(map(is_averaged, here.all))
    given = request.read(kind, UNetOptions, files=("config",), weights=weights)
    check_alone(here, also=BESIDE_A_UNET)
    notes: tuple[str, ...] = ()
    if stored is not None:
        tensors = {name: here.all[full] for name, full in stored.items()}
        origins = {name: here.origin(full) for name, full in stored.items()}
        notes = ("the U-Net's averaged (EMA) weights are used",)
    else:
        check_averages(here, request)
        tensors = own
        origins = {name: here.origin(here.prefix + name) for name in own}
        notes = ("the U-Net's raw weights are used",) if weights else ()
    stated = _stated(here, request)
    options = _over(given, stated.options)
    _check_order(given, tensors, kind)
    full_names = {n: full for n in ("alphas_cumprod", "betas") if (full := here.beside(n))}
    known = {name: here.all[full] for name, full in full_names.items()}
    schedule, sentences = _schedule(known, stated)
    image_size = stated.image_size if given.resolution is None else None
    conversion = compvis_unet.convert_unet(
        tensors,
        UNetOptions(
            options.resolution,
            options.num_head_channels,
            options.num_heads,
            options.new_attention_order,
        ),
        image_size=image_size or max(1, (options.resolution or 256) // 4),
    )
    config = compvis_unet.infer_schedule(conversion.config, {**known, **schedule})
    conversion = dataclasses.replace(conversion, architecture="diffusion", config=config)
    return recognised(kind, here, conversion, notes + sentences, (), origins)


def _places(found: Found, anchor: str) -> list[str]:
    return [
        name for name in found.all if name == anchor or name.endswith((f".{anchor}", f"/{anchor}"))
    ]


def _schedule_name(name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern, _ in compvis_unet.SCHEDULE_IGNORABLE)


def _refuse_conditional(names: Mapping[str, Any]) -> None:
    if cond := [name for name in names if name.startswith("cond_stage_model.")]:
        raise ConversionError(
            f"a conditional model ({shown_name(cond[0])}): only unconditional ones convert"
        )


def _check_order(given: UNetOptions, tensors: Mapping[str, Any], kind: str) -> None:
    if given.new_attention_order is not None and not compvis_unet.is_fused(tensors):
        raise without_effect(
            "new_attention_order", kind, ", as queries, keys and values are apart in the file"
        )


def _schedule(tensors: Mapping[str, Any], stated: Stated) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The signal variances a mapping needs, where the file leaves them out, and a sentence."""
    if "alphas_cumprod" in tensors:
        return {}, ()
    if "betas" in tensors:
        betas = compvis_unet.schedule_values(tensors["betas"], "betas")
        return {"alphas_cumprod": np.cumprod(1 - betas)}, ()
    steps, name, start, end = stated.schedule
    try:
        alphas = diffusion.alphas_cumprod(steps, name, start, end)
    except ValueError as error:
        raise ConversionError(f"the config's noise schedule: {error}") from error
    sentence = f"no tensor tells the noise schedule: {steps} steps, {name}, betas {start} to {end}"
    return {"alphas_cumprod": alphas}, (sentence,)


def _scalar(tensor: Any, name: str) -> float:
    if tuple(tensor.shape) not in ((), (1,)):
        raise ConversionError(f"{name} has shape {tuple(tensor.shape)}: expected one number")
    whole = getattr(tensor, "dtype", np.dtype(float)).kind in "iu"  # a config that says 1
    number_of = as_numpy(tensor) if whole else real_numbers(tensor, name)
    value = compvis_unet.shortest(number_of.reshape(()))
    if not 0 < value < np.inf:
        raise ConversionError(f"{name} {value}: expected a positive number")
    return value
