"""A picture in another colour space is read as the picture it is, and that is said."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from fpjax.io.colour import SRGB_PRIMARIES, Encoding, to_srgb
from fpjax.io.images import ImageError, load_image, read_image
from tests.io.test_images import chunk, png_of

ADOBE_RGB = (0.60974, 0.31111, 0.01947, 0.20528, 0.62567, 0.06087, 0.14919, 0.06322, 0.74457)
"""XYZ of red, green and blue under D50, from Adobe RGB (1998), 4.3.6."""


def profile_of(xyz, gamma: float, space: bytes = b"RGB ") -> bytes:
    """A minimal ICC profile of a matrix and a gamma (ICC.1:2001-04)."""

    def triple(values):
        return b"XYZ \0\0\0\0" + struct.pack(">3l", *(round(value * 65536) for value in values))

    curve = b"curv\0\0\0\0" + struct.pack(">LH", 1, round(gamma * 256)) + b"\0\0"
    name = b"desc\0\0\0\0" + struct.pack(">L", 5) + b"Test\0" + bytes(79)
    tags = {
        b"desc": name,
        b"cprt": b"text\0\0\0\0none\0\0\0\0",
        b"wtpt": triple((0.9642, 1, 0.8249)),
    }
    if space == b"RGB ":
        for i, letter in enumerate((b"r", b"g", b"b")):
            tags[letter + b"XYZ"] = triple(xyz[3 * i : 3 * i + 3])
            tags[letter + b"TRC"] = curve
    else:
        tags[b"kTRC"] = curve
    table, body, start = b"", b"", 132 + 12 * len(tags)
    for tag, data in tags.items():
        data += bytes(-len(data) % 4)
        table += tag + struct.pack(">2L", start + len(body), len(data))
        body += data
    head = bytes(8) + b"\x02\x10\0\0mntr" + space + b"XYZ " + bytes(12) + b"acsp" + bytes(28)
    head += struct.pack(">3l", 63190, 65536, 54061) + bytes(48)
    whole = head + struct.pack(">L", len(tags)) + table + body
    return struct.pack(">L", len(whole)) + whole[4:]


def picture(side=16):
    """Smooth and not too saturated, so that other spaces hold it."""
    y, x = np.mgrid[:side, :side] / side
    return np.stack([60 + 120 * x, 70 + 100 * y, 160 - 80 * x * y], -1).astype(np.uint8)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "image"


def in_space(image: np.ndarray, profile: bytes) -> Image.Image:
    return ImageCms.profileToProfile(
        Image.fromarray(image),
        ImageCms.createProfile("sRGB"),
        ImageCms.ImageCmsProfile(io.BytesIO(profile)),
        outputMode="RGB",
    )


@pytest.mark.parametrize(
    ("kind", "options"),
    {
        "PNG": {},
        "TIFF": {},
        "WEBP": {"lossless": True, "exact": True},
        "JPEG": {"quality": 100, "subsampling": 0},
        "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    }.items(),
)
def test_the_owners_picture_in_adobe_rgb_is_the_owners_picture(path, kind, options):
    profile = profile_of(ADOBE_RGB, 563 / 256)
    stored = in_space(picture(), profile)
    assert np.abs(np.asarray(stored, int) - picture()).max() > 10
    stored.save(path, format=kind, icc_profile=profile, **options)
    found = read_image(path, (16, 16, 3))
    error = np.abs(found.pixels.astype(int) - picture())
    # Two roundings to 8 bits; the lossy formats add their own.
    assert error.max() <= 2 if kind in ("PNG", "TIFF", "WEBP") else error.mean() < 2
    assert found.notes == ("converted to sRGB from its ICC profile (Test)",)


def test_the_profile_of_a_jpeg_2000_counts(path):
    profile = profile_of(ADOBE_RGB, 563 / 256)
    buffer = io.BytesIO()
    in_space(picture(), profile).save(buffer, format="JPEG2000", irreversible=False)
    data = buffer.getvalue()
    start, end = data.index(b"jp2h") - 4, data.index(b"jp2c") - 4
    header, at = data[start:end], data[start:end].index(b"colr") - 4
    length = int.from_bytes(header[at : at + 4], "big")
    colour = struct.pack(">L4s3B", 11 + len(profile), b"colr", 2, 0, 0) + profile
    header = header[:at] + colour + header[at + length :]
    header = struct.pack(">L", len(header)) + header[4:]
    path.write_bytes(data[:start] + header + data[end:])
    found = read_image(path)
    assert np.abs(found.pixels.astype(int) - picture()).max() <= 2
    assert found.notes == ("converted to sRGB from its ICC profile (Test)",)


def test_a_profile_of_srgb_itself_changes_no_bit(path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(picture()).save(path, format="PNG", icc_profile=profile)
    found = read_image(path)
    np.testing.assert_array_equal(found.pixels, picture())
    assert found.notes == ()


def test_a_grey_profile_of_another_gamma_is_applied(path):
    levels = np.arange(256, dtype=np.uint8)[None].repeat(2, 0)
    light = levels / 255
    Image.fromarray(levels).save(path, format="PNG", icc_profile=profile_of((), 1.0, b"GRAY"))
    found = read_image(path)
    srgb = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    assert np.abs(found.pixels[..., 0] - srgb * 255).max() <= 1.5
    assert len(found.notes) == 1


@pytest.mark.parametrize("profile", [b"no profile", bytes(5 << 20), profile_of(ADOBE_RGB, 2)[:200]])
def test_a_profile_that_cannot_be_used_is_left_out_and_said(path, profile):
    Image.fromarray(picture()).save(path, format="TIFF", icc_profile=profile)
    found = read_image(path)
    np.testing.assert_array_equal(found.pixels, picture())
    assert len(found.notes) == 1 and "left out" in found.notes[0]


# PNG

LINEAR = np.linspace(0, 1, 256)
SRGB_CHRM = struct.pack(">8L", *(round(100_000 * value) for value in SRGB_PRIMARIES))
SRGB_GAMA = struct.pack(">L", 45455)


def ramp():
    return np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)


@pytest.mark.parametrize(
    "chunks",
    [
        [(b"gAMA", SRGB_GAMA)],
        [(b"gAMA", SRGB_GAMA), (b"cHRM", SRGB_CHRM)],
        [(b"sRGB", b"\0"), (b"gAMA", struct.pack(">L", 100_000))],
        [(b"cICP", bytes((1, 13, 0, 1)))],
        [(b"cICP", bytes((1, 13, 0, 1))), (b"gAMA", struct.pack(">L", 100_000))],
    ],
)
def test_png_chunks_that_mean_srgb_change_no_bit(path, chunks):
    path.write_bytes(png_of(ramp(), 2, 8, *(chunk(*each) for each in chunks)))
    found = read_image(path)
    np.testing.assert_array_equal(found.pixels, ramp())
    assert found.notes == ()


@pytest.mark.parametrize("gamma", [0.3, 1.0])
@pytest.mark.parametrize("colour", [0, 2])
def test_png_gamma_is_applied(path, gamma, colour):
    stored = ramp() if colour == 2 else ramp()[..., :1]
    path.write_bytes(png_of(stored, colour, 8, chunk(b"gAMA", struct.pack(">L", int(gamma * 1e5)))))
    found = read_image(path)
    light = (ramp() / 255) ** (1 / gamma)
    srgb = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    assert np.abs(found.pixels - 255 * srgb).max() <= 0.51
    assert found.notes == (f"converted to sRGB from gamma {gamma:g}",)


def test_png_primaries_are_applied_as_a_colour_manager_would(path):
    # Adobe RGB's primaries, stated by cHRM and gAMA instead of a profile.
    chrm = (0.3127, 0.3290, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
    stored = np.asarray(in_space(picture(), profile_of(ADOBE_RGB, 563 / 256)))
    chunks = chunk(b"gAMA", struct.pack(">L", round(1e5 * 256 / 563)))
    chunks += chunk(b"cHRM", struct.pack(">8L", *(round(1e5 * value) for value in chrm)))
    path.write_bytes(png_of(stored, 2, 8, chunks))
    found = read_image(path)
    assert np.abs(found.pixels.astype(int) - picture()).max() <= 2
    assert "primaries" in found.notes[0]


def test_display_p3_by_cicp_is_converted(path):
    # In Display P3, sRGB's pure red has the values 234, 51, 35 (known from CSS Color 4).
    stored = np.broadcast_to(np.array([234, 51, 35], np.uint8), (4, 4, 3))
    path.write_bytes(png_of(stored, 2, 8, chunk(b"cICP", bytes((12, 13, 0, 1)))))
    found = read_image(path)
    assert np.abs(found.pixels[0, 0].astype(int) - (255, 0, 0)).max() <= 6  # at the gamut's edge
    assert "Display P3" in found.notes[0]


def avif(primaries: int, transfer: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture()).save(buffer, format="AVIF", quality=100, subsampling="4:4:4")
    head, mark, tail = buffer.getvalue().partition(b"colrnclx")
    assert mark
    return head + mark + struct.pack(">2H", primaries, transfer) + tail[4:]


@pytest.mark.parametrize("coded", [(1, 13), (1, 1), (2, 2), (6, 6)])
def test_avif_files_that_mean_srgb_are_taken_as_they_are(path, coded):
    path.write_bytes(avif(*coded))
    found = read_image(path)
    assert found.notes == ()
    assert np.abs(found.pixels.astype(int) - picture()).mean() < 2


def test_display_p3_in_avif_is_converted(path):
    path.write_bytes(avif(1, 13))
    stored = load_image(path)
    path.write_bytes(avif(12, 13))
    found = read_image(path)
    assert found.notes == ("converted to sRGB from Display P3, sRGB (nclx)",)
    path.write_bytes(png_of(stored, 2, 8, chunk(b"cICP", bytes((12, 13, 0, 1)))))
    np.testing.assert_array_equal(found.pixels, load_image(path))
    assert np.abs(found.pixels.astype(int) - stored).max() > 3


@pytest.mark.parametrize("coded", [(9, 16), (9, 18), (22, 13)])
def test_avif_of_high_dynamic_range_is_refused(path, coded):
    path.write_bytes(avif(*coded))
    with pytest.raises(ImageError, match=r"nclx.*convert it to sRGB"):
        load_image(path)


def test_neutral_stays_neutral_whatever_the_white_point():
    d50 = Encoding("", (0.3457, 0.3585, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06), LINEAR)
    grey = to_srgb(ramp(), d50)
    assert (grey == grey[..., :1]).all()


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (b"cICP", bytes((9, 16, 0, 1))),  # PQ
        (b"cICP", bytes((9, 18, 0, 1))),  # HLG
        (b"cICP", bytes((1, 13, 1, 1))),
        (b"cICP", bytes((1, 13, 0, 0))),
        (b"gAMA", struct.pack(">L", 0)),
        (b"cHRM", bytes(32)),
    ],
)
def test_encodings_that_cannot_be_converted_are_refused(path, kind, data):
    path.write_bytes(png_of(ramp(), 2, 8, chunk(kind, data)))
    with pytest.raises(ImageError, match="convert it to sRGB"):
        load_image(path)
