"""StyleGAN2 in the names of BasicSR (whose files GFPGAN starts from): rosinality's layers, renamed.

GFPGAN itself is a restoration network around such a generator and is refused as a larger one, and
the generator of its "clean" version resamples by interpolation, which is another network.
"""

from __future__ import annotations

from checkpoints_convert.found import Found, at
from checkpoints_convert.publishers.rosinality import Names, from_layout
from checkpoints_convert.recognised import Recognised
from checkpoints_convert.request import Request
from checkpoints_convert.table import ConversionError

NAMES = Names(
    mapping="style_mlp",
    const="constant_input.weight",
    first="style_conv1",
    convs="style_convs",
    conv="modulated_conv",
    strength="weight",
    noise="noises.noise",
)


def from_names(found: Found, request: Request) -> Recognised | None:
    """A generator's state dict, alone or below `params_ema` and `params`."""
    clean = ("style_conv1.modulated_conv.weight", "style_conv1.bias", "constant_input.weight")
    if at(found, request, *clean) is not None:
        raise ConversionError(
            "a 'clean' StyleGAN2 of GFPGAN, which resamples by bilinear interpolation: fpjax has "
            "the published network, which resamples by filters"
        )
    return from_layout(found, request, NAMES, "StyleGAN2, BasicSR")
