"""What the subcommands share: errors on one line, progress, and where things are by default."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from absl import flags

from fpjax.data.atomic import atomic_write

DEFAULT_GENERATOR = "avatars-stylegan2"
DEFAULT_REGISTRY = "fpjax-users.db"

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


class CommandError(Exception):
    """Something the user can mend; printed on one line, exit code 1."""


class UsageError(Exception):
    """A call that is not as `--help` says; printed on one line, exit code 2."""


def define_scheme_flags() -> None:
    """`--scheme` and `--generator`, as all commands that use a scheme have them."""
    flags.DEFINE_string(
        "scheme", DEFAULT_GENERATOR, "Folder of a scheme, or the name of a bundled generator."
    )
    flags.DEFINE_string(
        "generator", None, "Folder of the scheme's generator, where it is not a bundled one."
    )


def define_registry_flag() -> None:
    """`--registry`."""
    flags.DEFINE_string("registry", DEFAULT_REGISTRY, "File that says who holds which key.")


def open_scheme():
    """The scheme that the flags name."""
    from fpjax.fingerprint.scheme import load_scheme
    from fpjax.models.generator import load_generator

    values = flags.FLAGS
    generator = load_generator(values.generator) if values.generator else None
    return load_scheme(values.scheme, generator)


def use_compilation_cache() -> None:
    """Keeps compiled programs between calls, in the user's cache unless JAX is told where."""
    import jax

    if jax.config.jax_compilation_cache_dir is None:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(Path(base) / "fpjax" / "jax"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def write_json(path: str, value) -> None:
    """Writes JSON so that the file appears whole; "-" means standard output."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    if path == "-":
        sys.stdout.write(text)
        return
    with atomic_write(path, "w") as file:
        file.write(text)


class Progress:
    """A line that says what is being done, how far it is, and how long it will take.

    On a terminal the line is redrawn; elsewhere a plain line is written every ten seconds.
    """

    def __init__(self, stream=None):
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._stage, self._started, self._shown, self._done = "", 0.0, 0.0, 0
        self._base = 0
        self._open = False

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Shows that `done` of `total` are done in a stage."""
        now = time.monotonic()
        if stage != self._stage:
            self.finish()
            self._stage, self._started, self._shown, self._done = stage, now, now, 0
            self._base = done
        interval = 0.1 if self._terminal else 10.0
        if now - self._shown < interval and (done < total or not self._terminal):
            return
        if not self._terminal and done == self._done:
            return
        self._shown, self._done = now, done
        elapsed = max(now - self._started, 1e-9)
        text = f"{stage}: {done}/{total}"
        if self._base < done < total:
            rate = (done - self._base) / elapsed
            text += f", {rate:.1f}/s, {(total - done) / rate:.0f} s left"
        if self._terminal:
            self._stream.write(f"\r\x1b[2K{text}")
            self._open = True
        else:
            self._stream.write(text + "\n")
        self._stream.flush()

    def finish(self) -> None:
        """Ends the line, so that what is printed next has one of its own."""
        if self._open:
            self._stream.write("\r\x1b[2K")
            self._stream.flush()
            self._open = False
