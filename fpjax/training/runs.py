"""A training run on disk: its checkpoints and its sample grids."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from fpjax.io.images import image_grid, save_image, to_uint8
from fpjax.models import stylegan2
from fpjax.training import gan


def checkpoint_manager(folder: Path, *, keep: int = 2):
    """Orbax manager that writes each step to a temporary name and renames it when complete."""
    import orbax.checkpoint as ocp

    options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
    return ocp.CheckpointManager(folder.absolute(), options=options)


def restore_or_init(manager, config: gan.GANConfig) -> gan.State:
    """The newest checkpoint of the run, or a fresh state."""
    import orbax.checkpoint as ocp

    step = manager.latest_step()
    if step is None:
        return gan.init_state(config)
    target = jax.eval_shape(lambda: gan.init_state(config))
    return manager.restore(step, args=ocp.args.StandardRestore(target))


def sample_grid(config: gan.GANConfig, params, *, columns: int = 8) -> np.ndarray:
    """A grid (columns * R, columns * R, 3) uint8 of the same latents at every call."""
    z = jax.random.normal(jax.random.key(7), (columns**2, config.model.z_dim))
    w = stylegan2.mapping(config.model, params, z)
    images = stylegan2.synthesis(config.model, params, w)
    return image_grid(to_uint8(np.asarray(images)), columns)


def save(manager, config: gan.GANConfig, state: gan.State, step: int, out: Path) -> None:
    """Writes the checkpoint of a step, unless it is there, and the sample grid beside it."""
    import orbax.checkpoint as ocp

    if manager.latest_step() == step:
        return
    manager.save(step, args=ocp.args.StandardSave(state))
    manager.wait_until_finished()
    grid = sample_grid(config, state["average"])
    save_image(out / "samples" / f"{step * config.batch_size:08d}.png", grid)
