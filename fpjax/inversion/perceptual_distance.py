"""LPIPS as the distance of an inversion, as the published protocol has it."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Float

from fpjax.inversion.observation import Rounded8Bit

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class LPIPSDistance(Rounded8Bit):
    """A lossless 8-bit file, compared by LPIPS-VGG16 v0.1 of the clipped image.

    LPIPS is no likelihood: least-squares solvers do not take it. Residual and noise ratio are those
    of `Rounded8Bit`, so that every solver's answer is measured alike.

    Attributes:
      params: the network's, or None until the problem is solved (needs `fpjax[lpips]`).
    """

    params: Any = None

    name: ClassVar[str] = "lpips-vgg"

    def loaded(self) -> LPIPSDistance:
        """With its weights."""
        if self.params is not None:
            return self
        from fpjax import perceptual

        return LPIPSDistance(perceptual.load_lpips("vgg"))

    def distance(
        self,
        image: Float[Array, "height width channels"],
        target: Float[Array, "height width channels"],
    ) -> Float[Array, ""]:
        """LPIPS of one image, ()."""
        from fpjax import perceptual

        return perceptual.lpips(self.params, jnp.clip(image, -1, 1)[None], target[None])[0]
