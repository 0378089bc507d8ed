"""Shows who is registered, and whose key is revoked.

fpjax user list [--registry FILE] [--secret FILE] [--keys]

Of a registry of derived keys, users who have a name, and how many there are.
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
    from fpjax.fingerprint.keys import to_hex

    with common.open_registry(args) as registry:
        users, revoked = registry.users(), registry.revoked()
        numbers = [user for user in revoked if user not in set(users)]
        for user in [*users, *numbers]:
            parts = [common.shown(user)]
            if args.keys:
                parts.append(to_hex(registry.key_of(user, revoked=True)))
            if user in revoked:
                parts.append(f"revoked since {revoked[user]}")
            print("  ".join(parts))
        if args.secret is not None:
            common.say(f"{len(registry)} users, of whom {len(users)} have a name")
    return common.EXIT_OK
