"""How many files of a scheme are read exactly: every bit of every key, from 8-bit pictures.

    python benchmarks/exactness.py [--scheme avatars-stylegan2] [--num_images 256] [--noise 0]
                                   [--strength SIGMA] [--seed 100] [--json FILE]

Also measured: PSNR to the original; how many are named among 1,000 other users at a rate of 1e-6,
by matching bits alone and with the soft score; how honest the information is (D / L of the true
key, whose mean should be 1) at the solution, and at the latent that made the file, where nothing
but the noise is left of it; whether the cost at the solution is below that at the truth; seconds an
image. Figures are written after every batch.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time

import jax
import jax.numpy as jnp
import numpy as np

import fpjax
from fpjax.attribution.decision import decide
from fpjax.fingerprint.keys import to_symbols
from fpjax.inversion.information import key_information
from fpjax.inversion.solution import Solution, Status
from fpjax.studies.quality import psnr_db


@jax.jit
def _costs(problem, unknowns, targets):
    return jax.lax.map(lambda pair: problem.cost(*pair), (unknowns, targets))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scheme", default="avatars-stylegan2")
    parser.add_argument("--num_images", type=int, default=256)
    parser.add_argument("--noise", type=float, default=0.0)
    parser.add_argument("--strength", type=float, default=None)
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--users", type=int, default=1000, help="registered besides the right one")
    parser.add_argument("--json", default=None)
    args = parser.parse_args()
    scheme = fpjax.load_scheme(args.scheme)
    if args.strength is not None:
        scheme = scheme.replace(strength=args.strength)
    observation = fpjax.Gaussian(args.noise) if args.noise else fpjax.Rounded8Bit()
    problem = fpjax.Problem(scheme, observation)
    random = jax.random.split(jax.random.key(args.seed), 3)
    keys = fpjax.sample_keys(random[0], args.num_images, scheme.key_length)
    made = fpjax.generate(scheme, random[1], keys)
    files = np.asarray(observation.simulate(random[2], jnp.asarray(made.float_images)))
    symbols = to_symbols(keys, scheme.levels)
    truth = np.concatenate([made.alpha, symbols], axis=1).astype(np.float32)
    targets = jnp.asarray(files, jnp.float32) / 127.5 - 1
    at_truth = np.asarray(_costs(problem.prepared(), jnp.asarray(truth), targets))
    crowd = fpjax.sample_keys(jax.random.key(args.seed + 1), args.users, scheme.key_length)
    psnr = psnr_db(made.originals, made.images)
    rows, parts, named = [], [], {"hard": 0, "soft": 0, "wrong": 0}
    said = key_information(problem, truth, files)
    started = time.perf_counter()
    for index, part in fpjax.invert_iter(problem, files):
        rows.extend(index.tolist())
        parts.append(part)
        for position, row in enumerate(index):
            one = part.take([position])
            registered = np.concatenate([keys[row : row + 1], crowd])
            users = ["right", *map(str, range(args.users))]
            hard = Solution(**{**vars(one), "information": None, "linear": None})
            named["hard"] += decide(hard, users, registered)[0].user == "right"
            verdict = decide(one, users, registered)[0]
            named["soft"] += verdict.user == "right"
            named["wrong"] += verdict.user not in (None, "right")
        found = Solution.concatenate(parts)
        there = dataclasses.replace(
            found, information=said.information[rows], linear=said.linear[rows]
        )
        right = found.keys == keys[rows]
        result = {
            "scheme": scheme.id,
            "strength": float(scheme.strength),
            "noise": args.noise,
            "images": len(rows),
            "exact_keys": int(right.all(axis=1).sum()),
            "bit_accuracy": float(right.mean()),
            "named_by_bits": named["hard"],
            "named_by_soft_score": named["soft"],
            "named_wrong": named["wrong"],
            "psnr_mean": float(psnr.mean()),
            "psnr_min": float(psnr.min()),
            "solved": int((found.status == Status.SOLVED).sum()),
            "score_over_length": float((found.score(symbols[rows]) / scheme.key_length).mean()),
            "score_over_length_at_truth": float(
                (there.score(symbols[rows]) / scheme.key_length).mean()
            ),
            "cost_above_truth": int((found.loss > at_truth[rows]).sum()),
            "jacobians": float(found.steps.mean()),
            "seconds_an_image": (time.perf_counter() - started) / len(rows),
        }
        if len(rows) % 8 == 0 or len(rows) == args.num_images:
            print(json.dumps(result), flush=True)
            if args.json:
                with open(args.json, "w") as file:
                    json.dump(result, file, indent=2)


if __name__ == "__main__":
    main()
