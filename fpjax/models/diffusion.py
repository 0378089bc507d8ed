"""Diffusion priors: noise schedules and DDIM sampling.

Schedules as Rombach et al. (CVPR 2022) and Nichol and Dhariwal (ICML 2021) define them; sampling as
Song, Meng and Ermon, "Denoising Diffusion Implicit Models" (ICLR 2021, arXiv 2010.02502), eq. 12,
with the timesteps of the CompVis latent-diffusion code.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, get_args, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from fpjax.models import layers as nn
from fpjax.models import unet
from fpjax.models.parameters import Array, Params
from fpjax.models.unet import UNetConfig

BetaSchedule = Literal["sqrt_linear", "linear", "cosine"]
MAX_TIMESTEPS = 100_000  # of a schedule; published ones have 1000 or 4000


@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
    """A denoiser's architecture and the schedule that it was trained on.

    Attributes:
      unet: the denoiser, which predicts the noise.
      num_timesteps: training timesteps T.
      beta_schedule: "sqrt_linear" is linear in sqrt(beta) (LDM calls it "linear", diffusers
        "scaled_linear"); "linear" is linear in beta; "cosine" is Nichol and Dhariwal's.
      linear_start, linear_end: first and last beta of the linear schedules.

    >>> DiffusionConfig.ldm_ffhq256().linear_end
    0.0195
    """

    unet: UNetConfig
    num_timesteps: int = 1000
    beta_schedule: BetaSchedule = "sqrt_linear"
    linear_start: float = 0.0015
    linear_end: float = 0.0195

    def __post_init__(self):
        if isinstance(self.unet, dict):  # as a config read from JSON has it
            object.__setattr__(self, "unet", UNetConfig(**self.unet))
        nn.normalize_config(self, tuples=(), floats=("linear_start", "linear_end"))
        nn.check_counts(self, num_timesteps=MAX_TIMESTEPS)
        if self.beta_schedule not in get_args(BetaSchedule):
            raise ValueError(
                f"beta_schedule {nn.short(self.beta_schedule)}: choose one of "
                f"{', '.join(get_args(BetaSchedule))}"
            )
        if self.unet.in_channels != self.unet.out_channels:
            raise ValueError(
                f"the denoiser reads {self.unet.in_channels} channels and predicts "
                f"{self.unet.out_channels}: the noise has as many as what it is in"
            )

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of what is sampled."""
        return self.unet.image_size, self.unet.image_size, self.unet.in_channels

    @property
    def alphas_cumprod(self) -> np.ndarray:
        """Signal variance left at each training timestep, (num_timesteps,) float64."""
        return alphas_cumprod(
            self.num_timesteps, self.beta_schedule, self.linear_start, self.linear_end
        )

    @classmethod
    def ldm_ffhq256(cls) -> DiffusionConfig:
        """The unconditional FFHQ-256 (and CelebA-HQ-256) LDM."""
        return cls(UNetConfig.ldm_ffhq256())


@dataclasses.dataclass(frozen=True)
class Denoiser:
    """`unet.denoise` of one architecture: hashable, so compiled samplers keep no weights alive.

    >>> Denoiser(UNetConfig()) == Denoiser(UNetConfig())
    True
    """

    config: UNetConfig

    def __call__(self, params: Params, x: Array, t: Array) -> Array:
        """Predicted noise (B, H, W, C) in x (B, H, W, C) at timesteps t (B,)."""
        return unet.denoise(self.config, params, x, t)


@dataclasses.dataclass(frozen=True, eq=False)
class DiffusionPrior:
    """Draws latents: a trained denoiser with its schedule.

    `params` is the plain tree of `unet.init` or of a converted checkpoint; `denoise` takes
    parameters as an argument and is pure.

    >>> config = DiffusionConfig(UNetConfig(image_size=8, model_channels=32, channel_mult=(1,)))
    >>> DiffusionPrior(config, unet.param_shapes(config.unet)).latent_shape
    (8, 8, 3)
    """

    config: DiffusionConfig
    params: Params = dataclasses.field(repr=False)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of a latent."""
        return self.config.latent_shape

    @property
    def alphas_cumprod(self) -> np.ndarray:
        """Signal variance left at each training timestep, (T,) float64."""
        return self.config.alphas_cumprod

    @property
    def denoise(self) -> Denoiser:
        """Pure function (params, x (B, H, W, C), t (B,)) -> predicted noise (B, H, W, C)."""
        return Denoiser(self.config.unet)


@runtime_checkable
class Prior(Protocol):
    """What `ddim_sample` needs of a prior."""

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent."""
        ...

    @property
    def alphas_cumprod(self) -> np.ndarray:
        """(T,) signal variance left at each training timestep."""
        ...

    @property
    def denoise(self) -> Callable[[Any, Array, Array], Array]:
        """Pure function (params, x, t) -> predicted noise; hashable."""
        ...


