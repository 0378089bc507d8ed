"""JPEG files as measurements: Pillow's files against the observation of them."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import fpjax
from fpjax.attacks import GaussianNoise
from fpjax.attacks import Jpeg as Attack
from fpjax.errors import InputError
from fpjax.inversion.observation import Gaussian, Observation, PerImage, noise_ratio, to_8bit
from fpjax.inversion.observation_jpeg import Jpeg
from fpjax.io.jpeg import dequantised_coefficients, read_jpeg_header
from fpjax.io.jpeg_dct import JpegError, JpegLayout, jpeg_pixels
from fpjax.io.jpeg_recover import recover_coefficients
from tests import toys

SUBSAMPLINGS = ["4:4:4", "4:2:0"]


def _image(height=48, width=64, spread=0.5, seed=0):
    """Smooth colour noise, which compresses as pictures do."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(0, spread, (height // 4, width // 4, 3))
    picture = np.repeat(np.repeat(coarse, 4, 0), 4, 1) + rng.normal(0, 0.1, (height, width, 3))
    return np.clip(picture, -1.4, 1.4).astype(np.float32)


def _file(image, quality, subsampling="4:2:0"):
    return Attack(quality=quality, subsampling=subsampling).encode(np.asarray(to_8bit(image)))


def _pixels(file):
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
@pytest.mark.parametrize("spread", [0.3, 1.0])
def test_its_own_files_are_one_noise_unit_away_also_where_the_image_overshoots(subsampling, spread):
    image = _image(spread=spread)
    observation = Jpeg.of_file(_file(image, 90, subsampling))
    assert isinstance(observation, Observation)
    ratio = noise_ratio(observation, jnp.asarray(image), jnp.zeros(image.shape))
    # Coefficients that stay in the step around zero have less noise than a uniform one.
    assert 0.7 < float(ratio) < 1.05


def test_noise_before_compression_adds_to_that_of_the_steps():
    """Noise of 0.05 under quality 90 is the larger part of the residual."""
    image = _image()
    noisy = GaussianNoise(std=0.05)(jax.random.key(0), np.asarray(to_8bit(image))[None])[0]
    observation = Jpeg.of_file(Attack(quality=90).encode(noisy))
    image, zeros = jnp.asarray(image), jnp.zeros(image.shape)
    assert float(noise_ratio(observation, image, zeros)) > 2
    ratio = noise_ratio(observation.with_noise(0.05), image, zeros)
    np.testing.assert_allclose(ratio, 1, atol=0.1)


def test_simulated_files_are_those_of_pillow():
    image = _image(spread=0.3)
    file = _file(image, 75)
    made = Jpeg.of_file(file).simulate(jax.random.key(0), jnp.asarray(image)[None])[0]
    difference = np.asarray(made, int) - _pixels(file)
    # Roundings to whole levels before quantisation are not simulated: where a coefficient is near
    # the middle of two multiples of its step, the file has the other one.
    assert np.sqrt(np.mean(difference**2.0)) < 3


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("size", [(48, 64), (37, 53)])
def test_decoded_coefficients_are_pillow_s_pixels(subsampling, size):
    smooth = np.asarray(to_8bit(jax.image.resize(jnp.asarray(_image()), (*size, 3), "linear") / 2))
    file = Attack(quality=85, subsampling=subsampling).encode(smooth)
    layout = read_jpeg_header(file).layout
    decoded = jpeg_pixels(jnp.asarray(dequantised_coefficients(file)), layout)
    error = np.asarray(decoded) * 127.5 + 127.5 - _pixels(file)
    assert np.abs(error).max() < 3  # libjpeg rounds luma, chroma and their mixture


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
@pytest.mark.parametrize("quality", [50, 75, 90])
def test_coefficients_come_back_from_decoded_pixels(subsampling, quality):
    file = _file(_image(spread=0.3), quality, subsampling)
    header = read_jpeg_header(file)
    found = recover_coefficients(_pixels(file), header.layout, header.tables)
    stored = dequantised_coefficients(file)
    assert found.agreeing > 0.99
    assert np.mean(np.abs(found.coefficients - stored) < 0.5) > 0.995


