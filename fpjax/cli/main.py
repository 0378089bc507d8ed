"""The command `fpjax`: finds the subcommand, parses its flags, and turns errors into one line."""

from __future__ import annotations

import importlib
import os
import sys
import textwrap

from absl import flags

import fpjax
from fpjax.cli.common import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_USAGE,
    CommandError,
    UsageError,
)

COMMANDS = {
    "demo": ("demo", "fingerprint, save, read back and attribute 64 pictures"),
    "scheme create": ("scheme_create", "make and calibrate a scheme for a generator"),
    "user add": ("user_add", "register users and issue their keys"),
    "user list": ("user_list", "show who is registered"),
    "generate": ("generate", "make images that carry a user's key"),
    "attribute": ("attribute", "say who made each image file"),
    "basis": ("basis", "show the principal directions of a generator's latents"),
}


def _usage() -> str:
    lines = ["Usage: fpjax COMMAND [ARGUMENTS] [--FLAG=VALUE ...]", "", "Commands:"]
    lines += [f"  {name:15s} {what}" for name, (_, what) in COMMANDS.items()]
    lines += ["", "fpjax COMMAND --help says more of each; fpjax --version prints the version."]
    return "\n".join(lines)


def _help(module, names: list[str]) -> str:
    lines = [module.__doc__.strip(), "", "Flags:"]
    for name in names:
        flag = flags.FLAGS[name]
        default = (
            f" [default: {flag.default}]"
            if flag.default is not None and flag.default is not False
            else ""
        )
        lines.append(f"  --{name}")
        lines += textwrap.wrap(
            flag.help + default, 80, initial_indent=" " * 8, subsequent_indent=" " * 8
        )
    return "\n".join(lines)


def _find(arguments: list[str]) -> tuple[str, list[str]]:
    for words in (2, 1):
        name = " ".join(arguments[:words])
        if name in COMMANDS:
            return name, arguments[words:]
    group = [name for name in COMMANDS if name.split()[0] == arguments[0]]
    if group:
        raise UsageError(f"{arguments[0]} what? choose {' or '.join(group)}")
    raise UsageError(f"no command {arguments[0]!r}; choose one of {', '.join(COMMANDS)}")


def run(arguments: list[str]) -> int:
    """Runs one command line (without the program's name) and returns its exit code."""
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(_usage())
        return EXIT_OK if arguments else EXIT_USAGE
    if arguments[0] == "--version":
        print(f"fpjax {fpjax.__version__}")
        return EXIT_OK
    try:
        name, rest = _find(arguments)
        module = importlib.import_module(f"fpjax.cli.{COMMANDS[name][0]}")
        return _run_module(name, module, rest)
    except UsageError as error:
        return _fail(error, EXIT_USAGE)
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The reader of a pipe is gone; there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except _expected_errors() as error:
        return _fail(error, EXIT_FAILED)


def _run_module(name: str, module, rest: list[str]) -> int:
    before = set(flags.FLAGS)
    module.define_flags()
    own = [flag for flag in flags.FLAGS if flag not in before]
    try:
        if "--help" in rest or "-h" in rest:
            print(_help(module, own))
            return EXIT_OK
        try:
            positional = flags.FLAGS([f"fpjax {name}", *rest])[1:]
        except flags.Error as error:
            raise UsageError(f"{error}; see fpjax {name} --help") from error
        return module.main(positional)
    finally:
        # Another command of the same process, as in a test, brings flags of the same names.
        for flag in own:
            delattr(flags.FLAGS, flag)
        flags.FLAGS.unparse_flags()


def _expected_errors() -> tuple[type[Exception], ...]:
    from fpjax.attribution.registry import RegistryError

    # ValueError is the base of all errors of misuse in the library.
    return CommandError, RegistryError, ValueError, OSError, ModuleNotFoundError


def _fail(error, code: int) -> int:
    message = " ".join(str(error).split())
    print(f"fpjax: {message}", file=sys.stderr)
    return code


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
