"""CompVis latent diffusion: first-stage and whole-model `.ckpt` state dicts to fpjax parameters.

Names are those of the published code's `AutoencoderKL`, `VQModel` and `UNetModel` (Rombach et al.,
CVPR 2022). Architectures are inferred from names and shapes; what cannot be is an argument.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from checkpoints_convert.mappings.table import (
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

AUTOENCODER_RULES: list[Rule] = [
    *conv(r"(encoder|decoder)\.conv_(in|out)", r"\1/conv_\2"),
    *norm(r"(encoder|decoder)\.norm_out", r"\1/norm_out"),
    *norm(_BLOCK + r"\.norm([12])", r"\1/norm\2"),
    *conv(_BLOCK + r"\.conv([12])", r"\1/conv\2"),
    *conv1x1(_BLOCK + r"\.nin_shortcut", r"\1/shortcut"),
    *norm(_ATTN + r"\.norm", r"\1/norm"),
    *conv1x1(_ATTN + r"\.(q|k|v|proj_out)", r"\1/\2"),
    *conv(r"encoder\.down\.(\d+)\.downsample\.conv", r"encoder/down/\1/downsample"),
    *conv(r"decoder\.up\.(\d+)\.upsample\.conv", r"decoder/up/\1/upsample"),
    *conv1x1(r"(post_quant_conv|quant_conv)", r"\1"),
    Rule(r"quantize\.embedding\.weight", "codebook"),
]

AUTOENCODER_IGNORABLE: list[Ignorable] = [
    Ignorable(r"loss\..*", "the training loss: its discriminator and perceptual network"),
    Ignorable(r"model_ema\..*", "an average of the first stage; the LDM reads the raw weights"),
    Ignorable(r"colorize", "a random projection for plots"),
]


def convert_autoencoder(
    tensors: Mapping[str, Any],
    *,
    config: AutoencoderConfig | None = None,
    resolution: int = 256,
    scale_factor: float = 1.0,
) -> Conversion:
    """Maps a first-stage state dict (`encoder.*`, `decoder.*`, `quant_conv.*`, ...), KL or VQ.

    Args:
      tensors: name -> array; prefixes such as `first_stage_model.` already removed.
      config: the architecture; inferred where None.
      resolution: nominal side of an image in pixels, which no tensor tells.
      scale_factor: latents of the diffusion model over those of the first stage (1 for FFHQ).

    Returns:
      The `Conversion`; its config has no encoder where the file has none.

    Raises:
      ConversionError: if the tensors are not those of such a model.

    >>> convert_autoencoder({})
    Traceback (most recent call last):
    ...
    checkpoints_convert.mappings.table.ConversionError: not a CompVis first stage: ...
    """
    notes = []
    if config is None:
        config = infer_autoencoder_config(tensors, resolution=resolution, scale_factor=scale_factor)
        notes.append(f"resolution {resolution} is nominal: no tensor tells it")
    if not config.has_encoder:
        notes.append("the file has no encoder: this model decodes only")
    shapes = autoencoder.param_shapes(config)
    plan = convert(tensors, AUTOENCODER_RULES, AUTOENCODER_IGNORABLE, shapes)
    return Conversion("autoencoder", config, plan, tuple(notes))


def infer_autoencoder_config(
    tensors: Mapping[str, Any], *, resolution: int = 256, scale_factor: float = 1.0
) -> AutoencoderConfig:
    """The architecture that a first-stage state dict's names and shapes tell.

    >>> infer_autoencoder_config({"decoder.conv_in.weight": None})
    Traceback (most recent call last):
    ...
    checkpoints_convert.mappings.table.ConversionError: not a CompVis first stage: ...
    """
    shape = _shapes(tensors, "a CompVis first stage")
    levels = _count(tensors, r"decoder\.up\.(\d+)\..*")
    channels = [shape(f"decoder.up.{i}.block.0.conv2.weight")[0] for i in range(levels)]
    has_encoder = any(name.startswith("encoder.") for name in tensors)
    ch = shape("encoder.conv_in.weight" if has_encoder else "decoder.norm_out.weight")[0]
    attn = [i for i in range(levels) if f"decoder.up.{i}.attn.0.norm.weight" in tensors]
    z_channels, embed_dim = shape("post_quant_conv.weight")[:2]
    is_vq = "quantize.embedding.weight" in tensors
    return AutoencoderConfig(
        ch=ch,
        ch_mult=tuple(_ratio(c, ch) for c in channels),
        num_res_blocks=_count(tensors, r"decoder\.up\.0\.block\.(\d+)\..*") - 1,
        attn_resolutions=tuple(resolution // 2**i for i in attn),
        resolution=resolution,
        z_channels=z_channels,
        embed_dim=embed_dim,
        n_embed=shape("quantize.embedding.weight")[0] if is_vq else None,
        double_z=not is_vq,
        in_channels=shape("encoder.conv_in.weight")[1] if has_encoder else 3,
        out_ch=shape("decoder.conv_out.weight")[0],
        scale_factor=scale_factor,
        has_encoder=has_encoder,
    )


def _shapes(tensors: Mapping[str, Any], what: str):
    def shape(name: str) -> tuple[int, ...]:
        if name not in tensors:
            raise ConversionError(f"not {what}: it has no tensor {name}", [f"missing {name}"])
        return tuple(tensors[name].shape)

    return shape


def _count(names: Iterable[str], pattern: str) -> int:
    """Number of distinct indices that the pattern's group takes among the names."""
    return len({m[1] for name in names if (m := re.fullmatch(pattern, name))})


def _ratio(channels: int, base: int) -> float:
    return channels // base if channels % base == 0 else channels / base
