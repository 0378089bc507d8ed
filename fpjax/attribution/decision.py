"""Verdicts: a user, or the reason why nobody is named.

A registered key is compared with an image in two statistics: the number of decoded bits that agree,
and the soft score, which weighs every bit by what the picture says about it. Both have exact tails
over uniformly random keys (`tails.py`), given the image, so that the stated false-positive rate
needs no sample of other images and holds whatever was done to this one. Two statistics and N keys
are 2 N tests, and are counted.

The residual is evidence that is reported beside the verdict, not a gate: a file that was processed
still names its holder when its key says so.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Sequence

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Shaped, UInt8

from fpjax.attribution.registry import Registry, RegistryError
from fpjax.attribution.tails import SoftTails, combine_tests, family_wise, matching_tail
from fpjax.errors import InputError
from fpjax.fingerprint.keys import (
    Levels,
    as_bits,
    hamming_distances,
    pack_words,
    unpack_words,
)
from fpjax.fingerprint.scheme import Scheme
from fpjax.inversion.driver import invert
from fpjax.inversion.observation import Observation
from fpjax.inversion.problem import Problem
from fpjax.inversion.solution import Solution, Status
from fpjax.inversion.solvers.base import Solver
from fpjax.models.jacobian import DEFAULT_MEMORY

DEFAULT_FALSE_POSITIVE_RATE = 1e-6
"""Chance, for one image without a key and the whole registry, of being attributed to anybody."""

_DECISIVE = 1e-3
"""Where matching bits alone are this share of the allowed rate, the soft score is not computed: the
p-value that is reported can only be larger for it."""


class Reason(enum.StrEnum):
    """Why a verdict is what it is.

    >>> [reason.name for reason in Reason][0]
    'ATTRIBUTED'
    """

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
      matching_bits: decoded bits in which the nearest registered key agrees.
      key_length: bits of a key.
      p_value: bound on the chance that an image made without them fits any registered key so well
        (family-wise, over keys and statistics).
      noise_ratio: residual in units of the observation's noise; about 1 where the generator
        explains the file down to it.
      explained: whether it does.
      nearest_user: holder of the nearest key, attributed or not; None if nobody is registered.
      history: what is believed to have been done to the picture, such as "JPEG 75"; empty for
        nothing.
      attempts: observations that the image was read with; `p_value` counts them all.

    >>> Verdict(
    ...     user=None, reason=Reason.NOBODY_REGISTERED, matching_bits=0, key_length=64, p_value=1.0,
    ...     noise_ratio=0.9, explained=True).nearest_user is None
    True
    """

    user: str | None
    reason: Reason
    matching_bits: int
    key_length: int
    p_value: float
    noise_ratio: float
    explained: bool
    nearest_user: str | None = None
    history: str = ""
    attempts: int = 1

    @property
    def finding(self) -> str:
        """The verdict in words: whose file, what was done to it, and whether that explains it.

        >>> Verdict("ada", Reason.ATTRIBUTED, 64, 64, 1e-9, 1.0, True, "ada", "JPEG 75").finding
        'own file after JPEG 75'
        """
        if self.user is None:
            return "not attributed"
        if not self.explained:
            return f"carries the key of {self.user}; the picture is not fully explained"
        return f"own file after {self.history}" if self.history else "own file"


@dataclasses.dataclass(frozen=True, eq=False)
class Attribution:
    """What `attribute` returns for B images.

    Attributes:
      keys: (B, L) uint8 decoded bits.
      soft_bits: (B, L) float32; 0.5 is undecided.
      information: (B, L, L) float32, Fisher information about the symbols; None where the solver
        computes none.
      residual: (B,) root-mean-square difference that is left, images in [-1, 1].
      status: (B,) int32 of `fpjax.Status`.
      solution: the whole `Solution`.
      verdicts: one `Verdict` an image, or None where no registry was given.
      observation, solver: names of what the images were read with.
      calibration_sha256: hash of the scheme's calibration, None without one.

    >>> from dataclasses import fields
    >>> [field.name for field in fields(Attribution)][:3]
    ['keys', 'soft_bits', 'information']
    """

    keys: UInt8[np.ndarray, "batch length"]
    soft_bits: Float[np.ndarray, "batch length"]
    information: Float[np.ndarray, "batch length length"] | None
    residual: Float[np.ndarray, " batch"]
    status: Int[np.ndarray, " batch"]
    solution: Solution
    verdicts: list[Verdict] | None
    observation: str
    solver: str
    calibration_sha256: str | None


