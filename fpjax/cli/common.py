"""What the subcommands share: the parser, its kinds of values, exit codes, and lines to people."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path

from absl.flags import argparse_flags

from fpjax.errors import FpjaxError
from fpjax.io.text import printable

DEFAULT_GENERATOR = "avatars-stylegan2"
DEFAULT_REGISTRY = "fpjax-users.db"

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

_WIDEST = 100


class CommandError(FpjaxError):
    """Something the user can mend; printed on one line, exit code 1."""


class UsageError(FpjaxError):
    """A call that is not as `--help` says; printed on one line, exit code 2."""


class Stopped(BaseException):
    """A signal asks the command to end; like KeyboardInterrupt, it is no error to be handled."""

    def __init__(self, signal_number: int):
        super().__init__(signal_number)
        self.signal_number = signal_number


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str):
        width = min(shutil.get_terminal_size().columns - 2, _WIDEST)
        super().__init__(prog, max_help_position=28, width=width)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Fills paragraphs; those that are indented, such as examples, stay as they are."""
        paragraphs = text.split("\n\n")
        return "\n\n".join(p if p.startswith(" ") else textwrap.fill(p, width) for p in paragraphs)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


class Parser(argparse_flags.ArgumentParser):
    """A parser whose errors are exceptions, and whose help is the text of a module's docstring."""

    def __init__(self, **options):
        options = {
            "add_help": False,
            "allow_abbrev": False,
            "usage": argparse.SUPPRESS,
            "formatter_class": _HelpFormatter,
            # The flags of other libraries in the process are inherited; ours go before theirs.
            "conflict_handler": "resolve",
            **options,
        }
        super().__init__(**options)
        self._names = self.add_argument_group("Arguments")
        self.flags = self.add_argument_group("Flags")
        self.flags.add_argument("-h", "--help", action="help", help="Show this text.")

    def add_name(self, metavar: str, help: str, *, many: bool = False) -> None:
        """Takes a name, or `many`, without a flag: `args.name`, or the list `args.names`."""
        self._names.add_argument(
            "names" if many else "name", metavar=metavar, nargs="*" if many else "?", help=help
        )

    def error(self, message: str):
        """Raises UsageError."""
        raise UsageError(f"{message}; see {self.prog} --help")


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """A kind of flag: whole numbers between two bounds, both allowed.

    >>> whole(1)("4")
    4
    """

    def parse(text: str) -> int:
        value = int(text)
        if value < least or (most is not None and value > most):
            limits = f"at least {least}" if most is None else f"{least} to {most}"
            raise argparse.ArgumentTypeError(f"{text}: expected {limits}")
        return value

    parse.__name__ = "whole number"
    return parse


def number_between(low: float, high: float) -> Callable[[str], float]:
    """A kind of flag: numbers between two bounds, neither allowed.

    >>> number_between(0, 1)("1e-6")
    1e-06
    """

    def parse(text: str) -> float:
        value = float(text)
        if not low < value < high:
            limits = f"more than {low:g}" if math.isinf(high) else f"between {low:g} and {high:g}"
            raise argparse.ArgumentTypeError(f"{text}: expected {limits}")
        return value

    parse.__name__ = "number"
    return parse


seed = whole(0, 2**32 - 1)


def add_generator_flag(parser: Parser, default: str | None, what: str) -> None:
    """`--generator`: `what` says whose."""
    parser.flags.add_argument(
        "--generator",
        metavar="GENERATOR",
        default=default,
        help=f"{what}: a bundled name, a folder, or your own function, FILE.py:FUNCTION or "
        "package.module:FUNCTION, which takes nothing and returns a fpjax.Generator; its file is "
        "executed." + (" Default: %(default)s." if default else ""),
    )


def add_scheme_flags(parser: Parser) -> None:
    """`--scheme` and `--generator`, as all commands that use a scheme have them."""
    parser.flags.add_argument(
        "--scheme",
        metavar="SCHEME",
        default=DEFAULT_GENERATOR,
        help="Folder of a scheme, or the name of a bundled generator. Default: %(default)s.",
    )
    add_generator_flag(parser, None, "Generator of the scheme, where it is not a bundled one")


def add_registry_flag(parser: Parser) -> None:
    """`--registry` and `--secret`."""
    parser.flags.add_argument(
        "--registry",
        metavar="FILE",
        default=DEFAULT_REGISTRY,
        help="File that says who holds which key. Default: %(default)s.",
    )
    parser.flags.add_argument(
        "--secret",
        metavar="FILE",
        help="File of the secret that the registry's keys are derived from, 32 bytes of mode 0600; "
        "without it, keys are in the registry.",
    )


def open_registry(args: argparse.Namespace, scheme_id: str | None = None):
    """The registry that the flags name, of either kind."""
    from fpjax.attribution.derived_registry import open_registry

    return open_registry(args.registry, args.secret, scheme_id=scheme_id)


def add_seed_flag(parser: Parser) -> None:
    """`--seed`."""
    parser.flags.add_argument(
        "--seed",
        metavar="SEED",
        type=seed,
        default=0,
        help="Seed of all draws. Default: %(default)s.",
    )


def add_quiet_flag(parser: Parser) -> None:
    """`--quiet`."""
    parser.flags.add_argument("--quiet", action="store_true", help="Show no progress.")


def open_generator(text: str):
    """The generator that a flag names: bundled, a folder, or a person's own function."""
    from fpjax import zoo
    from fpjax.zoo.load import load_custom, load_generator

    source, separator, _ = text.rpartition(":")
    if text in zoo.names() or not separator or Path(text).exists():
        return load_generator(text)
    if source.endswith(".py"):
        # As for a script: what lies beside the file can be imported.
        sys.path.insert(0, str(Path(source).resolve().parent))
    return load_custom(text)


def open_scheme(args: argparse.Namespace):
    """The scheme that the flags name."""
    from fpjax.fingerprint.scheme import load_scheme

    generator = open_generator(args.generator) if args.generator else None
    return load_scheme(args.scheme, generator)


def use_compilation_cache() -> None:
    """Keeps compiled programs between calls, in the user's cache unless JAX is told where."""
    import jax

    known = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    if known is None:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        if os.path.isabs(base):  # not so where nobody knows the user's home
            jax.config.update("jax_compilation_cache_dir", os.path.join(base, "fpjax", "jax"))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def check_file(flag: str, path: str | os.PathLike) -> None:
    """Refuses, before the work, a file that could not be written after it.

    Raises:
      CommandError: if it is a folder or a device, or its folder cannot be written to.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise CommandError(f"{flag} {path}: not a regular file")
    check_folder(flag, path.parent)


def check_folder(flag: str, path: str | os.PathLike) -> None:
    """Refuses, before the work, a folder in which nothing could be made after it.

    Raises:
      CommandError: if it, or the nearest folder above it that exists, cannot be written to.
    """
    folder = Path(path)
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise CommandError(
            f"{flag} {path}: nothing can be written there ({error.strerror})"
        ) from error


def say(text: object) -> None:
    """One line to people on standard error, with nothing in it that a terminal obeys.

    It never fails: a terminal that is gone must not end what is being saved.
    """
    line = printable(" ".join(str(text).split()))
    with contextlib.suppress(OSError, ValueError):
        print(f"fpjax: {line}", file=sys.stderr, flush=True)


def shown(name: object) -> str:
    """A file's or a user's name as it may stand in a line of answers.

    In quotes where the name itself could be read as an answer.

    >>> print(shown("a.png"), shown("a.png: ada"))
    a.png 'a.png: ada'
    """
    text = printable(name)
    return f"'{text}'" if ": " in text or text != text.strip() else text
