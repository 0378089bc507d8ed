"""Verdicts: a user, or the reason why nobody is named.

An image is attributed when two tests agree. The generator must explain it: what is left after the
inversion is compared with what calibration saw. And the nearest registered key must agree in more
bits than keyless images ever would by chance, over all keys that were compared.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Sequence

import numpy as np

from fpjax.attribution.registry import Registry, RegistryError
from fpjax.attribution.statistics import NullModel, family_wise, match_tail, nearest
from fpjax.fingerprint.keys import check_keys
from fpjax.fingerprint.scheme import Scheme
from fpjax.inversion.batching import invert
from fpjax.inversion.problem import ROUNDING_STD, Problem
from fpjax.inversion.solution import Solution, Status

DEFAULT_FALSE_POSITIVE_RATE = 1e-6
"""Chance, for one keyless image and the whole registry, of being attributed to anybody."""


class Reason(enum.StrEnum):
    """Why a verdict is what it is."""

    ATTRIBUTED = "the key of a registered user"
    NO_KEY_CLOSE_ENOUGH = "no registered key is close enough"
    NOT_EXPLAINED = "the generator does not make this image"
    NOT_FINITE = "the image could not be inverted"
    NOBODY_REGISTERED = "no user is registered"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The answer for one image.

    Attributes:
      user: who made it, or None for "not attributed".
      reason: why.
      matching_bits: bits in which the nearest registered key agrees.
      key_length: bits of a key.
      p_value: chance that a keyless image agrees as well with any registered key (family-wise).
      noise_ratio: residual in units of 8-bit rounding noise; about 1 for the generator's own files.
      nearest_user: holder of the nearest key, attributed or not; None if nobody is registered.
    """

    user: str | None
    reason: Reason
    matching_bits: int
    key_length: int
    p_value: float
    noise_ratio: float
    nearest_user: str | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Attribution:
    """What `attribute` returns for B images.

    Attributes:
      keys: (B, L) uint8 decoded bits.
      soft_bits: (B, L) float32; 0.5 is undecided.
      residual: (B,) root-mean-square difference that is left, images in [-1, 1].
      status: (B,) int32 of `fpjax.Status`.
      solution: the whole `Solution`.
      verdicts: one `Verdict` an image, or None where no registry was given.
    """

    keys: np.ndarray
    soft_bits: np.ndarray
    residual: np.ndarray
    status: np.ndarray
    solution: Solution
    verdicts: list[Verdict] | None


def decide(
    solution: Solution,
    users: Sequence[str],
    keys: np.ndarray,
    *,
    null: NullModel,
    max_noise_ratio: float,
    false_positive_rate: float = DEFAULT_FALSE_POSITIVE_RATE,
) -> list[Verdict]:
    """Turns inverted images into verdicts.

    Args:
      solution: of B images.
      users: N names.
      keys: (N, L) registered bits.
      null: how bits fall on images that carry no key of ours.
      max_noise_ratio: residual up to which the generator explains an image, in units of 8-bit
        rounding noise.
      false_positive_rate: family-wise, for one image and all N keys.

    Raises:
      ValueError: if the rate is not between 0 and 1, or the keys are not (N, L) bits.
    """
    _check_rate(false_positive_rate)
    length = solution.keys.shape[1]
    keys = check_keys(np.reshape(keys, (len(users), -1)) if len(users) else keys, length)
    verdicts = []
    for i, bits in enumerate(solution.keys):
        ratio = float(solution.residual[i]) / ROUNDING_STD
        if len(users) == 0:
            reason = Reason.NOBODY_REGISTERED
            if not ratio <= max_noise_ratio:
                reason = Reason.NOT_EXPLAINED
            verdicts.append(Verdict(None, reason, 0, length, 1.0, ratio))
            continue
        matches = nearest(keys, bits)
        ties = np.flatnonzero(matches == matches.max())
        tails = match_tail(null, keys[ties], matches[ties])
        best = ties[tails.argmin()]
        p_value = float(family_wise(tails.min(), len(users)))
        if solution.status[i] == Status.NOT_FINITE:
            reason = Reason.NOT_FINITE
        elif not ratio <= max_noise_ratio:
            reason = Reason.NOT_EXPLAINED
        elif p_value > false_positive_rate:
            reason = Reason.NO_KEY_CLOSE_ENOUGH
        else:
            reason = Reason.ATTRIBUTED
        user = users[best] if reason is Reason.ATTRIBUTED else None
        verdicts.append(
            Verdict(user, reason, int(matches[best]), length, p_value, ratio, users[best])
        )
    return verdicts


def _check_rate(rate: float) -> None:
    if not 0 < rate < 1:
        raise ValueError(f"false_positive_rate {rate}: expected between 0 and 1")


def attribute(
    scheme: Scheme,
    images,
    registry: Registry | None = None,
    *,
    false_positive_rate: float = DEFAULT_FALSE_POSITIVE_RATE,
    max_noise_ratio: float | None = None,
    problem: Problem | None = None,
    solver=None,
    progress: Callable[[int, int], None] | None = None,
) -> Attribution:
    """Reads the keys out of images and, given a registry, names their holders.

    Args:
      scheme: a calibrated scheme, as bundled or from `calibrate`.
      images: (B, R, R, 3), uint8 or float in [-1, 1].
      registry: who holds which key; without it there are no verdicts.
      false_positive_rate: chance that a keyless image is attributed to anybody at all.
      max_noise_ratio: residual up to which the generator explains an image, in units of 8-bit
        rounding noise; by default the calibrated one.
      problem, solver: for `invert`; by default pixel loss and Gauss-Newton, which are what the
        null was measured with. With others the stated false-positive rate is not calibrated.
      progress: called with (images finished, images in all).

    Returns:
      The `Attribution`.

    Raises:
      ValueError: if the images do not fit the generator or the scheme is not calibrated.
      RegistryError: if the registry belongs to another scheme.
    """
    _check_rate(false_positive_rate)
    if problem is not None and problem.scheme.id != scheme.id:
        raise ValueError("the problem is of another scheme")
    if registry is not None:
        null, calibrated_ratio = calibration_of(scheme)
        if registry.scheme_id != scheme.id:
            raise RegistryError(
                f"{registry.path} belongs to scheme {registry.scheme_id}, the images are read with "
                f"{scheme.id}"
            )
    solution = invert(problem or Problem(scheme), images, solver, progress=progress)
    verdicts = None
    if registry is not None:
        users, keys = registry.keys()
        verdicts = decide(
            solution,
            users,
            keys,
            null=null,
            max_noise_ratio=calibrated_ratio if max_noise_ratio is None else max_noise_ratio,
            false_positive_rate=false_positive_rate,
        )
    return Attribution(
        solution.keys,
        solution.soft_bits,
        solution.residual,
        solution.status,
        solution,
        verdicts,
    )


def calibration_of(scheme: Scheme) -> tuple[NullModel, float]:
    """The null model and the residual threshold that are stored with a scheme.

    Raises:
      ValueError: if the scheme was never calibrated.
    """
    try:
        notes = scheme.notes["calibration"]
        arrays = {
            name.removeprefix("null/"): array
            for name, array in scheme.extras.items()
            if name.startswith("null/")
        }
        return NullModel.from_arrays(arrays, notes["null_groups"]), notes["max_noise_ratio"]
    except KeyError as error:
        raise ValueError(
            "the scheme is not calibrated: call fpjax.calibrate(scheme, key) once and save it"
        ) from error
