"""What happened to files: made by attacks, and the observations that describe them."""

import jax
import numpy as np
import pytest

from fpjax.attacks import Codec, parse
from fpjax.errors import InputError
from fpjax.inversion.observation import noise_ratio
from fpjax.io.images import load_image
from fpjax.studies import histories
from fpjax.studies.histories import (
    attack_label,
    attacked,
    described,
    file_of,
    known_observation,
)
from fpjax.studies.robustness import DEFAULT_ATTACKS


@pytest.mark.parametrize("label", DEFAULT_ATTACKS)
def test_files_hold_what_the_attack_gives(label, tmp_path):
    """A chain's file is that of the chain: its steps draw with the same keys."""
    rng = np.random.default_rng(0)
    image = np.repeat(np.repeat(rng.integers(40, 200, (4, 4, 3)), 8, 0), 8, 1).astype(np.uint8)
    attack, key = parse(label), jax.random.key(3)
    data, suffix = file_of(attack, key, image)
    (tmp_path / f"a{suffix}").write_bytes(data)
    last = attack.attacks[-1] if hasattr(attack, "attacks") else attack
    assert suffix == (last.suffix if isinstance(last, Codec) else ".png")
    np.testing.assert_array_equal(
        load_image(tmp_path / f"a{suffix}", (32, 32, 3)), attack(key, image[None])[0]
    )
    observation = known_observation(attack, data, load_image(tmp_path / f"a{suffix}"))
    if observation is not None:
        truth = image.astype(np.float32) / 127.5 - 1
        ratio = noise_ratio(observation, jax.device_put(truth), jax.device_put(truth))
        assert ratio < 1.5


def test_what_no_observation_describes_is_not_predicted():
    image = np.zeros((16, 16, 3), np.uint8)
    for label in (
        "crop_resize:side=0.9",
        "jpeg:quality=50+gaussian_noise:std=0.1",
        "gaussian_noise:std=0.1+gaussian_blur:sigma=0.5",
        "gaussian_blur:sigma=0.5+resize:scale=0.75",
        "jpeg:quality=50+none",
    ):
        attack = parse(label)
        file, _ = file_of(attack, jax.random.key(0), image)
        assert known_observation(attack, file, image) is None
        with pytest.raises(InputError, match="no observation describes it"):
            attacked(attack.label, jax.random.key(0), image)


def test_an_unknown_attack_is_said():
    with pytest.raises(InputError, match="unknown attack 'smear'"):
        attack_label("smear")


@pytest.mark.parametrize("text", ["rotate", "regenerate", "resize:filter=nearest", "rescale"])
def test_what_is_not_described_is_said_before_anything_is_computed(text):
    with pytest.raises(InputError, match="no observation describes it"):
        described(text)


def test_an_attack_that_a_missing_package_describes_is_one_line(monkeypatch):
    def missing(source):
        raise ImportError("pip install 'fpjax[jpeg]'")

    monkeypatch.setattr(histories.JpegObservation, "of_file", missing)
    with pytest.raises(InputError, match=r"jpeg:.*pip install"):
        described("jpeg:quality=75")


@pytest.mark.parametrize("channels", [1, 3])
def test_attacked_pictures_are_seen_as_their_files_show_them(channels):
    image = np.full((16, 16, channels), 90, np.uint8)
    image[4:9, 3:12] = 160
    label = "gaussian_blur:sigma=2,size=3"
    seen, pixels = attacked(label, jax.random.key(0), image)
    np.testing.assert_array_equal(pixels, parse(label)(None, image[None])[0])
    truth = jax.device_put(image.astype(np.float32) / 127.5 - 1)
    assert noise_ratio(seen, truth, truth) < 1.5
