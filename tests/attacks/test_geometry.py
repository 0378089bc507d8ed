"""Size, crop, rotation, perspective, painted parts, collusion: SciPy, PyTorch and properties."""

import jax
import numpy as np
import pytest
import scipy.ndimage
import torch
from PIL import Image

from fpjax.attacks import (
    AttackError,
    Average,
    CropPad,
    CropResize,
    Erase,
    Flip,
    Overlay,
    Perspective,
    Rescale,
    Resize,
    Rotate,
    Shear,
    Shift,
)
from fpjax.attacks.base import uniform_per_image
from fpjax.attacks.crop import windows
from fpjax.attacks.geometry import perspective_coefficients
from tests.attacks.test_protocol import pictures

KEY = jax.random.key(0)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_rescaling_is_torchs_antialiased_interpolation(mode, scale):
    images = pictures((2, 32, 48, 3))
    x = torch.from_numpy(images.astype(np.float64)).permute(0, 3, 1, 2)
    size = (int(32 * scale), int(48 * scale))
    expected = torch.nn.functional.interpolate(x, size, mode=mode, antialias=True)
    expected = expected.permute(0, 2, 3, 1).clamp(0, 255).numpy()
    actual = Rescale(scale, mode)(KEY, images)
    # Pillow's weights have 22 bits, and it rounds after each of the two passes.
    assert np.abs(actual - expected).max() <= 1.2


def test_resizing_goes_there_and_back():
    images = pictures((1, 33, 46, 3))
    smaller = Image.fromarray(images[0]).resize((23, 16), Image.Resampling.LANCZOS)
    expected = np.asarray(smaller.resize((46, 33), Image.Resampling.LANCZOS))
    assert np.array_equal(Resize(0.5, "lanczos")(KEY, images)[0], expected)
    assert np.array_equal(Resize(1.0)(KEY, images), images)


def test_resizing_never_leaves_nothing():
    images = pictures((1, 3, 50, 1))
    assert Rescale(0.02)(KEY, images).shape == (1, 1, 1, 1)
    assert Resize(0.02)(KEY, images).shape == images.shape


def test_cropping_keeps_a_window_in_its_place():
    images = np.maximum(pictures((4, 20, 30, 3)), 1)
    out = CropPad(side=0.5, fill=0)(KEY, images)
    kept = (out > 0).all(-1)
    assert (kept.sum((1, 2)) == 10 * 15).all()
    assert np.array_equal(out[kept], images[kept])
    for mask in kept:  # One rectangle, ten rows by fifteen columns.
        assert mask.any(1).sum() == 10 and mask.any(0).sum() == 15
    assert np.array_equal(CropPad(side=1.0)(KEY, images), images)


def test_enlarged_crops_are_pillows_resizing_of_the_window():
    images = pictures((3, 20, 30, 3))
    out = CropResize(side=0.6, filter="bilinear")(KEY, images)
    for index, (top, left, height, width) in enumerate(windows(KEY, (3, 20, 30), 0.6, "random")):
        window = Image.fromarray(images[index, top : top + height, left : left + width])
        expected = np.asarray(window.resize((30, 20), Image.Resampling.BILINEAR))
        assert np.array_equal(out[index], expected)
    assert np.array_equal(CropResize(side=1.0)(KEY, images), images)


def test_windows_are_uniform_over_all_places_and_stay_inside():
    places = np.array(windows(KEY, (2000, 12, 8), 0.75, "random"))
    assert (places[:, 2:] == [9, 6]).all()
    for column, spare in ((0, 3), (1, 2)):
        counts = np.bincount(places[:, column], minlength=spare + 1)
        assert len(counts) == spare + 1
        # Binomial: five standard deviations.
        share = 1 / (spare + 1)
        assert (np.abs(counts - 2000 * share) < 5 * np.sqrt(2000 * share * (1 - share))).all()
    assert windows(KEY, (1, 12, 8), 0.5, "centre") == [(3, 2, 6, 4)]


@pytest.mark.parametrize("degrees", [9.0, -30.0])
def test_rotation_is_scipys(degrees):
    rows, columns = np.mgrid[:40, :40]
    smooth = (128 + 90 * np.sin(rows / 9) * np.cos(columns / 8)).astype(np.uint8)[None, ..., None]
    actual = Rotate(degrees, "bicubic")(KEY, smooth)[0, ..., 0]
    expected = scipy.ndimage.rotate(smooth[0, ..., 0].astype(float), degrees, reshape=False)
    disc = (rows - 19.5) ** 2 + (columns - 19.5) ** 2 < 17**2
    # Cubic convolution against a cubic spline on smooth content.
    assert np.abs(actual - expected)[disc].max() < 2


def test_quarter_turns_are_exact_and_no_turn_changes_nothing():
    images = pictures((2, 24, 24, 3))
    assert np.array_equal(Rotate(90.0)(KEY, images), np.rot90(images, 1, (1, 2)))
    assert np.array_equal(Rotate(0.0)(KEY, images), images)
    assert np.array_equal(Shear(0.0)(KEY, images), images)
    assert np.array_equal(Shift(0, 0)(KEY, images), images)


def test_corners_from_outside_take_the_stated_grey():
    white = np.full((1, 20, 20, 3), 255, np.uint8)
    for attack in (Rotate(45.0, fill=7), Shear(30.0, fill=7)):
        assert (attack(KEY, white)[0, 0, 0] == 7).all()


