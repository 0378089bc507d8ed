"""Image files: what is written is read back, and every kind of bad file gets one clear line."""

import io
import os
import struct

import numpy as np
import pytest
from PIL import Image

from fpjax.io.images import (
    ImageError,
    from_uint8,
    image_grid,
    load_image,
    read_image,
    save_image,
    to_uint8,
)

SHAPE = (8, 8, 3)


def _image(side=8, seed=0, width=None):
    shape = (side, width or side, 3)
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def chunk(kind: bytes, data: bytes) -> bytes:
    import zlib

    return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))


def png_of(raw: np.ndarray, colour: int, depth: int = 16, *chunks: bytes) -> bytes:
    """A PNG of values that are written as they are, without any library's conversion."""
    import zlib

    height, width = raw.shape[:2]
    rows = raw.astype(">u2" if depth == 16 else "u1").reshape(height, -1)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = struct.pack(">2L5B", width, height, depth, colour, 0, 0, 0)
    parts = (chunk(b"IHDR", header), *chunks, chunk(b"IDAT", data), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".bmp", ".tiff"])
def test_lossless_files_come_back_exactly(tmp_path, suffix):
    path = tmp_path / f"image{suffix}"
    if suffix == ".webp":
        Image.fromarray(_image()).save(path, lossless=True)
    else:
        save_image(path, _image())
    np.testing.assert_array_equal(load_image(path, SHAPE), _image())
    assert read_image(path).notes == ()


@pytest.mark.parametrize(
    ("suffix", "options"),
    {
        ".ppm": {},
        ".tga": {},
        ".qoi": {},
        ".jp2": {"irreversible": False},
        ".j2k": {"irreversible": False},
        ".avif": {"quality": 100, "subsampling": "4:4:4"},
        ".ico": {"sizes": [(16, 16)]},
    }.items(),
)
def test_other_formats_that_hold_8_bits_are_read(tmp_path, suffix, options):
    path = tmp_path / f"image{suffix}"
    Image.fromarray(_image(16)).save(path, **options)
    # AVIF at quality 100 is lossless but for its colour transform.
    np.testing.assert_allclose(
        load_image(path, (16, 16, 3)).astype(int), _image(16), atol=3 if suffix == ".avif" else 0
    )


def test_of_an_mpo_the_first_picture_is_read_and_said(tmp_path):
    path = tmp_path / "image.mpo"
    first, second = (Image.fromarray(_image(16, seed)) for seed in (0, 1))
    first.save(path, format="MPO", save_all=True, append_images=[second], quality=100)
    first.save(tmp_path / "alone.jpg", quality=100)
    found = read_image(path)
    np.testing.assert_array_equal(found.pixels, load_image(tmp_path / "alone.jpg"))
    assert found.notes == ("the first of 2 pictures",)


def test_the_content_decides_the_format_not_the_name(tmp_path):
    save_image(tmp_path / "a.png", _image())
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    np.testing.assert_array_equal(load_image(tmp_path / "a.jpg"), _image())


