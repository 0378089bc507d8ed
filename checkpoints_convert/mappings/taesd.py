"""TAESD-family state dicts (madebyollin/taesd: taesd, taesdxl, taesd3, taef1, taef2) to fpjax.

Encoder and decoder are published as two files, each a plain sequence of layers: a name is the
layer's position. Architectures are inferred from which positions hold residual blocks.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any

from checkpoints_convert.mappings.table import (
    Conversion,
    ConversionError,
    Rule,
    conv,
    conv1x1,
    convert,
    norm,
)
from fpjax.models import autoencoder_tiny
from fpjax.models.autoencoder_tiny import AutoencoderTinyConfig


def detect(names: Iterable[str]) -> str | None:
    """Which half a state dict's names are: "decoder", "encoder" or, where neither, None.

    >>> detect(["1.weight", "3.conv.0.weight"])
    'decoder'
    """
    names = set(names)
    if {"1.weight", "3.conv.0.weight"} <= names:
        return "decoder"
    return "encoder" if {"0.weight", "1.conv.0.weight"} <= names else None


def convert_taesd(
    decoder: Mapping[str, Any],
    encoder: Mapping[str, Any] | None = None,
    *,
    resolution: int = 256,
) -> Conversion:
    """Maps the state dicts of a decoder file and, where there is one, its encoder file.

    Args:
      decoder: name -> array of `*_decoder.pth`.
      encoder: name -> array of `*_encoder.pth`.
      resolution: nominal side of an image in pixels, which no tensor tells.

    Returns:
      The `Conversion`; sources are named with "decoder." or "encoder." before their own names.

    Raises:
      ConversionError: if the tensors are not those of such a model.

    >>> convert_taesd({})
    Traceback (most recent call last):
    ...
    checkpoints_convert.mappings.table.ConversionError: not a TAESD decoder: ...
    """
    config = infer_config(decoder, encoder, resolution=resolution)
    tensors = {f"decoder.{name}": tensor for name, tensor in decoder.items()}
    tensors |= {f"encoder.{name}": tensor for name, tensor in (encoder or {}).items()}
    shapes = autoencoder_tiny.param_shapes(config)
    # The decoder's first layer is the clamp, which has no parameters.
    plan = convert(tensors, layer_rules(config, r"encoder\.", r"decoder\.", 1), [], shapes)
    notes = [f"resolution {resolution} is nominal: no tensor tells it"]
    if encoder is None:
        notes.append("no encoder was given: this model decodes only")
    return Conversion("autoencoder_tiny", config, plan, tuple(notes))


def infer_config(
    decoder: Mapping[str, Any],
    encoder: Mapping[str, Any] | None = None,
    *,
    resolution: int = 256,
) -> AutoencoderTinyConfig:
    """The architecture that the names and shapes tell.

    >>> infer_config({"1.weight": None})
    Traceback (most recent call last):
    ...
    checkpoints_convert.mappings.table.ConversionError: not a TAESD decoder: ...
    """
    for half, tensors in (("decoder", decoder), ("encoder", encoder)):
        if tensors is not None and detect(tensors) != half:
            found = f", it is an {detect(tensors)}" if detect(tensors) else ""
            raise ConversionError(
                f"not a TAESD {half}: its layers are not in that half's places{found}"
            )
    last = max(int(name.split(".")[0]) for name in decoder)
    config = AutoencoderTinyConfig(
        latent_channels=decoder["1.weight"].shape[1],
        channels=decoder["1.weight"].shape[0],
        decoder_blocks=_runs(decoder),
        midblock_norm="3.pool.0.weight" in decoder,
        out_channels=decoder[f"{last}.weight"].shape[0],
        resolution=resolution,
        has_encoder=False,
    )
    if encoder is None:
        return config
    return dataclasses.replace(
        config,
        encoder_blocks=_runs(encoder),
        in_channels=encoder["0.weight"].shape[1],
        has_encoder=True,
    )


def layer_rules(
    config: AutoencoderTinyConfig, encoder: str, decoder: str, decoder_start: int
) -> list[Rule]:
    r"""The rename table: positions in a sequence of layers to stages and blocks.

    Args:
      config: the architecture.
      encoder, decoder: patterns of what comes before a layer's position in each half.
      decoder_start: position of the decoder's first convolution; the encoder's is 0.

    >>> layer_rules(AutoencoderTinyConfig.taesd(), "e", "d", 1)[0]
    Rule(pattern='d1\\.weight', target='decoder/conv_in/weight', transform='oihw_to_hwio')
    """
    # After the first convolution comes its activation, which has no parameters.
    rules, position = conv(f"{decoder}{decoder_start}", "decoder/conv_in"), decoder_start + 2
    for i, count in enumerate(config.decoder_blocks):
        for j in range(count):
            rules += _block(f"{decoder}{position}", f"decoder/stage/{i}/block/{j}")
            position += 1
        if i + 1 < len(config.decoder_blocks):
            # The doubling of the side, without parameters, and its convolution.
            rules += conv(f"{decoder}{position + 1}", f"decoder/stage/{i}/upsample", bias=False)
            position += 2
    rules += conv(f"{decoder}{position}", "decoder/conv_out")
    if not config.has_encoder:
        return rules
    rules, position = rules + conv(f"{encoder}0", "encoder/conv_in"), 1
    for i, count in enumerate(config.encoder_blocks):
        if i > 0:
            rules += conv(f"{encoder}{position}", f"encoder/stage/{i}/downsample", bias=False)
            position += 1
        for j in range(count):
            rules += _block(f"{encoder}{position}", f"encoder/stage/{i}/block/{j}")
            position += 1
    return rules + conv(f"{encoder}{position}", "encoder/conv_out")


def _block(source: str, target: str) -> list[Rule]:
    return [
        *conv(rf"{source}\.conv\.0", f"{target}/conv1"),
        *conv(rf"{source}\.conv\.2", f"{target}/conv2"),
        *conv(rf"{source}\.conv\.4", f"{target}/conv3"),
        *conv1x1(rf"{source}\.pool\.0", f"{target}/pool/expand", bias=False),
        *norm(rf"{source}\.pool\.1", f"{target}/pool/norm"),
        *conv1x1(rf"{source}\.pool\.3", f"{target}/pool/reduce", bias=False),
    ]


def _runs(names: Iterable[str]) -> tuple[int, ...]:
    """Lengths of the runs of consecutive positions that hold a residual block."""
    matches = (re.fullmatch(r"(\d+)\.conv\.0\.weight", name) for name in names)
    places = sorted(int(match[1]) for match in matches if match)
    # Within a run, position minus rank is constant.
    runs = itertools.groupby(enumerate(places), key=lambda ranked: ranked[1] - ranked[0])
    return tuple(len(list(run)) for _, run in runs)
