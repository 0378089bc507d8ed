"""Attacks by name: one line or one JSON object for each, and the four of the published protocol."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax

from fpjax.attacks.base import Attack, AttackError
from fpjax.attacks.blur import BoxBlur, GaussianBlur, MedianBlur, Sharpen
from fpjax.attacks.collusion import Average
from fpjax.attacks.colour import Brightness, Contrast, Gamma, Grey, Hue, Posterise, Saturation
from fpjax.attacks.compression import Avif, DoubleJpeg, Jpeg, Screenshot, WebP
from fpjax.attacks.crop import CropPad, CropResize
from fpjax.attacks.geometry import Flip, Perspective, Rotate, Shear, Shift
from fpjax.attacks.noise import GaussianNoise, PoissonNoise, SaltAndPepper, SpeckleNoise
from fpjax.attacks.overlay import Erase, Overlay
from fpjax.attacks.regeneration import Regenerate
from fpjax.attacks.resize import Rescale, Resize


@dataclasses.dataclass(frozen=True)
class Identity(Attack):
    """Leaves the picture as it is: the row of a study that says what files alone do.

    >>> parse("none").label
    'none'
    """

    name: ClassVar[str] = "none"
    linear: ClassVar[bool] = True
    differentiable: ClassVar[bool] = True
    source: ClassVar[str] = "the 8-bit file itself"

    def _apply(self, key, images):
        return images.copy()


@dataclasses.dataclass(frozen=True)
class Chain(Attack):
    """Several attacks, one after the other, each with a key of its own.

    >>> chain = Chain((GaussianBlur(0.5), Jpeg(50)))
    >>> chain.label
    'gaussian_blur:sigma=0.5,size=25+jpeg:quality=50,subsampling=4:2:0'
    >>> parse(chain.label) == chain
    True
    """

    name: ClassVar[str] = "chain"
    source: ClassVar[str] = "Nie et al., ICML 2023 (arXiv 2304.09752): blur, noise, JPEG"

    attacks: tuple[Attack, ...]

    def __post_init__(self):
        super().__post_init__()
        attacks = self.attacks
        if not isinstance(attacks, tuple) or len(attacks) < 2:
            raise AttackError(f"chain: got {attacks!r}, expected a tuple of two attacks or more")
        for attack in attacks:
            if not isinstance(attack, Attack) or isinstance(attack, Chain):
                raise AttackError(f"chain: {attack!r} is no attack that a chain can hold")

    # Facts of a chain follow from its members, so they are properties here.
    @property
    def linear(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether all members are linear."""
        return all(attack.linear for attack in self.attacks)

    @property
    def differentiable(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether all members are differentiable."""
        return all(attack.differentiable for attack in self.attacks)

    @property
    def random(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether any member depends on the key."""
        return any(attack.random for attack in self.attacks)

    @property
    def keeps_size(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether all members keep the size."""
        return all(attack.keeps_size for attack in self.attacks)

    @property
    def mixes(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether any member mixes pictures."""
        return any(attack.mixes for attack in self.attacks)

    @property
    def channels(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The numbers of channels that all members take."""
        return tuple(c for c in (1, 3) if all(c in attack.channels for attack in self.attacks))

    @property
    def label(self) -> str:
        """The members' labels, joined by plus signs."""
        return "+".join(attack.label for attack in self.attacks)

    def to_json(self) -> dict[str, Any]:
        """The members' names and parameters as plain values."""
        return {"name": self.name, "attacks": [attack.to_json() for attack in self.attacks]}

    def _apply(self, key, images):
        for step, attack in enumerate(self.attacks):
            images = attack(None if key is None else jax.random.fold_in(key, step), images)
        return images


_CLASSES = (
    Identity,
    Jpeg,
    DoubleJpeg,
    WebP,
    Avif,
    Screenshot,
    GaussianNoise,
    PoissonNoise,
    SpeckleNoise,
    SaltAndPepper,
    GaussianBlur,
    BoxBlur,
    MedianBlur,
    Sharpen,
    Resize,
    Rescale,
    CropPad,
    CropResize,
    Rotate,
    Flip,
    Shear,
    Perspective,
    Shift,
    Brightness,
    Contrast,
    Saturation,
    Hue,
    Gamma,
    Grey,
    Posterise,
    Erase,
    Overlay,
    Regenerate,
    Average,
)

ATTACKS: dict[str, type[Attack]] = {attack.name: attack for attack in _CLASSES}

# The paper names no chroma subsampling; 4:2:0 is what libjpeg and Pillow do unless told otherwise.
PAPER: dict[str, Attack] = {
    "blur": GaussianBlur(sigma=0.5, size=25),
    "noise": GaussianNoise(std=0.1),
    "jpeg": Jpeg(quality=50, subsampling="4:2:0"),
    "combination": Chain(
        (GaussianBlur(sigma=0.5, size=25), GaussianNoise(std=0.1), Jpeg(quality=50))
    ),
}
"""The four attacks of the published StyleGAN2 protocol, by the paper's names."""


def parse(text: str) -> Attack:
    """Makes an attack from one line: `name`, `name:parameter=value,...`, or several with `+`.

    `paper/blur`, `paper/noise`, `paper/jpeg` and `paper/combination` are those of the published
    protocol. Parameters that are left out take their defaults.

    Raises:
      AttackError: for an unknown name or parameter, or a value out of range.

    >>> parse("jpeg:quality=75,subsampling=4:2:0")
    Jpeg(quality=75, subsampling='4:2:0')
    >>> parse("gaussian_noise:std=0.05+jpeg:quality=90").name
    'chain'
    """
    parts = [_parse_one(part.strip()) for part in text.split("+")]
    flat = [a for part in parts for a in (part.attacks if isinstance(part, Chain) else (part,))]
    return flat[0] if len(flat) == 1 else Chain(tuple(flat))


def _parse_one(text: str) -> Attack:
    if text.startswith("paper/"):
        if text.removeprefix("paper/") not in PAPER:
            raise AttackError(f"{text!r}: the published attacks are paper/{', paper/'.join(PAPER)}")
        return PAPER[text.removeprefix("paper/")]
    name, _, rest = text.partition(":")
    values: dict[str, Any] = {}
    for item in rest.split(",") if rest else []:
        parameter, equals, value = item.partition("=")
        parameter = parameter.strip()
        if not equals or parameter in values:
            raise AttackError(f"{text!r}: cannot read {item!r}, expected parameter=value once each")
        values[parameter] = value.strip()
    attack = _class(name)
    for field in dataclasses.fields(attack):
        if field.name in values:
            values[field.name] = _value(text, field, values[field.name])
    return _make(attack, values)


def _value(text: str, field: dataclasses.Field, value: str) -> Any:
    kind = type(field.default)
    try:
        return kind(value)
    except ValueError:
        wanted = "a whole number" if kind is int else "a number"
        raise AttackError(f"{text!r}: {field.name} is {value!r}, expected {wanted}") from None


def _class(name: Any) -> type[Attack]:
    if not isinstance(name, str) or name not in ATTACKS:
        raise AttackError(f"unknown attack {name!r}; there are {', '.join(sorted(ATTACKS))}")
    return ATTACKS[name]


def _make(attack: type[Attack], values: dict[str, Any]) -> Attack:
    known = [field.name for field in dataclasses.fields(attack)]
    for parameter in values:
        if parameter not in known:
            takes = ", ".join(known) or "no parameters"
            raise AttackError(f"{attack.name} has no parameter {parameter!r}; it takes {takes}")
    return attack(**values)


def from_json(value: dict[str, Any]) -> Attack:
    """The attack that `Attack.to_json` described.

    Raises:
      AttackError: for anything that is no such description.

    >>> from_json({"name": "jpeg", "quality": 75})
    Jpeg(quality=75, subsampling='4:2:0')
    """
    if not isinstance(value, dict) or "name" not in value:
        raise AttackError(f"{value!r} describes no attack, expected an object with a name")
    if value["name"] == Chain.name:
        members = value.get("attacks")
        if set(value) != {"name", "attacks"} or not isinstance(members, list):
            raise AttackError(f"{value!r}: a chain is described by its list of attacks")
        return Chain(tuple(from_json(member) for member in members))
    return _make(_class(value["name"]), {k: v for k, v in value.items() if k != "name"})
