"""What attacked files give, beside what they can be expected to: is it the start, or the file?

    python benchmarks/attack_starts.py --output FILE [--scheme avatars-stylegan2/robust-uncoded]
        [--num_images 24] [--attack jpeg:quality=75 ...]

Files of one scheme are attacked, and read under the observation that describes the attack, once
from the usual start and once from the unknowns that made the file, which nobody has. Beside the
shares of right symbols stand what information expects, and its bound: what it would be with the
Jacobian at the latent that made each file (`robustness.information_of_file`). Where a reading from
the truth is likelier than the usual one by more than a nat, another start would have found more:
`less_likely` says of how many files, and `nats` by how much of the median of all files.
"""

from __future__ import annotations

import argparse
import json

import jax
import numpy as np

import fpjax
from fpjax.inversion.observation import PerImage
from fpjax.studies.curvature import decoding_errors
from fpjax.studies.histories import attack_label, attacked
from fpjax.studies.robustness import information_of_file

ATTACKS = (
    "jpeg:quality=90",
    "jpeg:quality=75",
    "jpeg:quality=50",
    "gaussian_noise:std=0.05",
    "gaussian_noise:std=0.1",
    "paper/combination",
)


def measured(scheme: fpjax.Scheme, label: str, num: int) -> dict:
    """A row of the table."""
    own, latents, noise, draws = jax.random.split(jax.random.key(0), 4)
    keys = fpjax.sample_keys(own, num, scheme.key_length)
    made = fpjax.generate(scheme, latents, keys)
    words = scheme.words_of(keys)
    truth = np.concatenate([made.alpha, scheme.symbols_of(keys)], axis=1).astype(np.float32)
    seen, files = zip(
        *(
            attacked(label, jax.random.fold_in(noise, i), image)
            for i, image in enumerate(made.images)
        ),
        strict=True,
    )
    said = [
        information_of_file(
            scheme, seen[i], made.alpha[i], keys[i], files[i], jax.random.fold_in(draws, i)
        )
        for i in range(num)
    ]
    problem = fpjax.Problem(scheme, PerImage.stack(seen))
    usual = fpjax.invert(problem, np.stack(files))
    told = fpjax.invert(problem, np.stack(files), starts=truth[:, None])
    return {
        "attack": label,
        "files": num,
        "bound": 1 - decoding_errors(np.stack([one.bound for one in said]))[0],
        "expected": 1 - decoding_errors(np.stack([one.expected for one in said]))[0],
        "measured": float((usual.keys == words).mean()),
        "from_the_truth": float((told.keys == words).mean()),
        "less_likely": int((usual.loss > told.loss + 1).sum()),
        "nats": float(np.median(usual.loss - told.loss)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True, help="JSON lines")
    parser.add_argument("--scheme", default="avatars-stylegan2/robust-uncoded")
    parser.add_argument("--num_images", type=int, default=24)
    parser.add_argument("--attack", action="append")
    args = parser.parse_args()
    scheme = fpjax.load_scheme(args.scheme)
    with open(args.output, "a", encoding="utf-8") as file:
        for attack in args.attack or ATTACKS:
            row = measured(scheme, attack_label(attack), args.num_images)
            print(row, flush=True)
            file.write(json.dumps(row) + "\n")
            file.flush()


if __name__ == "__main__":
    main()
