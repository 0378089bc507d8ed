"""Makes a scheme for a generator: directions, strength, and its calibration.

  fpjax scheme create --out FOLDER [--generator GENERATOR] [--strength 6] ...

Calibration fits the start of inversions, or measures what an encoder's readings are worth, and
reads a few images with keys, to see that it works. At the end stands what keys cost pictures, in
decibels of PSNR. The directions are kept in FOLDER.unfinished until all is done; --resume goes on
from there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

from fpjax.cli import common
from fpjax.cli.basis import NUM_PROBES, add_basis_flags
from fpjax.errors import FpjaxError
from fpjax.io.atomic import atomic_write


def add_arguments(parser: common.Parser) -> None:
    """Arguments of the command."""
    common.add_generator_flag(parser, common.DEFAULT_GENERATOR, "The generator")
    flags = parser.flags
    flags.add_argument("--out", metavar="FOLDER", help="Folder to make; it must not exist.")
    flags.add_argument(
        "--resume", action="store_true", help="Go on with a run of the same flags that ended early."
    )
    flags.add_argument(
        "--key_length",
        metavar="BITS",
        type=common.whole(1),
        help="Bits of a key. Default: 64, or what the code carries.",
    )
    flags.add_argument(
        "--code",
        metavar="CODE",
        help="How keys become symbols, one a direction: bch-SYMBOLS-BITS such as bch-63-45, or "
        "repetition-BITS-REPEATS such as repetition-16-4, each with a secret mask. By default each "
        "bit is a symbol.",
    )
    flags.add_argument(
        "--shift",
        metavar="INDEX",
        type=common.whole(0),
        help="First fingerprint direction; by default the key takes the last ones.",
    )
    flags.add_argument(
        "--strength",
        metavar="SIGMA",
        type=common.number_between(0, float("inf")),
        help="Size of the shift. In the latent metric in latent units, by default 1, as published; "
        "in the image metric the change of the image by one bit, by default for about 40 dB of "
        "PSNR between original and fingerprinted.",
    )
    flags.add_argument(
        "--levels",
        choices=("antipodal", "binary"),
        default="antipodal",
        help="Levels of a bit: -1 and 1, or 0 and 1, as published. Default: %(default)s.",
    )
    add_basis_flags(parser)
    flags.add_argument(
        "--keep_all",
        action="store_true",
        help="Keep directions along which natural images vary less than the rounding of an 8-bit "
        "file. By default the image metric leaves them out: they only cost time.",
    )
    flags.add_argument(
        "--rotate",
        action="store_true",
        help="Turn the fingerprint directions by a secret random rotation among themselves: who "
        "has the generator can fit directions again, but does not know those of single bits.",
    )
    flags.add_argument(
        "--noise",
        choices=("const", "none"),
        help="Noise maps of a StyleGAN2: those stored with the weights, or none. By default as the "
        "generator has it.",
    )
    flags.add_argument(
        "--images",
        metavar="FOLDER",
        help="Pictures of the generator's size, encoded for natural latents: for a first stage of "
        "latent diffusion without its denoiser.",
    )
    flags.add_argument(
        "--unquantized",
        action="store_true",
        help="Decode latents of a VQ first stage as they are, without taking the nearest codes.",
    )
    flags.add_argument(
        "--encoder_only",
        action="store_true",
        help="Read keys of clean files by the generator's encoder alone, a few forward passes, and "
        "measure what its readings are worth. Files that say they were recompressed or changed are "
        "inverted as ever.",
    )
    flags.add_argument(
        "--num_read_images",
        metavar="N",
        type=common.whole(20),
        default=1000,
        help="Images that the encoder's errors are measured on, for --encoder_only. "
        "Default: %(default)s.",
    )
    flags.add_argument(
        "--num_start_images",
        metavar="N",
        type=common.whole(20),
        default=12_000,
        help="Images that the start of inversions is fitted on. Default: %(default)s.",
    )
    flags.add_argument(
        "--num_inverted_images",
        metavar="N",
        type=common.whole(2),
        default=16,
        help="Images with keys that are read to see that it works. Default: %(default)s.",
    )
    common.add_seed_flag(parser)
    common.add_quiet_flag(parser)


def main(args: argparse.Namespace) -> int:
    """Runs the command."""
    if not args.out:
        raise common.UsageError("say where the scheme goes: --out FOLDER")
    if os.path.lexists(args.out):
        raise common.UsageError(f"{args.out} exists already: choose another name or remove it")
    common.check_folder("--out", args.out)
    symbols = _num_symbols(args)
    draft = _Draft(args)

    import jax

    from fpjax.attribution.calibration import calibrate
    from fpjax.fingerprint.fit import fit_basis
    from fpjax.fingerprint.scheme import Scheme, load_scheme
    from fpjax.progress import Display

    common.use_compilation_cache()
    noise = "unquantized" if args.unquantized else args.noise
    generator = _with_noise(common.open_generator(args.generator), noise)
    if args.images:
        generator = _with_images(generator, Path(args.images))
    if args.encoder_only:
        _check_encoder(generator, args.num_read_images, symbols)
    key_basis, key_calibration = jax.random.split(jax.random.key(args.seed))
    with Display(quiet=args.quiet) as progress:
        if draft.scheme.exists():
            scheme = load_scheme(draft.scheme, generator)
            common.say(f"the directions are there already, in {draft.folder}")
        else:
            basis = fit_basis(
                generator,
                key_basis,
                args.num_samples,
                metric=args.metric,
                num_jacobians=args.num_jacobians,
                num_probes=args.num_probes,
                progress=progress.stage("averaging the image metric"),
            )
            scheme = Scheme.create(
                generator,
                basis,
                args.key_length,
                args.shift,
                args.strength,
                args.levels,
                args.code,
                keep_all=args.keep_all,
                rotate=args.rotate,
            )
            draft.begin()
            scheme.save(draft.scheme)
        try:
            calibrated = calibrate(
                scheme,
                key_calibration,
                num_start_images=args.num_start_images,
                num_inverted_images=args.num_inverted_images,
                encoder_only=args.encoder_only,
                num_read_images=args.num_read_images,
                progress=progress,
            )
            calibrated.save(args.out)
        except FpjaxError:
            draft.remove()  # the same flags would fail again
            raise
        except BaseException:
            progress.finish()
            common.say(f"the directions are in {draft.folder}: --resume goes on")
            raise
    draft.remove()
    calibration = calibrated.calibration
    assert calibration is not None
    print(f"wrote {common.shown(args.out)}: scheme {scheme.id[:12]} for {generator.name}")
    coded = f" as {scheme.num_symbols} symbols" if scheme.code is not None else ""
    print(
        f"{scheme.key_length}-bit keys{coded} on directions {scheme.shift} to "
        f"{scheme.shift + scheme.num_symbols - 1} of {len(scheme.basis)}, strength "
        f"{float(scheme.strength):.3g}"
    )
    unit = "the noise" if calibration.encoder is None else "the encoder's usual error"
    print(
        f"residuals: {calibration.num_inverted_images} of the scheme's own images up to "
        f"{calibration.own_noise_ratio:.2f} times {unit}; up to "
        f"{calibration.max_noise_ratio:.2f} counts as explained"
    )
    _say_quality(calibrated, args.seed)
    return common.EXIT_OK


_JUDGED = 16
"""Pictures whose PSNR is measured at the end."""

_MUCH_LESS = 4.0
"""Decibels under what the strength by itself leaves, from which on that is said."""

_NEAR_ROUNDING = 45.0
"""Decibels from which on rounding and directions that are left out cost much of it."""


def _say_quality(scheme, seed: int) -> None:
    """Says what keys do to pictures, and where that is more than the strength explains."""
    import math

    import jax

    from fpjax.fingerprint.embed import generate
    from fpjax.fingerprint.keys import sample_keys
    from fpjax.studies.quality import psnr_db

    key_keys, key_latents = jax.random.split(jax.random.fold_in(jax.random.key(seed), 2))
    made = generate(scheme, key_latents, sample_keys(key_keys, _JUDGED, scheme.key_length))
    assert made.originals is not None
    decibels = psnr_db(made.originals, made.images)
    print(
        f"PSNR between original and fingerprinted: {decibels.mean():.1f} dB on average, "
        f"{decibels.min():.1f} dB at least ({_JUDGED} pictures)"
    )
    if scheme.basis.metric != "image":
        return
    share = 1.0 if scheme.levels == "antipodal" else 0.5
    power = share * scheme.num_symbols * float(scheme.strength) ** 2
    alone = 10 * math.log10(4 * math.prod(scheme.generator.image_shape) / power)
    if decibels.mean() < min(alone - _MUCH_LESS, _NEAR_ROUNDING):
        common.say(
            f"the strength by itself would leave {alone:.1f} dB: along these directions pictures "
            "bend, or vary by nature. Others (another --shift), or a lower --strength, may do "
            "better: fpjax design compares them"
        )


def _num_symbols(args: argparse.Namespace) -> int:
    """How many symbols the key is written as; refuses a code that there is not before directions
    are fitted."""
    if args.code is None:
        return args.key_length or 64
    from fpjax.fingerprint.codes import code_named

    try:
        code = code_named(args.code)
    except ValueError as error:
        raise common.UsageError(str(error)) from None
    if code is not None and args.key_length not in (None, code.payload_bits):
        raise common.UsageError(
            f"--key_length {args.key_length}: {args.code} carries {code.payload_bits} bits"
        )
    return (args.key_length or 64) if code is None else code.num_symbols


def _check_encoder(generator, num_images: int, symbols: int) -> None:
    """Refuses what could not be measured before directions are fitted."""
    from fpjax.inversion.encoder_reader import least_images

    if generator.encode is None:
        raise common.CommandError(f"--encoder_only: {generator.name} has no encoder")
    if num_images < (least := least_images(symbols)):
        raise common.UsageError(
            f"--num_read_images {num_images}: {symbols} symbols take at least {least}"
        )


def _with_noise(generator, noise: str | None):
    if noise is None:
        return generator
    if not hasattr(generator, "with_noise"):
        raise common.CommandError(f"--noise {noise}: {generator.name} has no noise maps")
    return generator.with_noise(noise)


def _with_images(generator, folder: Path):
    """The generator with the latents of a folder's pictures as its natural ones."""
    import jax
    import numpy as np

    from fpjax.io.images import from_uint8, load_image

    if generator.encode is None or not hasattr(generator, "with_latents"):
        raise common.CommandError(f"--images {folder}: {generator.name} has no encoder for them")
    if not folder.is_dir():
        raise common.CommandError(f"--images {folder}: no such folder")
    files = sorted(path for path in folder.iterdir() if path.is_file())
    if len(files) < 2:
        raise common.CommandError(f"--images {folder}: {len(files)} files; give some thousands")
    encode = jax.jit(lambda generator, images: generator.encode(generator.params, images))
    parts, batch = [], 16
    for first in range(0, len(files), batch):
        taken = files[first : first + batch]
        images = np.stack([load_image(path, generator.image_shape) for path in taken])
        padded = np.concatenate([images, np.repeat(images[-1:], batch - len(images), axis=0)])
        found = jax.device_get(encode(generator, jax.device_put(from_uint8(padded))))
        parts.append(np.asarray(found)[: len(taken)])
    return generator.with_latents(np.concatenate(parts))


