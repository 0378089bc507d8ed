"""The data set of a robustness study: files and pixels as they were sent."""

import json

import numpy as np
import pytest

from fpjax.attribution.registry import Registry
from fpjax.errors import InputError
from fpjax.io.images import load_image, save_image


def test_pictures_of_any_size_come_back_to_the_bit(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    from fpjax.training.attacked_pictures import AttackedPictures

    rng = np.random.default_rng(0)
    study = tmp_path / "study"
    records = {"one": {"none": [{"image": "0000.png"}], "jpeg:quality=75": [{"image": "0000.jpg"}]}}
    for slug, name, shape in (
        ("none", "0000.png", (8, 6)),
        ("jpeg-quality=75", "0000.jpg", (9, 7)),
    ):
        folder = study / "files" / "one" / slug
        folder.mkdir(parents=True)
        save_image(folder / name, rng.integers(0, 256, (*shape, 3)).astype(np.uint8))
    original = rng.integers(0, 256, (8, 6, 3)).astype(np.uint8)
    (study / "files" / "one" / "originals").mkdir()
    save_image(study / "files" / "one" / "originals" / "0000.png", original)
    with Registry.create(study / "users-one.db", key_length=8, scheme_id="0" * 64) as registry:
        key = registry.issue("ada")
    (study / "robustness.json").write_text(
        json.dumps({"records": records, "schemes": {"one": "0" * 64}, "settings": {"num_users": 1}})
    )
    builder = AttackedPictures(study=study, data_dir=tmp_path / "data")
    builder.download_and_prepare()
    source = builder.as_data_source(split="test")
    found = {example["attack"]: example for example in source}
    assert len(source) == 2
    for attack, slug in (("none", "none"), ("jpeg:quality=75", "jpeg-quality=75")):
        example = found[attack if attack in found else attack.encode()]
        path = next((study / "files" / "one" / slug).iterdir())
        np.testing.assert_array_equal(example["pixels"], load_image(path))
        assert example["file"].tobytes() == path.read_bytes()
        np.testing.assert_array_equal(example["original"], original)
        np.testing.assert_array_equal(example["key"], key)
        assert example["user"] in ("ada", b"ada")


def test_a_folder_without_a_study_is_refused(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    from fpjax.training.attacked_pictures import AttackedPictures

    with pytest.raises(InputError, match="missing or damaged"):
        AttackedPictures(study=tmp_path, data_dir=tmp_path / "data")
