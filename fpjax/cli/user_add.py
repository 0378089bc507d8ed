"""Registers users and issues a private key to each, drawn from the system's cryptographic source.

  fpjax user add NAME [NAME ...] [--registry FILE] [--scheme SCHEME]

The registry is made if it is not there, readable by its owner only. It belongs to one scheme.
"""

from __future__ import annotations

import argparse
import os

from fpjax.cli import common


def add_arguments(parser: common.Parser) -> None:
    """Arguments of the command."""
    parser.add_name("NAME", "A user to register.", many=True)
    common.add_scheme_flags(parser)
    common.add_registry_flag(parser)
    parser.flags.add_argument(
        "--minimum_distance",
        metavar="BITS",
        type=common.whole(0),
        help="Bits in which any two keys of a new registry differ; by default 8, or a quarter of a "
        "short key.",
    )


def main(args: argparse.Namespace) -> int:
    """Runs the command."""
    if not args.names:
        raise common.UsageError("name the users to register: fpjax user add NAME [NAME ...]")
    from fpjax.attribution.registry import Registry
    from fpjax.fingerprint.keys import to_hex

    scheme = common.open_scheme(args)
    if os.path.exists(args.registry):
        registry = Registry.open(args.registry, scheme_id=scheme.id)
    else:
        distance = args.minimum_distance
        if distance is None:
            distance = min(8, scheme.key_length // 4)
        if distance > scheme.key_length:
            raise common.UsageError(
                f"--minimum_distance {distance}: keys of this scheme have {scheme.key_length} bits"
            )
        registry = Registry.create(
            args.registry,
            key_length=scheme.key_length,
            scheme_id=scheme.id,
            minimum_distance=distance,
        )
    with registry:
        for user in args.names:
            key = registry.issue(user)
            print(f"{common.shown(user)}  {to_hex(key)}", flush=True)
    return common.EXIT_OK