def decide(
    solution: Solution,
    users: Sequence[str],
    keys: np.ndarray,
    *,
    levels: Levels = "antipodal",
    max_noise_ratio: float = 1.5,
    false_positive_rate: float = DEFAULT_FALSE_POSITIVE_RATE,
) -> list[Verdict]:
    """Turns inverted images into verdicts.

    Args:
      solution: of B images.
      users: N names.
      keys: registered keys, (N, L) uint8 bits, or (N, W) uint64 words as `pack_words` makes them
        and a registry holds them.
      levels: what symbols the solution's information is about.
      max_noise_ratio: residual up to which the generator explains an image.
      false_positive_rate: family-wise, for one image, all N keys and both statistics.

    Raises:
      InputError: if the rate is not between 0 and 1, or the keys are not (N, L) bits.
    """
    _check_rate(false_positive_rate)
    length = solution.keys.shape[1]
    words = _words(keys, len(users), length)
    verdicts = []
    for i, bits in enumerate(solution.keys):
        ratio = float(solution.noise_ratio[i])
        finite = solution.status[i] != Status.NOT_FINITE
        explained = finite and ratio <= max_noise_ratio
        unexplained = Reason.NOT_EXPLAINED if finite else Reason.NOT_FINITE
        if len(users) == 0 or not finite:
            reason = Reason.NOBODY_REGISTERED if explained else unexplained
            verdicts.append(Verdict(None, reason, 0, length, 1.0, ratio, explained))
            continue
        differing = hamming_distances(words, pack_words(bits))
        best = int(differing.argmin())
        p_value = _family_wise(float(matching_tail(length, length - differing[best])), len(users))
        if p_value > _DECISIVE * false_positive_rate:
            best, p_value = _soft(solution, i, words, levels, best, p_value)
        named = p_value <= false_positive_rate
        reason = Reason.NO_KEY_CLOSE_ENOUGH if explained else unexplained
        verdicts.append(
            Verdict(
                users[best] if named else None,
                Reason.ATTRIBUTED if named else reason,
                int(length - differing[best]),
                length,
                p_value,
                ratio,
                explained,
                users[best],
            )
        )
    return verdicts


