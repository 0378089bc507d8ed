"""A training run on disk: its checkpoints and its sample grids."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fpjax.io.images import image_grid, save_image, to_uint8
from fpjax.models import autoencoder, stylegan2
from fpjax.training import first_stage, gan, latent_prior
from fpjax.training.recipes import Recipe

State = dict[str, Any]


def checkpoint_manager(folder: Path, *, keep: int = 2):
    """Orbax manager that writes each step to a temporary name and renames it when complete."""
    import orbax.checkpoint as ocp

    options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
    return ocp.CheckpointManager(folder.absolute(), options=options)


def init_state(config: Recipe) -> State:
    """The fresh state of any recipe."""
    if isinstance(config, gan.GANConfig):
        return gan.init_state(config)
    if isinstance(config, first_stage.FirstStageConfig):
        return first_stage.init_state(config)
    return latent_prior.init_state(config)


def advance(config: Recipe, state: State, batch: jax.Array, step: int) -> tuple[State, State]:
    """One step of any recipe: the next state, and metrics by name."""
    if isinstance(config, gan.GANConfig):
        with_r1 = step % config.r1_interval == 0
        state, metrics = gan.train_step(config, state, batch, with_r1)
        return state, metrics if with_r1 else {k: v for k, v in metrics.items() if k != "r1"}
    if isinstance(config, first_stage.FirstStageConfig):
        return first_stage.train_step(config, state, batch)
    return latent_prior.train_step(config, state, batch)


def restore_or_init(manager, config: Recipe) -> State:
    """The newest checkpoint of the run, or a fresh state."""
    import orbax.checkpoint as ocp

    step = manager.latest_step()
    if step is None:
        return init_state(config)
    target = jax.eval_shape(lambda: init_state(config))
    return manager.restore(step, args=ocp.args.StandardRestore(target))


def sample_grid(config: gan.GANConfig, params, *, columns: int = 8) -> np.ndarray:
    """A grid (columns * R, columns * R, 3) uint8 of the same latents at every call."""
    z = jax.random.normal(jax.random.key(7), (columns**2, config.model.z_dim))
    w = stylegan2.mapping(config.model, params, z)
    images = stylegan2.synthesis(config.model, params, w)
    return image_grid(to_uint8(np.asarray(images)), columns)


def reconstruction_grid(
    config: first_stage.FirstStageConfig, params, images: np.ndarray, *, columns: int = 8
) -> np.ndarray:
    """Rows of originals, each above its reconstructions from codes; images (N, R, R, 3) uint8."""
    rows = [images[i : i + columns] for i in range(0, len(images), columns)]
    made = [reconstructions(config.model, params, row) for row in rows]
    pairs = [part for pair in zip(rows, made, strict=True) for part in pair]
    return image_grid(np.concatenate(pairs), columns)


def reconstructions(model, params, images: np.ndarray, *, quantize: bool = True) -> np.ndarray:
    """What a first stage makes of images (N, R, R, 3) uint8, the same form."""
    parts = [
        _reconstruct(model, params, images[i : i + 50], quantize) for i in range(0, len(images), 50)
    ]
    return to_uint8(np.concatenate([np.asarray(part) for part in parts]))


def _reconstruct(model, params, images: np.ndarray, quantize: bool) -> jax.Array:
    def both(params, images):
        latents = autoencoder.encode(model, params, images)
        return autoencoder.decode(model, params, latents, quantize=quantize)

    return jax.jit(both)(params, jax.numpy.asarray(images, jax.numpy.float32) / 127.5 - 1)


def save(
    manager,
    config: Recipe,
    state: State,
    step: int,
    out: Path,
    grid: Callable[[State], np.ndarray] | None = None,
) -> None:
    """Writes the checkpoint of a step, unless it is there, and the sample grid beside it.

    `grid` draws the samples of a state; a StyleGAN2 needs none.
    """
    import orbax.checkpoint as ocp

    if manager.latest_step() == step:
        return
    manager.save(step, args=ocp.args.StandardSave(state))
    manager.wait_until_finished()
    if grid is None:
        if not isinstance(config, gan.GANConfig):
            return
        picture = sample_grid(config, state["average"])
    else:
        picture = grid(state)
    save_image(out / "samples" / f"{step * config.batch_size:08d}.png", picture)
