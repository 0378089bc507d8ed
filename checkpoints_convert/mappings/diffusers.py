"""diffusers models to fpjax: `AutoencoderKL`, `VQModel`, `AutoencoderTiny` and `UNet2DModel`.

Each takes a state dict and the model's `config.json` as a dict. Settings that fpjax has no
counterpart of are refused by name, so that nothing converts into another network.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from checkpoints_convert.mappings.table import (
    Conversion,
    ConversionError,
    Rule,
    conv,
    conv1x1,
    convert,
    linear,
    norm,
)
from checkpoints_convert.mappings.taesd import layer_rules
from fpjax.models import autoencoder, autoencoder_tiny, unet
from fpjax.models.autoencoder import AutoencoderConfig
from fpjax.models.autoencoder_tiny import AutoencoderTinyConfig
from fpjax.models.diffusion import BetaSchedule, DiffusionConfig
from fpjax.models.unet import UNetConfig

_BETA_SCHEDULES: dict[str, BetaSchedule] = {
    "scaled_linear": "sqrt_linear",
    "linear": "linear",
    "squaredcos_cap_v2": "cosine",
}

# Setting -> the values that fpjax has; the first is diffusers' default, where it is left out.
_AUTOENCODER_SETTINGS = {
    "act_fn": ("silu", "swish"),
    "mid_block_add_attention": (True,),
    "use_quant_conv": (True,),
    "use_post_quant_conv": (True,),
    "latents_mean": (None,),
    "latents_std": (None,),
    "norm_type": ("group",),
}
_TINY_SETTINGS = {
    "act_fn": ("relu",),
    "upsample_fn": ("nearest",),
    "upsampling_scaling_factor": (2,),
}
_UNET_SETTINGS = {
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
_SCHEDULER_SETTINGS = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "prediction_type": ("epsilon",),
    "rescale_betas_zero_snr": (False,),
    "trained_betas": (None,),
}


def convert_model(tensors: Mapping[str, Any], config: Mapping[str, Any]) -> Conversion:
    """Maps any of the four models, told apart by the config's `_class_name`.

    Raises:
      ConversionError: for another class, or as the function for that class does.

    >>> convert_model({}, {"_class_name": "UNet2DConditionModel"})
    Traceback (most recent call last):
    ...
    checkpoints_convert.mappings.table.ConversionError: no mapping for UNet2DConditionModel; ...
    """
    converters = {
        "AutoencoderKL": convert_autoencoder,
        "VQModel": convert_autoencoder,
        "AutoencoderTiny": convert_autoencoder_tiny,
        "UNet2DModel": convert_unet,
    }
    name = config.get("_class_name")
    if name not in converters:
        raise ConversionError(f"no mapping for {name}; there are {', '.join(converters)}")
    return converters[name](tensors, config)


def convert_autoencoder(
    tensors: Mapping[str, Any], config: Mapping[str, Any], *, scale_factor: float | None = None
) -> Conversion:
    """Maps an `AutoencoderKL` or a `VQModel` (told apart by the codebook).

    Args:
      tensors: name -> array.
      config: the model's `config.json`.
      scale_factor: latents of the diffusion model over those of the first stage; None takes the
        config's `scaling_factor`. A `VQModel` without one gets 1, which the published latent
        diffusion models have, and not diffusers' default for it.

    Returns:
      The `Conversion`.

    Raises:
      ConversionError: for settings that fpjax lacks, or tensors that do not fit.

    >>> convert_autoencoder({}, {"use_quant_conv": False})
    Traceback (most recent call last):
    ...
    checkpoints_convert.mappings.table.ConversionError: use_quant_conv = False has no ...
    """
    _check(config, _AUTOENCODER_SETTINGS)
    is_vq = "quantize.embedding.weight" in tensors
    notes = []
    stated = config.get("scaling_factor")
    if scale_factor is None:
        scale_factor = (1.0 if is_vq else 0.18215) if stated is None else float(stated)
        if is_vq and stated is None:
            notes.append("scale_factor 1 is assumed: the config has no scaling_factor")
        elif is_vq and stated == 0.18215:
            notes.append(
                "scale_factor 0.18215 is diffusers' default, written to configs of models that "
                "were trained with 1: pass scale_factor=1 if images come out wrong"
            )
    channels = config.get("block_out_channels", (64,))
    down = _attention(
        config.get("down_block_types", ("DownEncoderBlock2D",)),
        {"DownEncoderBlock2D": False, "AttnDownEncoderBlock2D": True},
    )
    up = _attention(
        config.get("up_block_types", ("UpDecoderBlock2D",)),
        {"UpDecoderBlock2D": False, "AttnUpDecoderBlock2D": True},
    )
    _check_mirrored(down, up, channels)
    resolution = _side(config.get("sample_size", 32))
    latent = config.get("latent_channels", 3 if is_vq else 4)
    ours = AutoencoderConfig(
        ch=channels[0],
        ch_mult=tuple(c / channels[0] for c in channels),
        num_res_blocks=config.get("layers_per_block", 1),
        attn_resolutions=tuple(resolution // 2**i for i, attends in enumerate(down) if attends),
        resolution=resolution,
        z_channels=latent,
        embed_dim=config.get("vq_embed_dim") or latent,
        n_embed=tensors["quantize.embedding.weight"].shape[0] if is_vq else None,
        double_z=not is_vq,
        in_channels=config.get("in_channels", 3),
        out_ch=config.get("out_channels", 3),
        scale_factor=scale_factor,
        shift_factor=config.get("shift_factor") or 0.0,
        norm_groups=config.get("norm_num_groups", 32),
    )
    rules = autoencoder_rules(len(channels))
    plan = convert(tensors, rules, [], autoencoder.param_shapes(ours))
    return Conversion("autoencoder", ours, plan, tuple(notes))


def convert_autoencoder_tiny(tensors: Mapping[str, Any], config: Mapping[str, Any]) -> Conversion:
    """Maps an `AutoencoderTiny`.

    Args:
      tensors: name -> array.
      config: the model's `config.json`.

    Returns:
      The `Conversion`.

    Raises:
      ConversionError: for settings that fpjax lacks, or tensors that do not fit.

    >>> convert_autoencoder_tiny({}, {"act_fn": "silu"})
    Traceback (most recent call last):
    ...
    checkpoints_convert.mappings.table.ConversionError: act_fn = 'silu' has no counterpart ...
    """
    _check(config, _TINY_SETTINGS)
    default = (64, 64, 64, 64)
    channels = {
        *config.get("encoder_block_out_channels", default),
        *config.get("decoder_block_out_channels", default),
    }
    if len(channels) > 1:
        raise ConversionError(f"stages of {sorted(channels)} channels: fpjax has one width for all")
    ours = AutoencoderTinyConfig(
        latent_channels=config.get("latent_channels", 4),
        channels=channels.pop(),
        encoder_blocks=tuple(config.get("num_encoder_blocks", (1, 3, 3, 3))),
        decoder_blocks=tuple(config.get("num_decoder_blocks", (3, 3, 3, 1))),
        in_channels=config.get("in_channels", 3),
        out_channels=config.get("out_channels", 3),
        scale_factor=config.get("scaling_factor", 1.0),
        shift_factor=config.get("shift_factor", 0.0),
    )
    rules = layer_rules(ours, r"encoder\.layers\.", r"decoder\.layers\.", 0)
    plan = convert(tensors, rules, [], autoencoder_tiny.param_shapes(ours))
    return Conversion("autoencoder_tiny", ours, plan)


def convert_unet(
    tensors: Mapping[str, Any],
    config: Mapping[str, Any],
    scheduler: Mapping[str, Any] | None = None,
) -> Conversion:
    """Maps a `UNet2DModel` and, where it is given, its scheduler's config.

    Args:
      tensors: name -> array.
      config: the model's `config.json`.
      scheduler: `scheduler_config.json` beside it, of any scheduler over DDPM's noise levels.

    Returns:
      The `Conversion`: architecture "diffusion" and a `DiffusionConfig` with a scheduler, "unet"
      and a `UNetConfig` without. The parameters are the U-Net's.

    Raises:
      ConversionError: for settings that fpjax lacks, or tensors that do not fit.

    >>> convert_unet({}, {"num_class_embeds": 10})
    Traceback (most recent call last):
    ...
    checkpoints_convert.mappings.table.ConversionError: num_class_embeds = 10 has no ...
    """
    _check(config, _UNET_SETTINGS)
    channels = config.get("block_out_channels", (224, 448, 672, 896))
    down = _attention(
        config.get("down_block_types", ("DownBlock2D", *("AttnDownBlock2D",) * 3)),
        {"DownBlock2D": False, "AttnDownBlock2D": True},
    )
    up = _attention(
        config.get("up_block_types", (*("AttnUpBlock2D",) * 3, "UpBlock2D")),
        {"UpBlock2D": False, "AttnUpBlock2D": True},
    )
    _check_mirrored(down, up, channels)
    groups = config.get("norm_num_groups", 32)
    if config.get("attn_norm_num_groups") not in (None, groups):
        raise ConversionError(
            f"attn_norm_num_groups = {config['attn_norm_num_groups']} has no counterpart in "
            f"fpjax, which has norm_num_groups = {groups} everywhere"
        )
    if config.get("time_embedding_dim") not in (None, 4 * channels[0]):
        raise ConversionError(
            f"time_embedding_dim = {config['time_embedding_dim']} has no counterpart in fpjax, "
            f"which has 4 x {channels[0]}"
        )
    ours = UNetConfig(
        image_size=_side(config.get("sample_size") or 64),
        in_channels=config.get("in_channels", 3),
        out_channels=config.get("out_channels", 3),
        model_channels=channels[0],
        channel_mult=tuple(c / channels[0] for c in channels),
        num_res_blocks=config.get("layers_per_block", 2),
        attention_resolutions=tuple(2**i for i, attends in enumerate(down) if attends),
        num_head_channels=config.get("attention_head_dim", 8),
        use_scale_shift_norm=config.get("resnet_time_scale_shift") == "scale_shift",
        norm_groups=groups,
        norm_eps=config.get("norm_eps", 1e-5),
        time_embedding_order="cos_sin" if config.get("flip_sin_to_cos", True) else "sin_cos",
        time_frequency_shift=config.get("freq_shift", 0),
        asymmetric_downsample=config.get("downsample_padding", 1) == 0,
    )
    plan = convert(tensors, unet_rules(len(channels)), [], unet.param_shapes(ours))
    if scheduler is None:
        return Conversion("unet", ours, plan)
    return Conversion("diffusion", _diffusion_config(ours, scheduler), plan)


def autoencoder_rules(levels: int) -> list[Rule]:
    """The rename table of a first stage with so many levels.

    >>> autoencoder_rules(3)[-1].target
    'codebook'
    """
    rules = [
        *conv(r"(encoder|decoder)\.conv_(in|out)", r"\1/conv_\2"),
        *norm(r"(encoder|decoder)\.conv_norm_out", r"\1/norm_out"),
        *_mid_rules(r"(encoder|decoder)\.mid_block", r"\1/mid"),
    ]
    for level in range(levels):
        # diffusers counts the decoder's levels from the latent, fpjax from the image.
        up = rf"decoder\.up_blocks\.{levels - 1 - level}"
        rules += _level_rules(rf"encoder\.down_blocks\.{level}", f"encoder/down/{level}")
        rules += _level_rules(up, f"decoder/up/{level}")
    return [
        *rules,
        *conv1x1(r"(quant_conv|post_quant_conv)", r"\1"),
        Rule(r"quantize\.embedding\.weight", "codebook"),
    ]


def unet_rules(levels: int) -> list[Rule]:
    """The rename table of a U-Net with so many levels.

    >>> unet_rules(4)[2].target
    'norm_out/weight'
    """
    rules = [
        *conv(r"conv_(in|out)", r"conv_\1"),
        *norm("conv_norm_out", "norm_out"),
        *linear(r"time_embedding\.linear_([12])", r"time_embed/linear_\1"),
        *_mid_rules("mid_block", "mid"),
    ]
    for level in range(levels):
        rules += _level_rules(rf"down_blocks\.{level}", f"down/{level}")
        rules += _level_rules(rf"up_blocks\.{levels - 1 - level}", f"up/{level}")
    return rules


def _level_rules(source: str, target: str) -> list[Rule]:
    return [
        *_res_block_rules(rf"{source}\.resnets\.(\d+)", rf"{target}/block/\1"),
        *_attention_rules(rf"{source}\.attentions\.(\d+)", rf"{target}/attn/\1"),
        *conv(rf"{source}\.downsamplers\.0\.conv", f"{target}/downsample"),
        *conv(rf"{source}\.upsamplers\.0\.conv", f"{target}/upsample"),
    ]


def _mid_rules(source: str, target: str) -> list[Rule]:
    return [
        *_res_block_rules(rf"{source}\.resnets\.0", f"{target}/block_1"),
        *_attention_rules(rf"{source}\.attentions\.0", f"{target}/attn_1"),
        *_res_block_rules(rf"{source}\.resnets\.1", f"{target}/block_2"),
    ]


def _res_block_rules(source: str, target: str) -> list[Rule]:
    rules = linear(rf"{source}\.time_emb_proj", f"{target}/time")
    rules += conv1x1(rf"{source}\.conv_shortcut", f"{target}/shortcut")
    for i in (1, 2):
        rules += norm(rf"{source}\.norm{i}", f"{target}/norm{i}")
        rules += conv(rf"{source}\.conv{i}", f"{target}/conv{i}")
    return rules


def _attention_rules(source: str, target: str) -> list[Rule]:
    # The second name of each is that of files from before diffusers 0.15.
    names = {
        r"to_q|query": "q",
        r"to_k|key": "k",
        r"to_v|value": "v",
        r"to_out\.0|proj_attn": "proj_out",
    }
    rules = norm(rf"{source}\.group_norm", f"{target}/norm")
    for name, ours in names.items():
        rules += conv1x1(rf"{source}\.(?:{name})", f"{target}/{ours}")
    return rules


def _diffusion_config(config: UNetConfig, scheduler: Mapping[str, Any]) -> DiffusionConfig:
    _check(scheduler, _SCHEDULER_SETTINGS)
    schedule = _BETA_SCHEDULES[scheduler.get("beta_schedule", "linear")]
    betas = {}
    if schedule != "cosine":
        betas["linear_start"] = scheduler.get("beta_start", 0.0001)
        betas["linear_end"] = scheduler.get("beta_end", 0.02)
    return DiffusionConfig(config, scheduler.get("num_train_timesteps", 1000), schedule, **betas)


def _check(config: Mapping[str, Any], settings: Mapping[str, tuple]) -> None:
    for name, allowed in settings.items():
        value = config.get(name, allowed[0])
        if value not in allowed:
            choices = " or ".join(repr(choice) for choice in allowed)
            raise ConversionError(
                f"{name} = {value!r} has no counterpart in fpjax, which has {choices}"
            )


def _attention(blocks: Sequence[str], known: Mapping[str, bool]) -> list[bool]:
    if unknown := [block for block in blocks if block not in known]:
        raise ConversionError(f"block type {unknown[0]}: fpjax has {', '.join(known)}")
    return [known[block] for block in blocks]


def _check_mirrored(down: list[bool], up: list[bool], channels: Sequence[int]) -> None:
    if not len(down) == len(up) == len(channels):
        raise ConversionError(
            f"{len(down)} blocks down, {len(up)} up and {len(channels)} channel counts: "
            "expected as many of each"
        )
    if down != up[::-1]:
        raise ConversionError("attention on other levels going up than going down: fpjax has both")


def _side(sample_size: int | Sequence[int]) -> int:
    sides = {sample_size} if isinstance(sample_size, int) else set(sample_size)
    if len(sides) != 1:
        raise ConversionError(f"sample_size = {sample_size}: fpjax has square images")
    return sides.pop()
