"""The inversion problem: which latent and key explain an image. Solvers are elsewhere.

A problem is composed of a scheme (how unknowns become an image), an observation (how far an image
is from a file), a prior (what is assumed beforehand), and how symbols are kept near their levels.
The unknowns are one vector: alpha (K - L coordinates along U), then the symbols' (L along V). A
problem is a pytree: all its arrays are arguments of the programs that take it.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from fpjax.errors import InputError
from fpjax.fingerprint.keys import level_range
from fpjax.fingerprint.scheme import Scheme
from fpjax.inversion.observation import Observation, Rounded8Bit
from fpjax.inversion.prior import BoundsPrior, GaussianPrior, Prior
from fpjax.models.generator import static

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """What is minimised: half the squared residual of the observation, plus the prior's penalty.

    Attributes:
      scheme: generator, directions, strength and levels.
      observation: how the generator's output became the file; by default `Rounded8Bit`.
      prior: by default `GaussianPrior`.
      symbols: "relaxed" lets symbols be real numbers, bounded to one spacing beyond the two levels;
        "sigmoid" writes them as a sigmoid of the unknown, as published.
    """

    scheme: Scheme
    observation: Observation = dataclasses.field(default_factory=Rounded8Bit)
    prior: Prior = dataclasses.field(default_factory=GaussianPrior)
    symbols: Literal["relaxed", "sigmoid"] = static(default="relaxed")

    def __post_init__(self):
        if self.symbols not in ("relaxed", "sigmoid"):
            raise InputError(f"symbols {self.symbols!r}: choose 'relaxed' or 'sigmoid'")

    @classmethod
    def paper(cls, scheme: Scheme, penalty_weight: float = 0.1) -> Problem:
        """The published StyleGAN2 protocol: LPIPS-VGG16, bounds penalty, sigmoid.

        The weights of LPIPS are read when the problem is solved.
        """
        from fpjax.inversion.perceptual_distance import LPIPSDistance

        return cls(scheme, LPIPSDistance(), BoundsPrior(penalty_weight), symbols="sigmoid")

    @property
    def num_unknowns(self) -> int:
        """Coordinates of alpha and symbols together, K."""
        return len(self.scheme.basis)

    def prepared(self) -> Problem:
        """The problem as programs take it: without calibration, with all its weights loaded."""
        observation = self.observation
        if hasattr(observation, "loaded"):
            observation = observation.loaded()
        scheme = self.scheme.without_calibration()
        return dataclasses.replace(self, scheme=scheme, observation=observation)

    def symbols_of(self, unknowns: Array) -> Array:
        """Symbols (..., L) that unknowns (..., K) stand for."""
        raw = unknowns[..., self.scheme.num_alpha :]
        if self.symbols == "relaxed":
            return raw
        centre, half = level_range(self.scheme.levels)
        return centre + half * (2 * jax.nn.sigmoid(raw) - 1)

    def bits_of(self, unknowns: Array) -> Array:
        """Soft bits (..., L): 0 and 1 are the two levels, 0.5 is undecided."""
        centre, half = level_range(self.scheme.levels)
        return 0.5 + (self.symbols_of(unknowns) - centre) / (2 * half)

    def bounded(self, unknowns: Array) -> Array:
        """Unknowns (K,) with relaxed symbols kept within one spacing of the two levels."""
        if self.symbols != "relaxed":
            return unknowns
        centre, half = level_range(self.scheme.levels)
        free = self.scheme.num_alpha
        symbols = jnp.clip(unknowns[free:], centre - 3 * half, centre + 3 * half)
        return jnp.concatenate([unknowns[:free], symbols])

    def image(self, unknowns: Array) -> Array:
        """Image (H, W, C) of unknowns (K,), not clipped."""
        alpha = unknowns[None, : self.scheme.num_alpha]
        return self.scheme.decode(self.scheme.latents_of(alpha, self.symbols_of(unknowns)[None]))[0]

    def residual(self, unknowns: Array, target: Array, leak: Array | float = 0.0) -> Array:
        """Residual (M,) of unknowns (K,) and a file (H, W, C), in units of the noise."""
        return self.observation.residual(self.image(unknowns), target, leak)

    def cost(self, unknowns: Array, target: Array) -> Array:
        """What is minimised, in nats up to a constant, ()."""
        image = self.image(unknowns)
        if hasattr(self.observation, "distance"):
            distance = self.observation.distance(image, target)
        else:
            distance = 0.5 * jnp.sum(self.observation.residual(image, target) ** 2)
        return distance + self.prior.penalty(self.scheme, unknowns)
