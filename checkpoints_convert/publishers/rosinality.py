"""StyleGAN2 in the names of rosinality's PyTorch port, and of programs that keep them (pSp, e4e).

The port saves `g_ema`, `g` and `latent_avg`; pSp and e4e keep the generator below `decoder.`, with
an average for each layer. Architecture is read from names and shapes; the learning-rate multiplier
of the mapping network, which no weight shows, is the port's 0.01 unless another is given.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from checkpoints_convert.describe import describe
from checkpoints_convert.documents import number
from checkpoints_convert.found import Found, at, check_alone, check_averages
from checkpoints_convert.inverse import published
from checkpoints_convert.publishers.stylegan2 import (
    MAPPING_LR_MULTIPLIER,
    MAX_SIDES,
    Published,
    Shapes,
    StyleGAN2Options,
    channel_table,
    check_image_channels,
    check_mapping,
    check_start,
    check_unconditional,
    config_of,
    fir_kernel,
    fir_taps,
    sides,
    silence,
    stated_arguments,
)
from checkpoints_convert.recognised import Recognised, recognised
from checkpoints_convert.request import Request
from checkpoints_convert.table import (
    Conversion,
    ConversionError,
    Ignorable,
    Rule,
    as_numpy,
    convert,
    linear,
    real_numbers,
)
from fpjax.models import stylegan2
from fpjax.models.layers import MAX_DEPTH

KIND = "StyleGAN2, rosinality"
NUM_AVERAGED_LATENTS = 16_384
MAX_AVERAGED_WEIGHTS = (
    1 << 23
)  # of a mapping network whose average is estimated: four times config-f

TRANSFORMS = {
    "const": lambda x: np.transpose(x[0], (1, 2, 0)),
    "modulated_kernel": lambda x: np.transpose(x[0], (2, 3, 1, 0)),
    "modulated_1x1": lambda x: x.reshape(x.shape[1:3]).T,
    "scalar": lambda x: x.reshape(()),
    "noise_map": lambda x: x[0, 0],
    "vector": lambda x: x.reshape(-1),
    "channel_bias": lambda x: x.reshape(-1),
}

INVERSES = {
    "const": lambda x: np.transpose(x, (2, 0, 1))[None],
    "modulated_kernel": lambda x: np.transpose(x, (3, 2, 0, 1))[None],
    "modulated_1x1": lambda x: x.T[None, :, :, None, None],
    "scalar": lambda x: x.reshape(1),
    "noise_map": lambda x: x[None, None],
    "vector": lambda x: x,
    "channel_bias": lambda x: x[None, :, None, None],
}

IGNORABLE = [
    Ignorable(r".*\.kernel", "FIR filter, derived from the config"),
]


class Names(NamedTuple):
    """How a program calls the parts; all keep the port's layers and shapes."""

    mapping: str = "style"
    const: str = "input.input"
    first: str = "conv1"
    convs: str = "convs"
    conv: str = "conv"
    strength: str = "noise.weight"
    noise: str = "noises.noise_"


ROSINALITY = Names()


def from_names(found: Found, request: Request) -> Recognised | None:
    """A state dict in the port's names, alone, below `g_ema` and `g`, or as a pSp decoder."""
    return from_layout(found, request, ROSINALITY, KIND)


def from_layout(found: Found, request: Request, names: Names, kind: str) -> Recognised | None:
    """The same for a program that calls the port's parts by other names."""
    modulation = f"{names.first}.{names.conv}.modulation.weight"
    here = at(found, request, names.const, modulation)
    if here is None:
        return None
    options = request.read(kind, StyleGAN2Options, weights=here.weighted)
    check_alone(here)
    check_averages(here, request)
    tensors, origins = here.tensors, dict(here.origins)
    tensors.pop("latent_avg", None)
    average = here.beside("latent_avg")
    if average is not None:
        origins["latent_avg"] = (here.file.path, average)
    multiplier = options.mapping_lr_multiplier or _stored_multiplier(here, names)
    multiplier = multiplier or number(stated_arguments(found.file) or {}, "lr_mlp")
    value = here.all[average] if average is not None else None
    conversion = convert_generator(tensors, value, multiplier, names)
    return recognised(kind, here, conversion, here.note, (), origins)


