"""Recipes of a first stage and its prior: steps do what their sources say, and runs resume."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpjax.errors import InputError
from fpjax.models.autoencoder import AutoencoderConfig
from fpjax.models.diffusion import DiffusionConfig
from fpjax.models.unet import UNetConfig
from fpjax.training import encoded, first_stage, latent_prior, release_ldm, runs
from fpjax.training.train import batch_at, train

STAGE = first_stage.FirstStageConfig(
    AutoencoderConfig(
        ch=8,
        ch_mult=(1, 1),
        num_res_blocks=1,
        resolution=8,
        n_embed=16,
        double_z=False,
        norm_groups=4,
    ),
    total_images=48,
    batch_size=4,
    warm_up=2,
)
PRIOR = latent_prior.PriorConfig(
    DiffusionConfig(
        UNetConfig(
            image_size=4,
            model_channels=8,
            channel_mult=(1,),
            num_res_blocks=1,
            attention_resolutions=(),
            num_head_channels=8,
            norm_groups=4,
        )
    ),
    total_images=48,
    batch_size=4,
    warm_up=2,
)


def _images(num=16):
    rng = np.random.default_rng(0)
    smooth = rng.integers(0, 256, (num, 2, 2, 3)).repeat(4, axis=1).repeat(4, axis=2)
    return smooth.astype(np.uint8)


def _latents(num=16):
    return np.random.default_rng(1).normal(size=(num, 4, 4, 3)).astype(np.float32)


CASES = [(STAGE, _images), (PRIOR, _latents)]


def _steps(config, data, state, first, last):
    for step in range(first, last):
        batch = jnp.asarray(batch_at(data, config, step))
        state, metrics = runs.advance(config, state, batch, step)
    return state, metrics


@pytest.mark.parametrize(("config", "data"), CASES, ids=["first stage", "prior"])
def test_a_resumed_run_takes_the_steps_of_one_that_never_stopped(config, data, tmp_path):
    whole, metrics = _steps(config, data(), runs.init_state(config), 0, 4)
    assert all(np.isfinite(float(value)) for value in metrics.values())
    half, _ = _steps(config, data(), runs.init_state(config), 0, 2)
    manager = runs.checkpoint_manager(tmp_path / "checkpoints")
    runs.save(manager, config, half, 2, tmp_path)
    resumed, _ = _steps(config, data(), runs.restore_or_init(manager, config), 2, 4)
    manager.close()
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)


@pytest.mark.parametrize(("config", "data"), CASES, ids=["first stage", "prior"])
def test_a_step_keeps_every_type_whatever_switches_are_set(config, data):
    batch = data(4)

    def step(state, batch):
        return runs.advance(config, state, batch, 0)

    with (
        jax.enable_x64(True),
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
    ):
        state = jax.eval_shape(lambda: runs.init_state(config))
        after, metrics = jax.eval_shape(step, state, jax.ShapeDtypeStruct(batch.shape, batch.dtype))
    assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(lambda x: x.dtype, state)
    kinds = {x.dtype for x in jax.tree.leaves((after, metrics))}
    assert kinds == {jnp.dtype(jnp.float32), jnp.dtype(jnp.int32)}


def test_codes_that_nobody_uses_begin_again_at_encoded_vectors():
    state = first_stage.init_state(STAGE)
    assert float(jnp.abs(first_stage.codebook_of(state)).max()) == 0
    state, metrics = _steps(STAGE, _images(), state, 0, 1)
    codes = np.asarray(first_stage.codebook_of(state))
    assert len(np.unique(codes.round(4), axis=0)) == len(codes)
    assert 0 < float(metrics["codes_in_batch"]) <= 1
    assert float(state["code_counts"].min()) > 0


def test_training_lowers_the_error_of_pictures_and_of_noise():
    config = dataclasses.replace(STAGE, total_images=1200, learning_rate=3e-3)
    state, first = _steps(config, _images(), runs.init_state(config), 0, 1)
    start = float(first["l1"])
    state, last = _steps(config, _images(), state, 1, 60)
    assert float(last["l1"]) < 0.7 * start
    config = dataclasses.replace(PRIOR, total_images=1200, learning_rate=3e-3)
    state, first = _steps(config, _latents(), runs.init_state(config), 0, 1)
    start = float(first["noise_error"])
    assert 0.5 < start < 1.5  # the first prediction is zero
    _, last = _steps(config, _latents(), state, 1, 60)
    assert float(last["noise_error"]) < start


def test_both_runs_reach_their_end_and_give_a_generator(tmp_path):
    stage_run, prior_run = tmp_path / "stage", tmp_path / "prior"
    steps = {"checkpoint_steps": 6, "log_steps": 6}

    def pairs(state):
        return runs.reconstruction_grid(
            STAGE, first_stage.averaged_params(state), _images(4), columns=2
        )

    train(STAGE, _images(), stage_run, **steps, grid=pairs)
    assert (stage_run / "samples" / "00000048.png").exists()
    stage = encoded.FirstStage.of_run(stage_run, STAGE)
    latents = encoded.latents_of(stage, prior_run, _images)
    assert latents.shape == (16, 4, 4, 3)
    np.testing.assert_array_equal(encoded.latents_of(stage, prior_run, _fail), latents)
    stage = stage.scaled(latents)
    assert abs((latents * stage.config.scale_factor).std() - 1) < 1e-3
    state = train(PRIOR, latents, prior_run, **steps)
    grid = encoded.prior_grid(stage, PRIOR.model, state["average"], columns=2)
    assert grid.shape == (16, 16, 3)
    later = dataclasses.replace(stage, step=stage.step + 1)
    with pytest.raises(InputError, match="to begin again"):
        encoded.latents_of(later, prior_run, _images)
    with pytest.raises(InputError, match="train the first stage first"):
        encoded.FirstStage.of_run(tmp_path / "nothing", STAGE)


def _fail():
    raise AssertionError("the latents were kept")


def test_a_recipe_of_a_first_stage_refuses_what_has_no_codes_or_a_scale():
    with pytest.raises(ValueError, match="n_embed"):
        first_stage.FirstStageConfig(AutoencoderConfig(), 10)
    with pytest.raises(ValueError, match="scale_factor 1"):
        dataclasses.replace(STAGE, model=dataclasses.replace(STAGE.model, scale_factor=2.0))


def test_the_card_of_a_release_says_what_was_measured():
    info = {
        "first_stage_images_seen": 40_000,
        "prior_images_seen": 160_000,
        "reconstruction_psnr_db": 30.25,
        "reconstruction_psnr_db_unquantized": 31.5,
        "codes_in_use": 0.9,
        "frechet_distance": 100.0,
        "frechet_distance_of_reconstructions": 50.0,
        "frechet_distance_of_test_images": 10.0,
        "frechet_num_test_images": 1000,
        "frechet_features": "of somebody",
        "sha256": "abc",
    }
    card = release_ldm.model_card(info, STAGE, PRIOR)
    for word in ("160,000 latents", "40,000 images", "30.2 dB", "90%", "1,000 of each", "abc"):
        assert word in card


def test_the_codes_in_use_are_counted():
    state = runs.init_state(STAGE)
    params = {**state["average"], "codebook": jnp.zeros((16, 3)).at[1:].set(1e3)}
    stage = encoded.FirstStage(STAGE.model, params, 0)
    assert release_ldm.codes_in_use(stage, _images()) == 1 / 16
