"""Image files: what is written is read back, and every kind of bad file gets one clear line."""

import numpy as np
import pytest
from PIL import Image

from fpjax.data.files import (
    ImageError,
    from_uint8,
    image_grid,
    load_image,
    save_image,
    to_uint8,
)


def _image(side=8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3)).astype(np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".bmp", ".tiff"])
def test_lossless_files_come_back_exactly(tmp_path, suffix):
    path = tmp_path / f"image{suffix}"
    if suffix == ".webp":
        Image.fromarray(_image()).save(path, lossless=True)
    else:
        save_image(path, _image())
    np.testing.assert_array_equal(load_image(path, 8), _image())


def test_the_content_decides_the_format_not_the_name(tmp_path):
    save_image(tmp_path / "a.png", _image())
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    np.testing.assert_array_equal(load_image(tmp_path / "a.jpg"), _image())


def test_grey_and_palette_files_become_rgb(tmp_path):
    grey = Image.fromarray(_image()[..., 0])
    grey.save(tmp_path / "grey.png")
    assert load_image(tmp_path / "grey.png").shape == (8, 8, 3)


def test_eight_bit_values_survive_the_round_trip_to_floats():
    values = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(to_uint8(from_uint8(values)), values)


def _text(path):
    path.write_text("this is no picture")


def _truncated(path):
    save_image(path, _image(64))
    path.write_bytes(path.read_bytes()[:500])


def _empty(path):
    path.write_bytes(b"")


def _directory(path):
    path.mkdir()


def _too_large(path):
    save_image(path, _image(16))


def _sixteen_bit(path):
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(path)


def _transparent(path):
    Image.fromarray(np.zeros((8, 8, 4), np.uint8)).save(path)


def _missing(path):
    del path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_text, "not an image file"),
        (_truncated, "cannot be read"),
        (_empty, "not an image file"),
        (_directory, "cannot be read"),
        (_too_large, "the image is 16x16, the generator makes 8x8"),
        (_sixteen_bit, "8-bit colour image"),
        (_transparent, "transparent"),
        (_missing, "no such file"),
    ],
)
def test_files_that_cannot_be_used_say_why(tmp_path, make, message):
    path = tmp_path / "image.png"
    make(path)
    side = None if make is _truncated else 8
    with pytest.raises(ImageError, match=message) as error:
        load_image(path, side)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    save_image(tmp_path / "image.png", _image(64))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match="would not fit in memory"):
        load_image(tmp_path / "image.png")


def test_what_is_no_image_is_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"expected uint8 \(H, W, 3\)"):
        save_image(tmp_path / "a.png", np.zeros((4, 4, 3), np.float32))
    with pytest.raises(ValueError, match=r"try \.png"):
        save_image(tmp_path / "a.txt", _image())
    assert not list(tmp_path.iterdir())


def test_a_grid_reads_row_by_row():
    tiles = np.stack([np.full((1, 1, 3), i, np.uint8) for i in range(4)])
    assert image_grid(tiles, 2)[..., 0].tolist() == [[0, 1], [2, 3]]
