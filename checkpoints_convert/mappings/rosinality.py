"""StyleGAN2 in the names of rosinality's PyTorch port: `g_ema` (or `g`) and `latent_avg`.

The file's top level is a dict of state dicts; `convert_generator` takes the generator's state dict
and the average latent. Architecture is read from names and shapes; the learning-rate multiplier of
the mapping network, which no weight can show, is the port's 0.01 unless another is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from checkpoints_convert.mappings.table import (
    Conversion,
    ConversionError,
    Ignorable,
    Rule,
    as_numpy,
    convert,
    linear,
)
from fpjax.models import stylegan2

MAPPING_LR_MULTIPLIER = 0.01
NUM_AVERAGED_LATENTS = 16_384

TRANSFORMS = {
    "const": lambda x: np.transpose(x[0], (1, 2, 0)),
    "modulated_kernel": lambda x: np.transpose(x[0], (2, 3, 1, 0)),
    "modulated_1x1": lambda x: x.reshape(x.shape[1:3]).T,
    "scalar": lambda x: x.reshape(()),
    "noise_map": lambda x: x[0, 0],
    "vector": lambda x: x.reshape(-1),
}

IGNORABLE = [
    Ignorable(r".*\.kernel", "FIR filter, derived from the config"),
]


def _styled_conv(source: str, target: str) -> list[Rule]:
    return [
        Rule(rf"{source}\.conv\.weight", f"{target}/weight", "modulated_kernel"),
        *linear(rf"{source}\.conv\.modulation", f"{target}/affine"),
        Rule(rf"{source}\.noise\.weight", f"{target}/noise_strength", "scalar"),
        Rule(rf"{source}\.activate\.bias", f"{target}/bias"),
    ]


def _to_rgb(source: str, target: str) -> list[Rule]:
    return [
        Rule(rf"{source}\.conv\.weight", f"{target}/weight", "modulated_1x1"),
        *linear(rf"{source}\.conv\.modulation", f"{target}/affine"),
        Rule(rf"{source}\.bias", f"{target}/bias", "vector"),
    ]


def rules(config: stylegan2.StyleGAN2Config) -> list[Rule]:
    """The rename table of a generator of this architecture."""
    table = [
        Rule(r"latent_avg", "mapping/w_avg", "vector"),
        Rule(r"input\.input", "synthesis/b4/const", "const"),
    ]
    for i in range(config.num_mapping_layers):
        table += linear(rf"style\.{i + 1}", f"mapping/fc{i}")
    for index, side in enumerate(config.block_resolutions):
        block = f"synthesis/b{side}"
        if index == 0:
            convs = [("conv1", "conv1", 0)]
            table += _to_rgb("to_rgb1", f"{block}/torgb")
        else:
            first = 2 * (index - 1)
            convs = [
                (rf"convs\.{first}", "conv0", first + 1),
                (rf"convs\.{first + 1}", "conv1", first + 2),
            ]
            table += _to_rgb(rf"to_rgbs\.{index - 1}", f"{block}/torgb")
        for source, name, noise in convs:
            table += _styled_conv(source, f"{block}/{name}")
            table.append(
                Rule(rf"noises\.noise_{noise}", f"{block}/{name}/noise_const", "noise_map")
            )
    return table


def looks_like(tensors: Mapping[str, Any]) -> bool:
    """Whether these are the names of this port's generator."""
    return "input.input" in tensors and "conv1.conv.modulation.weight" in tensors


def infer_config(
    tensors: Mapping[str, Any], mapping_lr_multiplier: float = MAPPING_LR_MULTIPLIER
) -> stylegan2.StyleGAN2Config:
    """Reads the architecture from names and shapes.

    Raises:
      ConversionError: if a tensor that shows it is missing.
    """

    def shape(name):
        if name not in tensors:
            raise ConversionError(f"tensor {name} is missing: not a rosinality StyleGAN2 generator")
        return tuple(tensors[name].shape)

    num_blocks = 1
    while f"convs.{2 * num_blocks - 2}.conv.weight" in tensors:
        num_blocks += 1
    depth = 0
    while f"style.{depth + 1}.weight" in tensors:
        depth += 1
    channels = [(4, shape("conv1.conv.weight")[1])]
    for i in range(1, num_blocks):
        channels.append((4 * 2**i, shape(f"convs.{2 * i - 2}.conv.weight")[1]))
    kernels = [name for name in tensors if name.endswith(".kernel")]
    fir = (1.0, 3.0, 3.0, 1.0)
    if kernels:
        taps = as_numpy(tensors[kernels[0]]).astype(np.float64).sum(axis=0)
        fir = tuple(float(t) for t in taps / taps[0])
    w_dim = shape("conv1.conv.modulation.weight")[1]
    return stylegan2.StyleGAN2Config(
        resolution=4 * 2 ** (num_blocks - 1),
        z_dim=shape("style.1.weight")[1] if depth else w_dim,
        w_dim=w_dim,
        num_mapping_layers=depth,
        mapping_lr_multiplier=mapping_lr_multiplier,
        channels=tuple(channels),
        fir=fir,
    )


def _average_latent(tensors: Mapping[str, Any], config: stylegan2.StyleGAN2Config) -> np.ndarray:
    """Mean of w over seeded draws, as the port computes it when a program asks for truncation."""
    rng = np.random.default_rng(0)
    layers = []
    for i in range(config.num_mapping_layers):
        weight = as_numpy(tensors[f"style.{i + 1}.weight"]).astype(np.float64)
        bias = as_numpy(tensors[f"style.{i + 1}.bias"]).astype(np.float64)
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


def convert_generator(
    tensors: Mapping[str, Any],
    latent_avg: Any = None,
    mapping_lr_multiplier: float = MAPPING_LR_MULTIPLIER,
) -> Conversion:
    """Plans the conversion of a generator's state dict.

    Args:
      tensors: the state dict `g_ema` (or `g`), name -> array.
      latent_avg: the file's `latent_avg`, (w_dim,) or (1, w_dim); where it is absent the mean of
        16,384 seeded draws takes its place and a note says so.
      mapping_lr_multiplier: of the mapping network, which no weight shows.

    Returns:
      The `Conversion` to an fpjax StyleGAN2.

    Raises:
      ConversionError: listing what is unmapped, unfilled or misshapen.
    """
    config = infer_config(tensors, mapping_lr_multiplier)
    tensors, notes = dict(tensors), []
    if latent_avg is None:
        latent_avg = _average_latent(tensors, config)
        notes.append(
            f"no latent_avg in the file: w_avg is the mean of {NUM_AVERAGED_LATENTS} seeded draws"
        )
    tensors["latent_avg"] = latent_avg
    if not any(name.startswith("noises.") for name in tensors):
        sides = [4] + [side for side in config.block_resolutions[1:] for _ in range(2)]
        rng = np.random.default_rng(0)
        for i, side in enumerate(sides):
            noise = rng.standard_normal((1, 1, side, side)).astype(np.float32)
            tensors[f"noises.noise_{i}"] = noise
        notes.append("no noise maps in the file: seeded ones are stored, so images are repeatable")
    notes.append(
        f"mapping learning-rate multiplier {mapping_lr_multiplier} is assumed: no tensor tells it"
    )
    shapes = stylegan2.param_shapes(config)
    plan = convert(tensors, rules(config), IGNORABLE, shapes, TRANSFORMS)
    return Conversion("stylegan2", config, plan, tuple(notes))
