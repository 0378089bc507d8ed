"""Registers users and issues a private key to each.

  fpjax user add NAME [NAME ...] [--registry FILE] [--scheme SCHEME]
  fpjax user add [NAME ...] [--count N] --secret FILE [--registry FILE] [--scheme SCHEME]

The registry is made if it is not there, readable by its owner only. It belongs to one scheme. Keys
are drawn from the system's cryptographic source and kept in the registry; or, with --secret, they
follow from that file's secret, and are kept nowhere. A secret is made with its registry. Users
without a name (--count) are known by number, up to billions of them.
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
        "short key; 0 where a code keeps words apart. Derived keys keep none.",
    )
    parser.flags.add_argument(
        "--count",
        metavar="N",
        type=common.whole(1),
        help="Issue this many derived keys to users without a name, too.",
    )


def main(args: argparse.Namespace) -> int:
    """Runs the command."""
    if not args.names and not args.count:
        raise common.UsageError("name the users to register: fpjax user add NAME [NAME ...]")
    if args.secret is None and args.count:
        raise common.UsageError(
            "--count: only derived keys have users without a name; add --secret"
        )
    if args.secret is not None and args.minimum_distance:
        raise common.UsageError("--minimum_distance: derived keys are independent of one another")
    from fpjax.attribution.derived_registry import DerivedRegistry
    from fpjax.fingerprint.keys import to_hex

    scheme = common.open_scheme(args)
    if os.path.exists(args.registry):
        registry = common.open_registry(args, scheme.id)
    else:
        registry = _created(args, scheme)
    with registry:
        for user in args.names:
            key = registry.issue(user)
            print(f"{common.shown(user)}  {to_hex(key)}", flush=True)
        if args.count and isinstance(registry, DerivedRegistry):
            issued = registry.extend(args.count)
            print(f"users {issued[0]} to {issued[-1]}: {len(registry)} in all", flush=True)
    return common.EXIT_OK


def _created(args: argparse.Namespace, scheme):
    """A new registry, of the kind that the flags say."""
    from fpjax.attribution.derived_registry import DerivedRegistry
    from fpjax.attribution.registry import Registry
    from fpjax.fingerprint.derived import create_secret, read_secret

    options = {"key_length": scheme.key_length, "scheme_id": scheme.id}
    if args.secret is not None:
        if os.path.lexists(args.secret):
            secret = read_secret(args.secret)
        else:
            secret = create_secret(args.secret)
            common.say(f"made the secret {args.secret}: keep it private, and keep a copy")
        return DerivedRegistry.create(args.registry, secret, **options)
    distance = args.minimum_distance
    if distance is None:
        distance = 0 if scheme.code is not None else min(8, scheme.key_length // 4)
    if distance > scheme.key_length:
        raise common.UsageError(
            f"--minimum_distance {distance}: keys of this scheme have {scheme.key_length} bits"
        )
    return Registry.create(args.registry, minimum_distance=distance, **options)