def _stored_multiplier(here: Found, names: Names) -> float | None:
    """What the layers of a module that was saved whole say; other activations are refused."""
    found = None
    for name, value in here.attributes.items():
        if not name.startswith(here.prefix):
            continue
        own = name[len(here.prefix) :]
        mapping = own.startswith(f"{names.mapping}.")
        if own.endswith(".negative_slope") and value != 0.2:
            raise ConversionError(f"{own} = {describe(value)}: fpjax has leaky ReLUs of slope 0.2")
        if mapping and own.endswith(".activation") and value != "fused_lrelu":
            raise ConversionError(
                f"{own} = {describe(value)}: fpjax's mapping network has leaky ReLUs"
            )
        if mapping and own.endswith(".lr_mul"):
            if type(value) not in (int, float) or found not in (None, value):
                raise ConversionError(f"{own} = {describe(value)}: expected one number for all")
            found = value
    return None if found is None else float(found)


def rules(config: stylegan2.StyleGAN2Config, names: Names = ROSINALITY) -> list[Rule]:
    """The rename table of a generator of this architecture."""
    table = [
        Rule(r"latent_avg", "mapping/w_avg", "vector"),
        Rule(re.escape(names.const), "synthesis/b4/const", "const"),
    ]
    for i in range(config.num_mapping_layers):
        table += linear(rf"{names.mapping}\.{i + 1}", f"mapping/fc{i}")
    for index, side in enumerate(config.block_resolutions):
        block = f"synthesis/b{side}"
        if index == 0:
            convs = [(names.first, "conv1", 0)]
            table += _to_rgb("to_rgb1", f"{block}/torgb", names)
        else:
            first = 2 * (index - 1)
            convs = [
                (rf"{names.convs}\.{first}", "conv0", first + 1),
                (rf"{names.convs}\.{first + 1}", "conv1", first + 2),
            ]
            table += _to_rgb(rf"to_rgbs\.{index - 1}", f"{block}/torgb", names)
        for source, name, noise in convs:
            table += _styled_conv(source, f"{block}/{name}", names)
            pattern = re.escape(f"{names.noise}{noise}")
            table.append(Rule(pattern, f"{block}/{name}/noise_const", "noise_map"))
    return table


def _styled_conv(source: str, target: str, names: Names) -> list[Rule]:
    strength = re.escape(names.strength)
    return [
        Rule(rf"{source}\.{names.conv}\.weight", f"{target}/weight", "modulated_kernel"),
        *linear(rf"{source}\.{names.conv}\.modulation", f"{target}/affine"),
        Rule(rf"{source}\.{strength}", f"{target}/noise_strength", "scalar"),
        Rule(rf"{source}\.activate\.bias", f"{target}/bias"),
    ]


def _to_rgb(source: str, target: str, names: Names) -> list[Rule]:
    return [
        Rule(rf"{source}\.{names.conv}\.weight", f"{target}/weight", "modulated_1x1"),
        *linear(rf"{source}\.{names.conv}\.modulation", f"{target}/affine"),
        Rule(rf"{source}\.bias", f"{target}/bias", "channel_bias"),
    ]


