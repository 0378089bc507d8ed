"""StyleGAN2 in the variables of NVIDIA's TensorFlow programs (StyleGAN2 and StyleGAN2-ADA).

Variables are named by the layer's side, as in `64x64/Conv0_up/weight`. They differ from the PyTorch
programs' in three ways: dense weights are (inputs, outputs) and kernels HWIO; the kernel of an
upsampling convolution is applied without the flip of a transposed convolution, so it is stored
turned by 180 degrees; and the 1 around which styles are centred is added when the network runs, not
stored in the bias.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from checkpoints_convert.mappings.table import Conversion, ConversionError, Ignorable, Rule, convert
from fpjax.models import stylegan2

MAPPING_LR_MULTIPLIER = 0.01

TRANSFORMS = {
    "const": lambda x: np.transpose(x[0], (1, 2, 0)),
    "turned_kernel": lambda x: x[::-1, ::-1],
    "kernel_1x1": lambda x: x.reshape(x.shape[2:]),
    "scalar": lambda x: x.reshape(()),
    "noise_map": lambda x: x[0, 0],
    "style_bias": lambda x: x + np.asarray(1, x.dtype),
}

_ONLY = {"architecture": "skip", "nonlinearity": "lrelu", "mapping_nonlinearity": "lrelu"}
"""Settings of which fpjax has one value."""

IGNORABLE = [
    Ignorable(r"lod", "level of detail of progressive growing, unused by StyleGAN2"),
]


def variables_of(network: Mapping[str, Any]) -> dict[str, Any]:
    """All variables of a network that `readers.tf_network` gave, those of its components included.

    Names lose the component, `synthesis/` or `mapping/`, whether it was a network of its own or a
    prefix: the layers of the two have different names.

    Raises:
      ConversionError: if two variables get the same name.
    """
    variables: dict[str, Any] = {}
    stack = [network]
    while stack:
        node = stack.pop()
        for name, tensor in node["variables"].items():
            short = re.sub(r"^(?:\w+/)?(?:G_)?(?:synthesis|mapping)/|^Gs?/", "", name)
            if short in variables and short != "lod":  # both halves may keep it
                raise ConversionError(f"two variables named {short} in one network")
            variables[short] = tensor
        stack += node["components"].values()
    return variables


def settings_of(network: Mapping[str, Any]) -> dict[str, Any]:
    """The network's static arguments, those of its components included."""
    settings: dict[str, Any] = {}
    stack = [network]
    while stack:
        node = stack.pop()
        settings = {**node["static_kwargs"], **settings}
        stack += node["components"].values()
    return settings


def rules(config: stylegan2.StyleGAN2Config) -> list[Rule]:
    """The rename table of a generator of this architecture."""
    table = [
        Rule(r"dlatent_avg", "mapping/w_avg"),
        Rule(r"Dense(\d+)/(weight|bias)", r"mapping/fc\1/\2"),
        Rule(r"4x4/Const/const", "synthesis/b4/const", "const"),
    ]
    for index, side in enumerate(config.block_resolutions):
        layer, block = f"{side}x{side}", f"synthesis/b{side}"
        if side == 4:
            convs = [("Conv", "conv1", 0, "identity")]
        else:
            convs = [
                ("Conv0_up", "conv0", 2 * index - 1, "turned_kernel"),
                ("Conv1", "conv1", 2 * index, "identity"),
            ]
        for source, target, noise, kernel in convs:
            table += _modulated(f"{layer}/{source}", f"{block}/{target}", kernel)
            table.append(
                Rule(
                    f"{layer}/{source}/noise_strength", f"{block}/{target}/noise_strength", "scalar"
                )
            )
            table.append(Rule(f"noise{noise}", f"{block}/{target}/noise_const", "noise_map"))
        table += _modulated(f"{layer}/ToRGB", f"{block}/torgb", "kernel_1x1")
    return table


def _modulated(source: str, target: str, kernel: str) -> list[Rule]:
    return [
        Rule(f"{source}/weight", f"{target}/weight", kernel),
        Rule(f"{source}/bias", f"{target}/bias"),
        Rule(f"{source}/mod_weight", f"{target}/affine/weight"),
        Rule(f"{source}/mod_bias", f"{target}/affine/bias", "style_bias"),
    ]


def infer_config(
    variables: Mapping[str, Any],
    settings: Mapping[str, Any] | None = None,
    mapping_lr_multiplier: float | None = None,
) -> stylegan2.StyleGAN2Config:
    """Reads the architecture from names and shapes, and what they cannot show from `settings`.

    Raises:
      ConversionError: for a conditional generator, another skeleton or the first StyleGAN, or if a
        variable that shows the architecture is missing.
    """
    settings = settings or {}

    def shape(name):
        if name not in variables:
            raise ConversionError(
                f"variable {name} is missing: not a TensorFlow StyleGAN2 generator"
            )
        return tuple(variables[name].shape)

    if any("/StyleMod/" in name for name in variables):
        raise ConversionError("a generator of the first StyleGAN: fpjax has StyleGAN2")
    for name in ("LabelConcat/weight", "LabelEmbed/weight"):
        if name in variables:
            raise ConversionError(f"the generator is conditional ({name}): not supported")
    for name, only in _ONLY.items():
        if settings.get(name, only) != only:
            raise ConversionError(f"{name} {settings[name]!r}: fpjax has {only!r} alone")
    sides = [2**i for i in range(3, 11) if f"{2**i}x{2**i}/Conv1/weight" in variables]
    channels = [(4, shape("4x4/Conv/weight")[3])]
    channels += [(side, shape(f"{side}x{side}/Conv1/weight")[3]) for side in sides]
    depth = 0
    while f"Dense{depth}/weight" in variables:
        depth += 1
    w_dim = shape("4x4/Conv/mod_weight")[0]
    taps = settings.get("resample_kernel") or (1.0, 3.0, 3.0, 1.0)
    stated = settings.get("mapping_lrmul") or MAPPING_LR_MULTIPLIER
    clamp = settings.get("conv_clamp")
    return stylegan2.StyleGAN2Config(
        resolution=max(sides, default=4),
        z_dim=shape("Dense0/weight")[0] if depth else w_dim,
        w_dim=w_dim,
        num_mapping_layers=depth,
        mapping_lr_multiplier=float(mapping_lr_multiplier or stated),
        channels=tuple(channels),
        fir=tuple(float(tap) for tap in taps),
        conv_clamp=None if clamp is None else float(clamp),
    )


def convert_generator(
    variables: Mapping[str, Any],
    settings: Mapping[str, Any] | None = None,
    mapping_lr_multiplier: float | None = None,
) -> Conversion:
    """Plans the conversion of a generator's variables.

    Args:
      variables: name -> array, as `variables_of` gives them.
      settings: the network's static arguments, where there are any.
      mapping_lr_multiplier: of the mapping network, over what the arguments say.

    Returns:
      The `Conversion` to an fpjax StyleGAN2.

    Raises:
      ConversionError: listing what is unmapped, unfilled or misshapen.
    """
    config = infer_config(variables, settings, mapping_lr_multiplier)
    notes = []
    if "mapping_lrmul" not in (settings or {}):
        notes.append(
            f"mapping learning-rate multiplier {config.mapping_lr_multiplier} is assumed: the file "
            "does not state it"
        )
    shapes = stylegan2.param_shapes(config)
    plan = convert(variables, rules(config), IGNORABLE, shapes, TRANSFORMS)
    return Conversion("stylegan2", config, plan, tuple(notes))
