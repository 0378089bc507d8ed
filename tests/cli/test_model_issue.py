"""`fpjax model issue`: a folder of a copy that carries a user's key, in three layouts."""

import jax
import pytest

from checkpoints_convert.command import run as convert
from fpjax.cli.main import run
from fpjax.fingerprint.decode import natural_images
from fpjax.fingerprint.issued import issue_model
from fpjax.io.images import save_image
from fpjax.models.checkpoint import load_leaves
from fpjax.zoo.load import load_generator


@pytest.fixture(scope="module")
def house(calibrated_scheme, tmp_path_factory):
    """Flags that name a StyleGAN2, its scheme and a registry of two users."""
    folder = tmp_path_factory.mktemp("issue")
    calibrated_scheme.generator.save(folder / "generator")
    calibrated_scheme.save(folder / "scheme")
    flags = [
        f"--generator={folder / 'generator'}",
        f"--scheme={folder / 'scheme'}",
        f"--registry={folder / 'users.db'}",
    ]
    assert run(["user", "add", "ada", "blaise", *flags]) == 0
    return flags


def issue(house, out, *arguments):
    return run(["model", "issue", *arguments, f"--out={out}", *house])


def test_a_copys_pictures_are_attributed_to_its_user(house, tmp_path, capsys):
    assert issue(house, tmp_path / "copy", "ada") == 0
    assert capsys.readouterr().out == f"{tmp_path / 'copy'}\n"
    copy = load_generator(tmp_path / "copy")
    paths = [str(tmp_path / f"{i}.png") for i in range(4)]
    for path, image in zip(paths, natural_images(copy, jax.random.key(3), 4), strict=True):
        save_image(path, image)
    # Six bits are too few for the usual rate.
    assert run(["attribute", *paths, *house, "--false_positive_rate=0.2"]) == 0
    assert capsys.readouterr().out.count(": ada (6/6 bits") == 4


@pytest.mark.parametrize("layout", ["rosinality", "nvidia"])
def test_published_layouts_convert_to_the_same_copy(house, tmp_path, layout):
    """Bit for bit; its images are then the same too."""
    assert issue(house, tmp_path / "copy", "ada") == 0
    assert issue(house, tmp_path / layout, "ada", f"--layout={layout}") == 0
    file = tmp_path / layout / "generator.safetensors"
    assert convert([str(file), str(tmp_path / "again")]) == 0
    expected, found = load_leaves(tmp_path / "copy"), load_leaves(tmp_path / "again")
    assert expected.keys() == found.keys()
    assert all(expected[name].tobytes() == found[name].tobytes() for name in expected)


def test_nothing_is_overwritten_and_a_wrong_name_writes_nothing(house, tmp_path, capsys):
    (tmp_path / "there").mkdir()
    assert issue(house, tmp_path / "there", "ada") == 1
    assert "exists already" in capsys.readouterr().err
    assert issue(house, tmp_path / "copy", "adda") == 1
    assert "'ada'" in capsys.readouterr().err
    assert not (tmp_path / "copy").exists()
    assert issue(house, tmp_path / "copy") == 2
    assert "name one user" in capsys.readouterr().err


def test_a_registry_of_another_scheme_is_refused(house, tmp_path, capsys):
    others = [f"--registry={tmp_path / 'others.db'}"]
    assert run(["user", "add", "ada", *others]) == 0
    assert run(["model", "issue", "ada", f"--out={tmp_path / 'x'}", *house[:2], *others]) == 1
    assert "scheme" in capsys.readouterr().err


def test_a_generator_that_is_no_stylegan2_is_refused(workplace, tmp_path, capsys):
    assert run(["model", "issue", "ada", f"--out={tmp_path / 'copy'}", *workplace.flags]) == 1
    assert "no StyleGAN2" in (error := capsys.readouterr().err) and error.count("\n") == 1
    assert not (tmp_path / "copy").exists()


def test_the_copy_is_the_one_that_the_library_makes(house, calibrated_scheme, tmp_path):
    from fpjax.attribution.registry import Registry

    assert issue(house, tmp_path / "copy", "blaise") == 0
    with Registry.open(house[2].removeprefix("--registry=")) as registry:
        made = issue_model(calibrated_scheme, registry.key_of("blaise"))
    assert load_generator(tmp_path / "copy").sha256 == made.sha256
