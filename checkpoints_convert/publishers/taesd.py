"""TAESD-family state dicts (madebyollin/taesd: taesd, taesdxl, taesd3, taef1, taef2) to fpjax.

Encoder and decoder are published as two files, each a plain sequence of layers: a name is the
layer's position. Architectures are inferred from which positions hold residual blocks.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any

from checkpoints_convert.found import (
    Found,
    at,
    check_alone,
    check_averages,
    describe_file,
    tensors_of,
)
from checkpoints_convert.printable import printable
from checkpoints_convert.publishers.compvis_first_stage import shapes_of
from checkpoints_convert.readers import read
from checkpoints_convert.recognised import Recognised, recognised
from checkpoints_convert.request import Request
from checkpoints_convert.table import (
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

KIND = "tiny autoencoder, TAESD family"
DECODER, ENCODER = ("3.conv.0.weight", "1.weight"), ("1.conv.0.weight", "0.weight")


@dataclasses.dataclass(frozen=True)
class TaesdOptions:
    """What no tensor shows.

    Attributes:
        resolution: nominal side of an image in pixels; 256.
    """

    resolution: int | None = None


def from_files(found: Found, request: Request) -> Recognised | None:
    """A decoder, with the encoder if it is given or in the same file."""
    here = at(found, request, *DECODER)
    if here is None:
        if at(found, request, *ENCODER) is not None:
            raise ConversionError(
                "a TAESD encoder: give the decoder as FILE and this with --encoder"
            )
        return None
    options = request.read(KIND, TaesdOptions, files=("encoder",), weights=here.weighted)
    check_alone(here)
    check_averages(here, request)
    origins = {f"decoder.{name}": place for name, place in here.origins.items()}
    other, more = None, ()
    if request.encoder is not None:
        file = read(request.encoder)
        other = at(tensors_of(file), Request(), *ENCODER)
        if other is None:
            raise ConversionError(
                f"{printable(request.encoder)}: no TAESD encoder: {describe_file(file)}"
            )
        more = (other,)
    elif here.prefix.endswith("decoder.") and at(found, Request(), *ENCODER) is not None:
        other = at(found, Request(), *ENCODER)
    if other is not None:
        origins |= {f"encoder.{name}": place for name, place in other.origins.items()}
    encoder = None if other is None else other.tensors
    conversion = convert_taesd(here.tensors, encoder, resolution=options.resolution)
    return recognised(KIND, here, conversion, (), more, origins)


def convert_taesd(
    decoder: Mapping[str, Any],
    encoder: Mapping[str, Any] | None = None,
    *,
    resolution: int | None = None,
) -> Conversion:
    """Maps the state dicts of a decoder file and, where there is one, its encoder file.

    Args:
      decoder: name -> array of `*_decoder.pth`.
      encoder: name -> array of `*_encoder.pth`.
      resolution: nominal side of an image in pixels, which no tensor tells; None is 256.

    Returns:
      The `Conversion`; sources are named with "decoder." or "encoder." before their own names.

    Raises:
      ConversionError: if the tensors are not those of such a model.

    >>> convert_taesd({})
    Traceback (most recent call last):
    ...
    checkpoints_convert.table.ConversionError: not a TAESD decoder: ...
    """
    config = infer_config(decoder, encoder, resolution=resolution)
    tensors = {f"decoder.{name}": tensor for name, tensor in decoder.items()}
    tensors |= {f"encoder.{name}": tensor for name, tensor in (encoder or {}).items()}
    shapes = autoencoder_tiny.param_shapes(config)
    # The decoder's first layer is the clamp, which has no parameters.
    plan = convert(tensors, layer_rules(config, r"encoder\.", r"decoder\.", 1), [], shapes)
    notes = []
    if resolution is None:
        notes.append(f"resolution {config.resolution} is nominal: no tensor tells it")
    if encoder is None:
        notes.append("no encoder was given: this model decodes only")
    return Conversion("autoencoder_tiny", config, plan, tuple(notes))


def infer_config(
    decoder: Mapping[str, Any],
    encoder: Mapping[str, Any] | None = None,
    *,
    resolution: int | None = None,
) -> AutoencoderTinyConfig:
    """The architecture that the names and shapes tell.

    >>> infer_config({"1.weight": None})
    Traceback (most recent call last):
    ...
    checkpoints_convert.table.ConversionError: not a TAESD decoder: ...
    """
    for half, tensors in (("decoder", decoder), ("encoder", encoder)):
        if tensors is not None and _half(tensors) != half:
            found = f", it is an {_half(tensors)}" if _half(tensors) else ""
            raise ConversionError(
                f"not a TAESD {half}: its layers are not in that half's places{found}"
            )
    shape = shapes_of(decoder, "a TAESD decoder")
    outputs, inputs = shape("1.weight", 4)[:2]
    values = {
        "latent_channels": inputs,
        "channels": outputs,
        "decoder_blocks": _runs(decoder),
        "midblock_norm": "3.pool.0.weight" in decoder,
        "out_channels": shape(f"{_last(decoder)}.weight", 4)[0],
        "resolution": resolution or 256,
        "has_encoder": encoder is not None,
    }
    if encoder is not None:
        values["encoder_blocks"] = _runs(encoder)
        values["in_channels"] = shapes_of(encoder, "a TAESD encoder")("0.weight", 4)[1]
    try:
        return AutoencoderTinyConfig(**values)
    except ValueError as error:
        raise ConversionError(f"no tiny autoencoder that fpjax has: {error}") from error


def _half(names: Iterable[str]) -> str | None:
    """Which half a state dict's names are: "decoder", "encoder" or, where neither, None."""
    names = set(names)
    if names.issuperset(DECODER):
        return "decoder"
    return "encoder" if names.issuperset(ENCODER) else None


def _last(names: Iterable[str]) -> int:
    """The last position in the sequence of layers."""
    places = (re.match(r"(\d{1,6})\.", name) for name in names)
    return max((int(place[1]) for place in places if place), default=0)


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
    matches = (re.fullmatch(r"(\d{1,6})\.conv\.0\.weight", name) for name in names)
    places = sorted(int(match[1]) for match in matches if match)
    # Within a run, position minus rank is constant.
    runs = itertools.groupby(enumerate(places), key=lambda ranked: ranked[1] - ranked[0])
    return tuple(len(list(run)) for _, run in runs)
