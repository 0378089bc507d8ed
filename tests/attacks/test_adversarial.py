"""The attacker without a key, on a generator whose sensitive directions are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpjax.attacks import AttackError
from fpjax.attacks.adversarial import adversarial

SIZE = 24


def decode(params, latents):
    return 0.5 * jnp.tanh(latents @ params).reshape(-1, 4, 6, 1)


@pytest.fixture(scope="module")
def params():
    """Sensitivities from 1 to 0.001, in a random basis of the pictures."""
    basis, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(SIZE, SIZE)))
    return jnp.asarray(np.logspace(0, -3, SIZE)[:, None] * basis, jnp.float32)


@pytest.fixture(scope="module")
def latents():
    return jnp.asarray(np.random.default_rng(1).normal(size=(3, SIZE)), jnp.float32)


def test_the_picture_keeps_to_the_budget_and_the_latent_goes_far(params, latents):
    key = jax.random.key(0)
    found = adversarial(decode, params, latents, key, budget=0.01)
    random = adversarial(decode, params, latents, key, budget=0.01, steps=0)
    before = np.asarray(decode(params, latents))
    for result in (found, random):
        change = np.sqrt(
            ((np.asarray(decode(params, result.latents)) - before) ** 2).mean((1, 2, 3))
        )
        np.testing.assert_allclose(result.change, change, rtol=1e-3)
        assert (change <= 0.01 * (1 + 1e-4)).all()
    distance, by_chance = (
        np.linalg.norm(result.latents - np.asarray(latents), axis=1) for result in (found, random)
    )
    assert (distance > 5 * by_chance).all()
    # What moves most is what the picture shows least.
    moved = np.abs(found.latents - np.asarray(latents)).mean(0)
    assert moved[-6:].mean() > 20 * moved[:6].mean()


def test_pictures_are_the_8_bit_ones_of_the_latents(params, latents):
    found = adversarial(decode, params, latents, jax.random.key(0), budget=0.01, steps=3)
    expected = np.asarray(decode(params, found.latents)) * 127.5 + 127.5
    assert found.images.dtype == np.uint8
    assert np.abs(found.images - expected).max() < 0.501


def test_a_picture_is_attacked_alike_alone_and_in_a_batch(params, latents):
    arguments = {"budget": 0.02, "steps": 5, "scale": jnp.ones(SIZE)}
    whole = adversarial(decode, params, latents, jax.random.key(1), **arguments)
    alone = adversarial(decode, params, latents[:1], jax.random.key(1), **arguments)
    np.testing.assert_allclose(alone.latents, whole.latents[:1], atol=1e-3)
    other = adversarial(decode, params, latents[:1], jax.random.key(2), **arguments)
    assert np.abs(other.latents - alone.latents).max() > 0.01


def test_it_runs_under_strict_types(params, latents):
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        found = adversarial(decode, params, latents, jax.random.key(0), budget=0.01, steps=1)
    assert found.latents.dtype == np.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budget": 0.0}, "budget is 0.0"),
        ({"budget": float("nan")}, "budget is nan"),
        ({"budget": 0.1, "steps": -1}, "steps is -1"),
    ],
)
def test_misuse_is_explained(params, latents, arguments, message):
    with pytest.raises(AttackError, match=message):
        adversarial(decode, params, latents, jax.random.key(0), **arguments)
