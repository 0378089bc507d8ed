"""StyleGAN2 in the names of NVIDIA's PyTorch programs (StyleGAN2-ADA, and StyleGAN3's StyleGAN2).

Architecture is read from names and shapes; what no weight can show comes from the attributes that
pickled layers keep, else from the constructor arguments, where the file has either.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from checkpoints_convert.describe import describe
from checkpoints_convert.documents import choice, number, unexpected
from checkpoints_convert.found import Found, at, check_alone, check_averages, choose
from checkpoints_convert.inverse import published
from checkpoints_convert.printable import name as shown_name
from checkpoints_convert.printable import names as shown_names
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
    silence,
    stated_arguments,
)
from checkpoints_convert.readers import (
    Checkpoint,
    Opaque,
    find,
    is_persistent,
    persistent_state_dict,
)
from checkpoints_convert.readers.nvidia import mapping as items_of
from checkpoints_convert.recognised import Recognised, recognised
from checkpoints_convert.request import Request
from checkpoints_convert.table import (
    Conversion,
    ConversionError,
    Ignorable,
    Rule,
    conv,
    conv1x1,
    convert,
    linear,
)
from fpjax.models import stylegan2
from fpjax.models.layers import MAX_DEPTH

TRANSFORMS = {
    "const": lambda x: np.transpose(x, (1, 2, 0)),
    "scalar": lambda x: x.reshape(()),
}

INVERSES = {
    "const": lambda x: np.transpose(x, (2, 0, 1)),
    "scalar": lambda x: x,
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


def from_persistent(file: Checkpoint, request: Request) -> Recognised | None:
    """A generator among the objects of a pickle of these programs."""
    tree = file.tree
    named = {"": tree} if is_persistent(tree) else {}
    for key, node in (items_of(tree) or {}).items():
        if type(key) is str and is_persistent(node):
            named[key] = node
    if not named:
        return None
    kind = "StyleGAN2, NVIDIA PyTorch pickle"
    generators = [name for name in named if not name.upper().startswith(("D", "AUGMENT"))]
    chosen = choose(generators or list(named), request)
    options = request.read(kind, StyleGAN2Options, weights=bool(chosen))
    node, place = named[chosen], shown_name(chosen) or "the object"
    class_name, _, kwargs, tensors = persistent_state_dict(node, limits=file.limits)
    refuse_stylegan3(tensors, place)
    if not looks_like(tensors):
        raise ConversionError(
            f"{place}, of class {describe(class_name, 60)}, is no StyleGAN2 generator"
        )
    settings = {**kwargs}
    for key, stored in stored_settings(node).items():
        # The layers hold the values that were in use; what they do not hold is as stated.
        settings[key] = {**_kwargs(kwargs, key), **stored}
    conversion = convert_generator(tensors, settings, options.mapping_lr_multiplier)
    notes = (f"the weights of {shown_name(chosen)} are used",) if chosen else ()
    if others := [name for name in named if name != chosen]:
        notes += (f"other networks of the file are left out: {shown_names(others)}",)
    origins = {name: (file.path, f"{chosen}.{name}".lstrip(".")) for name in tensors}
    return recognised(kind, Found(file, {}), conversion, notes, (), origins)


def from_names(found: Found, request: Request) -> Recognised | None:
    """A state dict in the names of these programs."""
    refuse_stylegan3(found.all, "the file")
    anchors = ("synthesis.b4.const", "synthesis.b4.conv1.affine.weight")
    here = at(found, request, *anchors)
    if here is None:
        return None
    kind = "StyleGAN2, NVIDIA PyTorch state dict"
    options = request.read(kind, StyleGAN2Options, weights=here.weighted)
    check_alone(here)
    check_averages(here, request)
    stated = stated_arguments(found.file)
    conversion = convert_generator(here.tensors, stated, options.mapping_lr_multiplier)
    return recognised(kind, here, conversion, here.note)


def looks_like(tensors: Mapping[str, Any]) -> bool:
    """Whether these are the names of these programs' StyleGAN2 generator."""
    return "synthesis.b4.const" in tensors and "synthesis.b4.conv1.affine.weight" in tensors


def refuse_stylegan3(names: Iterable[str], place: str) -> None:
    """Refuses the names of a StyleGAN3 generator, another architecture in the same pickles.

    >>> refuse_stylegan3(["synthesis.L0_36_512.weight"], "G_ema")
    Traceback (most recent call last):
    ...
    checkpoints_convert.table.ConversionError: G_ema is a StyleGAN3 generator: fpjax has ...
    """
    if any(re.search(r"synthesis\.(input\.|L\d+_\d+_\d+\.)", name) for name in names):
        raise ConversionError(
            f"{place} is a StyleGAN3 generator: fpjax has StyleGAN2, whose files of the same "
            "program convert"
        )


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
        if "architecture" in state:
            choice({"synthesis architecture": state["architecture"]}, *_SKELETON)
        if "conv_clamp" in state:
            settings["synthesis_kwargs"] = {"conv_clamp": state["conv_clamp"]}
            choice(state, "activation", ("lrelu",))
        last = path.rpartition("._modules.")[2]
        if re.fullmatch(r"fc\d+|embed", last):
            what = "mapping network's activation" if last != "embed" else "embed's activation"
            wanted = ("lrelu",) if last != "embed" else ("linear",)
            choice({what: state.get("activation", wanted[0])}, what, wanted)
            if "bias_gain" in state:
                gain = number(state, "bias_gain")
                if settings.setdefault("mapping_kwargs", {"lr_multiplier": gain}) != {
                    "lr_multiplier": gain
                }:
                    raise ConversionError(
                        "learning-rate multipliers that differ in the mapping network: fpjax has "
                        "one for all its layers"
                    )
        elif last == "affine":
            what = "activation of the style's affine layer"
            choice({what: state.get("activation", "linear")}, what, ("linear",))
    return settings


