"""The command `fpjax`: finds the subcommand, parses its flags, and turns errors into one line."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator

from absl import flags

import fpjax
from fpjax.cli import (
    attribute,
    basis,
    capacity,
    demo,
    design,
    generate,
    model_issue,
    robustness,
    scheme_create,
    user_add,
    user_list,
    user_revoke,
)
from fpjax.cli.common import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_USAGE,
    Parser,
    Stopped,
    UsageError,
    say,
)
from fpjax.errors import FpjaxError

COMMANDS = {
    "demo": (demo, "fingerprint, save, read back and attribute 64 pictures"),
    "scheme create": (scheme_create, "make and calibrate a scheme for a generator"),
    "user add": (user_add, "register users and issue their keys"),
    "user list": (user_list, "show who is registered"),
    "user revoke": (user_revoke, "mark keys that leaked"),
    "generate": (generate, "make images that carry a user's key"),
    "model issue": (model_issue, "write a copy of the generator that carries a user's key"),
    "attribute": (attribute, "say who made each image file"),
    "basis": (basis, "show directions of a generator's latents"),
    "design": (design, "predict what directions, strength and key length give"),
    "robustness": (robustness, "attack pictures, and say how many makers are still found"),
    "capacity": (capacity, "measure and predict how many users a scheme tells apart"),
}
_SIGNALS = ("SIGTERM", "SIGHUP")


def build_parser() -> Parser:
    """The parser of all commands."""
    root = Parser(prog="fpjax", description=_overview("fpjax COMMAND", COMMANDS))
    root.flags.add_argument(
        "--version",
        action="version",
        version=f"fpjax {fpjax.__version__}",
        help="Show the version.",
    )
    commands = {"": _subcommands(root, "COMMAND")}
    for name, (module, _) in COMMANDS.items():
        group, _, last = name.rpartition(" ")
        if group not in commands:
            members = [member for member in COMMANDS if member.startswith(f"{group} ")]
            overview = _overview(f"fpjax {group} COMMAND", members)
            parser = commands[""].add_parser(group, description=overview)
            commands[group] = _subcommands(parser, " or ".join(members))
        parser = commands[group].add_parser(last, description=(module.__doc__ or "").strip())
        parser.set_defaults(module=module, prog=parser.prog)
        module.add_arguments(parser)
    return root


def _overview(usage: str, names: Iterable[str]) -> str:
    lines = [f"  {name:15s} {COMMANDS[name][1]}" for name in names]
    return (
        f"Usage: {usage} [ARGUMENTS] [--FLAG=VALUE ...]\n\nCommands:\n\n"
        + "\n".join(lines)
        + "\n\nfpjax COMMAND --help says more of each."
    )


def _subcommands(parser: Parser, metavar: str):
    # They are listed in the description, by their full names.
    return parser.add_subparsers(
        prog=parser.prog, metavar=metavar, required=True, help=argparse.SUPPRESS
    )


def _parse(arguments: list[str]):
    """The arguments of a command, with its module."""
    try:
        args, rest = build_parser().parse_known_args(arguments)
    except flags.Error as error:  # of a flag that another library defines, or --flagfile
        raise UsageError(str(error)) from error
    names = getattr(args, "names", None)
    if names is not None and not any(word.startswith("-") for word in rest):
        # argparse takes one run of names; those behind a flag are left over.
        names.extend(rest)
    elif rest:
        raise UsageError(f"unknown arguments: {' '.join(rest)}; see {args.prog} --help")
    return args


def run(arguments: list[str]) -> int:
    """Runs one command line (without the program's name) and returns its exit code."""
    for stream in (sys.stdout, sys.stderr):
        # Names of files may hold what the terminal cannot show.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        if not arguments or arguments[0] == "help":
            build_parser().print_help()
            return EXIT_OK if arguments else EXIT_USAGE
        try:
            args = _parse(arguments)
        except SystemExit as help_was_shown:
            return int(help_was_shown.code or EXIT_OK)
        with _signals_as_exceptions():
            code = args.module.main(args)
            sys.stdout.flush()
            return code
    except UsageError as error:
        say(error)
        return EXIT_USAGE
    except KeyboardInterrupt:
        say("interrupted")
        return EXIT_INTERRUPTED
    except Stopped as stop:
        say(f"stopped by {signal.Signals(stop.signal_number).name}")
        return 128 + stop.signal_number
    except BrokenPipeError:
        return EXIT_FAILED  # the reader of a pipe is gone, as with `| head`
    except (FpjaxError, OSError) as error:
        say(error)
        return EXIT_FAILED
    finally:
        _leave_stdout()


@contextlib.contextmanager
def _signals_as_exceptions() -> Iterator[None]:
    """Lets signals that ask the process to end run what an exception would."""

    def stop(number, frame):
        raise Stopped(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in _SIGNALS:
            number = getattr(signal, name, None)
            # A signal that is ignored, as by nohup, stays so.
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave_stdout() -> None:
    """Gives up what cannot be written, so that the interpreter does not try again at its end."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
