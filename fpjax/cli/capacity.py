"""Says how many users a scheme tells apart: the share of images that name theirs among N.

  fpjax capacity --out FOLDER [--scheme SCHEME] [--psnr 34,40] [--noise 0,0.05] ...

Every code, quality and noise is combined. Some images of each are made and inverted once; what is
found serves every number of users and every rate. The same is predicted from Jacobians alone.
FOLDER gets the figures (capacity.json), plots, and a page, index.html. What is found is kept there
as it comes; --resume goes on from it, also with other lists.
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


def add_arguments(parser: common.Parser) -> None:
    """Arguments of the command."""
    common.add_scheme_flags(parser)
    flags = parser.flags
    add_folder_flags(flags)
    flags.add_argument(
        "--code",
        metavar="CODE,...",
        type=several(_code),
        help="Codes: independent-BITS, bch-SYMBOLS-BITS, repetition-BITS-REPEATS. Default: as many "
        "independent bits as the scheme has symbols.",
    )
    flags.add_argument(
        "--psnr",
        metavar="DB,...",
        type=several(common.number_between(5, 80)),
        default=[34.0, 40.0],
        help="PSNR between original and fingerprinted, for which the strength is solved. "
        "Default: 34,40.",
    )
    add_noise_flag(flags, [0.0, 0.05])
    flags.add_argument(
        "--rate",
        metavar="RATE,...",
        type=several(common.number_between(0, 1)),
        default=[1e-6],
        help="Chances that an image without a key is attributed to anybody. Default: 1e-6.",
    )
    flags.add_argument(
        "--users",
        metavar="N,...",
        type=several(common.whole(1)),
        default=[10**k for k in range(1, 10)],
        help="Numbers of users. Default: 10 to 10^9.",
    )
    flags.add_argument(
        "--simulated",
        metavar="N,...",
        type=several(common.whole(1, 10**6)),
        default=[1000],
        help="Numbers of users for whom a registry is made, to check. Default: 1000.",
    )
    add_count_flags(
        flags,
        (
            ("num_images", 1, 32, "Images that are inverted for each code, quality and noise."),
            ("num_latents", 1, 32, "Other latents, whose Jacobians predict."),
            ("draws", 1, 4, "Keys that are drawn for each of those."),
            ("num_pictures", 1, 64, "Pictures that quality is measured on."),
            ("num_start_images", 20, 4000, "Images that a new start of inversions is fitted on."),
        ),
    )
    add_closing_flags(parser)


def _code(text: str) -> str:
    from fpjax.errors import InputError
    from fpjax.studies.capacity import Cell

    try:
        Cell(text, 40.0)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def main(args: argparse.Namespace) -> int:
    """Runs the command."""
    out = checked_out(args)

    from fpjax.studies.capacity import Cell
    from fpjax.studies.capacity_plots import write_page
    from fpjax.studies.capacity_run import Settings, run_capacity

    common.use_compilation_cache()
    scheme = common.open_scheme(args)
    names = ("num_images", "num_latents", "draws", "num_pictures", "num_start_images", "seed")
    settings = Settings(**{name: getattr(args, name) for name in names})
    codes = args.code or [f"independent-{scheme.num_symbols}"]
    cells = [
        Cell(code, psnr, noise) for code in codes for psnr in args.psnr for noise in args.noise
    ]
    with running(args, out) as progress:
        result = run_capacity(
            scheme,
            out,
            settings,
            cells,
            users=sorted(args.users),
            rates=args.rate,
            simulated=args.simulated,
            resume=args.resume,
            progress=progress,
        )
    _print_table(result)
    print_places(args, out / "capacity.json", lambda: write_page(out, result))
    return common.EXIT_OK


def _print_table(result: Mapping[str, Any]) -> None:
    print(
        f"{'code':16s} {'noise':>5s} {'PSNR':>5s} {'rate':>6s} "
        f"{'usable users (90%), measured':>28s} {'predicted':>9s} {'exact':>6s} {'predicted':>9s}"
    )
    for row in result["cells"]:
        cell = row["cell"]
        if "reason" in row:
            print(f"{cell['code']:16s} {cell['noise']:5g} {cell['psnr']:5.1f} out of reach")
            continue
        for place, rate in enumerate(result["rates"]):
            usable = [
                row[kind]["curves"][place]["usable"]["0.9"] for kind in ("measured", "predicted")
            ]
            print(
                f"{cell['code']:16s} {cell['noise']:5g} {row['psnr']:5.1f} {rate:6g} "
                f"{usable[0]:28.3g} {usable[1]:9.3g} {row['measured']['exact']:6.3f} "
                f"{row['predicted']['exact']:9.3f}"
            )
    print(f"{len(result['cells'])} cells, {result['seconds']:.0f} s")
