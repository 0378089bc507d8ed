"""Compare predicted with measured bit accuracy of designs on a generator, as JSON lines.

    python benchmarks/design_check.py --output design_check.jsonl --num_images 48

Each design fits its own linear start on a few images, inverts fingerprinted files under the
observation that made them, and writes one line: predicted and measured bit accuracy and share of
exact keys, D / L (1 on average where the information is honest), the share of images inverted down
to the noise, and seconds an image. Designs that the output file holds already are passed over, so
that a run can be stopped and started again. `--only N` runs the first N that are left. `--plot`
draws what the file holds: measured against predicted.
"""

import argparse
import dataclasses
import itertools
import json
import os
import time

import jax
import jax.numpy as jnp
import numpy as np

import fpjax
from fpjax.cli.common import use_compilation_cache
from fpjax.fingerprint.calibration import Calibration
from fpjax.inversion.starts import fit_linear_start
from fpjax.studies.design import Study, UnreachableQuality
from fpjax.studies.designs import Design, grid


def observation_of(noise):
    return fpjax.Gaussian(noise) if noise else fpjax.Rounded8Bit()


def calibrated(scheme, observation, key, num_images):
    """The scheme with a start that was fitted on files of this observation."""
    start = fit_linear_start(scheme, key, num_images, observation=observation)
    return scheme.replace(
        calibration=Calibration(
            start=start,
            observation=observation.name,
            solver=fpjax.LevenbergMarquardt.name,
            max_noise_ratio=1.5,
            own_noise_ratio=1.0,
            num_start_images=num_images,
            num_inverted_images=0,
        )
    )


def measure(study, design, key, num_images, num_start_images):
    """One line of the output, but for the settings."""
    predicted = study.predict(design)
    observation = observation_of(design.noise)
    key_start, key_keys, key_latents, key_files = jax.random.split(key, 4)
    scheme = calibrated(study.scheme(design), observation, key_start, num_start_images)
    keys = fpjax.sample_keys(key_keys, num_images, design.key_length)
    made = fpjax.generate(scheme, key_latents, keys)
    files = np.asarray(observation.simulate(key_files, jnp.asarray(made.float_images)))
    problem = fpjax.Problem(scheme, observation)
    started = time.monotonic()
    found = fpjax.invert(problem, files)
    seconds = time.monotonic() - started
    right = found.keys == keys
    solved = found.status == fpjax.Status.SOLVED
    score = found.score(2.0 * keys - 1) / design.key_length
    return {
        "predicted": {
            "bit_accuracy": 1 - predicted.bit_error,
            "exact": predicted.exact,
            "mutual_information": predicted.mutual_information,
            "psnr_db": predicted.psnr,
        },
        "measured": {
            "bit_accuracy": float(right.mean()),
            "bit_accuracy_of_solved": float(right[solved].mean()) if solved.any() else None,
            "exact": float(right.all(axis=1).mean()),
            "solved": float(solved.mean()),
            "score_over_length": float(score.mean()),
            "noise_ratio": float(np.median(found.noise_ratio)),
            "seconds_an_image": seconds / num_images,
        },
        "strength": predicted.strength,
        "num_unknowns": len(scheme.basis),
    }


def draw(lines, path):
    """Measured against predicted shares of wrong bits, a point a design."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5.5, 5), layout="constrained")
    noises = sorted({line["design"]["noise"] for line in lines})
    axes.plot([0, 51], [0, 51], color="0.5", linewidth=1)
    axes.fill_between([0, 51], [-2, 49], [2, 53], color="0.92", label="within 2 points")
    for colour, (basis, name) in enumerate((("image", "image metric"), ("latent", "PCA"))):
        for noise, marker in zip(noises, itertools.cycle("osD^v<>"), strict=False):
            some = [
                (100 - 100 * line["predicted"]["bit_accuracy"],
                 100 - 100 * line["measured"]["bit_accuracy"])
                for line in lines
                if "measured" in line
                and (line["design"]["basis"], line["design"]["noise"]) == (basis, noise)
            ]  # fmt: skip
            if not some:
                continue
            what = f"noise {noise:g}" if noise else "rounding"
            axes.plot(*np.transpose(some), marker, color=f"C{colour}", label=f"{name}, {what}")
    axes.set(
        xlabel="Wrong bits predicted without inverting (%)",
        ylabel="Wrong bits of inverted files (%)",
        xlim=(-1, 51),
        ylim=(-1, 51),
    )
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def numbers(kind):
    return lambda text: [kind(word) for word in text.split(",")]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True, help="JSON lines; more are added to it")
    parser.add_argument("--generator", default="avatars-stylegan2")
    parser.add_argument("--basis", action="append", choices=("image", "latent"))
    parser.add_argument("--key_length", type=numbers(int), default=[64, 32, 16])
    parser.add_argument("--psnr", type=numbers(float), default=[31.0, 34.0, 37.0, 40.0])
    parser.add_argument("--noise", type=numbers(float), default=[0.0, 0.02, 0.05, 0.1])
    parser.add_argument("--num_images", type=int, default=48)
    parser.add_argument("--num_start_images", type=int, default=3000)
    parser.add_argument("--num_samples", type=int, default=10_000)
    parser.add_argument("--num_jacobians", type=int, default=64)
    parser.add_argument("--num_latents", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="stop after so many designs")
    parser.add_argument("--plot", help="picture to draw, of all that the output holds")
    args = parser.parse_args()
    bases = args.basis or ["image", "latent"]
    skipped = ("output", "only", "plot", "basis", "key_length", "psnr", "noise")
    settings = {k: v for k, v in vars(args).items() if k not in skipped}

    done = []
    if os.path.exists(args.output):
        with open(args.output, encoding="utf-8") as file:
            done = [json.loads(line) for line in file]
    for line in done:
        if line["settings"] != settings:
            raise SystemExit(f"{args.output} holds lines of other settings: {line['settings']}")
    finished = {Design(**line["design"]) for line in done}
    designs = grid(bases, args.key_length, psnrs=args.psnr, noises=args.noise)
    left = [d for d in designs if d not in finished][: args.only]
    if not left:
        if args.plot:
            draw(done, args.plot)
        return

    use_compilation_cache()
    generator = fpjax.load_generator(args.generator)
    key_basis, key_study, key_designs = jax.random.split(jax.random.key(args.seed), 3)
    fitted = {
        name: fpjax.fit_basis(
            generator, key_basis, args.num_samples, metric=name, num_jacobians=args.num_jacobians
        )
        for name in dict.fromkeys(design.basis for design in left)
    }
    study = Study(generator, fitted, key_study, num_latents=args.num_latents)
    for design in left:
        key = jax.random.fold_in(key_designs, designs.index(design))
        line = {"design": dataclasses.asdict(design), "settings": settings}
        try:
            line |= measure(study, design, key, args.num_images, args.num_start_images)
        except UnreachableQuality as error:
            line["reason"] = str(error)
        line["load_average_1min"] = os.getloadavg()[0]
        text = json.dumps(line)
        print(text, flush=True)
        with open(args.output, "a", encoding="utf-8") as file:
            file.write(text + "\n")
        done.append(line)
    if args.plot:
        draw(done, args.plot)


if __name__ == "__main__":
    main()
