"""One optimisation step of a VQ first stage: pixels and their gradients, codes by running means.

Sources: van den Oord et al. 2017 (straight-through quantisation, commitment, and codes that follow
the running mean of what is assigned to them), Dhariwal et al. 2020 (codes that nobody uses start
again at an encoded vector). Randomness is folded from (seed, step), so that a run that resumes
takes the same steps as one that never stopped.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from fpjax.models import autoencoder
from fpjax.models.autoencoder import AutoencoderConfig
from fpjax.training.averaging import adam, averaged, descend

Array = jax.Array
State = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class FirstStageConfig:
    """What is trained and how.

    Attributes:
      model: architecture of a VQ first stage, scale_factor 1 and shift_factor 0.
      total_images: length of the run, in images shown.
      batch_size: images a step.
      learning_rate: of Adam.
      warm_up: steps over which the learning rate rises.
      decay_fraction: final part of the run over which it falls linearly to zero.
      edge_weight: weight of the L1 error of image gradients beside the L1 error of pixels.
      commitment: weight of the squared distance of encoded vectors to their codes.
      quantized_fraction: share of a batch that is decoded from codes; the rest is decoded from the
        encoder's own vectors, so that the decoder takes either.
      code_decay: decay of the codes' running means, per step.
      restart_below: share of an even use below which a code starts again elsewhere.
      ema_half_life: images after which the averaged weights have half forgotten.
      seed: of everything random.

    >>> model = AutoencoderConfig(ch=8, ch_mult=(1,), n_embed=16, double_z=False, norm_groups=4)
    >>> FirstStageConfig(model, total_images=640).total_steps
    80
    """

    model: AutoencoderConfig
    total_images: int
    batch_size: int = 8
    learning_rate: float = 1e-3
    warm_up: int = 50
    decay_fraction: float = 0.3
    edge_weight: float = 0.5
    commitment: float = 0.25
    quantized_fraction: float = 0.5
    code_decay: float = 0.99
    restart_below: float = 0.02
    ema_half_life: float = 2_000
    seed: int = 0

    def __post_init__(self):
        if self.model.n_embed is None:
            raise ValueError("this recipe trains VQ first stages: give the model n_embed")
        if (self.model.scale_factor, self.model.shift_factor) != (1.0, 0.0):
            raise ValueError(
                "train with scale_factor 1 and shift_factor 0: they are measured after"
            )

    @property
    def resolution(self) -> int:
        """Side of the images."""
        return self.model.resolution

    @property
    def total_steps(self) -> int:
        """Optimisation steps of the whole run."""
        return self.total_images // self.batch_size


def _optimizer(config: FirstStageConfig):
    return adam(config.learning_rate, config.total_steps, config.warm_up, config.decay_fraction)


def init_state(config: FirstStageConfig) -> State:
    """Fresh parameters, their average, the codes' running means, optimiser, step: one pytree.

    >>> model = AutoencoderConfig(ch=8, ch_mult=(1,), n_embed=16, double_z=False, norm_groups=4)
    >>> state = jax.eval_shape(lambda: init_state(FirstStageConfig(model, 640)))
    >>> state["code_sums"].shape
    (16, 3)
    """
    params = autoencoder.init(config.model, jax.random.key(config.seed))
    codebook = params.pop("codebook")
    return {
        "step": jnp.zeros((), jnp.int32),
        "params": params,
        "average": jax.tree.map(jnp.copy, params),
        "code_sums": jnp.zeros_like(codebook),
        "code_counts": jnp.zeros(codebook.shape[:1], jnp.float32),
        "optimizer": _optimizer(config).init(params),
    }


def codebook_of(state: State) -> Array:
    """The codes (n, d): running mean of the vectors assigned to each."""
    return state["code_sums"] / jnp.maximum(state["code_counts"], 1e-8)[:, None]


def averaged_params(state: State) -> dict[str, Any]:
    """The averaged weights with the codebook, as `autoencoder.decode` takes them."""
    return {**state["average"], "codebook": codebook_of(state)}


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def train_step(
    config: FirstStageConfig, state: State, images: Array
) -> tuple[State, dict[str, Array]]:
    """One step.

    Args:
      config: the recipe.
      state: from `init_state` or the step before; its buffers are reused.
      images: (batch_size, R, R, 3), uint8.

    Returns:
      The next state, and scalars: the losses, PSNR of the two halves of the batch (decoded from
      codes, and from the encoder's vectors), and the codes in use as a share of all.
    """
    real = images.astype(jnp.float32) / 127.5 - 1
    batch = real.shape[0]
    key = jax.random.fold_in(jax.random.key(config.seed + 1), state["step"])
    from_codes = jnp.arange(batch) < round(batch * config.quantized_fraction)

    def loss(params):
        z = autoencoder.encode(config.model, params, real)
        encoded = jax.lax.stop_gradient(z)
        sums, counts = _restarted(config, state, encoded.reshape(-1, z.shape[-1]), key)
        codebook = sums / counts[:, None]
        codes = autoencoder.nearest_codes(codebook, encoded)
        nearest = codebook[codes]
        chosen = z + (nearest - encoded)  # straight-through
        given = jnp.where(from_codes[:, None, None, None], chosen, z)
        made = autoencoder.decode(config.model, params, given, quantize=False)
        error = made - real
        pixels = jnp.abs(error).mean()
        edges = jnp.abs(jnp.diff(error, axis=1)).mean() + jnp.abs(jnp.diff(error, axis=2)).mean()
        distance = jnp.square(z - nearest).mean()
        total = pixels + config.edge_weight * edges + config.commitment * distance
        square = jnp.square(jnp.clip(made, -1, 1) - real).mean(axis=(1, 2, 3))
        return total, (pixels, distance, square, encoded, codes, sums, counts)

    (_, found), grads = jax.value_and_grad(loss, has_aux=True)(state["params"])
    pixels, distance, square, encoded, codes, sums, counts = found
    params, optimizer = descend(_optimizer(config), grads, state["optimizer"], state["params"])
    hits = jnp.zeros_like(counts).at[codes.reshape(-1)].add(1.0)
    moved = jnp.zeros_like(sums).at[codes.reshape(-1)].add(encoded.reshape(-1, encoded.shape[-1]))
    keep = config.code_decay
    average = averaged(
        state["average"], params, state["step"], config.batch_size, config.ema_half_life
    )
    new_state = {
        "step": state["step"] + 1,
        "params": params,
        "average": average,
        "code_sums": keep * sums + (1 - keep) * moved,
        "code_counts": keep * counts + (1 - keep) * hits,
        "optimizer": optimizer,
    }

    def psnr(mask):
        weight = mask.astype(jnp.float32)
        mean = jnp.sum(weight * square) / jnp.maximum(jnp.sum(weight), 1)
        return -10 * jnp.log10(mean / 4)

    metrics = {
        "l1": pixels,
        "distance": distance,
        "psnr_codes": psnr(from_codes),
        "psnr_free": psnr(~from_codes),
        "codes_in_batch": (hits > 0).astype(jnp.float32).mean(),
        "latent_std": jnp.std(encoded),
    }
    return new_state, metrics


def _restarted(config: FirstStageConfig, state: State, vectors: Array, key: Array):
    """Running sums and counts where codes that nobody uses begin again at encoded vectors."""
    sums, counts = state["code_sums"], state["code_counts"]
    even = vectors.shape[0] / counts.shape[0]
    dead = counts < config.restart_below * even
    key_pick, key_spread = jax.random.split(key)
    picked = vectors[jax.random.randint(key_pick, counts.shape, 0, vectors.shape[0])]
    # No two codes in one place.
    spread = 1e-3 * jax.random.normal(key_spread, picked.shape, picked.dtype)
    fresh = (picked + spread * jnp.std(vectors)) * even
    sums = jnp.where(dead[:, None], fresh, sums)
    return sums, jnp.where(dead, jnp.full_like(counts, even), counts)
