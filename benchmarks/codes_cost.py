"""What taking the nearest codes costs a key: bits read with and without, by strength.

    python benchmarks/codes_cost.py [--scheme avatars-ldm] [--strengths 0.3,0.55,1] \\
        [--num_images 64] [--num_read_images 300] [--json FILE]

A published VQ decoder replaces every latent vector by the nearest of its codes before it decodes.
The same latents, keys and directions are decoded with codes and without, rounded to 8 bits, and
read by the encoder, whose errors are measured anew for each: the noise of quantisation is then part
of what its readings are known to be worth. Said of each: bits and keys read right, the information
about the key in bits, and the PSNR between the pictures with keys and without.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import jax
import numpy as np

import fpjax
from fpjax.inversion.encoder_reader import fit_encoder_reader
from fpjax.io.atomic import atomic_write
from fpjax.studies.quality import psnr_db


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scheme", default="avatars-ldm")
    parser.add_argument("--strengths", default="0.3,0.55,1")
    parser.add_argument("--num_images", type=int, default=64)
    parser.add_argument("--num_read_images", type=int, default=300)
    parser.add_argument("--json")
    args = parser.parse_args()
    bundled = fpjax.load_scheme(args.scheme).without_calibration()
    keys = fpjax.sample_keys(jax.random.key(1), args.num_images, bundled.key_length)
    rows = []
    for strength in map(float, args.strengths.split(",")):
        for noise in ("unquantized", "const"):
            generator = bundled.generator.with_noise(noise)
            scheme = bundled.replace(generator=generator, strength=strength)
            made = fpjax.generate(scheme, jax.random.key(2), keys)
            reader = fit_encoder_reader(scheme, jax.random.key(3), args.num_read_images)
            right = reader.read(scheme, made.images).keys == keys
            gain = np.eye(scheme.num_symbols) + reader.errors.information
            row = {
                "strength": strength,
                "codes": noise == "const",
                "bit_accuracy": float(right.mean()),
                "keys_exact": int(right.all(axis=1).sum()),
                "information_bits": float(np.linalg.slogdet(gain)[1] / 2 / np.log(2)),
                "psnr_db": float(psnr_db(made.originals, made.images).mean()),
            }
            rows.append(row)
            shown = {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}
            print(shown, flush=True)
            if args.json:
                with atomic_write(Path(args.json), "w") as file:
                    json.dump({"arguments": vars(args), "scheme": bundled.id, "rows": rows}, file)


if __name__ == "__main__":
    main()
