"""What is assumed about the unknowns of an inversion before the image is seen."""

from __future__ import annotations

import dataclasses
import math
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Float

from fpjax.errors import InputError
from fpjax.fingerprint.keys import level_range
from fpjax.fingerprint.scheme import Scheme
from fpjax.models.generator import static

Array = jax.Array


@runtime_checkable
class Prior(Protocol):
    """What an inversion needs of a prior."""

    def penalty(self, scheme: Scheme, unknowns: Float[Array, " unknowns"]) -> Float[Array, ""]:
        """Cost of unknowns (K,), alpha first: negative log-density up to a constant, ()."""
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GaussianPrior:
    """alpha ~ N(0, (scale s)^2) with the basis's natural s; symbols ~ N(middle, half-width^2).

    Attributes:
      scale: widening, for latents with heavier tails than normal; infinite leaves alpha free.

    >>> GaussianPrior(scale=0)
    Traceback (most recent call last):
        ...
    fpjax.errors.InputError: scale 0: expected a positive number
    """

    scale: float = static(default=1.0)

    def __post_init__(self):
        if not self.scale > 0:
            raise InputError(f"scale {self.scale}: expected a positive number")

    def mean_and_std(
        self, scheme: Scheme
    ) -> tuple[Float[Array, " unknowns"], Float[Array, " unknowns"]]:
        """Mean and standard deviation of the unknowns, alpha first, each (K,)."""
        centre, half = level_range(scheme.levels)
        natural = jnp.asarray(scheme.alpha_std)
        # Directions in which latents never vary still need a finite precision.
        natural = jnp.maximum(natural, 1e-6 * jnp.max(natural, initial=1e-30))
        if math.isinf(self.scale):
            natural = jnp.full_like(natural, jnp.inf)
        else:
            natural = natural * self.scale
        length = scheme.num_symbols
        mean = jnp.concatenate([jnp.zeros_like(natural), jnp.full(length, centre, jnp.float32)])
        return mean, jnp.concatenate([natural, jnp.full(length, half, jnp.float32)])

    def penalty(self, scheme: Scheme, unknowns: Float[Array, " unknowns"]) -> Float[Array, ""]:
        """See `Prior`."""
        mean, std = self.mean_and_std(scheme)
        return 0.5 * jnp.sum(((unknowns - mean) / std) ** 2)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BoundsPrior:
    """The published penalty: weight * sum(relu(alpha - 3 s) + relu(-3 s - alpha)).

    Attributes:
      weight: 0.1 for StyleGAN2, 0.005 for latent diffusion.

    >>> BoundsPrior(0.005).weight
    0.005
    """

    weight: float = static(default=0.1)

    def penalty(self, scheme: Scheme, unknowns: Float[Array, " unknowns"]) -> Float[Array, ""]:
        """See `Prior`."""
        alpha = unknowns[: scheme.num_alpha]
        excess = jax.nn.relu(jnp.abs(alpha) - 3 * jnp.asarray(scheme.alpha_std))
        return self.weight * jnp.sum(excess)
