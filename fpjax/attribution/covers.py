"""A look at pictures of which a part is covered: erased, or under a sticker or a logo.

What the rest of a picture does not explain counts less, pixel by pixel, and the rest is read again,
in turns: iteratively reweighted least squares (Holland & Welsch 1977) with the weights of Geman &
McClure (1987). The first turns are forward passes alone: what counts less is filled in with what
was read, and that is read. Patches of one exact colour, but for the largest, are left out at first,
since a picture that is erased in black is read as one with black hair.
"""

from __future__ import annotations

import numpy as np

from fpjax.attribution.file_reader import FileReader, Readings, replaced
from fpjax.attribution.pictures import LEAST_NOISE, MUCH_NOISE, Picture, on_device
from fpjax.attribution.second_look import DEGRADATION
from fpjax.fingerprint.scheme import Scheme
from fpjax.inversion.observation import Gaussian
from fpjax.inversion.observation_masked import Masked
from fpjax.inversion.problem import shown
from fpjax.inversion.solution import Solution, Status
from fpjax.inversion.starts import first_readings, reads_first
from fpjax.io.images import from_uint8

_LEFT = 0.02
"""Residual from which on a picture may have something covered."""

_EVEN = 0.75
"""Median of the differences of pixels in units of their root mean square, below which they are
uneven. White noise has 0.89 with three channels and 0.67 with one: that times as much."""

_FILLED_IN = 12
"""Turns by forward passes alone."""

_ROUGH_LOOKS = 5
"""Turns of one Jacobian each."""
_LOST = 0.02
"""Median difference from which on pictures are given up, from the third turn on. Of twelve pictures
with a tenth erased or covered, the ten of which a prototype read 98% of the bits or more had 0.002
to 0.016 after the third and the two that it lost 0.019 and 0.030, then 0.026 and 0.027."""

_FAR = 2.5
"""Differences that count a quarter, in units of the median one."""

_COVERED = 4.0
"""Differences from which on pixels are left out in the end, in units of the median one."""
_UNCERTAIN = 0.004
"""That is taken for the median one at least."""

_PATCH = 0.02
"""Share of the picture that a patch of one colour has at least."""


def uneven(reader: FileReader, pictures: list[Picture], reading: Readings) -> np.ndarray:
    """Which pictures (n,) leave so much in a part of them that something may be covered there.

    What is explained is not among them, nor what was a JPEG file or has another size than the
    generator's pictures; with somebody's own solver, nothing is.

    Args:
      reader: who reads.
      pictures: n of them.
      reading: a second look at them.
    """
    scheme, solution = reader.scheme, reading.solution
    found = np.zeros(len(pictures), bool)
    if solution.parameters is None or not reads_first(scheme) or not reader.looks_roughly:
        return found
    shape = scheme.generator.image_shape
    problem = on_device(scheme, DEGRADATION)
    points = problem.unknowns_of(solution.alpha, solution.soft_bits, solution.parameters)
    explained = (solution.noise_ratio <= reading.limits) & ~reading.guessed
    for row, picture in enumerate(pictures):
        plain = picture.jpeg is None and picture.pixels.shape == shape
        much = not explained[row] and solution.residual[row] > _LEFT
        # Where no degradation was looked for, its parameters are not numbers.
        if not plain or not much or not np.isfinite(points[row]).all():
            continue
        left = _differences(shown(problem, points[row]), picture)
        found[row] = np.median(left) < _EVEN * _white(shape[2]) * np.sqrt(np.mean(left**2))
    return found


