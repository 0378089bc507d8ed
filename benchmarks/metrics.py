"""What the metric of a basis decides: how many Jacobians it needs, and whose change it measures.

    python benchmarks/metrics.py --output FILE [--jacobians 8,16,32,64,128,256,512] [--seeds 2]
    python benchmarks/metrics.py --output FILE --jpeg 75,50 [--psnr 31,34] [--inverted 24] [--lpips]

The first asks for the share of wrong bits that is predicted for 64-bit keys on the last directions
of the image metric, by the number of latents that the metric is averaged over; all designs share
natural latents and the Jacobians that predictions are made from.

The second compares metrics for files that are compressed: principal components, the image metric,
the change of JPEG files in units of their own quantisation noise, at each quality, and, where it is
asked for, LPIPS (with `fpjax[lpips]`; slow, as its Jacobians go through VGG). Predictions are from
the Jacobian at the latent that made each of 24 files, a bound; the first of them are inverted as
well. Every row is printed and written when it is known.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator

import jax
import numpy as np
from design_check import calibrated

import fpjax
from fpjax.attacks import Jpeg as JpegAttack
from fpjax.fingerprint.basis import sample_latents
from fpjax.fingerprint.image_metric import image_basis, image_metric
from fpjax.fingerprint.keys import to_symbols
from fpjax.inversion.information import key_information
from fpjax.inversion.observation import PerImage
from fpjax.studies.curvature import decoding_errors, pixel_grams
from fpjax.studies.design import Study
from fpjax.studies.designs import Design

GENERATOR = "avatars-stylegan2"
SAMPLES = 10_000
NOISES = {46.0: 0.0, 40.0: 0.02, 34.0: 0.05, 31.0: 0.1}
"""By PSNR, a noise at which the number of Jacobians shows."""


def numbers_of_jacobians(counts: list[int], seeds: int) -> Iterator[dict]:
    """Predictions by the number of Jacobians of the metric."""
    generator = fpjax.load_generator(GENERATOR)
    latents = sample_latents(generator, jax.random.key(0), SAMPLES)
    bases = {}
    for seed in range(seeds):
        # One after the other, so that a metric of many latents is a mean of those of few.
        at = sample_latents(generator, jax.random.key(100 + seed), max(counts))
        total, done = 0.0, 0
        for count in sorted(counts):
            total = total + (count - done) * image_metric(generator, at[done:count])
            done = count
            bases[f"{count}/{seed}"] = image_basis(latents, total / count)
    prior = bases[f"{max(counts)}/0"]
    grams = pixel_grams(generator, prior, jax.random.key(1), tuple({0.0, *NOISES.values()}))
    # Without `keep_all`, quality is bounded by what directions that are left out change.
    study = Study(generator, bases, jax.random.key(2), grams=grams, keep_all=True)
    for name in bases:
        count, seed = name.split("/")
        for psnr, noise in NOISES.items():
            found = study.predict(Design(name, 64, psnr=psnr, noise=noise))
            yield {
                "jacobians": int(count),
                "seed": int(seed),
                "psnr": psnr,
                "noise": noise,
                "wrong": found.bit_error,
                "information_bits": found.mutual_information,
                "strength": found.strength,
            }


def compressed(
    qualities: list[int], psnrs: list[float], inverted: int, lpips: bool
) -> Iterator[dict]:
    """Predictions and readings of JPEG files by the basis's metric."""
    generator = fpjax.load_generator(GENERATOR)
    grey = np.full(generator.image_shape, 128, np.uint8)
    metrics = {name: name for name in ("latent", "image", *["lpips"] * lpips)} | {
        f"jpeg {quality}": fpjax.Jpeg.of_file(JpegAttack(quality=quality).encode(grey))
        for quality in qualities
    }
    bases = {
        name: fpjax.fit_basis(generator, jax.random.key(0), SAMPLES, metric=metric)
        for name, metric in metrics.items()
    }
    study = Study(generator, bases, jax.random.key(1))
    for psnr in psnrs:
        for name in bases:
            scheme = study.scheme(Design(name, 64, psnr=psnr))
            if inverted:
                scheme = calibrated(scheme, fpjax.Rounded8Bit(), jax.random.key(4), 4000)
            keys = fpjax.sample_keys(jax.random.key(2), 24, 64)
            made = fpjax.generate(scheme, jax.random.key(3), keys)
            symbols = to_symbols(keys, scheme.levels)
            truth = np.concatenate([made.alpha, symbols], axis=1).astype(np.float32)
            for quality in qualities:
                seen = [
                    fpjax.Jpeg.of_file(JpegAttack(quality=quality).encode(image))
                    for image in made.images
                ]
                said = [
                    key_information(fpjax.Problem(scheme, one), point[None], image[None])
                    for one, point, image in zip(seen, truth, made.images, strict=True)
                ]
                information = np.concatenate([one.information for one in said]).astype(np.float64)
                wrong, exact = decoding_errors(information)
                row = {
                    "metric": name,
                    "psnr": psnr,
                    "quality": quality,
                    "predicted_wrong": wrong,
                    "predicted_exact": exact,
                }
                if inverted:
                    stacked = PerImage.stack(seen[:inverted])
                    found = fpjax.invert(fpjax.Problem(scheme, stacked), made.images[:inverted])
                    right = found.keys == keys[:inverted]
                    row |= {
                        "inverted": inverted,
                        "wrong": float(1 - right.mean()),
                        "exact": float(right.all(axis=1).mean()),
                        "noise_ratio": float(found.noise_ratio.mean()),
                    }
                yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True, help="JSON lines")
    parser.add_argument("--jacobians", default="8,16,32,64,128,256,512")
    parser.add_argument("--seeds", type=int, default=2, help="draws of the metric's latents")
    parser.add_argument("--jpeg", default=None, help="qualities, for the second table")
    parser.add_argument("--psnr", default="31,34", help="decibels, of the second table")
    parser.add_argument("--inverted", type=int, default=24, help="files, of the second table")
    parser.add_argument("--lpips", action="store_true", help="in the second table")
    args = parser.parse_args()
    rows = (
        compressed(
            [int(q) for q in args.jpeg.split(",")],
            [float(psnr) for psnr in args.psnr.split(",")],
            args.inverted,
            args.lpips,
        )
        if args.jpeg
        else numbers_of_jacobians([int(n) for n in args.jacobians.split(",")], args.seeds)
    )
    with open(args.output, "a") as file:
        for row in rows:
            print(json.dumps(row), flush=True)
            file.write(json.dumps(row) + "\n")
            file.flush()


if __name__ == "__main__":
    main()
