"""Training: a step does what its sources say, and an interrupted run goes on where it stopped."""

import functools
import json
import signal
import subprocess
import sys
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpjax.models.stylegan2 import StyleGAN2Config
from fpjax.training import discriminator, gan, runs

CONFIG = gan.GANConfig(
    StyleGAN2Config(8, 8, 8, 1, channels=((4, 8), (8, 8))),
    critic_channels=((4, 8), (8, 8)),
    total_images=64,
    batch_size=4,
    r1_interval=2,
)


def _images(num=16):
    return np.random.default_rng(0).integers(0, 256, (num, 8, 8, 3)).astype(np.uint8)


def _steps(state, first, last):
    from fpjax.training.train import batch_at

    for step in range(first, last):
        real = jnp.asarray(batch_at(_images(), CONFIG, step))
        state, metrics = gan.train_step(CONFIG, state, real, step % CONFIG.r1_interval == 0)
    return state, metrics


def test_a_resumed_run_takes_the_steps_of_one_that_never_stopped(tmp_path):
    whole, _ = _steps(gan.init_state(CONFIG), 0, 6)
    half, _ = _steps(gan.init_state(CONFIG), 0, 3)
    manager = runs.checkpoint_manager(tmp_path / "checkpoints")
    runs.save(manager, CONFIG, half, 3, tmp_path)
    resumed, _ = _steps(runs.restore_or_init(manager, CONFIG), 3, 6)
    manager.close()
    chex.assert_trees_all_equal(whole, resumed)
    assert (tmp_path / "samples" / "00000012.png").exists()


def test_losses_are_finite_and_the_average_lags_behind():
    state, metrics = _steps(gan.init_state(CONFIG), 0, 4)
    assert all(np.isfinite(float(value)) for value in metrics.values())
    live = state["generator"]["synthesis"]["b8"]["conv1"]["weight"]
    average = state["average"]["synthesis"]["b8"]["conv1"]["weight"]
    fresh = gan.init_state(CONFIG)["generator"]["synthesis"]["b8"]["conv1"]["weight"]
    assert float(jnp.abs(live - fresh).max()) > 0
    assert float(jnp.abs(average - fresh).max()) < float(jnp.abs(live - fresh).max())


def test_stored_noise_is_never_trained_and_w_avg_follows_w():
    before = gan.init_state(CONFIG)
    noise = np.asarray(before["generator"]["synthesis"]["b8"]["conv1"]["noise_const"])
    after, _ = _steps(before, 0, 3)
    np.testing.assert_array_equal(
        after["generator"]["synthesis"]["b8"]["conv1"]["noise_const"], noise
    )
    assert float(jnp.abs(after["generator"]["mapping"]["w_avg"]).max()) > 0


def test_the_learning_rate_falls_to_zero_at_the_end():
    state = gan.init_state(CONFIG)
    state["optimizer_g"] = jax.tree.map(
        lambda x: jnp.full_like(x, CONFIG.total_steps) if x.dtype == jnp.int32 else x,
        state["optimizer_g"],
    )
    before = np.asarray(state["generator"]["mapping"]["fc0"]["weight"])
    after, _ = _steps(state, 0, 1)
    np.testing.assert_array_equal(after["generator"]["mapping"]["fc0"]["weight"], before)


def test_minibatch_deviation_tells_a_collapsed_batch():
    one = jax.random.normal(jax.random.key(0), (1, 4, 4, 3))
    collapsed = discriminator.minibatch_standard_deviation(jnp.repeat(one, 8, axis=0))
    varied = discriminator.minibatch_standard_deviation(
        jax.random.normal(jax.random.key(1), (8, 4, 4, 3))
    )
    assert float(collapsed[..., -1].max()) < 1e-3 < float(varied[..., -1].min())


@pytest.mark.parametrize("with_r1", [False, True])
def test_a_step_keeps_every_type_whatever_switches_are_set(with_r1):
    step = functools.partial(gan.train_step, CONFIG, with_r1=with_r1)
    images = jax.ShapeDtypeStruct((4, 8, 8, 3), jnp.uint8)
    with (
        jax.enable_x64(True),
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
    ):
        state = jax.eval_shape(lambda: gan.init_state(CONFIG))
        after, metrics = jax.eval_shape(step, state, images)
    assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(lambda x: x.dtype, state)
    kinds = {x.dtype for x in jax.tree.leaves((after, metrics))}
    assert kinds == {jnp.dtype(jnp.float32), jnp.dtype(jnp.int32)}


_RUN = """
import sys, numpy as np
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.training.test_gan import CONFIG, _images
from fpjax.training.train import train
print("go", flush=True)
train(CONFIG, _images(), Path(sys.argv[1]), checkpoint_steps=2, log_steps=2)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_continues_to_its_end(tmp_path, request, number):
    root = str(request.config.rootpath)
    arguments = [sys.executable, "-c", _RUN, str(tmp_path), root]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout.readline() == b"go\n"
        while process.poll() is None and not list((tmp_path / "samples").glob("*.png")):
            time.sleep(0.05)
        process.send_signal(number)
        code = process.wait()
    if number == signal.SIGINT and code != 0:
        # Asked to stop: the step it was at is saved, whatever the interval.
        assert code == 130
    subprocess.run(arguments, check=True, capture_output=True)
    lines = (tmp_path / "train.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == CONFIG.total_steps
    assert (tmp_path / "samples" / "00000064.png").exists()


def test_the_recipe_has_the_papers_latent_sizes():
    from fpjax.training.recipes import RECIPES

    model = RECIPES["avatars-stylegan2"].model
    assert model.z_dim == model.w_dim == 512
