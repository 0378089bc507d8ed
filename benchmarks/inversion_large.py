"""One inversion of a large StyleGAN2 with random weights: time, memory, and whether it got there.

    python benchmarks/inversion_large.py [--resolution 256] [--steps_of_adam 3] [--json FILE]

The weights are random, in the layout of the published ADA configuration, and so is the key; the
file is the 8-bit picture. Styles of fresh weights vary by half of their mean, styles of a trained
network by a seventh (the bundled one's convolutions at 16 and 32 px), so `--modulation` scales the
weights that make them. Directions are principal components; the linear start is fitted on
`--fitted` pictures. Beside it stands the published protocol's time: a measured step of Adam on
LPIPS, times 20 starts of 2000.
"""

from __future__ import annotations

import argparse
import json
import resource
import time

import jax
import numpy as np

import fpjax
from fpjax.fingerprint.calibration import Calibration
from fpjax.inversion.solution import Status
from fpjax.inversion.starts import fit_linear_start
from fpjax.models import stylegan2

PUBLISHED_STEPS = 20 * 2000
MODULATION = 0.25
"""Scale of the weights that make styles."""
FITTED = 1000
"""Pictures that the start is fitted on."""


def random_generator(resolution: int, modulation: float = 1.0) -> fpjax.StyleGAN2Generator:
    """Random weights; colours scaled so that pictures lie within [-1, 1].

    Args:
      resolution: side in pixels.
      modulation: scale of the weights that turn a latent into styles.
    """
    base = 16384 if resolution <= 256 else 32768
    config = stylegan2.StyleGAN2Config(resolution, channel_base=base)
    params = stylegan2.init(config, jax.random.key(0))
    for block in params["synthesis"].values():
        block["torgb"]["weight"] = block["torgb"]["weight"] * 0.12
        for layer in block.values():
            if isinstance(layer, dict) and "affine" in layer:
                layer["affine"]["weight"] = layer["affine"]["weight"] * modulation
    return fpjax.StyleGAN2Generator.create(f"random-{resolution}", config, params)


def large_scheme(generator: fpjax.StyleGAN2Generator, fitted: int) -> fpjax.Scheme:
    """64 bits on the last principal components, with a linear start fitted on so many pictures."""
    basis = fpjax.fit_basis(generator, jax.random.key(1), 10_000, metric="latent")
    scheme = fpjax.Scheme.create(generator, basis, 64, strength=1.0)
    if not fitted:
        return scheme
    start = fit_linear_start(scheme, jax.random.key(4), fitted, batch=50)
    solver = fpjax.LevenbergMarquardt.name
    return scheme.replace(
        calibration=Calibration(start, "rounded-8bit", solver, 1.5, 1.0, fitted, 0)
    )


def resident_gib() -> float:
    """Peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--memory_gib", type=float, default=2.0, help="budget of the tangents")
    parser.add_argument(
        "--modulation", type=float, default=MODULATION, help="1: fresh weights' own"
    )
    parser.add_argument("--fitted", type=int, default=FITTED, help="pictures; 0: start at the mean")
    parser.add_argument("--seed", type=int, default=2, help="of the key and the picture")
    parser.add_argument("--tempering", type=float, help="of the solver; its default by size")
    parser.add_argument("--slopes", type=int, help="of the solver; its default by size")
    parser.add_argument("--steps_of_adam", type=int, default=3)
    parser.add_argument("--json", default=None)
    args = parser.parse_args()
    generator = random_generator(args.resolution, args.modulation)
    before = time.perf_counter()
    scheme = large_scheme(generator, args.fitted)
    preparing = time.perf_counter() - before
    keys = fpjax.sample_keys(jax.random.key(args.seed), 1, 64)
    made = fpjax.generate(scheme, jax.random.key(args.seed + 1), keys)
    starts = None if args.fitted else np.zeros((1, len(scheme.basis)), np.float32)
    before, processor = time.perf_counter(), time.process_time()
    solver = fpjax.LevenbergMarquardt(tempering=args.tempering, slopes=args.slopes)
    problem, memory = fpjax.Problem(scheme), int(args.memory_gib * 2**30)
    found = fpjax.invert(problem, made.images, solver, starts=starts, memory=memory)
    result = {
        "resolution": args.resolution,
        "modulation": args.modulation,
        "tempering": args.tempering,
        "slopes": args.slopes,
        "fitted": args.fitted,
        "unknowns": len(scheme.basis),
        "seconds_to_make_the_scheme": preparing,
        "saturated": float(np.mean((made.images == 0) | (made.images == 255))),
        "seconds": time.perf_counter() - before,
        "processor_seconds": time.process_time() - processor,
        "jacobians": int(found.steps[0]),
        "status": Status(found.status[0]).name,
        "noise_ratio": float(found.noise_ratio[0]),
        "bits_right": int((found.keys == keys).sum()),
        "peak_gib": resident_gib(),
    }
    print(json.dumps(result), flush=True)
    if args.steps_of_adam:
        solver = fpjax.Adam(num_steps=args.steps_of_adam, num_starts=1)
        problem = fpjax.Problem.paper(scheme)
        fpjax.invert(problem, made.images, solver)  # compiles
        before = time.perf_counter()
        fpjax.invert(problem, made.images, solver)
        step = (time.perf_counter() - before) / args.steps_of_adam
        result["published_seconds"] = step * PUBLISHED_STEPS
        print(json.dumps(result), flush=True)
    if args.json:
        with open(args.json, "w") as file:
            json.dump(result, file, indent=2)


if __name__ == "__main__":
    main()
