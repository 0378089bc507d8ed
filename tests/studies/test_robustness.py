"""Robustness studies: attacked, written as files, read back, interrupted and resumed."""

import importlib.util
import json
import shutil

import jax
import numpy as np
import pytest

import fpjax
from fpjax.errors import InputError
from fpjax.fingerprint.calibration import Calibration, LinearStart
from fpjax.fingerprint.codes import Repetition
from fpjax.inversion.observation import Gaussian
from fpjax.io.images import load_image, to_uint8
from fpjax.studies import robustness_run
from fpjax.studies.robustness import (
    FileInformation,
    information_of_file,
    predicted,
    summary,
    wilson_interval,
)
from fpjax.studies.robustness_plots import write_page
from fpjax.studies.robustness_run import Settings, pictures_of, run_robustness
from tests import toys

ATTACKS = ("none", "gaussian_noise:std=0.02")
SETTINGS = Settings(num_images=3, num_users=2, false_positive_rate=0.3, observation="file")


@pytest.fixture(scope="module")
def scheme():
    made = toys.scheme(toys.generator(toys.curved_decode, scale=0.1))
    start = LinearStart(
        np.zeros((np.prod(toys.SHAPE), toys.SIZE), np.float16), np.zeros(toys.SIZE, np.float32)
    )
    return made.replace(calibration=Calibration(start, "rounded-8bit", "none", 1.5, 1.0, 0, 0))


@pytest.fixture(scope="module")
def study(scheme, tmp_path_factory):
    folder = tmp_path_factory.mktemp("studies") / "robustness"
    return folder, run_robustness({"toy": scheme}, folder, SETTINGS, ATTACKS, num_predicted=1)


def test_clean_files_are_attributed_to_their_makers(study):
    folder, result = study
    clean = next(cell for cell in result["cells"] if cell["attack"] == "none")
    assert clean["right"][0] == 1 and clean["wrong"][0] == 0 and clean["exact"][0] == 1
    assert clean["psnr"] == 99 and clean["num"] == 3
    assert clean["predicted"]["bit_accuracy"] > 0.99
    assert json.loads((folder / "robustness.json").read_text()) == json.loads(json.dumps(result))
    assert result["complete"]


def test_files_are_kept_as_they_were_sent(scheme, study):
    folder, _ = study
    pictures = pictures_of(folder)
    assert len(pictures) == 6
    for sent in pictures:
        assert load_image(sent.file, toys.SHAPE).shape == toys.SHAPE
        same = (load_image(sent.file) == load_image(sent.original)).all()
        assert same == (sent.attack == "none")
    # The keys are those that were read of clean files.
    assert len({sent.user for sent in pictures}) == 2
    made = toys_keys(scheme, folder)
    for sent in pictures:
        np.testing.assert_array_equal(sent.key, made[sent.number])
    pictures[0].original.unlink()
    with pytest.raises(InputError, match="with --resume, makes it"):
        pictures_of(folder)
    run_robustness({"toy": scheme}, folder, SETTINGS, ATTACKS, num_predicted=1, resume=True)
    assert len(pictures_of(folder)) == 6


def toys_keys(scheme, folder):
    """Keys that clean files were read with."""
    found = fpjax.attribute(scheme, sorted((folder / "files" / "toy" / "originals").iterdir()))
    return found.keys


def test_pictures_that_change_their_size_have_no_psnr(scheme, tmp_path):
    attacks = ("rescale:scale=0.5",)
    result = run_robustness({"toy": scheme}, tmp_path / "s", SETTINGS, attacks, num_predicted=0)
    assert result["cells"][0]["psnr"] is None
    page, *plots = write_page(tmp_path, result)
    assert "rescale" in page.read_text() and plots == []


def test_attacks_that_mix_pictures_are_refused(scheme, tmp_path):
    with pytest.raises(InputError, match="mixes pictures of several users"):
        run_robustness({"toy": scheme}, tmp_path / "s", SETTINGS, ("none", "grey+average"))
    assert not (tmp_path / "s").exists()


def test_a_study_that_ended_early_goes_on_and_answers_nothing_twice(
    scheme, study, tmp_path, monkeypatch
):
    real, seen = robustness_run._answered, []

    def stopping(*arguments):
        if len(seen) == 1:
            raise KeyboardInterrupt
        seen.append(1)
        return real(*arguments)

    monkeypatch.setattr(robustness_run, "_answered", stopping)
    with pytest.raises(KeyboardInterrupt):
        run_robustness({"toy": scheme}, tmp_path / "s", SETTINGS, ATTACKS, num_predicted=0)
    kept = json.loads((tmp_path / "s" / "robustness.json").read_text())
    assert not kept["complete"] and sum(cell["num"] for cell in kept["cells"]) == 3
    monkeypatch.setattr(robustness_run, "_answered", real)
    result = run_robustness(
        {"toy": scheme}, tmp_path / "s", SETTINGS, ATTACKS, num_predicted=1, resume=True
    )

    def plain(cells):
        return [{k: v for k, v in cell.items() if k != "seconds"} for cell in cells]

    assert plain(result["cells"]) == plain(study[1]["cells"])
    assert result["records"]["toy"]["none"] == kept["records"]["toy"]["none"]


