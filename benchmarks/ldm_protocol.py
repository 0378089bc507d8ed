"""The published protocol for latent diffusion, at a small scale, beside ours on the same files.

    python benchmarks/ldm_protocol.py [--num_images 4] [--psnr 34] [--json FILE]
        [--starts 2] [--steps 200]

On the bundled `avatars-ldm`, without its codes: 64 bits, each on three consecutive principal
components of whole latents, the last 192 of 768 (published: of 12288, from 4000 on), as strong as
gives the wanted PSNR; pictures saved in 8 bits. They are read by

  published  Adam on LPIPS-VGG16, penalty weight 0.005, Latin-hypercube starts; published are 20
             starts of 2000 steps, of which a few are taken here, and the time of all is their
             time multiplied
  ours       the default inversion, on the same files
  bundled    the bundled scheme's own reader, on files of that scheme

Needs pip install 'fpjax[lpips]'. Every reader runs once before it is timed, on the same files.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import jax

import fpjax
from fpjax.fingerprint.basis import sample_latents
from fpjax.fingerprint.tied_pca import joint_pca
from fpjax.io.atomic import atomic_write
from fpjax.studies.quality import psnr_db

LENGTH, REPEATS = 64, 3


def published_scheme(generator, num_samples: int, psnr: float) -> fpjax.Scheme:
    """The published directions, in the strength that costs so much."""
    latents = sample_latents(generator, jax.random.key(0), num_samples)
    first = generator.latent_size - LENGTH * REPEATS
    basis, shift = joint_pca(latents, generator.latent_shape, LENGTH, first, REPEATS)
    scheme = fpjax.Scheme.create(generator, basis, LENGTH, shift, 1.0, keep_all=True)
    keys = fpjax.sample_keys(jax.random.key(1), 16, LENGTH)
    for _ in range(4):
        made = fpjax.generate(scheme, jax.random.key(2), keys)
        error = float(psnr_db(made.originals, made.images).mean()) - psnr
        scheme = scheme.replace(strength=float(scheme.strength) * 10 ** (error / 20))
    return scheme


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num_images", type=int, default=4)
    parser.add_argument("--num_samples", type=int, default=1000)
    parser.add_argument("--psnr", type=float, default=34.0)
    parser.add_argument("--starts", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--json")
    args = parser.parse_args()

    bundled = fpjax.load_scheme("avatars-ldm")
    scheme = published_scheme(bundled.generator, args.num_samples, args.psnr)
    keys = fpjax.sample_keys(jax.random.key(3), args.num_images, LENGTH)
    made = fpjax.generate(scheme, jax.random.key(4), keys)
    rows = {}

    def report(name, found, seconds, files, share=1.0):
        rows[name] = {
            "psnr_db": float(psnr_db(files.originals, files.images).mean()),
            "bit_accuracy": float((found.keys == keys).mean()),
            "keys_exact": int((found.keys == keys).all(axis=1).sum()),
            "seconds_an_image": seconds / args.num_images,
        }
        if share < 1:
            rows[name]["seconds_an_image_at_the_published_length"] = (
                rows[name]["seconds_an_image"] / share
            )
        print(name, {k: round(v, 3) for k, v in rows[name].items()}, flush=True)

    def timed(read):
        read()
        started = time.perf_counter()
        return read(), time.perf_counter() - started

    adam = fpjax.Adam(num_starts=args.starts, num_steps=args.steps)
    problem = fpjax.Problem.paper_ldm(scheme)
    found, seconds = timed(lambda: fpjax.invert(problem, made.images, adam))
    share = args.starts * args.steps / (20 * 2000)
    report("published", found, seconds, made, share)

    problem = fpjax.Problem(scheme)
    report("ours", *timed(lambda: fpjax.invert(problem, made.images)), made)

    own = fpjax.generate(bundled, jax.random.key(4), keys)
    report("bundled", *timed(lambda: fpjax.attribute(bundled, own.images)), own)
    if args.json:
        with atomic_write(Path(args.json), "w") as file:
            json.dump({"arguments": vars(args), "rows": rows}, file, indent=2)


if __name__ == "__main__":
    main()
