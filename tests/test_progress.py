"""Progress: a bar on a terminal, plain lines elsewhere, and never the end of the work."""

import io

import pytest

from fpjax import progress
from fpjax.progress import Display


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when the test says so."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    return wait


def test_a_log_gets_plain_lines_ten_seconds_apart(clock):
    stream = io.StringIO()
    with Display(stream) as display:
        display("inverting", 0, 1000)
        for done in range(1, 30):
            clock(1)
            display("inverting", 2 * done, 1000)
    assert stream.getvalue().splitlines() == [
        "inverting: 20/1000, 2.0/s, 8 min 10 s left",
        "inverting: 40/1000, 2.0/s, 8 min 00 s left",
    ]


def test_slow_work_is_given_in_seconds_each(clock):
    stream = io.StringIO()
    display = Display(stream)
    display("inverting", 0, 10)
    clock(25)
    display("inverting", 2, 10)
    assert stream.getvalue() == "inverting: 2/10, 12.5 s each, 1 min 40 s left\n"


def test_the_speed_is_of_what_was_done_while_it_was_watched(clock):
    """A run that goes on at 900 of 1000 has not done 900 in its first seconds."""
    stream = io.StringIO()
    display = Display(stream)
    display("inverting", 900, 1000)
    clock(10)
    display("inverting", 910, 1000)
    assert "1.0/s, 1 min 30 s left" in stream.getvalue()


def test_a_terminal_gets_a_bar_that_leaves_no_trace(clock):
    stream = Terminal()
    with Display(stream) as display:
        display("inverting [of 2]", 0, 2)
        clock(3)
        display("inverting [of 2]", 1, 2)
    shown = stream.getvalue()
    assert "inverting [of 2]" in shown and "1/2" in shown and "3 s left" in shown
    assert "\x1b[2K" in shown[shown.rindex("3 s left") :]  # the line is cleared
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")  # the cursor is back


def test_a_dumb_terminal_gets_plain_lines(clock, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    display = Display(stream)
    display("inverting", 0, 2)
    clock(11)
    display("inverting", 1, 2)
    assert stream.getvalue() == "inverting: 1/2, 11.0 s each, 11 s left\n"


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_quiet_shows_nothing(clock, kind):
    stream = kind()
    with Display(stream, quiet=True) as display:
        for done in range(3):
            display("inverting", done, 3)
            clock(20)
    assert stream.getvalue() == ""


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_a_stream_that_is_gone_does_not_end_the_work(clock, kind):
    stream = kind()

    def write(text):
        raise BrokenPipeError

    with Display(stream) as display:
        display("inverting", 0, 3)
        stream.write = write
        clock(20)
        display("inverting", 1, 3)
        display("inverting", 2, 3)


def test_a_stage_is_the_callback_that_the_library_takes(clock):
    stream = io.StringIO()
    callback = Display(stream).stage("fitting")
    callback(0, 4)
    clock(10)
    callback(1, 4)
    assert stream.getvalue() == "fitting: 1/4, 10.0 s each, 30 s left\n"
