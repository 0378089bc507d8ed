"""JPEG files against Pillow's encoder and decoder, and the linear map against what files store."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from fpjax.io.jpeg import (
    dequantised_coefficients,
    nearest_quality,
    read_jpeg_header,
    standard_tables,
    stored_coefficients,
)
from fpjax.io.jpeg_dct import (
    YCBCR_FROM_RGB,
    JpegError,
    JpegLayout,
    coefficient_noise_std,
    dct_matrix,
    jpeg_coefficients,
    quantisation_steps,
)

SIZES = [(64, 48), (37, 53), (38, 50), (17, 9), (8, 8), (3, 2), (33, 16)]
SUBSAMPLINGS = ["4:4:4", "4:2:2", "4:2:0"]


def encode(pixels, **options):
    buffer = io.BytesIO()
    mode = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    Image.fromarray(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def noise(height, width, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, channels)).astype(np.uint8)


def smooth(height, width, seed=0):
    """Colour waves that stay inside 0..255 when compressed."""
    rows, columns = np.mgrid[:height, :width]
    phase = np.random.default_rng(seed).uniform(0, 6, 3)
    waves = np.sin(rows[..., None] / 6 + phase) + np.cos(columns[..., None] / 9 - phase)
    return np.clip(128 + 40 * waves, 0, 255).astype(np.uint8)


def scaled(pixels):
    return jnp.asarray(pixels, jnp.float32) / 127.5 - 1


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_a_file_stores_the_linear_map_to_half_a_step(size, subsampling):
    pixels = noise(*size)
    file = encode(pixels, quality=75, subsampling=subsampling)
    header = read_jpeg_header(file)
    assert header.layout == JpegLayout.of(*size, subsampling)
    steps = quantisation_steps(header.layout, header.tables)
    error = dequantised_coefficients(file) - jpeg_coefficients(scaled(pixels), header.layout)
    # The encoder rounds luma and chroma to whole levels first. That moves a coefficient by 0.41 of
    # a level (standard deviation, 4:2:0 chroma; five of those), and shows beside half a step.
    assert np.abs(error).max() < (steps / 2 + 5 * 0.41).max()
    assert (np.abs(error) - steps / 2).max() < 5 * 0.41
    assert (np.abs(error) > steps / 2).mean() < 0.04


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
@pytest.mark.parametrize("quality", [90, 99])
def test_the_noise_of_a_file_has_the_stated_standard_deviation(subsampling, quality):
    pixels = noise(256, 256)
    file = encode(pixels, quality=quality, subsampling=subsampling)
    header = read_jpeg_header(file)
    error = dequantised_coefficients(file) - jpeg_coefficients(scaled(pixels), header.layout)
    ratio = error / coefficient_noise_std(header.layout, header.tables)
    for part in header.layout.split(np.asarray(ratio)):
        # 16,384 coefficients or more: a uniform variable's mean square is known to 0.7 %.
        assert np.mean(part**2) == pytest.approx(1, abs=0.035)


def test_chroma_of_420_is_the_encoders_mean_over_two_by_two_pixels():
    """Steps of one show the encoder's own planes: rounded chroma, averaged, rounded."""
    pixels = noise(32, 48)
    file = encode(pixels, qtables=[[1] * 64] * 2, subsampling="4:2:0")
    header = read_jpeg_header(file)
    # libjpeg rounds chroma to the nearest level, ties down, and means alternately up and down.
    chroma = np.ceil((pixels @ YCBCR_FROM_RGB.T).round(6) - 0.5).astype(int) + 128
    bias = np.tile([1, 2], 12)
    matrix = dct_matrix()
    for channel in (1, 2):
        sums = chroma[..., channel].reshape(16, 2, 24, 2).sum((1, 3))
        plane = (sums + bias) // 4 - 128.0
        blocks = plane.reshape(2, 8, 3, 8).transpose(0, 2, 1, 3)
        expected = matrix @ blocks @ matrix.T
        actual = stored_coefficients(file)[channel]
        # Half a step, and the encoder's arithmetic: 13 bits in the DCT, 16 in the colours.
        assert np.abs(actual - expected).max() < 0.6
    assert header.tables.max() == 1


def test_decoding_the_stored_coefficients_gives_pillows_grey_pixels():
    pixels = smooth(40, 56)[..., :1]
    file = encode(pixels, quality=80)
    layout = read_jpeg_header(file).layout
    blocks = layout.split(dequantised_coefficients(file))[0]
    matrix = dct_matrix()
    plane = (matrix.T @ blocks @ matrix).transpose(0, 2, 1, 3).reshape(40, 56) + 127.5
    decoded = np.asarray(Image.open(io.BytesIO(file)))
    # Rounded to whole levels by an inverse DCT of 13-bit arithmetic.
    assert np.abs(decoded - plane).max() < 0.55


