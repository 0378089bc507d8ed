"""Verdicts: a user, or the reason why nobody is named.

A registered key is compared with an image in two statistics: the number of decoded bits that agree,
and the soft score, which weighs every bit by what the picture says about it. Both have exact tails
over uniformly random keys (`tails.py`), given the image, so that the stated false-positive rate
needs no sample of other images and holds whatever was done to this one. Two statistics and N keys
are 2 N tests, and are counted.

With a code, words are compared. A secret mask makes each word uniformly random over all L symbols,
so that both tails are those of L random bits and as exact as without a code; the chance is over the
mask as well as the keys. Words without a mask are not uniform: then only the decoded payload is
compared, bit by bit with each key, in one test, which is exact because keys are uniform.

The residual is evidence that is reported beside the verdict, not a gate: a file that was processed
still names its holder when its key says so.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Shaped, UInt8

from fpjax.attribution.candidates import Candidates, Directory, candidates_of
from fpjax.attribution.registry import RegistryError
from fpjax.attribution.search import keys_of, search_matching, search_soft
from fpjax.attribution.tails import SoftTails, combine_tests, family_wise, matching_tail
from fpjax.errors import InputError
from fpjax.fingerprint.codes import Code
from fpjax.fingerprint.encoded import EncodedKeys
from fpjax.fingerprint.keys import Levels, level_range
from fpjax.fingerprint.scheme import Scheme
from fpjax.fingerprint.stored import KeySource
from fpjax.inversion.observation import Observation
from fpjax.inversion.problem import Problem
from fpjax.inversion.readers import Reader, default_reader, explained_limit, read_files
from fpjax.inversion.solution import Solution, Status
from fpjax.models.jacobian import DEFAULT_MEMORY

DEFAULT_FALSE_POSITIVE_RATE = 1e-6
"""Chance, for one image without a key and the whole registry, of being attributed to anybody."""

_DECISIVE = 1e-3
"""Where matching bits alone are this share of the allowed rate, the soft score is not computed: the
p-value that is reported can only be larger for it."""


class Reason(enum.StrEnum):
    """Why a verdict is what it is.

    >>> next(iter(Reason)).name
    'ATTRIBUTED'
    """

    ATTRIBUTED = "the key of a registered user"
    NO_KEY_CLOSE_ENOUGH = "no registered key is close enough"
    NOT_EXPLAINED = "the generator does not make this image"
    NOT_FINITE = "the image could not be inverted"
    NOBODY_REGISTERED = "no user is registered"
    REVOKED = "the key is a revoked one: its holder or anybody who got hold of it"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The answer for one image.

    Attributes:
      user: who made it, or None for "not attributed".
      reason: why.
      matching_bits: decoded bits in which the nearest registered key agrees; with a code, bits of
        its word's symbols.
      key_length: bits that were compared: those of a key, or of a word.
      p_value: bound on the chance that an image made without them fits any registered key so well
        (family-wise, over keys and statistics).
      noise_ratio: residual in units of the observation's noise; about 1 where the generator
        explains the file down to it. Of an encoder, the error of its reading in units of the usual.
      explained: whether it does.
      nearest_user: holder of the nearest key, attributed, revoked or not; None if nobody is
        registered.
      history: what is believed to have been done to the picture, such as "JPEG 75", or "".
      attempts: observations that it was read with; `p_value` counts them all.

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
        """The verdict in words, such as "own file after JPEG 75"."""
        if self.user is None:
            return "not attributed"
        if self.explained:
            return f"own file after {self.history}" if self.history else "own file"
        return f"carries the key of {self.user}; the picture is not fully explained"


@dataclasses.dataclass(frozen=True, eq=False)
class Attribution:
    """What `attribute` returns for B images.

    Attributes:
      keys: (B, key length) uint8 decoded bits; a code's payload where the scheme has one.
      soft_bits: (B, L) float32 of the symbols; 0.5 is undecided.
      information: (B, L, L) float32, Fisher information about the symbols; None where the solver
        computes none.
      residual: (B,) root-mean-square difference that is left, images in [-1, 1].
      status: (B,) int32 of `fpjax.Status`.
      solution: the whole `Solution`.
      verdicts: one `Verdict` an image, or None where no registry was given.
      observation, solver: names of what the images were read with.
      calibration_sha256: hash of the scheme's calibration, None without one.

    >>> from dataclasses import fields
    >>> {"keys", "soft_bits", "verdicts"} <= {field.name for field in fields(Attribution)}
    True
    """

    keys: UInt8[np.ndarray, "batch length"]
    soft_bits: Float[np.ndarray, "batch symbols"]
    information: Float[np.ndarray, "batch symbols symbols"] | None
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
    code: Code | None = None,
    max_noise_ratio: float = 1.5,
    false_positive_rate: float = DEFAULT_FALSE_POSITIVE_RATE,
) -> list[Verdict]:
    """Turns inverted images into verdicts.

    Args:
      solution: of B images.
      users: N names.
      keys: registered keys, (N, key length) uint8 bits, or (N, W) uint64 words as `pack_words`
        makes them.
      levels: what symbols the solution's information is about.
      code: what turned keys into symbols; None for a symbol a bit.
      max_noise_ratio: residual up to which the generator explains an image.
      false_positive_rate: family-wise, for one image, all N keys and all statistics.

    Raises:
      InputError: if the rate is not between 0 and 1, or the keys are not of this length.
    """
    length = solution.keys.shape[1] if code is None else code.payload_bits
    return decide_among(
        solution,
        Candidates.of(users, keys, length),
        levels=levels,
        code=code,
        max_noise_ratio=max_noise_ratio,
        false_positive_rate=false_positive_rate,
    )


def decide_among(
    solution: Solution,
    candidates: Candidates,
    *,
    levels: Levels = "antipodal",
    code: Code | None = None,
    max_noise_ratio: float | np.ndarray = 1.5,
    false_positive_rate: float = DEFAULT_FALSE_POSITIVE_RATE,
    progress: Callable[[int, int], None] | None = None,
) -> list[Verdict]:
    """Turns inverted images into verdicts about the keys of any source, up to billions of them.

    Args:
      solution: of B images.
      candidates: the keys and who holds them.
      levels, code, max_noise_ratio, false_positive_rate: see `decide`; the ratio may be one for
        each image (B,).
      progress: called with (keys compared, keys in all) in each pass over them.

    Raises:
      InputError: if the rate is not between 0 and 1, or the keys have another length.
    """
    _check_rate(false_positive_rate)
    length = solution.keys.shape[1] if code is None else code.payload_bits
    source = candidates.source
    if source is not None and source.key_length != length:
        raise InputError(f"keys of {source.key_length} bits: the scheme's have {length}")
    finite = solution.status != Status.NOT_FINITE
    explained = finite & (solution.noise_ratio <= max_noise_ratio)
    fits: dict[int, _Fit] = {}
    rows = np.flatnonzero(finite)
    if source is not None and len(rows):
        fits = _best_fits(solution, rows, source, levels, code, false_positive_rate, progress)
    return [
        _verdict(
            fits.get(image),
            candidates,
            float(solution.noise_ratio[image]),
            bool(explained[image]),
            bool(finite[image]),
            solution.keys.shape[1],
            false_positive_rate,
        )
        for image in range(len(solution))
    ]


class _Fit(NamedTuple):
    """The candidate that fits an image best."""

    index: int
    matching: int
    compared: int
    """Bits that were compared."""
    p_value: float


def _verdict(
    fit: _Fit | None,
    candidates: Candidates,
    ratio: float,
    explained: bool,
    finite: bool,
    length: int,
    rate: float,
) -> Verdict:
    unexplained = Reason.NOT_EXPLAINED if finite else Reason.NOT_FINITE
    if fit is None:
        reason = Reason.NOBODY_REGISTERED if explained else unexplained
        return Verdict(None, reason, 0, length, 1.0, ratio, explained)
    holder = candidates.holder(fit.index)
    fits, revoked = fit.p_value <= rate, fit.index in candidates.revoked
    reason = Reason.NO_KEY_CLOSE_ENOUGH if explained else unexplained
    if fits:
        reason = Reason.REVOKED if revoked else Reason.ATTRIBUTED
    return Verdict(
        holder if fits and not revoked else None,
        reason,
        fit.matching,
        fit.compared,
        fit.p_value,
        ratio,
        explained,
        holder,
    )


def _best_fits(
    solution: Solution,
    rows: np.ndarray,
    source: KeySource,
    levels: Levels,
    code: Code | None,
    rate: float,
    progress: Callable[[int, int], None] | None,
) -> dict[int, _Fit]:
    """The best candidate of each image in `rows`, by whichever statistic says more."""
    count = len(source)
    if code is not None and not code.uniform:
        # Words that are not uniform: the payload that was decoded is compared, whose bits are.
        decoded = read_keys(solution.take(rows), code, levels)
        return _by_matching(source, rows, decoded, count, 1, progress)
    if code is not None:
        source = EncodedKeys(source, code)
    # Over all keys, and over the two statistics that are looked at.
    fits = _by_matching(source, rows, solution.keys[rows], count, 2, progress)
    open_ = [row for row in rows if fits[row].p_value > _DECISIVE * rate]
    if solution.information is None or solution.linear is None:
        return fits
    usable = [
        row
        for row in open_
        if np.isfinite(solution.information[row]).all() and np.isfinite(solution.linear[row]).all()
    ]
    if not usable:
        return fits
    information, linear = solution.information[usable], solution.linear[usable]
    found = search_soft(
        source, information, linear, levels=levels, num_best=1, progress=progress
    ).indices[:, 0]
    bits = keys_of(source, found)
    for place, row in enumerate(usable):
        tails = SoftTails(information[place], linear[place], levels=levels)
        p = float(tails.p_values(bits[place : place + 1])[0, 0])
        p_value = float(combine_tests(family_wise(p, count), 1.0))
        if p_value < fits[row].p_value:
            matching = int((bits[place] == solution.keys[row]).sum())
            fits[int(row)] = _Fit(int(found[place]), matching, len(bits[place]), p_value)
    return fits


def _by_matching(source, rows, bits, count: int, tests: int, progress) -> dict[int, _Fit]:
    ranking = search_matching(source, bits, num_best=1, progress=progress)
    length = bits.shape[1]
    fits = {}
    for row, index, matching in zip(rows, ranking.indices, ranking.scores, strict=True):
        p = family_wise(float(matching_tail(length, int(matching[0]))), count)
        others = [1.0] * (tests - 1)
        p_value = float(combine_tests(p, *others))
        fits[int(row)] = _Fit(int(index[0]), int(matching[0]), length, p_value)
    return fits


def read_keys(solution: Solution, code: Code | None, levels: Levels) -> np.ndarray:
    """Keys (B, key length) uint8 that images carry, decoded softly where there is a code.

    Where a solver computed no information, or it is not finite, all symbols count alike.
    """
    if code is None or len(solution) == 0:
        return solution.keys if code is None else np.zeros((0, code.payload_bits), np.uint8)
    length = solution.keys.shape[1]
    information = np.repeat(np.eye(length)[None], len(solution), axis=0)
    centre, half = level_range(levels)
    linear = centre + half * (2.0 * solution.keys - 1)
    if solution.information is not None and solution.linear is not None:
        usable = np.isfinite(solution.information).all((1, 2))
        usable &= np.isfinite(solution.linear).all(1)
        information[usable] = solution.information[usable]
        linear[usable] = solution.linear[usable]
    return code.decode(information, linear, levels)[0]


def _check_rate(rate: float) -> None:
    if not 0 < rate < 1:
        raise InputError(f"false_positive_rate {rate}: expected between 0 and 1")


def attribute(
    scheme: Scheme,
    images: Shaped[Array | np.ndarray, "batch height width channels"],
    registry: Directory | Candidates | KeySource | None = None,
    *,
    false_positive_rate: float = DEFAULT_FALSE_POSITIVE_RATE,
    observation: Observation | None = None,
    problem: Problem | None = None,
    solver: Reader | None = None,
    memory: int = DEFAULT_MEMORY,
    mesh: Mesh | None = None,
    progress: Callable[[int, int], None] | None = None,
    key_progress: Callable[[int, int], None] | None = None,
) -> Attribution:
    """Keys and verdicts of arrays, all read through one observation.

    `fpjax.attribute` (`attribution/files.py`) says what the arguments are, and takes files too.

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
    _check_rate(false_positive_rate)
    if problem is not None:
        if problem.scheme.id != scheme.id:
            raise InputError("the problem is of another scheme")
        if observation is not None:
            raise InputError("give a problem or an observation, not both")
    elif observation is not None:
        problem = Problem(scheme, observation)
    else:
        problem = Problem(scheme)
    reader = default_reader(problem) if solver is None else solver
    if isinstance(registry, Directory) and registry.scheme_id != scheme.id:
        raise RegistryError(
            f"{registry.path} belongs to scheme {registry.scheme_id}, the images are read with "
            f"{scheme.id}"
        )
    candidates = None if registry is None else candidates_of(registry)
    if candidates is not None and candidates.source is not None:
        length = candidates.source.key_length
        if length != scheme.key_length:
            raise InputError(f"keys of {length} bits: the scheme's have {scheme.key_length}")
    solution = read_files(problem, images, reader, memory=memory, mesh=mesh, progress=progress)
    calibration = scheme.calibration
    verdicts = None
    if candidates is not None:
        verdicts = decide_among(
            solution,
            candidates,
            levels=scheme.levels,
            code=scheme.code,
            max_noise_ratio=explained_limit(problem, reader),
            false_positive_rate=false_positive_rate,
            progress=key_progress,
        )
    return Attribution(
        read_keys(solution, scheme.code, scheme.levels),
        solution.soft_bits,
        solution.information,
        solution.residual,
        solution.status,
        solution,
        verdicts,
        problem.observation.name,
        reader.name,
        None if calibration is None else calibration.sha256,
    )
