"""Filtered pictures: the filter against the attacks that people's programs are, and inversions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fpjax
from fpjax.attacks import Brightness, CropResize, GaussianBlur, Rescale, Resize, Shift
from fpjax.errors import InputError
from fpjax.inversion.observation import Gaussian, Observation, PerImage, Rounded8Bit, noise_ratio
from fpjax.inversion.observation_filtered import Filter, Filtered
from tests import toys

SIZE = (24, 20)


def _picture():
    rng = np.random.default_rng(0)
    coarse = rng.normal(0, 0.3, (SIZE[0] // 4, SIZE[1] // 4, 3))
    return np.clip(np.repeat(np.repeat(coarse, 4, 0), 4, 1), -0.9, 0.9).astype(np.float32)


def _levels(values):
    return np.clip(np.asarray(values) * 127.5 + 127.5, 0, 255)


CASES = [
    (GaussianBlur(sigma=0.7), Filter.blur(*SIZE, 0.7), 1.01),
    (Resize(scale=0.75), Filter.resize_and_back(*SIZE, 0.75, "bicubic"), 2.5),
    (Resize(scale=0.5, filter="lanczos"), Filter.resize_and_back(*SIZE, 0.5, "lanczos"), 2.5),
    (Rescale(scale=1.5), Filter.resize(*SIZE, (36, 30), "bicubic"), 1.6),
    (Shift(down=1, right=-2), Filter.shift(*SIZE, 1.0, -2.0), 0.51),
    (Brightness(factor=1.1), Filter.identity(*SIZE, 1.1, 0.1), 1.01),
]


@pytest.mark.parametrize(
    ("attack", "filter", "levels"), CASES, ids=lambda x: getattr(x, "name", "")
)
def test_a_filter_is_the_attack_of_its_name_but_for_rounding(attack, filter, levels):
    """Attacks round to whole levels, there and back once in between."""
    picture = np.rint(_levels(_picture())).astype(np.uint8)
    attacked = attack(None, picture[None])[0].astype(float)
    filtered = _levels(filter(jnp.asarray(picture, jnp.float32) / 127.5 - 1))
    assert filtered.shape == attacked.shape
    assert np.abs(filtered - attacked).max() <= levels


def test_a_crop_is_the_window_resized():
    picture = np.rint(_levels(_picture())).astype(np.uint8)
    attacked = CropResize(side=0.9)(jax.random.key(0), picture[None])[0].astype(float)
    boxes = [
        (top, left, top + rows, left + columns)
        for rows, columns in [(round(0.9 * SIZE[0]), round(0.9 * SIZE[1]))]
        for top in range(SIZE[0] - rows + 1)
        for left in range(SIZE[1] - columns + 1)
    ]
    distances = [
        np.abs(
            _levels(
                Filter.crop(*SIZE, box, "bicubic")(jnp.asarray(picture, jnp.float32) / 127.5 - 1)
            )
            - attacked
        ).max()
        for box in boxes
    ]
    assert min(distances) <= 1.6


@pytest.mark.parametrize("inner", [Rounded8Bit(), Gaussian(0.05)], ids=str)
def test_its_own_files_are_one_noise_unit_away_at_another_size_too(inner):
    image = jnp.asarray(_picture())
    filter = Filter.resize(*SIZE, (36, 30), "bicubic")
    blank = np.zeros((36, 30, 3), np.float32)
    file = Filtered(filter, blank, inner).simulate(jax.random.key(0), image[None])[0]
    seen = Filtered(filter, file.astype(jnp.float32) / 127.5 - 1, inner)
    assert isinstance(seen, Observation)
    np.testing.assert_allclose(noise_ratio(seen, image, jnp.zeros_like(image)), 1, atol=0.07)


def test_other_filters_of_one_size_compile_nothing():
    run = jax.jit(lambda observation, x: observation.residual(x, x))
    picture = _picture()
    for filter in (Filter.blur(*SIZE, 0.5), Filter.shift(*SIZE, 1.0, 0.0)):
        observation = Filtered(filter, picture, Gaussian(0.1))
        run(jax.device_put(observation), jnp.asarray(picture))
    assert run._cache_size() == 1


def test_a_picture_of_another_size_than_the_filter_gives_is_refused():
    with pytest.raises(InputError, match="the filter gives 24 x 20"):
        Filtered(Filter.blur(*SIZE, 0.5), np.zeros((20, 24, 3), np.float32), Rounded8Bit())


def test_blurred_and_shrunk_files_are_read_with_their_own_filters():
    scheme = toys.scheme(toys.generator(toys.curved_decode, scale=0.1))
    keys = fpjax.sample_keys(jax.random.key(1), 2, 6)
    images = fpjax.generate(scheme, jax.random.key(2), keys).images
    filters = [Filter.blur(*toys.SHAPE[:2], sigma) for sigma in (0.5, 0.8)]
    files = [
        GaussianBlur(sigma=sigma)(None, images[i : i + 1])[0] for i, sigma in enumerate((0.5, 0.8))
    ]
    seen = PerImage.stack(
        [
            Filtered(filter, file.astype(np.float32) / 127.5 - 1, Rounded8Bit())
            for filter, file in zip(filters, files, strict=True)
        ]
    )
    starts = toys.starts(scheme)
    found = fpjax.invert(fpjax.Problem(scheme, seen), np.stack(files), starts=starts)
    np.testing.assert_array_equal(found.keys, keys)
    assert (found.noise_ratio < 1.5).all()
    plain = fpjax.invert(fpjax.Problem(scheme), np.stack(files), starts=starts)
    assert (plain.noise_ratio > 2).all()
