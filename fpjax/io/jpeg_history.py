"""Was this picture once a JPEG file, and with which tables? For JPEG re-saved as PNG.

Decompressed pixels give away the steps that their DCT coefficients were rounded to: coefficients
lie on multiples of the step, up to the rounding of pixels. For each frequency, the likelihood of
every step is compared with that of no step at all, after Fan & de Queiroz, "Identification of
bitmap compression history: JPEG detection and quantizer estimation", IEEE Trans. Image Processing
12 (2003). Where a frequency is zero in all blocks nothing is known about its step from itself;
tables of libjpeg's family are found as a whole, which settles those too.

What cannot be known: steps of one (quality 99 and above) are hidden by the rounding of pixels;
blocks with saturated pixels were clipped and are left out; a picture that was resized or filtered
after compression has no grid. The answer then is "none". Of two compressions the last one is found,
unless it was much finer than the first (50, then 95): then the first, whose noise is the larger.
"""

from __future__ import annotations

import dataclasses
import enum
import math

import numpy as np

from fpjax.io.jpeg import standard_tables
from fpjax.io.jpeg_dct import YCBCR_FROM_RGB, JpegError, JpegLayout, dct_matrix, triangle_upsampling

# Rounding of luma and chroma to whole levels, 1 / sqrt(12), spread over all frequencies by an
# orthonormal DCT. Symmetric blocks repeat their rounding errors, which then add up in some
# frequencies: (share, standard deviation).
_NOISE = ((0.9, 0.3), (0.1, 0.7))
# Share of coefficients that the model need not explain.
_OUTLIERS = 0.01
# Scale of the sharpest Laplacian: one as narrow as the noise would pass for coefficients that were
# all rounded to zero.
_SHARPEST = 0.4
# Nats by which a step must be likelier than any other to be called known. Where rounding errors add
# up as described above, wrong steps have led by up to 30 in a few frequencies of 128-px portraits.
_MARGIN = 20.0
_MAX_BLOCKS = 1024
_QUALITIES = np.arange(1, 101)


class JpegStatus(enum.Enum):
    """What `estimate_jpeg_tables` found out."""

    STANDARD = "compressed with libjpeg's tables at the stated quality"
    OTHER = "compressed with other tables; steps that show are stated, the others are 0"
    NONE = "no sign of JPEG compression"


@dataclasses.dataclass(frozen=True, eq=False)
class JpegHistory:
    """An estimate of how a picture was compressed.

    Attributes:
      status: what is known.
      layout: size and sampling of the file, if the grid of blocks starts at the first pixel.
      tables: int32, (components, 8, 8), 0 where a step is unknown; None without compression.
      quality: the likeliest quality of libjpeg's tables; None unless `status` is STANDARD.
      quality_range: (lowest, highest) quality that is less than 20 times less likely.
      grid: (rows, columns), 0 to 7: the first pixel of the first whole block.
      twice: whether coefficients plainly skip multiples of the steps, as after an earlier
        compression with larger ones. False means nothing.
      evidence: log-likelihood (nats) of the tables less that of no compression.
      sampling_evidence: nats by which the sampling of `layout` is likelier than the next; below
        about 20 it is uncertain (few blocks with chroma; of equals the usual 4:2:0 is stated), and
        infinite where nothing else is possible.
    """

    status: JpegStatus
    layout: JpegLayout | None = None
    tables: np.ndarray | None = None
    quality: int | None = None
    quality_range: tuple[int, int] | None = None
    grid: tuple[int, int] = (0, 0)
    twice: bool = False
    evidence: float = 0.0
    sampling_evidence: float = math.inf


