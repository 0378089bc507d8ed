"""The exact rates on real decodings: how often random keys reach p <= 10^-k on images without them.

    python benchmarks/rates.py --out FOLDER [--decodings 100] [--keys 1e6] \\
        [--portraits FILE.npz] [--scheme NAME]

Images in equal parts: of the bundled generator without a key; with random other keys; drawings that
it was not trained on, and those that come with the package; portraits, where --portraits names an
array `images` (N, H, W, 3) uint8; and a JPEG (quality 30 to 95) of each of those. Each is inverted
once, with two Jacobians at most, as `observation="auto"` begins (FOLDER/decodings, eight a file,
about two seconds of a core each), and compared with random keys of its own (two seconds). For
k = 1 ... 8 and each statistic the report has the measured rate, its 95 % interval over decodings,
and what is expected:

* Matching bits are discrete: the rate that is expected is the largest attainable one below 10^-k.
* The soft score's p-values are valid, not equal to the tail: at most 10^-k is expected.

Everything that was finished is kept: the same command goes on, with more decodings too.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import math
import sys
from pathlib import Path

import jax
import numpy as np
from scipy.special import gammaincinv, stdtrit

import fpjax
from fpjax import zoo
from fpjax.attacks.compression import decode, encode_jpeg
from fpjax.attribution.key_sample import log_weights_of
from fpjax.attribution.tails import SoftTails, matching_tail
from fpjax.fingerprint.decode import natural_images
from fpjax.fingerprint.derived import DerivedKeys
from fpjax.fingerprint.packed import unpack_keys
from fpjax.inversion.solvers.default import default_solver
from fpjax.io.atomic import atomic_write
from fpjax.io.images import load_image

POWERS = np.arange(1, 9)
BATCH = 8
BLOCK = 1 << 15
_LN10 = np.log(10.0)


def sources(scheme, portraits: str | None) -> list[str]:
    names = ["without a key", "other keys", "drawings"] + ["portraits"] * bool(portraits)
    return [*names, *(f"JPEG of {name}" for name in names)]


def picture(scheme, portraits: str | None, number: int) -> tuple[str, np.ndarray]:
    """Kind and pixels (H, W, 3) uint8 of image `number`; the same in every run."""
    from PIL import Image

    kinds = sources(scheme, portraits)
    kind, place = kinds[number % len(kinds)], number // len(kinds)
    plain, generator = kind.removeprefix("JPEG of "), scheme.generator
    key = jax.random.fold_in(jax.random.key(2026), number)
    if plain == "without a key":
        image = natural_images(generator, key, 1)[0]
    elif plain == "other keys":
        keys = fpjax.sample_keys(jax.random.fold_in(key, 1), 1, scheme.key_length)
        image = fpjax.generate(scheme, key, keys).images[0]
    elif plain == "drawings":
        foreign = zoo.foreign_image_paths(generator.name)
        if place < len(foreign):
            image = load_image(foreign[place])
        else:
            from fpjax.training.avatars import render_avatar

            image = render_avatar(f"rates-{number}", generator.image_shape[0])
    else:
        with np.load(portraits) as file:
            image = file["images"][(number * 37) % len(file["images"])]
        size = generator.image_shape[1::-1]
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
    if kind != plain:
        quality = 30 + number * 7 % 66
        image = np.asarray(decode(encode_jpeg(Image.fromarray(image), quality, "4:2:0")))
    return kind, np.asarray(image, np.uint8).reshape(generator.image_shape)


def decodings(scheme, folder: Path, count: int, portraits: str | None):
    """Yields (kinds, bits, information, linear, noise ratios) of eight images at a time."""
    solver = dataclasses.replace(default_solver(scheme), max_steps=2, foreign_ratio=math.inf)
    for first in range(0, count, BATCH):
        path = folder / "decodings" / f"{first:06d}.npz"
        if not path.exists():
            made = [picture(scheme, portraits, first + i) for i in range(BATCH)]
            images = np.stack([image for _, image in made])
            found = fpjax.invert(fpjax.Problem(scheme), images, solver)
            buffer = io.BytesIO()
            np.savez(
                buffer,
                kinds=[kind for kind, _ in made],
                bits=found.keys,
                information=found.information,
                linear=found.linear,
                ratio=found.noise_ratio,
                status=found.status,
            )
            with atomic_write(path) as file:
                file.write(buffer.getvalue())
            print(f"decoded {first + BATCH} of {count}", file=sys.stderr, flush=True)
        with np.load(path) as file:
            yield first, dict(file)


def hits_of(bits, information, linear, number: int, keys: int) -> dict[str, list[int]]:
    """Of `keys` random keys, how many have p <= 10^-k, for each statistic."""
    length = len(bits)
    source = DerivedKeys(number.to_bytes(32, "little"), -(-keys // BLOCK) * BLOCK, length)
    tails = SoftTails(information, linear)
    sums, mixture = tails._sums[0], tails._samples[0].mixture
    hard, soft = np.zeros(len(POWERS), np.int64), np.zeros(len(POWERS), np.int64)
    table = matching_tail(length, np.arange(length + 1))
    for _, words in source.blocks(BLOCK):
        some = unpack_keys(np.asarray(words), length)
        p = table[(some == bits).sum(1)]
        hard += (p[:, None] <= 10.0**-POWERS).sum(0)
        # The key's own weight only adds to a p-value: most keys are far from the first power.
        below = sums[tails._hits(0, tails.energies(some)[0])] - np.log(tails.num_samples + 1)
        near = below <= -_LN10
        exact = np.logaddexp(
            below[near], log_weights_of(mixture, some[near]) - np.log(tails.num_samples + 1)
        )
        soft += (exact[:, None] <= -POWERS * _LN10).sum(0)
    return {"keys": source.count, "matching": hard.tolist(), "soft": soft.tolist()}


def summary(rows: list[dict], length: int) -> list[dict]:
    """Rates over all decodings, with intervals that take decodings as the sample."""
    table = matching_tail(length, np.arange(length + 1))
    found = []
    for place, power in enumerate(POWERS):
        for name in ("matching", "soft"):
            counts = np.array([row[name][place] for row in rows], float)
            keys = np.array([row["keys"] for row in rows], float)
            rates, total = counts / keys, counts.sum()
            error = rates.std(ddof=1) / np.sqrt(len(rates)) if len(rates) > 1 else np.inf
            wide = stdtrit(max(1, len(rates) - 1), 0.975) * error
            # Poisson limits (Garwood 1936) where counts are few and their spread says little.
            low = gammaincinv(total, 0.025) / keys.sum() if total else 0.0
            high = gammaincinv(total + 1, 0.975) / keys.sum()
            mean = total / keys.sum()
            low, high = min(low, mean - wide), max(high, mean + wide)
            expected = 10.0**-power
            if name == "matching":
                expected = float(table[table <= expected][0])
            inside = low <= expected and (name == "soft" or expected <= high)
            found.append(
                {
                    "k": int(power), "statistic": name, "hits": int(total), "rate": mean,
                    "low": max(0.0, low), "high": high, "expected": expected, "holds": bool(inside),
                }
            )  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--decodings", type=int, default=100)
    parser.add_argument("--keys", type=float, default=1e6)
    parser.add_argument("--portraits", default=None)
    parser.add_argument("--scheme", default="avatars-stylegan2")
    args = parser.parse_args()
    scheme = fpjax.load_scheme(args.scheme)
    args.out.mkdir(parents=True, exist_ok=True)
    settings = {"scheme": scheme.id, "portraits": bool(args.portraits), "keys": args.keys}
    state = args.out / "settings.json"
    if state.exists() and json.loads(state.read_text()) != settings:
        raise SystemExit(f"{args.out} is of other settings: {state.read_text()}")
    with atomic_write(state, "w") as file:
        file.write(json.dumps(settings))
    rows = []
    for first, found in decodings(scheme, args.out, args.decodings, args.portraits):
        path = args.out / "hits" / f"{first:06d}.json"
        if not path.exists():
            batch = []
            for i in range(BATCH):
                parts = [found[name][i] for name in ("bits", "information", "linear")]
                if not all(np.isfinite(part).all() for part in parts):
                    continue
                hits = hits_of(*parts, first + i, int(args.keys))
                batch.append({"kind": str(found["kinds"][i]), "ratio": float(found["ratio"][i]),
                              **hits})  # fmt: skip
            with atomic_write(path, "w") as file:
                file.write(json.dumps(batch))
        rows.extend(json.loads(path.read_text()))
        result = {
            "command": " ".join(sys.argv), "decodings": len(rows),
            "keys": sum(row["keys"] for row in rows),
            "kinds": {kind: sum(row["kind"] == kind for row in rows)
                      for kind in sources(scheme, args.portraits)},
            "median_noise_ratio": {
                kind: float(np.median([row["ratio"] for row in rows if row["kind"] == kind]))
                for kind in {row["kind"] for row in rows}
            },
            "rates": summary(rows, scheme.key_length),
        }  # fmt: skip
        with atomic_write(args.out / "rates.json", "w") as file:
            file.write(json.dumps(result, indent=1) + "\n")
    for row in result["rates"]:
        print(json.dumps(row))


if __name__ == "__main__":
    main()
