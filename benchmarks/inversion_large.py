"""One inversion of a large StyleGAN2 with random weights: time, memory, and whether it got there.

    python benchmarks/inversion_large.py [--resolution 256] [--steps_of_adam 3] [--json FILE]

The weights are random, in the layout of the published ADA configuration, and so is the key; the
file is the 8-bit picture. Directions are principal components, and the start is the mean latent.
Beside it stands the published protocol's time: a measured step of Adam on LPIPS, times 20 starts of
2000.
"""

from __future__ import annotations

import argparse
import json
import resource
import time

import jax
import numpy as np

import fpjax
from fpjax.inversion.solution import Status
from fpjax.models import stylegan2

PUBLISHED_STEPS = 20 * 2000


def random_generator(resolution: int) -> fpjax.StyleGAN2Generator:
    """Random weights; colours scaled so that pictures lie within [-1, 1]."""
    base = 16384 if resolution <= 256 else 32768
    config = stylegan2.StyleGAN2Config(resolution, channel_base=base)
    params = stylegan2.init(config, jax.random.key(0))
    for block in params["synthesis"].values():
        block["torgb"]["weight"] = block["torgb"]["weight"] * 0.12
    return fpjax.StyleGAN2Generator.create(f"random-{resolution}", config, params)


def resident_gib() -> float:
    """Peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--memory_gib", type=float, default=2.0, help="budget of the tangents")
    parser.add_argument("--steps_of_adam", type=int, default=3)
    parser.add_argument("--json", default=None)
    args = parser.parse_args()
    generator = random_generator(args.resolution)
    basis = fpjax.fit_basis(generator, jax.random.key(1), 10_000, metric="latent")
    scheme = fpjax.Scheme.create(generator, basis, 64, strength=1.0)
    keys = fpjax.sample_keys(jax.random.key(2), 1, 64)
    made = fpjax.generate(scheme, jax.random.key(3), keys)
    start = np.zeros((1, len(basis)), np.float32)
    before, processor = time.perf_counter(), time.process_time()
    found = fpjax.invert(
        fpjax.Problem(scheme), made.images, starts=start, memory=int(args.memory_gib * 2**30)
    )
    result = {
        "resolution": args.resolution,
        "unknowns": len(basis),
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