def test_clipped_pixels_hide_few_coefficients():
    """A third of the pixels is white: what is found gives the pixels back, or says that it is not
    certain."""
    image = _image(spread=0.3)
    image[:16] = 1.2
    file = _file(image, 75, "4:4:4")
    header = read_jpeg_header(file)
    found = recover_coefficients(_pixels(file), header.layout, header.tables)
    error = found.coefficients - dequantised_coefficients(file)
    assert np.mean(np.abs(error) < 0.5) > 0.95
    assert np.sqrt(np.mean((error / found.std) ** 2)) < 1


def test_a_file_and_its_pixels_make_the_same_observation():
    file = _file(_image(spread=0.3), 75, "4:4:4")
    header = read_jpeg_header(file)
    whole = Jpeg.of_file(file)
    rest = Jpeg.of_pixels(_pixels(file), header.layout, header.tables)
    np.testing.assert_array_equal(whole.steps, rest.steps)
    np.testing.assert_allclose(whole.coefficients, rest.coefficients, atol=0.5)


def test_another_quality_compiles_nothing():
    run = jax.jit(lambda observation, x: observation.residual(x, x))
    image = _image()
    for quality in (50, 75, 90):
        run(jax.device_put(Jpeg.of_file(_file(image, quality))), jnp.asarray(image))
    assert run._cache_size() == 1


def test_files_that_are_no_jpeg_are_refused():
    with pytest.raises(JpegError, match="not a JPEG file"):
        Jpeg.of_file(b"PNG")


# Inversions, on a toy of one channel.


@pytest.fixture(scope="module")
def scheme():
    return toys.scheme(toys.generator(toys.curved_decode, scale=0.1), strength=0.6)


def _grey_files(images, qualities):
    files = []
    for image, quality in zip(images, qualities, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(image[..., 0]).save(buffer, "JPEG", quality=quality)
        files.append(buffer.getvalue())
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(file)))[..., None] for file in files])
    return files, pixels


def test_every_image_is_read_with_its_own_tables(scheme):
    """Three files of different qualities in one call are those of three calls."""
    keys = fpjax.sample_keys(jax.random.key(1), 3, 6)
    images = fpjax.generate(scheme, jax.random.key(2), keys).images
    files, pixels = _grey_files(images, (95, 85, 75))
    observations = [Jpeg.of_file(file) for file in files]
    starts = toys.starts(scheme)
    found = fpjax.invert(fpjax.Problem(scheme, PerImage.stack(observations)), pixels, starts=starts)
    np.testing.assert_array_equal(found.keys, keys)
    for i, observation in enumerate(observations):
        alone = fpjax.invert(fpjax.Problem(scheme, observation), pixels[i : i + 1], starts=starts)
        np.testing.assert_allclose(alone.soft_bits[0], found.soft_bits[i], atol=1e-4)


def test_steps_of_the_tables_beat_white_noise_of_the_same_power(scheme):
    keys = fpjax.sample_keys(jax.random.key(3), 12, 6)
    images = fpjax.generate(scheme.replace(strength=0.15), jax.random.key(4), keys).images
    files, pixels = _grey_files(images, [30] * 12)
    weak, starts = scheme.replace(strength=0.15), toys.starts(scheme)
    jpeg = PerImage.stack([Jpeg.of_file(file) for file in files])
    white = Gaussian(float(np.std(pixels / 127.5 - images / 127.5)))
    wrong = [
        int((fpjax.invert(fpjax.Problem(weak, o), pixels, starts=starts).keys != keys).sum())
        for o in (jpeg, white)
    ]
    assert wrong[0] < wrong[1]


def test_as_many_observations_as_images_are_asked_for(scheme):
    observations = PerImage.stack([Gaussian(0.1), Gaussian(0.2)])
    with pytest.raises(InputError, match="of 2 images, and 3 were given"):
        fpjax.invert(
            fpjax.Problem(scheme, observations),
            np.zeros((3, *toys.SHAPE), np.uint8),
            starts=toys.starts(scheme),
        )


def test_observations_of_different_kinds_are_not_stacked():
    with pytest.raises(InputError, match="2 kinds"):
        PerImage.stack([Gaussian(0.1), fpjax.Rounded8Bit()])
    layouts = [JpegLayout.of(16, 16), JpegLayout.of(32, 16)]
    files = [
        Attack(quality=75).encode(np.zeros((layout.height, layout.width, 3), np.uint8))
        for layout in layouts
    ]
    with pytest.raises(InputError, match="2 kinds"):
        PerImage.stack([Jpeg.of_file(file) for file in files])
