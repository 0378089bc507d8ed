"""What every attack promises: shapes, keys, ranges, names, errors."""

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from fpjax.attacks import ATTACKS, PAPER, AttackError, Chain, Jpeg, from_json, parse
from fpjax.attacks.base import Attack

ALL = [*(attack() for attack in ATTACKS.values()), PAPER["combination"]]
RANDOM = [attack for attack in ALL if attack.random]
by_label = {"ids": lambda attack: attack.label if isinstance(attack, Attack) else None}


def pictures(shape=(3, 33, 46, 3), seed=0):
    """Smooth pictures with some detail, of odd and unequal sides."""
    rng = np.random.default_rng(seed)
    batch, height, width, channels = shape
    rows, columns = np.mgrid[:height, :width]
    phase = rng.uniform(0, 6, (batch, 1, 1, channels))
    waves = np.sin(rows[..., None] / 5 + phase) + np.cos(columns[..., None] / 7 - phase)
    return np.clip(128 + 50 * waves + rng.normal(0, 8, shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("attack", ALL, **by_label)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_attack_takes_any_sides_and_its_channels(attack, channels):
    images = pictures((3, 33, 46, channels))
    if channels not in attack.channels:
        with pytest.raises(AttackError, match="1 channels, expected 3"):
            attack(jax.random.key(0), images)
        return
    before = images.copy()
    out = attack(jax.random.key(0), images)
    assert out.dtype == np.uint8
    assert out.shape[0] == 3 and out.shape[3] == channels
    assert (out.shape == images.shape) == attack.keeps_size
    assert out is not images and np.array_equal(images, before)


@pytest.mark.parametrize("attack", ALL, **by_label)
def test_the_same_key_gives_the_same_pictures_and_only_random_attacks_heed_it(attack):
    images = pictures()
    first, again = (attack(jax.random.key(1), images) for _ in range(2))
    other = attack(jax.random.key(2), images)
    assert np.array_equal(first, again)
    assert np.array_equal(first, other) == (not attack.random)


@pytest.mark.parametrize("attack", [a for a in ALL if a.name != "average"], **by_label)
def test_a_picture_is_attacked_alike_alone_and_in_a_batch(attack):
    images = pictures()
    whole = attack(jax.random.key(1), images)
    assert np.array_equal(attack(jax.random.key(1), images[:1]), whole[:1])


@pytest.mark.parametrize("attack", RANDOM, **by_label)
def test_pictures_of_a_batch_are_attacked_independently(attack):
    same = np.repeat(pictures()[:1], 2, axis=0)
    out = attack(jax.random.key(1), same)
    assert not np.array_equal(out[0], out[1])


@pytest.mark.parametrize("attack", RANDOM, **by_label)
def test_a_random_attack_without_a_key_is_refused(attack):
    with pytest.raises(AttackError, match="PRNG key"):
        attack(None, pictures())


@pytest.mark.parametrize("attack", ALL, **by_label)
def test_an_empty_batch_stays_empty(attack):
    channels = attack.channels[-1]
    assert attack(jax.random.key(0), np.zeros((0, 8, 9, channels), np.uint8)).shape[0] == 0


@pytest.mark.parametrize("attack", ALL, **by_label)
def test_labels_and_json_are_read_back(attack):
    assert parse(attack.label) == attack
    assert from_json(json.loads(json.dumps(attack.to_json()))) == attack
    assert hash(parse(attack.label)) == hash(attack)


@pytest.mark.parametrize("attack", ALL, **by_label)
def test_every_attack_states_its_facts(attack):
    assert isinstance(attack.linear, bool) and isinstance(attack.differentiable, bool)
    assert len(attack.source) > 10
    assert attack.differentiable or not attack.linear


@pytest.mark.parametrize("attack", list(ATTACKS.values()), ids=lambda attack: attack.name)
def test_every_parameter_has_a_range_that_is_checked(attack):
    ranges = attack.ranges()
    assert set(ranges) == {field.name for field in dataclasses.fields(attack)}
    for name, allowed in ranges.items():
        if isinstance(allowed[0], str):
            with pytest.raises(AttackError, match=f"{name} is 'other'"):
                attack(**{name: "other"})
            continue
        low, high, unit = allowed
        assert unit
        attack(**{name: low}), attack(**{name: high})
        for value in (low - 1, high + 1, float("nan"), "1", True, None):
            with pytest.raises(AttackError, match=name):
                attack(**{name: value})


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 8, 8, 3), np.float32), "float32, expected uint8"),
        (np.zeros((8, 8, 3), np.uint8), r"expected \(B, H, W, C\)"),
        (np.zeros((1, 8, 8, 4), np.uint8), "4 channels, expected 1 or 3"),
        (np.zeros((1, 0, 8, 3), np.uint8), "no pixels"),
    ],
)
def test_pictures_of_another_kind_are_refused(images, message):
    with pytest.raises(AttackError, match=message):
        Jpeg()(jax.random.key(0), images)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("jpg", "unknown attack 'jpg'; there are .*jpeg"),
        ("jpeg:q=3", "no parameter 'q'; it takes quality, subsampling"),
        ("jpeg:quality=high", "quality is 'high', expected a whole number"),
        ("jpeg:quality=101", "quality is 101, expected 1 to 100"),
        ("jpeg:quality", "expected parameter=value"),
        ("jpeg:quality=5,quality=6", "once each"),
        ("gaussian_blur:size=4", "expected an odd number"),
        ("grey:x=1", "takes no parameters"),
        ("paper/crop", "the published attacks are paper/blur"),
        ("", "unknown attack ''"),
    ],
)
def test_lines_that_name_no_attack_say_why(text, message):
    with pytest.raises(AttackError, match=message):
        parse(text)


@pytest.mark.parametrize(
    "value",
    [
        None,
        {},
        {"name": ["jpeg"]},
        {"name": "chain"},
        {"name": "chain", "attacks": []},
        {"name": "jpeg", "quality": "75"},
        {"name": "jpeg", "strength": 1},
    ],
)
def test_json_that_describes_no_attack_is_refused(value):
    with pytest.raises(AttackError):
        from_json(value)


def test_a_chain_applies_its_members_in_order_each_with_its_own_key():
    images, key = pictures(), jax.random.key(3)
    noise, jpeg = parse("gaussian_noise:std=0.1"), parse("jpeg:quality=40")
    chained = Chain((noise, jpeg, noise))(key, images)
    steps = [jax.random.fold_in(key, i) for i in range(3)]
    expected = noise(steps[2], jpeg(steps[1], noise(steps[0], images)))
    assert np.array_equal(chained, expected)


def test_the_facts_of_a_chain_follow_from_its_members():
    chain = parse("gaussian_blur+hue+rescale:scale=0.5")
    assert (chain.linear, chain.differentiable, chain.random) == (False, True, False)
    assert chain.channels == (3,) and not chain.keeps_size


def test_importing_the_attacks_loads_no_image_library():
    heavy = "('PIL', 'scipy.ndimage')"
    code = f"import sys, fpjax.attacks; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert run.stdout.strip() == "[]"
