"""Shows who is registered.

fpjax user list [--registry FILE] [--keys]
"""

from __future__ import annotations

import argparse

from fpjax.cli import common


def add_arguments(parser: common.Parser) -> None:
    """Arguments of the command."""
    common.add_registry_flag(parser)
    parser.flags.add_argument(
        "--keys", action="store_true", help="Show the keys too; they are secrets."
    )
    parser.flags.add_argument("--nokeys", dest="keys", action="store_false", help=argparse.SUPPRESS)


def main(args: argparse.Namespace) -> int:
    """Runs the command."""
    from fpjax.attribution.registry import Registry
    from fpjax.fingerprint.keys import to_hex

    with Registry.open(args.registry) as registry:
        users, keys = registry.keys()
    for user, key in zip(users, keys, strict=True):
        print(f"{common.shown(user)}  {to_hex(key)}" if args.keys else common.shown(user))
    return common.EXIT_OK
