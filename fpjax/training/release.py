"""Turns a finished training run into a bundled model: weights, model card, grid, foreign images.

    python -m fpjax.training.release --run runs/avatars --out fpjax/zoo/models/avatars-stylegan2

The model card that it writes names the command that made the ready-made scheme.
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

from fpjax.io.images import save_image, to_uint8
from fpjax.models import checkpoint
from fpjax.models.stylegan2_generator import StyleGAN2Generator
from fpjax.training import frechet, gan, recipes
from fpjax.training.avatars import save_foreign_avatars
from fpjax.training.gan import GANConfig
from fpjax.training.runs import checkpoint_manager, restore_or_init, sample_grid


def define_flags() -> None:
    """Flags of the program; defined only when it runs, so that the module can be imported."""
    flags.DEFINE_string("run", "runs/avatars", "Folder of the training run.")
    flags.DEFINE_string("data", None, "Folder of the data set [default: RUN/data].")
    flags.DEFINE_string("out", None, "Folder to make.", required=True)
    flags.DEFINE_string("recipe", "avatars-stylegan2", "What was trained.")
    flags.DEFINE_integer("num_images", 10_000, "Images of each kind for the distance.")


def generated_images(config: gan.GANConfig, params, num: int, batch: int = 250) -> np.ndarray:
    """(num, R, R, 3) uint8 images of the averaged generator, stored noise maps, no truncation."""
    generator = StyleGAN2Generator.create("", config.model, params)
    sample = generator.sample_latents
    assert sample is not None
    draw = jax.jit(lambda p, k: generator.decode(p, sample(p, k, batch)))
    keys = jax.random.split(jax.random.key(11), -(-num // batch))
    return np.concatenate([to_uint8(np.asarray(draw(params, k))) for k in keys])[:num]


def model_card(name: str, config: gan.GANConfig, info: dict) -> str:
    """The model card, from what was measured."""
    model = config.model
    channels = ", ".join(f"{c} at {r} px" for r, c in model.channels or ())
    return f"""# {name}

A StyleGAN2 of {model.resolution} px cartoon avatars, small enough to invert on a laptop. Its latent
has the published size (z = w = {model.w_dim}), so that key length 64 at shift 448 means what it means
in the paper.

![64 samples, no truncation](samples.png)

| | |
|---|---|
| Architecture | StyleGAN2, skip synthesis, {model.num_mapping_layers} mapping layers, channels {channels} |
| Data | Open Peeps avatars (CC0), 24,000 images; data card in `fpjax/training/cards/open_peeps.md` |
| Licence of the weights | CC0 1.0 |
| Recipe | `fpjax/training/recipes.py`: non-saturating loss, lazy R1 (gamma {config.r1_gamma}, every {config.r1_interval} steps), Adam {config.learning_rate}, batch {config.batch_size}, EMA half-life {config.ema_half_life:,.0f} images, minibatch standard deviation |
| Images seen | {info["images_seen"]:,} |
| Frechet distance to the training images | {info["frechet_distance"]:.2f} on {info["frechet_features"]}, {info["frechet_num_images"]:,} images each |
| Same, of {info["frechet_num_test_images"]:,} held-out real images | {info["frechet_distance_of_test_images"]:.2f} |
| Weights | EMA, float16 safetensors; computed in float32 |
| SHA-256 of architecture and weights | `{info["sha256"]}` |

Made with

    python -m fpjax.training.train --out runs/avatars
    python -m fpjax.training.release --run runs/avatars --out {name}
    fpjax scheme create --metric image --num_jacobians 512 --strength 0.055 --out {name}/scheme

The scheme `{name}/robust` has the same directions at strength 0.36, and writes keys of 51 bits in a code, for
files that are recompressed: `scheme-robust/CARD.md`.

Schemes of before stay readable, as do registries and files made with them: `{name}/pca`
is that of the first version, the last 64 of 512 principal components, strength 0.35, levels -1 and 1;
`{name}/jacobians-64` and `{name}/robust-jacobians-64` are of the image
metric of 64 Jacobians, strengths 0.07 and 0.3; `{name}/robust-uncoded` was `robust`, with 64 bits
without a code at strength 0.3.

The shipped run was interrupted, killed and resumed several times, as the recipe allows; its first
16,000 images were seen with R1 gamma 0.02, before gamma was raised.

Known limits: rare features (masks, turbans, hats) are rarer or blurred; thin ink lines soften. The
distance above is on VGG16 features and cannot be compared with FID figures.

The pictures in `foreign/` are not of this generator: real avatars of four CC0 styles of DiceBear
(Open Peeps by Pablo Stanley, Lorelei by Lisa Wischofsky, Notionists by Zoish, Pixel Art by DiceBear),
which the demo puts to the test.
"""


def main(argv):
    """Measures the run's averaged generator and writes the folder."""
    del argv
    from fpjax.training.open_peeps import load_open_peeps

    logging.set_verbosity(logging.INFO)
    values = flags.FLAGS
    name = values.recipe
    config = recipes.RECIPES[name]
    if not isinstance(config, GANConfig):
        raise app.UsageError(f"recipe {name}: a release is of a StyleGAN2")
    run = Path(values.run)
    data = Path(values.data) if values.data else run / "data"
    manager = checkpoint_manager(run / "checkpoints")
    step = manager.latest_step()
    if step is None:
        raise app.UsageError(f"{run} holds no checkpoint")
    state = restore_or_init(manager, config)
    manager.close()
    # What is stored is what is measured: weights are rounded to float16 first.
    params = jax.tree.map(
        lambda x: jnp.asarray(np.asarray(x, np.float16), jnp.float32), state["average"]
    )
    side = config.model.resolution
    train, test = (load_open_peeps(data, split, side) for split in ("train", "test"))
    info: dict[str, Any] = {"images_seen": step * config.batch_size}
    made = generated_images(config, params, values.num_images)
    info |= frechet.distances(train[: values.num_images], test, frechet_distance=made)
    generator = StyleGAN2Generator.create(name, config.model, params)
    info["sha256"] = generator.sha256
    info["recipe"] = json.loads(checkpoint.canonical_json(dataclasses.asdict(config)))
    info["licence"] = "CC0 1.0"
    out = Path(values.out)
    StyleGAN2Generator.create(name, config.model, params, info).save(out, dtype="float16")
    save_image(out / "samples.png", sample_grid(config, params))
    save_foreign_avatars(out / "foreign", side)
    (out / "MODEL_CARD.md").write_text(model_card(name, config, info), "utf-8")
    logging.info("wrote %s: %s", out, {k: v for k, v in info.items() if k != "recipe"})


if __name__ == "__main__":
    define_flags()
    app.run(main)
