"""Does somebody's generator keep the protocol? A check that says what does not, and what to do."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fpjax.errors import FpjaxError
from fpjax.models.generator import Generator
from fpjax.precision import full_precision

_LARGEST_CONSTANT = 1 << 20
_BATCH = 3


class GeneratorError(FpjaxError):
    """A generator that breaks the protocol; the message lists every broken rule.

    >>> from fpjax.models.linear import linear_generator
    >>> noisy = linear_generator().replace(decode=lambda params, latents: latents[:, :2])
    >>> check_generator(noisy)
    Traceback (most recent call last):
        ...
    fpjax.models.conformance.GeneratorError: ...
    """


@full_precision
def check_generator(generator: Generator, key: jax.Array | None = None) -> None:
    """Checks that a generator keeps the protocol that fingerprints rely on.

    Shapes and types of latents and images; values finite and roughly in [-1, 1]; the same answer
    twice, alone and in a batch, under jit and vmap; finite derivatives, forward and reverse, that
    agree with each other; no large array captured as a constant instead of being a parameter; a
    hash that does not change.

    Args:
      generator: what to check.
      key: PRNG key of the latents.

    Raises:
      GeneratorError: naming each rule that is broken.

    >>> generator = Generator(
    ...     decode=lambda params, z: jnp.tanh(z @ params).reshape(-1, 4, 6, 1),
    ...     params=jnp.ones((8, 24)), latent_shape=(8,), image_shape=(4, 6, 1))
    >>> check_generator(generator)
    """
    key = jax.random.key(0) if key is None else key
    broken: list[str] = []
    latents = _latents(generator, key, broken)
    images = _images(generator, latents, broken)
    if images is not None:
        _check_same(generator, latents, images, broken)
        _check_derivatives(generator, latents, broken)
    _check_constants(generator, latents, broken)
    copied = generator.replace(params=jax.tree.map(jnp.array, generator.params))
    if copied.sha256 != generator.sha256:
        broken.append("sha256 changes when the parameters are copied")
    if broken:
        raise GeneratorError(f"generator {generator.name!r}: " + "; ".join(broken))


def _latents(generator: Generator, key: jax.Array, broken: list[str]) -> jax.Array:
    shape = (_BATCH, *generator.latent_shape)
    if generator.sample_latents is None:
        return jax.random.normal(key, shape, jnp.float32)
    latents = generator.natural_latents(key, _BATCH)
    if latents.shape != shape or latents.dtype != jnp.float32:
        broken.append(
            f"sample_latents gives {latents.dtype} {latents.shape}, expected float32 {shape}"
        )
        return jax.random.normal(key, shape, jnp.float32)
    if not bool(jnp.isfinite(latents).all()):
        broken.append("sample_latents gives values that are not finite")
    again = generator.natural_latents(key, _BATCH)
    if not bool((again == latents).all()):
        broken.append("sample_latents gives other latents for the same key: draw with the key only")
    return latents


def _images(generator: Generator, latents: jax.Array, broken: list[str]) -> jax.Array | None:
    images = jax.jit(generator.decode)(generator.params, latents)
    shape = (_BATCH, *generator.image_shape)
    if images.shape != shape or images.dtype != jnp.float32:
        broken.append(f"decode gives {images.dtype} {images.shape}, expected float32 {shape}")
        return None
    if not bool(jnp.isfinite(images).all()):
        broken.append("decode gives values that are not finite")
        return None
    low, high = float(images.min()), float(images.max())
    outside = float(jnp.mean(jnp.abs(images) > 1))
    if outside > 0.5 or high - low < 1e-3:
        broken.append(
            f"images span [{low:.3g}, {high:.3g}], {100 * outside:.0f} % outside [-1, 1]: expected "
            "pictures in [-1, 1]"
        )
    return images


def _check_same(
    generator: Generator, latents: jax.Array, images: jax.Array, broken: list[str]
) -> None:
    scale = float(jnp.std(images)) + 1e-6

    def differs(other: jax.Array) -> bool:
        # Devices may add in another order: a thousandth of the spread is no other picture.
        return other.shape != images.shape or float(jnp.abs(other - images).max()) > 1e-3 * scale

    def decode(x):
        return generator.decode(generator.params, x)

    def one(latent):
        return decode(latent[None])[0]

    # Each is traced anew: a function that keeps a state shows it. Whole programs, not operation by
    # operation: a network of a few hundred would take minutes.
    for what, function in (
        ("a second time", jax.jit(lambda x: decode(x))),
        ("under vmap", jax.jit(jax.vmap(one))),
        ("one at a time", jax.jit(lambda x: jnp.stack([one(latent) for latent in x]))),
    ):
        try:
            if differs(function(latents)):
                broken.append(f"decode gives other images {what}")
        except Exception as error:  # whatever a stranger's function raises is the finding
            broken.append(f"decode fails {what} ({_first_line(error)})")


def _check_derivatives(generator: Generator, latents: jax.Array, broken: list[str]) -> None:
    def function(latent):
        return generator.decode(generator.params, latent[None])[0]

    point = latents[0]
    tangent = jnp.ones_like(point) / math.sqrt(point.size)
    try:
        image, forward = jax.jit(lambda x, t: jax.jvp(function, (x,), (t,)))(point, tangent)
        cotangent = jnp.ones_like(image)
        (reverse,) = jax.jit(lambda x, c: jax.vjp(function, x)[1](c))(point, cotangent)
    except Exception as error:  # whatever a stranger's function raises is the finding
        broken.append(f"decode has no derivative ({_first_line(error)})")
        return
    if not bool(jnp.isfinite(forward).all() & jnp.isfinite(reverse).all()):
        broken.append("derivatives of decode are not finite")
        return
    if not bool(jnp.any(forward != 0)):
        broken.append("decode does not depend on the latent")
    a, b = float(jnp.sum(forward * cotangent)), float(jnp.sum(reverse * tangent))
    size = float(jnp.linalg.norm(forward) * jnp.linalg.norm(cotangent)) + 1e-6
    if abs(a - b) > 1e-2 * size:
        broken.append("forward and reverse derivatives of decode disagree")


def _check_constants(generator: Generator, latents: jax.Array, broken: list[str]) -> None:
    functions: list[tuple[str, Callable, tuple]] = [
        ("decode", generator.decode, (generator.params, latents))
    ]
    if generator.sample_latents is not None:
        sample = generator.sample_latents
        functions.append(
            (
                "sample_latents",
                lambda p, k: sample(p, k, _BATCH),
                (generator.params, jax.random.key(0)),
            )
        )
    for name, function, arguments in functions:
        try:
            constants = jax.make_jaxpr(function)(*arguments).consts
        except Exception as error:  # whatever a stranger's function raises is the finding
            broken.append(f"{name} cannot be traced ({_first_line(error)})")
            continue
        largest = max((np.size(c) * np.dtype(c.dtype).itemsize for c in constants), default=0)
        if largest > _LARGEST_CONSTANT:
            broken.append(
                f"{name} captures an array of {largest >> 20} MiB: make it part of params"
            )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
