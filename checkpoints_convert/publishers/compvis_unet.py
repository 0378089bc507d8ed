"""U-Nets of CompVis latent diffusion (`UNetModel`): tensors to parameters, averages, schedules.

Names are those of the published code (Rombach et al., CVPR 2022, after Dhariwal and Nichol, 2021).
Architectures are inferred from names and shapes; what cannot be is an option.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from checkpoints_convert.printable import name as shown_name
from checkpoints_convert.printable import names as shown_names
from checkpoints_convert.publishers.compvis_first_stage import count_indices, ratio, shapes_of
from checkpoints_convert.table import (
    Conversion,
    ConversionError,
    Ignorable,
    Rule,
    Transform,
    conv,
    conv1x1,
    convert,
    linear,
    norm,
    real_numbers,
)
from fpjax.models import unet
from fpjax.models.diffusion import MAX_TIMESTEPS, DiffusionConfig
from fpjax.models.layers import MAX_LEVELS
from fpjax.models.unet import UNetConfig

SCHEDULE_IGNORABLE: list[Ignorable] = [
    Ignorable(r"betas|alphas_cumprod", "the config has the schedule, checked against this"),
    Ignorable(
        r"alphas_cumprod_prev|sqrt_alphas_cumprod|sqrt_one_minus_alphas_cumprod"
        r"|log_one_minus_alphas_cumprod|sqrt_recip_alphas_cumprod|sqrt_recipm1_alphas_cumprod"
        r"|posterior_variance|posterior_log_variance_clipped|posterior_mean_coef[12]|lvlb_weights",
        "follows from the schedule",
    ),
    Ignorable(r"scale_factor", "in the config of the first stage"),
    Ignorable(r"logvar|cond_ids", "used in training only"),
    Ignorable(r"model_ema\.(decay|num_updates)", "counters of the averaging"),
]


@dataclasses.dataclass(frozen=True)
class UNetOptions:
    """What no tensor of a U-Net shows; None takes the published value, and a note says so.

    Attributes:
        resolution: nominal side of an image in pixels; 256.
        num_head_channels: channels of an attention head; 32.
        num_heads: heads of the attention at every level, instead of `num_head_channels`.
        new_attention_order: the fused projection holds all queries first, then all keys, then all
            values, instead of the three of each head together.
    """

    resolution: int | None = None
    num_head_channels: int | None = None
    num_heads: int | None = None
    new_attention_order: bool | None = None

    def heads(self) -> dict[str, int | None]:
        """The two fields of a `UNetConfig`.

        Raises:
            ConversionError: if both are given.
        """
        if self.num_head_channels is not None and self.num_heads is not None:
            raise ConversionError(
                "--num-head-channels and --num-heads say the same in two ways: give one of them"
            )
        if self.num_heads is not None:
            return {"num_head_channels": None, "num_heads": self.num_heads}
        return {"num_head_channels": self.num_head_channels or 32, "num_heads": 1}

    def notes(self, fused: bool) -> tuple[str, ...]:
        """Sentences about what was assumed."""
        heads = self.heads()
        channels = heads["num_head_channels"]
        what = f"{channels} channels a head" if channels else f"{heads['num_heads']} heads"
        assumed = self.num_heads is None and self.num_head_channels is None
        how = "is assumed" if assumed else "is taken, as stated"
        said = (f"attention with {what} {how}: no tensor tells it",)
        if fused and self.new_attention_order is None:
            said += ("the published order of the fused attention projection is assumed",)
        return said


def convert_unet(
    tensors: Mapping[str, Any], options: UNetOptions | None = None, *, image_size: int = 64
) -> Conversion:
    """Maps a U-Net state dict (`time_embed.*`, `input_blocks.*`, ...), prefixes removed.

    Args:
      tensors: name -> array.
      options: what no tensor shows.
      image_size: nominal side of a latent, which no tensor shows either.

    Returns:
      The `Conversion`.

    Raises:
      ConversionError: if the tensors are not those of such a model.

    >>> convert_unet({})
    Traceback (most recent call last):
    ...
    checkpoints_convert.table.ConversionError: not a CompVis U-Net: ...
    """
    options = options or UNetOptions()
    config = infer_config(tensors, options, image_size=image_size)
    fused = is_fused(tensors)
    transforms = qkv_transforms(config, bool(options.new_attention_order))
    shapes = unet.param_shapes(config)
    plan = convert(tensors, rules(config), SCHEDULE_IGNORABLE, shapes, transforms)
    notes = (*options.notes(fused), f"latent side {image_size} is nominal: no tensor tells it")
    return Conversion("unet", config, plan, notes)


def is_fused(names: Iterable[str]) -> bool:
    """Whether queries, keys and values come from one projection, as published."""
    return any(".qkv." in name or re.search(r"\dqkv(weight|bias)$", name) for name in names)


def infer_config(
    tensors: Mapping[str, Any], options: UNetOptions | None = None, *, image_size: int = 64
) -> UNetConfig:
    """The architecture that a U-Net's names and shapes tell, with the options for what they do not.

    >>> infer_config({"input_blocks.0.0.weight": np.zeros((32, 3, 3, 3)),
    ...     "label_emb.weight": np.zeros(1)})
    Traceback (most recent call last):
    ...
    checkpoints_convert.table.ConversionError: a conditional U-Net (label_emb.weight): only ...
    """
    options = options or UNetOptions()
    shape = shapes_of(tensors, "a CompVis U-Net")
    for name in tensors:
        if re.search(r"label_emb\.|transformer_blocks\.", name):
            raise ConversionError(
                f"a conditional U-Net ({shown_name(name)}): only unconditional ones convert"
            )
    model_channels, in_channels = shape("input_blocks.0.0.weight", 4)[:2]
    out_channels = shape("out.2.weight", 4)[0]
    check_channels(in_channels, out_channels)
    levels: list[list[tuple[int, bool]]] = [[]]
    for n in range(1, count_indices(tensors, r"input_blocks\.(\d+)\..*")):
        if f"input_blocks.{n}.0.op.weight" in tensors:
            levels.append([])
        else:
            out = shape(f"input_blocks.{n}.0.out_layers.3.weight", 4)[0]
            names = (f"input_blocks.{n}.1.{kind}.weight" for kind in ("qkv", "to_q"))
            levels[-1].append((out, any(name in tensors for name in names)))
        if len(levels) > MAX_LEVELS:
            raise ConversionError(f"a U-Net of more than {MAX_LEVELS} levels")
    if any(len(level) != len(levels[0]) or len(set(level)) != 1 for level in levels):
        listed = "; ".join(str(level[:4]) for level in levels)
        raise ConversionError(
            f"the blocks of each level differ, (channels, attention) being {listed}: a U-Net that "
            "resamples inside residual blocks (resblock_updown) or without convolution does not "
            "convert"
        )
    channels, attention = zip(*(level[0] for level in levels), strict=True)
    time_outputs = shape("input_blocks.1.0.emb_layers.1.weight", 2)[0]
    return config_of(
        image_size=image_size,
        in_channels=in_channels,
        out_channels=out_channels,
        model_channels=model_channels,
        channel_mult=tuple(ratio(c, model_channels) for c in channels),
        num_res_blocks=len(levels[0]),
        attention_resolutions=tuple(2**i for i, attends in enumerate(attention) if attends),
        use_scale_shift_norm=time_outputs == 2 * channels[0],
        **options.heads(),
    )


def check_channels(reads: int, predicts: int, latent: int | None = None) -> None:
    """Refuses a denoiser whose input is not what it predicts the noise of, or not the latent.

    Raises:
        ConversionError: saying what kind of model has such channels.
    """
    if predicts == 2 * reads:
        raise ConversionError(
            f"the U-Net reads {reads} channels and predicts {predicts}: it learned the variance "
            "too, and fpjax has denoisers that predict the noise alone"
        )
    if reads != predicts:
        raise ConversionError(
            f"the U-Net reads {reads} channels and predicts {predicts}: a conditional model "
            "(super-resolution, inpainting, ...), only unconditional ones convert"
        )
    if latent is not None and reads != latent:
        raise ConversionError(
            f"the U-Net reads {reads} channels and the latent has {latent}: a conditional model, "
            "or a first stage of another; only unconditional models convert"
        )


def config_of(**values: Any) -> UNetConfig:
    """The config, or an error that says which value fpjax cannot take."""
    try:
        return UNetConfig(**values)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise ConversionError(f"no U-Net that fpjax has: {error}") from error


def averages(
    names: Iterable[str], unet_names: Iterable[str], around: str = ""
) -> dict[str, str] | None:
    """A U-Net's own names to those under which the file keeps its averages, without dots.

    The averaging code drops the dots of the names it keeps, with or without the name of the module
    around the U-Net: `model_ema.diffusion_modelout2bias`, `model_ema.out2bias`.

    Args:
      names: all names of the file.
      unet_names: the U-Net's own, where the file has its raw weights.
      around: prefix of what belongs to the U-Net's model.

    Returns:
      None where the file has none.

    Raises:
      ConversionError: for averages of some of the U-Net's tensors only.

    >>> averages(["model_ema.out2bias", "model_ema.decay"], ["out.2.bias"])
    {'out.2.bias': 'model_ema.out2bias'}
    """
    dotless = {name.replace(".", ""): name for name in unet_names}
    groups: dict[str, dict[str, str]] = {}
    for full in names:
        start, dot, last = full.rpartition(".")
        if not full.startswith(around) or "ema" not in start.lower():
            continue
        for module in ("diffusion_model", "model", "unet", ""):
            own = dotless.get(last.removeprefix(module)) if last.startswith(module) else None
            if own is not None:
                groups.setdefault(f"{start}{dot}{module}", {})[own] = full
    if not groups:
        return None
    best = max(groups.values(), key=len)
    if missing := [name for name in dotless.values() if name not in best]:
        raise ConversionError(
            f"averages of some of the U-Net's tensors only, and none of {shown_names(missing)}: "
            "pass --weights raw to convert the raw ones"
        )
    return best


def averages_alone(names: Iterable[str]) -> dict[str, str]:
    """The same where the file has no raw weights to compare with: dots are put back by rule.

    >>> averages_alone(["model_ema.diffusion_modelout2bias", "model_ema.decay"])
    {'out.2.bias': 'model_ema.diffusion_modelout2bias'}
    """
    start = "model_ema.diffusion_model"
    return {_dotted(name.removeprefix(start)): name for name in names if name.startswith(start)}


def _dotted(name: str) -> str:
    """A U-Net name as the averaging code keeps it, without dots, to what it was.

    Only the last digit of a group's number is an index within the group: 100in_layers0weight was
    10.0.in_layers.0.weight.
    """
    group = r"(?:(time_embed|middle_block|out)|(input_blocks|output_blocks)(\d+))(\d)"
    match = re.fullmatch(rf"\.?{group}(\D*?)(\d?)(weight|bias)", name)
    if match is None:
        shown = shown_name(name)
        raise ConversionError(f"model_ema.diffusion_model{shown} is no averaged U-Net weight")
    return ".".join(part for part in match.groups() if part)


def infer_schedule(config: UNetConfig, tensors: Mapping[str, Any]) -> DiffusionConfig:
    """The named schedule whose signal variances (`alphas_cumprod`) the checkpoint holds.

    Raises:
      ConversionError: if it holds none, or those of another schedule.

    >>> alphas = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    >>> infer_schedule(UNetConfig.ldm_ffhq256(), {"alphas_cumprod": alphas}).beta_schedule
    'linear'
    """
    if "alphas_cumprod" not in tensors:
        raise ConversionError("the checkpoint has no alphas_cumprod: its schedule is unknown")
    alphas = schedule_values(tensors["alphas_cumprod"], "alphas_cumprod")
    betas = 1 - alphas / np.append(1.0, alphas[:-1])
    if "betas" in tensors:
        betas = schedule_values(tensors["betas"], "betas")
    start, end = shortest(betas[0]), shortest(betas[-1])
    for name in ("sqrt_linear", "linear", "cosine"):
        linear_range = {} if name == "cosine" else {"linear_start": start, "linear_end": end}
        try:
            schedule = DiffusionConfig(config, len(alphas), name, **linear_range)
            expected = schedule.alphas_cumprod
        except ValueError:
            continue  # betas outside (0, 1) are of no linear schedule
        if np.allclose(expected, alphas, rtol=1e-4, atol=1e-7):
            return schedule
    raise ConversionError(
        f"alphas_cumprod, {len(alphas)} steps with betas from {start} to {end}, is no linear, "
        "square-root linear or cosine schedule"
    )


def schedule_values(tensor: Any, name: str) -> np.ndarray:
    """A tensor of one number for each training timestep, in float64."""
    shape = tuple(tensor.shape)
    if len(shape) != 1 or not 1 <= shape[0] <= MAX_TIMESTEPS:
        raise ConversionError(
            f"{name} has shape {shape}: expected one number for each of 1 to {MAX_TIMESTEPS:,} "
            "timesteps"
        )
    return real_numbers(tensor, name)


def shortest(value: Any) -> float:
    """The number that was meant by a float32: 0.0015, not 0.001500000013."""
    return float(str(np.float32(value)))


def rules(config: UNetConfig) -> list[Rule]:
    """The rename table of a U-Net: its blocks are numbered in one row, ours by level.

    >>> rules(UNetConfig.ldm_ffhq256())[0].target
    'conv_in/weight'
    """
    table = [
        *conv(r"input_blocks\.0\.0", "conv_in"),
        *linear(r"time_embed\.0", "time_embed/linear_1"),
        *linear(r"time_embed\.2", "time_embed/linear_2"),
        *_block(r"middle_block\.0", "mid/block_1"),
        *_attention(r"middle_block\.1", "mid/attn_1"),
        *_block(r"middle_block\.2", "mid/block_2"),
        *norm(r"out\.0", "norm_out"),
        *conv(r"out\.2", "conv_out"),
    ]
    levels = len(config.channels)
    down = itertools.count(1)
    up = itertools.count()
    for level in range(levels):
        for i in range(config.num_res_blocks):
            table += _stage(config, rf"input_blocks\.{next(down)}", f"down/{level}", i)
        if level + 1 < levels:
            table += conv(rf"input_blocks\.{next(down)}\.0\.op", f"down/{level}/downsample")
    for level in reversed(range(levels)):
        for i in range(config.num_res_blocks + 1):
            source = rf"output_blocks\.{next(up)}"
            table += _stage(config, source, f"up/{level}", i)
            if level > 0 and i == config.num_res_blocks:
                # The upsampling comes last in its group, after the attention if there is any.
                last = 1 + config.has_attention(level)
                table += conv(rf"{source}\.{last}\.conv", f"up/{level}/upsample")
    return table


def _stage(config: UNetConfig, source: str, target: str, index: int) -> list[Rule]:
    table = _block(rf"{source}\.0", f"{target}/block/{index}")
    level = int(target.rpartition("/")[2])
    if config.has_attention(level):
        table += _attention(rf"{source}\.1", f"{target}/attn/{index}")
    return table


def _block(source: str, target: str) -> list[Rule]:
    return [
        *norm(rf"{source}\.in_layers\.0", f"{target}/norm1"),
        *conv(rf"{source}\.in_layers\.2", f"{target}/conv1"),
        *linear(rf"{source}\.emb_layers\.1", f"{target}/time"),
        *norm(rf"{source}\.out_layers\.0", f"{target}/norm2"),
        *conv(rf"{source}\.out_layers\.3", f"{target}/conv2"),
        *conv1x1(rf"{source}\.skip_connection", f"{target}/shortcut"),
    ]


def _attention(source: str, target: str) -> list[Rule]:
    return [
        *norm(rf"{source}\.(?:norm|group_norm)", f"{target}/norm"),
        *(
            Rule(
                rf"{source}\.qkv\.{part}",
                tuple(f"{target}/{name}/{part}" for name in "qkv"),
                f"split_qkv_{part}",
            )
            for part in ("weight", "bias")
        ),
        *(rule for name in "qkv" for rule in conv1x1(rf"{source}\.to_{name}", f"{target}/{name}")),
        *conv1x1(rf"{source}\.(?:proj_out|to_out\.0)", f"{target}/proj_out"),
    ]


def qkv_transforms(config: UNetConfig, new_attention_order: bool) -> dict[str, Transform]:
    """Rows (3C, ...) of a fused projection to those of q, of k and of v, (C, ...) each."""

    def split(x: np.ndarray) -> list[np.ndarray]:
        channels = x.shape[0] // 3
        heads = 1 if new_attention_order else config.heads(channels)
        by_head = x.reshape(heads, 3, channels // heads, *x.shape[1:])
        return [by_head[:, i].reshape(channels, *x.shape[1:]) for i in range(3)]

    return {
        "split_qkv_weight": lambda x: [part.T for part in split(x.reshape(x.shape[:2]))],
        "split_qkv_bias": split,
    }
