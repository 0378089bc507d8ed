"""What all layouts of StyleGAN2 share: their options, and the shapes that fpjax has.

fpjax's generator maps z to w, starts from 4 x 4, is square, has skip connections and makes RGB.
Files of another kind are told so here, in one line each.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from checkpoints_convert.describe import describe
from checkpoints_convert.readers import Checkpoint
from checkpoints_convert.table import ConversionError, real_numbers
from fpjax.models import stylegan2
from fpjax.models.layers import MAX_DEPTH

MAPPING_LR_MULTIPLIER = 0.01
MAX_SIDES = 9  # 4 to 1024 pixels
FIR = (1.0, 3.0, 3.0, 1.0)


@dataclasses.dataclass(frozen=True)
class StyleGAN2Options:
    """What no weight of a StyleGAN2 shows; None takes what the file says, else the published.

    Attributes:
        mapping_lr_multiplier: learning-rate multiplier of the mapping network; published ones
            have 0.01.
    """

    mapping_lr_multiplier: float | None = None


ARGUMENTS = "stylegan2_arguments"
"""Entry of a safetensors file's metadata: constructor arguments of the publisher's generator, JSON
text. Files that fpjax writes in a publisher's names have it."""


class Published(NamedTuple):
    """A generator as a publisher's program has it.

    `arguments` are those of the program's constructor; `notes` are sentences for whoever runs it.
    """

    tensors: dict[str, np.ndarray]
    arguments: dict[str, Any]
    notes: tuple[str, ...]


def stated_arguments(file: Checkpoint) -> dict[str, Any] | None:
    """The constructor arguments that a file states as `ARGUMENTS`; None if it states none.

    Raises:
        ConversionError: if they are not settings by name.
    """
    text = file.metadata.get(ARGUMENTS)
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ConversionError(
            f"{ARGUMENTS} of the file's metadata is {describe(text, 60)}: expected a JSON object"
        )
    return value


class Shapes:
    """Shapes of a file's tensors by name; a name that is not there is an error that says so."""

    def __init__(self, tensors: Mapping[str, Any], what: str):
        self.tensors, self.what = tensors, what

    def __call__(self, name: str, dimensions: int) -> tuple[int, ...]:
        """The shape of a tensor that must have so many dimensions."""
        if name not in self.tensors:
            raise ConversionError(f"tensor {name} is missing: no {self.what}", [f"missing {name}"])
        shape = tuple(self.tensors[name].shape)
        if len(shape) != dimensions:
            raise ConversionError(
                f"tensor {name} has shape {shape}: expected {dimensions} dimensions in a "
                f"{self.what}"
            )
        return shape


def check_start(height: int, width: int) -> None:
    """Refuses a network that starts from another image than 4 x 4."""
    if height != width:
        raise ConversionError(
            f"not square: the network starts from {height} x {width} pixels, and fpjax's StyleGAN2 "
            "makes square images"
        )
    if height != 4:
        raise ConversionError(
            f"the network starts from {height} x {width} pixels: fpjax's StyleGAN2 starts from 4 x "
            "4 and doubles the side"
        )


def check_image_channels(channels: int) -> None:
    """Refuses a network whose images are not RGB."""
    if channels != 3:
        what = {1: " (grey)", 4: " (RGB with alpha)"}.get(channels, "")
        raise ConversionError(
            f"images of {channels} channels{what}: fpjax's StyleGAN2 makes three (RGB)"
        )


def check_mapping(layers: Sequence[tuple[int, int]], w_dim: int, *, z_dim: Any = None) -> int:
    """The length of z, from the (inputs, outputs) of each layer of the mapping network.

    Args:
        layers: in order.
        w_dim: what the synthesis network reads.
        z_dim: what the file says the length of z is; None if it says nothing.

    Raises:
        ConversionError: without a mapping network, or for a conditional one whose class embedding
            an exporter has dropped: it reads z and the embedding, twice as many values.
    """
    if not layers:
        raise ConversionError(
            "a synthesis network without a mapping network, which fpjax needs to draw latents: "
            "save the whole generator"
        )
    if len(layers) > MAX_DEPTH:
        raise ConversionError(
            f"a mapping network of {len(layers)} layers: expected at most {MAX_DEPTH}"
        )
    inputs = layers[0][0]
    if type(z_dim) is int and inputs != z_dim:
        raise ConversionError(
            f"a conditional generator: its mapping network reads {inputs} values, more than the "
            f"{describe(z_dim, 30)} of z that the file states; fpjax has unconditional ones"
        )
    if z_dim is None and inputs == 2 * w_dim:
        raise ConversionError(
            f"the first layer of the mapping network reads {inputs} values, twice the {w_dim} of "
            "w: a conditional generator whose class embedding is not in the file; fpjax has "
            "unconditional ones"
        )
    return inputs


