"""Regeneration: what the bundled autoencoder makes of pictures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fpjax
from fpjax.attacks import Regenerate
from fpjax.training.avatars import render_avatar


@pytest.fixture(scope="module")
def drawings():
    """Pictures like those that it was trained on, of its size."""
    pytest.importorskip("dicebear")
    return np.stack([render_avatar(f"regenerated-{i}", 64) for i in range(2)])


def _psnr(some, others):
    difference = some.astype(np.float64) - others
    return 20 * np.log10(255) - 10 * np.log10(np.mean(difference**2))


def test_it_is_the_autoencoder_s_own_way_there_and_back(drawings):
    generator = fpjax.load_generator("avatars-ldm")
    pictures = jnp.asarray(drawings, jnp.float32) / 127.5 - 1
    latents = generator.encode(generator.params, pictures)
    expected = np.asarray(generator.decode(generator.params, latents)) * 127.5 + 127.5
    found = Regenerate()(None, drawings).astype(np.float64)
    # Sums in another order may decide for another code, here and there.
    assert np.mean(np.abs(found - np.clip(expected, 0, 255)) > 0.51) < 0.01
    assert _psnr(found, drawings) > 20


def test_passes_are_made_one_after_the_other_and_noise_does_more(drawings):
    once = Regenerate()(None, drawings)
    np.testing.assert_array_equal(Regenerate(passes=2)(None, drawings), Regenerate()(None, once))
    noisy = [Regenerate(noise=std)(jax.random.key(0), drawings) for std in (0.2, 1.0)]
    assert _psnr(once, drawings) > _psnr(noisy[0], drawings) > _psnr(noisy[1], drawings)


def test_pictures_of_another_size_come_back_in_theirs():
    wide = np.repeat(np.arange(60, dtype=np.uint8)[None, None, :, None] * 4, 3, axis=3)
    wide = np.repeat(wide, 40, axis=1)
    out = Regenerate()(None, wide)
    assert out.shape == wide.shape and out.dtype == np.uint8
