"""Shows the whole job on the bundled generator: write keys, save files, read them back, name users.

  fpjax demo [--out fpjax-demo] [--json FILE] [--seed 0]

Eight users get a key each and make 32 pictures, which are saved as 8-bit PNG files and attributed
from the files. 32 pictures that carry no key are put to the same question: 16 of the same generator
and 16 that it did not make. Open OUT/index.html to see them all.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
from absl import flags

from fpjax.cli import common

USERS = ("ada", "blaise", "claude", "dorothy", "emmy", "florence", "grace", "hedy")
IMAGES_PER_USER = 4
NUM_WITHOUT_KEY = 16
_MARK = ".fpjax-demo"
_BATCH = 8


def define_flags() -> None:
    """Flags of the command."""
    flags.DEFINE_string("out", "fpjax-demo", "Folder for the files; an earlier demo is replaced.")
    flags.DEFINE_string("json", None, "File to write the figures to; - for standard output.")
    flags.DEFINE_integer(
        "seed", 0, "Seed of keys and latents; the same seed repeats the demo.", 0, 2**32 - 1
    )


def psnr_db(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of uint8 images (B, R, R, 3) in decibels, (B,).

    >>> psnr_db(np.zeros((1, 2, 2, 3), np.uint8), np.full((1, 2, 2, 3), 255, np.uint8))
    array([0.])
    """
    error = np.mean((a.astype(np.float64) - b) ** 2, axis=(1, 2, 3))
    return 20 * np.log10(255) - 10 * np.log10(np.maximum(error, 1e-12))


def _fresh_folder(path: Path) -> None:
    if path.exists():
        if not path.is_dir() or (any(path.iterdir()) and not (path / _MARK).exists()):
            raise common.CommandError(
                f"{path} holds other things than an earlier demo: choose another --out"
            )
        shutil.rmtree(path)
    path.mkdir(parents=True)
    (path / _MARK).touch()


def main(arguments: list[str]) -> int:
    """Runs the command."""
    if arguments:
        raise common.UsageError(f"demo takes flags only, not {arguments[0]!r}")
    started = time.monotonic()
    import jax

    from fpjax import zoo
    from fpjax.attribution.calibration import keyless_images
    from fpjax.attribution.decision import attribute
    from fpjax.attribution.registry import Registry
    from fpjax.cli.demo_page import Row, write_page
    from fpjax.data.files import load_image, save_image, to_uint8
    from fpjax.fingerprint.scheme import generate, load_scheme

    values = flags.FLAGS
    common.use_compilation_cache()
    out = Path(values.out)
    _fresh_folder(out)
    progress = common.Progress()
    speak = (lambda *words: None) if values.json == "-" else print

    scheme = load_scheme(common.DEFAULT_GENERATOR)
    speak(
        f"scheme {scheme.id[:12]}: {scheme.key_length}-bit keys on components {scheme.shift} to "
        f"{scheme.shift + scheme.key_length - 1} of {len(scheme.basis)}, strength "
        f"{scheme.strength:g}"
    )
    rng = np.random.default_rng(values.seed)
    registry = Registry.create(
        out / "users.db", key_length=scheme.key_length, scheme_id=scheme.id, minimum_distance=8
    )
    with registry:
        keys = np.stack([registry.issue(user, rng=rng) for user in USERS])
        owners = [user for user in USERS for _ in range(IMAGES_PER_USER)]
        true_keys = np.repeat(keys, IMAGES_PER_USER, axis=0)
        key_images, key_plain = jax.random.split(jax.random.key(values.seed))
        made = generate(scheme, key_images, true_keys)
        originals = to_uint8(np.asarray(made.originals))
        fingerprinted = to_uint8(np.asarray(made.images))
        plain = keyless_images(scheme, key_plain, NUM_WITHOUT_KEY)

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
        for source in zoo.foreign_image_paths(common.DEFAULT_GENERATOR):
            path = out / "images" / source.name
            save_image(path, load_image(source))
            rows.append(Row(path, None, None, "not of this generator"))

        # From here on only the files and the registry are known.
        found_keys = []
        shape = (scheme.generator.resolution, scheme.generator.resolution, 3)
        for first in range(0, len(rows), _BATCH):
            batch = rows[first : first + _BATCH]
            images = np.stack([load_image(r.path, shape) for r in batch])
            found = attribute(
                scheme,
                images,
                registry,
                progress=lambda done, _, first=first: progress(
                    "attributing", first + done, len(rows)
                ),
            )
            found_keys.extend(found.keys)
            for row, image, verdict in zip(batch, images, found.verdicts, strict=True):
                row.image, row.verdict = image, verdict
        progress.finish()

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
        "strength": scheme.strength,
        "seconds": 0.0,
    }
    figures["seconds"] = time.monotonic() - started
    write_page(out / "index.html", rows, figures)
    if values.json:
        common.write_json(values.json, figures)
    _print_table(rows, figures, speak)
    speak(f"pictures: {out / 'index.html'}")
    right = figures["correct_users"] == count and figures["false_attributions"] == 0
    return common.EXIT_OK if right else common.EXIT_FAILED


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
