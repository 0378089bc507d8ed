"""The frontier of accuracy and quality: what the image metric gains over principal components.

    python benchmarks/frontier.py --out FOLDER [--noise 0,0.05,0.1] [--error 0.01] [--num_images 48]
                                  [--plot FILE.png]

For each observation, the PSNR at which 64-bit keys have a predicted bit error of `--error`, on the
last principal components (the published directions) and by the image metric, at the best of a few
shifts. At these strengths fingerprinted files are made and inverted: the measured bit error, PSNR,
LPIPS, and the Frechet distance of fingerprinted pictures to others without a key stand beside the
prediction. Each row is written when it is known; the same call goes on after a stop. The plot has
the predicted curves, the measured points, and pictures at equal accuracy and at equal PSNR.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from design_check import calibrated, observation_of

import fpjax
from fpjax.cli.common import use_compilation_cache
from fpjax.fingerprint.decode import decode_images
from fpjax.io.atomic import atomic_write
from fpjax.io.images import to_uint8
from fpjax.perceptual import frechet_from_features
from fpjax.studies.design import Study, UnreachableQuality
from fpjax.studies.designs import Design
from fpjax.studies.quality import lpips_distance, psnr_db
from fpjax.training.frechet import FEATURES, vgg_features

NAMES = {"latent": "PCA, as published", "image": "image metric"}
LENGTH = 64
LEAST, MOST = 1e-3, 30.0
"""Strengths, in the bases' units, within which an error is looked for."""
PSNRS = np.arange(18.0, 50.1, 1.0)


def at_error(study: Study, design: Design, error: float) -> Design:
    """The design at the strength where its predicted bit error is `error`."""

    def gap(log_strength: float) -> float:
        tried = dataclasses.replace(design, psnr=None, strength=float(np.exp(log_strength)))
        return study.predict(tried).bit_error - error

    low, high = np.log(LEAST), np.log(MOST)
    if not gap(low) > 0 > gap(high):
        raise SystemExit(f"no strength from {LEAST} to {MOST} gives an error of {error}: {design}")
    found = scipy.optimize.brentq(gap, low, high, xtol=1e-3)
    return dataclasses.replace(design, psnr=None, strength=float(np.exp(found)))


def best_design(study: Study, basis: str, noise: float, error: float) -> Design:
    """At that error, the design of the highest PSNR; PCA's is the published one."""
    shifts = [None] if basis == "latent" else [None, 320, 256, 192, 128, 64]
    tried = [
        at_error(study, Design(basis, LENGTH, shift, psnr=40.0, noise=noise), error)
        for shift in shifts
    ]
    return max(tried, key=lambda design: study.predict(design).psnr)


def curve(study: Study, design: Design) -> list[tuple[float, float]]:
    """Predicted (PSNR, bit error) of a design's directions at all qualities."""
    points = []
    for psnr in PSNRS:
        tried = dataclasses.replace(design, strength=None, psnr=float(psnr))
        try:
            found = study.predict(tried)
        except UnreachableQuality:
            continue
        points.append((found.psnr, found.bit_error))
    return points


@functools.cache
def real_features(study: Study, num: int) -> np.ndarray:
    """Features of pictures without a key, of other latents than any that is measured."""
    natural = study.generator.natural_latents(jax.random.key(99), num)
    return vgg_features(to_uint8(decode_images(study.generator, natural)))


def measure(study: Study, design: Design, key: jax.Array, args) -> dict:
    """What becomes of files that carry keys in this way."""
    observation = observation_of(design.noise)
    keys_of = jax.random.split(key, 6)
    scheme = calibrated(study.scheme(design), observation, keys_of[0], args.fitted)
    keys = fpjax.sample_keys(keys_of[1], args.num_images, LENGTH)
    made = fpjax.generate(scheme, keys_of[2], keys)
    files = np.asarray(observation.simulate(keys_of[3], jnp.asarray(made.float_images)))
    found = fpjax.invert(fpjax.Problem(scheme, observation), files)
    wrong = (found.keys != keys).mean(axis=1)
    others = fpjax.generate(
        scheme, keys_of[4], fpjax.sample_keys(keys_of[5], args.num_pictures, LENGTH)
    )
    real = real_features(study, args.num_pictures)
    lpips = lpips_distance(study.generator.image_shape)
    return {
        "bit_error": float(wrong.mean()),
        "bit_error_std_of_mean": float(wrong.std(ddof=1) / np.sqrt(len(wrong))),
        "exact": float((wrong == 0).mean()),
        "solved": float((found.status == fpjax.Status.SOLVED).mean()),
        "psnr_db": float(psnr_db(others.originals, others.images).mean()),
        "lpips": float(lpips(others.originals, others.images).mean()),
        "frechet_distance": float(frechet_from_features(vgg_features(others.images), real)),
        "frechet_distance_without_keys": float(
            frechet_from_features(vgg_features(others.originals), real)
        ),
        "jacobians": float(found.steps.mean()),
    }


