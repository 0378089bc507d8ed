"""What the commands that run studies share: their folder, their lists of values, and early ends."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fpjax.cli import common

if TYPE_CHECKING:
    from fpjax.progress import Display


def add_folder_flags(flags: Any) -> None:
    """--out and --resume."""
    flags.add_argument("--out", metavar="FOLDER", help="Folder for all that is found.")
    flags.add_argument(
        "--resume", action="store_true", help="Go on with a run in FOLDER that ended early."
    )


def add_noise_flag(flags: Any, default: list[float] | None, otherwise: str = "") -> None:
    """--noise, a list of standard deviations; where it has no default, `otherwise` says what is."""
    flags.add_argument(
        "--noise",
        metavar="STD,...",
        type=several(noise_level),
        default=default,
        help="Standard deviations of noise in the file, images in [-1, 1]; 0 is rounding to 8 bits "
        f"alone. Default: {otherwise or ','.join(f'{value:g}' for value in default or [])}.",
    )


def add_count_flags(flags: Any, rows: Iterable[tuple[str, int, int, str]]) -> None:
    """Numbers of things: (name, least, default, what it is) of each."""
    for name, least, default, what in rows:
        flags.add_argument(
            f"--{name}",
            metavar="N",
            type=common.whole(least),
            default=default,
            help=f"{what} Default: %(default)s.",
        )


def add_closing_flags(parser: common.Parser) -> None:
    """--seed, --no_page and --quiet."""
    common.add_seed_flag(parser)
    parser.flags.add_argument(
        "--no_page", action="store_true", help="No plots and no page; they need matplotlib."
    )
    common.add_quiet_flag(parser)


def several(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """A kind of flag: values of another kind between commas, each once.

    >>> several(common.whole(1))("64,32,64")
    [64, 32]
    """

    def parse(text: str) -> list[Any]:
        return list(dict.fromkeys(kind(word.strip()) for word in text.split(",")))

    parse.__name__ = f"list of {getattr(kind, '__name__', 'value').lstrip('_')}"
    return parse


def noise_level(text: str) -> float:
    """A kind of flag: standard deviations of noise, images in [-1, 1].

    >>> noise_level("0.05")
    0.05
    """
    value = float(text)
    if not 0 <= value <= 2:
        raise argparse.ArgumentTypeError(f"{text}: expected 0 to 2")
    return value


def checked_out(args: argparse.Namespace) -> Path:
    """The study's folder, which can be written; and matplotlib is there if it will be needed.

    Raises:
      UsageError: without --out, or where it cannot be a folder.
      InputError: if plots could not be drawn.
    """
    if not args.out:
        raise common.UsageError("say where the study goes: --out FOLDER")
    out = Path(args.out)
    common.check_folder("--out", out)
    if not args.no_page:
        from fpjax.studies.page import check_matplotlib

        check_matplotlib()
    return out


@contextlib.contextmanager
def running(args: argparse.Namespace, out: Path) -> Iterator[Display]:
    """The study's progress; an early end says how to go on."""
    from fpjax.progress import Display

    with Display(quiet=args.quiet) as progress:
        try:
            yield progress
        except (KeyboardInterrupt, common.Stopped):
            progress.finish()
            common.say(f"what was found is in {out}: --resume goes on")
            raise


def print_places(
    args: argparse.Namespace, figures: Path, write_page: Callable[[], list[Path]]
) -> None:
    """Says where the figures are; draws the page, if there is to be one, and says where it is."""
    print(f"figures: {common.shown(figures)}")
    if not args.no_page:
        print(f"page: {common.shown(write_page()[0])}")
