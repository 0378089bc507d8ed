"""`check_generator` finds each broken rule of the protocol and names it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fpjax
from fpjax.models.conformance import GeneratorError
from tests import toys


def _large(params, latents):
    """Keeps two MiB to itself that belong in the parameters."""
    kept = jnp.asarray(np.random.default_rng(0).standard_normal((2**19,)), jnp.float32)
    return toys.linear_decode(params, latents) + 0 * kept[0]


BROKEN = {
    "expected float32": lambda p, z: toys.linear_decode(p, z)[:, :3],
    "not finite": toys.broken_decode,
    "outside": lambda p, z: 300 * toys.linear_decode(p, z) + 5,
    "does not depend on the latent": lambda p, z: toys.linear_decode(p, z * 0) + p["matrix"][0, 0]
    + jnp.linspace(-0.5, 0.5, 120).reshape(1, *toys.SHAPE),
    "one at a time": lambda p, z: toys.linear_decode(p, z - z.mean(axis=0, keepdims=True)),
    "make it part of params": _large,
}  # fmt: skip


def test_a_generator_that_keeps_the_protocol_passes():
    fpjax.check_generator(toys.generator(toys.curved_decode))


@pytest.mark.parametrize("complaint", BROKEN)
def test_a_broken_rule_is_named(complaint):
    with pytest.raises(GeneratorError, match=complaint):
        fpjax.check_generator(toys.generator().replace(decode=BROKEN[complaint]))


def test_latents_of_another_shape_are_named():
    bad = toys.generator().replace(
        sample_latents=lambda params, key, num: jax.random.normal(key, (num, 3), jnp.float32)
    )
    with pytest.raises(GeneratorError, match=r"sample_latents gives .*expected float32 \(3, 16\)"):
        fpjax.check_generator(bad)


def test_shapes_and_functions_that_cannot_be_are_refused():
    options = {"params": {}, "latent_shape": (4,), "image_shape": (8, 8, 3)}
    for changes in ({"image_shape": (8, 8, 2)}, {"latent_shape": ()}, {"decode": "no function"}):
        with pytest.raises(fpjax.InputError):
            fpjax.Generator(**{"decode": toys.linear_decode, **options, **changes})
