"""One optimisation step of a diffusion prior: predict the noise in a first stage's latents.

Sources: Ho et al. 2020 (noise prediction), Rombach et al. 2022 (in the latents of a first stage,
not quantised), Hang et al. 2023 (weights that keep nearly clean timesteps from ruling: min-SNR).
Randomness is folded from (seed, step).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fpjax.models import unet
from fpjax.models.diffusion import DiffusionConfig
from fpjax.training.averaging import adam, averaged, descend

Array = jax.Array
State = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class PriorConfig:
    """What is trained and how.

    Attributes:
      model: the denoiser and its schedule.
      total_images: length of the run, in latents shown.
      batch_size: latents a step.
      learning_rate: of Adam.
      warm_up: steps over which the learning rate rises.
      decay_fraction: final part of the run over which it falls linearly to zero.
      snr_cap: signal-to-noise ratio above which timesteps count for less.
      ema_half_life: latents after which the averaged weights have half forgotten.
      seed: of everything random.

    >>> from fpjax.models.unet import UNetConfig
    >>> model = DiffusionConfig(UNetConfig(image_size=8, model_channels=32, channel_mult=(1,)))
    >>> PriorConfig(model, total_images=640).total_steps
    20
    """

    model: DiffusionConfig
    total_images: int
    batch_size: int = 32
    learning_rate: float = 1e-3
    warm_up: int = 100
    decay_fraction: float = 0.3
    snr_cap: float = 5.0
    ema_half_life: float = 20_000
    seed: int = 0

    @property
    def total_steps(self) -> int:
        """Optimisation steps of the whole run."""
        return self.total_images // self.batch_size


def _optimizer(config: PriorConfig):
    return adam(config.learning_rate, config.total_steps, config.warm_up, config.decay_fraction)


def init_state(config: PriorConfig) -> State:
    """Fresh parameters, their average, optimiser and step, as one pytree."""
    params = unet.init(config.model.unet, jax.random.key(config.seed))
    return {
        "step": jnp.zeros((), jnp.int32),
        "params": params,
        "average": jax.tree.map(jnp.copy, params),
        "optimizer": _optimizer(config).init(params),
    }


def noise_weights(alphas_cumprod: np.ndarray, cap: float) -> np.ndarray:
    """Weight (T,) of the squared error of the noise at each timestep: min(SNR, cap) / SNR.

    >>> noise_weights(np.array([0.99, 0.5]), 5.0).round(3).tolist()
    [0.051, 1.0]
    """
    ratio = alphas_cumprod / (1 - alphas_cumprod)
    return np.minimum(ratio, cap) / ratio


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def train_step(config: PriorConfig, state: State, latents: Array) -> tuple[State, dict[str, Array]]:
    """One step on latents (batch_size, h, w, C), in the denoiser's units.

    Returns:
      The next state, and the losses as scalars: weighted, and the plain squared error of the noise.
    """
    batch = latents.shape[0]
    alphas = config.model.alphas_cumprod
    signal = jnp.asarray(np.sqrt(alphas), jnp.float32)
    noisy = jnp.asarray(np.sqrt(1 - alphas), jnp.float32)
    weights = jnp.asarray(noise_weights(alphas, config.snr_cap), jnp.float32)
    key = jax.random.fold_in(jax.random.key(config.seed + 1), state["step"])
    key_t, key_offset, key_noise = jax.random.split(key, 3)
    # One timestep from each equal part of the schedule: less variance than independent draws.
    part = jnp.arange(batch, dtype=jnp.float32) + jax.random.uniform(key_t, (batch,), jnp.float32)
    t = jnp.floor(part / batch * len(alphas)).astype(jnp.int32)
    t = jax.random.permutation(key_offset, jnp.minimum(t, len(alphas) - 1))
    noise = jax.random.normal(key_noise, latents.shape, jnp.float32)

    def scaled(table, x):
        return table[t][:, None, None, None] * x

    x = scaled(signal, latents) + scaled(noisy, noise)

    def loss(params):
        predicted = unet.denoise(config.model.unet, params, x, t)
        square = jnp.square(predicted - noise).mean(axis=(1, 2, 3))
        return (weights[t] * square).mean(), square.mean()

    (weighted, plain), grads = jax.value_and_grad(loss, has_aux=True)(state["params"])
    params, optimizer = descend(_optimizer(config), grads, state["optimizer"], state["params"])
    average = averaged(
        state["average"], params, state["step"], config.batch_size, config.ema_half_life
    )
    new_state = {
        "step": state["step"] + 1,
        "params": params,
        "average": average,
        "optimizer": optimizer,
    }
    return new_state, {"loss": weighted, "noise_error": plain}
