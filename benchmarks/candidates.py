"""Candidate keys in one inversion, on the bundled generator: their cost, and whom it ranks first.

    python benchmarks/candidates.py [--candidates 10,100,1000] [--images 2] [--noise 0.1]
                                    [--users 1e6] [--strength SIGMA] [--scheme NAME]
                                    [--json FILE]

Images carry keys of a registry of derived keys, and noise. `search_soft` gives the candidates that
the linearised score ranks first among all users; `invert_candidates` ranks them again by exact
profile likelihoods. Said of each number of candidates: seconds an image beside those of the
inversion, steps a candidate, nats that are left, and the true key's rank by either score.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

import fpjax
from fpjax.attribution.search import search_soft


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--candidates", default="10,100,1000")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--noise", type=float, default=0.1)
    parser.add_argument("--users", type=float, default=1e6)
    parser.add_argument("--strength", type=float, default=None)
    parser.add_argument("--scheme", default="avatars-stylegan2")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--json", default=None)
    args = parser.parse_args()
    scheme = fpjax.load_scheme(args.scheme)
    if args.strength is not None:
        scheme = scheme.replace(strength=args.strength)
    source = fpjax.DerivedKeys(args.seed.to_bytes(32, "little"), int(args.users), scheme.key_length)
    rng = np.random.default_rng(args.seed)
    owners = rng.choice(len(source), args.images, replace=False)
    observation = fpjax.Gaussian(args.noise) if args.noise else fpjax.Rounded8Bit()
    random = jax.random.split(jax.random.key(args.seed), 2)
    made = fpjax.generate(scheme, random[0], source.keys(owners))
    files = np.asarray(observation.simulate(random[1], jnp.asarray(made.float_images)))
    problem = fpjax.Problem(scheme, observation)
    fpjax.invert(problem, files[:1])  # compiles
    start = time.perf_counter()
    solution = fpjax.invert(problem, files)
    inversion = (time.perf_counter() - start) / args.images
    counts = [int(word) for word in args.candidates.split(",")]
    found = search_soft(source, solution.information, solution.linear, num_best=max(counts))
    result = {
        "command": " ".join(sys.argv), "scheme": scheme.id, "noise": args.noise,
        "strength": float(scheme.strength), "users": len(source), "images": args.images,
        "inversion_seconds": inversion, "rows": [],
    }  # fmt: skip
    for count in counts:
        indices = found.indices[:, :count]
        keys = np.stack([source.keys(row) for row in indices])
        invert = fpjax.invert_candidates
        invert(problem, files[:1], keys[:1, : min(count, 40)], solution.take([0]))  # compiles
        start = time.perf_counter()
        fits = invert(problem, files, keys, solution)
        seconds = (time.perf_counter() - start) / args.images
        ranks = []
        for image, owner in enumerate(owners):
            place = np.flatnonzero(indices[image] == owner)
            exact = int((fits.cost[image] < fits.cost[image, place]).sum()) if len(place) else None
            ranks.append([int(place[0]) if len(place) else None, exact])
        result["rows"].append(
            {
                "candidates": count,
                "seconds_an_image": seconds,
                "milliseconds_a_candidate": 1e3 * seconds / count,
                "steps": float(fits.steps.mean()),
                "left_median": float(np.median(fits.left)),
                "left_99": float(np.percentile(fits.left, 99)),
                "true_key_ranks_linearised_and_exact": ranks,
            }
        )
        print(json.dumps(result["rows"][-1]), flush=True)
        if args.json:
            with open(args.json, "w", encoding="utf-8") as file:
                json.dump(result, file, indent=1)
                file.write("\n")


if __name__ == "__main__":
    main()
