"""Would Tardos's code trace more colluders than uniform keys? On symbols that are read perfectly.

    python benchmarks/collusion.py [--symbols 64,256,1024] [--trials 200] [--json FILE]

c of 1,000 users make words of L symbols together: their average (what averaging latents or weights
does), or one symbol each from a random colluder ("interleaved") or from their majority (what an
attacker needs the directions of symbols for). Everybody's word is correlated with the result, for
Tardos's codes by the symmetric score (Tardos 2003; Skoric et al. 2008), whose tail over other
users' words is computed by a saddle point. Said of each: the share of coalitions of which a member
is named at a family-wise rate of 1e-6, and how often an innocent is.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
from scipy.special import log_ndtr

USERS = 1000
RATE = 1e-6
CUTOFF = 1 / 300
"""Of Tardos's biases, which are drawn from the arcsine law between it and 1 - CUTOFF."""


def biases(code: str, length: int, rng) -> np.ndarray:
    if code == "uniform":
        return np.full(length, 0.5)
    low = np.arcsin(np.sqrt(CUTOFF))
    return np.sin(rng.uniform(low, np.pi / 2 - low, length)) ** 2


def mixtures(words: np.ndarray, attack: str, rng) -> np.ndarray:
    """Symbols (L,) of colluders' words (c, L) of -1 and +1."""
    mean = words.mean(0)
    if attack == "average":
        return mean
    if attack == "interleaved":
        return words[rng.integers(0, len(words), words.shape[1]), np.arange(words.shape[1])]
    return np.where(mean == 0, rng.choice([-1.0, 1.0], len(mean)), np.sign(mean))


def log10_tail(up: np.ndarray, down: np.ndarray, p: np.ndarray, score: float) -> float:
    """log10 P(sum >= score) of independent terms, `up` with chance p, else `down`.

    Lugannani & Rice 1980, to a few per cent; the largest possible score has the product of chances.
    """
    most = np.maximum(up, down).sum()
    if score >= most - 1e-9:
        chance = np.where(up > down, p, np.where(up < down, 1 - p, 1.0))
        return float(np.log10(chance).sum())
    mean = (p * up + (1 - p) * down).sum()
    if score <= mean + 1e-9:
        return 0.0
    low, high = 0.0, 1e3 / max(1e-9, np.abs(up - down).max())
    for _ in range(80):
        theta = (low + high) / 2
        weight = 1 / (1 + (1 - p) / p * np.exp(np.clip(theta * (down - up), -700, 700)))
        low, high = (
            (theta, high) if (weight * up + (1 - weight) * down).sum() < score else (low, theta)
        )
    terms = np.logaddexp(np.log(p) + theta * up, np.log1p(-p) + theta * down).sum()
    variance = (weight * (1 - weight) * (up - down) ** 2).sum()
    w = np.sqrt(max(1e-12, 2 * (theta * score - terms)))
    u = theta * np.sqrt(max(variance, 1e-12))
    log_phi = -0.5 * w**2 - 0.5 * np.log(2 * np.pi)
    correction = 1 / u - 1 / w
    value = np.logaddexp(log_ndtr(-w), log_phi + np.log(max(correction, 1e-300)))
    return float(min(0.0, value / np.log(10)))


def trial(code: str, length: int, count: int, attack: str, rng) -> tuple[bool, bool]:
    """Whether a colluder is named, and whether an innocent is."""
    p = biases(code, length, rng)
    words = np.where(rng.random((USERS, length)) < p, 1.0, -1.0)
    seen = mixtures(words[:count], attack, rng)
    up, down = seen * np.sqrt((1 - p) / p), -seen * np.sqrt(p / (1 - p))
    scores = np.where(words > 0, up, down).sum(1)
    limit = np.log10(RATE / USERS)
    guilty, innocent = scores[:count].max(), scores[count:].max()
    return log10_tail(up, down, p, guilty) <= limit, log10_tail(up, down, p, innocent) <= limit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--symbols", default="64,256,1024")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--json", default=None)
    args = parser.parse_args()
    rows = []
    for length in map(int, args.symbols.split(",")):
        for count in (2, 3, 4, 5, 8):
            for attack in ("average", "interleaved", "majority"):
                row = {"symbols": length, "colluders": count, "attack": attack}
                for code in ("uniform", "tardos"):
                    rng = np.random.default_rng([length, count, len(attack)])
                    found = [trial(code, length, count, attack, rng) for _ in range(args.trials)]
                    named, innocent = np.mean(found, axis=0)
                    row[code] = float(named)
                    row[f"{code}_innocent"] = float(innocent)
                rows.append(row)
                print(json.dumps(row), flush=True)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
