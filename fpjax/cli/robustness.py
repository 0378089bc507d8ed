"""Attacks pictures with keys, reads the files back, and says how many makers are found.

  fpjax robustness --out FOLDER [--scheme SCHEME ...] [--attack ATTACK ...] [--num_images 64] ...

Attacks are written as NAME:PARAMETER=VALUE,...; several in a row are joined by +, as in
gaussian_blur:sigma=0.5+jpeg:quality=50. FOLDER gets the files as they were sent, the answers and
figures (robustness.json), plots, and a page, index.html. What is found is kept as it comes;
--resume goes on from it, also with other attacks or more pictures.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from fpjax.cli import common
from fpjax.cli.study import (
    add_closing_flags,
    add_count_flags,
    add_folder_flags,
    checked_out,
    print_places,
    running,
)


def add_arguments(parser: common.Parser) -> None:
    """Arguments of the command."""
    flags = parser.flags
    add_folder_flags(flags)
    flags.add_argument(
        "--scheme",
        metavar="SCHEME",
        action="append",
        help="Folder of a scheme, or a bundled name; may be repeated. Default: "
        f"{common.DEFAULT_GENERATOR}.",
    )
    common.add_generator_flag(parser, None, "Generator of the schemes, where it is no bundled one")
    flags.add_argument(
        "--attack",
        metavar="ATTACK",
        action="append",
        help="An attack, may be repeated. Default: the four published ones, JPEG at 95, 90 and 75, "
        "and changes of size, brightness, contrast, place and window.",
    )
    add_count_flags(
        flags,
        (
            ("num_images", 1, 64, "Pictures for each scheme and attack."),
            ("num_users", 1, 1000, "Registered users."),
            ("num_predicted", 0, 8, "Pictures whose information predicts, two Jacobians each."),
        ),
    )
    flags.add_argument(
        "--observation",
        choices=("file", "auto"),
        default="auto",
        help="See fpjax attribute --help. Default: %(default)s.",
    )
    flags.add_argument(
        "--false_positive_rate",
        metavar="RATE",
        type=common.number_between(0, 1),
        default=1e-6,
        help="Chance that a picture without a key is attributed to anybody. Default: %(default)s.",
    )
    flags.add_argument(
        "--lpips", action="store_true", help="Measure LPIPS too; needs pip install 'fpjax[lpips]'."
    )
    add_closing_flags(parser)


def main(args: argparse.Namespace) -> int:
    """Runs the command."""
    out = checked_out(args)

    from fpjax.attacks import AttackError, parse
    from fpjax.fingerprint.scheme import load_scheme
    from fpjax.studies.robustness import DEFAULT_ATTACKS
    from fpjax.studies.robustness_plots import write_page
    from fpjax.studies.robustness_run import Settings, run_robustness

    attacks = tuple(dict.fromkeys(args.attack or DEFAULT_ATTACKS))
    try:
        for attack in attacks:
            parse(attack)
    except AttackError as error:
        raise common.UsageError(f"--attack: {error}") from error
    common.use_compilation_cache()
    generator = common.open_generator(args.generator) if args.generator else None
    names = list(dict.fromkeys(args.scheme or [common.DEFAULT_GENERATOR]))
    schemes = {name: load_scheme(name, generator) for name in names}
    settings = Settings(
        num_images=args.num_images,
        num_users=args.num_users,
        false_positive_rate=args.false_positive_rate,
        observation=args.observation,
        lpips=args.lpips,
        seed=args.seed,
    )
    with running(args, out) as progress:
        result = run_robustness(
            schemes,
            out,
            settings,
            attacks,
            num_predicted=args.num_predicted,
            resume=args.resume,
            progress=progress,
        )
    _print_table(result)
    print_places(args, out / "robustness.json", lambda: write_page(out, result))
    return common.EXIT_OK


def _print_table(result: Mapping[str, Any]) -> None:
    print("right nobody wrong exact  bits (95% interval)  predicted  PSNR  scheme, attack")
    for cell in result["cells"]:
        bits, low, high = cell["bit_accuracy"]
        guess = cell["predicted"]
        expected = f"{guess['bit_accuracy']:9.4f}" if guess else f"{'-':>9s}"
        psnr = f"{'-':>5s}" if cell["psnr"] is None else f"{cell['psnr']:5.1f}"
        shares = " ".join(f"{cell[name][0]:5.3f}" for name in ("right", "none", "wrong", "exact"))
        print(
            f"{shares}  {bits:.4f} ({low:.3f}-{high:.3f}) {expected}  {psnr}  "
            f"{cell['scheme']}, {cell['attack']}"
        )
