"""Registries for the tests: made, filled quickly, and looked at from outside."""

import os
import sqlite3
import stat

import numpy as np

from fpjax.attribution.registry import Registry
from fpjax.attribution.registry_file import checksum
from fpjax.attribution.registry_names import look


def create(path, length=64, **options):
    return Registry.create(path, key_length=length, scheme_id="scheme-1", **options)


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


def fill(path, keys):
    """Adds users 0, 1, ... behind the registry's back, faster than one transaction a user."""
    with sqlite3.connect(path) as connection:
        rows = ((f"user-{i}", np.packbits(key).tobytes()) for i, key in enumerate(keys))
        rows = ((user, key, checksum(user, key), look(user)) for user, key in rows)
        connection.executemany(
            "INSERT INTO keys (user, key, checksum, look) VALUES (?, ?, ?, ?)", rows
        )
    connection.close()
