"""The answers that the documentation quotes are those that the program gives."""

import ast
import re
from pathlib import Path

import pytest

import checkpoints_convert
from checkpoints_convert.command import parser

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/convert/layouts.md").read_text("utf-8")
REFUSED = re.findall(r"^\| [^|]+ \| `(.+)` \|$", PAGE.split("## Refused")[1], re.MULTILINE)


def patterns():
    """Every text of the package, with anything where a value is put in."""
    for file in Path(checkpoints_convert.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(
                    re.escape(part.value) if isinstance(part, ast.Constant) else ".*"
                    for part in node.values
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield re.escape(node.value)


def test_the_table_is_there():
    assert len(REFUSED) > 30


@pytest.mark.parametrize("answer", REFUSED)
def test_an_answer_is_one_that_the_program_can_give(answer):
    telling = [p for p in patterns() if len(p.replace(".*", "")) > 25]
    assert any(re.fullmatch(pattern, answer) for pattern in telling)


def test_every_flag_is_documented():
    page = (ROOT / "docs/convert/README.md").read_text("utf-8")
    flags = [flag for action in parser()._actions for flag in action.option_strings]
    assert [flag for flag in flags if flag not in ("-h", "--help") and f"{flag}" not in page] == []