def infer_config(
    tensors: Mapping[str, Any],
    mapping_lr_multiplier: float = MAPPING_LR_MULTIPLIER,
    names: Names = ROSINALITY,
) -> stylegan2.StyleGAN2Config:
    """Reads the architecture from names and shapes.

    Raises:
      ConversionError: if a tensor that shows it is missing, or shows a network that is not square,
        not RGB, conditional or without a mapping.
    """
    shape = Shapes(tensors, "StyleGAN2 generator in rosinality's layout")
    check_unconditional(tensors, "embed.", "label_embed", f"{names.mapping}_embed")
    check_start(*shape(names.const, 4)[2:])
    check_image_channels(shape(f"to_rgb1.{names.conv}.weight", 5)[1])
    num_blocks = 1
    while (
        f"{names.convs}.{2 * num_blocks - 2}.{names.conv}.weight" in tensors
        and num_blocks <= MAX_SIDES
    ):
        num_blocks += 1
    layers = []
    while f"{names.mapping}.{len(layers) + 1}.weight" in tensors and len(layers) <= MAX_DEPTH:
        outputs, inputs = shape(f"{names.mapping}.{len(layers) + 1}.weight", 2)
        layers.append((inputs, outputs))
    w_dim = shape(f"{names.first}.{names.conv}.modulation.weight", 2)[1]
    check_mapping(layers, w_dim)
    for i, (inputs, outputs) in enumerate(layers):
        if inputs != w_dim or outputs != w_dim:
            raise ConversionError(
                f"{names.mapping}.{i + 1}.weight reads {inputs} values and writes {outputs}: in "
                f"this layout every layer of the mapping network reads and writes {w_dim}; a "
                "conditional generator, or another network"
            )
    channels = [(4, shape(f"{names.first}.{names.conv}.weight", 5)[1])]
    for i in range(1, num_blocks):
        out = shape(f"{names.convs}.{2 * i - 2}.{names.conv}.weight", 5)[1]
        channels.append((4 * 2**i, out))
    return config_of(
        resolution=4 * 2 ** (num_blocks - 1),
        z_dim=w_dim,
        w_dim=w_dim,
        num_mapping_layers=len(layers),
        mapping_lr_multiplier=mapping_lr_multiplier,
        channels=tuple(channels),
        fir=fir_taps([tensor for name, tensor in tensors.items() if name.endswith(".kernel")]),
    )


def convert_generator(
    tensors: Mapping[str, Any],
    latent_avg: Any = None,
    mapping_lr_multiplier: float | None = None,
    names: Names = ROSINALITY,
) -> Conversion:
    """Plans the conversion of a generator's state dict.

    Args:
      tensors: the state dict `g_ema` (or `g`), name -> array.
      latent_avg: the file's `latent_avg`, (w_dim,), (1, w_dim), or (layers, w_dim) with equal rows;
        where it is absent the mean of 16,384 seeded draws takes its place and a note says so.
      mapping_lr_multiplier: of the mapping network, which no weight shows; None is 0.01.
      names: how the program calls the parts.

    Returns:
      The `Conversion` to an fpjax StyleGAN2.

    Raises:
      ConversionError: listing what is unmapped, unfilled or misshapen.
    """
    multiplier = mapping_lr_multiplier or MAPPING_LR_MULTIPLIER
    config = infer_config(tensors, multiplier, names)
    tensors, notes = dict(tensors), []
    if latent_avg is None:
        tensors["latent_avg"] = _average_latent(tensors, config, names)
        notes.append(
            f"no latent_avg in the file: w_avg is the mean of {NUM_AVERAGED_LATENTS} seeded draws"
        )
    else:
        tensors["latent_avg"] = _one_average(latent_avg, config)
    layers = {
        _layer(names, i): (
            f"{_layer(names, i)}.{names.strength}",
            f"{names.noise}{i}",
            (1, 1, side, side),
        )
        for i, side in enumerate(sides(config))
    }
    notes += silence(tensors, layers)
    if not any(name.startswith(names.noise) for name in tensors):
        rng = np.random.default_rng(0)
        for _, noise, shape in layers.values():
            tensors[noise] = rng.standard_normal(shape).astype(np.float32)
        notes.append("no noise maps in the file: seeded ones are stored, so images are repeatable")
    if mapping_lr_multiplier is None:
        notes.append(
            f"mapping learning-rate multiplier {multiplier} is assumed: no tensor tells it"
        )
    shapes = stylegan2.param_shapes(config)
    plan = convert(tensors, rules(config, names), IGNORABLE, shapes, TRANSFORMS)
    return Conversion("stylegan2", config, plan, tuple(notes))


