"""What ships in the package: sizes, licences, and a scheme that fits its generator."""

import dataclasses
import json

import numpy as np
import pytest

import fpjax
from fpjax import zoo
from fpjax.data.files import load_image
from fpjax.fingerprint.embed import natural_images
from fpjax.models.checkpoint import canonical_json
from fpjax.zoo.recipes import RECIPES

NAME = "avatars-stylegan2"


@pytest.fixture(scope="module")
def scheme():
    return fpjax.load_scheme(NAME)


def test_weights_fit_twelve_mebibytes():
    assert (zoo.model_path(NAME) / "params.safetensors").stat().st_size < 12 * 2**20


def test_the_card_says_data_licence_recipe_and_hash(scheme):
    card = (zoo.model_path(NAME) / "MODEL_CARD.md").read_text()
    for word in ("CC0", "Recipe", "Images seen", "Frechet distance", scheme.generator.sha256):
        assert word in card


def test_the_scheme_has_the_published_shape_and_is_calibrated(scheme):
    assert (scheme.key_length, scheme.shift, len(scheme.basis)) == (64, 448, 512)
    assert scheme.calibration.start.weight.shape == (3072, 512)
    assert 1 < scheme.calibration.max_noise_ratio < 100


def test_the_weights_were_made_by_the_recipe_in_the_project(scheme):
    recipe = dataclasses.asdict(RECIPES[NAME])
    assert scheme.generator.info["recipe"] == json.loads(canonical_json(recipe))


def test_generated_images_are_pictures_on_white(scheme):
    import jax

    images = natural_images(scheme.generator, jax.random.key(0), 16)
    corners = images[:, :3, :3].astype(float)
    assert corners.mean() > 230
    assert images.astype(float).std() > 40


def test_sixteen_foreign_images_of_the_generators_size(scheme):
    paths = zoo.foreign_image_paths(NAME)
    assert len(paths) == 16
    for path in paths:
        assert load_image(path, (32, 32, 3)).shape == (32, 32, 3)


def test_keys_come_back_from_eight_bits(scheme):
    import jax

    keys = fpjax.sample_keys(jax.random.key(5), 2, 64)
    images = fpjax.generate(scheme, jax.random.key(6), keys).images
    found = fpjax.attribute(scheme, images)
    np.testing.assert_array_equal(found.keys, keys)
