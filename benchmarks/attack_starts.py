"""What attacked files give, beside what they can be expected to: is it the start, or the file?

    python benchmarks/attack_starts.py --output FILE [--scheme avatars-stylegan2/robust-uncoded]
        [--num_images 24] [--attack jpeg:quality=75 ...]

Files of one scheme are attacked, and read under the observation that describes the attack: from the
usual start; from that and two more, drawn from what the first reading leaves open, of which the
likeliest counts; and from the unknowns that made the file, which nobody has. Beside the shares of
right symbols stand what information expects, and its bound: what it would be with the Jacobian at
the latent that made each file (`robustness.information_of_file`). `nats` is by how much the
likeliest of three readings is likelier than the one from the truth, on average: where it is above
0, and yet fewer symbols are right, the file itself says no more, and no start would.
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
from fpjax.studies.robustness import another_explanation, information_of_file

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
    own, latents, noise, draws, others = jax.random.split(jax.random.key(0), 5)
    keys = fpjax.sample_keys(own, num, scheme.key_length)
    made = fpjax.generate(scheme, latents, keys)
    words = scheme.words_of(keys)
    truth = np.concatenate([made.alpha, scheme.symbols_of(keys)], axis=1).astype(np.float32)
    seen, files, said = [], [], []
    for i, image in enumerate(made.images):
        observation, pixels = attacked(label, jax.random.fold_in(noise, i), image)
        draw = jax.random.fold_in(draws, i)
        said.append(information_of_file(scheme, observation, made.alpha[i], keys[i], pixels, draw))
        seen.append(observation)
        files.append(pixels)
    problem, images = fpjax.Problem(scheme, PerImage.stack(seen)), np.stack(files)
    usual = fpjax.invert(problem, images)
    told = fpjax.invert(problem, images, starts=truth[:, None])
    best, loss = usual.keys.copy(), usual.loss.copy()
    found = problem.unknowns_of(usual.alpha, usual.soft_bits)
    for number in range(2):
        starts = [
            another_explanation(
                fpjax.Problem(scheme, seen[i]), images[i], found[i],
                jax.random.fold_in(others, number * num + i),
            )
            for i in range(num)
        ]  # fmt: skip
        again = fpjax.invert(problem, images, starts=np.stack(starts)[:, None])
        likelier = again.loss < loss
        best[likelier], loss[likelier] = again.keys[likelier], again.loss[likelier]
    return {
        "attack": label,
        "files": num,
        "bound": 1 - decoding_errors(np.stack([one.bound for one in said]))[0],
        "expected": 1 - decoding_errors(np.stack([one.expected for one in said]))[0],
        "measured": float((usual.keys == words).mean()),
        "best_of_three": float((best == words).mean()),
        "from_the_truth": float((told.keys == words).mean()),
        "nats": float((told.loss - loss).mean()),
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
