"""The documentation builds without a warning, names every public name, and its examples run."""

import dataclasses
import doctest
import html.parser
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

import fpjax
from fpjax.attacks import ATTACKS

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("generators.md", "inversion.md")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs", reason="the site is built with mkdocs: pip install 'fpjax[docs]'")
    pytest.importorskip("mkdocstrings", reason="the reference needs mkdocstrings: 'fpjax[docs]'")
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out


class _Page(html.parser.HTMLParser):
    """Links and anchors of a page."""

    def __init__(self, text):
        super().__init__()
        self.links, self.anchors = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.anchors.add(value)
            elif (name, tag) in (("href", "a"), ("src", "img")) and value:
                self.links.append(value)


def test_the_table_of_attacks_is_that_of_the_code():
    """Names, defaults, ranges and sources."""
    lines = (ROOT / "docs" / "attacks.md").read_text("utf-8").splitlines()
    rows = {line.split("|")[1].strip(" `"): line for line in lines if line.startswith("| `")}
    assert list(rows) == list(ATTACKS)
    for name, attack in ATTACKS.items():
        assert attack.source in rows[name]
        for field in dataclasses.fields(attack):
            limits = attack.ranges()[field.name]
            if "low" in field.metadata:
                said = "{2}; {0:g} to {1:g}".format(*limits)
            else:
                said = ", ".join(map(str, limits))
            assert f"`{field.name}={field.default}` (" in rows[name] and said in rows[name]


def test_every_link_leads_somewhere(site):
    pages = {path: _Page(path.read_text("utf-8")) for path in site.rglob("*.html")}
    assert len(pages) > 10
    for path, page in pages.items():
        for link in page.links:
            if "://" in link or link.startswith(("mailto:", "/")):
                continue
            target, anchor = urldefrag(unquote(link))
            file = (path.parent / target).resolve() if target else path
            file = file / "index.html" if file.is_dir() else file
            assert file.exists(), f"{path.relative_to(site)}: {link}"
            if anchor and file in pages:
                assert anchor in pages[file].anchors, f"{path.relative_to(site)}: {link}"


def test_the_reference_has_every_public_name(site):
    page = _Page((site / "reference" / "index.html").read_text("utf-8"))
    for name in fpjax.__all__:
        value = getattr(fpjax, name)
        assert f"{value.__module__}.{value.__qualname__}" in page.anchors, name


@pytest.mark.parametrize("page", PAGES)
def test_examples_of_a_page_give_what_it_says(page):
    found = doctest.testfile(
        str(ROOT / "docs" / page), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE
    )
    assert found.attempted > 0 and found.failed == 0