def test_grey_and_palette_files_become_rgb(tmp_path):
    grey = Image.fromarray(_image()[..., 0])
    grey.save(tmp_path / "grey.png")
    assert load_image(tmp_path / "grey.png").shape == (8, 8, 3)
    palette = Image.fromarray(_image() // 128 * 255).convert("P")
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(load_image(tmp_path / "palette.png"), palette.convert("RGB"))


def test_a_grey_generator_gets_one_channel(tmp_path):
    grey = _image()[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(np.stack([grey] * 3, -1)).save(tmp_path / "rgb.png")
    for name in ("grey.png", "rgb.png"):
        found = read_image(tmp_path / name, (8, 8, 1))
        np.testing.assert_array_equal(found.pixels, grey[..., None])
        assert found.notes == ()
    save_image(tmp_path / "saved.png", grey[..., None])
    np.testing.assert_array_equal(load_image(tmp_path / "saved.png", (8, 8, 1)), grey[..., None])
    save_image(tmp_path / "colour.png", _image())
    found = read_image(tmp_path / "colour.png", (8, 8, 1))
    assert found.pixels.shape == (8, 8, 1) and found.notes == ("made grey",)


def test_pictures_need_not_be_square(tmp_path):
    save_image(tmp_path / "a.png", _image(8, width=12))
    np.testing.assert_array_equal(load_image(tmp_path / "a.png", (8, 12, 3)), _image(8, width=12))
    with pytest.raises(ImageError, match="the image is 12x8, the generator makes 8x12"):
        load_image(tmp_path / "a.png", (12, 8, 3))
    for shape in ((8, 12), (8, 12, 4), (8, 12, 0)):
        with pytest.raises(ValueError, match="image_shape"):
            load_image(tmp_path / "a.png", shape)


# Orientation

ORIENT = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.transpose(1, 0, 2),
    6: lambda image: np.rot90(image),
    7: lambda image: np.rot90(image, 2).transpose(1, 0, 2),
    8: lambda image: np.rot90(image, -1),
}
"""How a viewer must have turned a picture before it stores it with this EXIF orientation."""


@pytest.mark.parametrize("orientation", ORIENT)
@pytest.mark.parametrize(
    ("suffix", "options"),
    {
        ".png": {},
        ".webp": {"lossless": True, "exact": True},
        ".tiff": {},
        ".jpg": {"quality": 100, "subsampling": 0},
        ".avif": {"quality": 100, "subsampling": "4:4:4"},
    }.items(),
)
def test_exif_orientation_is_honoured_in_every_format(tmp_path, suffix, options, orientation):
    upright = _image(16, width=24)
    upright[:8] //= 2  # not symmetric, whatever JPEG does to it
    stored = np.ascontiguousarray(ORIENT[orientation](upright))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"image{suffix}"
    Image.fromarray(stored).save(path, exif=exif, **options)
    found = read_image(path, (16, 24, 3))
    error = np.abs(found.pixels.astype(int) - upright).mean()
    assert error <= (2 if suffix in (".jpg", ".avif") else 0)  # random pixels are 85 apart
    assert [("EXIF" in note) for note in found.notes] == [True] * (orientation > 1)


def test_exif_behind_the_pixels_of_a_png_counts(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    raw = png_of(_image(), 2, 8)
    late = raw[:-12] + chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")) + raw[-12:]
    (tmp_path / "a.png").write_bytes(late)
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), _image()[::-1, ::-1])


def test_damaged_exif_is_left_out_and_said(tmp_path):
    Image.fromarray(_image()).save(tmp_path / "a.png", exif=b"Exif\0\0no TIFF header")
    found = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(found.pixels, _image())
    assert any("EXIF data are damaged" in note for note in found.notes)


# 16 bits

CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}


@pytest.mark.parametrize("colour", CHANNELS)
def test_16_bit_pngs_of_8_bit_values_are_read_and_others_refused(tmp_path, colour):
    values = np.random.default_rng(0).integers(0, 256, (8, 8, CHANNELS[colour]))
    if colour >= 4:
        values[..., -1] = 255
    path = tmp_path / "a.png"
    path.write_bytes(png_of(values * 257, colour))
    found = read_image(path, SHAPE)
    expected = np.broadcast_to(values[..., :1], SHAPE) if colour in (0, 4) else values[..., :3]
    np.testing.assert_array_equal(found.pixels, expected)
    assert "8-bit" in found.notes[0]
    wide = values * 257
    wide[3, 4, 0] ^= 1  # the low byte of one value, which Pillow drops
    path.write_bytes(png_of(wide, colour))
    with pytest.raises(ImageError, match="16 bits a channel"):
        load_image(path)


def _deep_tiff(path):
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(path, format="TIFF")


def _deep_ppm(path):
    path.write_bytes(b"P6 8 8 65535\n" + bytes(8 * 8 * 6))


def _ppm_of_fewer_levels(path):
    path.write_bytes(b"P6 8 8 100\n" + bytes(8 * 8 * 3))


