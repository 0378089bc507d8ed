"""First stages of CompVis latent diffusion, KL and VQ, and of FLUX and SD3 in the same names.

Names are those of the published code's `AutoencoderKL` and `VQModel` (Rombach et al., CVPR 2022).
Files whose attention was renamed by diffusers (`to_q`, `to_out.0`) and files without the 1x1
convolutions around the latent (FLUX, SD3) have the same layers.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from fpjax.models.layers import MAX_LEVELS

from checkpoints_convert.table import (
    Conversion,
    ConversionError,
    Ignorable,
    Rule,
    conv,
    conv1x1,
    convert,
    norm,
)
from fpjax.models import autoencoder
from fpjax.models.autoencoder import AutoencoderConfig

_BLOCK = r"((?:encoder\.down|decoder\.up)\.\d+\.block\.\d+|(?:encoder|decoder)\.mid\.block_\d)"
_ATTN = r"((?:encoder\.down|decoder\.up)\.\d+\.attn\.\d+|(?:encoder|decoder)\.mid\.attn_1)"

RULES: list[Rule] = [
    *conv(r"(encoder|decoder)\.conv_(in|out)", r"\1/conv_\2"),
    *norm(r"(encoder|decoder)\.norm_out", r"\1/norm_out"),
    *norm(_BLOCK + r"\.norm([12])", r"\1/norm\2"),
    *conv(_BLOCK + r"\.conv([12])", r"\1/conv\2"),
    *conv1x1(_BLOCK + r"\.nin_shortcut", r"\1/shortcut"),
    *norm(_ATTN + r"\.(?:norm|group_norm)", r"\1/norm"),
    *conv1x1(_ATTN + r"\.(?:to_)?(q|k|v)", r"\1/\2"),
    *conv1x1(_ATTN + r"\.(?:proj_out|to_out\.0)", r"\1/proj_out"),
    *conv(r"encoder\.down\.(\d+)\.downsample\.conv", r"encoder/down/\1/downsample"),
    *conv(r"decoder\.up\.(\d+)\.upsample\.conv", r"decoder/up/\1/upsample"),
    *conv1x1(r"(post_quant_conv|quant_conv)", r"\1"),
    Rule(r"quantize\.embedding\.weight", "codebook"),
]

IGNORABLE: list[Ignorable] = [
    Ignorable(r"loss\..*", "the training loss: its discriminator and perceptual network"),
    Ignorable(r"model_ema\..*", "an average of the first stage; the LDM reads the raw weights"),
    Ignorable(r"colorize", "a random projection for plots"),
    Ignorable(r"quantize\.used", "the codes that a remapped codebook keeps; all are kept here"),
]


@dataclasses.dataclass(frozen=True)
class FirstStageOptions:
    """What no tensor of a first stage shows; None takes the published value, and a note says so.

    Attributes:
        resolution: nominal side of an image in pixels; 256.
        scale_factor: latents of the diffusion model over those of the first stage; 1.
        shift_factor: what is taken off the latents before that; 0.
    """

    resolution: int | None = None
    scale_factor: float | None = None
    shift_factor: float | None = None


def convert_autoencoder(
    tensors: Mapping[str, Any], options: FirstStageOptions | None = None
) -> Conversion:
    """Maps a first-stage state dict (`encoder.*`, `decoder.*`, `quant_conv.*`, ...), KL or VQ.

    Args:
      tensors: name -> array; prefixes such as `first_stage_model.` already removed.
      options: what no tensor shows.

    Returns:
      The `Conversion`; its config has no encoder where the file has none.

    Raises:
      ConversionError: if the tensors are not those of such a model.

    >>> convert_autoencoder({})
    Traceback (most recent call last):
    ...
    checkpoints_convert.table.ConversionError: not a CompVis first stage: ...
    """
    options = options or FirstStageOptions()
    config = infer_config(tensors, options)
    tensors, notes = with_quant_convs(tensors, config)
    if options.resolution is None:
        notes.append(f"resolution {config.resolution} is nominal: no tensor tells it")
    if options.scale_factor is None and options.shift_factor is None:
        notes.append("scale factor 1 and shift 0 of the latents are assumed: no tensor tells them")
    if not config.has_encoder:
        notes.append("the file has no encoder: this model decodes only")
    if any(name.startswith("model_ema.") for name in tensors):
        notes.append("the raw weights are used, as by latent diffusion, and not the averages")
    plan = convert(tensors, RULES, IGNORABLE, autoencoder.param_shapes(config))
    return Conversion("autoencoder", config, plan, tuple(notes))


def with_quant_convs(
    tensors: Mapping[str, Any], config: AutoencoderConfig, prefix: str = ""
) -> tuple[dict[str, Any], list[str]]:
    """The tensors, with identities for the 1x1 convolutions that FLUX and SD3 leave out, and notes.

    Multiplying by an identity matrix is exact in floating point, so the numbers are the same.
    """
    tensors = dict(tensors)
    width = config.z_channels * (2 if config.double_z else 1)
    wanted = {"post_quant_conv": config.z_channels}
    wanted |= {"quant_conv": width} if config.has_encoder else {}
    added = [name for name in wanted if f"{prefix}{name}.weight" not in tensors]
    for name in added:
        tensors[f"{prefix}{name}.weight"] = np.eye(wanted[name], dtype=np.float32)
        tensors[f"{prefix}{name}.bias"] = np.zeros(wanted[name], np.float32)
    listed = " and ".join(added)
    return tensors, [f"no {listed} in the file: the identity"] if added else []


def infer_config(
    tensors: Mapping[str, Any], options: FirstStageOptions | None = None
) -> AutoencoderConfig:
    """The architecture that a first-stage state dict's names and shapes tell.

    >>> infer_config({"decoder.conv_out.weight": None})
    Traceback (most recent call last):
    ...
    checkpoints_convert.table.ConversionError: not a CompVis first stage: ...
    """
    options = options or FirstStageOptions()
    shape = shapes_of(tensors, "a CompVis first stage")
    if "quantize.embed.weight" in tensors:
        raise ConversionError(
            "a first stage with a Gumbel-softmax codebook (quantize.embed): fpjax has codebooks "
            "that are searched for the nearest entry (VQ), and KL"
        )
    levels = count_indices(tensors, r"decoder\.up\.(\d+)\..*")
    if levels > MAX_LEVELS:
        raise ConversionError(f"a first stage of {levels} levels: expected at most {MAX_LEVELS}")
    channels = [shape(f"decoder.up.{i}.block.0.conv2.weight", 4)[0] for i in range(levels)]
    has_encoder = any(name.startswith("encoder.") for name in tensors)
    anchor = ("encoder.conv_in.weight", 4) if has_encoder else ("decoder.norm_out.weight", 1)
    ch = shape(*anchor)[0]
    attn = [
        i
        for i in range(levels)
        if any(f"decoder.up.{i}.attn.0.{name}.weight" in tensors for name in ("norm", "group_norm"))
    ]
    z_channels = shape("decoder.conv_in.weight", 4)[1]
    embed_dim = z_channels
    if "post_quant_conv.weight" in tensors:
        outputs, embed_dim = tuple(tensors["post_quant_conv.weight"].shape)[:2]
        if outputs != z_channels:
            raise ConversionError(
                f"post_quant_conv writes {outputs} channels and the decoder reads {z_channels}"
            )
    is_vq = "quantize.embedding.weight" in tensors
    resolution = options.resolution or 256
    return config_of(
        ch=ch,
        ch_mult=tuple(ratio(c, ch) for c in channels),
        num_res_blocks=count_indices(tensors, r"decoder\.up\.0\.block\.(\d+)\..*") - 1,
        attn_resolutions=tuple(resolution // 2**i for i in attn),
        resolution=resolution,
        z_channels=z_channels,
        embed_dim=embed_dim,
        n_embed=shape("quantize.embedding.weight", 2)[0] if is_vq else None,
        double_z=not is_vq,
        in_channels=shape("encoder.conv_in.weight", 4)[1] if has_encoder else 3,
        out_ch=shape("decoder.conv_out.weight", 4)[0],
        scale_factor=1.0 if options.scale_factor is None else options.scale_factor,
        shift_factor=options.shift_factor or 0.0,
        has_encoder=has_encoder,
    )


def config_of(**values: Any) -> AutoencoderConfig:
    """The config, or an error that says which value fpjax cannot take."""
    try:
        return AutoencoderConfig(**values)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise ConversionError(f"no first stage that fpjax has: {error}") from error


def shapes_of(tensors: Mapping[str, Any], what: str):
    """A function from a name and a number of dimensions to the shape of that tensor."""

    def shape(name: str, dimensions: int) -> tuple[int, ...]:
        if name not in tensors:
            raise ConversionError(f"not {what}: it has no tensor {name}", [f"missing {name}"])
        found = tuple(tensors[name].shape)
        if len(found) != dimensions or 0 in found:
            raise ConversionError(f"not {what}: tensor {name} has shape {found}")
        return found

    return shape


def count_indices(names: Iterable[str], pattern: str) -> int:
    """Number of distinct indices that the pattern's group takes among the names.

    >>> count_indices(["up.0.a", "up.0.b", "up.1.a"], r"up\\.(\\d+)\\..*")
    2
    """
    compiled = re.compile(pattern)
    return len({m[1] for name in names if (m := compiled.fullmatch(name))})


def ratio(channels: int, base: int) -> float:
    """How many times the base, a whole number where it is one."""
    return channels // base if channels % base == 0 else channels / base
