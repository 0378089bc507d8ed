"""The demo, made small: every figure is there, and the pictures and the page are on disk."""

import json

import numpy as np

from fpjax import zoo
from fpjax.cli import demo
from fpjax.cli.main import run
from fpjax.data.files import load_image


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
