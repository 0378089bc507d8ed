"""`fpjax scheme create`: a scheme of any generator; what was fitted outlives an early end."""

import dataclasses
import json
import os
import signal

import numpy as np
import pytest

from fpjax.attribution import calibration
from fpjax.cli import common
from fpjax.cli.main import run
from fpjax.cli.scheme_create import _say_quality
from fpjax.fingerprint.scheme import load_scheme
from fpjax.studies import quality
from tests.cli.conftest import CREATE, GENERATOR, opened


def stop_at_calibration(*flags):
    """Runs the command until a signal ends it, when the directions are fitted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            calibration, "calibrate", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM)
        )
        assert run([*CREATE, *flags]) == 128 + signal.SIGTERM


@pytest.fixture
def stopped(tmp_path, capsys):
    """A run that ended early; returns its command line."""
    out = f"--out={tmp_path / 'scheme'}"
    stop_at_calibration(out)
    assert "--resume goes on" in capsys.readouterr().err
    assert not (tmp_path / "scheme").exists()
    return [*CREATE, out]


def test_a_scheme_has_the_directions_that_flags_ask_for(workplace):
    """What attribution needs is in it; the other tests of the command line use it."""
    scheme = opened(workplace.folder / "scheme")
    assert (scheme.key_length, scheme.shift, scheme.strength) == (8, 2, 1.5)
    assert (scheme.basis.metric, scheme.levels) == ("image", "antipodal")
    assert scheme.calibration.num_inverted_images == 4
    assert not (workplace.folder / "scheme.unfinished").exists()


def test_the_published_directions_are_a_flag_away(tmp_path):
    published = ["--metric=latent", "--levels=binary", "--strength=2", "--shift=0"]
    stop_at_calibration(*published, f"--out={tmp_path / 'published'}")
    scheme = opened(tmp_path / "published.unfinished" / "scheme")
    assert (scheme.basis.metric, scheme.levels, scheme.shift) == ("latent", "binary", 0)


@pytest.mark.parametrize("unknown", [(), ("num_probes",)])
def test_resume_goes_on_with_the_directions_that_were_fitted(
    stopped, workplace, tmp_path, monkeypatch, unknown
):
    """Also of a run that was begun before there were some of the flags."""
    monkeypatch.setattr(
        "fpjax.fingerprint.fit.fit_basis", lambda *_, **__: pytest.fail("fitted again")
    )
    flags = tmp_path / "scheme.unfinished" / "flags.json"
    begun = json.loads(flags.read_text())
    flags.write_text(json.dumps({k: v for k, v in begun.items() if k not in unknown}))
    assert run([*stopped, "--resume"]) == 0
    whole, resumed = opened(workplace.folder / "scheme"), opened(tmp_path / "scheme")
    assert resumed.id == whole.id
    np.testing.assert_array_equal(resumed.calibration.start.weight, whole.calibration.start.weight)
    assert [path.name for path in tmp_path.iterdir()] == ["scheme"]


def test_an_unfinished_scheme_is_not_mixed_with_other_flags(stopped, capsys):
    assert run(stopped) == 1
    assert "go on with --resume" in capsys.readouterr().err
    assert run([*stopped, "--resume", "--seed=1"]) == 1
    assert "begun with --seed 0, not 1" in capsys.readouterr().err


def test_a_folder_that_exists_is_a_wrong_call(workplace, capsys):
    assert run([*CREATE, f"--out={workplace.folder / 'scheme'}"]) == 2
    assert "exists already" in capsys.readouterr().err


def test_an_unwritable_folder_fails_at_the_start(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(common, "open_generator", lambda text: pytest.fail("the work has begun"))
    (tmp_path / "file").touch()
    assert run([*CREATE, f"--out={tmp_path / 'file' / 'scheme'}"]) == 1
    assert "nothing can be written there" in capsys.readouterr().err


def test_noise_maps_are_a_matter_of_stylegan2(tmp_path, tiny_generator, capsys):
    assert run([*CREATE, "--noise=none", f"--out={tmp_path / 'own'}"]) == 1
    assert "own has no noise maps" in capsys.readouterr().err
    tiny_generator.save(tmp_path / "tiny")
    flags = [f"--generator={tmp_path / 'tiny'}", "--noise=none", "--metric=latent"]
    stop_at_calibration(*flags, f"--out={tmp_path / 'scheme'}")
    scheme = load_scheme(tmp_path / "scheme.unfinished" / "scheme", tiny_generator)
    assert scheme.generator.noise == "none"


def test_directions_that_no_file_shows_are_left_out_unless_asked_for(tmp_path):
    """The generator moves its image by a thousandth of a grey level along half of its latents."""
    source = (tmp_path / "half.py").resolve()
    source.write_text(
        "from tests.cli.own_generator import make as own\n"
        "def make():\n"
        "    generator = own()\n"
        "    return generator.replace(params=generator.params.at[5:].multiply(1e-5))\n"
    )
    flags = [f"--generator={source}:make", "--key_length=2", "--shift=0"]
    counts = {}
    for keep in ("--keep_all", "--quiet"):
        out = tmp_path / keep[2:]
        stop_at_calibration(*flags, keep, f"--out={out}")
        generator = common.open_generator(f"{source}:make")
        counts[keep] = len(load_scheme(f"{out}.unfinished/scheme", generator).basis)
    assert counts == {"--keep_all": 10, "--quiet": 5}


def test_an_encoder_reads_clean_files_where_a_scheme_was_calibrated_for_it(tmp_path, capsys):
    encoder = f"{GENERATOR}_with_encoder"
    flags = [encoder, f"--scheme={tmp_path / 'scheme'}", f"--registry={tmp_path / 'users.db'}"]
    create = [encoder if flag == GENERATOR else flag for flag in CREATE]
    create += ["--encoder_only", "--num_read_images=64", f"--out={tmp_path / 'scheme'}"]
    assert run(create) == 0
    assert "times the encoder's usual error" in capsys.readouterr().out
    assert run(["user", "add", "ada", *flags]) == 0
    assert run(["generate", "ada", "--num=1", f"--out={tmp_path / 'ada'}", *flags]) == 0
    (image,) = map(str, (tmp_path / "ada").glob("*.png"))
    capsys.readouterr()
    read = ["attribute", image, "--false_positive_rate=0.05", *flags]
    for reader, name in (("", "encoder"), ("inversion", "levenberg-marquardt")):
        out = tmp_path / f"{name}.json"
        options = [f"--json={out}", *([f"--reader={reader}"] if reader else [])]
        assert run([*read, *options]) == 0
        assert ": ada (" in capsys.readouterr().out
        assert json.loads(out.read_text())["solver"] == name
    assert run([*read, "--reader=encoder", "--noise=0.1"]) == 2
    assert "measured on clean files" in capsys.readouterr().err


def test_an_encoder_that_cannot_be_measured_is_refused_at_the_start(tmp_path, capsys):
    out = f"--out={tmp_path / 'scheme'}"
    assert run([*CREATE, "--encoder_only", out]) == 1
    assert "own has no encoder" in capsys.readouterr().err
    create = [f"{GENERATOR}_with_encoder" if flag == GENERATOR else flag for flag in CREATE]
    assert run([*create, "--encoder_only", "--num_read_images=30", out]) == 2
    assert "8 symbols take at least 32" in capsys.readouterr().err
    assert not (tmp_path / "scheme.unfinished").exists()


@pytest.mark.parametrize(
    ("strength", "decibels", "remarked"),
    [(0.5, 60.0, False), (0.5, 5.0, True), (1e-4, 46.0, False), (1e-4, 44.0, True)],
)
def test_what_keys_cost_a_picture_is_measured(
    tiny_scheme, monkeypatch, capsys, strength, decibels, remarked
):
    """Near the rounding a weak key's pictures are as good as files can be."""
    monkeypatch.setattr(quality, "psnr_db", lambda a, b: np.full(len(a), decibels))
    image = dataclasses.replace(tiny_scheme.basis, metric="image")
    _say_quality(tiny_scheme.replace(basis=image, strength=np.float32(strength)), 0)
    said = capsys.readouterr()
    assert f"{decibels:.1f} dB on average" in said.out
    assert ("the strength by itself" in said.err) == remarked
    _say_quality(tiny_scheme.replace(basis=dataclasses.replace(image, metric="latent")), 0)
    assert "by itself" not in capsys.readouterr().err
