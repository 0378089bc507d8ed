"""U-Nets of diffusers, `UNet2DModel`, with the noise schedule that a scheduler's config states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fpjax.models.layers import MAX_DEPTH, MAX_SIZE

from checkpoints_convert.describe import describe
from checkpoints_convert.documents import choice, flag, integer, integers, number, texts, unexpected
from checkpoints_convert.publishers import compvis_unet
from checkpoints_convert.publishers.diffusers_autoencoder import (
    attention,
    check_mirrored,
    check_settings,
    level_rules,
    mid_rules,
    side,
)
from checkpoints_convert.table import Conversion, ConversionError, Rule, conv, convert, linear, norm
from fpjax.models import unet
from fpjax.models.diffusion import MAX_TIMESTEPS, BetaSchedule, DiffusionConfig
from fpjax.models.unet import UNetConfig

_BETA_SCHEDULES: dict[str, BetaSchedule] = {
    "linear": "linear",
    "scaled_linear": "sqrt_linear",
    "squaredcos_cap_v2": "cosine",
}

# Setting -> the values that fpjax has; the first is diffusers' default, where it is left out.
_SETTINGS = {
    "act_fn": ("silu", "swish"),
    "add_attention": (True,),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "downsample_padding": (1, 0),
    "downsample_type": ("conv",),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2D",),
    "num_class_embeds": (None,),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "time_embedding_type": ("positional",),
    "upsample_type": ("conv",),
}

SCHEDULERS = (
    "DDPMScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDIMParallelScheduler",
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
)
"""Samplers of models that were trained on DDPM's noise levels, a beta for each timestep."""

_SCHEDULER_SETTINGS = {
    "beta_schedule": tuple(_BETA_SCHEDULES),
    "prediction_type": ("epsilon",),
    "rescale_betas_zero_snr": (False,),
    "trained_betas": (None,),
    "use_flow_sigmas": (False,),
    "timestep_type": ("discrete",),
}


def convert_unet(
    tensors: Mapping[str, Any],
    config: Mapping[str, Any],
    scheduler: Mapping[str, Any] | None = None,
) -> Conversion:
    """Maps a `UNet2DModel` and its scheduler's config.

    Args:
      tensors: name -> array.
      config: the model's `config.json`.
      scheduler: `scheduler_config.json`, of a scheduler over DDPM's noise levels; without one
        diffusers' default schedule is assumed, and a note says so.

    Returns:
      The `Conversion`: architecture "diffusion" and a `DiffusionConfig`. The parameters are the
      U-Net's.

    Raises:
      ConversionError: for settings or a scheduler that fpjax lacks, or tensors that do not fit.

    >>> convert_unet({}, {"num_class_embeds": 10})
    Traceback (most recent call last):
    ...
    checkpoints_convert.table.ConversionError: num_class_embeds = 10 has no ...
    """
    ours = infer_config(config)
    compvis_unet.check_channels(ours.in_channels, ours.out_channels)
    notes = ()
    if scheduler is None:
        notes = (
            "the noise schedule is assumed, as no scheduler_config.json is there: diffusers' "
            "default, 1000 steps, betas 0.0001 to 0.02",
        )
        scheduler = {"_class_name": SCHEDULERS[0]}
    schedule = read_schedule(ours, scheduler)
    plan = convert(tensors, rules(len(ours.channels)), [], unet.param_shapes(ours))
    return Conversion("diffusion", schedule, plan, notes)


