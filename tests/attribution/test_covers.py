"""Pictures of which a part is covered."""

import dataclasses

import jax
import numpy as np

import fpjax
from fpjax.attacks import GaussianNoise, Overlay
from fpjax.attribution import files
from fpjax.attribution.covers import _patches, covered_look, uneven
from fpjax.attribution.file_reader import FileReader, Readings
from fpjax.attribution.pictures import Picture
from fpjax.attribution.second_look import DEGRADATION
from fpjax.inversion.observation import Gaussian
from fpjax.inversion.problem import Problem
from fpjax.models.jacobian import DEFAULT_MEMORY


def test_a_sticker_is_seen_and_the_rest_is_read(tmp_path, monkeypatch):
    def nothing_found(reader, pictures, rows, first):
        del reader, pictures
        size = len(DEGRADATION.names)
        changes = {"parameters": np.zeros((1, size), np.float32), "residual": np.ones(1)}
        return _readings(first.take(rows), **changes)

    # What looks for windows and kernels first is tested elsewhere, and takes longer.
    monkeypatch.setattr(files, "second_look", nothing_found)
    scheme = fpjax.load_scheme("avatars-stylegan2/robust")
    with fpjax.Registry.create(
        tmp_path / "users.db", key_length=scheme.key_length, scheme_id=scheme.id
    ) as registry:
        key = registry.issue("ada", rng=np.random.default_rng(0))
        made = fpjax.generate(scheme, jax.random.key(6), key[None]).images
        covered = Overlay(area=0.1)(jax.random.fold_in(jax.random.key(7), 0), made)
        found = fpjax.attribute(scheme, [Picture(covered[0])], registry, observation="auto")
        np.testing.assert_array_equal(found.keys[0], key)
        verdict = found.verdicts[0]
        assert verdict.user == "ada" and verdict.attempts == 3
        assert verdict.finding == f"own file after {verdict.history}"
        # A tenth of the picture around an ellipse, of which that is 0.79, and a pixel more.
        share = int(verdict.history.removeprefix("a cover over ").removesuffix("% of it"))
        assert 6 <= share <= 14


def _readings(found, **changes):
    solution = dataclasses.replace(found, **changes)
    count = len(solution)
    return Readings(
        np.arange(count), solution, [""] * count, np.ones(count, bool), np.full(count, 1.5)
    )


def test_noise_is_even_and_what_is_explained_is_left_alone():
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
    changes = {
        "residual": residual,
        "parameters": np.zeros((2, len(DEGRADATION.names)), np.float32),
    }
    pictures = [Picture(image) for image in noisy]
    reader = FileReader(scheme, None, DEFAULT_MEMORY, None, None, 2, brief=True)
    reading = _readings(found, **changes)
    assert uneven(reader, pictures, reading).tolist() == [False, True]
    # A known resize, or what was once a JPEG: no degradation was looked for.
    nothing = _readings(
        found, **(changes | {"parameters": np.full_like(changes["parameters"], np.nan)})
    )
    assert not uneven(reader, pictures, nothing).any()
    explained = dataclasses.replace(reading, guessed=np.zeros(2, bool))
    assert not uneven(reader, pictures, explained).any()
    own = dataclasses.replace(reader, solver=fpjax.Adam(num_steps=3))
    assert not uneven(own, pictures, reading).any()


def test_a_picture_that_is_given_up_keeps_what_was_read_before():
    scheme = fpjax.load_scheme("avatars-stylegan2/robust")
    rng = np.random.default_rng(0)
    foreign = rng.integers(0, 256, scheme.generator.image_shape).astype(np.uint8)
    zeros = np.zeros((1, scheme.num_symbols), np.float32)
    made = fpjax.invert(
        Problem(scheme, Gaussian(0.1)), foreign[None], fpjax.LevenbergMarquardt(max_steps=1)
    )
    before = _readings(made, soft_bits=zeros + 0.25)
    reader = FileReader(scheme, None, DEFAULT_MEMORY, None, None, 1, brief=True)
    found = covered_look(reader, [Picture(foreign)], before)
    np.testing.assert_array_equal(found.solution.soft_bits, before.solution.soft_bits)
    assert found.histories == [""] and found.rows.tolist() == [0]


def test_one_colour_is_left_out_at_first_but_for_the_largest_patch():
    pixels = np.arange(3 * 400, dtype=np.uint8).reshape(20, 20, 3)
    pixels[:10], pixels[15:, 15:] = 255, 0
    expected = np.zeros((20, 20), bool)
    expected[15:, 15:] = True
    np.testing.assert_array_equal(_patches(pixels), expected)
