"""The generator protocol: a record of pure functions from latents to images, with parameters.

A generator is what fingerprints are put into and latents are inverted out of. Anyone can fill the
record (`docs/generators.md`); the StyleGAN2 and latent-diffusion generators of this package fill it
too. It is a pytree whose leaves are the parameters: its functions and shapes are static under jit,
its arrays are arguments.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from fpjax.errors import InputError
from fpjax.models.checkpoint import canonical_json
from fpjax.programs import program

Array = jax.Array


def static(**options) -> Any:
    """A dataclass field that is static under jit: compared by equality, never traced."""
    return dataclasses.field(metadata={"static": True}, **options)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Generator:
    """Pure functions, shapes, and the parameters that the functions take.

    Attributes:
      decode: (params, latents (B, *latent_shape) float32) -> images (B, *image_shape) float32,
        nominally in [-1, 1], not clipped. Pure: it may be jitted, vmapped and differentiated.
      params: any pytree of arrays; all that `decode` needs beside the latents.
      latent_shape: shape of one latent.
      image_shape: (height, width, channels), channels 1 or 3.
      sample_latents: (params, PRNG key, num) -> (num, *latent_shape) natural latents, or None
        where nothing draws them.
      encode: (params, images) -> latents, or None.
      name: for people; part of what a scheme records.

    Two generators whose functions are the same objects (or equal, hashable ones) share compiled
    programs; only the arrays differ.

    Raises:
      InputError: for shapes or functions that cannot be.

    >>> import jax.numpy as jnp
    >>> generator = Generator(
    ...     decode=lambda params, z: jnp.tanh(z @ params).reshape(-1, 4, 6, 1),
    ...     params=jnp.ones((8, 24)), latent_shape=(8,), image_shape=(4, 6, 1),
    ...     sample_latents=lambda params, key, num: jax.random.normal(key, (num, 8)), name="toy")
    >>> generator.decode(generator.params, jnp.zeros((2, 8))).shape
    (2, 4, 6, 1)
    """

    decode: Callable[..., Array] = static()
    params: Any
    latent_shape: tuple[int, ...] = static()
    image_shape: tuple[int, int, int] = static()
    sample_latents: Callable[..., Array] | None = static(default=None)
    encode: Callable[..., Array] | None = static(default=None)
    name: str = static(default="custom")

    def __post_init__(self):
        for field in ("latent_shape", "image_shape"):
            try:
                shape = tuple(int(side) for side in getattr(self, field))
            except TypeError:
                shape = ()
            if not shape or min(shape) < 1:
                raise InputError(
                    f"{field} {getattr(self, field)!r}: expected positive whole numbers"
                )
            object.__setattr__(self, field, shape)
        if len(self.image_shape) != 3 or self.image_shape[2] not in (1, 3):
            raise InputError(
                f"image_shape {self.image_shape}: expected (height, width, channels) with 1 or 3 "
                "channels"
            )
        for field in ("decode", "sample_latents", "encode"):
            value = getattr(self, field)
            if not callable(value) and (field == "decode" or value is not None):
                raise InputError(f"{field} is {type(value).__name__}: expected a function")

    @property
    def latent_size(self) -> int:
        """Number of values in a latent, D."""
        return math.prod(self.latent_shape)

    @property
    def noise(self) -> str:
        """Noise mode that a scheme records; only StyleGAN2 has another than "const"."""
        return "const"

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of name, shapes and every parameter; a scheme is bound to it.

        The functions' code has no stable hash: a scheme also keeps a picture that they made, and
        opening it compares (`Scheme.load`).
        """
        digest = hashlib.sha256()
        header = ["custom", self.name, list(self.latent_shape), list(self.image_shape)]
        digest.update(canonical_json(header).encode())
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.params):
            array = np.asarray(jax.device_get(leaf))
            if np.issubdtype(array.dtype, np.floating) or array.dtype.kind == "V":
                array = array.astype("<f4")
            else:
                array = array.astype(array.dtype.newbyteorder("<"))
            label = [jax.tree_util.keystr(path), list(array.shape), array.dtype.str]
            digest.update(canonical_json(label).encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def replace(self, **changes) -> Generator:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def natural_latents(self, key: PRNGKeyArray, num: int) -> Float[Array, "num ..."]:
        """Draws (num, *latent_shape) natural latents.

        Raises:
          InputError: if nothing draws latents here.
        """
        if self.sample_latents is None:
            raise InputError(
                f"generator {self.name!r} has no sample_latents: give one, or encode images"
            )
        return _sample(self, key, num)


@program(static_argnums=2)
def _sample(generator: Generator, key: Array, num: int) -> Array:
    assert generator.sample_latents is not None
    return generator.sample_latents(generator.params, key, num)
