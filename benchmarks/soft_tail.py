"""The soft score's tail by importance sampling, against plain Monte Carlo with 10^8 keys, L = 64.

    python benchmarks/soft_tail.py                      # 10^8 keys, about two minutes of two cores
    python benchmarks/soft_tail.py --keys 1e6

The image is made up: an information with eigenvalues from 0.1 to 100, and the linear term that a
true key leaves. Thresholds are those at which 20,000 samples estimate 10^-1 ... 10^-7.
`benchmarks/results/soft_tail.json` holds a run with 10^8 keys: both agree within their errors.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from fpjax.attribution.tails import SoftTails
from fpjax.fingerprint.derived import DerivedKeys

LENGTH = 64
BLOCK = 1 << 20


@jax.jit
def counts_at_or_below(words, information, linear, thresholds):
    """Keys (n, 2) uint32 of energy up to each threshold; under `jax.enable_x64(True)`."""

    def some(part):
        bits = (part[:, :, None] >> jnp.arange(32, dtype=jnp.uint32)) & np.uint32(1)
        symbols = 2.0 * bits.reshape(-1, LENGTH).astype(jnp.float64) - 1.0
        energies = jnp.sum((symbols @ (information / 2) - linear) * symbols, axis=1)
        return jnp.sum(energies[:, None] <= thresholds, axis=0)

    return jnp.sum(jax.lax.map(some, words.reshape(-1, 1 << 12, 2)), axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keys", type=float, default=1e8)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(LENGTH, LENGTH)))[0]
    spectrum = 10 ** rng.uniform(-1, 2, LENGTH)
    information = (basis * spectrum) @ basis.T
    truth = rng.choice([-1.0, 1.0], LENGTH)
    linear = information @ truth + basis @ (np.sqrt(spectrum) * rng.normal(size=LENGTH))

    SoftTails(information, linear)  # compiles
    start = time.perf_counter()
    tails = SoftTails(information, linear)
    seconds = time.perf_counter() - start

    def score_at(log10_p):
        low, high = -1e7, 1e7
        for _ in range(80):
            middle = (low + high) / 2
            below = tails.at([middle]).log10_estimate[0] < log10_p
            low, high = (middle, high) if below else (low, middle)
        return high

    scores = np.array([score_at(-power) for power in range(1, 8)])
    blocks = -(-int(args.keys) // BLOCK)
    source = DerivedKeys(bytes(range(32)), blocks * BLOCK, LENGTH)
    hits = np.zeros(len(scores), np.int64)
    start = time.perf_counter()
    for done, (_, words) in enumerate(source.blocks(BLOCK)):
        with jax.enable_x64(True):
            hits += np.asarray(counts_at_or_below(words, information, linear, scores))
        if done % 10 == 0:
            print(f"{done + 1} of {blocks} blocks", file=sys.stderr, flush=True)
    elapsed = time.perf_counter() - start
    rows = []
    for score, count in zip(scores, hits, strict=True):
        found = tails.at([score])
        counted = count / source.count
        combined = np.hypot(found.relative_error[0], 1 / np.sqrt(max(1, count)))
        rows.append(
            {
                "estimate": found.estimate[0],
                "upper_99": found.upper[0],
                "relative_error": found.relative_error[0],
                "monte_carlo": counted,
                "hits": int(count),
                "difference_in_errors": (found.estimate[0] / counted - 1) / combined
                if count
                else None,
            }
        )
        print(rows[-1], file=sys.stderr)
    report = {
        "command": " ".join(sys.argv),
        "keys": source.count,
        "monte_carlo_seconds": elapsed,
        "importance_sampling_seconds": seconds,
        "information_bits": float(np.log2(1 + spectrum).sum() / 2),
        "results": rows,
    }
    text = json.dumps(report, indent=1)
    if args.out:
        args.out.write_text(text + "\n")
    else:
        print(text)


if __name__ == "__main__":
    main()