def estimate_jpeg_tables(
    pixels, *, min_evidence: float = 30.0, search_grid: bool = False
) -> JpegHistory:
    """Estimates the quantisation tables that decompressed pixels went through.

    Args:
      pixels: uint8, (H, W, C), C = 1 or 3, as decompressed by libjpeg's usual decoder. Grey pixels
        in three channels count as grey.
      min_evidence: nats below which the answer is "none".
      search_grid: whether to look at all 64 places of the grid (a cropped picture), not only at
        the first pixel. Takes 64 times as long. Sampling is not estimated for a shifted grid.

    Returns:
      The estimate. `status` says what it is worth; nothing is guessed.

    Raises:
      JpegError: for pixels of another dtype or shape.

    >>> flat = np.full((32, 32, 3), 90, np.uint8)
    >>> estimate_jpeg_tables(flat).status.name
    'NONE'
    """
    pixels = np.asarray(pixels)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3):
        raise JpegError(f"pixels are {pixels.dtype} {pixels.shape}, expected uint8 (H, W, 1 or 3)")
    if pixels.shape[2] == 3 and (pixels == pixels[..., :1]).all():
        pixels = pixels[..., :1]
    height, width = pixels.shape[:2]
    grid = (0, 0)
    if search_grid:
        grid = _best_grid(pixels)
    if pixels.shape[2] == 1 or grid != (0, 0):
        layouts = [None if grid != (0, 0) else JpegLayout.of(height, width, "grey")]
    else:
        layouts = [JpegLayout.of(height, width, s) for s in ("4:4:4", "4:2:2", "4:2:0")]
    luma = _evidence(_luma_blocks(pixels, grid))
    estimates = []
    for layout in layouts:
        found = [luma]
        if layout is not None and layout.colour == "ycbcr":
            found += [_evidence(blocks) for blocks in _chroma_blocks(pixels, layout)]
        estimates.append(_decide(found, layout, grid, min_evidence))
    # Another sampling explains the same luma; what tells them apart is chroma.
    *_, best = sorted(estimates, key=lambda estimate: estimate.evidence)
    others = [estimate.evidence for estimate in estimates if estimate is not best]
    lead = best.evidence - max(others) if others else math.inf
    return dataclasses.replace(best, sampling_evidence=lead)


def _decide(found, layout, grid, min_evidence) -> JpegHistory:
    """The tables of one layout: libjpeg's family if it explains the steps, else step by step."""
    tables = np.stack([standard_tables(int(q)) for q in _QUALITIES])
    tables = tables[:, [min(c, 1) for c in range(len(found))]]
    evidence = np.stack(found)
    of_quality = np.take_along_axis(evidence, np.moveaxis(tables, 0, -1), -1)
    family = of_quality.sum((0, 1, 2))
    best = int(np.argmax(family))
    likely = _QUALITIES[family > family[best] - np.log(20)]

    # Each step by itself: a custom table is far better than libjpeg's nearest in some of them.
    alone = evidence[..., 1:]
    steps = alone.argmax(-1) + 1
    ordered = np.sort(alone, -1)
    known = ordered[..., -1] - np.maximum(ordered[..., -2], 0) > _MARGIN
    chosen = of_quality[..., best]
    # A multiple is no contradiction: an earlier compression left only some multiples of a step. But
    # everything is a multiple of one.
    multiple = (steps % tables[best] == 0) & (tables[best] > 1)
    gain = np.where(known & (steps != tables[best]), ordered[..., -1] - chosen, 0)
    free = float((chosen + gain * ~multiple).sum())

    if max(family[best], free) < min_evidence:
        return JpegHistory(JpegStatus.NONE, evidence=float(max(family[best], free, 0)))
    if free - family[best] < 3 * _MARGIN:
        return JpegHistory(
            JpegStatus.STANDARD,
            layout,
            tables[best],
            int(_QUALITIES[best]),
            (int(likely.min()), int(likely.max())),
            grid,
            bool((gain * multiple).sum() > 3 * _MARGIN),
            float(family[best]),
        )
    steps = np.where(known, steps, 0).astype(np.int32)
    return JpegHistory(JpegStatus.OTHER, layout, steps, grid=grid, evidence=free)


def _evidence(blocks: np.ndarray) -> np.ndarray:
    """Log-likelihood ratio of every step against none: (blocks, 8, 8) -> (8, 8, 256).

    A quantised coefficient is k times the step, with k zero or of geometric size, plus the rounding
    noise; one that was never quantised is zero plus noise, or Laplacian. The parameters of both are
    those that fit best. Entry 0 is no step, with evidence 0.
    """
    count = len(blocks)
    out = np.zeros((8, 8, 256))
    if count == 0:
        return out
    blocks = blocks.astype(np.float32)  # The time goes into exponentials.
    null = _unquantised(blocks)
    for step in range(1, 256):
        size = np.abs(np.rint(blocks / step))
        remainder = blocks - step * np.rint(blocks / step)
        density = sum(_noise(remainder + j * step) for j in (-1, 0, 1))
        fit = np.log((1 - _OUTLIERS) * density + _OUTLIERS / step).sum(0, dtype=np.float64)
        nonzero, total = (size > 0).sum(0), size.sum(0)
        prior = (
            _xlogx(count - nonzero, count)
            + _xlogx(nonzero, count)
            - nonzero * np.log(2)
            + _xlogx(nonzero, total)
            + _xlogx(total - nonzero, total)
        )
        # The mean of a block may lie anywhere: equal mass at each multiple, against equal density.
        prior[0, 0] = count * np.log(step)
        out[..., step] = fit + prior - null
    return out


