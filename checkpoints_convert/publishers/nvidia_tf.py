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
from fpjax.models.layers import MAX_DEPTH

from checkpoints_convert.describe import describe
from checkpoints_convert.documents import choice, number, unexpected
from checkpoints_convert.found import Found
from checkpoints_convert.publishers.stylegan2 import (
    FIR,
    MAPPING_LR_MULTIPLIER,
    MAX_SIDES,
    Shapes,
    StyleGAN2Options,
    check_image_channels,
    check_mapping,
    check_start,
    check_unconditional,
    config_of,
    silence,
)
from checkpoints_convert.publishers.stylegan2 import sides as sides_of
from checkpoints_convert.readers import Checkpoint, is_tf_network, tf_network
from checkpoints_convert.recognised import Recognised, recognised
from checkpoints_convert.request import Request
from checkpoints_convert.table import Conversion, ConversionError, Ignorable, Rule, convert
from fpjax.models import stylegan2

TRANSFORMS = {
    "const": lambda x: np.transpose(x[0], (1, 2, 0)),
    "turned_kernel": lambda x: x[::-1, ::-1],
    "kernel_1x1": lambda x: x.reshape(x.shape[2:]),
    "scalar": lambda x: x.reshape(()),
    "noise_map": lambda x: x[0, 0],
    "style_bias": lambda x: x + np.asarray(1, x.dtype),
}

_ONLY = {
    "architecture": ("skip",),
    "nonlinearity": ("lrelu",),
    "mapping_nonlinearity": ("lrelu",),
    "normalize_latents": (True,),
    "label_size": (0,),
}
"""Settings of which fpjax has one value."""

IGNORABLE = [
    Ignorable(r"lod", "level of detail of progressive growing, unused by StyleGAN2"),
]


def from_networks(file: Checkpoint, request: Request) -> Recognised | None:
    """A network of these programs, alone or the trio (G, D, Gs)."""
    tree = file.tree
    alone = is_tf_network(tree)
    if alone:
        node, notes = tree, ()
    elif type(tree) in (tuple, list) and len(tree) == 3 and all(map(is_tf_network, tree)):
        raw = request.weights == "raw"
        node = tree[0 if raw else 2]
        notes = (f"the weights of {'G' if raw else 'Gs'} are used",)
    else:
        return None
    kind = "StyleGAN2, NVIDIA TensorFlow pickle"
    options = request.read(kind, StyleGAN2Options, weights=not alone)
    network = tf_network(node, limits=file.limits)
    variables = variables_of(network)
    settings = settings_of(network)
    conversion = convert_generator(variables, settings, options.mapping_lr_multiplier)
    origins = {name: (file.path, name) for name in variables}
    return recognised(kind, Found(file, {}), conversion, notes, (), origins)


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
                raise ConversionError(f"two variables named {describe(short)} in one network")
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
      ConversionError: for a network that fpjax does not have (conditional, another skeleton or
        activation, the first StyleGAN), or if a variable that shows the architecture is missing.
    """
    settings = settings or {}
    shape = Shapes(variables, "TensorFlow StyleGAN2 generator")
    if any("/StyleMod/" in name for name in variables):
        raise ConversionError("a generator of the first StyleGAN: fpjax has StyleGAN2")
    check_unconditional(variables, "LabelConcat/", "LabelEmbed/")
    for name, only in _ONLY.items():
        choice(settings, name, only)
    check_start(*shape("4x4/Const/const", 4)[2:])
    check_image_channels(shape("4x4/ToRGB/weight", 4)[3])
    sides = [2**i for i in range(3, 2 + MAX_SIDES) if f"{2**i}x{2**i}/Conv1/weight" in variables]
    channels = [(4, shape("4x4/Conv/weight", 4)[3])]
    channels += [(side, shape(f"{side}x{side}/Conv1/weight", 4)[3]) for side in sides]
    layers: list[tuple[int, int]] = []
    while f"Dense{len(layers)}/weight" in variables and len(layers) <= MAX_DEPTH:
        inputs, outputs = shape(f"Dense{len(layers)}/weight", 2)
        layers.append((inputs, outputs))
    w_dim = shape("4x4/Conv/mod_weight", 2)[0]
    return config_of(
        resolution=max(sides, default=4),
        z_dim=check_mapping(layers, w_dim, z_dim=settings.get("latent_size")),
        w_dim=w_dim,
        num_mapping_layers=len(layers),
        mapping_lr_multiplier=mapping_lr_multiplier
        or number(settings, "mapping_lrmul", MAPPING_LR_MULTIPLIER),
        channels=tuple(channels),
        fir=_taps(settings.get("resample_kernel")),
        conv_clamp=number(settings, "conv_clamp"),
    )


def _taps(stated: Any) -> tuple[float, ...]:
    if stated is None:
        return FIR
    listed = type(stated) in (list, tuple) and len(stated) == 4
    if not listed or not all(type(tap) in (int, float) for tap in stated):
        raise unexpected("resample_kernel", stated, "four numbers")
    return tuple(number({"resample_kernel": tap}, "resample_kernel") for tap in stated)


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
    variables, notes = dict(variables), []
    if "mapping_lrmul" not in (settings or {}) and mapping_lr_multiplier is None:
        notes.append(
            f"mapping learning-rate multiplier {config.mapping_lr_multiplier} is assumed: the file "
            "does not state it"
        )
    layers = {}
    for index, side in enumerate(sides_of(config)):
        name = "Conv" if index == 0 else "Conv0_up" if index % 2 else "Conv1"
        strength = f"{side}x{side}/{name}/noise_strength"
        layers[f"{side}x{side}/{name}"] = (strength, f"noise{index}", (1, 1, side, side))
    notes += silence(variables, layers)
    shapes = stylegan2.param_shapes(config)
    plan = convert(variables, rules(config), IGNORABLE, shapes, TRANSFORMS)
    return Conversion("stylegan2", config, plan, tuple(notes))
