"""Lossy files: what is written, what comes back, and the four published attacks."""

import io

import jax
import numpy as np
import pytest
import torch
from PIL import Image

from fpjax.attacks import PAPER, Avif, DoubleJpeg, Jpeg, Screenshot, WebP, parse
from fpjax.attacks.compression import Codec
from tests.attacks.test_protocol import pictures

KEY = jax.random.key(0)
CODECS = [Jpeg(), Jpeg(50, "4:4:4"), DoubleJpeg(), WebP(), Avif()]


def psnr(a, b):
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2))


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.label)
@pytest.mark.parametrize("channels", [1, 3])
def test_calling_a_codec_is_decoding_what_it_encodes(codec, channels):
    images = pictures((2, 33, 46, channels))
    out = codec(KEY, images)
    for image, decoded in zip(images, out, strict=True):
        picture = Image.open(io.BytesIO(codec.encode(image)))
        assert Image.registered_extensions()[codec.suffix] == picture.format
        expected = np.asarray(picture.convert("L" if channels == 1 else "RGB"))
        assert np.array_equal(decoded, expected.reshape(decoded.shape))


@pytest.mark.parametrize("name", ["jpeg", "webp", "avif"])
def test_higher_quality_is_nearer_and_larger(name):
    image = pictures((1, 64, 80, 3))[0]
    found = []
    for quality in (10, 50, 90):
        codec = parse(f"{name}:quality={quality}")
        assert isinstance(codec, Codec)
        found.append((psnr(image, codec(KEY, image[None])[0]), len(codec.encode(image))))
    assert found == sorted(found)
    assert found[2][0] > found[0][0] + 3


def test_jpeg_is_pillows_file_with_the_stated_subsampling():
    image = pictures((1, 40, 24, 3))[0]
    for subsampling, factors in (("4:4:4", (1, 1)), ("4:2:2", (2, 1)), ("4:2:0", (2, 2))):
        data = Jpeg(30, subsampling).encode(image)
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=30, subsampling=subsampling)
        assert data == buffer.getvalue()
        assert Image.open(io.BytesIO(data)).layer[0][1:3] == factors


def test_double_jpeg_is_jpeg_twice():
    images = pictures()
    expected = Jpeg(85)(KEY, Jpeg(60)(KEY, images))
    assert np.array_equal(DoubleJpeg(60, 85)(KEY, images), expected)


def test_a_screenshot_is_a_resized_jpeg():
    image = pictures((1, 33, 46, 3))[0]
    small = Image.fromarray(image).resize((23, 16), Image.Resampling.BILINEAR)
    captured = Jpeg(80)(KEY, np.asarray(small)[None])[0]
    expected = Image.fromarray(captured).resize((46, 33), Image.Resampling.BILINEAR)
    actual = Screenshot(scale=0.5, quality=80)(KEY, image[None])[0]
    assert np.array_equal(actual, np.asarray(expected))


def test_the_published_attacks_are_the_papers():
    """Blur sigma 0.5 with 25 x 25 samples; noise 0.1 on [-1, 1], clipped; JPEG 50; all in order."""
    images = pictures((2, 32, 32, 3))
    assert [attack.label for attack in PAPER.values()] == [
        "gaussian_blur:sigma=0.5,size=25",
        "gaussian_noise:std=0.1",
        "jpeg:quality=50,subsampling=4:2:0",
        "gaussian_blur:sigma=0.5,size=25+gaussian_noise:std=0.1+jpeg:quality=50,subsampling=4:2:0",
    ]
    assert all(parse(f"paper/{name}") == attack for name, attack in PAPER.items())

    blur = torch.exp(-0.5 * ((torch.arange(25.0) - 12) / 0.5) ** 2).double()
    blur = torch.outer(blur, blur) / blur.sum() ** 2
    x = torch.from_numpy(images / 127.5 - 1).permute(0, 3, 1, 2)
    x = torch.nn.functional.pad(x, (12,) * 4, mode="reflect")
    x = torch.nn.functional.conv2d(x, blur.expand(3, 1, 25, 25), groups=3).permute(0, 2, 3, 1)
    expected = x.numpy() * 127.5 + 127.5
    blurred = PAPER["blur"](KEY, images)
    assert np.abs(blurred - expected).max() <= 0.5 + 1e-9

    keys = [jax.random.fold_in(KEY, step) for step in range(3)]
    chained = PAPER["jpeg"](keys[2], PAPER["noise"](keys[1], blurred))
    assert np.array_equal(PAPER["combination"](KEY, images), chained)
