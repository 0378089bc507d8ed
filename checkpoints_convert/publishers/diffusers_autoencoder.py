"""First stages of diffusers: `AutoencoderKL`, `VQModel` and `AutoencoderTiny`, by their configs.

Each takes a state dict and the model's `config.json` as a dict. Settings that fpjax has no
counterpart of are refused by name, so that nothing converts into another network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from fpjax.models.layers import MAX_DEPTH, MAX_SIZE

from checkpoints_convert.documents import choice, integer, integers, number, texts, unexpected
from checkpoints_convert.printable import name as shown_name
from checkpoints_convert.publishers import compvis_first_stage
from checkpoints_convert.publishers.taesd import layer_rules
from checkpoints_convert.table import (
    Conversion,
    ConversionError,
    Rule,
    conv,
    conv1x1,
    convert,
    linear,
    norm,
)
from fpjax.models import autoencoder, autoencoder_tiny
from fpjax.models.autoencoder_tiny import AutoencoderTinyConfig

# Setting -> the values that fpjax has; the first is diffusers' default, where it is left out.
_SETTINGS = {
    "act_fn": ("silu", "swish"),
    "mid_block_add_attention": (True,),
    "latents_mean": (None,),
    "latents_std": (None,),
    "norm_type": ("group",),
}
_TINY_SETTINGS = {
    "act_fn": ("relu",),
    "upsample_fn": ("nearest",),
    "upsampling_scaling_factor": (2,),
}


@dataclasses.dataclass(frozen=True)
class AutoencoderOptions:
    """What a config may say wrongly.

    Attributes:
        scale_factor: latents of the diffusion model over those of the first stage, over the
            config's `scaling_factor`.
    """

    scale_factor: float | None = None


@dataclasses.dataclass(frozen=True)
class TinyOptions:
    """What neither the tensors nor the config of an `AutoencoderTiny` say.

    Attributes:
        resolution: nominal side of an image in pixels; 256.
    """

    resolution: int | None = None


def convert_autoencoder(
    tensors: Mapping[str, Any],
    config: Mapping[str, Any],
    options: AutoencoderOptions | None = None,
) -> Conversion:
    """Maps an `AutoencoderKL` or a `VQModel` (told apart by the codebook).

    Args:
      tensors: name -> array.
      config: the model's `config.json`.
      options: `scale_factor` None takes the config's `scaling_factor`. A `VQModel` without one gets
        1, which the published latent diffusion models have, and not diffusers' default for it.

    Returns:
      The `Conversion`.

    Raises:
      ConversionError: for settings that fpjax lacks, or tensors that do not fit.

    >>> convert_autoencoder({}, {"mid_block_add_attention": False})
    Traceback (most recent call last):
    ...
    checkpoints_convert.table.ConversionError: mid_block_add_attention = False has no ...
    """
    check_settings(config, _SETTINGS)
    is_vq = "quantize.embedding.weight" in tensors
    scale_factor, notes = _scale(config, options or AutoencoderOptions(), is_vq)
    channels = integers(config, "block_out_channels", (64,), most=MAX_SIZE)
    down = attention(
        texts(config, "down_block_types", ("DownEncoderBlock2D",)),
        {"DownEncoderBlock2D": False, "AttnDownEncoderBlock2D": True},
    )
    up = attention(
        texts(config, "up_block_types", ("UpDecoderBlock2D",)),
        {"UpDecoderBlock2D": False, "AttnUpDecoderBlock2D": True},
    )
    check_mirrored(down, up, channels)
    resolution = side(config, "sample_size", 32)
    latent = integer(config, "latent_channels", 3 if is_vq else 4, most=MAX_SIZE)
    ours = compvis_first_stage.config_of(
        ch=channels[0],
        ch_mult=tuple(c / channels[0] for c in channels),
        num_res_blocks=integer(config, "layers_per_block", 1, most=MAX_DEPTH),
        attn_resolutions=tuple(resolution // 2**i for i, attends in enumerate(down) if attends),
        resolution=resolution,
        z_channels=latent,
        embed_dim=integer(config, "vq_embed_dim", latent, most=MAX_SIZE) if is_vq else latent,
        n_embed=tensors["quantize.embedding.weight"].shape[0] if is_vq else None,
        double_z=not is_vq,
        in_channels=integer(config, "in_channels", 3, most=MAX_SIZE),
        out_ch=integer(config, "out_channels", 3, most=MAX_SIZE),
        scale_factor=scale_factor,
        shift_factor=number(config, "shift_factor", 0.0),
        norm_groups=integer(config, "norm_num_groups", 32, most=MAX_SIZE),
    )
    for part, key in (("quant_conv", "use_quant_conv"), ("post_quant_conv", "use_post_quant_conv")):
        used = choice(config, key, (True, False)) if key in config else True
        if used != (f"{part}.weight" in tensors):
            raise ConversionError(
                f"{key} is {str(used).lower()} and the file has "
                f"{'a' if f'{part}.weight' in tensors else 'no'} tensor {part}.weight"
            )
    tensors, more = compvis_first_stage.with_quant_convs(tensors, ours)
    plan = convert(tensors, rules(len(channels)), [], autoencoder.param_shapes(ours))
    return Conversion("autoencoder", ours, plan, (*notes, *more))


def _scale(
    config: Mapping[str, Any], options: AutoencoderOptions, is_vq: bool
) -> tuple[float, list[str]]:
    stated = number(config, "scaling_factor")
    if options.scale_factor is not None:
        return options.scale_factor, []
    if stated is None:
        if not is_vq:
            return 0.18215, ["scale_factor 0.18215, diffusers' default, is assumed"]
        return 1.0, ["scale_factor 1 is assumed: the config has no scaling_factor"]
    if is_vq and stated == 0.18215:
        return stated, [
            "scale_factor 0.18215 is diffusers' default, written to configs of models that were "
            "trained with 1: pass --scale-factor 1 if images come out wrong"
        ]
    return stated, []


def convert_autoencoder_tiny(
    tensors: Mapping[str, Any], config: Mapping[str, Any], options: TinyOptions | None = None
) -> Conversion:
    """Maps an `AutoencoderTiny`.

    Args:
      tensors: name -> array.
      config: the model's `config.json`.
      options: the nominal resolution.

    Returns:
      The `Conversion`.

    Raises:
      ConversionError: for settings that fpjax lacks, or tensors that do not fit.

    >>> convert_autoencoder_tiny({}, {"act_fn": "silu"})
    Traceback (most recent call last):
    ...
    checkpoints_convert.table.ConversionError: act_fn = 'silu' has no counterpart ...
    """
    check_settings(config, _TINY_SETTINGS)
    resolution = (options or TinyOptions()).resolution
    default = (64, 64, 64, 64)
    channels = {
        *integers(config, "encoder_block_out_channels", default, most=MAX_SIZE),
        *integers(config, "decoder_block_out_channels", default, most=MAX_SIZE),
    }
    if len(channels) > 1:
        raise ConversionError(f"stages of {sorted(channels)} channels: fpjax has one width for all")
    blocks = {
        half: integers(config, f"num_{half}_blocks", default_blocks, least=0, most=MAX_DEPTH)
        for half, default_blocks in (("encoder", (1, 3, 3, 3)), ("decoder", (3, 3, 3, 1)))
    }
    try:
        ours = AutoencoderTinyConfig(
            latent_channels=integer(config, "latent_channels", 4, most=MAX_SIZE),
            channels=channels.pop(),
            encoder_blocks=blocks["encoder"],
            decoder_blocks=blocks["decoder"],
            in_channels=integer(config, "in_channels", 3, most=MAX_SIZE),
            out_channels=integer(config, "out_channels", 3, most=MAX_SIZE),
            resolution=resolution or 256,
            scale_factor=number(config, "scaling_factor", 1.0),
            shift_factor=number(config, "shift_factor", 0.0),
        )
    except ValueError as error:
        if isinstance(error, ConversionError):
            raise
        raise ConversionError(f"no tiny autoencoder that fpjax has: {error}") from error
    table = layer_rules(ours, r"encoder\.layers\.", r"decoder\.layers\.", 0)
    plan = convert(tensors, table, [], autoencoder_tiny.param_shapes(ours))
    notes = () if resolution else ("resolution 256 is nominal: nothing in the folder tells it",)
    return Conversion("autoencoder_tiny", ours, plan, notes)


def rules(levels: int) -> list[Rule]:
    """The rename table of a first stage with so many levels.

    >>> rules(3)[-1].target
    'codebook'
    """
    table = [
        *conv(r"(encoder|decoder)\.conv_(in|out)", r"\1/conv_\2"),
        *norm(r"(encoder|decoder)\.conv_norm_out", r"\1/norm_out"),
        *mid_rules(r"(encoder|decoder)\.mid_block", r"\1/mid"),
    ]
    for level in range(levels):
        # diffusers counts the decoder's levels from the latent, fpjax from the image.
        up = rf"decoder\.up_blocks\.{levels - 1 - level}"
        table += level_rules(rf"encoder\.down_blocks\.{level}", f"encoder/down/{level}")
        table += level_rules(up, f"decoder/up/{level}")
    return [
        *table,
        *conv1x1(r"(quant_conv|post_quant_conv)", r"\1"),
        Rule(r"quantize\.embedding\.weight", "codebook"),
    ]


def level_rules(source: str, target: str) -> list[Rule]:
    """Rules of one level: residual blocks, attention, and the change of the side."""
    return [
        *_res_block_rules(rf"{source}\.resnets\.(\d+)", rf"{target}/block/\1"),
        *_attention_rules(rf"{source}\.attentions\.(\d+)", rf"{target}/attn/\1"),
        *conv(rf"{source}\.downsamplers\.0\.conv", f"{target}/downsample"),
        *conv(rf"{source}\.upsamplers\.0\.conv", f"{target}/upsample"),
    ]


def mid_rules(source: str, target: str) -> list[Rule]:
    """Rules of the middle: two residual blocks with attention between them."""
    return [
        *_res_block_rules(rf"{source}\.resnets\.0", f"{target}/block_1"),
        *_attention_rules(rf"{source}\.attentions\.0", f"{target}/attn_1"),
        *_res_block_rules(rf"{source}\.resnets\.1", f"{target}/block_2"),
    ]


def _res_block_rules(source: str, target: str) -> list[Rule]:
    table = linear(rf"{source}\.time_emb_proj", f"{target}/time")
    table += conv1x1(rf"{source}\.conv_shortcut", f"{target}/shortcut")
    for i in (1, 2):
        table += norm(rf"{source}\.norm{i}", f"{target}/norm{i}")
        table += conv(rf"{source}\.conv{i}", f"{target}/conv{i}")
    return table


def _attention_rules(source: str, target: str) -> list[Rule]:
    # The second name of each is that of files from before diffusers 0.15.
    names = {
        r"to_q|query": "q",
        r"to_k|key": "k",
        r"to_v|value": "v",
        r"to_out\.0|proj_attn": "proj_out",
    }
    table = norm(rf"{source}\.group_norm", f"{target}/norm")
    for name, ours in names.items():
        table += conv1x1(rf"{source}\.(?:{name})", f"{target}/{ours}")
    return table


def check_settings(config: Mapping[str, Any], settings: Mapping[str, tuple]) -> None:
    """Refuses the first setting whose value fpjax does not have."""
    for name, allowed in settings.items():
        choice(config, name, allowed)


def attention(blocks: Sequence[str], known: Mapping[str, bool]) -> list[bool]:
    """Whether each level attends, told by the names of its blocks."""
    if unknown := [block for block in blocks if block not in known]:
        raise ConversionError(f"block type {shown_name(unknown[0])}: fpjax has {', '.join(known)}")
    return [known[block] for block in blocks]


def check_mirrored(down: list[bool], up: list[bool], channels: Sequence[int]) -> None:
    """Refuses a network whose way up is not the mirror of its way down."""
    if not len(down) == len(up) == len(channels):
        raise ConversionError(
            f"{len(down)} blocks down, {len(up)} up and {len(channels)} channel counts: "
            "expected as many of each"
        )
    if down != up[::-1]:
        raise ConversionError("attention on other levels going up than going down: fpjax has both")


def side(config: Mapping[str, Any], name: str, default: int) -> int:
    """A side in pixels, which may be given once or for height and width."""
    value = config.get(name)
    if type(value) not in (list, tuple):
        return integer(config, name, default, most=MAX_SIZE)
    sides = integers(config, name, (default,), most=MAX_SIZE)
    if len(set(sides)) != 1:
        raise unexpected(name, value, "equal sides, as fpjax has square images")
    return sides[0]