def _words(keys: np.ndarray, num: int, length: int) -> np.ndarray:
    """Registered keys as packed words (N, W), or what is wrong with them."""
    keys = np.asarray(keys)
    shape = (num, -(-length // 64)) if keys.dtype == np.uint64 else (num, length)
    if num and keys.shape != shape:
        raise InputError(f"keys have shape {keys.shape}: expected {shape} for {length} bits")
    return keys if keys.dtype == np.uint64 else pack_words(as_bits(keys, "keys"))


def _family_wise(p: float, num_keys: int) -> float:
    """Over all keys, and over the two statistics that are looked at."""
    return float(combine_tests(family_wise(p, num_keys), 1.0))


def _soft(
    solution: Solution, image: int, words: np.ndarray, levels: Levels, best: int, p_value: float
) -> tuple[int, float]:
    """The better of the best key by matching bits and the best by soft score, with its p-value."""
    if solution.information is None or solution.linear is None:
        return best, p_value
    information, linear = solution.information[image], solution.linear[image]
    if not (np.isfinite(information).all() and np.isfinite(linear).all()):
        return best, p_value
    tails = SoftTails(information, linear, levels=levels)
    keys = unpack_words(words, len(linear))
    likeliest = int(tails.energies(keys)[0].argmin())
    p_soft = _family_wise(float(tails.p_values(keys[likeliest : likeliest + 1])[0, 0]), len(keys))
    return (likeliest, p_soft) if p_soft < p_value else (best, p_value)


def _check_rate(rate: float) -> None:
    if not 0 < rate < 1:
        raise InputError(f"false_positive_rate {rate}: expected between 0 and 1")


def attribute(
    scheme: Scheme,
    images: Shaped[Array | np.ndarray, "batch height width channels"],
    registry: Registry | None = None,
    *,
    false_positive_rate: float = DEFAULT_FALSE_POSITIVE_RATE,
    observation: Observation | None = None,
    problem: Problem | None = None,
    solver: Solver | None = None,
    memory: int = DEFAULT_MEMORY,
    mesh: Mesh | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Attribution:
    """Reads the keys out of images and, given a registry, names their holders.

    Args:
      scheme: a calibrated scheme, as bundled or from `calibrate`.
      images: (B, H, W, C), uint8 or float in [-1, 1].
      registry: who holds which key; without it there are no verdicts.
      false_positive_rate: chance that an image made without the registered keys is attributed to
        anybody at all. It is exact for keys that are uniformly random and secret, whatever the
        image, the observation and the solver.
      observation: how the generator's output became the files; by default `Rounded8Bit()`.
      problem: for `invert`, instead of one made of scheme and observation.
      solver: by default `LevenbergMarquardt()`.
      memory: see `invert`.
      mesh: see `invert`.
      progress: called with (images finished, images in all).

    Returns:
      The `Attribution`.

    Raises:
      InputError: if the images do not fit the generator or the scheme is not calibrated.
      RegistryError: if the registry belongs to another scheme.

    >>> import fpjax, jax
    >>> from fpjax.models.linear import linear_generator
    >>> generator = linear_generator()
    >>> basis = fpjax.fit_basis(generator, jax.random.key(0), 100, metric="latent")
    >>> scheme = fpjax.Scheme.create(generator, basis, key_length=4, strength=0.5)
    >>> scheme = fpjax.calibrate(
    ...     scheme, jax.random.key(1), num_start_images=200, num_inverted_images=2)
    >>> key = np.asarray([[0, 1, 1, 0]], np.uint8)
    >>> attribute(scheme, fpjax.generate(scheme, jax.random.key(2), key).images).keys.tolist()
    [[0, 1, 1, 0]]
    """
    from fpjax.inversion.solvers.levenberg_marquardt import LevenbergMarquardt

    _check_rate(false_positive_rate)
    solver = LevenbergMarquardt() if solver is None else solver
    if problem is not None:
        if problem.scheme.id != scheme.id:
            raise InputError("the problem is of another scheme")
        if observation is not None:
            raise InputError("give a problem or an observation, not both")
    elif observation is not None:
        problem = Problem(scheme, observation)
    else:
        problem = Problem(scheme)
    if registry is not None and registry.scheme_id != scheme.id:
        raise RegistryError(
            f"{registry.path} belongs to scheme {registry.scheme_id}, the images are read with "
            f"{scheme.id}"
        )
    solution = invert(problem, images, solver, memory=memory, mesh=mesh, progress=progress)
    calibration = scheme.calibration
    verdicts = None
    if registry is not None:
        users, keys = registry.words()
        limit = 1.5
        if calibration is not None and calibration.observation == problem.observation.name:
            limit = calibration.max_noise_ratio
        verdicts = decide(
            solution,
            users,
            keys,
            levels=scheme.levels,
            max_noise_ratio=limit,
            false_positive_rate=false_positive_rate,
        )
    return Attribution(
        solution.keys,
        solution.soft_bits,
        solution.information,
        solution.residual,
        solution.status,
        solution,
        verdicts,
        problem.observation.name,
        solver.name,
        None if calibration is None else calibration.sha256,
    )
