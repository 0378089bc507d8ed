"""Who reads files, when a second look is taken, and which of two readings stands."""

import dataclasses

import jax
import numpy as np
import pytest

import fpjax
from fpjax.attacks import GaussianNoise, Jpeg, Rescale
from fpjax.attribution import file_reader, files, second_look
from fpjax.attribution.decision import Reason, Verdict
from fpjax.attribution.pictures import Picture, read_picture, stated
from fpjax.fingerprint.keys import level_range
from fpjax.inversion.observation import Gaussian
from fpjax.inversion.solution import Solution

LENGTH = 64


def test_what_is_far_from_own_files_is_left_to_a_second_look_at_once():
    for name, limit in (("avatars-stylegan2/robust", 40), ("avatars-stylegan2", 20)):
        problem = fpjax.Problem(fpjax.load_scheme(name))
        reader = file_reader.FileReader(problem.scheme, None, 1 << 30, None, None, 2, brief=True)
        assert reader.chosen(problem).foreign_ratio == limit
        # Three times what own files leave after one Jacobian, in tens.
        assert limit >= 3 * problem.scheme.calibration.first_noise_ratio > limit - 10
        assert reader.inversion(problem).foreign_ratio == np.inf
        patient = dataclasses.replace(reader, brief=False)
        assert patient.chosen(problem).foreign_ratio >= 60


def test_what_compression_does_to_a_picture_is_known(tmp_path):
    """The truth stands for what an inversion finds, of files of two sizes."""
    scheme = fpjax.load_scheme("avatars-stylegan2/robust")
    key = fpjax.sample_keys(jax.random.key(0), 1, scheme.key_length)
    made = fpjax.generate(scheme, jax.random.key(1), key)
    noisy = GaussianNoise(std=0.1)(jax.random.key(2), made.images)
    pictures = []
    for image in (made.images, noisy, Rescale(scale=0.75)(None, made.images)):
        path = tmp_path / f"{len(pictures)}.jpg"
        path.write_bytes(Jpeg(quality=75).encode(image[0]))
        pictures.append(read_picture(path, scheme.generator.image_shape, resize=True))
    count = len(pictures)
    words = np.repeat(scheme.words_of(key), count, 0)
    found = Solution(
        keys=words, soft_bits=words.astype(np.float32),
        alpha=np.repeat(made.alpha, count, 0), residual=np.zeros(count, np.float32),
        noise_ratio=np.asarray([0.7, 0.7, 0.7], np.float32), loss=np.zeros(count, np.float32),
        steps=np.ones(count, np.int32), status=np.zeros(count, np.int32),
    )  # fmt: skip
    reader = file_reader.FileReader(scheme, None, 1 << 30, None, None, count, brief=True)
    seen = [stated(picture, scheme.generator.image_shape) for picture in pictures]
    more, noise = reader._beyond_tables(found, seen, pictures)
    assert more.tolist() == [False, True, False]
    assert noise[[0, 2]].max() < file_reader._MORE_NOISE and 0.08 < noise[1] < 0.11
    for other in (
        dataclasses.replace(reader, brief=False),
        dataclasses.replace(reader, solver=fpjax.LevenbergMarquardt()),
    ):
        assert not other._beyond_tables(found, seen, pictures)[0].any()


def test_a_revoked_key_that_the_first_reading_finds_is_told():
    first = Verdict(None, Reason.REVOKED, 61, LENGTH, 1e-9, 30.0, False, "ada")
    nothing = Verdict(None, Reason.NOT_EXPLAINED, 37, LENGTH, 1.0, 1.0, False, "blaise")
    broken = dataclasses.replace(nothing, reason=Reason.NOT_FINITE)
    as_well = dataclasses.replace(first, reason=Reason.ATTRIBUTED, user="ada")
    assert not files._stands(nothing, first) and files._stands(first, nothing)
    assert files._stands(nothing, nothing) and not files._stands(broken, nothing)
    assert files._stands(as_well, as_well)


def test_pictures_that_no_key_can_be_read_from_are_given_up():
    """Of the same information, seen with noise of 0.1 assumed, while ever more is left."""
    scheme = fpjax.load_scheme("avatars-stylegan2/robust")
    _, half = level_range(scheme.levels)  # a symbol is worth half a bit
    one = np.eye(scheme.num_symbols, dtype=np.float32) / half**2
    information = np.repeat(one[None], 4, 0)
    information[3] = np.nan  # what is not known is looked at
    found = _solution(4, scheme, information)
    plain = [Picture(np.zeros(scheme.generator.image_shape, np.uint8))] * 4
    left = np.array([0.1, 0.05, 0.2, 1.0])
    told = second_look._readable(scheme, found, plain, np.full(4, 0.1), left)
    assert told.tolist() == [True, True, False, True]
    nothing = dataclasses.replace(found, information=None)
    assert second_look._readable(scheme, nothing, plain, np.full(4, 0.1), left).all()


