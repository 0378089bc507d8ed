"""StyleGAN2 in the names of GenForce's PyTorch programs: `generator_smooth`, `generator`.

Their numbers are those of the TensorFlow programs in PyTorch's shapes: the kernel of an upsampling
layer is applied turned by 180 degrees, and the 1 around which styles are centred is added when the
network runs, not stored in the bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from fpjax.models.layers import MAX_DEPTH

from checkpoints_convert.found import Found, at, check_alone, check_averages
from checkpoints_convert.publishers.stylegan2 import (
    MAPPING_LR_MULTIPLIER,
    MAX_SIDES,
    Shapes,
    StyleGAN2Options,
    check_image_channels,
    check_mapping,
    check_start,
    check_unconditional,
    config_of,
    fir_taps,
    sides,
    silence,
)
from checkpoints_convert.recognised import Recognised, recognised
from checkpoints_convert.request import Request
from checkpoints_convert.table import (
    Conversion,
    Ignorable,
    Rule,
    conv,
    conv1x1,
    convert,
    linear,
)
from fpjax.models import stylegan2

KIND = "StyleGAN2, GenForce"

TRANSFORMS = {
    "const": lambda x: np.transpose(x[0], (1, 2, 0)),
    "turned_kernel": lambda x: np.transpose(x, (2, 3, 1, 0))[::-1, ::-1],
    "scalar": lambda x: x.reshape(()),
    "noise_map": lambda x: x[0, 0],
    "style_bias": lambda x: x + np.asarray(1, x.dtype),
}

IGNORABLE = [Ignorable(r".*\.kernel", "FIR filter, derived from the config")]


def from_names(found: Found, request: Request) -> Recognised | None:
    """A generator's state dict, alone or below `generator_smooth` and `generator`."""
    here = at(found, request, "synthesis.early_layer.const", "synthesis.layer0.style.weight")
    if here is None:
        return None
    options = request.read(KIND, StyleGAN2Options, weights=here.weighted)
    check_alone(here)
    check_averages(here, request)
    conversion = convert_generator(here.tensors, options.mapping_lr_multiplier)
    return recognised(KIND, here, conversion, here.note)


def rules(config: stylegan2.StyleGAN2Config) -> list[Rule]:
    """The rename table of a generator of this architecture: layers are numbered in one row."""
    table = [
        *linear(r"mapping\.dense(\d+)", r"mapping/fc\1"),
        Rule(r"truncation\.w_avg", "mapping/w_avg"),
        Rule(r"synthesis\.early_layer\.const", "synthesis/b4/const", "const"),
    ]
    for index, side in enumerate(config.block_resolutions):
        block = f"synthesis/b{side}"
        table += _modulated(rf"synthesis\.output{index}", f"{block}/torgb")
        table += conv1x1(rf"synthesis\.output{index}", f"{block}/torgb")
        for number, name in ((2 * index - 1, "conv0"), (2 * index, "conv1")):
            if number < 0:
                continue
            source, target = rf"synthesis\.layer{number}", f"{block}/{name}"
            if name == "conv0":
                table.append(Rule(rf"{source}\.weight", f"{target}/weight", "turned_kernel"))
                table.append(Rule(rf"{source}\.bias", f"{target}/bias"))
            else:
                table += conv(source, target)
            table += _modulated(source, target)
            strength = f"{target}/noise_strength"
            table.append(Rule(rf"{source}\.noise_strength", strength, "scalar"))
            table.append(Rule(rf"{source}\.noise", f"{target}/noise_const", "noise_map"))
    return table


def _modulated(source: str, target: str) -> list[Rule]:
    return [
        Rule(rf"{source}\.style\.weight", f"{target}/affine/weight", "transpose"),
        Rule(rf"{source}\.style\.bias", f"{target}/affine/bias", "style_bias"),
    ]


def infer_config(
    tensors: Mapping[str, Any], mapping_lr_multiplier: float = MAPPING_LR_MULTIPLIER
) -> stylegan2.StyleGAN2Config:
    """Reads the architecture from names and shapes.

    Raises:
      ConversionError: for a network that fpjax does not have, or if a tensor is missing.
    """
    shape = Shapes(tensors, "GenForce StyleGAN2 generator")
    check_unconditional(tensors, "mapping.label_weight")
    check_start(*shape("synthesis.early_layer.const", 4)[2:])
    check_image_channels(shape("synthesis.output0.weight", 4)[0])
    channels = [(4, shape("synthesis.layer0.weight", 4)[0])]
    for i in range(1, MAX_SIDES):
        if f"synthesis.layer{2 * i}.weight" in tensors:
            channels.append((4 * 2**i, shape(f"synthesis.layer{2 * i}.weight", 4)[0]))
    w_dim = shape("synthesis.layer0.style.weight", 2)[1]
    layers = []
    while f"mapping.dense{len(layers)}.weight" in tensors and len(layers) <= MAX_DEPTH:
        outputs, inputs = shape(f"mapping.dense{len(layers)}.weight", 2)
        layers.append((inputs, outputs))
    return config_of(
        resolution=channels[-1][0],
        z_dim=check_mapping(layers, w_dim),
        w_dim=w_dim,
        num_mapping_layers=len(layers),
        mapping_lr_multiplier=mapping_lr_multiplier,
        channels=tuple(channels),
        fir=fir_taps([tensor for name, tensor in tensors.items() if name.endswith(".kernel")]),
    )


def convert_generator(
    tensors: Mapping[str, Any], mapping_lr_multiplier: float | None = None
) -> Conversion:
    """Plans the conversion of a generator's state dict.

    Args:
      tensors: name -> array, prefixes removed.
      mapping_lr_multiplier: of the mapping network, which no weight shows; None is 0.01.

    Returns:
      The `Conversion` to an fpjax StyleGAN2.

    Raises:
      ConversionError: listing what is unmapped, unfilled or misshapen.
    """
    config = infer_config(tensors, mapping_lr_multiplier or MAPPING_LR_MULTIPLIER)
    tensors, notes = dict(tensors), []
    if mapping_lr_multiplier is None:
        notes.append(
            f"mapping learning-rate multiplier {config.mapping_lr_multiplier} is assumed: no "
            "tensor tells it"
        )
    layers = {
        str(i): (
            f"synthesis.layer{i}.noise_strength",
            f"synthesis.layer{i}.noise",
            (1, 1, side, side),
        )
        for i, side in enumerate(sides(config))
    }
    notes += silence(tensors, layers)
    shapes = stylegan2.param_shapes(config)
    plan = convert(tensors, rules(config), IGNORABLE, shapes, TRANSFORMS)
    return Conversion("stylegan2", config, plan, tuple(notes))
