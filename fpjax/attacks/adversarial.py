"""An attacker who holds the generator but no key: projected gradient on the latent.

He looks for another latent that makes nearly the same picture, as far away as it can be. A random
displacement changes the picture mostly along the generator's sensitive directions; gradient steps
on the change of the picture take those out, and what is left hides in the directions that pictures
do not show, where a fingerprint lives too. Source: projected gradient, Madry et al., ICLR 2018
(arXiv 1706.06083), here in the latent and with the picture's change as the budget.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fpjax.attacks.base import AttackError, image_keys, round_to_uint8
from fpjax.models.canonical import canonical_convolutions
from fpjax.precision import full_precision
from fpjax.programs import program


@dataclasses.dataclass(frozen=True, eq=False)
class AdversarialPictures:
    """What the attacker sends instead.

    Attributes:
      images: uint8, (B, H, W, C).
      latents: (B, ...), those of the new pictures.
      change: float, (B,): root mean square difference of the pictures, for images in [-1, 1] and
        before rounding; at most the budget.
    """

    images: np.ndarray
    latents: np.ndarray
    change: np.ndarray


def adversarial(
    decode: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    latents,
    key: jax.Array,
    *,
    budget: float,
    scale: Any = 1.0,
    steps: int = 50,
) -> AdversarialPictures:
    """Moves latents far while their pictures change by at most `budget`.

    Args:
      decode: pure function of parameters and latents (B, ...), to images (B, H, W, C) in [-1, 1];
        each image depends on its own latent alone. Compiled once for each function object.
      params: its parameters, a pytree.
      latents: (B, ...): the attacker's own, which is what an inversion would give him at best.
      key: PRNG key; picture i sees only `jax.random.fold_in(key, i)`.
      budget: largest root mean square change of a picture, for images in [-1, 1]; above 0.
      scale: natural standard deviation of the latents, a scalar or of the shape of one latent: the
        first displacement is drawn from it.
      steps: gradient steps; 0 gives a random displacement.

    Raises:
      AttackError: for a budget or a number of steps out of range.

    >>> decode = lambda matrix, z: jnp.tanh(z @ matrix).reshape(-1, 2, 2, 3)
    >>> matrix = jnp.logspace(0, -2, 12)[:, None] * jnp.eye(12)
    >>> out = adversarial(decode, matrix, jnp.zeros((1, 12)), jax.random.key(0), budget=0.01)
    >>> out.images.shape, bool(out.change[0] <= 0.01)
    ((1, 2, 2, 3), True)
    """
    if not budget > 0:
        raise AttackError(f"adversarial: budget is {budget}, expected above 0")
    if steps < 0:
        raise AttackError(f"adversarial: steps is {steps}, expected 0 or more")
    latents = jnp.asarray(latents)
    scale = jnp.broadcast_to(jnp.asarray(scale, latents.dtype), latents.shape[1:])
    budget_array = jnp.asarray(budget, latents.dtype)
    moved, images, change = _search(decode, steps, params, latents, key, budget_array, scale)
    return AdversarialPictures(
        round_to_uint8(np.asarray(images, np.float64) * 127.5 + 127.5),
        np.asarray(moved),
        np.asarray(change),
    )


@program(static_argnums=(0, 1))
@full_precision
def _search(decode, steps, params, latents, key, budget, scale):
    pictures = jnp.clip(decode(params, latents), -1, 1)
    pixels = pictures[0].size

    def per_picture(values, like):
        """(B,) values spread over the axes of `like`."""
        values = values.reshape(values.shape[0], *(1,) * (like.ndim - 1))
        return jnp.broadcast_to(values, like.shape)

    def energy(displacement):
        """Summed squared change of each picture, and their sum over the batch."""
        images = jnp.clip(decode(params, latents + displacement), -1, 1)
        each = jnp.square(images - pictures).reshape(images.shape[0], -1).sum(1)
        return each.sum(), each

    def root_mean_square(displacement):
        return jnp.sqrt(energy(displacement)[1] / pixels)

    def step(_, displacement):
        slope = canonical_convolutions(jax.grad(energy, has_aux=True))
        gradient, each = slope(displacement)
        norm = jnp.square(gradient).reshape(gradient.shape[0], -1).sum(1)
        # Polyak's step for a function whose least value is 0: no step size to choose.
        step_size = each / jnp.maximum(norm, jnp.finfo(norm.dtype).tiny)
        displacement = displacement - per_picture(step_size, gradient) * gradient
        # Back to the budget, by at most a factor of two: pictures are not linear in the latent.
        ratio = budget / jnp.maximum(root_mean_square(displacement), budget / 2)
        return displacement * per_picture(jnp.maximum(ratio, 0.5), displacement)

    shape = latents.shape[1:]
    draw = jax.vmap(lambda k: jax.random.normal(k, shape, latents.dtype))
    start = draw(image_keys(key, latents.shape[0])) * jnp.broadcast_to(scale, latents.shape)
    start = _fit(root_mean_square, start, budget, per_picture)
    displacement = jax.lax.fori_loop(0, steps, step, start)
    displacement = _fit(root_mean_square, displacement, budget, per_picture)
    moved = latents + displacement
    images = jnp.clip(decode(params, moved), -1, 1)
    return moved, images, root_mean_square(displacement)


def _fit(root_mean_square, displacement, budget, per_picture):
    """The largest part of each displacement, found by bisection, that keeps to the budget."""
    count = displacement.shape[0]
    low, high = jnp.zeros(count, displacement.dtype), jnp.ones(count, displacement.dtype)

    def halve(_, bracket):
        low, high = bracket
        middle = (low + high) / 2
        fits = root_mean_square(displacement * per_picture(middle, displacement)) <= budget
        return jnp.where(fits, middle, low), jnp.where(fits, high, middle)

    whole = root_mean_square(displacement) <= budget
    low, _ = jax.lax.fori_loop(0, 20, halve, (low, high))
    return displacement * per_picture(jnp.where(whole, high, low), displacement)
