"""Who reads files, when a second look is taken, and which of two readings stands."""

import dataclasses

import jax
import numpy as np

import fpjax
from fpjax.attacks import GaussianNoise, Jpeg, Rescale
from fpjax.attribution import file_reader, files, second_look
from fpjax.attribution.decision import Reason, Verdict
from fpjax.attribution.pictures import Picture, read_picture, stated
from fpjax.fingerprint.keys import level_range
from fpjax.inversion.solution import Solution

LENGTH = 64


def test_what_is_far_from_own_files_is_left_to_a_second_look_at_once():
    for name, limit in (("avatars-stylegan2/robust", 30), ("avatars-stylegan2", 20)):
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
    found = Solution(
        keys=np.repeat(key, count, 0), soft_bits=np.repeat(key, count, 0).astype(np.float32),
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
    one = np.eye(scheme.key_length, dtype=np.float32) / half**2
    information = np.repeat(one[None], 4, 0)
    information[3] = np.nan  # what is not known is looked at
    found = _solution(4, scheme, information)
    plain = [Picture(np.zeros(scheme.generator.image_shape, np.uint8))] * 4
    left = np.array([0.1, 0.05, 0.2, 1.0])
    told = second_look._readable(scheme, found, plain, np.full(4, 0.1), left)
    assert told.tolist() == [True, True, False, True]
    nothing = dataclasses.replace(found, information=None)
    assert second_look._readable(scheme, nothing, plain, np.full(4, 0.1), left).all()


def _solution(count, scheme, information):
    zeros = np.zeros(count, np.float32)
    keys = np.zeros((count, scheme.num_symbols), np.uint8)
    return Solution(
        keys=keys, soft_bits=keys.astype(np.float32),
        alpha=np.zeros((count, scheme.num_alpha), np.float32), residual=zeros, noise_ratio=zeros,
        loss=zeros, steps=np.ones(count, np.int32), status=np.zeros(count, np.int32),
        information=information,
    )  # fmt: skip
