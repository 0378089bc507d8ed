"""What ships in the package: sizes, licences, and a scheme that fits its generator."""

import dataclasses
import json

import numpy as np
import pytest

import fpjax
from fpjax import zoo
from fpjax.fingerprint.decode import natural_images
from fpjax.io.images import load_image
from fpjax.models.checkpoint import canonical_json
from fpjax.training.recipes import RECIPES

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


def test_the_default_scheme_writes_by_the_image_metric_and_is_calibrated(scheme):
    assert (scheme.key_length, scheme.basis.metric, scheme.levels) == (64, "image", "antipodal")
    assert scheme.shift + 64 == len(scheme.basis) < 512
    assert scheme.calibration.start.weight.shape == (3072, len(scheme.basis))
    assert 1 < scheme.calibration.max_noise_ratio < 3


def test_keys_of_the_default_scheme_cost_little(scheme):
    """Mean PSNR to the original of 64 pictures."""
    import jax

    from fpjax.studies.quality import psnr_db

    keys = fpjax.sample_keys(jax.random.key(5), 64, 64)
    made = fpjax.generate(scheme, jax.random.key(6), keys)
    assert psnr_db(made.originals, made.images).mean() > 45


def test_a_stronger_scheme_is_bundled_for_recompressed_files(scheme):
    robust = fpjax.load_scheme(f"{NAME}/robust")
    assert (robust.key_length, robust.num_symbols) == (51, 64)
    assert robust.code.uniform and robust.shift == len(robust.basis) - 64
    assert robust.strength > 4 * scheme.strength
    assert robust.calibration.own_noise_ratio < 1.1
    card = (zoo.scheme_path(f"{NAME}/robust") / "CARD.md").read_text()
    assert robust.id in card and "JPEG 75" in card


def test_the_first_versions_scheme_stays_readable_under_its_name():
    """A file of format 1; registries are bound to its identity, which must never change."""
    scheme = fpjax.load_scheme(f"{NAME}/pca")
    assert (scheme.key_length, scheme.shift, len(scheme.basis)) == (64, 448, 512)
    assert scheme.id == "4d7dfe804b19374834f0c9502244ec9041f8094a5faee3c40df6258023160b6c"
    assert scheme.calibration.start.weight.shape == (3072, 512)


@pytest.mark.parametrize(
    ("variant", "strength", "directions", "identity"),
    [
        (
            "jacobians-64", 0.07, 414,
            "5ac947caa79e3b28951789e687e3d33eb4733fd69b5fa09db32380928b2ba675",
        ),
        (
            "robust-jacobians-64", 0.3, 414,
            "679c4feb6f47b0a4d418af91224c97925c87a72a083c3b42148d9cc19c4029e9",
        ),
        (
            "robust-uncoded", 0.3, 422,
            "6b677c40fec916224d7513b0c9e198b5885a5760f0dd57d206c45f9a94d1d897",
        ),
    ],
)  # fmt: skip
def test_schemes_of_before_stay_readable_under_their_names(variant, strength, directions, identity):
    scheme = fpjax.load_scheme(f"{NAME}/{variant}")
    assert scheme.id == identity
    assert scheme.strength == np.float32(strength) and len(scheme.basis) == directions
    assert scheme.calibration.start.weight.shape == (3072, directions)


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