def test_pixels_of_a_decoded_file_lead_back_to_what_it_stores():
    """Decode, measure again, round to multiples of the tables: the stored numbers."""
    pixels = smooth(48, 64)
    for options in ({"subsampling": "4:4:4"}, {"subsampling": "4:4:4", "progressive": True}):
        file = encode(pixels, quality=75, **options)
        header = read_jpeg_header(file)
        decoded = np.asarray(Image.open(io.BytesIO(file)))
        measured = jpeg_coefficients(scaled(decoded), header.layout)
        steps = quantisation_steps(header.layout, header.tables)
        stored = dequantised_coefficients(file)
        offset = stored - np.round(stored / steps) * steps
        found = np.round((np.asarray(measured) - offset) / steps) * steps + offset
        np.testing.assert_allclose(found, stored, atol=1e-3)


@pytest.mark.parametrize("channels", [1, 3])
def test_progressive_files_store_the_same_coefficients(channels):
    pixels = smooth(40, 56)[..., :channels]
    plain, progressive = encode(pixels, quality=70), encode(pixels, quality=70, progressive=True)
    assert not read_jpeg_header(plain).progressive
    assert read_jpeg_header(progressive).progressive
    for a, b in zip(stored_coefficients(plain), stored_coefficients(progressive), strict=True):
        assert np.array_equal(a, b)


def test_stored_rgb_and_grey_files_are_told_from_luma_and_chroma():
    pixels = noise(24, 40)
    for data, image in (
        (encode(pixels, quality=90, keep_rgb=True), pixels),
        (encode(pixels[..., :1], quality=90), pixels[..., :1]),
    ):
        header = read_jpeg_header(data)
        steps = quantisation_steps(header.layout, header.tables)
        error = dequantised_coefficients(data) - jpeg_coefficients(scaled(image), header.layout)
        # Nothing is rounded before the DCT; float32 and the encoder's 13-bit arithmetic are left.
        assert (np.abs(error) - steps / 2).max() < 0.1
    assert read_jpeg_header(encode(pixels, keep_rgb=True)).layout.colour == "rgb"
    assert read_jpeg_header(encode(pixels[..., :1])).layout.subsampling == "grey"


def test_a_colour_picture_seen_through_a_grey_file_is_its_luma():
    pixels = noise(16, 24)
    grey = np.asarray(Image.fromarray(pixels).convert("L"))[..., None]
    layout = JpegLayout.of(16, 24, "grey")
    difference = jpeg_coefficients(scaled(pixels), layout) - jpeg_coefficients(scaled(grey), layout)
    # Only the rounding of luma to whole levels is between them.
    assert np.abs(difference).max() < 5 * np.sqrt(1 / 12)
    colour = JpegLayout.of(16, 24, "4:4:4")
    repeated = jpeg_coefficients(scaled(np.repeat(grey, 3, -1)), colour)
    # Float32 sums of 64 values of up to 128.
    np.testing.assert_allclose(jpeg_coefficients(scaled(grey), colour), repeated, atol=2e-3)


def test_the_map_is_linear_and_goes_through_every_transformation():
    layout = JpegLayout.of(19, 21, "4:2:0")
    keys = jax.random.split(jax.random.key(0))
    x, y = (jax.random.uniform(key, (2, 19, 21, 3), minval=-1) for key in keys)

    @jax.jit
    def apply(images):
        return jpeg_coefficients(images, layout)

    out, tangent = jax.jvp(apply, (x,), (y,))
    np.testing.assert_allclose(tangent, apply(y), atol=1e-3)
    np.testing.assert_allclose(apply(x + 2 * y), out + 2 * tangent, atol=1e-2)
    np.testing.assert_allclose(jax.vmap(apply)(x), out, atol=1e-3)
    cotangent = jax.random.normal(jax.random.key(1), out.shape)
    (transposed,) = jax.linear_transpose(apply, x)(cotangent)
    assert jnp.vdot(transposed, y) == pytest.approx(float(jnp.vdot(cotangent, tangent)), rel=1e-4)
    assert out.shape == (2, layout.num_coefficients)


def test_the_map_keeps_the_dtype_under_strict_promotion_and_compiles():
    layout = JpegLayout.of(16, 16)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        out = jpeg_coefficients(jnp.zeros((2, 16, 16, 3)), layout)
    assert out.dtype == jnp.float32
    with jax.enable_x64(True):
        images = jnp.asarray(noise(16, 16) / 127.5 - 1)
        wide = jpeg_coefficients(images, layout)
        assert wide.dtype == jnp.float64
        narrow = jpeg_coefficients(images.astype(jnp.float32), layout)
        np.testing.assert_allclose(narrow, wide, atol=2e-3)


@pytest.mark.parametrize("quality", [1, 10, 50, 75, 95, 100])
def test_standard_tables_are_the_ones_libjpeg_writes(quality):
    header = read_jpeg_header(encode(noise(16, 16), quality=quality))
    luma, chroma = standard_tables(quality)
    assert np.array_equal(header.tables, [luma, chroma, chroma])
    assert header.standard and header.quality == quality


def test_other_tables_are_not_called_standard_but_get_their_nearest_quality():
    luma, chroma = standard_tables(80)
    luma[7, 7] += 1
    tables = [luma.ravel().tolist(), chroma.ravel().tolist()]
    header = read_jpeg_header(encode(noise(16, 16), qtables=tables))
    assert np.array_equal(header.tables, [luma, chroma, chroma])
    assert (header.quality, header.standard) == (80, False)
    assert nearest_quality(header.tables) == (80, False)


