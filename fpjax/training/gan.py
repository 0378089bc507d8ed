"""One optimisation step of a StyleGAN2: non-saturating loss, lazy R1, EMA of the weights.

Sources: Goodfellow et al. 2014 (non-saturating loss), Mescheder et al. 2018 (R1), Karras et al.
2020 (lazy regularisation, EMA). Randomness is folded from (seed, step), so a run that resumes from
a checkpoint takes the same steps as one that never stopped.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fpjax.models import stylegan2
from fpjax.training import discriminator
from fpjax.training.averaging import averaged, descend

Array = jax.Array
State = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class GANConfig:
    """What is trained and how; lengths of training are in images shown to the discriminator.

    Attributes:
      model: architecture of the generator.
      critic_channels: (side, channels) table of the discriminator.
      total_images: length of the run.
      batch_size: images a step.
      learning_rate: of Adam, for both networks.
      decay_fraction: final part of the run over which the learning rate falls linearly to zero.
      r1_gamma: weight of the R1 penalty.
      r1_interval: steps between two R1 penalties.
      ema_half_life: images after which the averaged weights have half forgotten.
      w_avg_decay: decay of the running mean of w, per step.
      seed: of everything random.

    >>> model = stylegan2.StyleGAN2Config(8)
    >>> GANConfig(model, critic_channels=((4, 8), (8, 8)), total_images=640).total_steps
    20
    """

    model: stylegan2.StyleGAN2Config
    critic_channels: tuple[tuple[int, int], ...]
    total_images: int
    batch_size: int = 32
    learning_rate: float = 2.5e-3
    decay_fraction: float = 0.25
    r1_gamma: float = 0.1
    r1_interval: int = 16
    ema_half_life: float = 10_000
    w_avg_decay: float = 0.998
    seed: int = 0

    @property
    def critic(self) -> stylegan2.StyleGAN2Config:
        """Sides and channels of the discriminator."""
        return dataclasses.replace(self.model, channels=self.critic_channels)

    @property
    def resolution(self) -> int:
        """Side of the images."""
        return self.model.resolution

    @property
    def total_steps(self) -> int:
        """Optimisation steps of the whole run."""
        return self.total_images // self.batch_size


def _optimizers(config: GANConfig) -> tuple[optax.GradientTransformation, ...]:
    decay_steps = max(1, int(config.total_steps * config.decay_fraction))

    def schedule(scale):
        return optax.linear_schedule(
            config.learning_rate * scale, 0.0, decay_steps, config.total_steps - decay_steps
        )

    # Lazy regularisation adds one step in `r1_interval`: rate and memory shrink to match.
    lazy = config.r1_interval / (config.r1_interval + 1)
    generator = optax.adam(schedule(1.0), b1=0.0, b2=0.99)
    critic = optax.adam(schedule(lazy), b1=0.0, b2=0.99**lazy)
    return generator, critic


def init_state(config: GANConfig) -> State:
    """Fresh parameters, averaged parameters, optimiser states and step counter, as one pytree.

    >>> config = GANConfig(stylegan2.StyleGAN2Config(8), ((4, 8), (8, 8)), total_images=640)
    >>> jax.eval_shape(lambda: init_state(config))["step"].dtype
    dtype('int32')
    """
    key_g, key_d = jax.random.split(jax.random.key(config.seed))
    generator = stylegan2.init(config.model, key_g)
    critic = discriminator.init(config.critic, key_d)
    optimizer_g, optimizer_d = _optimizers(config)
    return {
        "step": jnp.zeros((), jnp.int32),
        "generator": generator,
        "average": jax.tree.map(jnp.copy, generator),
        "discriminator": critic,
        "optimizer_g": optimizer_g.init(generator),
        "optimizer_d": optimizer_d.init(critic),
    }


def _generate(config: GANConfig, params, key: Array) -> tuple[Array, Array]:
    key_z, key_noise = jax.random.split(key)
    z = jax.random.normal(key_z, (config.batch_size, config.model.z_dim), jnp.float32)
    w = stylegan2.mapping(config.model, params, z)
    return stylegan2.synthesis(config.model, params, w, noise=key_noise), w


@functools.partial(jax.jit, static_argnums=(0, 3), donate_argnums=(1,))
def train_step(
    config: GANConfig, state: State, images: Array, with_r1: bool
) -> tuple[State, dict[str, Array]]:
    """One step of the generator, then one of the discriminator.

    Args:
      config: the recipe.
      state: from `init_state` or the step before; its buffers are reused.
      images: (batch_size, R, R, 3) real images, uint8.
      with_r1: whether this step carries the R1 penalty.

    Returns:
      The next state, and the losses as scalars.
    """
    real = images.astype(jnp.float32) / 127.5 - 1
    optimizer_g, optimizer_d = _optimizers(config)
    key = jax.random.fold_in(jax.random.key(config.seed + 1), state["step"])
    key_g, key_d = jax.random.split(key)

    def critic(params, x):
        return discriminator.discriminate(config.critic, params, x)

    def generator_loss(params):
        fake, w = _generate(config, params, key_g)
        return jax.nn.softplus(-critic(state["discriminator"], fake)).mean(), w

    (loss_g, w), grads = jax.value_and_grad(generator_loss, has_aux=True)(state["generator"])
    generator, opt_g = descend(optimizer_g, grads, state["optimizer_g"], state["generator"])
    mean_w = jax.lax.stop_gradient(w).mean(axis=0)
    w_avg = generator["mapping"]["w_avg"]
    generator["mapping"]["w_avg"] = mean_w + config.w_avg_decay * (w_avg - mean_w)

    fake, _ = _generate(config, generator, key_d)

    def discriminator_loss(params):
        # One pass each, so that minibatch deviation never mixes real and generated images.
        score_fake, score_real = critic(params, fake), critic(params, real)
        loss = jax.nn.softplus(score_fake).mean() + jax.nn.softplus(-score_real).mean()
        penalty = jnp.zeros((), jnp.float32)
        if with_r1:
            slope = jax.grad(lambda x: critic(params, x).sum())(real)
            penalty = jnp.square(slope).sum(axis=(1, 2, 3)).mean()
        total = loss + 0.5 * config.r1_gamma * config.r1_interval * penalty
        return total, (loss, penalty, score_real.mean(), score_fake.mean())

    grads, (loss_d, penalty, real_score, fake_score) = jax.grad(discriminator_loss, has_aux=True)(
        state["discriminator"]
    )
    critic_params, opt_d = descend(optimizer_d, grads, state["optimizer_d"], state["discriminator"])

    average = averaged(
        state["average"], generator, state["step"], config.batch_size, config.ema_half_life
    )
    new_state = {
        "step": state["step"] + 1,
        "generator": generator,
        "average": average,
        "discriminator": critic_params,
        "optimizer_g": opt_g,
        "optimizer_d": opt_d,
    }
    metrics = {
        "loss_generator": loss_g,
        "loss_discriminator": loss_d,
        "r1": penalty,
        "score_real": real_score,
        "score_fake": fake_score,
    }
    return new_state, metrics
