"""Turns the two runs of a latent diffusion model into a bundled model: weights, card, pictures.

    python -m fpjax.training.release_ldm --first_stage runs/first-stage --prior runs/prior \
        --data runs/first-stage/data --out fpjax/zoo/models/avatars-ldm

The weights are rounded to float16 before anything is measured. Beside them it writes a grid of
samples, held-out pictures with their reconstructions, and pictures that are not of the model.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

from fpjax.fingerprint.decode import natural_images
from fpjax.io.images import image_grid, save_image
from fpjax.models import autoencoder, checkpoint
from fpjax.models.diffusion import DiffusionPrior
from fpjax.models.ldm_generator import LDMGenerator
from fpjax.studies.quality import psnr_db
from fpjax.training import encoded, frechet, runs
from fpjax.training.avatars import save_foreign_avatars
from fpjax.training.encoded import FirstStage
from fpjax.training.first_stage import FirstStageConfig
from fpjax.training.latent_prior import PriorConfig
from fpjax.training.recipes import RECIPES

NAME = "avatars-ldm"


def define_flags() -> None:
    """Flags of the program; defined only when it runs, so that the module can be imported."""
    flags.DEFINE_string("first_stage", "runs/first-stage", "Folder of the first stage's run.")
    flags.DEFINE_string("prior", "runs/prior", "Folder of the prior's run.")
    flags.DEFINE_string("data", None, "Folder of the data set [default: FIRST_STAGE/data].")
    flags.DEFINE_string("out", None, "Folder to make.", required=True)
    flags.DEFINE_integer("num_images", 2000, "Images of each kind for the distances.")


def trained_prior(run: Path, recipe: PriorConfig) -> tuple[DiffusionPrior, int]:
    """The averaged denoiser of a run, rounded to float16, and its step."""
    manager = runs.checkpoint_manager(run / "checkpoints")
    try:
        step = manager.latest_step()
        if step is None:
            raise app.UsageError(f"{run} holds no checkpoint: train the prior first")
        state = runs.restore_or_init(manager, recipe)
    finally:
        manager.close()
    return DiffusionPrior(recipe.model, encoded.rounded(state["average"])), step


def codes_in_use(stage: FirstStage, images: np.ndarray) -> float:
    """Share of the codebook that the latents of uint8 images take."""
    found = encoded.encode_all(stage, images)
    nearest = jax.jit(autoencoder.nearest_codes)
    codes = [
        np.unique(np.asarray(nearest(stage.params["codebook"], jnp.asarray(part))))
        for part in np.array_split(found, -(-len(found) // encoded.BATCH))
    ]
    return len(np.unique(np.concatenate(codes))) / len(stage.params["codebook"])


def measure(generator: LDMGenerator, stage: FirstStage, train, test, num: int) -> dict[str, Any]:
    """Quality of reconstructions and of samples; images are (N, R, R, 3) uint8."""
    made = {
        quantize: runs.reconstructions(stage.config, stage.params, test, quantize=quantize)
        for quantize in (True, False)
    }
    return {
        "reconstruction_psnr_db": float(psnr_db(test, made[True]).mean()),
        "reconstruction_psnr_db_unquantized": float(psnr_db(test, made[False]).mean()),
        "codes_in_use": codes_in_use(stage, train[:num]),
        **frechet.distances(
            train[:num],
            test[:num],
            frechet_distance=natural_images(generator, jax.random.key(11), num),
            frechet_distance_of_reconstructions=made[True][:num],
        ),
    }


def model_card(info: dict[str, Any], stage: FirstStageConfig, prior: PriorConfig) -> str:
    """The model card, from what was measured."""
    model, unet = stage.model, prior.model.unet
    height, width, channels = model.latent_shape
    return f"""# {NAME}

A latent diffusion model of {model.resolution} px cartoon avatars: a VQ first stage with latents of
{height}x{width}x{channels}, and a small U-Net that draws them.

![64 samples, DDIM, 50 steps, eta 1](samples.png)

