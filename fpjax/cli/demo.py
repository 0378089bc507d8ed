"""Shows the whole job on the bundled generator: write keys, save files, read them back, name users.

  fpjax demo [--generator avatars-stylegan2] [--out fpjax-demo] [--json FILE] [--seed 0]

Eight users get a key each and make 32 pictures, which are saved as 8-bit PNG files and attributed
from the files. 32 pictures that carry no key are put to the same question: 16 of the same generator
and 16 that it did not make. Open OUT/index.html to see them all.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from fpjax.cli import common
from fpjax.io.atomic import atomic_write

USERS = ("ada", "blaise", "claude", "dorothy", "emmy", "florence", "grace", "hedy")
IMAGES_PER_USER = 4
NUM_WITHOUT_KEY = 16
_MARK = ".fpjax-demo"


def add_arguments(parser: common.Parser) -> None:
    """Arguments of the command."""
    flags = parser.flags
    flags.add_argument(
        "--generator",
        metavar="NAME",
        default=common.DEFAULT_GENERATOR,
        help="A bundled generator with a ready-made scheme. Default: %(default)s.",
    )
    flags.add_argument(
        "--out",
        metavar="FOLDER",
        default="fpjax-demo",
        help="Folder for the files; an earlier demo is replaced. Default: %(default)s.",
    )
    flags.add_argument(
        "--json", metavar="FILE", help="File to write the figures to; - for standard output."
    )
    flags.add_argument(
        "--seed",
        metavar="SEED",
        type=common.seed,
        default=0,
        help="Seed of keys and latents; the same seed repeats the demo. Default: %(default)s.",
    )
    common.add_quiet_flag(parser)


def _fresh_folder(path: Path) -> None:
    if path.exists():
        if not path.is_dir() or (any(path.iterdir()) and not (path / _MARK).exists()):
            raise common.CommandError(
                f"{path} holds other things than an earlier demo: choose another --out"
            )
        shutil.rmtree(path)
    path.mkdir(parents=True)
    (path / _MARK).touch()


def main(args: argparse.Namespace) -> int:
    """Runs the command."""
    started = time.monotonic()
    out = Path(args.out)
    common.check_folder("--out", out)
    if args.json not in (None, "-"):
        common.check_file("--json", args.json)

    import jax
    import numpy as np

    from fpjax import zoo
    from fpjax.attribution.files import attribute
    from fpjax.attribution.pictures import read_picture
    from fpjax.attribution.registry import Registry
    from fpjax.cli.demo_page import Row, write_page
    from fpjax.fingerprint.basis import sample_latents
    from fpjax.fingerprint.decode import decode_images
    from fpjax.fingerprint.embed import generate
    from fpjax.fingerprint.scheme import load_scheme
    from fpjax.io.images import load_image, save_image, to_uint8
    from fpjax.parallel import files_at_once
    from fpjax.progress import Display
    from fpjax.studies.quality import psnr_db

    if args.generator not in zoo.scheme_names():
        raise common.CommandError(
            f"--generator {args.generator}: no bundled scheme of that name; choose "
            f"{', '.join(zoo.scheme_names())}"
        )
    common.use_compilation_cache()
    _fresh_folder(out)
    progress = Display(quiet=args.quiet)
    speak = (lambda *words: None) if args.json == "-" else print

    scheme = load_scheme(args.generator)
    speak(
        f"scheme {scheme.id[:12]}: {scheme.key_length}-bit keys on directions {scheme.shift} to "
        f"{scheme.shift + scheme.key_length - 1} of {len(scheme.basis)}, strength "
        f"{float(scheme.strength):g}"
    )
    rng = np.random.default_rng(args.seed)
    registry = Registry.create(
        out / "users.db", key_length=scheme.key_length, scheme_id=scheme.id, minimum_distance=8
    )
    with registry:
        keys = np.stack([registry.issue(user, rng=rng) for user in USERS])
        owners = [user for user in USERS for _ in range(IMAGES_PER_USER)]
        true_keys = np.repeat(keys, IMAGES_PER_USER, axis=0)
        key_images, key_plain = jax.random.split(jax.random.key(args.seed))
        made = generate(scheme, key_images, true_keys)
        originals, fingerprinted = made.originals, made.images
        assert originals is not None  # alpha is projected
        latents = sample_latents(scheme.generator, key_plain, NUM_WITHOUT_KEY)
        latents = latents.reshape(-1, *scheme.generator.latent_shape)
        plain = to_uint8(decode_images(scheme.generator, latents))

        rows: list[Row] = []
        for i, owner in enumerate(owners):
            save_image(out / "originals" / f"{owner}-{i % IMAGES_PER_USER}.png", originals[i])
            path = out / "images" / f"{owner}-{i % IMAGES_PER_USER}.png"
            save_image(path, fingerprinted[i])
            rows.append(Row(path, owner, originals[i]))
        for i, image in enumerate(plain):
            path = out / "images" / f"without-key-{i:02d}.png"
            save_image(path, image)
            rows.append(Row(path, None, None, "same generator, no key"))
        for source in zoo.foreign_image_paths(scheme.generator.name):
            path = out / "images" / source.name
            save_image(path, load_image(source))
            rows.append(Row(path, None, None, "not of this generator"))

        # From here on only the files and the registry are known.
        found_keys, readers = [], set()
        with progress:
            progress("attributing", 0, len(rows))
            at_once = files_at_once(8)
            for first in range(0, len(rows), at_once):
                batch = rows[first : first + at_once]
                pictures = [read_picture(row.path, scheme.generator.image_shape) for row in batch]
                found = attribute(
                    scheme,
                    pictures,
                    registry,
                    progress=lambda done, _, first=first: progress(
                        "attributing", first + done, len(rows)
                    ),
                )
                assert found.verdicts is not None  # there is a registry
                found_keys.extend(found.keys)
                readers.add(found.solver)
                for row, picture, verdict in zip(batch, pictures, found.verdicts, strict=True):
                    row.image, row.verdict = picture.pixels, verdict

    count = len(owners)
    decoded = np.stack(found_keys[:count])
    psnr = psnr_db(originals, fingerprinted)
    figures = {
        "num_images": count,
        "exact_keys": int((decoded == true_keys).all(axis=1).sum()),
        "correct_users": sum(row.verdict.user == row.owner for row in rows[:count]),
        "bit_accuracy": float((decoded == true_keys).mean()),
        "num_without_key": len(rows) - count,
        "false_attributions": sum(row.verdict.user is not None for row in rows[count:]),
        "psnr_db": float(psnr.mean()),
        "psnr_db_min": float(psnr.min()),
        "strength": float(scheme.strength),
        "readers": sorted(readers),
        "seconds": 0.0,
    }
    figures["seconds"] = time.monotonic() - started
    write_page(out / "index.html", rows, figures)
    _write_figures(args.json, figures)
    _print_table(rows, figures, speak)
    speak(f"pictures: {out / 'index.html'}")
    right = figures["correct_users"] == count and figures["false_attributions"] == 0
    return common.EXIT_OK if right else common.EXIT_FAILED


def _write_figures(path: str | None, figures: dict[str, Any]) -> None:
    text = json.dumps(figures, indent=2, allow_nan=False) + "\n"
    if path == "-":
        sys.stdout.write(text)
    elif path:
        with atomic_write(path, "w") as file:
            file.write(text)


def _print_table(rows, figures, speak) -> None:
    speak(
        f"{'image':24s} {'made by':10s} {'verdict':15s} {'bits':>6s} {'p-value':>8s} "
        f"{'residual':>8s}"
    )
    for row in rows:
        verdict = row.verdict
        speak(
            f"{row.path.name:24s} {row.owner or '-':10s} {verdict.user or 'not attributed':15s} "
            f"{verdict.matching_bits:3d}/{verdict.key_length} {verdict.p_value:8.1e} "
            f"{verdict.noise_ratio:8.1f}"
        )
    speak(
        f"{figures['correct_users']} of {figures['num_images']} users right, "
        f"{figures['exact_keys']} keys exact, bit accuracy {figures['bit_accuracy']:.4f}; "
        f"{figures['false_attributions']} of {figures['num_without_key']} pictures without a key "
        f"attributed"
    )
    speak(
        f"PSNR between original and fingerprinted: {figures['psnr_db']:.1f} dB on average, "
        f"{figures['psnr_db_min']:.1f} dB at least; {figures['seconds']:.0f} s"
    )
