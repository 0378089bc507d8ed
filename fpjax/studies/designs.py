"""What a design study judges, and what it says: designs, predictions, grids, recommendations."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, cast

from fpjax.errors import InputError
from fpjax.fingerprint.codes import Code, IndependentBits, code_named
from fpjax.studies.histories import History, attack_label

INDEPENDENT = IndependentBits.name
"""The name of no code."""


@dataclasses.dataclass(frozen=True)
class Design:
    """A choice to be judged.

    Attributes:
      basis: name of one of the bases given to the study.
      key_length: symbols, each on a direction; they are the key's bits where there is no code.
      shift: first fingerprint direction, or None for the last ones.
      strength: in the basis's units; or None, and `psnr` says it.
      psnr: decibels between original and fingerprinted, on average.
      noise: standard deviation of the noise in the file, on [-1, 1]; 0 is rounding alone.
      code: what the symbols carry, see `code_named`.
      attack: what was done to the file, instead of noise, as `fpjax.attacks.parse` reads it.

    Raises:
      InputError: unless one of `strength` and `psnr` is stated, or for values that cannot be.
    """

    basis: str
    key_length: int = 64
    shift: int | None = None
    strength: float | None = None
    psnr: float | None = None
    noise: float = 0.0
    code: str = INDEPENDENT
    attack: str | None = None

    def __post_init__(self):
        if self.made_code.num_symbols != self.key_length:
            raise InputError(f"code {self.code}: its words are not {self.key_length} symbols long")
        if (self.strength is None) == (self.psnr is None):
            raise InputError("a design states its strength or its PSNR: one of the two")
        object.__setattr__(self, "noise", float(self.noise))
        if not self.noise >= 0:
            raise InputError(f"noise {self.noise}: expected a standard deviation, at least 0")
        if self.attack is not None and self.noise:
            raise InputError("a design states a noise or an attack: one of the two")
        if self.attack is not None and attack_label(self.attack) != self.attack:
            raise InputError(f"attack {self.attack}: in full, {attack_label(self.attack)}")
        if self.strength is not None and not 0 < self.strength < math.inf:
            raise InputError(f"strength {self.strength}: expected a positive number")

    @property
    def history(self) -> History:
        """What happened to the file: the attack, or the noise.

        >>> Design("image", psnr=40.0, noise=0.1).history
        0.1
        """
        return self.noise if self.attack is None else self.attack

    @functools.cached_property
    def made_code(self) -> Code:
        """The code, without a mask.

        >>> Design("image", 64, psnr=40.0, code="repetition-16-4").made_code.payload_bits
        16
        """
        return _code(self.code) or IndependentBits(int(self.key_length))

    @property
    def quality(self) -> tuple[Literal["psnr", "strength"], float]:
        """What is stated: ("psnr", decibels) or ("strength", units of the basis).

        >>> Design("image", psnr=40.0).quality
        ('psnr', 40.0)
        """
        if self.psnr is not None:
            return "psnr", self.psnr
        return "strength", cast(float, self.strength)


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a design is expected to give.

    Attributes:
      design: the choice.
      first_direction: the design's shift as a number.
      strength: sigma, solved for where the design states a PSNR.
      psnr: measured mean PSNR in decibels of 8-bit pictures; `psnr_min` the lowest.
      bit_error: expected share of wrong bits; of payload bits where there is a code.
      exact: expected share of images with every bit right.
      mutual_information: bits of information about the key, 1/2 log2 det(I + S), averaged.
      lpips: mean LPIPS between original and fingerprinted, or None where it was not asked for.
    """

    design: Design
    first_direction: int
    strength: float
    psnr: float
    psnr_min: float
    bit_error: float
    exact: float
    mutual_information: float
    lpips: float | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Prediction:
        """The prediction that `to_json` gave; other values beside it are passed over."""
        names = {field.name for field in dataclasses.fields(cls)} - {"design"}
        rest = {name: value for name, value in values.items() if name in names}
        return cls(Design(**values["design"]), **rest)


def _code(name: str) -> Code | None:
    if not isinstance(name, str):
        raise InputError(f"code {name!r}: expected a name")
    try:
        return code_named(name, masked=False)
    except ValueError as error:
        raise InputError(str(error)) from None


