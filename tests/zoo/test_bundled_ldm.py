"""The bundled latent diffusion model: what ships, and that its encoder reads its scheme's keys."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import fpjax
from fpjax import zoo
from fpjax.io.images import load_image
from fpjax.models.checkpoint import canonical_json
from fpjax.studies.quality import psnr_db
from fpjax.training.recipes import RECIPES

NAME = "avatars-ldm"


@pytest.fixture(scope="module")
def scheme():
    return fpjax.load_scheme(NAME)


@pytest.fixture(scope="module")
def made(scheme):
    keys = fpjax.sample_keys(jax.random.key(5), 8, 64)
    return fpjax.generate(scheme, jax.random.key(6), keys)


def test_the_weights_of_all_bundled_models_fit_sixteen_mebibytes():
    files = [p for name in zoo.names() for p in zoo.model_path(name).rglob("params.safetensors")]
    assert len(files) == 3
    assert sum(p.stat().st_size for p in files) < 16 * 2**20


def test_the_card_says_data_licence_recipes_and_hash(scheme):
    card = (zoo.model_path(NAME) / "MODEL_CARD.md").read_text()
    for word in ("CC0", "recipe", "images seen", "Frechet distance", "PSNR", "Codes in use"):
        assert word in card
    assert scheme.generator.sha256 in card


def test_the_weights_were_made_by_the_recipes_in_the_project(scheme):
    recipe = {
        part.replace("-", "_"): dataclasses.asdict(RECIPES[f"{NAME}-{part}"])
        for part in ("first-stage", "prior")
    }
    assert scheme.generator.info["recipe"] == json.loads(canonical_json(recipe))


def test_samples_are_pictures_on_white_like_those_it_learned_from(made):
    corners = made.originals[:, :3, :3].astype(float)
    assert corners.mean() > 230
    assert made.originals.astype(float).std() > 40


def test_sixteen_foreign_images_of_the_generators_size():
    paths = zoo.foreign_image_paths(NAME)
    assert len(paths) == 16
    assert all(load_image(path, (64, 64, 3)).shape == (64, 64, 3) for path in paths)


def test_the_default_scheme_is_read_by_the_encoder_from_eight_bits(scheme, made):
    assert (scheme.key_length, scheme.basis.metric, scheme.generator.noise) == (
        64, "image", "unquantized",
    )  # fmt: skip
    assert scheme.calibration.solver == "encoder"
    assert psnr_db(made.originals, made.images).mean() > 31
    found = fpjax.attribute(scheme, made.images)
    assert found.solver == "encoder"
    # The demo counts keys that are exact in all bits; here is room for one bit.
    assert (found.keys != made.keys).sum() <= 1
    np.testing.assert_array_less(found.solution.noise_ratio, 3)


@pytest.mark.slow
def test_an_inversion_reads_the_same_keys_down_to_the_rounding(scheme, made):
    found = fpjax.attribute(scheme, made.images[:1], solver=fpjax.LevenbergMarquardt())
    np.testing.assert_array_equal(found.keys, made.keys[:1])
    assert found.solution.noise_ratio[0] < 1.1
