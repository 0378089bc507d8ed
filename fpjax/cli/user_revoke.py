"""Revokes keys that leaked: verdicts about them name nobody from then on, and say so.

fpjax user revoke NAME [NAME ...] [--registry FILE] [--secret FILE]

The key stays in the registry, so that a picture with it is recognised; it is never issued again,
and nothing is generated with it any more. Give its holder another name and key: fpjax user add.
"""

from __future__ import annotations

import argparse

from fpjax.cli import common


def add_arguments(parser: common.Parser) -> None:
    """Arguments of the command."""
    parser.add_name("NAME", "A user, or the number of one without a name.", many=True)
    common.add_registry_flag(parser)


def main(args: argparse.Namespace) -> int:
    """Runs the command."""
    if not args.names:
        raise common.UsageError("name the users: fpjax user revoke NAME [NAME ...]")
    with common.open_registry(args) as registry:
        for user in args.names:
            registry.key_of(user, revoked=True)  # nobody is revoked before all names are known
        for user in args.names:
            registry.revoke(user)
            print(f"{common.shown(user)}  revoked since {registry.revoked()[user]}", flush=True)
    return common.EXIT_OK
