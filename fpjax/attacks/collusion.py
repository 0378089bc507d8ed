"""Collusion: several users average their pictures, in the hope that their keys cancel."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from fpjax.attacks.base import Attack, AttackError, number, round_to_uint8


@dataclasses.dataclass(frozen=True)
class Average(Attack):
    """Picture i becomes the mean of pictures i, i + 1, ..., i + users - 1 of the batch, cyclically.

    The batch holds one picture a user, and at least `users` of them. Collusion makes sense for
    pictures that are alike but for their keys: draw them from the same natural latent.

    >>> images = np.array([0, 10, 20, 30], np.uint8).reshape(4, 1, 1, 1)
    >>> Average(users=2)(None, images).ravel().tolist()
    [5, 15, 25, 15]
    """

    name: ClassVar[str] = "average"
    linear: ClassVar[bool] = True
    differentiable: ClassVar[bool] = True
    mixes: ClassVar[bool] = True
    source: ClassVar[str] = "Cox et al., Secure Spread Spectrum Watermarking, IEEE TIP 1997"

    users: int = number(2, 1, 1024, "pictures averaged")

    def _apply(self, key, images):
        if len(images) < self.users:
            raise AttackError(
                f"{self.label}: a batch of {len(images)} pictures, expected one of each of "
                f"{self.users} users or more"
            )
        total = np.zeros(images.shape, np.float64)
        for step in range(self.users):
            total += np.roll(images, -step, axis=0)
        return round_to_uint8(total / self.users)