def grid(
    bases: Iterable[str],
    key_lengths: Sequence[int] = (64,),
    shifts: Mapping[str, Sequence[int | None]] | None = None,
    *,
    psnrs: Sequence[float] = (),
    strengths: Sequence[float] = (),
    noises: Sequence[float] = (0.0,),
    attacks: Sequence[str] = (),
    codes: Sequence[str] = (),
    product: bool = False,
) -> list[Design]:
    """Designs of lists of choices, in the order that a study judges fastest; codes come last.

    Every basis, length, quality, and noise or attack is combined at the first shift. Others are
    judged at the first length and the lowest quality alone, unless `product` is set: a key in the
    first directions overwrites so much of a picture that a high quality is out of reach.

    Args:
      bases: names.
      key_lengths: bits; the first is the reference.
      shifts: first fingerprint directions for each basis; by default the last ones alone.
      psnrs: decibels, or
      strengths: in the basis's units: one of the two lists.
      noises: standard deviations, images in [-1, 1].
      attacks: as `fpjax.attacks.parse` reads them.
      codes: names for `code_named`, judged at the first shift.
      product: combine everything with everything.

    >>> [d.psnr for d in grid(["image"], psnrs=[40.0, 43.0])]
    [40.0, 43.0]
    """
    if bool(psnrs) == bool(strengths):
        raise InputError("a grid states strengths or PSNRs: one of the two")
    qualities: list[dict[str, Any]] = [{"psnr": float(p)} for p in psnrs]
    qualities += [{"strength": float(s)} for s in strengths]
    lowest: dict[str, Any] = (
        {"psnr": float(min(psnrs))} if psnrs else {"strength": float(max(strengths))}
    )
    histories: list[dict[str, Any]] = [{"noise": float(noise)} for noise in noises]
    histories += [{"attack": attack_label(attack)} for attack in attacks]
    designs = []
    for basis in bases:
        of_basis = (shifts or {}).get(basis) or (None,)
        for length in key_lengths:
            for shift in of_basis:
                few = not product and shift != of_basis[0]
                if few and length != key_lengths[0]:
                    continue
                some = [lowest] if few else qualities
                designs += [
                    Design(basis, length, shift, **history, **quality)
                    for history in histories
                    for quality in some
                ]
        for code in codes:
            made = _code(code)
            length = key_lengths[0] if made is None else made.num_symbols
            designs += [
                Design(basis, length, of_basis[0], code=code, **history, **quality)
                for history in histories
                for quality in qualities
            ]
    return list(dict.fromkeys(designs))


def recommend_for_all(
    predictions: Sequence[Prediction], histories: Iterable[History], exact: float
) -> Prediction | None:
    """The design of highest PSNR that reaches `exact` in each of several histories.

    Args:
      predictions: of designs that differ in more than their noise and attack.
      histories: what designs must have been judged for.
      exact: expected share of exact keys, at least.

    Returns:
      What is predicted of it where it is read worst, or None where no design does.

    >>> def said(psnr, noise, exact):
    ...     design = Design("image", psnr=psnr, noise=noise)
    ...     return Prediction(design, 448, 1.0, psnr, psnr, 0.0, exact, 64.0)
    >>> some = [said(40.0, 0.0, 1.0), said(40.0, 0.1, 0.2), said(34.0, 0.0, 1.0)]
    >>> recommend_for_all([*some, said(34.0, 0.1, 0.97)], [0.0, 0.1], 0.95).exact
    0.97
    """
    by_design: dict[Design, list[Prediction]] = {}
    for prediction in predictions:
        plain = dataclasses.replace(prediction.design, noise=0.0, attack=None)
        by_design.setdefault(plain, []).append(prediction)
    worst = [
        min(of_design, key=lambda p: (p.exact, -p.bit_error, p.mutual_information))
        for of_design in by_design.values()
        if {prediction.design.history for prediction in of_design} >= set(histories)
    ]
    return recommend(worst, exact)


def recommend(predictions: Sequence[Prediction], exact: float) -> Prediction | None:
    """The design of highest PSNR whose expected share of exact keys is at least `exact`."""
    good = [prediction for prediction in predictions if prediction.exact >= exact]
    return max(good, key=lambda prediction: prediction.psnr, default=None)
