"""Noise, blur, tone and colour against PyTorch, SciPy and Pillow."""

import colorsys

import jax
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from fpjax.attacks import (
    BoxBlur,
    Brightness,
    Contrast,
    Gamma,
    GaussianBlur,
    GaussianNoise,
    Grey,
    Hue,
    MedianBlur,
    PoissonNoise,
    Posterise,
    SaltAndPepper,
    Saturation,
    Sharpen,
    SpeckleNoise,
)
from tests.attacks.test_protocol import pictures

KEY = jax.random.key(0)


def torch_filter(images, kernel, mode):
    """Depthwise correlation with a 2-D kernel, in float64."""
    pad = kernel.shape[0] // 2
    x = torch.from_numpy(images.astype(np.float64)).permute(0, 3, 1, 2)
    x = torch.nn.functional.pad(x, (pad,) * 4, mode=mode)
    weight = torch.from_numpy(kernel).expand(images.shape[3], 1, *kernel.shape)
    out = torch.nn.functional.conv2d(x, weight, groups=images.shape[3])
    return out.permute(0, 2, 3, 1).numpy()


def off_by_rounding(actual, expected):
    """Whether 8-bit values are a rounding of the expected ones, ties either way."""
    return np.abs(actual - np.clip(expected, 0, 255)).max() <= 0.5 + 1e-9


