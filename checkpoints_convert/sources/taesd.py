"""TAESD files: a decoder, and the encoder that belongs to it."""

from __future__ import annotations

from checkpoints_convert.mappings import taesd
from checkpoints_convert.mappings.table import ConversionError
from checkpoints_convert.readers import read
from checkpoints_convert.sources.found import (
    Found,
    Recognised,
    Request,
    at,
    describe,
    recognised,
    tensors_of,
)


def from_files(found: Found, request: Request) -> Recognised | None:
    """A decoder, with the encoder if it is given."""
    here = at(found, "ema", "3.conv.0.weight", "1.weight")
    if here is None:
        if at(found, "ema", "1.conv.0.weight", "0.weight") is not None:
            raise ConversionError(
                "a TAESD encoder: give the decoder as FILE and this with --encoder"
            )
        return None
    tensors = here.tensors
    origins = {f"decoder.{name}": place for name, place in here.origins.items()}
    encoder, more = None, ()
    if request.encoder is not None:
        file = read(request.encoder)
        other = at(Found(file, tensors_of(file)), "ema", "1.conv.0.weight", "0.weight")
        if other is None:
            raise ConversionError(f"{request.encoder}: no TAESD encoder: {describe(file)}")
        encoder, more = other.tensors, (other,)
        origins |= {f"encoder.{name}": place for name, place in other.origins.items()}
    resolution = request.settings.resolution or 256
    conversion = taesd.convert_taesd(tensors, encoder, resolution=resolution)
    return recognised("tiny autoencoder, TAESD family", here, conversion, (), more, origins)
