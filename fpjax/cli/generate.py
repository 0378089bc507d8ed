"""Makes images that carry a registered user's key, as 8-bit PNG files.

  fpjax generate USER [--num 4] [--out FOLDER] [--registry FILE] [--scheme SCHEME]

Files are named SEED-NUMBER.png; each appears whole or not at all, and none is overwritten. A run
that ended early goes on with --seed SEED --resume.
"""

from __future__ import annotations

import argparse
import json
import secrets
from pathlib import Path
from typing import Any

from fpjax.cli import common
from fpjax.io.atomic import atomic_write

_BATCH = 64


def add_arguments(parser: common.Parser) -> None:
    """Arguments of the command."""
    parser.add_name("USER", "Whose key the images carry.")
    common.add_scheme_flags(parser)
    common.add_registry_flag(parser)
    flags = parser.flags
    flags.add_argument(
        "--num",
        metavar="N",
        type=common.whole(1),
        default=4,
        help="Images to make. Default: %(default)s.",
    )
    flags.add_argument(
        "--out",
        metavar="FOLDER",
        default="fpjax-images",
        help="Folder to write them to. Default: %(default)s.",
    )
    flags.add_argument(
        "--seed",
        metavar="SEED",
        type=common.seed,
        help="Seed of the latents; by default a fresh random one.",
    )
    flags.add_argument(
        "--resume",
        action="store_true",
        help="Make only the images of this --seed that are not in the folder yet.",
    )
    flags.add_argument(
        "--alpha",
        choices=("projected", "sampled"),
        default="projected",
        help="Latents: projected natural ones, or drawn from a normal distribution as published. "
        "Default: %(default)s.",
    )
    common.add_quiet_flag(parser)


def main(args: argparse.Namespace) -> int:
    """Runs the command."""
    if not args.name:
        raise common.UsageError("name one user: fpjax generate USER")
    if args.resume and args.seed is None:
        raise common.UsageError("--resume goes on with the images of a --seed: name it")
    out = Path(args.out)
    common.check_folder("--out", out)
    seed = secrets.randbits(32) if args.seed is None else args.seed
    targets = [out / f"{seed}-{i:04d}.png" for i in range(args.num)]
    there = [path.exists() for path in targets]
    if any(there) and not args.resume:
        raise common.CommandError(
            f"{targets[there.index(True)]} exists already: choose another --out or --seed, or go "
            "on with --resume"
        )

    import jax
    import numpy as np

    from fpjax.fingerprint.embed import generate
    from fpjax.io.images import save_image
    from fpjax.progress import Display

    common.use_compilation_cache()
    scheme = common.open_scheme(args)
    with common.open_registry(args, scheme.id) as registry:
        key = registry.key_of(args.name)
    out.mkdir(parents=True, exist_ok=True)
    asked = {"scheme": scheme.id, "user": args.name, "seed": seed, "alpha": args.alpha}
    _keep_record(out / f".{seed}.json", asked, any(there))
    if any(there):
        common.say(f"{sum(there)} of {args.num} images are there already")
    try:
        with Display(quiet=args.quiet) as progress:
            progress("generating", 0, args.num)
            for first in range(0, args.num, _BATCH):
                batch = range(first, min(first + _BATCH, args.num))
                if not all(there[i] for i in batch):
                    # All of the batch, so that an image does not depend on what is there already.
                    keys = np.repeat(key[None], len(batch), axis=0)
                    prng_key = jax.random.fold_in(jax.random.key(seed), first)
                    made = generate(scheme, prng_key, keys, alpha=args.alpha)
                    progress.finish()
                    for i, image in zip(batch, made.images, strict=True):
                        if not there[i]:
                            save_image(targets[i], image)
                            there[i] = True
                            print(common.shown(targets[i]), flush=True)
                progress("generating", batch.stop, args.num)
    except BaseException:
        common.say(
            f"{sum(there)} of {args.num} images are in {out}: --seed {seed} --resume goes on"
        )
        raise
    return common.EXIT_OK


def _keep_record(path: Path, asked: dict[str, Any], going_on: bool) -> None:
    """Writes down what the images of a seed are, or compares it with what they were begun as.

    Without it, `--resume` would take one user's images for another's.
    """
    if going_on:
        try:
            begun = json.loads(path.read_text("utf-8"))
        except (FileNotFoundError, ValueError, RecursionError) as error:
            raise common.CommandError(
                f"{path} does not say whose images there are of this seed: choose another --out "
                "or --seed"
            ) from error
        begun = begun if isinstance(begun, dict) else {}
        for name, value in asked.items():
            if begun.get(name) != value:
                raise common.CommandError(
                    f"the images of seed {asked['seed']} in {path.parent} are of {name} "
                    f"{begun.get(name)!s:.80}, not {value!s:.80}: choose another --out or --seed"
                )
    with atomic_write(path, "w") as file:
        file.write(json.dumps(asked) + "\n")
