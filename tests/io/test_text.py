"""What a stranger's file name may not do to a line of a report."""

import pytest

from fpjax.io.text import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb.png: attributed to eve", "a\\nb.png: attributed to eve"),
        ("\r\t\x00\x7f\x85", "\\r\\t\\x00\\x7f\\x85"),
        ("\x1b[31mred\x9b0m", "\\x1b[31mred\\x9b0m"),
        ("gnp.\u202egpj", "gnp.\\u202egpj"),
        ("\u200e\u200f\u061c\u2066\u2069", "\\u200e\\u200f\\u061c\\u2066\\u2069"),
        ("\u2028\u2029", "\\u2028\\u2029"),
        ("a\u200bb\ufeff", "a\\u200bb\\ufeff"),
        ("\udcff\ud800", "\\udcff\\ud800"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_what_could_mislead_is_escaped(text, shown):
    assert printable(text) == shown
    assert printable(text).isprintable()


@pytest.mark.parametrize("text", ["", "a b.png", "Zoë 李小龍.png", "👩.png", "C:\\x", 'it\'s "q"'])
def test_ordinary_text_stays_as_it_is(text):
    assert printable(text) == text


def test_paths_are_taken_as_their_text(tmp_path):
    assert printable(tmp_path / "a\nb").endswith("a\\nb")