def export_generator(config: stylegan2.StyleGAN2Config, params: Mapping[str, Any]) -> Published:
    """A generator as the port saves it: `g_ema` below that prefix, and `latent_avg`.

    Args:
      config: the architecture.
      params: its parameter tree.

    Raises:
      ConversionError: for what the port's generator does not have: a z of another length than w,
        or an activation clamp.
    """
    if config.z_dim != config.w_dim or config.conv_clamp is not None:
        what = f"an activation clamp of {config.conv_clamp}"
        if config.z_dim != config.w_dim:
            what = f"a z of {config.z_dim} and a w of {config.w_dim} values"
        raise ConversionError(f"{KIND}: its generators cannot have {what}; nvidia's can")
    tensors = published(params, rules(config), TRANSFORMS, INVERSES, IGNORABLE)
    average = tensors.pop("latent_avg")
    # Where the side doubles, the filter makes up for the zeros between the pixels.
    kernel = 4 * fir_kernel(config)
    for i in range(len(config.block_resolutions) - 1):
        tensors[f"convs.{2 * i}.conv.blur.kernel"] = kernel
        tensors[f"to_rgbs.{i}.upsample.kernel"] = kernel
    table = channel_table(config)
    multiplier = max(1, table.get(64, 512) // 256)
    arguments = {
        "size": config.resolution,
        "style_dim": config.w_dim,
        "n_mlp": config.num_mapping_layers,
        "channel_multiplier": multiplier,
        "blur_kernel": list(config.fir),
        "lr_mlp": config.mapping_lr_multiplier,
    }
    notes = ()
    if any(table[r] != (512 if r < 64 else 2**14 * multiplier // r) for r in table):
        notes = (f"in that program's Generator, self.channels must be {table}",)
    state = {f"g_ema.{name}": tensor for name, tensor in tensors.items()}
    return Published({**state, "latent_avg": average}, arguments, notes)


def _layer(names: Names, index: int) -> str:
    return f"{names.convs}.{index - 1}" if index else names.first


def _one_average(latent_avg: Any, config: stylegan2.StyleGAN2Config) -> Any:
    """The average as it is, or one row of an average that a program repeats for each layer."""
    shape = tuple(latent_avg.shape)
    if np.prod(shape, dtype=float) <= config.w_dim or shape[-1:] != (config.w_dim,):
        return latent_avg
    if np.prod(shape, dtype=float) > config.w_dim * config.num_layers:
        raise ConversionError(f"latent_avg of shape {shape}: expected one row for each layer")
    rows = as_numpy(latent_avg).reshape(-1, config.w_dim)
    if not (rows == rows[0]).all():
        raise ConversionError(
            "latent_avg differs from layer to layer: fpjax truncates towards one average"
        )
    return rows[0].copy()


def _average_latent(
    tensors: Mapping[str, Any], config: stylegan2.StyleGAN2Config, names: Names
) -> np.ndarray:
    """Mean of w over seeded draws, as the port computes it when a program asks for truncation."""
    if config.num_mapping_layers * config.w_dim**2 > MAX_AVERAGED_WEIGHTS:
        raise ConversionError(
            f"no latent_avg in the file, and a mapping network of {config.num_mapping_layers} "
            f"layers of {config.w_dim}^2 weights is too large to estimate it: store the mean of w "
            "as latent_avg"
        )
    rng = np.random.default_rng(0)
    layers = []
    for i in range(config.num_mapping_layers):
        start = f"{names.mapping}.{i + 1}"
        if f"{start}.bias" not in tensors or tensors[f"{start}.bias"].shape != (config.w_dim,):
            raise ConversionError(f"{start}.bias is missing or not of {config.w_dim} values")
        weight = real_numbers(tensors[f"{start}.weight"], f"{start}.weight")
        bias = real_numbers(tensors[f"{start}.bias"], f"{start}.bias")
        scale = config.mapping_lr_multiplier / np.sqrt(weight.shape[1])
        layers.append((weight.T * scale, bias * config.mapping_lr_multiplier))
    total = np.zeros(config.w_dim)
    for _ in range(NUM_AVERAGED_LATENTS // 1024):  # in pieces, whatever the width
        z = rng.standard_normal((1024, config.z_dim))
        x = z / np.sqrt(np.mean(z**2, axis=1, keepdims=True) + 1e-8)
        for weight, bias in layers:
            x = x @ weight + bias
            x = np.where(x >= 0, x, 0.2 * x) * np.sqrt(2)
        total += x.sum(axis=0)
    return (total / NUM_AVERAGED_LATENTS).astype(np.float32)
