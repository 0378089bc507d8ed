"""Codes: payload bits to symbols, one a fingerprint direction, and soft symbols back to bits.

A code spends directions on certainty: n symbols carry k <= n payload bits. Decoding uses all that
an inversion knows, the information S and the linear term h of the symbols, and looks for the word
of least energy E(k) = 1/2 k^T S k - h^T k (`fpjax.fingerprint.energy`).

Why a mask. The rate of false positives is exact if the symbols of each registered key are uniformly
random and independent of the image. Words of a linear code are not uniform over all n symbols:
there are only 2^k of them, and a repeated bit is always equal to its copies, as neighbouring
symbols of a photograph's decoding may well be. A mask of n random bits, drawn once for a scheme and
added to every word, makes each word uniform over {0, 1}^n. That is all the bound on the rate over
all users needs; words of two users still depend on each other. The mask must be drawn at random,
and stay unknown to those who might shape an image after it: it is part of the scheme and as private
as that. A code without a mask (`mask=""`) is what publications use, and says `uniform = False`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import secrets
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from fpjax.fingerprint.bch import bch_generator, bch_payloads
from fpjax.fingerprint.energy import (
    Levels,
    antipodal_form,
    decision_feedback,
    decode_by_feedback,
    energies,
)

_MAX_PAIRED = 64
"""Information bits, the least reliable ones, that ordered statistics change two at a time."""
_MAX_ROUNDS = 20


@runtime_checkable
class Code(Protocol):
    """What a scheme needs of a code: frozen, hashable, and the same after `to_json`.

    Attributes:
      num_symbols: symbols of a word, n.
      payload_bits: bits that a word carries, k.
      uniform: whether each word is uniformly random for a uniformly random payload and mask.
    """

    @property
    def num_symbols(self) -> int:
        """Symbols of a word, n."""
        ...

    @property
    def payload_bits(self) -> int:
        """Bits that a word carries, k."""
        ...

    @property
    def uniform(self) -> bool:
        """Whether words are uniformly random, as exact rates need."""
        ...

    def encode(self, bits) -> np.ndarray:
        """Payloads (N, k) of 0 and 1 to words (N, n) uint8; ValueError for other shapes."""
        ...

    def decode(
        self, information, linear, levels: Levels = "antipodal"
    ) -> tuple[np.ndarray, np.ndarray]:
        """The payload that fits best: bits (B, k) uint8, and the energy (B,) float64 of its word.

        `information` is (L, L) or (B, L, L) and `linear` (L,) or (B, L), L = n; one image gives
        B = 1. The best word is looked for, not proved: the energy says how good it is.
        """
        ...

    def to_json(self) -> dict[str, Any]:
        """Plain values for a file's header; `code_from_json` is the inverse."""
        ...


