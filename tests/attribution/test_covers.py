"""Pictures of which a part is covered."""

import jax
import numpy as np

import fpjax
from fpjax.attacks import GaussianNoise, Overlay
from fpjax.attribution.covers import uneven
from fpjax.attribution.pictures import Picture
from fpjax.inversion.observation import Gaussian
from fpjax.inversion.problem import Problem


def test_a_sticker_is_seen_and_the_rest_is_read(tmp_path):
    scheme = fpjax.load_scheme("avatars-stylegan2/robust")
    keys = fpjax.sample_keys(jax.random.key(5), 1, scheme.key_length)
    made = fpjax.generate(scheme, jax.random.key(6), keys).images
    covered = Overlay(area=0.1)(jax.random.fold_in(jax.random.key(7), 0), made)
    with fpjax.Registry.create(
        tmp_path / "users.db", key_length=scheme.key_length, scheme_id=scheme.id
    ) as registry:
        registry.issue("somebody", rng=np.random.default_rng(0))
        found = fpjax.attribute(scheme, [Picture(covered[0])], registry, observation="auto")
        np.testing.assert_array_equal(found.keys, keys)
        verdict = found.verdicts[0]
        assert verdict.user is None and verdict.attempts == 3
        # A tenth of the picture around an ellipse, of which that is 0.79, and a pixel more.
        share = int(verdict.history.split("%")[0])
        assert verdict.history.endswith("of it covered") and 6 <= share <= 14


def test_noise_is_even():
    scheme = fpjax.load_scheme("avatars-stylegan2/robust")
    keys = fpjax.sample_keys(jax.random.key(5), 2, scheme.key_length)
    made = fpjax.generate(scheme, jax.random.key(6), keys)
    noisy = GaussianNoise(std=0.1)(jax.random.key(7), made.images)
    noisy[1:] = Overlay(area=0.1)(jax.random.key(7), made.images[1:])
    problem = Problem(scheme, Gaussian(0.1))
    found = fpjax.invert(problem, made.images, fpjax.LevenbergMarquardt(max_steps=2))
    # What is found of the pictures before, beside the files.
    left = noisy.astype(np.float32) / 127.5 - made.images.astype(np.float32) / 127.5
    residual = np.sqrt(np.mean(left**2, axis=(1, 2, 3)))
    found = found.__class__(**{**vars(found), "residual": residual})
    assert uneven(scheme, [Picture(x) for x in noisy], found, None).tolist() == [False, True]