def _readings_by_start(monkeypatch, left):
    """Stands for inversion: what is left is `left` of a start's first unknown, which stays; gives
    the starts that were asked for."""
    asked = []

    def read(problem, images, solver, *, starts, **options):
        del options
        asked.append((solver.max_steps, starts))
        places = np.zeros(len(images)) if starts is None else starts[:, 0, 0]
        residual = np.array([left[float(place)] for place in places], np.float32)
        found = _solution(len(images), problem.scheme, None)
        found.alpha[:, 0] = places
        parameters = None
        if problem.degradation is not None:
            parameters = np.zeros((len(images), len(problem.degradation.names)), np.float32)
        return dataclasses.replace(found, residual=residual, loss=residual, parameters=parameters)

    monkeypatch.setattr(file_reader, "read_files", read)
    return asked


def test_other_windows_are_tried_where_the_likeliest_leads_nowhere(monkeypatch):
    scheme = fpjax.load_scheme("avatars-stylegan2/robust")
    reader = file_reader.FileReader(scheme, None, 1 << 30, None, None, 4, brief=True)
    size = scheme.num_alpha + len(second_look.DEGRADATION.names) + scheme.num_symbols
    # First unknowns of the starts: 1 on the way; 2 lost, its rivals 3 and 4; 5 lost, no rivals.
    starts = np.zeros((4, 3, size), np.float32)
    starts[:, :, 0] = [[1, 3, 4], [2, 3, 4], [5, 5, 5], [2, 6, 2]]
    left = {0: 0.0, 1: 0.04, 2: 0.2, 3: 0.1, 4: 0.06, 5: 0.2, 6: 0.3}
    asked = _readings_by_start(monkeypatch, left)
    monkeypatch.setattr(second_look, "_window_starts", lambda reader, pictures: starts)
    plain = [Picture(np.zeros(scheme.generator.image_shape, np.uint8))] * 4
    observe = [lambda std: Gaussian(std)] * 4
    nothing = _solution(4, scheme, None)
    found, limits = second_look._roughly(reader, plain, observe, nothing, np.zeros(4, bool))
    assert found.alpha[:, 0].tolist() == [1, 4, 5, 2] and len(limits) == 4
    first, others = (starts[:, 0, 0].tolist() for _, starts in asked)
    assert first == [1, 2, 5, 2] and others == [3, 4, 6]
    # Somebody's own solver has starts of its own.
    own = dataclasses.replace(reader, solver=fpjax.LevenbergMarquardt())
    second_look._roughly(own, plain, observe, nothing, np.zeros(4, bool))
    assert len(asked) == 3 and asked[-1][1] is None


@pytest.mark.parametrize(
    ("left", "noise"), [(0.006, [0.0133, 0.0055]), (0.009, [0.0133, 0.0055, 0.009, 0.009])]
)
def test_what_a_known_resize_has_rounded_is_read_to_the_end_at_once(monkeypatch, left, noise):
    scheme = fpjax.load_scheme("avatars-stylegan2/robust")
    reader = file_reader.FileReader(scheme, None, 1 << 30, None, None, 2, brief=True)
    asked, looks = _readings_by_start(monkeypatch, {0: left}), []

    def observe(std):
        looks.append(round(std, 4))
        return Gaussian(std)

    plain = [Picture(np.zeros(scheme.generator.image_shape, np.uint8))]
    rough = dataclasses.replace(_solution(1, scheme, None), residual=np.full(1, 0.04, np.float32))
    given = plain, [observe], rough, np.zeros(1), np.full(1, 0.04)
    _, _, std = second_look._finer(reader, *given)
    # Where more was left than that, once is enough.
    assert looks == noise and std[0] == np.float32(left)
    assert [steps for steps, _ in asked][:2] == [1, file_reader._MOST_STEPS]
    # What is unknown of a degradation takes another rough look.
    looks.clear()
    rough = dataclasses.replace(
        rough, parameters=np.zeros((1, len(second_look.DEGRADATION.names)), np.float32)
    )
    given = plain, [observe], rough, np.zeros(1), np.full(1, 0.04)
    second_look._finer(reader, *given, degradation=second_look.DEGRADATION)
    assert second_look.ROUNDED_TWICE not in looks


def test_much_noise_behind_a_known_resize_is_found_first(monkeypatch):
    scheme = fpjax.load_scheme("avatars-stylegan2/robust")
    reader = file_reader.FileReader(scheme, None, 1 << 30, None, None, 2, brief=True)
    asked = _readings_by_start(monkeypatch, {0: 0.06})
    plain = [Picture(np.zeros(scheme.generator.image_shape, np.uint8))]
    rough = dataclasses.replace(_solution(1, scheme, None), residual=np.full(1, 0.06, np.float32))
    given = reader, plain, [lambda std: Gaussian(std)], rough, np.zeros(1), np.full(1, 0.06)
    _, _, std = second_look._finer(*given)
    # A third of it, all of it, and that to the end.
    assert [steps for steps, _ in asked] == [1, 1, file_reader._MOST_STEPS]
    assert 0.055 < std[0] <= 0.06


def _solution(count, scheme, information):
    zeros = np.zeros(count, np.float32)
    keys = np.zeros((count, scheme.num_symbols), np.uint8)
    return Solution(
        keys=keys, soft_bits=keys.astype(np.float32),
        alpha=np.zeros((count, scheme.num_alpha), np.float32), residual=zeros, noise_ratio=zeros,
        loss=zeros, steps=np.ones(count, np.int32), status=np.zeros(count, np.int32),
        information=information,
    )  # fmt: skip
