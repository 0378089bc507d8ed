"""Files as people send them: what is believed of their history, and how tries are counted.

Inversion is replaced by what it would find, so that these facts are those of reading and counting,
but for the last test; other inversions of such files are in `tests/inversion`.
"""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

import fpjax
from fpjax.attacks import GaussianNoise, Jpeg, Rescale, Resize
from fpjax.attribution import file_reader, second_look
from fpjax.attribution.decision import Reason
from fpjax.attribution.pictures import Picture, once_jpeg
from fpjax.errors import InputError
from fpjax.fingerprint.basis import Basis
from fpjax.fingerprint.keys import unpack_words
from fpjax.inversion.noise_power import NoisePower
from fpjax.inversion.observation import Gaussian, PerImage, Rounded8Bit
from fpjax.inversion.observation_filtered import Filtered
from fpjax.inversion.observation_jpeg import Jpeg as JpegObservation
from fpjax.inversion.resizes import Resized
from fpjax.inversion.solution import Solution, Status
from fpjax.io.images import ImageError, save_image

SHAPE, SIZE, LENGTH = (48, 40, 3), 80, 64
DONE = np.zeros(len(second_look.DEGRADATION.names), np.float32)
RATE = 1e-6


@pytest.fixture(scope="module")
def scheme():
    generator = fpjax.Generator(
        decode=lambda params, latents: (latents @ params).reshape(-1, *SHAPE),
        params=np.zeros((SIZE, int(np.prod(SHAPE))), np.float32),
        latent_shape=(SIZE,),
        image_shape=SHAPE,
        name="none",
    )
    unit, ones = np.eye(SIZE, dtype=np.float32), np.ones(SIZE, np.float32)
    basis = Basis(0 * ones, unit, unit, ones, num_samples=2, metric="latent")
    return fpjax.Scheme.create(generator, basis, LENGTH, strength=0.5)


@pytest.fixture(scope="module")
def registry(scheme, tmp_path_factory):
    path = tmp_path_factory.mktemp("registry") / "users.db"
    with fpjax.Registry.create(path, key_length=LENGTH, scheme_id=scheme.id) as registry:
        registry.issue("ada", rng=np.random.default_rng(3))
        registry.issue("blaise", rng=np.random.default_rng(4))
        yield registry


@pytest.fixture(scope="module")
def images():
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    phases = np.random.default_rng(0).uniform(0, 6, (2, 3))
    waves = np.sin(rows[None, ..., None] / 5 + phases[:, None, None]) + np.cos(
        columns[None, ..., None] / 7 - phases[:, None, None]
    )
    return np.clip(128 + 45 * waves, 2, 253).astype(np.uint8)


@pytest.fixture
def found(monkeypatch, registry, images):
    """Stands for inversion: ada's key, explained where the observation is that of the file.

    Gives the observations that were asked for, in order.
    """
    _, words = registry.words()
    key = unpack_words(words, LENGTH)[0]
    seen = []

    def invert(problem, targets, solver, **options):
        del solver, options
        observation, count = problem.observation, len(targets)
        seen.append(observation)
        inner = observation.observation if isinstance(observation, PerImage) else observation
        clean = targets * 127.5 + 127.5
        near = np.array([np.abs(images - one[None]).max((1, 2, 3)).min() for one in clean])
        noise = np.array(
            [np.sqrt(((images - one[None]) ** 2).mean((1, 2, 3))).min() for one in clean]
        )
        rounded = isinstance(inner, Rounded8Bit)
        ratio = np.where(rounded & (near > 0.6), 20.0, 1.0)
        bits = np.tile(key, (count, 1))
        if rounded:  # of a damaged file it reads a few bits wrong
            bits[near > 0.6, :3] ^= 1
        return Solution(
            keys=bits.astype(np.uint8),
            soft_bits=bits.astype(np.float32),
            alpha=np.zeros((count, SIZE - LENGTH), np.float32),
            residual=(noise / 127.5).astype(np.float32),
            noise_ratio=ratio.astype(np.float32),
            loss=np.zeros(count, np.float32),
            steps=np.ones(count, np.int32),
            status=np.full(count, Status.SOLVED, np.int32),
            parameters=_done(problem.degradation, count),
        )

    monkeypatch.setattr(file_reader, "read_files", invert)
    monkeypatch.setattr(
        fpjax.LevenbergMarquardt,
        "starts",
        lambda self, problem, images: np.zeros((len(images), 1, problem.num_unknowns)),
    )
    return seen


