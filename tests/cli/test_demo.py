"""The demo, made small: every figure is there, and the pictures and the page are on disk."""

import json

import numpy as np
import pytest

from fpjax import zoo
from fpjax.attribution.decision import Reason, Verdict
from fpjax.cli import common, demo
from fpjax.cli.demo_page import Row, write_page
from fpjax.cli.main import run
from fpjax.io.images import load_image


@pytest.mark.slow
def test_the_demo_names_users_and_turns_the_others_away(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "USERS", ("ada", "blaise"))
    monkeypatch.setattr(demo, "IMAGES_PER_USER", 1)
    monkeypatch.setattr(demo, "NUM_WITHOUT_KEY", 1)
    foreign = zoo.foreign_image_paths("avatars-stylegan2")[:1]
    monkeypatch.setattr(zoo, "foreign_image_paths", lambda name: foreign)
    out = tmp_path / "demo"
    assert run(["demo", f"--out={out}", f"--json={tmp_path / 'figures.json'}"]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (figures["num_images"], figures["num_without_key"]) == (2, 2)
    assert (figures["correct_users"], figures["false_attributions"]) == (2, 0)
    assert {"exact_keys", "bit_accuracy", "seconds", "psnr_db"} <= set(figures)
    assert "2 of 2 users right" in capsys.readouterr().out
    page = (out / "index.html").read_text()
    # Original, fingerprinted and difference of each user; one picture of each of the others.
    assert page.count("<img") == 2 * 3 + 2
    original = load_image(out / "originals" / "ada-0.png")
    assert not np.array_equal(original, load_image(out / "images" / "ada-0.png"))


def test_the_page_shows_names_as_text(tmp_path):
    """Whatever a user is called, the page of the owner runs none of it."""
    name = "<script>alert('x')</script>"
    verdict = Verdict(name, Reason.ATTRIBUTED, 64, 64, 1e-18, 0.9, True, name)
    image = np.zeros((4, 4, 3), np.uint8)
    rows = [Row(tmp_path / "a.png", name, image, image=image, verdict=verdict)]
    rows.append(Row(tmp_path / "b.png", None, None, name, image, verdict))
    figures = dict.fromkeys(
        ("correct_users", "num_images", "exact_keys", "false_attributions", "num_without_key"), 1
    )
    figures |= {"psnr_db": 40.0, "seconds": 1.0, "readers": ["levenberg-marquardt"]}
    write_page(tmp_path / "index.html", rows, figures)
    page = (tmp_path / "index.html").read_text("utf-8")
    assert "<script" not in page and page.count("&lt;script&gt;") == 4 + 1  # the alt text too
    assert page.count('class="right"') == 1 and page.count('class="wrong"') == 1
    assert "64/64" in page and "1.0e-18" in page and "40.0 dB" in page


def test_the_demo_does_not_replace_a_folder_of_other_things(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("chapter 1")
    assert run(["demo", f"--out={tmp_path}"]) == 1
    assert "other things" in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize("flag", ["--out={}/file/demo", "--json={}/file/figures.json"])
def test_what_could_not_be_written_fails_at_the_start(tmp_path, flag, monkeypatch, capsys):
    monkeypatch.setattr(common, "use_compilation_cache", lambda: pytest.fail("work has begun"))
    (tmp_path / "file").touch()
    flags = [f"--out={tmp_path / 'demo'}", flag.format(tmp_path)]
    assert run(["demo", *flags]) == 1
    assert "nothing can be written there" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()