def pictures(study: Study, rows: list[dict], num: int = 8) -> dict[str, np.ndarray]:
    """Originals, and the same with keys at equal accuracy and at equal PSNR."""
    found = {"original": study.originals[:num]}
    for row in rows:
        design = Design(**row["design"])
        label = f"{NAMES[design.basis]}, {row['measured']['psnr_db']:.1f} dB"
        found[label] = study.pictures(study.scheme(design))[:num]
    image, latent = (
        next(r for r in rows if r["design"]["basis"] == b) for b in ("image", "latent")
    )
    equal = dataclasses.replace(
        Design(**image["design"]), strength=None, psnr=latent["predicted"]["psnr"]
    )
    error = study.predict(equal).bit_error
    label = f"{NAMES['image']}, {latent['predicted']['psnr']:.1f} dB,\n{error:.0e} of bits wrong"
    found[label] = study.pictures(study.scheme(equal))[:num]
    return found


def draw(study: Study, rows: list[dict], noises: list[float], path: Path) -> None:
    from matplotlib.figure import Figure

    from fpjax.studies.page import plot_style

    with plot_style():
        figure = Figure(figsize=(11, 7.2), layout="constrained")
        above, below = figure.subfigures(2, 1, height_ratios=(1, 1.05))
        axes = above.subplots(1, len(noises), sharey=True, squeeze=False)[0]
        for axis, noise in zip(axes, noises, strict=True):
            for row in (row for row in rows if row["design"]["noise"] == noise):
                colour = {"image": "C0", "latent": "C1"}[row["design"]["basis"]]
                line = np.array([point for point in row["curve"] if point[1] > 0])
                axis.plot(
                    *line.T, color=colour, label=f"{NAMES[row['design']['basis']]}, predicted"
                )
                axis.errorbar(
                    row["measured"]["psnr_db"],
                    max(row["measured"]["bit_error"], 1e-5),
                    yerr=2 * row["measured"]["bit_error_std_of_mean"],
                    color=colour,
                    fmt="o",
                    label="measured",
                )
            axis.set_yscale("log")
            axis.set_ylim(1e-4, 0.6)
            axis.set_xlim(18, 50)
            axis.set_title(f"noise {noise:g}" if noise else "rounded to 8 bits")
            axis.set_xlabel("PSNR in dB")
        axes[0].set_ylabel("share of wrong bits")
        axes[-1].legend(fontsize="small")
        some = pictures(study, [row for row in rows if row["design"]["noise"] == noises[-1]])
        axes = below.subplots(len(some), 1)
        for axis, (label, images) in zip(axes, some.items(), strict=True):
            axis.imshow(np.concatenate(list(images), axis=1))
            axis.set_axis_off()
            axis.text(-0.01, 0.5, label, transform=axis.transAxes, ha="right", va="center")
        figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--generator", default="avatars-stylegan2")
    parser.add_argument("--noise", default="0,0.05,0.1")
    parser.add_argument("--error", type=float, default=0.01)
    parser.add_argument("--num_images", type=int, default=48)
    parser.add_argument("--num_pictures", type=int, default=2000)
    parser.add_argument("--fitted", type=int, default=3000)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    use_compilation_cache()
    args.out.mkdir(parents=True, exist_ok=True)
    noises = [float(word) for word in args.noise.split(",")]
    generator = fpjax.load_generator(args.generator)
    key_basis, key_study, key_rows = jax.random.split(jax.random.key(0), 3)
    bases = {name: fpjax.fit_basis(generator, key_basis, 10_000, metric=name) for name in NAMES}
    study = Study(generator, bases, key_study)
    said = ("generator", "error", "num_images", "num_pictures", "fitted")
    settings = {name: getattr(args, name) for name in said}
    rows = []
    for noise in noises:
        for basis in NAMES:
            path = args.out / f"{basis}-{noise:g}.json"
            if not path.exists():
                design = best_design(study, basis, noise, args.error)
                row = {
                    "design": dataclasses.asdict(design),
                    "predicted": study.predict(design).to_json(),
                    "measured": measure(study, design, key_rows, args),
                    "curve": curve(study, design),
                    "frechet_features": FEATURES,
                    "settings": settings,
                }
                with atomic_write(path) as file:
                    file.write(json.dumps(row, indent=1).encode())
            rows.append(json.loads(path.read_text()))
            if rows[-1]["settings"] != settings:
                raise SystemExit(f"{path} was measured with other settings: choose another --out")
            shown = {k: v for k, v in rows[-1].items() if k not in ("curve", "predicted")}
            print(json.dumps(shown), flush=True)
    if args.plot:
        draw(study, rows, noises, args.plot)


if __name__ == "__main__":
    main()
