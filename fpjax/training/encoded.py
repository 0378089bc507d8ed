"""A trained first stage, and the latents that a prior is trained on."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fpjax.errors import InputError
from fpjax.io.atomic import atomic_write
from fpjax.io.images import image_grid, to_uint8
from fpjax.models import autoencoder
from fpjax.models.autoencoder import AutoencoderConfig
from fpjax.models.diffusion import DiffusionConfig, DiffusionPrior, ddim_sample
from fpjax.training import runs
from fpjax.training.first_stage import FirstStageConfig, averaged_params
from fpjax.training.recipes import RECIPES

BATCH = 100


@dataclasses.dataclass(frozen=True, eq=False)
class FirstStage:
    """The averaged weights of a run, rounded to float16 as they are released.

    Attributes:
      config: architecture, with the scale that its latents were measured to need.
      params: float32.
      step: how long it was trained.
    """

    config: AutoencoderConfig
    params: dict[str, Any]
    step: int

    @classmethod
    def of_run(cls, run: Path, recipe: FirstStageConfig | None = None) -> FirstStage:
        """The newest checkpoint of a run of the recipe "avatars-ldm-first-stage".

        Raises:
          InputError: if there is none.
        """
        recipe = recipe or RECIPES["avatars-ldm-first-stage"]  # pyright: ignore
        assert isinstance(recipe, FirstStageConfig)
        manager = runs.checkpoint_manager(run / "checkpoints")
        try:
            step = manager.latest_step()
            if step is None:
                raise InputError(f"{run} holds no checkpoint: train the first stage first")
            params = averaged_params(runs.restore_or_init(manager, recipe))
        finally:
            manager.close()
        return cls(recipe.model, rounded(params), step)

    def scaled(self, latents: np.ndarray) -> FirstStage:
        """The same with the scale that gives latents (N, h, w, C) a standard deviation of one."""
        scale = round(float(1 / latents.std(dtype=np.float64)), 4)
        return dataclasses.replace(
            self, config=dataclasses.replace(self.config, scale_factor=scale)
        )


def rounded(params):
    """Weights as they are released: in float16, computed with in float32."""
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float16), jnp.float32), params)


def encode_all(stage: FirstStage, images: np.ndarray) -> np.ndarray:
    """Latents (N, h, w, C) float32 of images (N, R, R, 3) uint8."""
    encode = jax.jit(functools.partial(autoencoder.encode, stage.config))
    parts = [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
    return np.concatenate(
        [
            np.asarray(encode(stage.params, jnp.asarray(part, jnp.float32) / 127.5 - 1))
            for part in parts
        ]
    )


def latents_of(stage: FirstStage, out: Path, images: Callable[[], np.ndarray]) -> np.ndarray:
    """Unscaled latents (N, h, w, C) float32 of all images, encoded once and kept in `out`.

    Args:
      stage: what encodes.
      out: folder of the prior's run; `latents.npy` and `latents.json` are written there.
      images: gives (N, R, R, 3) uint8, called where nothing is kept yet.

    Raises:
      InputError: if the latents there are of another state of the first stage.
    """
    file, note = out / "latents.npy", out / "latents.json"
    if note.exists():
        kept = json.loads(note.read_text("utf-8"))
        if kept != {"first_stage_step": stage.step}:
            raise InputError(
                f"{file} was encoded by the first stage at step {kept['first_stage_step']}, which "
                f"is now at step {stage.step}: remove the folder {out} to begin again"
            )
        return np.load(file)
    latents = encode_all(stage, images())
    with atomic_write(file) as handle:
        np.save(handle, latents)
    with atomic_write(note, "w") as handle:
        json.dump({"first_stage_step": stage.step}, handle)
    return latents


def prior_grid(
    stage: FirstStage, prior: DiffusionConfig, params, *, columns: int = 8, quantize: bool = True
) -> np.ndarray:
    """A grid of samples (DDIM, 50 steps, eta 1), the same noise at every call, uint8."""
    drawn = DiffusionPrior(prior, params)
    latents = ddim_sample(drawn, params, jax.random.key(7), columns**2, 50)
    images = jax.jit(lambda p, z: autoencoder.decode(stage.config, p, z, quantize=quantize))(
        stage.params, latents
    )
    return image_grid(to_uint8(np.asarray(images)), columns)