class _Draft:
    """What is kept of a run until its scheme is whole: the flags, and the scheme's directions.

    Raises:
      CommandError: if there is one that `--resume` does not ask for, or of other flags.
    """

    def __init__(self, args: argparse.Namespace):
        self.folder = Path(f"{Path(args.out)}.unfinished")
        self.scheme = self.folder / "scheme"
        unlike = ("out", "resume", "quiet", "module")
        self._flags: dict[str, Any] = {k: v for k, v in vars(args).items() if k not in unlike}
        if not self.folder.exists():
            return
        if not args.resume:
            raise common.CommandError(
                f"{self.folder} is of a run that ended early: go on with --resume, or remove it"
            )
        try:
            begun = json.loads((self.folder / "flags.json").read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise common.CommandError(f"{self.folder}: damaged; remove it") from error
        # Flags that there were not yet had their defaults.
        begun = {"num_probes": NUM_PROBES} | begun if isinstance(begun, dict) else {}
        for name, value in self._flags.items():
            if begun.get(name) != value:
                raise common.CommandError(
                    f"{self.folder} was begun with --{name} {begun.get(name)!s:.80}, not "
                    f"{value!s:.80}: give the same flags, or remove it"
                )

    def begin(self) -> None:
        with atomic_write(self.folder / "flags.json", "w") as file:
            file.write(json.dumps(self._flags, indent=2) + "\n")

    def remove(self) -> None:
        shutil.rmtree(self.folder)