def _done(degradation, count):
    if degradation is None:
        return None
    places = [second_look.DEGRADATION.names.index(name) for name in degradation.names]
    return np.tile(DONE[places], (count, 1))


def _attribute(scheme, pictures, registry, **options):
    return fpjax.attribute(scheme, pictures, registry, false_positive_rate=RATE, **options)


def test_a_file_is_read_as_what_it_says_it_is(scheme, registry, images, found, tmp_path):
    paths = [tmp_path / "90.jpg", tmp_path / "clean.png", tmp_path / "75.jpg"]
    paths[0].write_bytes(Jpeg(quality=90).encode(images[0]))
    save_image(paths[1], images[0])
    paths[2].write_bytes(Jpeg(quality=75).encode(images[1]))
    answer = _attribute(scheme, paths, registry)
    assert [verdict.finding for verdict in answer.verdicts] == [
        "own file after JPEG 90",
        "own file",
        "own file after JPEG 75",
    ]
    assert {verdict.user for verdict in answer.verdicts} == {"ada"}
    assert answer.observation == "file"
    # Two JPEG files of one layout are read together, each with its own tables.
    both, alone = found
    assert isinstance(both.observation, JpegObservation) and isinstance(alone, Rounded8Bit)
    assert both.observation.steps.shape[0] == 2 and (both.observation.steps[0, 0] == 3)
    assert both.observation.steps[1, 0] == 8


def test_the_keys_that_were_compared_are_told(scheme, registry, images, found):
    told = []
    _attribute(
        scheme, images, registry, observation="file", key_progress=lambda *place: told.append(place)
    )
    assert told[-1] == (2, 2)


@pytest.mark.parametrize("std", [0.0, 0.02, 0.05])
def test_rounding_and_noise_are_not_taken_for_the_finest_jpeg(std):
    """Steps of 1 leave what rounding leaves: a recogniser sees quality 100 in half of these."""
    scheme = fpjax.load_scheme("avatars-stylegan2")
    keys = fpjax.sample_keys(jax.random.key(0), 12, scheme.key_length)
    made = fpjax.generate(scheme, jax.random.key(1), keys).float_images
    noise = std * np.random.default_rng(2).normal(size=made.shape)
    pixels = np.rint((np.clip(made + noise, -1, 1) + 1) * 127.5).astype(np.uint8)
    assert all(once_jpeg(Picture(picture)) is None for picture in pixels)


def test_a_jpeg_saved_as_png_gives_its_tables_away(scheme, registry, images, found):
    decoded = np.stack([Jpeg(quality=75)(None, image[None])[0] for image in images])
    answer = _attribute(scheme, decoded, registry, observation="auto")
    for verdict in answer.verdicts:
        assert verdict.finding == "own file after JPEG 75, by its pixels"
        assert verdict.attempts == 2
    assert isinstance(found[-1].observation, JpegObservation)
    plain = _attribute(scheme, decoded, registry, observation="file")
    assert [verdict.attempts for verdict in plain.verdicts] == [1, 1]
    # Three bits of 64 wrong: still named, and not explained.
    assert plain.verdicts[0].finding == (
        "carries the key of ada; the picture is not fully explained"
    )


def test_noise_of_unknown_power_is_estimated_and_both_tries_are_counted(
    scheme, registry, images, found
):
    noisy = GaussianNoise(std=0.05)(jax.random.key(0), images)
    answer = _attribute(scheme, noisy, registry, observation="auto")
    for verdict in answer.verdicts:
        assert verdict.user == "ada" and verdict.attempts == 2 and verdict.explained
        assert verdict.history.startswith("noise of 0.0")
        np.testing.assert_allclose(float(verdict.history.split()[-1]), 0.05, rtol=0.1)
        # Two tries, two statistics, two users.
        np.testing.assert_allclose(verdict.p_value, 8 * 2.0**-LENGTH)
    assert isinstance(found[-1].observation, Gaussian)
    np.testing.assert_allclose(found[-1].observation.std, 0.05, rtol=0.1)


