"""Progress of long work: one signature, `progress(stage, done, total)`, and one display of it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import IO, Protocol

_REDRAW_SECONDS = 0.1
_LINE_SECONDS = 10.0


class Progress(Protocol):
    """What long work calls to say how far it is."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Says that `done` of `total` are done in a stage."""
        ...


class Display:
    """Shows stages of long work: how many are done, how fast, and how long the rest will take.

    On a terminal that is a bar, redrawn in place; elsewhere, as in a log, a plain line every ten
    seconds. A stream that cannot be written any more is left alone: showing progress never ends
    the work. Use it as a context manager, and call `finish` before anything else is printed.

    Args:
      stream: where it is shown; by default the standard error stream.
      quiet: show nothing.

    >>> with Display(quiet=True) as progress:
    ...     progress("inverting", 1, 2)
    """

    def __init__(self, stream: IO[str] | None = None, *, quiet: bool = False):
        self._stream = sys.stderr if stream is None else stream
        self._silent = quiet
        self._stage: str | None = None
        self._started = self._shown = 0.0
        self._base = self._last = 0
        self._bar = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Shows that `done` of `total` are done in a stage."""
        if self._silent:
            return
        try:
            self._show(stage, done, total)
        except (OSError, ValueError):  # ValueError: the stream was closed
            self._silent, self._bar = True, None

    def stage(self, name: str) -> Callable[[int, int], None]:
        """A stage as the callback (done, total) that functions of the library take."""
        return lambda done, total: self(name, done, total)

    def finish(self) -> None:
        """Takes the bar off the terminal, so that what is printed next has the line to itself."""
        bar, self._bar = self._bar, None
        if bar is not None:
            try:
                bar.stop()
            except (OSError, ValueError):
                self._silent = True

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *exception: object) -> None:
        self.finish()

    def _show(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if new := stage != self._stage:
            self.finish()
            self._stage, self._started, self._shown = stage, now, now
            # Nothing is known about the speed of what was done before the stage was seen.
            self._base = self._last = done
        terminal = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        waited = now - self._shown
        if terminal:
            if new or waited >= _REDRAW_SECONDS or done >= total:
                self._shown = now
                self._draw(done, total, now)
        elif waited >= _LINE_SECONDS and done > self._last:
            self._shown, self._last = now, done
            text = ", ".join(filter(None, (f"{done}/{total}", self._timing(done, total, now))))
            self._stream.write(f"{stage}: {text}\n")
            self._stream.flush()

    def _draw(self, done: int, total: int, now: float) -> None:
        if self._bar is None:
            self._bar = _bar(self._stream, self._stage or "", total)
        self._bar.update(
            self._bar.task_ids[0],
            completed=done,
            total=total,
            timing=self._timing(done, total, now),
            refresh=True,
        )

    def _timing(self, done: int, total: int, now: float) -> str:
        fresh, elapsed = done - self._base, now - self._started
        if fresh <= 0 or elapsed <= 0:
            return ""
        rate = fresh / elapsed
        speed = f"{rate:.1f}/s" if rate >= 1 else f"{1 / rate:.1f} s each"
        return f"{speed}, {duration((total - done) / rate)} left" if done < total else speed


def _bar(stream: IO[str], stage: str, total: int):
    """A started bar of rich, without a thread of its own."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    class Lasting(Console):
        """By default rich ends the process, and takes its standard output with it."""

        def on_broken_pipe(self) -> None:
            raise  # the BrokenPipeError that is being handled

    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[timing]}", markup=False),
        console=Lasting(file=stream),
        auto_refresh=False,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    bar.add_task(stage, total=total, timing="")
    bar.start()
    bar.console.show_cursor(True)  # a process that is killed could not bring it back
    return bar


def duration(seconds: float) -> str:
    """A duration for people, to two units.

    >>> duration(8.2), duration(75), duration(3 * 3600 + 120)
    ('8 s', '1 min 15 s', '3 h 02 min')
    """
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