def secret_mask(num_symbols: int) -> str:
    """A mask from the operating system's cryptographic source, as hexadecimal text.

    >>> len(secret_mask(60))
    16
    """
    bits = np.zeros(-(-num_symbols // 8) * 8, np.uint8)
    drawn = np.frombuffer(secrets.token_bytes(len(bits) // 8), np.uint8)
    bits[:num_symbols] = np.unpackbits(drawn)[:num_symbols]
    return np.packbits(bits).tobytes().hex()


@dataclasses.dataclass(frozen=True)
class IndependentBits:
    """One symbol a bit, as the published StyleGAN2 protocol has it. Uniform without a mask.

    >>> code = IndependentBits(4)
    >>> code.decode(np.eye(4), np.array([2.0, -1.0, 1.0, 3.0]))[0].tolist()
    [[1, 0, 1, 1]]
    """

    length: int
    name: ClassVar[str] = "independent"

    def __post_init__(self) -> None:
        _check_positive("length", self.length)

    @property
    def num_symbols(self) -> int:
        """Symbols of a word, n = k."""
        return self.length

    @property
    def payload_bits(self) -> int:
        """Bits that a word carries, k."""
        return self.length

    @property
    def uniform(self) -> bool:
        """Whether words are uniformly random: always."""
        return True

    def encode(self, bits) -> np.ndarray:
        """Payloads (N, k) are their own words, (N, k) uint8."""
        return _check_bits(bits, self.length)

    def decode(
        self, information, linear, levels: Levels = "antipodal"
    ) -> tuple[np.ndarray, np.ndarray]:
        """Bits (B, k) and energies (B,); see `Code.decode`."""
        generator = np.eye(self.length, dtype=np.uint8)
        mask = np.zeros(self.length, np.uint8)
        return _decode(self, generator, information, linear, levels, mask)

    def to_json(self) -> dict[str, Any]:
        """Plain values for a file's header."""
        return {"code": self.name, **dataclasses.asdict(self)}


@dataclasses.dataclass(frozen=True)
class Repetition:
    """Each bit on `repeats` consecutive directions: the published LDM protocol, with a mask.

    Decoding adds the repeated symbols up to an exact problem of k bits.

    Attributes:
      length: payload bits, k.
      repeats: symbols for each; n = k repeats.
      mask: hexadecimal text of n bits from `secret_mask`, or "" for none.

    >>> Repetition(2, 3).encode(np.array([[1, 0]])).tolist()
    [[1, 1, 1, 0, 0, 0]]
    """

    length: int
    repeats: int
    mask: str = ""
    name: ClassVar[str] = "repetition"

    def __post_init__(self) -> None:
        _check_positive("length", self.length)
        _check_positive("repeats", self.repeats)
        _mask_bits(self.mask, self.num_symbols)

    @property
    def num_symbols(self) -> int:
        """Symbols of a word, n."""
        return self.length * self.repeats

    @property
    def payload_bits(self) -> int:
        """Bits that a word carries, k."""
        return self.length

    @property
    def uniform(self) -> bool:
        """Whether words are uniformly random: with a mask, or without repetition."""
        return bool(self.mask) or self.repeats == 1

    def encode(self, bits) -> np.ndarray:
        """Payloads (N, k) to words (N, n) uint8."""
        words = np.repeat(_check_bits(bits, self.length), self.repeats, axis=1)
        return words ^ _mask_bits(self.mask, self.num_symbols)

    def decode(
        self, information, linear, levels: Levels = "antipodal"
    ) -> tuple[np.ndarray, np.ndarray]:
        """Bits (B, k) and energies (B,); see `Code.decode`."""
        information, linear, offset = _check_information(self, information, linear, levels)
        signs = 1.0 - 2.0 * _mask_bits(self.mask, self.num_symbols)
        grouped = (-1, self.length, self.repeats, self.length, self.repeats)
        summed = (information * signs * signs[:, None]).reshape(grouped).sum((2, 4))
        pulled = (linear * signs).reshape(-1, self.length, self.repeats).sum(2)
        bits, energy = IndependentBits(self.length).decode(summed, pulled)
        return bits, energy + offset

    def to_json(self) -> dict[str, Any]:
        """Plain values for a file's header."""
        return {"code": self.name, **dataclasses.asdict(self)}


@dataclasses.dataclass(frozen=True)
class BCH:
    """A binary BCH code, extended by a parity bit where n is a power of two, else shortened.

    Soft decoding by ordered statistics (Fossorier & Lin, 1995) of order 2, repeated from the best
    word: the k most reliable independent symbols determine a word, and words that differ from it
    in one or two of them are compared by their exact energies.

    Attributes:
      length: symbols, n, 3 to 1024.
      payload: bits, k; `bch_payloads(n)` lists those there are, with their designed distances.
      mask: hexadecimal text of n bits from `secret_mask`, or "" for none.

    Raises:
      ValueError: if there is no such code; the message lists the payloads there are.

    >>> code = BCH(64, 36)
    >>> int(code.encode(np.eye(36, dtype=int)).sum(1).min())  # distance 12
    12
    """

    length: int
    payload: int
    mask: str = ""
    name: ClassVar[str] = "bch"

    def __post_init__(self) -> None:
        payloads = bch_payloads(self.length)
        if self.payload not in payloads:
            raise ValueError(
                f"there is no BCH code of {self.length} symbols and {self.payload} bits: payloads "
                f"are {', '.join(map(str, payloads))}"
            )
        _mask_bits(self.mask, self.length)

    @property
    def num_symbols(self) -> int:
        """Symbols of a word, n."""
        return self.length

    @property
    def payload_bits(self) -> int:
        """Bits that a word carries, k."""
        return self.payload

    @property
    def designed_distance(self) -> int:
        """Least number of symbols in which two words differ, as the construction proves it."""
        return bch_payloads(self.length)[self.payload]

    @property
    def uniform(self) -> bool:
        """Whether words are uniformly random: with a mask."""
        return bool(self.mask)

    def encode(self, bits) -> np.ndarray:
        """Payloads (N, k) to words (N, n) uint8: the payload first, then parity, then the mask."""
        words = (_check_bits(bits, self.payload) @ self._generator) % 2
        return words ^ _mask_bits(self.mask, self.length)

    def decode(
        self, information, linear, levels: Levels = "antipodal"
    ) -> tuple[np.ndarray, np.ndarray]:
        """Bits (B, k) and energies (B,); see `Code.decode`."""
        mask = _mask_bits(self.mask, self.length)
        return _decode(self, self._generator, information, linear, levels, mask)

    @property
    def _generator(self) -> np.ndarray:
        return bch_generator(self.length, self.payload)

    def to_json(self) -> dict[str, Any]:
        """Plain values for a file's header."""
        return {"code": self.name, **dataclasses.asdict(self)}


_CODES = {code.name: code for code in (IndependentBits, Repetition, BCH)}


def code_from_json(values: dict[str, Any]) -> Code:
    """The code that `to_json` wrote.

    Raises:
      ValueError: for an unknown code, or fields that are not its own.

    >>> code_from_json({"code": "repetition", "length": 2, "repeats": 3, "mask": ""})
    Repetition(length=2, repeats=3, mask='')
    """
    values = dict(values)
    name = values.pop("code", None)
    if name not in _CODES:
        raise ValueError(f"unknown code {name!r}: this fpjax knows {', '.join(_CODES)}")
    fields = {field.name: field.type for field in dataclasses.fields(_CODES[name])}
    if set(values) != set(fields):
        raise ValueError(
            f"the code {name!r} has the fields {', '.join(fields)}, got {', '.join(values)}"
        )
    for field, kind in fields.items():
        if type(values[field]).__name__ != kind:
            raise ValueError(f"{field} of the code {name!r} is {values[field]!r}: expected {kind}")
    return _CODES[name](**values)


def code_named(name: str, *, masked: bool = True) -> Code | None:
    """The code of a short name: "independent" (None), "bch-N-K", or "repetition-K-R".

    N symbols carry K bits; R symbols repeat each of K bits.

    Args:
      name: the name.
      masked: draw a secret mask from the operating system, so that rates of false positives are
        exact; without, the words are those of publications.

    Raises:
      ValueError: for a name of another form, or a code that there is not.

    >>> code_named("bch-63-45").num_symbols, code_named("repetition-16-4", masked=False)
    (63, Repetition(length=16, repeats=4, mask=''))
    """
    kind, *numbers = name.split("-")
    if name == IndependentBits.name:
        return None
    if kind not in ("bch", "repetition") or len(numbers) != 2 or not all(map(_is_count, numbers)):
        raise ValueError(
            f"code {name!r}: expected 'independent', 'bch-SYMBOLS-BITS' such as bch-63-45, or "
            "'repetition-BITS-REPEATS' such as repetition-16-4"
        )
    first, second = map(int, numbers)
    made = BCH(first, second) if kind == "bch" else Repetition(first, second)
    return dataclasses.replace(made, mask=secret_mask(made.num_symbols)) if masked else made


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and 0 < len(text) < 6


def _decode(code: Code, generator, information, linear, levels: Levels, mask: np.ndarray):
    quadratic = _check_information(code, information, linear, levels)
    # A mask changes signs of symbols, and so of the information about the word below it.
    signs = 1.0 - 2.0 * mask
    quadratic = quadratic._replace(
        information=quadratic.information * signs * signs[:, None],
        linear=quadratic.linear * signs,
    )
    feedback = decision_feedback(quadratic.information, quadratic.linear, 1.0)
    hard = decode_by_feedback(feedback)
    symbols = 2.0 * hard - 1.0
    odds = feedback.offset + (feedback.gain @ symbols[:, :, None])[:, :, 0]
    bits, found = [], []
    for image in range(len(hard)):
        one = type(quadratic)(*(part[image : image + 1] for part in quadratic))
        word, energy = _ordered_statistics(generator, one, hard[image], np.abs(odds[image]))
        bits.append(word[: code.payload_bits])
        found.append(energy)
    return np.array(bits, np.uint8).reshape(-1, code.payload_bits), np.array(found)


def _ordered_statistics(generator, quadratic, hard, reliability) -> tuple[np.ndarray, float]:
    """The word (n,) of least energy that order 2, repeated, comes to; payload bits come first."""
    basis, places = _reliable_basis(generator, reliability)
    word = hard[places] @ basis % 2
    energy = energies(quadratic, word[None])[0, 0]
    # Rows in order of falling reliability: the last ones are the most likely to be wrong.
    pairs = itertools.combinations(range(max(0, len(basis) - _MAX_PAIRED), len(basis)), 2)
    first, second = np.array(list(pairs), int).reshape(-1, 2).T
    changes = np.concatenate([basis, basis[first] ^ basis[second]])
    for _ in range(_MAX_ROUNDS):
        others = changes ^ word
        scores = energies(quadratic, others)[0]
        best = scores.argmin()
        if not scores[best] < energy:
            break
        word, energy = others[best], scores[best]
    return word, float(energy)


def _reliable_basis(generator: np.ndarray, reliability: np.ndarray):
    """Rows that are 1 in one each of the k most reliable independent places, and those places."""
    rows = generator.copy()
    places: list[int] = []
    for place in np.argsort(-reliability, kind="stable"):
        count = len(places)
        candidates = np.flatnonzero(rows[count:, place])
        if not len(candidates):
            continue
        pivot = count + candidates[0]
        rows[[count, pivot]] = rows[[pivot, count]]
        others = np.flatnonzero(rows[:, place])
        others = others[others != count]
        rows[others] ^= rows[count]
        places.append(int(place))
        if len(places) == len(rows):
            break
    return rows, np.array(places)


def _check_positive(name: str, value: int) -> None:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}: expected a whole number of at least 1")


def _check_bits(bits, length: int) -> np.ndarray:
    bits = np.asarray(bits)
    if bits.ndim != 2 or bits.shape[1] != length:
        raise ValueError(f"payloads have shape {bits.shape}: expected (N, {length}) bits")
    if not np.isin(bits, (0, 1)).all():
        raise ValueError("payloads hold other values than the bits 0 and 1")
    return bits.astype(np.uint8)


def _check_information(code, information, linear, levels):
    quadratic = antipodal_form(information, linear, levels)
    if quadratic.linear.shape[1] != code.num_symbols:
        raise ValueError(
            f"the information is about {quadratic.linear.shape[1]} symbols: words of this code "
            f"have {code.num_symbols}"
        )
    return quadratic


@functools.lru_cache(maxsize=64)
def _mask_bits(mask: str, num_symbols: int) -> np.ndarray:
    """Bits (n,) of a mask; raises ValueError for a text that is none of this length."""
    if not mask:
        return np.zeros(num_symbols, np.uint8)
    try:
        packed = np.frombuffer(bytes.fromhex(mask), np.uint8)
    except ValueError:
        raise ValueError("the mask is not hexadecimal") from None
    bits = np.unpackbits(packed)
    if len(mask) != 2 * -(-num_symbols // 8) or bits[num_symbols:].any():
        raise ValueError(
            f"the mask has {4 * len(mask)} bits: expected {num_symbols}, zeros appended to a byte"
        )
    bits = bits[:num_symbols]
    bits.setflags(write=False)
    return bits
