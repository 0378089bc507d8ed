"""Avatars drawn from seeds with DiceBear styles, and rasterised at any small size.

Needs the extra `fpjax[data]` (packages dicebear-core, dicebear-styles and resvg-py). The same seed
and package versions give the same picture on every machine.
"""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path

import numpy as np

from fpjax.io.images import save_image

RENDER_RESOLUTION = 128
"""Side at which the vector drawing is rasterised before it is box-filtered down."""

FOREIGN_STYLES = (("open-peeps", 7), ("lorelei", 3), ("notionists", 3), ("pixel-art", 3))
"""DiceBear styles, all CC0, of the pictures that the demo shows as not of a bundled generator."""


@functools.cache
def _style(name: str):
    try:
        from importlib.resources import files

        import dicebear
        import resvg_py  # noqa: F401

        definition = files("dicebear_styles").joinpath(f"{name}.json").read_text("utf-8")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"drawing avatars needs the package {error.name}: pip install 'fpjax[data]'"
        ) from error
    except FileNotFoundError as error:
        raise ValueError(f"dicebear-styles has no style named {name!r}") from error
    return dicebear.Style(json.loads(definition))


def box_downsample(image: np.ndarray, resolution: int) -> np.ndarray:
    """Averages non-overlapping squares of (H, H, 3) uint8 pixels down to (resolution, ..., 3).

    >>> box_downsample(np.full((8, 8, 3), 7, np.uint8), 2).shape
    (2, 2, 3)
    """
    side = image.shape[0]
    if side % resolution:
        raise ValueError(f"cannot box-filter {side} px to {resolution} px: not a whole factor")
    factor = side // resolution
    blocks = image.reshape(resolution, factor, resolution, factor, 3).astype(np.float64)
    return np.rint(blocks.mean(axis=(1, 3))).astype(np.uint8)


def render_avatar(seed: str, resolution: int = 32, style: str = "open-peeps") -> np.ndarray:
    """Draws the avatar of a seed on a plain white background.

    Args:
      seed: any text; it decides every feature of the face.
      resolution: side in pixels, a divisor of 128.
      style: name of a style definition in the package dicebear-styles.

    Returns:
      (resolution, resolution, 3) uint8.

    Raises:
      ModuleNotFoundError: without the extra `fpjax[data]`.
      ValueError: for an unknown style or a resolution that does not divide 128.
    """
    import dicebear
    import resvg_py
    from PIL import Image

    options = {"seed": seed, "size": RENDER_RESOLUTION, "backgroundColor": ["ffffff"]}
    avatar = dicebear.Avatar(_style(style), options)
    png = resvg_py.svg_to_bytes(svg_string=avatar.to_string())
    drawn = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    canvas = Image.new("RGBA", drawn.size, "white")
    canvas.alpha_composite(drawn)
    return box_downsample(np.asarray(canvas.convert("RGB")), resolution)


def save_foreign_avatars(folder: Path, resolution: int) -> None:
    """Writes a few real avatars of each of `FOREIGN_STYLES` to a folder, as PNG files."""
    for style, count in FOREIGN_STYLES:
        for i in range(count):
            save_image(folder / f"{style}-{i}.png", render_avatar(f"test-{i}", resolution, style))
