"""What an image costs once everything is compiled: own files, and drawings that nothing here made.

    python benchmarks/steady_state.py [--scheme avatars-stylegan2] [--num_images 32]

Seconds an image of `fpjax.attribute(scheme, images)`, the second time, on all cores; seconds of all
cores together; and how many images took how many Jacobians (or steps of another solver).
"""

from __future__ import annotations

import argparse
import json
import time

import jax
import numpy as np

import fpjax
from fpjax.training.avatars import render_avatar


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scheme", default="avatars-stylegan2")
    parser.add_argument("--num_images", type=int, default=32)
    args = parser.parse_args()
    scheme = fpjax.load_scheme(args.scheme)
    side = scheme.generator.image_shape[0]
    keys = fpjax.sample_keys(jax.random.key(5), args.num_images, scheme.key_length)
    kinds = {
        "own": fpjax.generate(scheme, jax.random.key(6), keys).images,
        "drawings": np.stack([render_avatar(f"steady-{i}", side) for i in range(args.num_images)]),
    }
    report = {}
    for kind, images in kinds.items():
        fpjax.attribute(scheme, images)
        clock, processor = time.perf_counter(), time.process_time()
        found = fpjax.attribute(scheme, images)
        steps, counts = np.unique(found.solution.steps, return_counts=True)
        report[kind] = {
            "seconds": round((time.perf_counter() - clock) / len(images), 3),
            "core_seconds": round((time.process_time() - processor) / len(images), 3),
            "images_by_steps": dict(zip(steps.tolist(), counts.tolist(), strict=True)),
        }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
