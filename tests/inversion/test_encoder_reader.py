"""The encoder as reader: measured once, and honest about what it read."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fpjax
from fpjax.attribution.decision import decide
from fpjax.errors import InputError
from fpjax.fingerprint.calibration import EncoderErrors
from fpjax.fingerprint.keys import to_symbols
from fpjax.inversion.encoder_reader import EncoderReader, fit_encoder_reader
from fpjax.inversion.solution import Status
from tests import pictures, toys


@pytest.fixture(scope="module")
def scheme():
    return pictures.scheme(strength=0.4, length=12)


@pytest.fixture(scope="module")
def reader(scheme):
    return fit_encoder_reader(scheme, jax.random.key(1), 600)


@pytest.fixture(scope="module")
def files(scheme):
    keys = fpjax.sample_keys(jax.random.key(2), 200, 12)
    return fpjax.generate(scheme, jax.random.key(3), keys).images, keys


def test_it_reads_most_bits_in_one_pass_and_more_in_several(scheme, reader, files):
    images, keys = files
    once = fit_encoder_reader(scheme, jax.random.key(1), 600, rereadings=0)
    one_pass = (once.read(scheme, images).keys == keys).mean()
    found = reader.read(scheme, images)
    # 200 files of 12 bits, as docs/first_stages.md has them.
    assert 0.85 < one_pass < 0.95 and (found.keys == keys).mean() > 0.99
    assert (found.steps == 0).all() and (found.residual < 0.2).all()
    assert (found.status == Status.SOLVED).mean() > 0.85


def test_its_information_is_honest(scheme, reader, files):
    """D of the true key has mean L: 12, to the error of 200 files and of the estimate."""
    images, keys = files
    found = reader.read(scheme, images)
    score = found.score(to_symbols(keys, scheme.levels))
    assert 0.8 < score.mean() / 12 < 1.25
    # And it predicts how many bits are wrong, each read by itself.
    covariance = np.linalg.inv(reader.errors.information.astype(np.float64))
    best = np.linalg.solve(reader.errors.information, found.linear.T).T
    wrong = (best > 0) != (keys == 1)
    from scipy.stats import norm

    expected = norm.cdf(-1 / np.sqrt(np.diag(covariance))).mean()
    assert abs(wrong.mean() - expected) < 0.05


def test_its_readings_go_through_the_same_verdicts(scheme, reader, files):
    images, keys = files
    found = reader.read(scheme, images[:4])
    users = [str(i) for i in range(4)]
    named = [v.user for v in decide(found, users, keys[:4], false_positive_rate=0.02)]
    assert named.count(None) <= 1
    assert all(user in (None, str(i)) for i, user in enumerate(named))


def test_what_is_no_picture_of_the_generator_is_far_from_its_error(scheme, reader):
    noise = np.random.default_rng(0).uniform(-1, 1, (3, *pictures.SHAPE)).astype(np.float32)
    noise[2] = np.nan
    found = reader.read(scheme, noise)
    assert (found.noise_ratio[:2] > 1.5).all()
    assert found.status.tolist() == [Status.CONVERGED, Status.CONVERGED, Status.NOT_FINITE]


def test_a_reader_is_of_one_scheme_and_needs_an_encoder_and_files(scheme, reader):
    other = scheme.replace(strength=0.5)
    with pytest.raises(InputError, match="measured for scheme"):
        reader.read(other, np.zeros((1, *pictures.SHAPE), np.uint8))
    with pytest.raises(InputError, match="no encoder"):
        fit_encoder_reader(toys.scheme(), jax.random.key(0))
    with pytest.raises(InputError, match="at least 48"):
        fit_encoder_reader(scheme, jax.random.key(0), 20)


def test_latents_may_be_given_where_nothing_draws_them(scheme):
    made = scheme.generator
    latents = np.asarray(made.natural_latents(jax.random.key(4), 60)).reshape(60, -1)
    silent = scheme.replace(generator=made.replace(sample_latents=None))
    reader = fit_encoder_reader(silent, jax.random.key(1), 60, latents=latents)
    assert reader.errors.num_images == 60 and jnp.isfinite(reader.errors.covariance).all()


@pytest.fixture(scope="module")
def calibrated(scheme):
    return fpjax.calibrate(
        scheme, jax.random.key(4), encoder_only=True, num_read_images=400, num_inverted_images=4
    )


def test_a_scheme_calibrated_for_it_is_read_by_it(calibrated, files, tmp_path):
    calibrated.save(tmp_path / "scheme")
    again = fpjax.Scheme.load(tmp_path / "scheme", calibrated.generator)
    assert again.calibration.sha256 == calibrated.calibration.sha256
    assert again.calibration.solver == "encoder" and again.calibration.start is None
    images, keys = files
    found = fpjax.attribute(again, images[:32])
    assert found.solver == "encoder" and (found.keys == keys[:32]).mean() > 0.85
    np.testing.assert_array_equal(
        found.keys, EncoderReader.of(calibrated).read(calibrated, images[:32]).keys
    )


def test_files_that_it_was_not_measured_on_are_inverted(calibrated, files, tmp_path):
    from PIL import Image

    images, _ = files
    png, jpeg = str(tmp_path / "a.png"), str(tmp_path / "b.jpg")
    Image.fromarray(images[0]).save(png)
    Image.fromarray(images[1]).save(jpeg, quality=95)
    assert fpjax.attribute(calibrated, [png]).solver == "encoder"
    assert fpjax.attribute(calibrated, [png, jpeg]).solver == "encoder and matrix-free"
    reader = EncoderReader.of(calibrated)
    assert fpjax.attribute(calibrated, [png, jpeg], solver=reader).solver.endswith("matrix-free")
    assert fpjax.attribute(calibrated, [], solver=reader).solver == "encoder"
    with pytest.raises(InputError, match="measured on files seen through"):
        fpjax.attribute(calibrated, images[:1], observation=fpjax.Gaussian(0.1), solver=reader)


def test_what_it_misreads_is_looked_at_again_without_a_made_up_history(calibrated, files):
    """`auto` inverts what the encoder does not explain; a clean file has no history of noise."""
    images, keys = files
    found = EncoderReader.of(calibrated).read(calibrated, images)
    row = int(found.noise_ratio.argmax())
    strict = dataclasses.replace(calibrated.calibration, max_noise_ratio=0.01)
    answer = fpjax.attribute(
        calibrated.replace(calibration=strict), images[row : row + 1], observation="auto"
    )
    assert answer.solver == "encoder and matrix-free"
    np.testing.assert_array_equal(answer.keys, keys[row : row + 1])
    assert answer.solution.noise_ratio[0] < 1.2


def test_a_damaged_or_missing_measurement_is_refused(calibrated, scheme, tmp_path):
    with pytest.raises(InputError, match="measured no encoder"):
        EncoderReader.of(scheme)
    with pytest.raises(InputError, match="not both"):
        fpjax.calibrate(scheme, jax.random.key(0), encoder_only=True, solver=fpjax.MatrixFree())
    calibrated.save(tmp_path / "scheme")
    header = tmp_path / "scheme" / "calibration.json"
    header.write_text(header.read_text().replace('"num_images": 400', '"num_images": 401'))
    with pytest.raises(fpjax.FpjaxError, match="damaged"):
        fpjax.Scheme.load(tmp_path / "scheme", scheme.generator)
    with pytest.raises(InputError, match="another scheme"):
        EncoderReader.of(calibrated.replace(strength=0.7))


@pytest.mark.parametrize(
    "change",
    [
        {"gain": np.eye(2)},
        {"offset": np.array([0.0, 0.0, np.nan])},
        {"covariance": -np.eye(3)},
        {"num_images": 9},
        {"num_images": "many"},
        {"rereadings": 10**9},
    ],
)
def test_what_is_no_measurement_is_refused(change):
    good = {
        "scheme_id": "",
        "gain": np.eye(3),
        "offset": np.zeros(3),
        "covariance": np.eye(3),
        "num_images": 100,
        "observation": "rounded-8bit",
        "rereadings": 0,
    }
    EncoderErrors(**good)
    with pytest.raises(ValueError):
        EncoderErrors(**good | change)


def test_an_encoder_that_reads_nothing_is_refused(scheme):
    made = scheme.generator
    blind = scheme.replace(generator=made.replace(encode=lambda p, x: 0 * made.encode(p, x)))
    with pytest.raises(InputError, match="reads nothing"):
        fit_encoder_reader(blind, jax.random.key(1), 60)


def test_no_images_and_one_image(scheme, reader, files):
    images, keys = files
    assert len(reader.read(scheme, images[:0])) == 0
    told = []
    one = reader.read(scheme, images[:1], lambda *place: told.append(place))
    assert (one.keys == keys[:1]).mean() > 0.8 and told == [(1, 1)]
    with pytest.raises(InputError, match="rereadings"):
        fit_encoder_reader(scheme, jax.random.key(1), 60, rereadings=-1)
