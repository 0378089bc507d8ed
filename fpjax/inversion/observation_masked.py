"""An observation some of whose pixels are believed less: painted over, erased, covered."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PRNGKeyArray, UInt8

from fpjax.errors import InputError
from fpjax.inversion.observation import ROUNDING_STD, Gaussian, Observation, Rounded8Bit

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Masked:
    """A file of which each pixel counts as much as its weight: 1 as it is, 0 not at all.

    Weighted residuals have the slopes of a robust loss, if the weights follow from the residuals of
    the inversion before (iteratively reweighted least squares; Holland & Welsch 1977).

    A solution's `noise_ratio` is of the weighted residuals: with weights between 0 and 1 it is less
    than that of the pixels.

    Attributes:
      pixel_weights: (H, W, 1) float32 in [0, 1].
      inner: how the pixels became the file: `Rounded8Bit` or `Gaussian`.

    Raises:
      InputError: for weights of another shape or out of range.

    >>> from fpjax.inversion.observation import Gaussian
    >>> half = Masked(jnp.zeros((2, 2, 1)).at[0].set(1.0), Gaussian(0.1))
    >>> (half.residual(jnp.zeros((2, 2, 1)), jnp.full((2, 2, 1), 0.5)) < -4).tolist()
    [True, True, False, False]
    """

    pixel_weights: Array | np.ndarray
    inner: Observation

    name: ClassVar[str] = "masked"

    def __post_init__(self):
        weights = self.pixel_weights
        if not isinstance(weights, np.ndarray) or weights.ndim == 4:  # traced, or of a batch
            return
        if weights.ndim != 3 or weights.shape[2] != 1:
            raise InputError(f"pixel_weights are {weights.shape}, expected (H, W, 1)")
        if not ((weights >= 0) & (weights <= 1)).all():
            raise InputError("pixel_weights: expected 0 to 1")

    @property
    def pixel_std(self) -> Array | float:
        """That of the inner observation: starts do not fit what is smaller."""
        return getattr(self.inner, "pixel_std", ROUNDING_STD)

    def residual(
        self,
        image: Float[Array, "height width channels"],
        target: Float[Array, "height width channels"],
        leak: Array | float = 0.0,
    ) -> Float[Array, " residuals"]:
        """The inner one, times the root of the weights; see `Observation`.

        Raises:
          InputError: if the inner observation's residuals are not of single pixels.
        """
        if not isinstance(self.inner, (Rounded8Bit, Gaussian)):
            raise InputError(
                f"the observation {self.inner.name!r} is not of single pixels: only rounded and "
                "noisy pictures can be masked"
            )
        return jnp.sqrt(self._spread(image)) * self.inner.residual(image, target, leak)

    def counted(
        self,
        image: Float[Array, "height width channels"],
        target: Float[Array, "height width channels"],
    ) -> Float[Array, " residuals"]:
        """Those of the inner observation that have a weight."""
        inner = self.inner.counted(image, target)
        return (self._spread(image) > 0).astype(inner.dtype) * inner

    def simulate(
        self, key: PRNGKeyArray, images: Float[Array, "batch height width channels"]
    ) -> UInt8[Array, "batch height width channels"]:
        """Files as the inner observation makes them; what covers them is not known."""
        return self.inner.simulate(key, images)

    def _spread(self, image: Array) -> Array:
        return jnp.broadcast_to(jnp.asarray(self.pixel_weights, image.dtype), image.shape).reshape(
            -1
        )
