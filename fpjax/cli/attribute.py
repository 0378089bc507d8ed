"""Says who made each image file: a registered user, or nobody we know and why.

  fpjax attribute IMAGE [IMAGE ...] [--registry FILE] [--scheme SCHEME] [--json FILE]

Images that cannot be read are reported and the others answered. With --json the answers are saved
after every few images, so that a run that ends early loses no more than those; --resume goes on.
Exit code 0 means that every image was answered, whoever made it; 1 that some could not be; 2 a
wrong call.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

from fpjax.cli import common
from fpjax.cli.answers import Answers, file_sha256

_MANY_KEYS = 10_000_000
"""Keys whose comparison takes seconds, so that its progress is shown."""


def add_arguments(parser: common.Parser) -> None:
    """Arguments of the command."""
    parser.add_name("IMAGE", "An image file.", many=True)
    common.add_scheme_flags(parser)
    common.add_registry_flag(parser)
    flags = parser.flags
    flags.add_argument(
        "--json",
        metavar="FILE",
        help="File to write the answers to, readable by its owner only; - for standard output.",
    )
    flags.add_argument(
        "--resume",
        action="store_true",
        help="Go on with the answers that the --json file holds: images that have one are not "
        "looked at again, unless the file has changed. It must have been begun with the same "
        "scheme, calibration, program, rate, noise and number of users.",
    )
    flags.add_argument(
        "--show_keys", action="store_true", help="Write decoded keys too; they are secrets."
    )
    flags.add_argument(
        "--false_positive_rate",
        metavar="RATE",
        type=common.number_between(0, 1),
        default=1e-6,
        help="Chance that an image without a key is attributed to any registered user. "
        "Default: %(default)s.",
    )
    flags.add_argument(
        "--noise",
        metavar="STD",
        type=common.number_between(0, 2),
        help="Standard deviation of white noise that was added to the images, which reach from "
        "-1 to 1: all of them are read as such.",
    )
    flags.add_argument(
        "--observation",
        choices=("file", "auto", "rounded"),
        default="file",
        help="How the images became files. file: what each file says of itself, such as a JPEG "
        "file's tables. auto: what the picture says too, where that does not explain it all; takes "
        "longer, and counts as two tries or three. rounded: all are clean 8-bit files. Default: "
        "%(default)s.",
    )
    flags.add_argument(
        "--resize",
        action="store_true",
        help="Take images of another size than the generator's, too, as resized ones.",
    )
    flags.add_argument(
        "--reader",
        choices=("inversion", "encoder"),
        help="What reads the keys: an inversion of the generator, or its encoder alone, which is "
        "quicker and sees less; files that say they are no clean ones are inverted all the same. "
        "By default what the scheme was calibrated for.",
    )
    common.add_quiet_flag(parser)


def _number(value: float) -> float | None:
    """A number as JSON has it: None where it is not finite."""
    return float(value) if math.isfinite(value) else None


def answer(verdict, inversion: str) -> dict[str, Any]:
    """What the JSON output says of an image that was looked at."""
    return {
        "status": "attributed" if verdict.user is not None else "not attributed",
        "user": verdict.user,
        "reason": str(verdict.reason),
        **({"revoked_user": verdict.nearest_user} if _is_revoked(verdict) else {}),
        "matching_bits": verdict.matching_bits,
        "key_length": verdict.key_length,
        "p_value": _number(verdict.p_value),
        "noise_ratio": _number(verdict.noise_ratio),
        "explained": bool(verdict.explained),
        "finding": verdict.finding,
        "history": verdict.history,
        "attempts": verdict.attempts,
        "inversion": inversion,
    }


def sentence(verdict, notes: tuple[str, ...] = ()) -> str:
    """A verdict for people."""
    evidence = [
        f"{verdict.matching_bits}/{verdict.key_length} bits",
        f"p = {verdict.p_value:.1e}",
        f"residual {verdict.noise_ratio:.1f}",
        *notes,
    ]
    if verdict.user is not None:
        how = _how(verdict)
        return f"{common.shown(verdict.user)} ({', '.join([*how, *evidence])})"
    if _is_revoked(verdict):
        evidence.insert(0, f"that of {common.shown(verdict.nearest_user)}")
    return f"not attributed: {verdict.reason} ({', '.join(evidence)})"


def _is_revoked(verdict) -> bool:
    return verdict.reason.name == "REVOKED"


def _how(verdict) -> list[str]:
    """What a line of an attributed picture says besides its evidence."""
    if not verdict.explained:
        return ["the picture is not fully explained"]
    return [f"after {verdict.history}"] if verdict.history else []


def main(args: argparse.Namespace) -> int:
    """Runs the command."""
    if not args.names:
        raise common.UsageError("name the images: fpjax attribute IMAGE [IMAGE ...]")
    if args.noise is not None and args.observation == "auto":
        raise common.UsageError("--noise says what was done, --observation=auto asks: give one")
    if args.noise is not None and args.reader == "encoder":
        raise common.UsageError("--noise: the encoder was measured on clean files")
    if args.resume and args.json in (None, "-"):
        raise common.UsageError("--resume goes on with a file of answers: name it with --json")
    images = list(dict.fromkeys(args.names))
    answers = Answers(args.json, resume=args.resume)

    import fpjax
    from fpjax.attribution.files import attribute
    from fpjax.inversion.encoder_reader import EncoderReader
    from fpjax.inversion.observation import Gaussian, Rounded8Bit
    from fpjax.inversion.problem import Problem
    from fpjax.inversion.readers import default_reader
    from fpjax.inversion.solvers.default import default_solver
    from fpjax.parallel import files_at_once
    from fpjax.progress import Display

    common.use_compilation_cache()
    scheme = common.open_scheme(args)
    observation = args.observation if args.observation != "rounded" else Rounded8Bit()
    if args.noise is not None:
        observation = Gaussian(args.noise)
    readers = {"inversion": default_solver, "encoder": EncoderReader.of}
    stated = Rounded8Bit() if args.noise is None else Gaussian(args.noise)
    reader = None if args.reader is None else readers[args.reader](scheme)
    with common.open_registry(args, scheme.id) as registry:
        num_revoked = len(registry.revoked())
        answers.begin(
            {
                "version": fpjax.__version__,
                "scheme": scheme.id,
                "calibration": scheme.calibration and scheme.calibration.sha256,
                "observation": getattr(observation, "name", observation),
                "resize": args.resize,
                "noise": args.noise,
                "solver": (reader or default_reader(Problem(scheme, stated))).name,
                "false_positive_rate": args.false_positive_rate,
                "num_users": len(registry),
                **({"num_revoked": num_revoked} if num_revoked else {}),
            }
        )
        pending = [image for image in images if not answers.settled(image)]
        if len(pending) < len(images):
            common.say(f"{len(images) - len(pending)} images were answered before")
        answers.save(images, complete=not pending)
        batch = files_at_once(8)
        try:
            with Display(quiet=args.quiet) as progress:
                for first in range(0, len(pending), batch):
                    progress("attributing", first, len(pending))
                    taken = pending[first : first + batch]
                    shape = scheme.generator.image_shape
                    files = _read(taken, shape, args.resize, answers, progress)
                    lines: list[str] = []
                    if files:
                        done = first + len(taken) - len(files)
                        found = attribute(
                            scheme,
                            list(files.values()),
                            registry,
                            false_positive_rate=args.false_positive_rate,
                            observation=observation,
                            solver=reader,
                            progress=lambda n, _, done=done: progress(
                                "attributing", done + n, len(pending)
                            ),
                            key_progress=progress.stage("comparing keys")
                            if len(registry) >= _MANY_KEYS
                            else None,
                        )
                        lines = _record(answers, files, found, args.show_keys)
                    answers.save(images, complete=first + batch >= len(pending))
                    progress.finish()
                    if args.json != "-":
                        for line in lines:
                            print(line, flush=True)
        except BaseException:
            answered = sum(image in answers.entries for image in images)
            kept = f" and are in {answers.kept_in}: --resume goes on" if answers.kept_in else ""
            if answered:
                common.say(f"{answered} of {len(images)} images were answered{kept}")
            answers.abandon(images)
            raise
    failed = any(answers.entries[image]["status"] == "error" for image in images)
    return common.EXIT_FAILED if failed else common.EXIT_OK


def _read(taken: list[str], shape, resize: bool, answers: Answers, progress) -> dict[str, Any]:
    """The image files that can be read, by name; what is wrong with the others is an answer too."""
    from fpjax.attribution.pictures import read_picture
    from fpjax.io.images import ImageError

    files = {}
    for image in taken:
        try:
            files[image] = read_picture(image, shape, resize=resize)
        except ImageError as error:
            progress.finish()
            common.say(error)
            answers.entries[image] = {"image": image, "status": "error", "error": str(error)}
    return files


def _record(answers: Answers, files: dict[str, Any], found, show_keys: bool) -> list[str]:
    """Puts what was found into the answers, and returns the lines that say so."""
    from fpjax.fingerprint.keys import to_hex
    from fpjax.inversion.solution import Status

    lines = []
    for (image, file), verdict, status, key in zip(
        files.items(), found.verdicts, found.status, found.keys, strict=True
    ):
        answers.entries[image] = {
            "image": image,
            "sha256": file_sha256(image),
            **answer(verdict, Status(status).name.lower()),
            "notes": list(file.notes),
            **({"key": to_hex(key)} if show_keys else {}),
        }
        lines.append(f"{common.shown(image)}: {sentence(verdict, file.notes)}")
    return lines
