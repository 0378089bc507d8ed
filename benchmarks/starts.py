"""How near inversions start, and how far off they may start.

    python benchmarks/starts.py [--scheme avatars-stylegan2] [--num_images 32] [--from_mean 16]
                                [--foreign 8]

Residuals of the linear read-out, and after the average Jacobian: root-mean-square, in units of the
rounding noise of an 8-bit file. Then inversions of the first files that start at the mean latent,
with no calibration, with the prior tempered by the residual and without: keys exact, Jacobians.
`--foreign` also says the least and the largest residual after the first Jacobian: of so many files,
of JPEG files of them, and of drawings that nothing here made.
"""

from __future__ import annotations

import argparse
import json

import jax
import numpy as np

import fpjax
from fpjax.attacks import parse
from fpjax.inversion.solvers.base import evaluate
from fpjax.inversion.starts import linear_starts, nearer_start
from fpjax.training.avatars import render_avatar


@jax.jit
def _ratio(problem, unknowns, target):
    return evaluate(problem, unknowns, target, 0.0)[2]


def _kinds(scheme, made: np.ndarray) -> dict[str, np.ndarray]:
    drawn = [
        render_avatar(f"starts-{i}", scheme.generator.image_shape[0]) for i in range(len(made))
    ]
    return {
        "own": made,
        "own as JPEG 75": np.asarray(parse("jpeg:quality=75")(jax.random.key(0), made)),
        "drawings": np.stack(drawn),
    }


def _after_one(problem, pictures: np.ndarray) -> dict[str, float]:
    """Of lanes that stay where their first Jacobian leads, whatever they are."""
    solver = fpjax.LevenbergMarquardt(max_steps=1, foreign_ratio=0)
    ratios = fpjax.invert(problem, pictures, solver).noise_ratio
    return {"least": float(ratios.min()), "largest": float(ratios.max())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scheme", default="avatars-stylegan2")
    parser.add_argument("--num_images", type=int, default=32)
    parser.add_argument("--from_mean", type=int, default=16, help="files to start at the mean")
    parser.add_argument("--foreign", type=int, default=0, help="files of others")
    args = parser.parse_args()
    scheme = fpjax.load_scheme(args.scheme)
    problem = fpjax.Problem(scheme)
    prepared = jax.device_put(problem.prepared())
    keys = fpjax.sample_keys(jax.random.key(5), args.num_images, scheme.key_length)
    made = fpjax.generate(scheme, jax.random.key(6), keys).images
    files = made / np.float32(127.5) - 1
    nearer = jax.jit(nearer_start)
    ratios = []
    for pair in zip(linear_starts(problem, files), files, strict=True):
        start, target = jax.device_put(pair)
        near = nearer(prepared, start, target)
        ratios.append([float(_ratio(prepared, x, target)) for x in (start, near)])
    linear, near = np.array(ratios).T
    report = {
        "images": len(ratios),
        "linear_median": float(np.median(linear)),
        "nearer_median": float(np.median(near)),
        "not_nearer": int((near > 0.99 * linear).sum()),
    }
    if args.foreign:
        report["after_one_jacobian"] = {
            kind: _after_one(problem, pictures)
            for kind, pictures in _kinds(scheme, made[: args.foreign]).items()
        }
    mean = np.zeros((1, problem.num_unknowns), np.float32)
    bare = fpjax.Problem(scheme.without_calibration())
    for name, tempering in (("tempered", 10.0), ("not_tempered", 0.0)):
        solver = fpjax.LevenbergMarquardt(tempering=tempering)
        found = fpjax.invert(bare, made[: args.from_mean], solver, starts=mean)
        exact = (found.keys == keys[: args.from_mean]).all(axis=1)
        report[name] = {"exact": int(exact.sum()), "jacobians": float(found.steps.mean())}
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