def _unquantised(blocks: np.ndarray) -> np.ndarray:
    """Largest log-likelihood of a mixture of rounding noise and a Laplacian: (8, 8)."""
    noise = _noise(blocks)
    size = np.abs(blocks)
    share = np.full((8, 8), 0.5)
    scale = np.maximum(size.mean(0), _SHARPEST)
    for _ in range(15):  # Expectation and maximisation; close enough after a few rounds.
        laplace = np.exp(-size / scale) / (2 * scale)
        belongs = share * laplace / (share * laplace + (1 - share) * noise + 1e-30)
        share = belongs.mean(0)
        weight = belongs.sum(0) + 1e-12
        scale = np.maximum((belongs * size).sum(0) / weight, _SHARPEST)
    laplace = np.exp(-size / scale) / (2 * scale)
    likelihood = np.log(share * laplace + (1 - share) * noise + 1e-30).sum(0, dtype=np.float64)
    likelihood[0, 0] = 0  # Of a density of one per level, see `_evidence`.
    return likelihood


def _noise(x: np.ndarray) -> np.ndarray:
    """Density of what rounding to whole levels does to a coefficient."""
    density = np.zeros_like(x)
    for share, std in _NOISE:
        density += share / (std * math.sqrt(2 * math.pi)) * np.exp(-0.5 * (x / std) ** 2)
    return density


def _xlogx(part, whole):
    """part * log(part / whole), and 0 for none."""
    return part * np.log(np.where(part > 0, part, 1) / np.where(part > 0, whole, 1))


def _transform(plane: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """DCT of the whole 8 x 8 blocks of a plane that are usable everywhere: (blocks, 8, 8)."""
    rows, columns = plane.shape[0] // 8, plane.shape[1] // 8

    def cut(array):
        array = array[: 8 * rows, : 8 * columns].reshape(rows, 8, columns, 8)
        return array.transpose(0, 2, 1, 3).reshape(-1, 8, 8)

    blocks = cut(plane)
    # Where all rows or all columns are the same, eight equal rounding errors add up.
    varied = (blocks != blocks[:, :1]).any((1, 2)) & (blocks != blocks[:, :, :1]).any((1, 2))
    kept = blocks[cut(usable).all((1, 2)) & varied]
    if len(kept) > _MAX_BLOCKS:  # Evenly spread, so that a large picture costs no more.
        kept = kept[np.linspace(0, len(kept) - 1, _MAX_BLOCKS).astype(int)]
    matrix = dct_matrix()
    return matrix @ (kept - 127.5) @ matrix.T


def _unsaturated(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(((pixels > 0) & (pixels < 255)).all(-1))


def _luma_blocks(pixels: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    pixels = pixels[grid[0] :, grid[1] :]
    plane = pixels[..., 0] if pixels.shape[2] == 1 else np.rint(pixels @ YCBCR_FROM_RGB[0])
    blocks = _transform(plane.astype(np.float64), _unsaturated(pixels))
    blocks[:, 0, 0] -= 4  # A file counts from 128.
    return blocks


def _chroma_blocks(pixels: np.ndarray, layout: JpegLayout) -> list[np.ndarray]:
    """The chroma planes at the size that the file stored, by undoing libjpeg's interpolation."""
    usable = _unsaturated(pixels)
    planes = [np.rint(pixels @ row) for row in YCBCR_FROM_RGB[1:]]
    for axis, factor in ((1, layout.reductions[1][0]), (0, layout.reductions[1][1])):
        if factor == 2:
            inverse = np.linalg.pinv(triangle_upsampling(pixels.shape[axis]))
            planes = [np.moveaxis(np.tensordot(inverse, p, (1, axis)), 0, axis) for p in planes]
            length = pixels.shape[axis]
            pairs = np.minimum(np.arange(2 * inverse.shape[0]), length - 1)
            halves = np.take(usable, pairs, axis)
            usable = np.take(halves, range(0, len(pairs), 2), axis) & np.take(
                halves, range(1, len(pairs), 2), axis
            )
    # The decoder's own planes hold whole levels.
    return [_transform(np.rint(plane) + 127.5, usable) for plane in planes]


def _best_grid(pixels: np.ndarray) -> tuple[int, int]:
    """The place of the grid with the most evidence in luma for any of libjpeg's tables."""
    tables = np.stack([standard_tables(int(q))[0] for q in _QUALITIES], -1)

    def score(grid):
        evidence = _evidence(_luma_blocks(pixels, grid))
        return np.take_along_axis(evidence, tables, -1).sum((0, 1)).max()

    return max(((r, c) for r in range(8) for c in range(8)), key=score)
