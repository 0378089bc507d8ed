"""Says what directions, strength and key length give, before a single picture is inverted.

  fpjax design --out FOLDER [--generator GENERATOR] [--psnr 34,40,46] ...

Every basis, key length, quality, and noise or attack is combined; other shifts than the first are
judged at the first key length and the lowest quality. Bit errors are predicted from Jacobians, PSNR
is measured. FOLDER gets the figures (design.json), plots, and a page, index.html. What is found is
kept there as it comes; --resume goes on from it, also with other lists.
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
    add_noise_flag,
    checked_out,
    print_places,
    running,
    several,
)

_LAST = "last"


def add_arguments(parser: common.Parser) -> None:
    """Arguments of the command."""
    common.add_generator_flag(parser, common.DEFAULT_GENERATOR, "The generator")
    flags = parser.flags
    add_folder_flags(flags)
    flags.add_argument(
        "--basis",
        action="append",
        choices=("image", "latent"),
        help="A basis to judge, may be repeated: image, by the image metric; latent, principal "
        "components. Default: both.",
    )
    flags.add_argument(
        "--key_length",
        metavar="BITS,...",
        type=several(common.whole(1)),
        default=[64, 32, 16],
        help="Bits of a key; the first is the reference. Default: 64,32,16.",
    )
    flags.add_argument(
        "--shift",
        metavar="INDEX,...",
        type=several(_shift),
        help=f"First fingerprint directions; '{_LAST}' are the last ones. Default: {_LAST}, and "
        "four others from the first on.",
    )
    flags.add_argument(
        "--psnr",
        metavar="DB,...",
        type=several(common.number_between(5, 80)),
        help="PSNR between original and fingerprinted, for which the strength is solved. "
        "Default: 31,34,37,40,43,46.",
    )
    flags.add_argument(
        "--strength",
        metavar="SIGMA,...",
        type=several(common.number_between(0, float("inf"))),
        help="Strengths instead, in each basis's units.",
    )
    add_noise_flag(flags, None, "0,0.02,0.05, or none where there are attacks")
    flags.add_argument(
        "--attack",
        metavar="ATTACK",
        action="append",
        type=_attack,
        help="An attack on the file, may be repeated, as fpjax robustness takes it: "
        "jpeg:quality=75, gaussian_noise:std=0.05, gaussian_blur:sigma=0.5, resize:scale=0.75, ...",
    )
    flags.add_argument(
        "--code",
        metavar="NAME,...",
        type=several(_code),
        help="Codes to judge beside independent bits, at the first shift: bch-SYMBOLS-BITS such "
        "as bch-64-36, repetition-BITS-REPEATS such as repetition-16-4.",
    )
    flags.add_argument(
        "--product", action="store_true", help="Combine other shifts with everything, too."
    )
    flags.add_argument(
        "--goal_exact",
        metavar="SHARE",
        type=common.number_between(0, 1),
        default=0.999,
        help="Share of pictures with every bit right that a design is recommended for. "
        "Default: %(default)s.",
    )
    flags.add_argument(
        "--lpips",
        action="store_true",
        help="Measure LPIPS too; needs pip install 'fpjax[lpips]'.",
    )
    add_count_flags(
        flags,
        (
            ("num_samples", 2, 10_000, "Latents that directions are fitted on."),
            ("num_jacobians", 1, 128, "Latents that the image metric is averaged over."),
            ("num_latents", 1, 32, "Other latents, whose Jacobians predict."),
            ("num_pictures", 1, 64, "Pictures that quality is measured on."),
        ),
    )
    add_closing_flags(parser)


def _shift(text: str) -> int | None:
    return None if text == _LAST else common.whole(0)(text)


def _attack(text: str) -> str:
    from fpjax.errors import InputError
    from fpjax.studies.histories import described

    try:
        return described(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _code(text: str) -> str:
    from fpjax.fingerprint.codes import code_named

    try:
        code_named(text, masked=False)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def main(args: argparse.Namespace) -> int:
    """Runs the command."""
    if args.psnr and args.strength:
        raise common.UsageError("--psnr and --strength: give one of the two")
    out = checked_out(args)

    from fpjax.studies.design_plots import write_page
    from fpjax.studies.design_run import METRICS, Settings, run_design
    from fpjax.studies.designs import grid

    common.use_compilation_cache()
    generator = common.open_generator(args.generator)
    settings = Settings(
        bases=tuple(dict.fromkeys(args.basis or METRICS)),
        num_samples=args.num_samples,
        num_jacobians=args.num_jacobians,
        num_latents=args.num_latents,
        num_pictures=args.num_pictures,
        lpips=args.lpips,
        seed=args.seed,
    )
    psnrs = args.psnr or ([] if args.strength else [31.0, 34.0, 37.0, 40.0, 43.0, 46.0])

    noises = args.noise or ([] if args.attack else [0.0, 0.02, 0.05])

    def designs(bases):
        shifts = {
            name: args.shift or default_shifts(len(basis), args.key_length[0])
            for name, basis in bases.items()
        }
        return grid(
            bases,
            args.key_length,
            shifts,
            psnrs=psnrs,
            strengths=args.strength or [],
            noises=noises,
            attacks=args.attack or [],
            codes=args.code or [],
            product=args.product,
        )

    with running(args, out) as progress:
        result = run_design(
            generator,
            out,
            settings,
            designs,
            goal_exact=args.goal_exact,
            resume=args.resume,
            progress=progress,
        )
    _print_table(result)
    _print_recommendations(result)
    print_places(args, out / "design.json", lambda: write_page(out, result))
    return common.EXIT_OK


def default_shifts(num_directions: int, key_length: int) -> list[int | None]:
    """The last directions, and the starts of the basis's quarters as far as a key fits there.

    >>> default_shifts(512, 64)
    [None, 0, 112, 224, 336]
    """
    room = num_directions - key_length
    return list(dict.fromkeys([None, *(quarter * room // 4 for quarter in range(4))]))


def _print_table(result: Mapping[str, Any]) -> None:
    from fpjax.studies.designs import INDEPENDENT, Design

    print(
        f"{'basis':7s} {'bits':>4s} {'shift':>5s} {'noise':>5s} {'strength':>8s} {'PSNR':>5s} "
        f"{'lowest':>6s} {'LPIPS':>6s} {'bit error':>9s} {'exact':>6s} {'information':>11s}"
    )
    for row in result["rows"]:
        design = Design(**row["design"])
        begins = f"{design.basis:7s} {design.made_code.payload_bits:4d}"
        coded = "" if design.code == INDEPENDENT else f"  {design.code}"
        coded += "" if design.attack is None else f"  {design.attack}"
        noise = "-" if design.attack is not None else f"{design.noise:g}"
        if "reason" in row:
            shift = _LAST if design.shift is None else design.shift
            print(f"{begins} {shift:>5} {noise:>5s} {design.psnr:g} dB: out of reach{coded}")
            continue
        lpips = "-" if row["lpips"] is None else f"{row['lpips']:.4f}"
        print(
            f"{begins} {row['first_direction']:5d} {noise:>5s} {row['strength']:8.3g} "
            f"{row['psnr']:5.1f} {row['psnr_min']:6.1f} {lpips:>6s} {row['bit_error']:9.4f} "
            f"{row['exact']:6.4f} {row['mutual_information']:6.1f} bits{coded}"
        )


def _print_recommendations(result: Mapping[str, Any]) -> None:
    from fpjax.studies.designs import INDEPENDENT
    from fpjax.studies.histories import history_name

    print(f"all bits of {result['goal_exact']:g} of the pictures right, at the highest PSNR:")
    for case in result["recommendations"]:
        history = history_name(case["attack"] or case["noise"])
        found = case["prediction"]
        if found is None:
            answer = "none of these designs"
        else:
            answer = (
                f"{found['design']['basis']} basis, shift {found['first_direction']}, strength "
                f"{found['strength']:.3g}: {found['psnr']:.1f} dB"
            )
        code = "" if case["code"] == INDEPENDENT else f" as {case['code']}"
        print(f"  {case['payload_bits']} bits{code}, {history}: {answer}")
    print(f"{len(result['rows'])} designs, {result['seconds']:.0f} s")
