"""Latent diffusion of the published size at 256 px, from checkpoint to inversion: time and memory.

    python benchmarks/first_stage_large.py --folder FOLDER [--side 256] [--num_probes 16] \\
        [--cg_steps 10] [--key_length 64] [--json FILE]

The architecture is that of the published face models: a VQ-f4 first stage of 128, 256, 512 channels
with 8,192 codes of 3 values, and a U-Net of 224, 448, 672, 896 channels. diffusers makes them with
random weights, once, in FOLDER; the command `fpjax-convert` reads them. Each stage is then run on
one picture: a step of DDIM, decoding, encoding, random products for the image metric, directions,
a key, and one inversion step (a linearisation, and conjugate gradients). With random weights the
step's time is what it is with trained ones; what it finds means nothing. For each: seconds, of the
clock and of all cores, and the most memory that the process has held until then.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

import fpjax
from fpjax.fingerprint.decode import decode_images
from fpjax.fingerprint.embed import embed
from fpjax.fingerprint.fit import fit_basis
from fpjax.inversion.solvers.matrix_free import MatrixFree
from fpjax.io.atomic import atomic_write
from fpjax.io.images import to_uint8

LATENTS = 64


def make_pipeline(folder: Path, side: int) -> None:
    """A diffusers pipeline of the published size, its weights random."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from diffusers import DDIMScheduler, LDMPipeline, UNet2DModel, VQModel

    torch.manual_seed(0)
    first_stage = VQModel(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(128, 256, 512),
        layers_per_block=2,
        latent_channels=3,
        num_vq_embeddings=8192,
        norm_num_groups=32,
        sample_size=side,
        scaling_factor=1.0,
    )
    unet = UNet2DModel(
        sample_size=side // 4,
        in_channels=3,
        out_channels=3,
        block_out_channels=(224, 448, 672, 896),
        down_block_types=("DownBlock2D", *("AttnDownBlock2D",) * 3),
        up_block_types=(*("AttnUpBlock2D",) * 3, "UpBlock2D"),
        attention_head_dim=32,
        norm_num_groups=32,
    )
    LDMPipeline(first_stage, unet, DDIMScheduler()).save_pretrained(folder)


def convert(source: Path, target: Path) -> None:
    from checkpoints_convert.command import run

    if run([str(source), str(target)]):
        raise SystemExit("the conversion failed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", required=True, help="for the two checkpoints, some 4 GB")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--num_probes", type=int, default=16, help="of the image metric")
    parser.add_argument("--cg_steps", type=int, default=10, help="products for the step")
    parser.add_argument("--key_length", type=int, default=64)
    parser.add_argument("--json")
    args = parser.parse_args()
    out = Path(args.json) if args.json else None
    rows: dict[str, dict] = {}
    if out and out.exists():
        kept = json.loads(out.read_text())
        if kept["arguments"]["side"] == args.side:
            rows = kept["rows"]

    def timed(name: str, call: Callable, times: int = 1):
        clock, processor = time.perf_counter(), time.process_time()
        result = jax.block_until_ready(call())
        rows[name] = {
            "seconds": (time.perf_counter() - clock) / times,
            "processor_seconds": (time.process_time() - processor) / times,
            "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        }
        print(name, {key: round(value, 2) for key, value in rows[name].items()}, flush=True)
        if out:
            with atomic_write(out, "w") as file:
                json.dump({"arguments": vars(args), "rows": rows}, file, indent=2)
        return result

    folder = Path(args.folder) / str(args.side)
    if not (folder / "published").exists():
        # In a process of its own, so that its memory is not counted here.
        maker = multiprocessing.get_context("spawn").Process(
            target=make_pipeline, args=(folder / "unfinished", args.side)
        )
        maker.start()
        maker.join()
        if maker.exitcode:
            raise SystemExit("no pipeline was made")
        (folder / "unfinished").rename(folder / "published")
    if not (folder / "converted").exists():
        timed("fpjax-convert", lambda: convert(folder / "published", folder / "converted"))
    generator = timed("load", lambda: fpjax.load_generator(folder / "converted"))
    generator = generator.with_noise("unquantized")
    params, shape = generator.params, generator.latent_shape

    sample = jax.jit(lambda params, key: generator.sample_latents(params, key, 1, steps=2))
    timed("two steps of DDIM, compiled for them", lambda: sample(params, jax.random.key(0)))
    timed("a step of DDIM", lambda: sample(params, jax.random.key(1)), 2)

    # A first stage alone from here on: the denoiser is not held.
    random = np.random.default_rng(0)
    natural = random.standard_normal((LATENTS, *shape)).astype(np.float32)
    generator = generator.with_latents(natural)
    timed("decode, compiled for it", lambda: decode_images(generator, natural[:1]))
    picture = timed("decode", lambda: decode_images(generator, natural[:1]))
    encode = jax.jit(generator.encode)
    timed("encode, compiled for it", lambda: encode(generator.params, picture))
    timed("encode", lambda: encode(generator.params, picture))

    def fit(probes: int):
        return fit_basis(
            generator, jax.random.key(2), LATENTS, num_jacobians=LATENTS, num_probes=probes
        )

    timed("directions, compiled for them", lambda: fit(args.num_probes))
    basis = timed(
        "a random product for the metric, up and down", lambda: fit(args.num_probes),
        args.num_probes,
    )  # fmt: skip
    scheme = fpjax.Scheme.create(generator, basis, args.key_length, strength=0.5, keep_all=True)
    keys = fpjax.sample_keys(jax.random.key(3), 1, args.key_length)
    alpha = np.zeros((1, scheme.num_alpha), np.float32)
    latents = embed(scheme, alpha, keys)
    file = to_uint8(timed("a picture with a key", lambda: decode_images(generator, latents)))
    solver = MatrixFree(max_steps=1, cg_steps=args.cg_steps, information="none")

    def step():
        return fpjax.invert(fpjax.Problem(scheme), file, solver).alpha

    timed("one inversion step, compiled for it", step)
    timed("one inversion step, from the encoder's start", step)


if __name__ == "__main__":
    main()
