"""Design studies in a folder: interrupted and resumed, recommended from, drawn."""

import json
import shutil

import jax
import numpy as np
import pytest

from fpjax.errors import InputError
from fpjax.studies import design_run
from fpjax.studies.design_plots import is_paper, write_page
from fpjax.studies.design_run import Settings, recommendations, run_design
from fpjax.studies.designs import Design, Prediction, grid
from fpjax.studies.histories import attack_label
from tests import toys

SETTINGS = Settings(num_samples=400, num_jacobians=2, num_latents=4, num_pictures=8)


def designs(bases):
    return grid(
        bases,
        (4, 6),
        {name: (None, 10) for name in bases},
        psnrs=(28, 29, 30, 60),
        noises=(0.0, 0.1),
    )


def without_seconds(value):
    if isinstance(value, dict):
        return {k: without_seconds(v) for k, v in value.items() if k != "seconds"}
    return [without_seconds(v) for v in value] if isinstance(value, list) else value


def run(folder, **options):
    generator = toys.generator(toys.curved_decode, scale=0.05, condition=3.0)
    options = {"goal_exact": 0.9, "designs": designs, "settings": SETTINGS, **options}
    return run_design(generator, folder, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study without an interruption: (folder, result)."""
    folder = tmp_path_factory.mktemp("whole") / "study"
    return folder, run(folder)


def test_the_file_holds_the_result(whole):
    folder, result = whole
    read = json.loads((folder / "design.json").read_text())
    assert read == result and read["complete"] is True
    assert len(read["rows"]) == 2 * (2 * 2 * 4 + 2)
    reasons = [row["reason"] for row in read["rows"] if "reason" in row]
    assert reasons and all("no strength gives" in reason for reason in reasons)


@pytest.mark.parametrize(("stage", "count"), [("taking Jacobians", 2), ("judging designs", 5)])
def test_a_study_that_was_interrupted_goes_on_to_the_same_result(whole, tmp_path, stage, count):
    def interrupt(name, done, total):
        if (name, done) == (stage, count):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, progress=interrupt)
    halfway = json.loads((tmp_path / "design.json").read_text())
    assert halfway["complete"] is False
    assert len(halfway["rows"]) == (count if stage == "judging designs" else 0)
    first = tmp_path / "jacobians" / "0000.npz"
    taken = first.stat().st_mtime_ns
    resumed = run(tmp_path, resume=True)
    assert without_seconds(resumed) == without_seconds(whole[1])
    assert first.stat().st_mtime_ns == taken  # not taken again
    if stage == "judging designs":
        assert resumed["rows"][:count] == halfway["rows"]  # with their seconds: not judged again


def test_a_study_can_be_asked_for_more_designs(whole, tmp_path, monkeypatch):
    few = lambda bases: designs(bases)[:6]  # noqa: E731
    before = run(tmp_path, designs=few)
    judged = []
    judge = design_run._judged
    monkeypatch.setattr(
        design_run,
        "_judged",
        lambda study, design: (judged.append(design), judge(study, design))[1],
    )
    after = run(tmp_path, designs=lambda bases: designs(bases)[:8], resume=True)
    assert after["rows"][:6] == before["rows"] and len(judged) == 2


def test_a_folder_of_something_else_is_refused(whole, tmp_path):
    folder, _ = whole
    with pytest.raises(InputError, match="holds files already"):
        run(folder)
    with pytest.raises(InputError, match="begun with settings"):
        run(folder, resume=True, settings=Settings(num_samples=401))
    (tmp_path / "letter.txt").write_text("dear ada")
    with pytest.raises(InputError, match="no study to go on with"):
        run(tmp_path, resume=True)
    (tmp_path / "design.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        run(tmp_path, resume=True)


def test_recommendations_are_of_each_noise_and_length(whole):
    _, result = whole
    found = recommendations(result["rows"], 0.9)
    assert [(case["noise"], case["key_length"]) for case in found] == [
        (0.0, 4), (0.0, 6), (0.1, 4), (0.1, 6), (None, 4), (None, 6)
    ]  # fmt: skip
    # What is read from noise is read from clean files.
    psnrs = [case["prediction"] and case["prediction"]["psnr"] for case in found]
    assert psnrs[2] and psnrs[4:] == psnrs[2:4]
    # Whichever comes last.
    backwards = recommendations(result["rows"][::-1], 0.9)
    assert backwards[4:] == found[4:]
    for case in found[:4]:
        rows = [
            row
            for row in result["rows"]
            if (row["design"]["noise"], row["design"]["key_length"])
            == (case["noise"], case["key_length"])
            and row.get("exact", 0) >= 0.9
        ]
        best = case["prediction"]
        assert (best is None) == (not rows)
        if rows:
            assert best["psnr"] == max(row["psnr"] for row in rows)


def test_attacks_are_judged_beside_noise(whole, tmp_path):
    """A folder of noises goes on with attacks; what was there is kept."""
    shutil.copytree(whole[0], tmp_path / "more")
    blur = "gaussian_blur:sigma=0.5,size=25"

    def more(bases):
        return grid(["image"], (4,), psnrs=(28, 30), noises=(0.1,), attacks=("gaussian_blur",))

    result = run(tmp_path / "more", designs=more, resume=True)
    kept = [row for row in whole[1]["rows"] if row in result["rows"]]
    assert kept == result["rows"][:2]
    assert [row["design"]["attack"] for row in result["rows"]] == [None, None, blur, blur]
    assert [(case["noise"], case["attack"]) for case in result["recommendations"]] == [
        (0.1, None), (None, blur), (None, None)
    ]  # fmt: skip
    with np.load(tmp_path / "more" / "jacobians" / "0000.npz") as file:
        assert sorted(file) == ["0.0", "0.1", blur]
    pytest.importorskip("matplotlib")
    page, *_ = write_page(tmp_path / "more", result)
    assert "gaussian_blur 0.5 25" in page.read_text() and "all of these" in page.read_text()


def test_rows_from_before_there_were_codes_are_kept(whole, tmp_path):
    folder, result = whole
    shutil.copytree(folder, tmp_path / "old")
    old = json.loads((folder / "design.json").read_text())
    for row in old["rows"]:
        del row["design"]["code"]
        row["seconds"] = 7.0
    (tmp_path / "old" / "design.json").write_text(json.dumps(old))
    again = run(tmp_path / "old", resume=True)
    assert without_seconds(again) == without_seconds(result)
    assert {row["seconds"] for row in again["rows"]} == {7.0}


def test_the_published_choice_is_known():
    def prediction(basis, length, first):
        return Prediction(Design(basis, length, psnr=40.0), first, 1.0, 40.0, 40.0, 0.0, 1.0, 1.0)

    directions = {"latent": 512, "image": 512}
    assert is_paper(prediction("latent", 64, 448), directions)
    assert not is_paper(prediction("latent", 64, 0), directions)
    assert not is_paper(prediction("image", 64, 448), directions)
    assert not is_paper(prediction("latent", 32, 480), directions)


def test_the_page_shows_every_plot(whole):
    pytest.importorskip("matplotlib")
    folder, result = whole
    page, *plots = write_page(folder, result)
    text = page.read_text()
    accuracies = [f"accuracy-{what}" for what in ("quality", "strength", "shift", "length")]
    names = [*accuracies, "psnr-strength"]
    assert [path.name for path in plots] == [f"{n}.{s}" for n in names for s in ("svg", "png")]
    assert all(f'src="{name}.svg"' in text for name in names)
    assert all(path.stat().st_size > 2000 for path in plots)
    assert text.count("dB is out of reach") == sum("reason" in row for row in result["rows"])
    svg = (folder / "accuracy-quality.svg").read_text()
    for label in ("PCA, 8-bit rounding", "image metric, noise 0.1", "PSNR", "(dB)"):
        assert label in svg
    assert write_page(folder, result)[1].read_text() == svg  # nothing in it depends on the hour


def test_lpips_is_drawn_where_it_was_measured(whole, tmp_path):
    pytest.importorskip("matplotlib")
    rows = [{**row, "lpips": 0.01} if "reason" not in row else row for row in whole[1]["rows"]]
    plots = write_page(tmp_path, {**whole[1], "rows": rows})
    assert "lpips-strength.svg" in [path.name for path in plots]


def test_designs_that_do_not_fit_are_refused_before_jacobians_are_taken(tmp_path):
    with pytest.raises(InputError, match="6 bits at shift 11: the latent basis has 16 directions"):
        run(tmp_path, designs=lambda bases: [Design("latent", 6, 11, psnr=30.0)])
    label = attack_label("rotate")
    with pytest.raises(InputError, match="no observation describes it"):
        run(tmp_path / "b", designs=lambda bases: [Design("latent", 6, psnr=30.0, attack=label)])
    assert not (tmp_path / "b" / "jacobians").exists()
    assert not (tmp_path / "jacobians").exists()


def test_a_metric_that_nobody_knows_is_refused():
    with pytest.raises(InputError, match="choose of image, latent"):
        Settings(bases=("pca",))


def test_jacobians_that_are_kept_are_those_of_the_generator(whole):
    folder, _ = whole
    with np.load(folder / "jacobians" / "0003.npz") as file:
        assert sorted(file) == ["0.0", "0.1"]
        gram = file["0.1"]
    assert gram.shape == (16, 16)
    np.testing.assert_allclose(gram, gram.T, atol=1e-5)
    assert np.linalg.eigvalsh(gram.astype(np.float64)).min() > -1e-4
    assert jax.dtypes.issubdtype(gram.dtype, np.float32)


def test_jacobians_of_another_noise_are_added_to_those_that_are_kept(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "more")
    path = tmp_path / "more" / "jacobians" / "0002.npz"
    with np.load(path) as file:
        before = dict(file)
    (tmp_path / "more" / "jacobians" / "0001.npz").unlink()
    more = [Design("image", 4, psnr=28.0, noise=noise) for noise in (0.0, 0.02)]
    run(tmp_path / "more", designs=lambda bases: more, resume=True)
    with np.load(path) as file:
        after = dict(file)
    assert sorted(after) == ["0.0", "0.02", "0.1"]
    for name, gram in before.items():
        np.testing.assert_array_equal(after[name], gram)
    with np.load(tmp_path / "more" / "jacobians" / "0001.npz") as file:
        assert sorted(file) == ["0.0", "0.02"]
