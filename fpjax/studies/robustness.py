"""What attacks leave of attribution: pictures are attacked, written as files, and read back.

For each scheme and attack: how many bits are right, how many pictures are attributed to their
maker, to nobody, and to somebody else, at the stated rate among the registered users, and what the
attack did to the picture. Beside what is measured stands what the information predicts where the
attack is one that an observation describes.

Everything goes through files, as a user's pictures would.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fpjax.fingerprint.codes import Code
from fpjax.fingerprint.keys import level_range
from fpjax.fingerprint.scheme import Scheme
from fpjax.inversion.information import linearise, tangents_in_block
from fpjax.inversion.observation import Observation
from fpjax.inversion.problem import Problem
from fpjax.io.images import from_uint8
from fpjax.precision import full_precision
from fpjax.programs import program
from fpjax.studies.curvature import (
    information_of,
    nearest_positive,
    payload_errors,
    posterior_draw,
    product,
)

DEFAULT_ATTACKS = (
    "none",
    "jpeg:quality=95",
    "jpeg:quality=90",
    "jpeg:quality=75",
    "jpeg:quality=50",
    "gaussian_noise:std=0.05",
    "gaussian_noise:std=0.1",
    "gaussian_blur:sigma=0.5",
    "gaussian_blur:sigma=0.5+gaussian_noise:std=0.1+jpeg:quality=50",
    "resize:scale=0.75",
    "brightness:factor=1.1",
    "contrast:factor=0.9",
    "shift:down=1,right=0",
    "crop_resize:side=0.9",
)
"""The published four and what the robust scheme was chosen for."""


class FileInformation(NamedTuple):
    """S of one file about symbols -1 and +1, (L, L) float64 each."""

    bound: np.ndarray
    """With the Jacobian at the latent that made the file, which nobody who reads it knows."""
    expected: np.ndarray
    """With what that Jacobian has in common with one at another latent that explains the file as
    well, see `curvature.iter_pixel_grams`."""


def information_of_file(
    scheme: Scheme,
    observation: Observation,
    alpha: np.ndarray,
    key: np.ndarray,
    pixels: np.ndarray,
    draw: jax.Array,
) -> FileInformation:
    """What a file says about the key in it.

    Args:
      scheme: that of the picture.
      observation: of its file.
      alpha: (K - L,).
      key: (L,) bits.
      pixels: (H, W, C) uint8 of the generator's size.
      draw: PRNG key of the other latent.
    """
    problem = Problem(scheme, observation).prepared()
    symbols = np.asarray(scheme.symbols_of(key[None]))[0]
    here, gram, other = _explained(problem, pixels, np.concatenate([alpha, symbols]), draw)
    # Unknowns count alike in units of what they change.
    units = np.sqrt(np.maximum(np.diag(gram), 1e-12))
    common = _gram(here, _rows_at(problem, pixels, other)) / np.outer(units, units)
    common = nearest_positive(common) * np.outer(units, units)
    alpha_std, half = np.asarray(scheme.alpha_std), level_range(scheme.levels)[1]
    return FileInformation(
        *(half**2 * information_of(part[None], alpha_std, 1.0)[0] for part in (gram, common))
    )


def another_explanation(
    problem: Problem, pixels: np.ndarray, unknowns: np.ndarray, draw: jax.Array
) -> np.ndarray:
    """Unknowns (K,) float32 that explain a file about as well as others (K,).

    Args:
      problem: with the observation of the file.
      pixels: (H, W, C) uint8, the file's.
      unknowns: (K,) that explain it.
      draw: PRNG key.
    """
    return _explained(problem.prepared(), pixels, unknowns, draw)[2].astype(np.float32)


def _explained(
    problem: Problem, pixels: np.ndarray, unknowns: np.ndarray, draw: jax.Array
) -> tuple[jax.Array, np.ndarray, np.ndarray]:
    """Derivatives of a file's residual as rows (K, M), their gram, and other unknowns (K,)."""
    mean, std = (np.asarray(part, np.float64) for part in problem.mean_and_std())
    rows = _rows_at(problem, pixels, unknowns)
    gram = _gram(rows, rows)
    centred = (unknowns.astype(np.float64) - mean) / std
    return rows, gram, mean + std * posterior_draw(std[:, None] * gram * std, centred, draw)


def _gram(rows: jax.Array, others: jax.Array) -> np.ndarray:
    return np.asarray(jax.device_get(product(rows, others)), np.float64)


def _rows_at(problem: Problem, pixels: np.ndarray, unknowns: np.ndarray) -> jax.Array:
    given = jax.device_put((problem, from_uint8(pixels), unknowns.astype(np.float32)))
    return _rows(*given, tangents_in_block(problem))


@program(static_argnums=3)
@full_precision
def _rows(problem: Problem, target: jax.Array, unknowns: jax.Array, block: int) -> jax.Array:
    return linearise(problem, unknowns, target, 0.0, block, "float32")[1]


def predicted(files: Sequence[FileInformation], code: Code | None = None) -> dict[str, Any]:
    """What decoding can be expected to give: share of right bits, and of exact keys; and the same
    of the bound.

    Args:
      files: what they say.
      code: the scheme's, whose payload counts, or None where each bit is a symbol.

    >>> clear = FileInformation(1e6 * np.eye(4), 1e6 * np.eye(4))
    >>> predicted([clear])["exact"]
    1.0
    """

    def shares(parts: Sequence[np.ndarray]) -> dict[str, float]:
        error, exact = payload_errors(np.stack(parts), code)
        return {"bit_accuracy": 1 - float(error), "exact": float(exact)}

    return {
        **shares([file.expected for file in files]),
        "bound": shares([file.bound for file in files]),
    }


def wilson_interval(hits: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """95% interval of a share (Wilson, JASA 22, 1927).

    >>> tuple(round(x, 3) for x in wilson_interval(8, 8))
    (0.676, 1.0)
    """
    if count == 0:
        return 0.0, 1.0
    share, spread = hits / count, z * z / count
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    # Of none or all, rounding may leave the share itself outside.
    return min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))


def summary(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Figures of one scheme and attack, with 95% intervals.

    Args:
      records: of the pictures, as `robustness_run` keeps them.

    Returns:
      `num`; `bit_accuracy`, `right`, `none`, `wrong`, `exact` as (share, low, high); mean `psnr`
      (dB) and `lpips` where they were measured, else None. The interval of bits is over pictures,
      whose bits are not independent.
    """
    count = len(records)
    accuracy = np.array([record["bit_accuracy"] for record in records])
    error = 1.96 * accuracy.std(ddof=1) / math.sqrt(count) if count > 1 else 1.0
    mean = float(accuracy.mean())

    def share(test) -> tuple[float, float, float]:
        hits = sum(bool(test(record)) for record in records)
        return (hits / count, *wilson_interval(hits, count))

    # Of pictures whose size changed neither is known; the PSNR was 0 in folders of before.
    perceptual = [record["lpips"] for record in records if record.get("lpips") is not None]
    psnrs = [record["psnr"] for record in records if record["psnr"]]
    return {
        "num": count,
        "bit_accuracy": (mean, max(0.0, mean - error), min(1.0, mean + error)),
        "exact": share(lambda record: record["bit_accuracy"] == 1),
        **{
            outcome: share(lambda record, o=outcome: record["outcome"] == o)
            for outcome in ("right", "none", "wrong")
        },
        "psnr": float(np.mean(psnrs)) if psnrs else None,
        "lpips": float(np.mean(perceptual)) if perceptual else None,
        "seconds": float(np.mean([record["seconds"] for record in records])),
    }
