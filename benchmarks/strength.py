"""Smallest strength that keeps keys readable: exact keys, bit accuracy and PSNR for each strength.

    python benchmarks/strength.py --strengths 0.2,0.25,0.3 --num_images 64 --json strength.json

Images are the bundled generator's, projected latents, 8-bit; the solver is the default one. Keys
and latents are the same at every strength.
"""

from __future__ import annotations

import json
import time

import jax
import numpy as np
from absl import app, flags

import fpjax
from fpjax.cli.demo import psnr_db
from fpjax.data.files import to_uint8
from fpjax.inversion.starts import fit_linear_start

_STRENGTHS = flags.DEFINE_list("strengths", ["0.2", "0.25", "0.3"], "Strengths to try.")
_NUM_IMAGES = flags.DEFINE_integer("num_images", 64, "Images at each strength.")
_NUM_START = flags.DEFINE_integer("num_start_images", 12_000, "Images for the linear start.")
_GENERATOR = flags.DEFINE_string("generator", "avatars-stylegan2", "Generator.")
_LEVELS = flags.DEFINE_enum("levels", "antipodal", ["binary", "antipodal"], "Levels of a bit.")
_JSON = flags.DEFINE_string("json", None, "File to write the figures to.")


def main(argv):
    del argv
    generator = fpjax.load_generator(_GENERATOR.value)
    basis = fpjax.fit_basis(generator, jax.random.key(0))
    keys = fpjax.sample_keys(jax.random.key(1), _NUM_IMAGES.value, 64)
    rows = []
    print(
        "strength  exact keys  bit accuracy  by rounding  PSNR (min)   steps  s/image", flush=True
    )
    for strength in map(float, _STRENGTHS.value):
        scheme = fpjax.Scheme.create(generator, basis, 64, 448, strength, _LEVELS.value)
        start = fit_linear_start(scheme, jax.random.key(3), _NUM_START.value)
        scheme = scheme.replace(extras=start.to_extras())
        out = fpjax.generate(scheme, jax.random.key(2), keys)
        images = to_uint8(np.asarray(out.images))
        psnr = psnr_db(to_uint8(np.asarray(out.originals)), images)
        began = time.monotonic()
        found = fpjax.invert(fpjax.Problem(scheme), images)
        seconds = (time.monotonic() - began) / len(images)
        row = {
            "strength": strength,
            "levels": _LEVELS.value,
            "num_images": len(images),
            "exact_keys": int((found.keys == keys).all(axis=1).sum()),
            "bit_accuracy": float((found.keys == keys).mean()),
            "exact_keys_by_rounding": int(((found.soft_bits > 0.5) == keys).all(axis=1).sum()),
            "soft_bit_std": float(np.std(found.soft_bits - keys)),
            "psnr_db": float(psnr.mean()),
            "psnr_db_min": float(psnr.min()),
            "steps": float(found.steps.mean()),
            "solved": int((found.status == 0).sum()),
            "seconds_per_image": seconds,
        }
        rows.append(row)
        print(
            f"{strength:8.2f} {row['exact_keys']:7d}/{len(images)} {row['bit_accuracy']:12.4f} "
            f"{row['exact_keys_by_rounding']:9d}/{len(images)} {row['psnr_db']:6.1f} "
            f"({row['psnr_db_min']:.1f}) {row['steps']:6.1f} {seconds:8.1f}",
            flush=True,
        )
    if _JSON.value:
        with open(_JSON.value, "w") as file:
            json.dump(rows, file, indent=2)


if __name__ == "__main__":
    app.run(main)