def infer_config(config: Mapping[str, Any]) -> UNetConfig:
    """The architecture that a `config.json` states.

    Raises:
      ConversionError: for a setting that fpjax has no counterpart of, or of another type.

    >>> infer_config({"block_out_channels": [32, 64, 64, 64]}).channels
    (32, 64, 64, 64)
    """
    check_settings(config, _SETTINGS)
    channels = integers(config, "block_out_channels", (224, 448, 672, 896), most=MAX_SIZE)
    down = attention(
        texts(config, "down_block_types", ("DownBlock2D", *("AttnDownBlock2D",) * 3)),
        {"DownBlock2D": False, "AttnDownBlock2D": True},
    )
    up = attention(
        texts(config, "up_block_types", (*("AttnUpBlock2D",) * 3, "UpBlock2D")),
        {"UpBlock2D": False, "AttnUpBlock2D": True},
    )
    check_mirrored(down, up, channels)
    groups = integer(config, "norm_num_groups", 32, most=MAX_SIZE)
    for name, ours in (("attn_norm_num_groups", groups), ("time_embedding_dim", 4 * channels[0])):
        if name in config:
            choice(config, name, (None, ours))
    head = config.get("attention_head_dim", 8)
    scale_shift = config.get("resnet_time_scale_shift") == "scale_shift"
    return compvis_unet.config_of(
        image_size=side(config, "sample_size", 64),
        in_channels=integer(config, "in_channels", 3, most=MAX_SIZE),
        out_channels=integer(config, "out_channels", 3, most=MAX_SIZE),
        model_channels=channels[0],
        channel_mult=tuple(c / channels[0] for c in channels),
        num_res_blocks=integer(config, "layers_per_block", 2, most=MAX_DEPTH),
        attention_resolutions=tuple(2**i for i, attends in enumerate(down) if attends),
        num_head_channels=None if head is None else _head(head),
        use_scale_shift_norm=scale_shift,
        norm_groups=groups,
        norm_eps=number(config, "norm_eps", 1e-5),
        time_embedding_order="cos_sin" if flag(config, "flip_sin_to_cos", True) else "sin_cos",
        time_frequency_shift=number(config, "freq_shift", 0.0),
        asymmetric_downsample=config.get("downsample_padding", 1) == 0,
        mid_attention_norm=not scale_shift or config.get("attn_norm_num_groups") is not None,
    )


def _head(value: Any) -> int:
    return integer({"attention_head_dim": value}, "attention_head_dim", most=MAX_SIZE)


def read_schedule(config: UNetConfig, scheduler: Mapping[str, Any]) -> DiffusionConfig:
    """The schedule that a `scheduler_config.json` states, decided by the scheduler's class.

    Flow matching, EDM, score SDEs and consistency models have noise levels of other kinds, whatever
    their configs say of betas.

    Raises:
      ConversionError: for a scheduler that is not known to be over DDPM's noise levels.

    >>> read_schedule(UNetConfig(), {"_class_name": "FlowMatchEulerDiscreteScheduler"})
    Traceback (most recent call last):
    ...
    checkpoints_convert.table.ConversionError: the scheduler is 'FlowMatchEulerDiscreteSched...
    """
    name = scheduler.get("_class_name")
    if type(name) is not str or name not in SCHEDULERS:
        raise ConversionError(
            f"the scheduler is {describe(name, 60)}: fpjax has denoisers of DDPM's noise levels, "
            f"whose schedulers are {', '.join(SCHEDULERS)}"
        )
    if scheduler.get("trained_betas") is not None:
        raise ConversionError(
            "trained_betas: a list of betas of its own; fpjax has linear, square-root linear and "
            "cosine schedules"
        )
    check_settings(scheduler, _SCHEDULER_SETTINGS)
    schedule = _BETA_SCHEDULES[choice(scheduler, "beta_schedule", tuple(_BETA_SCHEDULES))]
    steps = integer(scheduler, "num_train_timesteps", 1000, most=MAX_TIMESTEPS)
    betas = {}
    if schedule != "cosine":
        start, end = number(scheduler, "beta_start", 0.0001), number(scheduler, "beta_end", 0.02)
        if not 0 < start <= end < 1:
            raise unexpected("beta_start, beta_end", (start, end), "0 < start <= end < 1")
        betas = {"linear_start": start, "linear_end": end}
    try:
        return DiffusionConfig(config, steps, schedule, **betas)
    except ValueError as error:
        raise ConversionError(f"no denoiser that fpjax has: {error}") from error


def rules(levels: int) -> list[Rule]:
    """The rename table of a U-Net with so many levels.

    >>> rules(4)[2].target
    'norm_out/weight'
    """
    table = [
        *conv(r"conv_(in|out)", r"conv_\1"),
        *norm("conv_norm_out", "norm_out"),
        *linear(r"time_embedding\.linear_([12])", r"time_embed/linear_\1"),
        *mid_rules("mid_block", "mid"),
    ]
    for level in range(levels):
        table += level_rules(rf"down_blocks\.{level}", f"down/{level}")
        table += level_rules(rf"up_blocks\.{levels - 1 - level}", f"up/{level}")
    return table