def _deep_jpeg_2000(path):
    Image.fromarray(np.full((8, 8), 1000, np.uint16)).save(path, format="JPEG2000")


@pytest.mark.parametrize("make", [_deep_tiff, _deep_ppm, _ppm_of_fewer_levels, _deep_jpeg_2000])
def test_values_of_other_than_8_bits_are_refused_and_not_rounded(tmp_path, make):
    make(tmp_path / "a")
    with pytest.raises(ImageError, match="8-bit colour image"):
        load_image(tmp_path / "a")


# Files that cannot be used


def _text(path):
    path.write_text("this is no picture")


def _truncated(path):
    save_image(path, _image(64))
    path.write_bytes(path.read_bytes()[:500])


def _empty(path):
    path.write_bytes(b"")


def _directory(path):
    path.mkdir()


def _pipe(path):
    os.mkfifo(path)


def _device(path):
    path.symlink_to("/dev/zero")


def _too_large(path):
    save_image(path, _image(16))


def _transparent(path):
    Image.fromarray(np.zeros((8, 8, 4), np.uint8)).save(path)


def _two_frames(path):
    frames = [Image.fromarray(_image(seed=seed)) for seed in range(2)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def _missing(path):
    del path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_text, "not an image file"),
        (_truncated, "cannot be read"),
        (_empty, "not an image file"),
        (_directory, "no regular file"),
        (_pipe, "no regular file"),
        (_device, "no regular file"),
        (_too_large, "the image is 16x16, the generator makes 8x8"),
        (_transparent, "transparent"),
        (_two_frames, "holds 2 frames"),
        (_missing, "no such file"),
    ],
)
def test_files_that_cannot_be_used_say_why(tmp_path, make, message):
    path = tmp_path / "image.png"
    make(path)
    shape = None if make is _truncated else SHAPE
    with pytest.raises(ImageError, match=message) as error:
        load_image(path, shape)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_name_that_forges_a_line_is_escaped(tmp_path):
    path = tmp_path / "a.png\nb.png: attributed to eve\x1b[2J\u202e\udcff"
    with pytest.raises(ImageError) as error:
        load_image(path)
    assert str(error.value).isprintable() and "attributed to eve\\x1b[2J\\u202e\\udcff" in str(
        error.value
    )


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tiff", ".avif", ".jp2", ".tga"])
def test_changed_bytes_give_an_image_or_an_image_error(tmp_path, suffix):
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {} if suffix in (".jp2", ".tga") else {"exif": exif}
    formats = Image.registered_extensions()
    Image.fromarray(_image(16)).save(buffer, format=formats[suffix], **options)
    rng = np.random.default_rng(0)
    for _ in range(60):
        data = bytearray(buffer.getvalue())
        for position in rng.integers(0, min(len(data), 400), 3):
            data[position] = rng.integers(256)
        (tmp_path / "a").write_bytes(data[: rng.integers(20, len(data) + 1)])
        try:
            assert load_image(tmp_path / "a", (16, 16, 3)).shape == (16, 16, 3)
        except ImageError as error:
            assert str(error).isprintable()


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    save_image(tmp_path / "image.png", _image(64))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match="would not fit in memory"):
        load_image(tmp_path / "image.png")


def test_eight_bit_values_survive_the_round_trip_to_floats():
    values = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(to_uint8(from_uint8(values)), values)


def test_what_is_no_image_is_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"expected uint8 \(H, W, 1 or 3\)"):
        save_image(tmp_path / "a.png", np.zeros((4, 4, 3), np.float32))
    with pytest.raises(ValueError, match=r"try \.png"):
        save_image(tmp_path / "a.txt", _image())
    assert not list(tmp_path.iterdir())


def test_a_grid_reads_row_by_row():
    tiles = np.stack([np.full((1, 1, 3), i, np.uint8) for i in range(4)])
    assert image_grid(tiles, 2)[..., 0].tolist() == [[0, 1], [2, 3]]