def test_what_was_done_to_a_picture_is_told(scheme, registry, images, found, monkeypatch):
    gain = second_look.DEGRADATION.names.index("gain")
    monkeypatch.setitem(globals(), "DONE", np.where(np.arange(len(DONE)) == gain, 0.1, 0.0))
    noisy = GaussianNoise(std=0.05)(jax.random.key(0), images)
    for verdict in _attribute(scheme, noisy, registry, observation="auto").verdicts:
        assert verdict.history.startswith("gain 1.10 and noise of 0.0")


def test_looks_are_rough_while_the_noise_is_a_guess(scheme, registry, images, found, monkeypatch):
    read, seen = file_reader.read_files, []

    def invert(problem, targets, solver, **options):
        observation = problem.observation
        std = float(observation.observation.std[0]) if isinstance(observation, PerImage) else 0.0
        seen.append((round(std, 3), solver.max_steps))
        return read(problem, targets, solver, **options)

    monkeypatch.setattr(file_reader, "read_files", invert)
    noisy = GaussianNoise(std=0.06)(jax.random.key(0), images[:1])
    _attribute(scheme, noisy, registry, observation="auto")
    # A brief reading; much noise; a third of what that leaves; what that leaves, which is left
    # again; to the end.
    assert [steps for _, steps in seen] == [2, 1, 1, 1, file_reader._MOST_STEPS]
    stds = [std for std, _ in seen]
    # Rounded to three digits above: three times half a thousandth, and half a one.
    assert stds[:2] == [0.0, 0.3] and stds[3] == pytest.approx(3 * stds[2], abs=0.002)
    assert stds[3] == stds[4]


def test_somebodys_own_solver_looks_again_as_it_is(scheme, registry, images, found):
    solver = fpjax.LevenbergMarquardt(max_steps=7)
    noisy = GaussianNoise(std=0.05)(jax.random.key(0), images)
    problem = fpjax.Problem(scheme)
    reader = file_reader.FileReader(scheme, solver, 1 << 30, None, None, 2, brief=True)
    assert reader.rough(problem) is reader.inversion(problem) is solver
    assert not reader.looks_roughly
    ours = dataclasses.replace(reader, solver=None)
    assert ours.rough(problem).max_steps == 1 and ours.looks_roughly
    answer = _attribute(scheme, noisy, registry, observation="auto", solver=solver)
    assert all(verdict.user == "ada" for verdict in answer.verdicts)


@pytest.mark.parametrize(("share", "believed"), [(0.1, True), (0.9, False)])
def test_a_resize_is_believed_where_it_comes_much_nearer(
    scheme, registry, images, found, monkeypatch, share, believed
):
    read = file_reader.read_files

    def invert(problem, targets, solver, **options):
        solution = read(problem, targets, solver, **options)
        through = isinstance(getattr(found[-1], "observation", None), Filtered)
        return dataclasses.replace(
            solution, residual=solution.residual * np.float32(share if through else 1)
        )

    monkeypatch.setattr(file_reader, "read_files", invert)
    monkeypatch.setattr(
        second_look, "resized", lambda *pair: Resized((36, 30), 0.75, "bicubic", 0.005, 2.0)
    )
    small = Resize(scale=0.75)(None, images)
    for verdict in _attribute(scheme, small, registry, observation="auto").verdicts:
        # A look that is thrown away was no test of a key.
        assert verdict.user == "ada" and verdict.attempts == 2
        assert verdict.history.startswith("a resize to 0.75 of its sides and") == believed
    seen = [seen.observation for seen in found if isinstance(seen, PerImage)]
    assert any(isinstance(observation, Filtered) for observation in seen)
    assert seen[-1].picture.shape == images.shape if believed else isinstance(seen[-1], Gaussian)


