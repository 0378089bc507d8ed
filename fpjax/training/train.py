"""Trains a bundled model from its recipe: `python -m fpjax.training.train --out runs/avatars`.

The run writes a checkpoint every few minutes and continues from the newest one when it is started
again, after Ctrl-C, kill -9 or a power cut; nothing but the steps since then is done twice.
Sample grids of the averaged weights are written to `OUT/samples/`, progress to `OUT/train.jsonl`.

A latent diffusion model takes two runs, the second on the latents of the first:

    python -m fpjax.training.train --recipe avatars-ldm-first-stage --out runs/first-stage
    python -m fpjax.training.train --recipe avatars-ldm-prior --out runs/prior \
        --first_stage runs/first-stage --data runs/first-stage/data
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

from fpjax.training import encoded, recipes, runs
from fpjax.training.first_stage import FirstStageConfig, averaged_params
from fpjax.training.latent_prior import PriorConfig


def define_flags() -> None:
    """Flags of the program; defined only when it runs, so that the module can be imported."""
    flags.DEFINE_string("out", "runs/avatars", "Folder of the run.")
    flags.DEFINE_string("data", None, "Folder of the data set [default: OUT/data].")
    flags.DEFINE_enum("recipe", "avatars-stylegan2", sorted(recipes.RECIPES), "What to train.")
    flags.DEFINE_integer("images", None, "Length of the run in images [default: the recipe's].")
    flags.DEFINE_string("first_stage", None, "Folder of the first stage's run, for a prior.")
    flags.DEFINE_integer("checkpoint_steps", 500, "Steps between two checkpoints.")
    flags.DEFINE_integer("log_steps", 50, "Steps between two lines of progress.")


def batch_at(images: np.ndarray, config: recipes.Recipe, step: int) -> np.ndarray:
    """The images (or latents) of a step, from (seed, step) alone: a resumed run sees the same."""
    rng = np.random.default_rng((config.seed, step))
    return images[rng.integers(len(images), size=config.batch_size)]


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60:d}:{minutes % 60:02d}:{seconds:02d}"


def train(
    config: recipes.Recipe,
    images: np.ndarray,
    out: Path,
    *,
    checkpoint_steps: int,
    log_steps: int,
    grid: Callable[[runs.State], np.ndarray] | None = None,
) -> runs.State:
    """Runs the recipe to its end and returns the final state; resumes if `out` holds a run.

    Args:
      config: the recipe.
      images: (N, R, R, 3) uint8 real images, or a prior's latents (N, h, w, C) float32.
      out: folder of the run.
      checkpoint_steps: steps between two checkpoints and sample grids.
      log_steps: steps between two lines of progress.
      grid: draws the samples of a state, uint8; a StyleGAN2 needs none.
    """
    (out / "samples").mkdir(parents=True, exist_ok=True)
    manager = runs.checkpoint_manager(out / "checkpoints")
    state = runs.restore_or_init(manager, config)
    first = step = int(state["step"])
    if first:
        logging.info("continuing from step %d of %d", first, config.total_steps)
    started, latest = time.monotonic(), {}
    # Noted and acted on between steps, when the state is whole. (Set here because a background
    # job may have been started with SIGINT ignored.)
    asked: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda n, frame: asked.append(n)) for number in numbers]
    try:
        while step < config.total_steps:
            batch = jnp.asarray(batch_at(images, config, step))
            state, metrics = runs.advance(config, state, batch, step)
            latest |= metrics
            step += 1
            if step % log_steps == 0 or step == config.total_steps:
                values = {name: float(value) for name, value in latest.items()}
                if not np.isfinite(list(values.values())).all():
                    raise FloatingPointError(f"training diverged at step {step}: {values}")
                elapsed = time.monotonic() - started
                rate = (step - first) * config.batch_size / elapsed
                left = (config.total_steps - step) * config.batch_size / rate
                logging.info(
                    "step %d/%d  %d images  %.1f images/s  %s left  %s",
                    *(step, config.total_steps, step * config.batch_size, rate, _clock(left)),
                    "  ".join(f"{name} {value:.4g}" for name, value in values.items()),
                )
                with open(out / "train.jsonl", "a") as log:
                    log.write(json.dumps({"step": step, "images_per_s": rate, **values}) + "\n")
            if asked or step % checkpoint_steps == 0 or step == config.total_steps:
                runs.save(manager, config, state, step, out, grid)
            if asked:
                logging.info("stopped at step %d; start again to continue", step)
                raise SystemExit(128 + asked[0])
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
        manager.close()
    return state


def main(argv):
    """Prepares the data if needed, then trains."""
    del argv
    from fpjax.training.open_peeps import load_open_peeps

    logging.set_verbosity(logging.INFO)
    values = flags.FLAGS
    config = recipes.RECIPES[values.recipe]
    if values.images:
        config = recipes.with_length(config, values.images)
    out = Path(values.out)
    data = Path(values.data) if values.data else out / "data"
    grid: Callable[[runs.State], np.ndarray] | None = None
    if isinstance(config, PriorConfig):
        if values.first_stage is None:
            raise app.UsageError("a prior needs --first_stage, the folder of its run")
        stage = encoded.FirstStage.of_run(Path(values.first_stage))
        images = encoded.latents_of(
            stage, out, lambda: load_open_peeps(data, "train", stage.config.resolution)
        )
        stage = stage.scaled(images)
        images = images * np.float32(stage.config.scale_factor)

        def samples(state):
            return encoded.prior_grid(stage, config.model, state["average"])

        grid = samples

    else:
        images = load_open_peeps(data, "train", config.resolution)
        if isinstance(config, FirstStageConfig):
            shown = load_open_peeps(data, "test", config.resolution)[:32]

            def pairs(state):
                return runs.reconstruction_grid(config, averaged_params(state), shown)

            grid = pairs

    steps = {"checkpoint_steps": values.checkpoint_steps, "log_steps": values.log_steps}
    train(config, images, out, **steps, grid=grid)


if __name__ == "__main__":
    define_flags()
    app.run(main)