def test_shear_moves_rows_by_their_distance_from_the_middle():
    line = np.zeros((1, 41, 61, 1), np.uint8)
    line[:, :, 30] = 255
    out = Shear(20.0, "bilinear")(KEY, line)[0, ..., 0].astype(float)
    centre = (out * np.arange(61)).sum(1) / out.sum(1)
    slope = np.polyfit(np.arange(41), centre, 1)[0]
    assert slope == pytest.approx(-np.tan(np.radians(20)), rel=0.02)
    assert centre[20] == pytest.approx(30, abs=0.3)


def test_shear_and_perspective_are_scipys_interpolation():
    """Away from edges: places of the source, by SciPy's bilinear interpolation."""
    image = pictures((1, 40, 60, 1))
    y, x = np.mgrid[:40, :60] + 0.5
    slope = np.tan(np.radians(12.0))
    warps = {
        Shear(12.0, "bilinear"): (x + slope * (y - 20), y),
        Perspective(0.4, "bilinear"): None,
    }
    for attack, places in warps.items():
        if places is None:
            size = np.array([60.0, 40.0])
            corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * size
            inwards = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) * size / 2 * 0.4
            moves = uniform_per_image(KEY, 1, 8).reshape(4, 2) * inwards
            a, b, c, d, e, f, g, h = perspective_coefficients(corners + moves, corners)
            scale = g * x + h * y + 1
            places = (a * x + b * y + c) / scale, (d * x + e * y + f) / scale
        u, v = places
        inside = (u > 1.5) & (u < 58.5) & (v > 1.5) & (v < 38.5)
        source = image[0, ..., 0].astype(float)
        expected = scipy.ndimage.map_coordinates(source, [v - 0.5, u - 0.5], order=1)
        out = attack(KEY, image)[0, ..., 0]
        assert inside.mean() > 0.5
        np.testing.assert_allclose(out[inside], expected[inside], atol=1.01)


def test_flips_undo_themselves():
    images = pictures()
    assert np.array_equal(Flip()(KEY, images), images[:, :, ::-1])
    assert np.array_equal(Flip("vertical")(KEY, images), images[:, ::-1])


def test_perspective_takes_the_corners_where_they_should_go():
    points = np.array([[2.0, 1.0], [28.0, 3.0], [26.0, 17.0], [1.0, 19.0]])
    corners = np.array([[0.0, 0.0], [30.0, 0.0], [30.0, 20.0], [0.0, 20.0]])
    a, b, c, d, e, f, g, h = perspective_coefficients(points, corners)
    x, y = points.T
    scale = g * x + h * y + 1
    mapped = np.stack([(a * x + b * y + c) / scale, (d * x + e * y + f) / scale], 1)
    np.testing.assert_allclose(mapped, corners, atol=1e-9)


def test_perspective_shrinks_the_picture_into_its_frame():
    white = np.full((3, 40, 60, 1), 255, np.uint8)
    out = Perspective(0.5, fill=0)(KEY, white)
    # Each corner moves by at most a quarter of a side, so the middle half is never touched.
    assert (out[:, 10:30, 15:45] == 255).all()
    assert (out[:, [0, 0, -1, -1], [0, -1, 0, -1]] == 0).mean() > 0.8


def test_shift_moves_whole_pixels_and_repeats_the_edge():
    images = pictures((1, 20, 30, 3))
    out = Shift(down=2, right=-3)(KEY, images)
    assert np.array_equal(out[:, 2:, :-3], images[:, :-2, 3:])
    assert np.array_equal(out[:, 0, :-3], images[:, 0, 3:])
    expected = scipy.ndimage.shift(images[0, ..., 0], (2, -3), order=0, mode="nearest")
    assert np.array_equal(out[0, ..., 0], expected)


@pytest.mark.parametrize(("area", "aspect"), [(0.25, 1.0), (0.1, 3.0), (1.0, 1.0)])
def test_erased_rectangles_have_the_stated_area_and_aspect(area, aspect):
    images = np.full((20, 60, 80, 3), 9, np.uint8)
    mask = (Erase(area, aspect, fill=0)(KEY, images) == 0).all(-1)
    rows, columns = mask.any(2).sum(1), mask.any(1).sum(1)
    assert (mask.sum((1, 2)) == rows * columns).all()
    # Rows are rounded to whole pixels, then columns.
    np.testing.assert_allclose(mask.mean((1, 2)), area, rtol=0.03)
    if area < 1:
        np.testing.assert_allclose(columns / rows, aspect, rtol=0.06)


def test_overlays_blend_one_colour_inside_an_ellipse():
    images = pictures((3, 40, 40, 3))
    out = Overlay(area=0.25, opacity=1.0)(KEY, images)
    for before, after in zip(images, out, strict=True):
        changed = (before != after).any(-1)
        # A circle of diameter 20; pixels that had the sticker's colour already are not counted.
        assert changed.sum() == pytest.approx(np.pi * 100, rel=0.03)
        assert len(np.unique(after[changed], axis=0)) == 1
    half = Overlay(area=0.25, opacity=0.5)(KEY, images)
    assert np.abs(half - (images.astype(float) + out) / 2).max() <= 0.5


def test_averaging_is_the_mean_of_neighbours_in_the_batch():
    images = pictures((4, 8, 9, 3))
    out = Average(users=3)(KEY, images)
    assert np.abs(out[3] - images[[3, 0, 1]].mean(0)).max() <= 0.5 + 1e-9
    assert np.array_equal(Average(users=1)(KEY, images), images)
    with pytest.raises(AttackError, match="a batch of 4 pictures, expected one of each of 5"):
        Average(users=5)(KEY, images)