def test_a_jpeg_that_explains_nothing_is_doubted(scheme, registry, images, found, monkeypatch):
    read = file_reader.read_files

    def invert(problem, targets, solver, **options):
        solution = read(problem, targets, solver, **options)
        if isinstance(getattr(found[-1], "observation", None), JpegObservation):
            solution.noise_ratio[:] = 8.0
        return solution

    monkeypatch.setattr(file_reader, "read_files", invert)
    noisy = GaussianNoise(std=0.05)(jax.random.key(0), images)
    black = JpegObservation.of_file(Jpeg(quality=50).encode(np.zeros_like(images[0])))
    monkeypatch.setattr(second_look, "once_jpeg", lambda picture: (black, "JPEG 50, by its pixels"))
    answer = _attribute(scheme, noisy, registry, observation="auto")
    for verdict in answer.verdicts:
        assert verdict.user == "ada" and verdict.attempts == 2
        assert verdict.history.startswith("noise of 0.0") and "JPEG" not in verdict.history
    assert isinstance(found[-1].observation, Gaussian)


@pytest.mark.parametrize(
    ("excess", "std", "more"), [(1.2, 0.1, 1), (1.2, 0.003, 0), (1.02, 0.1, 0)]
)
def test_a_jpeg_file_that_leaves_more_than_its_tables_make_is_looked_at_again(
    scheme, registry, images, found, tmp_path, monkeypatch, excess, std, more
):
    for module in (file_reader, second_look):
        monkeypatch.setattr(module, "more_noise", lambda *given: NoisePower(excess, std))
    paths = [tmp_path / "0.jpg", tmp_path / "1.jpg"]
    for path, image in zip(paths, images, strict=True):
        path.write_bytes(Jpeg(quality=50).encode(image))
    for verdict in _attribute(scheme, paths, registry, observation="auto").verdicts:
        assert verdict.user == "ada" and verdict.attempts == 1 + more and verdict.explained
        assert ("noise of 0.100 and JPEG 50" if more else "JPEG 50") == verdict.history
    if not more:
        assert len(found) == 1
        return
    noisy = found[-1].observation
    np.testing.assert_allclose(noisy.noise, std, rtol=1e-5)
    assert noisy.std.min() > found[0].observation.std.min()
    # Nobody asks where only the file is believed.
    assert _attribute(scheme, paths, registry).verdicts[0].attempts == 1


def test_files_of_all_kinds_are_read_together(
    scheme, registry, images, found, tmp_path, monkeypatch
):
    for module in (file_reader, second_look):
        monkeypatch.setattr(module, "more_noise", lambda *given: NoisePower(1.2, 0.1))
    far = np.asarray(255 - images[:1], np.uint8)
    noisy = GaussianNoise(std=0.05)(jax.random.key(0), images[:1])
    paths = [tmp_path / name for name in ("clean.png", "noisy.png", "far.png", "noisy.jpg")]
    for path, image in zip(paths, (images[0], noisy[0], far[0]), strict=False):
        save_image(path, image)
    paths[3].write_bytes(Jpeg(quality=50).encode(images[1]))
    answer = _attribute(scheme, paths, registry, observation="auto")
    assert [verdict.attempts for verdict in answer.verdicts] == [1, 2, 2, 2]
    assert answer.verdicts[3].history == "noise of 0.100 and JPEG 50"