| | |
|---|---|
| First stage | VQ-f{model.resolution // height}, {model.n_embed:,} codes, channels {" ".join(str(model.ch * m) for m in model.ch_mult)} |
| Prior | U-Net of {unet.model_channels} channels x {" ".join(map(str, unet.channel_mult))}, {prior.model.num_timesteps} timesteps |
| Data | Open Peeps avatars (CC0), 24,000 images; data card in `fpjax/training/cards/open_peeps.md` |
| Licence of the weights | CC0 1.0 |
| First stage's recipe | `fpjax/training/recipes.py`: L1 of pixels and of their differences, half of each batch decoded from codes and half from what was encoded, codes as running means, Adam {stage.learning_rate}, batch {stage.batch_size}, EMA half-life {stage.ema_half_life:,.0f} images; {info["first_stage_images_seen"]:,} images seen |
| Prior's recipe | noise prediction, min-SNR weights, Adam {prior.learning_rate}, batch {prior.batch_size}, EMA half-life {prior.ema_half_life:,.0f} images; {info["prior_images_seen"]:,} latents seen |
| PSNR of held-out reconstructions | {info["reconstruction_psnr_db"]:.1f} dB from codes, {info["reconstruction_psnr_db_unquantized"]:.1f} dB without quantisation |
| Codes in use | {info["codes_in_use"]:.0%} |
| Frechet distance to training images, {info["frechet_num_test_images"]:,} of each | samples {info["frechet_distance"]:.1f}, reconstructions of held-out images {info["frechet_distance_of_reconstructions"]:.1f}, held-out images {info["frechet_distance_of_test_images"]:.1f}; on {info["frechet_features"]} |
| Weights | EMA, float16 safetensors; computed in float32 |
| SHA-256 of the first stage | `{info["sha256"]}` |

![Held-out pictures, each above its reconstruction from codes](reconstructions.png)

Made with

    python -m fpjax.training.train --recipe avatars-ldm-first-stage --out runs/first-stage
    python -m fpjax.training.train --recipe avatars-ldm-prior --out runs/prior \\
        --first_stage runs/first-stage --data runs/first-stage/data
    python -m fpjax.training.release_ldm --first_stage runs/first-stage --prior runs/prior \\
        --data runs/first-stage/data --out {NAME}
    fpjax scheme create --generator {NAME} --unquantized --encoder_only --shift 180 \\
        --strength 0.55 --num_samples 2000 --num_jacobians 24 --num_read_images 400 \\
        --out {NAME}/scheme

The scheme decodes latents without taking codes, and its keys are read by the encoder. Its directions
were chosen for that reader: those after them change the picture less than the encoder sees.

Known limits: beards and glasses are sometimes smudged; colours bleed where ink lines are thin. The
distances are on VGG16 features and cannot be compared with FID figures. Samples are drawn in 50 steps:
some five a second on two cores.

The pictures in `foreign/` are not of this generator: real avatars of four CC0 styles of DiceBear
(Open Peeps by Pablo Stanley, Lorelei by Lisa Wischofsky, Notionists by Zoish, Pixel Art by DiceBear).
"""


def main(argv):
    """Measures both runs and writes the folder."""
    del argv
    from fpjax.training.open_peeps import load_open_peeps

    logging.set_verbosity(logging.INFO)
    values = flags.FLAGS
    run = Path(values.first_stage)
    data = Path(values.data) if values.data else run / "data"
    recipe, prior_recipe = RECIPES[f"{NAME}-first-stage"], RECIPES[f"{NAME}-prior"]
    assert isinstance(recipe, FirstStageConfig)
    assert isinstance(prior_recipe, PriorConfig)
    side = recipe.resolution
    train, test = (load_open_peeps(data, split, side) for split in ("train", "test"))
    stage = FirstStage.of_run(run, recipe)
    scaled = stage.scaled(encoded.latents_of(stage, Path(values.prior), lambda: train))
    prior, step = trained_prior(Path(values.prior), prior_recipe)
    generator = LDMGenerator.create(NAME, scaled.config, stage.params, prior)
    info: dict[str, Any] = {
        "first_stage_images_seen": stage.step * recipe.batch_size,
        "prior_images_seen": step * prior_recipe.batch_size,
        **measure(generator, stage, train, test, values.num_images),
        "sha256": generator.sha256,
        "recipe": json.loads(
            checkpoint.canonical_json(
                {
                    "first_stage": dataclasses.asdict(recipe),
                    "prior": dataclasses.asdict(prior_recipe),
                }
            )
        ),
        "licence": "CC0 1.0",
    }
    out = Path(values.out)
    LDMGenerator.create(NAME, scaled.config, stage.params, prior, info).save(out, dtype="float16")
    drawn = natural_images(generator, jax.random.key(7), 64)
    save_image(out / "samples.png", image_grid(drawn, 8))
    shown = runs.reconstruction_grid(recipe, stage.params, test[:32])
    save_image(out / "reconstructions.png", shown)
    save_foreign_avatars(out / "foreign", side)
    (out / "MODEL_CARD.md").write_text(model_card(info, recipe, prior_recipe), "utf-8")
    logging.info("wrote %s: %s", out, {k: v for k, v in info.items() if k != "recipe"})


if __name__ == "__main__":
    define_flags()
    app.run(main)