@pytest.mark.parametrize(("sigma", "size"), [(0.5, 25), (1.7, 11), (0.5, 1)])
def test_gaussian_blur_is_torchs_reflected_convolution(sigma, size):
    images = pictures((2, 27, 40, 3))
    taps = torch.exp(-0.5 * (torch.linspace(-(size // 2), size // 2, size).double() / sigma) ** 2)
    taps /= taps.sum()
    expected = torch_filter(images, torch.outer(taps, taps).numpy(), "reflect")
    assert off_by_rounding(GaussianBlur(sigma, size)(KEY, images), expected)


def test_box_blur_is_torchs_and_pillows():
    images = pictures((1, 27, 40, 3))
    actual = BoxBlur(size=5)(KEY, images)
    assert off_by_rounding(actual, torch_filter(images, np.full((5, 5), 1 / 25), "replicate"))
    pillow = np.asarray(Image.fromarray(images[0]).filter(ImageFilter.BoxBlur(2)))
    # Pillow rounds after each of its two passes.
    assert np.abs(actual[0].astype(int) - pillow).max() <= 1


def test_median_blur_is_pillows_inside_and_torchs_everywhere():
    images = pictures((1, 27, 40, 3))
    actual = MedianBlur(size=5)(KEY, images)
    pillow = np.asarray(Image.fromarray(images[0]).filter(ImageFilter.MedianFilter(5)))
    assert np.array_equal(actual[0, 2:-2, 2:-2], pillow[2:-2, 2:-2])
    x = torch.from_numpy(images.astype(np.float32)).permute(0, 3, 1, 2)
    x = torch.nn.functional.pad(x, (2,) * 4, mode="replicate")
    windows = x.unfold(2, 5, 1).unfold(3, 5, 1).flatten(-2)
    assert np.array_equal(actual, windows.median(-1).values.permute(0, 2, 3, 1).numpy())


def test_sharpening_adds_the_detail_that_a_gaussian_removes():
    images = pictures((1, 27, 40, 3))
    radius = 4  # SciPy cuts its Gaussian at four sigma.
    taps = np.exp(-0.5 * np.arange(-radius, radius + 1.0) ** 2)
    kernel = np.outer(taps, taps) / taps.sum() ** 2
    expected = images + 1.5 * (images - torch_filter(images, kernel, "reflect"))
    assert off_by_rounding(Sharpen(amount=1.5, sigma=1.0)(KEY, images), expected)
    assert np.array_equal(Sharpen(amount=0.0)(KEY, images), images)


def test_gaussian_noise_has_the_stated_power_and_no_pattern():
    grey = np.full((4, 64, 96, 3), 128, np.uint8)
    noise = (GaussianNoise(std=0.1)(KEY, grey) - 128.0) / 127.5
    # 73,728 draws: the standard deviation is known to 0.26 %, the mean to 0.0004; five of each.
    # Rounding to 8 bits adds (1 / 127.5)^2 / 12, 0.03 % of the variance.
    assert noise.std() == pytest.approx(0.1, rel=0.013)
    assert abs(noise.mean()) < 0.002
    correlation = np.corrcoef(noise[..., :-1, :].ravel(), noise[..., 1:, :].ravel())[0, 1]
    assert abs(correlation) < 0.02
    assert np.array_equal(GaussianNoise(std=0.0)(KEY, grey), grey)


def test_strong_noise_clips_as_the_published_protocol_does():
    out = GaussianNoise(std=1.0)(KEY, np.full((1, 64, 64, 3), 128, np.uint8))
    # Half-normal tails beyond one standard deviation: 15.9 % a side, known to 0.33 %.
    for level in (0, 255):
        assert (out == level).mean() == pytest.approx(0.159, abs=0.017)


def test_photons_are_counted_as_scipy_says():
    """Shares of each grey level, against the Poisson distribution's."""
    peak = 30.0
    out = PoissonNoise(peak)(KEY, np.full((4, 64, 64, 3), 100, np.uint8))
    rate = peak * 100 / 255
    counts = np.arange(60)
    levels = np.clip(np.rint(counts * 255 / peak), 0, 255)
    for level in np.unique(levels):
        expected = scipy.stats.poisson.pmf(counts, rate)[levels == level].sum()
        if level == 255:
            expected += scipy.stats.poisson.sf(59, rate)
        spread = np.sqrt(expected * (1 - expected) / out.size)
        assert abs((out == level).mean() - expected) < 5 * spread + 1e-4
    assert set(np.unique(out)) <= set(levels)


def test_speckle_is_in_proportion_to_the_value():
    for level in (0, 60, 120):
        out = SpeckleNoise(0.2)(KEY, np.full((2, 64, 64, 3), level, np.uint8)).astype(float)
        # 24,576 draws: known to 0.45 %; five of those. Rounding adds 1/12.
        assert out.std() == pytest.approx(np.hypot(0.2 * level, 0.289 * (level > 0)), rel=0.023)
        assert out.mean() == pytest.approx(level, abs=0.8)


def test_salt_and_pepper_hit_their_share_of_the_pixels_in_all_channels():
    grey = np.full((4, 64, 64, 3), 128, np.uint8)
    out = SaltAndPepper(amount=0.2)(KEY, grey)
    assert np.array_equal(out[..., 0], out[..., 1]) and np.array_equal(out[..., 0], out[..., 2])
    for level in (0, 255):  # Of 16,384 pixels: 0.1 +- 0.0023 each, five of those.
        assert (out[..., 0] == level).mean() == pytest.approx(0.1, abs=0.012)
    assert set(np.unique(SaltAndPepper(amount=1.0)(KEY, grey))) == {0, 255}


@pytest.mark.parametrize(
    ("attack", "enhancer"),
    [(Brightness, "Brightness"), (Contrast, "Contrast"), (Saturation, "Color")],
)
@pytest.mark.parametrize("factor", [0.0, 0.6, 1.0, 1.9])
def test_tone_is_pillows_and_torchs(attack, enhancer, factor):
    images = pictures((1, 27, 40, 3))
    actual = attack(factor)(KEY, images)
    pillow = getattr(ImageEnhance, enhancer)(Image.fromarray(images[0])).enhance(factor)
    assert np.array_equal(actual[0], np.asarray(pillow))
    x = torch.from_numpy(images.astype(np.float64))
    luma = x @ torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    ground = {
        "Brightness": torch.zeros_like(x),
        "Contrast": luma.mean().expand_as(x),
        "Color": luma[..., None].expand_as(x),
    }[enhancer]
    expected = (ground + factor * (x - ground)).clamp(0, 255).numpy()
    # Pillow rounds the ground (half a level, times |1 - factor|) and cuts the blend to whole ones.
    assert np.abs(actual - expected).max() <= 1 + 0.5 * abs(1 - factor) + 1e-6
    if factor == 1:
        assert np.array_equal(actual, images)


def test_hue_turns_colours_as_the_standard_library_does():
    images = pictures((1, 9, 11, 3))
    actual = Hue(turns=0.25)(KEY, images)[0].reshape(-1, 3)
    for colour, out in zip(images[0].reshape(-1, 3) / 255, actual / 255, strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*colour)
        expected = colorsys.hsv_to_rgb((hue + 0.25) % 1, saturation, value)
        # HSV in 8 bits: one level of hue moves a channel by up to 6 / 256 of the chroma.
        np.testing.assert_allclose(out, expected, atol=6 / 256 + 3 / 255)
    assert np.array_equal(Hue(turns=0.0)(KEY, images), images)


def test_grey_posterise_and_gamma():
    images = pictures((2, 9, 11, 3))
    luma = images @ np.array([0.299, 0.587, 0.114])
    grey = Grey()(KEY, images)
    # Pillow's weights have 16 bits.
    assert np.abs(grey - luma[..., None]).max() <= 0.51
    assert np.array_equal(Grey()(KEY, images[..., :1]), images[..., :1])
    posterised = np.asarray(ImageOps.posterize(Image.fromarray(images[0]), 3))
    assert np.array_equal(Posterise(bits=3)(KEY, images)[0], posterised)
    assert np.array_equal(posterised, images[0] & 0b11100000)
    expected = (torch.from_numpy(images / 255) ** 1.8 * 255).numpy()
    assert off_by_rounding(Gamma(gamma=1.8)(KEY, images), expected)
    assert np.array_equal(Gamma(gamma=1.0)(KEY, images), images)


def test_blurs_of_flat_pictures_change_nothing():
    flat = np.full((1, 12, 17, 1), 77, np.uint8)
    for attack in (GaussianBlur(3.0, 51), BoxBlur(9), MedianBlur(9), Sharpen(3.0, 2.0)):
        assert np.array_equal(attack(KEY, flat), flat)


def test_a_picture_smaller_than_the_kernel_is_blurred_by_repeated_mirroring():
    images = pictures((1, 5, 6, 1))
    kernel = np.exp(-0.5 * (np.arange(-12, 13) / 0.5) ** 2)
    expected = images.astype(np.float64)
    for axis in (1, 2):
        expected = scipy.ndimage.convolve1d(expected, kernel / kernel.sum(), axis, mode="mirror")
    assert off_by_rounding(GaussianBlur()(KEY, images), expected)