def test_of_two_readings_that_name_nobody_the_second_stands(
    scheme, registry, images, found, monkeypatch
):
    read, first = file_reader.read_files, []

    def invert(problem, targets, solver, **options):
        solution = read(problem, targets, solver, **options)
        # Half of the bits wrong, the first time a little less than half.
        solution.keys[:, : LENGTH // 2 - (not first)] ^= 1
        first.append(solution)
        return solution

    monkeypatch.setattr(file_reader, "read_files", invert)
    noisy = GaussianNoise(std=0.05)(jax.random.key(0), images)
    answer = _attribute(scheme, noisy, registry, observation="auto")
    assert [verdict.user for verdict in answer.verdicts] == [None, None]
    assert all(verdict.history.startswith("noise of 0.0") for verdict in answer.verdicts)
    np.testing.assert_array_equal(answer.keys, first[-1].keys)


def test_a_picture_that_the_first_look_came_near_needs_no_windows(
    scheme, registry, images, found, monkeypatch
):
    windows, asked = second_look._window_starts, []

    def noting(reader, pictures):
        asked.append(len(pictures))
        return windows(reader, pictures)

    monkeypatch.setattr(second_look, "_window_starts", noting)
    for std in (0.05, 0.15):
        noisy = GaussianNoise(std=std)(jax.random.key(0), images)
        _attribute(scheme, noisy, registry, observation="auto")
    assert asked == [2]  # after much noise alone


def test_a_clean_file_is_tried_once_and_pays_for_one_try(scheme, registry, images, found):
    answer = _attribute(scheme, images, registry, observation="auto")
    assert [verdict.attempts for verdict in answer.verdicts] == [1, 1] and len(found) == 1
    np.testing.assert_allclose([v.p_value for v in answer.verdicts], 4 * 2.0**-LENGTH)


def test_pictures_of_another_size_are_read_when_asked(scheme, registry, images, found, tmp_path):
    small = Rescale(scale=0.75)(None, images)
    save_image(tmp_path / "small.png", small[0])
    (tmp_path / "small.jpg").write_bytes(Jpeg(quality=95).encode(small[1]))
    paths = [tmp_path / "small.png", tmp_path / "small.jpg"]
    with pytest.raises(ImageError, match="the image is 30x36, the generator makes 40x48"):
        _attribute(scheme, paths, registry)
    answer = _attribute(scheme, paths, registry, resize=True)
    assert [verdict.history for verdict in answer.verdicts] == [
        "a change of size to 30x36",
        "a change of size to 30x36 and JPEG 95",
    ]
    assert all(isinstance(seen.observation, Filtered) for seen in found)
    assert found[0].observation.picture.shape == (1, 36, 30, 3)


def test_enough_noise_explains_anything_and_so_it_explains_nobody_s_picture(
    scheme, registry, images, found, tmp_path
):
    strangers = tmp_path / "strangers.db"
    noisy = np.clip(images.astype(int) + 9, 0, 255).astype(np.uint8)
    with fpjax.Registry.create(strangers, key_length=LENGTH, scheme_id=scheme.id) as others:
        others.issue("zoe", rng=np.random.default_rng(9))
        answer = _attribute(scheme, noisy, others, observation="auto")
    for verdict in answer.verdicts:
        assert verdict.finding == "not attributed" and verdict.noise_ratio == 1
        assert verdict.reason is Reason.NOT_EXPLAINED and not verdict.explained


def test_without_a_registry_the_last_reading_counts(scheme, images, found):
    noisy = np.clip(images.astype(int) + 9, 0, 255).astype(np.uint8)
    answer = fpjax.attribute(scheme, noisy, observation="auto")
    assert answer.verdicts is None and (answer.solution.noise_ratio == 1).all()


def test_readings_that_do_not_exist_are_refused(scheme, images):
    with pytest.raises(InputError, match="choose 'file', 'auto'"):
        fpjax.attribute(scheme, images, observation="guess")
    with pytest.raises(InputError, match="expected uint8"):
        fpjax.attribute(scheme, images / np.float32(255), observation="auto")


def test_resized_and_recompressed_files_are_read_by_real_inversions(calibrated_scheme, tmp_path):
    """Nothing is replaced here: the keys come through the filter, and the file's own tables."""
    scheme = calibrated_scheme
    keys = fpjax.sample_keys(jax.random.key(8), 2, scheme.key_length)
    images = fpjax.generate(scheme, jax.random.key(9), keys).images
    large, once = [tmp_path / "a.png", tmp_path / "b.png"], tmp_path / "once.jpg"
    for path, image in zip(large, images, strict=True):
        Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC).save(path)
    with pytest.raises(fpjax.ImageError):
        fpjax.attribute(scheme, large)
    found = fpjax.attribute(scheme, large, resize=True)
    np.testing.assert_array_equal(found.keys, keys)
    Image.fromarray(images[0]).save(once, quality=95)
    found = fpjax.attribute(scheme, [once])
    np.testing.assert_array_equal(found.keys, keys[:1])
