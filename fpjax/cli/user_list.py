"""Shows who is registered.

fpjax user list [--registry FILE] [--keys]
"""

from __future__ import annotations

from absl import flags

from fpjax.cli import common


def define_flags() -> None:
    """Flags of the command."""
    common.define_registry_flag()
    flags.DEFINE_boolean("keys", False, "Show the keys too; they are secrets.")


def main(arguments: list[str]) -> int:
    """Runs the command."""
    if arguments:
        raise common.UsageError(f"user list takes flags only, not {arguments[0]!r}")
    from fpjax.attribution.registry import Registry
    from fpjax.fingerprint.keys import to_hex

    with Registry.open(flags.FLAGS.registry) as registry:
        users, keys = registry.keys()
    for user, key in zip(users, keys, strict=True):
        print(f"{user}  {to_hex(key)}" if flags.FLAGS.keys else user)
    return common.EXIT_OK
