"""StyleGAN2 in the names of NVIDIA's PyTorch programs (StyleGAN2-ADA, and StyleGAN3's StyleGAN2).

Architecture is read from names and shapes; what no weight can show comes from the attributes that
pickled layers keep, else from the constructor arguments, where the file has either.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from checkpoints_convert.mappings.table import (
    Conversion,
    ConversionError,
    Ignorable,
    Rule,
    as_numpy,
    conv,
    conv1x1,
    convert,
    linear,
)
from checkpoints_convert.readers import Opaque, find, is_persistent
from checkpoints_convert.readers.nvidia import mapping as items_of
from fpjax.models import stylegan2

MAPPING_LR_MULTIPLIER = 0.01

TRANSFORMS = {
    "const": lambda x: np.transpose(x, (1, 2, 0)),
    "scalar": lambda x: x.reshape(()),
}

RULES = [
    *linear(r"mapping\.(fc\d+)", r"mapping/\1"),
    Rule(r"mapping\.w_avg", "mapping/w_avg"),
    Rule(r"synthesis\.b4\.const", "synthesis/b4/const", "const"),
    *conv(r"synthesis\.(b\d+)\.(conv\d)", r"synthesis/\1/\2"),
    *linear(r"synthesis\.(b\d+)\.(conv\d|torgb)\.affine", r"synthesis/\1/\2/affine"),
    Rule(r"synthesis\.(b\d+)\.(conv\d)\.noise_const", r"synthesis/\1/\2/noise_const"),
    Rule(
        r"synthesis\.(b\d+)\.(conv\d)\.noise_strength",
        r"synthesis/\1/\2/noise_strength",
        "scalar",
    ),
    *conv1x1(r"synthesis\.(b\d+)\.torgb", r"synthesis/\1/torgb"),
]

IGNORABLE = [
    Ignorable(r".*\.resample_filter", "FIR filter, derived from the config"),
]


def looks_like(tensors: Mapping[str, Any]) -> bool:
    """Whether these are the names of these programs' StyleGAN2 generator."""
    return "synthesis.b4.const" in tensors and "synthesis.b4.conv1.affine.weight" in tensors


def is_stylegan3(names: Iterable[str]) -> bool:
    """Whether these are names of a StyleGAN3 generator, another architecture in the same pickles.

    >>> is_stylegan3(["synthesis.input.weight", "synthesis.L0_36_512.weight"])
    True
    """
    return any(re.search(r"synthesis\.(input\.|L\d+_\d+_\d+\.)", name) for name in names)


def stored_settings(generator: Opaque) -> dict[str, Any]:
    """What a pickled generator's layers say of themselves, in the form of constructor arguments.

    Defaults differ between the programs that wrote such files (the activation clamp for one), and
    the layers hold the values that were in use.

    Raises:
      ConversionError: for another skeleton than skip connections, or another activation.
    """
    settings: dict[str, Any] = {}
    for path, node in find(generator, is_persistent):
        state = items_of((items_of(node.args[0]) or {}).get("state")) if node.args else None
        state = state or {}
        if state.get("architecture", "skip") != "skip":
            raise ConversionError(
                f"synthesis architecture {state['architecture']!r}: fpjax has 'skip' alone"
            )
        if "conv_clamp" in state:
            settings["synthesis_kwargs"] = {"conv_clamp": state["conv_clamp"]}
            if state.get("activation", "lrelu") != "lrelu":
                raise ConversionError(
                    f"activation {state['activation']!r}: fpjax has 'lrelu' alone"
                )
        if path.endswith("._modules.fc0") and "bias_gain" in state:
            settings["mapping_kwargs"] = {"lr_multiplier": state["bias_gain"]}
    return settings


def infer_config(
    tensors: Mapping[str, Any],
    init_kwargs: Mapping[str, Any] | None = None,
    mapping_lr_multiplier: float | None = None,
) -> stylegan2.StyleGAN2Config:
    """Reads the architecture from names and shapes, and what they cannot show from `init_kwargs`.

    Raises:
      ConversionError: for a conditional generator, or if a tensor that shows it is missing.
    """

    def shape(name):
        if name not in tensors:
            raise ConversionError(f"tensor {name} is missing: not an NVIDIA StyleGAN2 generator")
        return tuple(tensors[name].shape)

    if any(name.startswith("mapping.embed.") for name in tensors):
        raise ConversionError("the generator is conditional (mapping.embed): not supported")
    sides = [2**i for i in range(2, 11) if f"synthesis.b{2**i}.conv1.weight" in tensors]
    channels = tuple((side, shape(f"synthesis.b{side}.conv1.weight")[0]) for side in sides)
    depth = 0
    while f"mapping.fc{depth}.weight" in tensors:
        depth += 1
    w_dim = shape("synthesis.b4.conv1.affine.weight")[1]
    fir = (1.0, 3.0, 3.0, 1.0)
    filters = [name for name in tensors if name.endswith(".resample_filter")]
    if filters:
        taps = as_numpy(tensors[filters[0]]).astype(np.float64)
        taps = taps.sum(axis=0) if taps.ndim == 2 else taps
        fir = tuple(float(t) for t in taps / taps[0])
    synthesis_kwargs = dict((init_kwargs or {}).get("synthesis_kwargs") or {})
    mapping_kwargs = dict((init_kwargs or {}).get("mapping_kwargs") or {})
    if mapping_lr_multiplier is None:
        mapping_lr_multiplier = mapping_kwargs.get("lr_multiplier", MAPPING_LR_MULTIPLIER)
    clamp = synthesis_kwargs.get("conv_clamp", (init_kwargs or {}).get("conv_clamp"))
    return stylegan2.StyleGAN2Config(
        resolution=max(sides, default=0),
        z_dim=shape("mapping.fc0.weight")[1] if depth else w_dim,
        w_dim=w_dim,
        num_mapping_layers=depth,
        mapping_lr_multiplier=float(mapping_lr_multiplier),
        channels=channels,
        fir=fir,
        conv_clamp=None if clamp is None else float(clamp),
    )


def convert_generator(
    tensors: Mapping[str, Any],
    init_kwargs: Mapping[str, Any] | None = None,
    mapping_lr_multiplier: float | None = None,
) -> Conversion:
    """Plans the conversion of a generator's state dict.

    Args:
      tensors: the state dict of `G_ema`, name -> array.
      init_kwargs: the constructor arguments stored in the pickle, where there are any.
      mapping_lr_multiplier: of the mapping network, over what the arguments say.

    Returns:
      The `Conversion` to an fpjax StyleGAN2.

    Raises:
      ConversionError: listing what is unmapped, unfilled or misshapen.
    """
    config = infer_config(tensors, init_kwargs, mapping_lr_multiplier)
    notes = []
    if init_kwargs is None:
        notes.append(
            "constructor arguments are not in the file: mapping learning-rate multiplier "
            f"{config.mapping_lr_multiplier} and no activation clamp are assumed"
        )
    shapes = stylegan2.param_shapes(config)
    plan = convert(tensors, RULES, IGNORABLE, shapes, TRANSFORMS)
    return Conversion("stylegan2", config, plan, tuple(notes))