def check_unconditional(names: Mapping[str, Any], *embeddings: str) -> None:
    """Refuses a generator with a class embedding."""
    for name in names:
        if name.startswith(embeddings):
            raise ConversionError(
                f"the generator is conditional ({describe(name, 100)}): fpjax has unconditional "
                "ones"
            )


def fir_taps(filters: Sequence[Any]) -> tuple[float, ...]:
    """The four taps of the resampling filters that a file holds; the published ones without any.

    Raises:
        ConversionError: if they differ, are not separable or have another length.
    """
    found: set[tuple[float, ...]] = set()
    for tensor in filters:
        shape = tuple(n for n in tensor.shape if n != 1)
        if shape not in ((4,), (4, 4)):
            raise ConversionError(
                f"a resampling filter of shape {tuple(tensor.shape)}: fpjax has four taps"
            )
        values = real_numbers(tensor, "a resampling filter").reshape(shape)
        taps = values.sum(axis=0) if values.ndim == 2 else values
        if not np.isfinite(values).all() or not taps[0]:
            raise ConversionError("a resampling filter with a tap of 0, NaN or infinity")
        taps = taps / taps[0]
        whole = np.outer(taps, taps) * values.flat[0] if values.ndim == 2 else values
        if not np.allclose(whole, values, rtol=1e-4):
            raise ConversionError("a resampling filter that is not separable: fpjax has those")
        found.add(tuple(np.round(taps, 5).tolist()))
    if len(found) > 1:
        raise ConversionError("resampling filters that differ by layer: fpjax has one for all")
    return found.pop() if found else FIR


def fir_kernel(config: stylegan2.StyleGAN2Config) -> np.ndarray:
    """The 4 x 4 resampling filter whose taps sum to 1, as both programs keep it, float32.

    >>> float(fir_kernel(stylegan2.StyleGAN2Config(8)).sum())
    1.0
    """
    kernel = np.outer(config.fir, config.fir)
    return (kernel / kernel.sum()).astype(np.float32)


def channel_table(config: stylegan2.StyleGAN2Config) -> dict[int, int]:
    """Channels at each side.

    >>> channel_table(stylegan2.StyleGAN2Config(8, channel_max=64))
    {4: 64, 8: 64}
    """
    return {side: config.num_channels(side) for side in config.block_resolutions}


def silence(
    tensors: dict[str, Any], layers: Mapping[str, tuple[str, str, tuple[int, ...]]]
) -> tuple[str, ...]:
    """Gives layers without noise (`use_noise=False`) a strength of 0 and an empty map, in place.

    Args:
        tensors: those of the network; gets what is missing.
        layers: layer -> (name of its strength, name of its map, shape of the map).

    Returns:
        A sentence that says so, if there are any.
    """
    without = [
        layer
        for layer, (strength, noise, _) in layers.items()
        if strength not in tensors and noise not in tensors
    ]
    for layer in without:
        strength, noise, shape = layers[layer]
        tensors[strength] = np.zeros((), np.float32)
        tensors[noise] = np.zeros(shape, np.float32)
    if not without:
        return ()
    which = "layers have no" if len(without) == len(layers) else f"{len(without)} layers have no"
    return (f"{which} noise (trained with use_noise=False): its strength is 0",)


def sides(config: stylegan2.StyleGAN2Config) -> list[int]:
    """Side of each convolution's output, in order.

    >>> sides(stylegan2.StyleGAN2Config(16))
    [4, 8, 8, 16, 16]
    """
    return [4] + [side for side in config.block_resolutions[1:] for _ in range(2)]


def config_of(**values: Any) -> stylegan2.StyleGAN2Config:
    """The config, or an error that says which value fpjax cannot take."""
    try:
        return stylegan2.StyleGAN2Config(**values)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise ConversionError(f"no StyleGAN2 that fpjax has: {error}") from error