@pytest.mark.parametrize(
    ("subsampling", "width", "upsampling"),
    [
        ("4:4:4", 64, "none"),
        ("4:2:0", 64, "triangle"),
        ("4:2:2", 64, "triangle"),
        ("4:2:0", 4, "replicate"),
        ("4:1:1", 64, "replicate"),
    ],
)
def test_chroma_of_a_decoded_file_is_interpolated_as_the_layout_says(
    subsampling, width, upsampling
):
    layout = JpegLayout.of(16, width, subsampling)
    assert layout.upsampling == upsampling
    if subsampling in SUBSAMPLINGS:
        # A step in chroma: a decoder that repeats samples leaves pairs of equal columns.
        pixels = np.zeros((16, width, 3), np.uint8) + np.uint8(128)
        pixels[:, width // 2 :, 0] = 188
        file = encode(pixels, quality=95, subsampling=subsampling)
        chroma = np.asarray(Image.open(io.BytesIO(file)).convert("YCbCr"))[0, :, 2].astype(int)
        pairs = np.abs(chroma[::2] - chroma[1::2]).max()
        assert (pairs > 3) == (upsampling == "triangle")


def test_a_path_and_its_bytes_are_the_same_file(tmp_path):
    data = encode(noise(16, 24), quality=75)
    (tmp_path / "picture.bin").write_bytes(data)
    a, b = dequantised_coefficients(tmp_path / "picture.bin"), dequantised_coefficients(data)
    assert np.array_equal(a, b)


def test_files_that_are_no_whole_jpeg_are_refused(tmp_path):
    data = encode(noise(32, 48), quality=75)
    buffer = io.BytesIO()
    Image.fromarray(noise(8, 8)).save(buffer, "PNG")
    cmyk = io.BytesIO()
    Image.fromarray(noise(8, 8)).convert("CMYK").save(cmyk, "JPEG")
    for broken, message in (
        (b"", "not a JPEG file"),
        (buffer.getvalue(), "not a JPEG file"),
        (data[: len(data) // 2], "cannot be decoded"),
        (cmyk.getvalue(), "4 components, expected 1 .grey. or 3"),
    ):
        for read in (read_jpeg_header, stored_coefficients, dequantised_coefficients):
            with pytest.raises(JpegError, match=message):
                read(broken)
    with pytest.raises(JpegError, match=r"missing\.jpg: cannot be read .No such file"):
        read_jpeg_header(tmp_path / "missing.jpg")


def test_damaged_files_are_read_or_refused_and_nothing_else():
    rng = np.random.default_rng(0)
    refused = 0
    for options in ({}, {"progressive": True}):
        data = encode(noise(24, 40), quality=75, **options)
        for _ in range(100):
            damaged = bytearray(data)
            for place in rng.integers(0, 640, 3):  # The header and the start of the scan.
                damaged[place] = rng.integers(0, 256)
            try:
                coefficients = dequantised_coefficients(bytes(damaged))
                assert np.isfinite(coefficients).all()
            except JpegError:
                refused += 1
    assert refused > 20


def test_a_missing_reader_of_coefficients_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "jpeglib", None)
    data = encode(noise(16, 16))
    assert read_jpeg_header(data).quality == 75
    with pytest.raises(ImportError, match=r"fpjax\[jpeg\]"):
        dequantised_coefficients(data)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: JpegLayout(0, 8, ((1, 1),), "grey"), "1 to 65535"),
        (lambda: JpegLayout(8, 8, ((1, 1),), "cmyk"), "expected 'ycbcr'"),
        (lambda: JpegLayout(8, 8, ((1, 1),)), "has 3 components"),
        (lambda: JpegLayout(8, 8, ((5, 1), (1, 1), (1, 1))), "1 to 4"),
        (lambda: JpegLayout(8, 8, ((3, 1), (2, 1), (1, 1))), "parts of pixels"),
        (lambda: JpegLayout.of(8, 8, "4:3:2"), "expected one of 4:4:4"),
        (lambda: JpegLayout.of(8, 8).split(np.zeros(3)), "got 3 coefficients, expected 192"),
        (lambda: jpeg_coefficients(np.zeros((8, 8, 3), np.uint8), JpegLayout.of(8, 8)), "uint8"),
        (lambda: jpeg_coefficients(jnp.zeros((8, 9, 3)), JpegLayout.of(8, 8)), r"\(8, 9, 3\)"),
        (lambda: jpeg_coefficients(jnp.zeros((8, 8, 2)), JpegLayout.of(8, 8)), "2 channels"),
        (lambda: quantisation_steps(JpegLayout.of(8, 8), np.ones((2, 8, 8))), "each component"),
        (lambda: standard_tables(0), "expected 1 to 100"),
    ],
)
def test_misuse_is_explained(make, message):
    with pytest.raises(JpegError, match=message):
        make()
