"""CompVis latent diffusion: first-stage and whole-model `.ckpt` state dicts to fpjax parameters.

Names are those of the published code's `AutoencoderKL`, `VQModel` and `UNetModel` (Rombach et al.,
CVPR 2022). Architectures are inferred from names and shapes; what cannot be is an argument.
"""

import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from checkpoints_convert.mappings.table import (
    Conversion,
    ConversionError,
    Ignorable,
    Rule,
    Transform,
    as_numpy,
    conv,
    conv1x1,
    convert,
    linear,
    norm,
    select,
    under,
)
from fpjax.models import autoencoder, unet
from fpjax.models.autoencoder import AutoencoderConfig
from fpjax.models.diffusion import DiffusionConfig
from fpjax.models.unet import UNetConfig

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


LDM_IGNORABLE: list[Ignorable] = [
    *(
        Ignorable(rf"first_stage_model\.(?:{pattern})", reason)
        for pattern, reason in AUTOENCODER_IGNORABLE
    ),
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


def detect(names: Iterable[str]) -> str | None:
    """What a state dict's names say it is: "ldm", "autoencoder", "unet" or, where neither, None.

    >>> detect(["model.diffusion_model.out.2.bias", "betas"])
    'ldm'
    """
    names = set(names)
    if any(name.startswith(("first_stage_model.", "model.diffusion_model.")) for name in names):
        return "ldm"
    if {"post_quant_conv.weight", "decoder.mid.block_1.norm1.weight"} <= names:
        return "autoencoder"
    return "unet" if "input_blocks.0.0.weight" in names else None


def convert_ldm(
    tensors: Mapping[str, Any],
    *,
    resolution: int = 256,
    num_head_channels: int | None = 32,
    num_heads: int = 1,
    new_attention_order: bool = False,
    use_ema: bool = True,
) -> Conversion:
    """Maps a whole unconditional latent diffusion checkpoint: its first stage and its prior.

    Args:
      tensors: name -> array, as in the checkpoint's `state_dict`.
      resolution: nominal side of an image in pixels, which no tensor tells.
      num_head_channels, num_heads, new_attention_order: see `convert_unet`.
      use_ema: take the averaged U-Net weights where the checkpoint has them, as the published
        samplers do, else the raw ones.

    Returns:
      The `Conversion`; config and parameters are {"autoencoder": ..., "diffusion": ...}, the
      latter a `DiffusionConfig` and the parameters of its U-Net.

    Raises:
      ConversionError: if anything is missing, left over, or conditional.

    >>> convert_ldm({"model.diffusion_model.out.2.bias": np.zeros(3)})
    Traceback (most recent call last):
    ...
    checkpoints_convert.mappings.table.ConversionError: not a CompVis first stage: ...
    """
    if cond := [name for name in tensors if name.startswith("cond_stage_model.")]:
        raise ConversionError(f"a conditional model ({cond[0]}): only unconditional ones convert")
    scale = _shortest(as_numpy(tensors.get("scale_factor", 1.0)))
    first_stage = select(tensors, "first_stage_model.")
    stage = infer_autoencoder_config(first_stage, resolution=resolution, scale_factor=scale)

    raw = select(tensors, "model.diffusion_model.")
    averaged = {name: tensors[stored] for name, stored in averaged_unet(tensors).items()}
    use_ema = bool(averaged) and (use_ema or not raw)
    config = infer_unet_config(
        averaged if use_ema else raw,
        num_head_channels=num_head_channels,
        num_heads=num_heads,
        image_size=resolution // stage.downsampling,
    )
    if config.in_channels != stage.embed_dim:
        raise ConversionError(
            f"the U-Net reads {config.in_channels} channels and the latent has "
            f"{stage.embed_dim}: a conditional model, only unconditional ones convert"
        )
    rules = unet_rules(config)
    if use_ema:
        # The averaging code drops the dots of the names it keeps.
        dotless = [rule._replace(pattern=rule.pattern.replace(r"\.", "")) for rule in rules]
        prior_rules = under(dotless, r"model_ema\.diffusion_model", "diffusion/")
        unused = Ignorable(r"model\.diffusion_model\..*", "raw weights; the averages are used")
    else:
        prior_rules = under(rules, r"model\.diffusion_model\.", "diffusion/")
        unused = Ignorable(r"model_ema\.diffusion_model.*", "averages; the raw weights are used")
    plan = convert(
        tensors,
        under(AUTOENCODER_RULES, r"first_stage_model\.", "autoencoder/") + prior_rules,
        [*LDM_IGNORABLE, unused],
        {"autoencoder": autoencoder.param_shapes(stage), "diffusion": unet.param_shapes(config)},
        _qkv_transforms(config, new_attention_order),
    )
    notes = (
        f"resolution {resolution} is nominal: no tensor tells it",
        _heads_note(num_head_channels, num_heads),
        "the U-Net's averaged (EMA) weights are used"
        if use_ema
        else "the U-Net's raw weights are used"
        + ("" if averaged else ": the file has no averaged (EMA) ones"),
    )
    configs = {"autoencoder": stage, "diffusion": infer_schedule(config, tensors)}
    return Conversion("ldm", configs, plan, notes)


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


def averaged_unet(names: Iterable[str]) -> dict[str, str]:
    """A U-Net's own names to those under which a whole checkpoint keeps its averages, if it does.

    >>> averaged_unet(["model_ema.diffusion_modelout2bias", "model_ema.decay"])
    {'out.2.bias': 'model_ema.diffusion_modelout2bias'}
    """
    start = "model_ema.diffusion_model"
    return {_dotted(name.removeprefix(start)): name for name in names if name.startswith(start)}


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
    alphas = as_numpy(tensors["alphas_cumprod"]).astype(np.float64)
    betas = 1 - alphas / np.append(1.0, alphas[:-1])
    if "betas" in tensors:
        betas = as_numpy(tensors["betas"]).astype(np.float64)
    start, end = _shortest(betas[0]), _shortest(betas[-1])
    for name in ("sqrt_linear", "linear", "cosine"):
        linear_range = {} if name == "cosine" else {"linear_start": start, "linear_end": end}
        schedule = DiffusionConfig(config, len(alphas), name, **linear_range)
        if np.allclose(schedule.alphas_cumprod, alphas, rtol=1e-4, atol=1e-7):
            return schedule
    raise ConversionError(
        f"alphas_cumprod, {len(alphas)} steps with betas from {start} to {end}, is no linear, "
        "square-root linear or cosine schedule"
    )


def unet_rules(config: UNetConfig) -> list[Rule]:
    """The rename table of a U-Net: its blocks are numbered in one row, ours by level.

    >>> unet_rules(UNetConfig.ldm_ffhq256())[0].target
    'conv_in/weight'
    """
    rules = [
        *conv(r"input_blocks\.0\.0", "conv_in"),
        *linear(r"time_embed\.0", "time_embed/linear_1"),
        *linear(r"time_embed\.2", "time_embed/linear_2"),
        *_unet_block(r"middle_block\.0", "mid/block_1"),
        *_unet_attention(r"middle_block\.1", "mid/attn_1"),
        *_unet_block(r"middle_block\.2", "mid/block_2"),
        *norm(r"out\.0", "norm_out"),
        *conv(r"out\.2", "conv_out"),
    ]
    levels = len(config.channels)
    down = itertools.count(1)
    up = itertools.count()
    for level in range(levels):
        for i in range(config.num_res_blocks):
            rules += _unet_stage(config, rf"input_blocks\.{next(down)}", f"down/{level}", i)
        if level + 1 < levels:
            rules += conv(rf"input_blocks\.{next(down)}\.0\.op", f"down/{level}/downsample")
    for level in reversed(range(levels)):
        for i in range(config.num_res_blocks + 1):
            source = rf"output_blocks\.{next(up)}"
            rules += _unet_stage(config, source, f"up/{level}", i)
            if level > 0 and i == config.num_res_blocks:
                # The upsampling comes last in its group, after the attention if there is any.
                last = 1 + config.has_attention(level)
                rules += conv(rf"{source}\.{last}\.conv", f"up/{level}/upsample")
    return rules


def infer_unet_config(
    tensors: Mapping[str, Any],
    *,
    num_head_channels: int | None = 32,
    num_heads: int = 1,
    image_size: int = 64,
) -> UNetConfig:
    """The architecture that a U-Net's names and shapes tell, and what they cannot, as arguments.

    >>> infer_unet_config({"input_blocks.0.0.weight": np.zeros((32, 3, 3, 3)),
    ...     "label_emb.weight": np.zeros(1)})
    Traceback (most recent call last):
    ...
    checkpoints_convert.mappings.table.ConversionError: a conditional U-Net (label_emb.weight): ...
    """
    shape = _shapes(tensors, "a CompVis U-Net")
    for name in tensors:
        if re.search(r"label_emb\.|transformer_blocks\.", name):
            raise ConversionError(f"a conditional U-Net ({name}): only unconditional ones convert")
    model_channels, in_channels = shape("input_blocks.0.0.weight")[:2]
    levels: list[list[tuple[int, bool]]] = [[]]
    for n in range(1, _count(tensors, r"input_blocks\.(\d+)\..*")):
        if f"input_blocks.{n}.0.op.weight" in tensors:
            levels.append([])
        else:
            out = shape(f"input_blocks.{n}.0.out_layers.3.weight")[0]
            levels[-1].append((out, f"input_blocks.{n}.1.qkv.weight" in tensors))
    if any(len(level) != len(levels[0]) or len(set(level)) != 1 for level in levels):
        raise ConversionError(
            f"the blocks of each level differ, (channels, attention) being {levels}: a U-Net that "
            "resamples inside residual blocks (resblock_updown) or without convolution does not "
            "convert"
        )
    channels, attention = zip(*(level[0] for level in levels), strict=True)
    time_outputs = shape("input_blocks.1.0.emb_layers.1.weight")[0]
    return UNetConfig(
        image_size=image_size,
        in_channels=in_channels,
        out_channels=shape("out.2.weight")[0],
        model_channels=model_channels,
        channel_mult=tuple(_ratio(c, model_channels) for c in channels),
        num_res_blocks=len(levels[0]),
        attention_resolutions=tuple(2**i for i, attends in enumerate(attention) if attends),
        num_head_channels=num_head_channels,
        num_heads=num_heads,
        use_scale_shift_norm=time_outputs == 2 * channels[0],
    )


def convert_unet(
    tensors: Mapping[str, Any],
    *,
    config: UNetConfig | None = None,
    num_head_channels: int | None = 32,
    num_heads: int = 1,
    image_size: int = 64,
    new_attention_order: bool = False,
) -> Conversion:
    """Maps a U-Net state dict (`time_embed.*`, `input_blocks.*`, ...), prefixes removed.

    Args:
      tensors: name -> array.
      config: the architecture; inferred where None.
      num_head_channels: channels of an attention head, which no tensor tells; published LDMs have
        32. None where the number of heads is fixed instead, to `num_heads`.
      num_heads: see `num_head_channels`.
      image_size: nominal side of a latent, which no tensor tells.
      new_attention_order: the fused projection holds all queries first, then all keys, then all
        values, instead of the three of each head together (the published default).

    Returns:
      The `Conversion`.

    Raises:
      ConversionError: if the tensors are not those of such a model.

    >>> convert_unet({})
    Traceback (most recent call last):
    ...
    checkpoints_convert.mappings.table.ConversionError: not a CompVis U-Net: ...
    """
    notes = []
    if config is None:
        config = infer_unet_config(
            tensors,
            num_head_channels=num_head_channels,
            num_heads=num_heads,
            image_size=image_size,
        )
        notes.append(_heads_note(num_head_channels, num_heads))
        notes.append(f"latent side {image_size} is nominal: no tensor tells it")

    shapes = unet.param_shapes(config)
    transforms = _qkv_transforms(config, new_attention_order)
    plan = convert(tensors, unet_rules(config), [], shapes, transforms)
    return Conversion("unet", config, plan, tuple(notes))


def _unet_stage(config: UNetConfig, source: str, target: str, index: int) -> list[Rule]:
    rules = _unet_block(rf"{source}\.0", f"{target}/block/{index}")
    level = int(target.rpartition("/")[2])
    if config.has_attention(level):
        rules += _unet_attention(rf"{source}\.1", f"{target}/attn/{index}")
    return rules


def _unet_block(source: str, target: str) -> list[Rule]:
    return [
        *norm(rf"{source}\.in_layers\.0", f"{target}/norm1"),
        *conv(rf"{source}\.in_layers\.2", f"{target}/conv1"),
        *linear(rf"{source}\.emb_layers\.1", f"{target}/time"),
        *norm(rf"{source}\.out_layers\.0", f"{target}/norm2"),
        *conv(rf"{source}\.out_layers\.3", f"{target}/conv2"),
        *conv1x1(rf"{source}\.skip_connection", f"{target}/shortcut"),
    ]


def _unet_attention(source: str, target: str) -> list[Rule]:
    return [
        *norm(rf"{source}\.norm", f"{target}/norm"),
        *(
            Rule(
                rf"{source}\.qkv\.{part}",
                tuple(f"{target}/{name}/{part}" for name in "qkv"),
                f"split_qkv_{part}",
            )
            for part in ("weight", "bias")
        ),
        *conv1x1(rf"{source}\.proj_out", f"{target}/proj_out"),
    ]


def _qkv_transforms(config: UNetConfig, new_attention_order: bool) -> dict[str, Transform]:
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


def _heads_note(num_head_channels: int | None, num_heads: int) -> str:
    if num_head_channels is None:
        return f"attention with {num_heads} heads is assumed: no tensor tells it"
    return f"attention with {num_head_channels} channels a head is assumed: no tensor tells it"


def _shortest(value: Any) -> float:
    """The number that was meant by a float32: 0.0015, not 0.001500000013."""
    return float(str(np.float32(value)))


def _dotted(name: str) -> str:
    """A U-Net name as the averaging code keeps it, without dots, to what it was.

    Only the last digit of a group's number is an index within the group: 100in_layers0weight was
    10.0.in_layers.0.weight.
    """
    group = r"(?:(time_embed|middle_block|out)|(input_blocks|output_blocks)(\d+))(\d)"
    match = re.fullmatch(rf"\.?{group}(\D*?)(\d?)(weight|bias)", name)
    if match is None:
        raise ConversionError(f"model_ema.diffusion_model{name} is no averaged U-Net weight")
    return ".".join(part for part in match.groups() if part)


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