_SKELETON = ("synthesis architecture", ("skip",))


def infer_config(
    tensors: Mapping[str, Any],
    init_kwargs: Mapping[str, Any] | None = None,
    mapping_lr_multiplier: float | None = None,
) -> stylegan2.StyleGAN2Config:
    """Reads the architecture from names and shapes, and what they cannot show from `init_kwargs`.

    Raises:
      ConversionError: for a network that fpjax does not have (conditional, not square, not RGB,
        another activation), or if a tensor that shows it is missing.
    """
    shape = Shapes(tensors, "NVIDIA StyleGAN2 generator")
    stated = init_kwargs or {}
    synthesis_kwargs = _kwargs(stated, "synthesis_kwargs")
    mapping_kwargs = _kwargs(stated, "mapping_kwargs")
    check_unconditional(tensors, "mapping.embed.")
    classes = stated.get("c_dim")
    if classes not in (None, 0):
        raise ConversionError(
            f"the generator is conditional (c_dim = {describe(classes, 40)}): fpjax has "
            "unconditional ones"
        )
    for kwargs in (stated, synthesis_kwargs):
        choice({"synthesis architecture": kwargs.get("architecture", "skip")}, *_SKELETON)
        choice(kwargs, "activation", ("lrelu",))
    choice(mapping_kwargs, "activation", ("lrelu",), " in its mapping network")
    check_start(*shape("synthesis.b4.const", 3)[1:])
    check_image_channels(shape("synthesis.b4.torgb.weight", 4)[0])
    sides = [2**i for i in range(2, 2 + MAX_SIDES) if f"synthesis.b{2**i}.conv1.weight" in tensors]
    channels = tuple((side, shape(f"synthesis.b{side}.conv1.weight", 4)[0]) for side in sides)
    layers = []
    while f"mapping.fc{len(layers)}.weight" in tensors and len(layers) <= MAX_DEPTH:
        outputs, inputs = shape(f"mapping.fc{len(layers)}.weight", 2)
        layers.append((inputs, outputs))
    w_dim = shape("synthesis.b4.conv1.affine.weight", 2)[1]
    if mapping_lr_multiplier is None:
        mapping_lr_multiplier = number(mapping_kwargs, "lr_multiplier", MAPPING_LR_MULTIPLIER)
    outer = number(stated, "conv_clamp")
    clamp = number(synthesis_kwargs, "conv_clamp") if "conv_clamp" in synthesis_kwargs else outer
    return config_of(
        resolution=max(sides, default=0),
        z_dim=check_mapping(layers, w_dim, z_dim=stated.get("z_dim")),
        w_dim=w_dim,
        num_mapping_layers=len(layers),
        mapping_lr_multiplier=mapping_lr_multiplier,
        channels=channels,
        fir=fir_taps([t for name, t in tensors.items() if name.endswith(".resample_filter")]),
        conv_clamp=clamp,
    )


def _kwargs(stated: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    kwargs = stated.get(name)
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise unexpected(name, kwargs, "settings by name")
    return kwargs or {}


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
    tensors, notes = dict(tensors), []
    if init_kwargs is None:
        notes.append(
            "constructor arguments are not in the file: mapping learning-rate multiplier "
            f"{config.mapping_lr_multiplier} and no activation clamp are assumed"
        )
    layers = {}
    for side in config.block_resolutions:
        for name in ("conv0", "conv1")[side == 4 :]:
            layer = f"synthesis.b{side}.{name}"
            layers[layer] = (f"{layer}.noise_strength", f"{layer}.noise_const", (side, side))
    notes += silence(tensors, layers)
    shapes = stylegan2.param_shapes(config)
    plan = convert(tensors, RULES, IGNORABLE, shapes, TRANSFORMS)
    return Conversion("stylegan2", config, plan, tuple(notes))


def export_generator(config: stylegan2.StyleGAN2Config, params: Mapping[str, Any]) -> Published:
    """A generator as the state dict of stylegan2-ada-pytorch's, with its constructor's arguments.

    Args:
      config: the architecture.
      params: its parameter tree.
    """
    tensors = published(params, RULES, TRANSFORMS, INVERSES, IGNORABLE)
    kernel = fir_kernel(config)
    for side in config.block_resolutions:
        for name in ("", "conv0.", "conv1."):
            if side > 4 or name != "conv0.":
                tensors[f"synthesis.b{side}.{name}resample_filter"] = kernel
    table = channel_table(config)
    # If any base gives this table, the least that no side has too many channels for does.
    base, widest = max(side * count for side, count in table.items()), max(table.values())
    arguments = {
        "z_dim": config.z_dim,
        "c_dim": 0,
        "w_dim": config.w_dim,
        "img_resolution": config.resolution,
        "img_channels": 3,
        "mapping_kwargs": {
            "num_layers": config.num_mapping_layers,
            "lr_multiplier": config.mapping_lr_multiplier,
        },
        "synthesis_kwargs": {
            "channel_base": base,
            "channel_max": widest,
            "num_fp16_res": 0,
            "conv_clamp": config.conv_clamp,
            "resample_filter": list(config.fir),
        },
    }
    notes = ()
    if any(min(base // side, widest) != count for side, count in table.items()):
        notes = (f"in that program's SynthesisNetwork, channels_dict must be {table}",)
    return Published(tensors, arguments, notes)
