"""Schedules and DDIM: parity with the published sampler, and samples that belong to their key."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from checkpoints_convert.publishers import compvis_unet
from checkpoints_convert.publishers.compvis_unet import UNetOptions
from checkpoints_convert.table import select
from fpjax.models import diffusion
from fpjax.models.diffusion import DiffusionConfig, DiffusionPrior
from fpjax.models.unet import UNetConfig
from tests.reference import fixture, relative_error

# Float32 sums in another order; the bound of every parity test in this project.
PARITY = 1e-4


def nhwc(x):
    return jnp.asarray(np.moveaxis(x, -3, -1))


@pytest.fixture(scope="module")
def small():
    path = fixture("compvis_unet_small_random.npz")
    arrays = dict(np.load(path, allow_pickle=False))
    conversion = compvis_unet.convert_unet(
        select(arrays, "sd/"), UNetOptions(num_head_channels=16), image_size=8
    )
    return arrays, DiffusionPrior(DiffusionConfig(conversion.config), conversion.plan.apply())


@dataclasses.dataclass(frozen=True)
class PointPrior:
    """Data that is one point: the noise is known exactly, so DDIM must end near the point."""

    latent_shape: tuple[int, ...] = (2, 2, 1)
    point: float = 0.7

    @property
    def alphas_cumprod(self):
        return diffusion.alphas_cumprod(1000)

    def denoise(self, params, x, t):
        alpha = jnp.asarray(self.alphas_cumprod, jnp.float32)[t][:, None, None, None]
        return (x - jnp.sqrt(alpha) * self.point) / jnp.sqrt(1 - alpha)


def test_schedule_and_timesteps_match_the_published_ones(small):
    arrays, prior = small
    np.testing.assert_allclose(prior.alphas_cumprod, arrays["alphas_cumprod"], rtol=1e-12)
    np.testing.assert_array_equal(diffusion.ddim_timesteps(1000, 10), arrays["ddim10_timesteps"])


def test_every_permitted_number_of_steps_stays_on_the_schedule():
    """Counts such as 3, 9, 27 and 37 of 1000 would end one past the last timestep."""
    alphas = diffusion.alphas_cumprod(1000)
    for steps in range(1, 501):
        published = np.arange(0, 1000, 1000 // steps) + 1
        timesteps = diffusion.ddim_timesteps(1000, steps)
        assert len(timesteps) == len(published) >= steps
        np.testing.assert_array_equal(timesteps[:-1], published[:-1])
        assert timesteps[-1] == min(published[-1], 999) and (np.diff(timesteps) > 0).all()
        assert len(diffusion.ddim_schedule(alphas, steps).alphas) == len(timesteps)
    for steps in (-1, 0, 501, 1000, 10**30):
        with pytest.raises(ValueError, match="takes 1 to 500 steps"):
            diffusion.ddim_timesteps(1000, steps)


@pytest.mark.parametrize("eta", [0, 1])
def test_ddim_matches_the_published_sampler(small, eta):
    arrays, prior = small
    drawn = diffusion.ddim_sample(
        prior,
        prior.params,
        jax.random.key(0),
        2,
        10,
        float(eta),
        noise=nhwc(arrays[f"ddim10_eta{eta}_noise"]),
        x_T=nhwc(arrays["x"]),
    )
    assert relative_error(drawn, nhwc(arrays[f"ddim10_eta{eta}"])) < PARITY


def test_a_sample_depends_on_its_key_and_index_only():
    # With the point prior shrunk, so that what is left is the sampler's own noise.
    sample = functools.partial(diffusion.ddim_sample, PointPrior(), None, steps=5)
    few = sample(jax.random.key(3), 2)
    many = sample(jax.random.key(3), 6)
    np.testing.assert_array_equal(few, many[:2])
    assert jnp.abs(many[0] - many[1]).max() > 1e-3
    assert jnp.abs(sample(jax.random.key(4), 2) - few).max() > 1e-3


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_perfect_denoiser_gives_the_data_and_the_last_noise(eta):
    prior = PointPrior(latent_shape=(16, 16, 1))
    drawn = diffusion.ddim_sample(prior, None, jax.random.key(0), 4, 50, eta)
    # It stops at timestep 0: x = sqrt(a) point + sqrt(1 - a) noise, a = 0.9985. 1024 draws.
    last = prior.alphas_cumprod[0]
    assert abs(float(drawn.mean()) - np.sqrt(last) * 0.7) < 5 * np.sqrt((1 - last) / 1024)
    np.testing.assert_allclose(drawn.std(), np.sqrt(1 - last), rtol=0.12)


def test_sampler_composes_with_jit_and_grad():
    prior = PointPrior()

    @jax.jit
    def mean_square(x_T, eta):
        drawn = diffusion.ddim_sample(prior, None, jax.random.key(0), 2, 5, eta, x_T=x_T)
        return jnp.mean(drawn**2)

    x_T = jax.random.normal(jax.random.key(1), (2, 2, 2, 1))
    eager = diffusion.ddim_sample(prior, None, jax.random.key(0), 2, 5, 0.5, x_T=x_T)
    np.testing.assert_allclose(mean_square(x_T, 0.5), jnp.mean(eager**2), rtol=1e-5)
    assert jnp.abs(jax.grad(mean_square)(x_T, 0.5)).max() > 0


def test_equal_priors_share_one_compiled_sampler_that_holds_no_weights():
    config = UNetConfig(image_size=4, model_channels=32, channel_mult=(1,))
    one = DiffusionPrior(DiffusionConfig(config), {"a": 1})
    two = DiffusionPrior(DiffusionConfig(config), {"a": 2})
    assert one.denoise == two.denoise and hash(one.denoise) == hash(two.denoise)


@pytest.mark.parametrize("schedule", ["sqrt_linear", "linear", "cosine"])
def test_every_schedule_falls_from_signal_to_noise(schedule):
    alphas = diffusion.alphas_cumprod(1000, schedule)
    assert alphas.shape == (1000,) and (np.diff(alphas) < 0).all()
    assert alphas[0] > 0.99 and 0 <= alphas[-1] < 0.001


def test_a_config_survives_json():
    config = DiffusionConfig.ldm_ffhq256()
    text = json.dumps(dataclasses.asdict(config))
    again = DiffusionConfig(**json.loads(text))
    assert again == config and hash(again) == hash(config)
    # Equal configs have equal JSON, whose hash names a generator.
    other = dataclasses.replace(config.unet, channel_mult=[1.0, 2.0, 3.0, 4.0], norm_eps=1e-5)
    assert json.dumps(dataclasses.asdict(dataclasses.replace(config, unet=other))) == text


def test_misuse_is_named():
    sample = functools.partial(diffusion.ddim_sample, PointPrior(), None, jax.random.key(0))
    with pytest.raises(ValueError, match="1 to 500 steps"):
        sample(1, 1000)
    with pytest.raises(ValueError, match="eta 2"):
        sample(1, 10, 2.0)
    with pytest.raises(ValueError, match=r"x_T of shape \(2, 2, 1\)"):
        sample(1, 10, x_T=jnp.zeros((2, 2, 1)))
    with pytest.raises(ValueError, match=r"expected \(10, 1, 2, 2, 1\)"):
        sample(1, 10, noise=jnp.zeros((1, 2, 2, 1)))
    with pytest.raises(ValueError, match="'sqrt_linear', 'linear' or 'cosine'"):
        diffusion.alphas_cumprod(10, "quadratic")
    with pytest.raises(ValueError, match="0 < start"):
        diffusion.alphas_cumprod(10, "linear", 0.0, 0.1)