class DDIMSchedule(NamedTuple):
    """Numbers of each sampling step, in sampling order (noisiest first), each (steps,).

    >>> ddim_schedule(alphas_cumprod(1000), 4).timesteps[0]
    np.int64(751)
    """

    timesteps: np.ndarray
    alphas: np.ndarray
    alphas_prev: np.ndarray
    sigmas_eta1: np.ndarray


def alphas_cumprod(
    num_timesteps: int = 1000,
    schedule: BetaSchedule = "sqrt_linear",
    linear_start: float = 0.0015,
    linear_end: float = 0.0195,
) -> np.ndarray:
    """Signal variance left at each training timestep, the running product of 1 - beta.

    Args:
      num_timesteps: T.
      schedule: as in `DiffusionConfig`.
      linear_start, linear_end: first and last beta; unused by "cosine".

    Returns:
      (T,) float64, falling from about 1 to about 0.

    Raises:
      ValueError: for an unknown schedule or betas outside (0, 1).

    >>> alphas_cumprod(1000)[[0, -1]].round(6).tolist()
    [0.9985, 0.000142]
    """
    if not 0 < linear_start <= linear_end < 1:
        raise ValueError(
            f"betas from {linear_start} to {linear_end}: expected 0 < start <= end < 1"
        )
    if schedule == "sqrt_linear":
        betas = np.linspace(math.sqrt(linear_start), math.sqrt(linear_end), num_timesteps) ** 2
    elif schedule == "linear":
        betas = np.linspace(linear_start, linear_end, num_timesteps)
    elif schedule == "cosine":
        # Nichol and Dhariwal, eq. 17, with their offset 0.008 and cap 0.999.
        signal = np.cos((np.arange(num_timesteps + 1) / num_timesteps + 0.008) / 1.008 * np.pi / 2)
        betas = np.minimum(1 - (signal[1:] / signal[:-1]) ** 2, 0.999)
    else:
        raise ValueError(f"schedule {schedule!r}: choose 'sqrt_linear', 'linear' or 'cosine'")
    return np.cumprod(1 - betas)


