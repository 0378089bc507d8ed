"""Files as people send them: what is believed of their history, and what that costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fpjax
from fpjax.attacks import GaussianNoise, Jpeg, Rescale
from fpjax.attribution.decision import Reason
from fpjax.errors import InputError
from fpjax.fingerprint.basis import pca
from fpjax.fingerprint.calibration import Calibration, LinearStart
from fpjax.io.images import ImageError, save_image

SHAPE, SIZE, LENGTH = (48, 40, 3), 16, 10
LOW_PASSED = (32, 32, 3)
RATE = 0.2
"""Ten bits are too few for the usual rate."""


def _decode(params, latents):
    return (0.8 * jnp.tanh(jnp.tanh(latents @ params["first"]) @ params["second"])).reshape(
        -1, *SHAPE
    )


def _sample(params, key, num):
    del params
    spread = jnp.linspace(1.0, 0.2, SIZE, dtype=jnp.float32)
    return jax.random.normal(key, (num, SIZE), jnp.float32) * spread[None]


@pytest.fixture(scope="module")
def scheme():
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    waves = [
        np.cos(rows / SHAPE[0] * np.pi * f + phase) * np.cos(columns / SHAPE[1] * np.pi * g)
        for f, g, phase in zip(*rng.uniform(0, 12, (3, 48)), strict=True)
    ]
    colours = rng.normal(0, 0.3, (48, 1, 1, 3))
    pictures = (np.stack(waves)[..., None] * colours).reshape(48, -1)
    second = rng.standard_normal((SIZE, 48)) / 2 @ pictures
    params = {"first": rng.standard_normal((SIZE, SIZE)) / 4, "second": second / 2}
    generator = fpjax.Generator(
        decode=_decode,
        params=jax.device_put(jax.tree.map(np.float32, params)),
        latent_shape=(SIZE,),
        image_shape=SHAPE,
        sample_latents=_sample,
        name="waves",
    )
    latents = np.asarray(generator.natural_latents(jax.random.key(5), 500))
    made = fpjax.Scheme.create(generator, pca(latents), LENGTH, strength=0.5)
    start = LinearStart(
        np.zeros((np.prod(LOW_PASSED), SIZE), np.float16), np.zeros(SIZE, np.float32)
    )
    return made.replace(calibration=Calibration(start, "rounded-8bit", "none", 1.5, 1.0, 0, 0))


@pytest.fixture(scope="module")
def registry(scheme, tmp_path_factory):
    path = tmp_path_factory.mktemp("registry") / "users.db"
    registry = fpjax.Registry.create(path, key_length=LENGTH, scheme_id=scheme.id)
    with registry:
        yield registry


@pytest.fixture(scope="module")
def images(scheme, registry):
    key = registry.issue("ada", rng=np.random.default_rng(3))
    return fpjax.generate(scheme, jax.random.key(2), np.stack([key] * 2)).images


def _attribute(scheme, files, registry, **options):
    return fpjax.attribute(scheme, files, registry, false_positive_rate=RATE, **options)


def test_a_jpeg_file_is_read_through_its_own_tables(scheme, registry, images, tmp_path):
    paths = [tmp_path / f"{quality}.jpg" for quality in (90, 75)]
    for path, image, quality in zip(paths, images, (90, 75), strict=True):
        path.write_bytes(Jpeg(quality=quality).encode(image))
    save_image(tmp_path / "clean.png", images[0])
    found = _attribute(scheme, [*paths, tmp_path / "clean.png"], registry)
    assert [verdict.finding for verdict in found.verdicts] == [
        "own file after JPEG 90",
        "own file after JPEG 75",
        "own file",
    ]
    assert {verdict.user for verdict in found.verdicts} == {"ada"}
    assert found.observation == "file"
    # As lossless files they are not explained.
    plain = _attribute(scheme, paths, registry, observation=fpjax.Rounded8Bit())
    assert not any(verdict.explained for verdict in plain.verdicts)


def test_a_jpeg_saved_as_png_gives_its_tables_away(scheme, registry, images):
    decoded = np.stack([Jpeg(quality=75)(None, image[None])[0] for image in images])
    found = _attribute(scheme, decoded, registry, observation="auto")
    for verdict in found.verdicts:
        assert verdict.finding == "own file after JPEG 75, by its pixels"
        assert verdict.attempts == 2


def test_noise_of_unknown_power_is_estimated_and_both_tries_are_counted(scheme, registry, images):
    noisy = GaussianNoise(std=0.05)(jax.random.key(0), images)
    found = _attribute(scheme, noisy, registry, observation="auto")
    for verdict in found.verdicts:
        assert verdict.user == "ada" and verdict.attempts == 2
        assert verdict.history.startswith("noise of 0.0")
        np.testing.assert_allclose(float(verdict.history.split()[-1]), 0.05, rtol=0.15)
        np.testing.assert_allclose(verdict.noise_ratio, 1, atol=0.15)
        # Two tries, two statistics, one user.
        assert verdict.p_value >= 4 * 2.0**-LENGTH


def test_a_clean_file_is_tried_once(scheme, registry, images):
    found = _attribute(scheme, images, registry, observation="auto")
    assert [verdict.attempts for verdict in found.verdicts] == [1, 1]
    assert [verdict.finding for verdict in found.verdicts] == ["own file"] * 2
    alone = _attribute(scheme, images, registry)
    assert [v.p_value for v in alone.verdicts] == [v.p_value for v in found.verdicts]


def test_pictures_of_another_size_are_read_when_asked(scheme, registry, images, tmp_path):
    small = Rescale(scale=0.75)(None, images)
    save_image(tmp_path / "small.png", small[0])
    files = [tmp_path / "small.png"]
    with pytest.raises(ImageError, match="the image is 30x36, the generator makes 40x48"):
        _attribute(scheme, files, registry)
    (verdict,) = _attribute(scheme, files, registry, resize=True).verdicts
    assert verdict.finding == "own file after a change of size to 30x36"


def test_what_a_jpeg_file_of_another_size_says_of_itself(images, tmp_path):
    small = Rescale(scale=0.75)(None, images)
    (tmp_path / "small.jpg").write_bytes(Jpeg(quality=95).encode(small[1]))
    picture = fpjax.read_picture(tmp_path / "small.jpg", SHAPE, resize=True)
    assert picture.history == "a change of size to 30x36 and JPEG 95"
    assert picture.jpeg is not None and picture.pixels.shape == (36, 30, 3)


def test_a_picture_of_nobody_is_not_explained_by_much_noise(scheme, registry):
    foreign = np.random.default_rng(0).integers(0, 256, (1, *SHAPE)).astype(np.uint8)
    options = {"observation": "auto", "false_positive_rate": 1e-6}
    (verdict,) = fpjax.attribute(scheme, foreign, registry, **options).verdicts
    assert verdict.user is None and verdict.finding == "not attributed"
    assert verdict.reason is Reason.NOT_EXPLAINED and not verdict.explained


def test_readings_that_do_not_exist_are_refused(scheme, images):
    with pytest.raises(InputError, match="choose 'file', 'auto'"):
        fpjax.attribute(scheme, images, observation="guess")
    with pytest.raises(InputError, match="expected uint8"):
        fpjax.attribute(scheme, images / np.float32(255), observation="auto")


def test_no_files_are_no_answers(scheme, registry):
    assert _attribute(scheme, [], registry).verdicts == []
