"""The published solver beside the default one, on the same fingerprinted 8-bit images.

    python benchmarks/solvers.py --num_images 8 --num_starts 2 --num_steps 400 --json solvers.json

The published protocol takes 20 starts of 2000 steps; fewer are fine for a comparison if said.
"""

from __future__ import annotations

import json
import time

import jax
import numpy as np
from absl import app, flags
from fpjax.inversion.adam import Adam
from fpjax.inversion.gauss_newton import GaussNewton

import fpjax
from fpjax.data.files import to_uint8

_NUM_IMAGES = flags.DEFINE_integer("num_images", 8, "Images to invert.")
_NUM_STARTS = flags.DEFINE_integer("num_starts", 2, "Starts of the published solver.")
_NUM_STEPS = flags.DEFINE_integer("num_steps", 400, "Steps of the published solver.")
_PIXEL = flags.DEFINE_boolean("pixel", True, "Also run Adam on the pixel loss.")
_JSON = flags.DEFINE_string("json", None, "File to write the figures to.")


def main(argv):
    del argv
    scheme = fpjax.load_scheme("avatars-stylegan2")
    keys = fpjax.sample_keys(jax.random.key(21), _NUM_IMAGES.value, scheme.key_length)
    images = to_uint8(np.asarray(fpjax.generate(scheme, jax.random.key(22), keys).images))
    adam = Adam(num_starts=_NUM_STARTS.value, num_steps=_NUM_STEPS.value)
    pixel = fpjax.Problem(scheme, alpha_penalty="bounds", key="sigmoid")
    cases = {
        "gauss_newton": (fpjax.Problem(scheme), GaussNewton()),
        "paper (Adam, LPIPS)": (fpjax.Problem.paper(scheme), adam),
    }
    if _PIXEL.value:
        cases["Adam, pixel loss"] = (pixel, adam)
    rows = []
    for name, (problem, solver) in cases.items():
        fpjax.invert(problem, images[:1], solver)  # compiles
        began = time.monotonic()
        found = fpjax.invert(problem, images, solver)
        row = {
            "solver": name,
            "settings": repr(solver),
            "num_images": len(images),
            "bit_accuracy": float((found.keys == keys).mean()),
            "exact_keys": int((found.keys == keys).all(axis=1).sum()),
            "noise_ratio": float(np.median(found.noise_ratio)),
            "seconds_per_image": (time.monotonic() - began) / len(images),
        }
        rows.append(row)
        print(
            f"{name:20s} bit accuracy {row['bit_accuracy']:.4f}, {row['exact_keys']} of "
            f"{len(images)} keys exact, residual {row['noise_ratio']:.1f} times rounding noise, "
            f"{row['seconds_per_image']:.1f} s an image",
            flush=True,
        )
    if _JSON.value:
        with open(_JSON.value, "w") as file:
            json.dump(rows, file, indent=2)


if __name__ == "__main__":
    app.run(main)