def ddim_timesteps(num_timesteps: int, steps: int) -> np.ndarray:
    """Training timesteps that DDIM visits: every (T // steps)-th, from 1, as CompVis counts them.

    Where `steps` does not divide T there are a few more than asked for, as there. Where that count
    would end at T, one past the last timestep, the last one, T - 1, is visited instead.

    Raises:
      ValueError: if steps is not in 1 .. T // 2; more would visit the last timestep twice.

    >>> ddim_timesteps(1000, 4).tolist(), ddim_timesteps(1000, 3).tolist()
    ([1, 251, 501, 751], [1, 334, 667, 999])
    """
    if not 1 <= steps <= num_timesteps // 2:
        raise ValueError(
            f"steps {steps}: DDIM on {num_timesteps} training timesteps takes 1 to "
            f"{num_timesteps // 2} steps"
        )
    counted = np.arange(0, num_timesteps, num_timesteps // steps) + 1
    return np.minimum(counted, num_timesteps - 1)


def ddim_schedule(alphas_cumprod: np.ndarray, steps: int) -> DDIMSchedule:
    """Timesteps and coefficients of DDIM, noisiest first (Song et al., eq. 16, at eta 1).

    >>> ddim_schedule(alphas_cumprod(1000), 4).timesteps.tolist()
    [751, 501, 251, 1]
    """
    timesteps = ddim_timesteps(len(alphas_cumprod), steps)
    alphas = alphas_cumprod[timesteps]
    # The last step stops at timestep 0's small noise, as in the CompVis code, not at none.
    alphas_prev = np.append(alphas_cumprod[0], alphas[:-1])
    sigmas = np.sqrt((1 - alphas_prev) / (1 - alphas) * (1 - alphas / alphas_prev))
    return DDIMSchedule(*(x[::-1].copy() for x in (timesteps, alphas, alphas_prev, sigmas)))


def ddim_sample(
    prior: Prior,
    params: Params,
    key: Array,
    num: int,
    steps: int,
    eta: Array | float = 1.0,
    *,
    noise: Array | None = None,
    x_T: Array | None = None,
) -> Array:
    """Draws latents by DDIM. Sample i depends on the key and i, not on how many are drawn.

    Args:
      prior: the denoiser and its schedule, a `DiffusionPrior` for example.
      params: its parameters, usually `prior.params`.
      key: PRNG key.
      num: number of samples B.
      steps: sampling steps, at most half the training timesteps; see `ddim_timesteps`.
      eta: 0 is deterministic given x_T, 1 adds as much noise as DDPM.
      noise: (steps, B, H, W, C) standard normal noise, in sampling order, instead of the key's.
      x_T: (B, H, W, C) starting noise instead of the key's.

    Returns:
      Latents (B, H, W, C), float32, in the denoiser's units (`decode` takes them as they are).

    Raises:
      ValueError: if steps or eta is out of range, or noise or x_T is of another shape.

    >>> config = DiffusionConfig(UNetConfig(image_size=8, model_channels=32, channel_mult=(1,),
    ...     num_res_blocks=1, attention_resolutions=()))
    >>> prior = DiffusionPrior(config, unet.param_shapes(config.unet))
    >>> sample = functools.partial(ddim_sample, prior, num=2, steps=5, key=jax.random.key(0))
    >>> jax.eval_shape(sample, prior.params).shape
    (2, 8, 8, 3)
    """
    if isinstance(eta, (int, float)) and not 0 <= eta <= 1:
        raise ValueError(f"eta {eta}: expected a number in [0, 1]")
    schedule = ddim_schedule(np.asarray(prior.alphas_cumprod), steps)
    shape = (num, *prior.latent_shape)
    if x_T is not None and x_T.shape != shape:
        raise ValueError(f"x_T of shape {x_T.shape}: expected {shape}")
    noise_shape = (len(schedule.timesteps), *shape)
    if noise is not None and noise.shape != noise_shape:
        raise ValueError(f"noise of shape {noise.shape}: expected {noise_shape}")
    coefficients = _coefficients(schedule, eta)
    return _ddim_scan(prior.denoise, shape, params, key, coefficients, noise, x_T)


def _coefficients(schedule: DDIMSchedule, eta: Array | float) -> tuple[Array, ...]:
    """(timestep, a, b, sigma) of each step, x_prev = a x + b eps + sigma noise."""
    timesteps, *values = schedule
    if isinstance(eta, jax.Array):
        eta, *values = (jnp.asarray(x, jnp.float32) for x in (eta, *values))
    alphas, alphas_prev, sigmas = values
    sigmas = eta * sigmas
    scale = (alphas_prev / alphas) ** 0.5
    # In [0, 1] where eta is, but for rounding where eta is 1.
    direction = (1 - alphas_prev - sigmas**2).clip(0.0) ** 0.5
    shift = direction - scale * (1 - alphas) ** 0.5
    timesteps = jnp.asarray(timesteps, jnp.int32)
    return timesteps, *(jnp.asarray(x, jnp.float32) for x in (scale, shift, sigmas))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _ddim_scan(denoise, shape, params, key, coefficients, noise, x_T):
    # One key a sample, and from it one a step: a sample does not change with the batch's size,
    # and no more than one step's noise is held.
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(shape[0]))

    def normal(index):
        def one(key):
            return jax.random.normal(jax.random.fold_in(key, index), shape[1:], jnp.float32)

        return jax.vmap(one)(keys)

    def step(x, inputs):
        index, (timestep, scale, shift, sigma), given = inputs
        drawn = normal(index + 1) if given is None else given
        eps = denoise(params, x, jnp.full(shape[:1], timestep))
        return scale * x + shift * eps + sigma * drawn, None

    x = normal(0) if x_T is None else jnp.asarray(x_T, jnp.float32)
    indices = jnp.arange(coefficients[0].shape[0])
    return jax.lax.scan(step, x, (indices, coefficients, noise))[0]