def test_other_settings_are_refused(scheme, study):
    folder, _ = study
    with pytest.raises(InputError, match="holds files already"):
        run_robustness({"toy": scheme}, folder, SETTINGS, ATTACKS)
    other = Settings(num_users=5, false_positive_rate=0.3, observation="file")
    with pytest.raises(InputError, match="was begun with settings"):
        run_robustness({"toy": scheme}, folder, other, ATTACKS, resume=True)
    with pytest.raises(InputError, match="choose 'file' or 'auto'"):
        Settings(observation="guess")


def test_the_page_has_its_plots(study, tmp_path):
    page, *plots = write_page(tmp_path, study[1])
    assert "gaussian_noise:std=0.02" in page.read_text()
    assert {path.name for path in plots} == {
        f"{name}.{suffix}"
        for name in ("performance-quality", "predicted-measured")
        for suffix in ("svg", "png")
    }


def test_an_expectation_is_below_the_bound(scheme, study):
    """Of a nonlinear generator; where noise hides little, the two are the same."""
    clean = next(c for c in study[1]["cells"] if c["attack"] == "none")["predicted"]
    assert clean["bound"]["bit_accuracy"] >= clean["bit_accuracy"] - 1e-3
    rng = np.random.default_rng(0)
    key, alpha = np.ones(6, np.uint8), rng.standard_normal(10) * np.asarray(scheme.alpha_std)
    latents = scheme.latents_of(alpha[None].astype(np.float32), scheme.symbols_of(key[None]))
    pixels = to_uint8(np.asarray(scheme.decode(latents)))[0]
    information = {}
    for std in (1e-3, 0.3):
        files = [
            information_of_file(scheme, Gaussian(std), alpha, key, pixels, jax.random.key(draw))
            for draw in range(24)
        ]
        information[std] = [np.trace(np.mean(parts, 0)) for parts in zip(*files, strict=True)]
    bound, expected = information[1e-3]
    np.testing.assert_allclose(expected, bound, rtol=0.02)
    bound, expected = information[0.3]
    assert expected < 0.98 * bound


def test_information_is_about_symbols_of_minus_and_plus_one():
    """Whichever levels a scheme writes, half as far apart at half the strength."""
    generator = toys.generator()
    pixels = np.full(toys.SHAPE, 128, np.uint8)
    alpha, key = np.zeros(10), np.ones(6, np.uint8)
    found = [
        information_of_file(
            toys.scheme(generator, strength=strength, levels=levels),
            Gaussian(0.1), alpha, key, pixels, jax.random.key(0),
        ).bound
        for levels, strength in (("antipodal", 0.2), ("binary", 0.4))
    ]  # fmt: skip
    np.testing.assert_allclose(found[1], found[0], rtol=1e-3, atol=1e-3 * found[0].max())


def test_payloads_are_predicted_as_their_code_decodes_them():
    """Repeated four times, bits of which one in six is wrong come back."""
    said = FileInformation(np.eye(16), 2 * np.eye(16))
    alone, coded = predicted([said]), predicted([said], Repetition(4, 4))
    for part, plain in ((coded, alone), (coded["bound"], alone["bound"])):
        assert part["bit_accuracy"] > plain["bit_accuracy"] + 0.05
    assert alone["bit_accuracy"] > alone["bound"]["bit_accuracy"]  # here, twice as much


def test_predictions_of_before_are_made_anew(scheme, study, tmp_path):
    shutil.copytree(study[0], tmp_path / "old")
    path = tmp_path / "old" / "robustness.json"
    old = json.loads(path.read_text())
    for prediction in old["predictions"]["toy"].values():
        del prediction["bound"]
        prediction["bit_accuracy"] = 0.123
    path.write_text(json.dumps(old))
    again = run_robustness(
        {"toy": scheme}, tmp_path / "old", SETTINGS, ATTACKS, num_predicted=0, resume=True
    )
    assert not any(again["predictions"]["toy"].values())
    if importlib.util.find_spec("matplotlib"):
        write_page(tmp_path / "page", again)
    again = run_robustness(
        {"toy": scheme}, tmp_path / "old", SETTINGS, ATTACKS, num_predicted=1, resume=True
    )
    assert again["predictions"] == study[1]["predictions"]
    assert again["records"] == json.loads(json.dumps(study[1]["records"]))


def test_figures_have_their_intervals():
    records = [
        {"bit_accuracy": accuracy, "outcome": outcome, "psnr": 30.0, "seconds": 1.0}
        for accuracy, outcome in [(1.0, "right"), (0.9, "right"), (0.5, "none"), (0.6, "wrong")]
    ]
    found = summary(records)
    assert found["right"][0] == 0.5 and found["wrong"][0] == 0.25 and found["exact"][0] == 0.25
    np.testing.assert_allclose(found["bit_accuracy"][0], 0.75)
    # Wilson's published example: 95% of 1 in 10 (Newcombe 1998, table I has 0 in 20 as 0-0.1611).
    np.testing.assert_allclose(wilson_interval(0, 20), (0, 0.1611), atol=2e-4)
    # Plots draw bars from the share to the ends of its interval.
    for count in range(1, 300):
        assert wilson_interval(0, count)[0] == 0 and wilson_interval(count, count)[1] == 1
    assert predicted([FileInformation(np.eye(4), np.zeros((4, 4)))])["bit_accuracy"] < 0.9