def covered_look(reader: FileReader, pictures: list[Picture], second: Readings) -> Readings:
    """Readings of what is not covered; of pictures that are given up, the readings of before.

    Args:
      reader: who reads.
      pictures: n of them, such as `uneven` chooses.
      second: the second look at them.
    """
    scheme, count = reader.scheme, len(pictures)
    hidden = np.stack([_patches(picture.pixels) for picture in pictures])
    points, weights = _filled_in(scheme, pictures, hidden)
    std, lost = np.full(count, MUCH_NOISE), np.zeros(count, bool)
    problem = on_device(scheme)
    solution: Solution | None = None
    limits = np.zeros(count)
    for look in range(_ROUGH_LOOKS + 1):
        whole = look == _ROUGH_LOOKS
        going = np.flatnonzero(~lost)
        if not len(going):
            break
        found, limits[going] = reader.invert(
            [Masked(weights[i], Gaussian(float(std[i]))) for i in going],
            [pictures[i] for i in going],
            reader.inversion if whole else reader.rough,
            starts=points[going][:, None],
        )
        solution = found if solution is None else replaced(solution, going, found)
        points = problem.unknowns_of(solution.alpha, solution.soft_bits)
        for i in going:
            lost[i] = solution.status[i] == Status.NOT_FINITE
            if whole or lost[i]:
                continue
            left = _differences(shown(problem, points[i]), pictures[i])
            scale = float(np.median(left))
            lost[i] = not np.isfinite(scale) or (look >= 2 and scale > _LOST)
            if lost[i]:
                continue
            if look + 1 == _ROUGH_LOOKS:
                least = min(max(scale, _UNCERTAIN), MUCH_NOISE)
                weights[i] = ~_grown(left > _COVERED * least)[..., None]
                std[i] = least
            else:
                weights[i] = _weights(left)
                if look < 2:
                    weights[i] *= ~hidden[i][..., None]
                std[i] = np.clip(1.5 * scale, _UNCERTAIN, MUCH_NOISE)
    assert solution is not None
    gone, histories = np.flatnonzero(lost), list(second.histories)
    for i in np.flatnonzero(~lost):
        cover = f"a cover over {1 - weights[i].mean():.0%} of it"
        histories[i] = " and ".join(part for part in (cover, pictures[i].history) if part)
    solution = replaced(solution, gone, second.solution.take(gone))
    limits[gone] = second.limits[gone]
    # Any picture is explained by enough that is covered.
    guessed = np.where(lost, second.guessed, True)
    return Readings(second.rows, solution, histories, guessed, limits)


def _filled_in(
    scheme: Scheme, pictures: list[Picture], hidden: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Unknowns (n, K) and weights (n, H, W, 1) by forward passes alone."""
    problem = on_device(scheme)
    files = np.stack([from_uint8(picture.pixels) for picture in pictures])
    filled, weights = files, np.ones((*files.shape[:3], 1), np.float32)
    points = np.zeros((len(files), problem.num_unknowns), np.float32)
    for _ in range(_FILLED_IN):
        points = first_readings(scheme, filled)
        made = np.stack([shown(problem, point) for point in points])
        weights = np.stack(
            [_weights(_differences(*pair)) for pair in zip(made, pictures, strict=True)]
        )
        weights *= ~hidden[..., None]
        filled = weights * files + (1 - weights) * made
    return points, weights


def _differences(made: np.ndarray, picture: Picture) -> np.ndarray:
    """Root mean square over the channels, (H, W)."""
    return np.sqrt(np.mean((made - from_uint8(picture.pixels)) ** 2, axis=2))


def _weights(differences: np.ndarray) -> np.ndarray:
    """Of Geman & McClure, (H, W, 1), in units of the median difference."""
    scale = _FAR * max(float(np.median(differences)), LEAST_NOISE)
    return (1 / (1 + (differences / scale) ** 2) ** 2).astype(np.float32)[..., None]


def _white(channels: int) -> float:
    """Median of white noise's differences over their root mean square, in units of that of three
    channels."""
    from scipy.stats import chi2

    return float(np.sqrt(chi2.median(channels) / channels / (chi2.median(3) / 3)))


def _grown(covered: np.ndarray) -> np.ndarray:
    """A mask (H, W) without single pixels, and a pixel wider."""
    from scipy import ndimage

    closed = ndimage.binary_closing(covered)
    return ndimage.binary_dilation(ndimage.binary_opening(closed))


def _patches(pixels: np.ndarray) -> np.ndarray:
    """Pixels (H, W) of connected patches of one colour, but for the largest one.

    >>> pixels = np.arange(100, dtype=np.uint8).reshape(10, 10, 1)
    >>> pixels[:5, :4], pixels[7:, 7:] = 255, 7
    >>> int(_patches(pixels).sum())
    9
    """
    from scipy import ndimage

    least = _PATCH * pixels.shape[0] * pixels.shape[1]
    _, colours = np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0, return_inverse=True)
    colours = colours.reshape(pixels.shape[:2])
    patches = []
    for colour in np.flatnonzero(np.bincount(colours.ravel()) >= least):
        labels = np.zeros(colours.shape, np.int32)
        ndimage.label(colours == colour, output=labels)
        sizes = np.bincount(labels.ravel())
        patches += [labels == i for i in range(1, len(sizes)) if sizes[i] >= least]
    patches.sort(key=np.sum)
    return np.any([np.zeros(pixels.shape[:2], bool), *patches[:-1]], axis=0)
