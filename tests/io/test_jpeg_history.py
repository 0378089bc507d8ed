"""Quantisation tables from pixels alone, on photographs that went through libjpeg."""

import io
import math

import numpy as np
import pytest
from PIL import Image

from fpjax.io.jpeg import standard_tables
from fpjax.io.jpeg_dct import JpegError, JpegLayout, triangle_upsampling
from fpjax.io.jpeg_history import JpegStatus, estimate_jpeg_tables
from tests.reference import fixture


@pytest.fixture(scope="module")
def portraits():
    return np.load(fixture("portraits_256x128.npz"), allow_pickle=False)["images"][:12]


def resized(pixels, *shape):
    return np.asarray(Image.fromarray(pixels).resize(shape[::-1], Image.Resampling.LANCZOS))


def through_jpeg(pixels, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", **options)
    decoded = np.asarray(Image.open(buffer))
    return decoded[..., None] if decoded.ndim == 2 else decoded


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("quality", [30, 50, 75, 90, 95, 98])
def test_quality_and_sampling_of_64_pixel_portraits_are_found(portraits, quality, subsampling):
    for portrait in portraits[:2]:
        pixels = resized(portrait, 64, 64)
        found = estimate_jpeg_tables(through_jpeg(pixels, quality=quality, subsampling=subsampling))
        assert found.status is JpegStatus.STANDARD
        assert found.quality == quality and found.quality_range == (quality, quality)
        assert found.layout == JpegLayout.of(64, 64, subsampling)
        assert np.array_equal(found.tables, standard_tables(quality)[[0, 1, 1]])
        assert found.evidence > 500 and found.sampling_evidence > 20


@pytest.mark.parametrize("quality", [50, 75, 95])
def test_quality_of_128_pixel_portraits_is_found(portraits, quality):
    found = estimate_jpeg_tables(through_jpeg(portraits[3], quality=quality))
    assert (found.quality, found.layout) == (quality, JpegLayout.of(128, 128, "4:2:0"))


def test_sides_may_be_odd_and_pictures_grey(portraits):
    odd = through_jpeg(resized(portraits[0], 71, 93), quality=80)
    assert estimate_jpeg_tables(odd).layout == JpegLayout.of(71, 93, "4:2:0")
    grey = through_jpeg(np.asarray(Image.fromarray(portraits[1]).convert("L")), quality=80)
    for pixels in (grey, np.repeat(grey, 3, -1)):
        found = estimate_jpeg_tables(pixels)
        assert (found.quality, found.layout) == (80, JpegLayout.of(128, 128, "grey"))
        assert found.tables is not None and np.array_equal(found.tables, standard_tables(80)[:1])
        assert found.sampling_evidence == math.inf


def test_pictures_that_were_never_compressed_say_so(portraits):
    rng = np.random.default_rng(0)
    small = resized(portraits[0], 32, 32)
    never = [resized(portrait, 64, 64) for portrait in portraits]
    never += [
        rng.integers(0, 256, (64, 64, 3)).astype(np.uint8),
        never[0] & 0xF0,
        np.kron(small, np.ones((2, 2, 1), np.uint8)),
        resized(small, 64, 64),
        np.zeros((64, 64, 3), np.uint8),
        np.full((5, 7, 3), 90, np.uint8),
    ]
    for pixels in never:
        found = estimate_jpeg_tables(pixels)
        assert found.status is JpegStatus.NONE
        assert found.tables is None and found.quality is None and found.layout is None


def test_a_picture_resized_after_compression_has_no_tables(portraits):
    pixels = resized(through_jpeg(portraits[0], quality=75), 100, 100)
    assert estimate_jpeg_tables(pixels).status is JpegStatus.NONE


def test_steps_of_other_tables_are_never_wrong_where_they_are_stated(portraits):
    rng = np.random.default_rng(0)
    tables = np.rint(standard_tables(80) * rng.uniform(0.7, 1.4, (2, 8, 8))).astype(int)
    for portrait in portraits[:3]:
        pixels = through_jpeg(portrait, qtables=[t.ravel().tolist() for t in tables])
        found = estimate_jpeg_tables(pixels)
        assert found.status is JpegStatus.OTHER
        assert found.quality is None and found.tables is not None
        known = found.tables > 0
        # Of 192 steps, those of frequencies that are not zero in nearly all blocks.
        assert known.sum() > 20
        assert np.array_equal(found.tables[known], tables[[0, 1, 1]][known])


def test_a_cropped_picture_shows_its_grid_when_asked(portraits):
    pixels = through_jpeg(portraits[0], quality=80)[3:51, 5:53]
    assert estimate_jpeg_tables(pixels).status is JpegStatus.NONE
    found = estimate_jpeg_tables(pixels, search_grid=True)
    assert (found.grid, found.quality, found.layout) == ((5, 3), 80, None)


def test_of_two_compressions_the_last_is_found_unless_it_was_much_finer(portraits):
    pixels = resized(portraits[0], 64, 64)
    for first, second, expected in ((60, 85, 85), (85, 60, 60), (50, 95, 50)):
        twice = through_jpeg(through_jpeg(pixels, quality=first), quality=second)
        assert estimate_jpeg_tables(twice).quality == expected
    assert estimate_jpeg_tables(through_jpeg(through_jpeg(pixels, quality=75), quality=90)).twice


@pytest.mark.parametrize("length", [16, 17, 5])
def test_the_interpolation_that_is_undone_is_the_decoders(length):
    """Half as many samples as columns, rounded, against chroma of a file that varies sideways."""
    samples = -(-length // 2)
    rng = np.random.default_rng(0)
    chroma = np.repeat(rng.integers(90, 170, samples), 2)[:length].astype(np.uint8)
    picture = Image.merge(
        "YCbCr",
        [Image.fromarray(np.tile(row, (16, 1))) for row in (np.full(length, 128, np.uint8), chroma)]
        + [Image.new("L", (length, 16), 128)],
    )
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", qtables=[[1] * 64] * 2, subsampling="4:2:2")
    decoded = Image.open(buffer)
    decoded.draft("YCbCr", picture.size)
    expected = triangle_upsampling(length) @ chroma[::2]
    # Steps of one blur a sample by up to about one level.
    assert np.abs(np.asarray(decoded)[0, :, 1] - expected).max() < 2


def test_pixels_of_another_kind_are_refused():
    for pixels in (np.zeros((8, 8, 3)), np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8)):
        with pytest.raises(JpegError, match=r"expected uint8 \(H, W, 1 or 3\)"):
            estimate_jpeg_tables(pixels)
