"""Registers users and issues a private key to each, drawn from the system's cryptographic source.

  fpjax user add NAME [NAME ...] [--registry FILE] [--scheme NAME_OR_FOLDER]

The registry is made if it is not there, readable by its owner only. It belongs to one scheme.
"""

from __future__ import annotations

import os

from absl import flags

from fpjax.cli import common


def define_flags() -> None:
    """Flags of the command."""
    common.define_scheme_flags()
    common.define_registry_flag()
    flags.DEFINE_integer(
        "minimum_distance",
        None,
        "Bits in which any two keys of a new registry differ; by default 8, or a quarter of a "
        "short key.",
        0,
    )


def main(arguments: list[str]) -> int:
    """Runs the command."""
    if not arguments:
        raise common.UsageError("name the users to register: fpjax user add NAME [NAME ...]")
    from fpjax.attribution.registry import Registry
    from fpjax.fingerprint.keys import to_hex

    values = flags.FLAGS
    scheme = common.open_scheme()
    if os.path.exists(values.registry):
        registry = Registry.open(values.registry, scheme_id=scheme.id)
    else:
        distance = values.minimum_distance
        if distance is None:
            distance = min(8, scheme.key_length // 4)
        registry = Registry.create(
            values.registry,
            key_length=scheme.key_length,
            scheme_id=scheme.id,
            minimum_distance=distance,
        )
    with registry:
        for user in arguments:
            key = registry.issue(user)
            print(f"{user}  {to_hex(key)}")
    return common.EXIT_OK
