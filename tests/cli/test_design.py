"""`fpjax design`, as a person uses it."""

import json

import pytest

from fpjax.cli.main import run

OWN = "--generator=tests/cli/own_generator.py:make"
SMALL = (
    OWN,
    "--key_length=4,2",
    "--strength=0.4,0.2",
    "--noise=0,0.3",
    "--num_samples=200",
    "--num_jacobians=2",
    "--num_latents=2",
    "--num_pictures=4",
    "--quiet",
)


def test_a_study_is_printed_kept_and_resumed(tmp_path, capsys, request):
    out = f"--out={tmp_path / 'study'}"
    small = [flag.replace("tests/", f"{request.config.rootpath}/tests/") for flag in SMALL]
    assert run(["design", *small, "--basis=latent", "--no_page", out]) == 0
    printed = capsys.readouterr().out
    assert printed.count("\nlatent ") == 2 * 2 * 2 + 4 * 2  # and shifts 0, 1, 3, 4
    assert "all bits of 0.999 of the pictures right" in printed
    assert "  4 bits, noise 0.3: none of these designs" in printed
    result = json.loads((tmp_path / "study" / "design.json").read_text())
    assert result["complete"] and result["settings"]["bases"] == ["latent"]
    assert not (tmp_path / "study" / "index.html").exists()

    assert run(["design", *small, "--basis=latent", "--no_page", out]) == 1
    assert "--resume" in capsys.readouterr().err
    again = [*small, "--basis=latent", "--resume", "--goal_exact=0.2", "--shift=last,0", out]
    again.append("--code=repetition-2-2")
    pytest.importorskip("matplotlib")
    assert run(["design", *again]) == 0
    printed = capsys.readouterr().out
    assert "page: " in printed and (tmp_path / "study" / "index.html").exists()
    assert (tmp_path / "study" / "payload-quality-4.png").exists()
    assert printed.count("bits  repetition-2-2") == 2 * 2
    assert "\n  2 bits as repetition-2-2, noise 0.3: " in printed
    resumed = json.loads((tmp_path / "study" / "design.json").read_text())
    plain = [row for row in resumed["rows"] if row["design"]["code"] == "independent"]
    assert "4 bits, all of these: " in printed
    assert plain and all(row in result["rows"] for row in plain)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "--out"),
        (["--out=x", "--psnr=40", "--strength=1"], 2, "one of the two"),
        (["--out=x", "--psnr=high"], 2, "psnr"),
        (["--out=x", "--noise=3"], 2, "noise"),
        (["--out=x", "--basis=pca"], 2, "basis"),
        (["--out=x", "--attack=smear"], 2, "unknown attack 'smear'"),
        (["--out=x", "--attack=rotate"], 2, "no observation describes it"),
        (["--out=x", "--code=bch-64-60"], 2, "no BCH code"),
        (["--out=x", "--lpips", *SMALL], 1, "at least 16 a side"),
    ],
)
def test_a_wrong_call_is_one_line(arguments, code, message, capsys, tmp_path, monkeypatch, request):
    root = request.config.rootpath
    monkeypatch.chdir(tmp_path)
    arguments = [word.replace("=tests/", f"={root}/tests/") for word in arguments]
    assert run(["design", *arguments]) == code
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "x").exists()
