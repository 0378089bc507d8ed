"""Verdicts: who is named, who is not, and why."""

import numpy as np
import pytest

from fpjax.attribution.decision import Reason, attribute, calibration_of, decide
from fpjax.attribution.registry import Registry, RegistryError
from fpjax.attribution.statistics import NullModel
from fpjax.inversion.problem import ROUNDING_STD
from fpjax.inversion.solution import Solution, Status

LENGTH = 64


def _solution(keys, ratio=1.0, status=Status.SOLVED):
    keys = np.atleast_2d(keys).astype(np.uint8)
    count = len(keys)
    full = lambda value, kind: np.full(count, value, kind)  # noqa: E731
    return Solution(
        keys=keys,
        soft_bits=keys.astype(np.float32),
        alpha=np.zeros((count, 4), np.float32),
        residual=full(ratio * ROUNDING_STD, np.float32),
        noise_ratio=full(ratio, np.float32),
        loss=full(1.0, np.float32),
        steps=full(3, np.int32),
        status=full(status, np.int32),
    )


def _keys(num, seed=0):
    return np.random.default_rng(seed).integers(0, 2, (num, LENGTH)).astype(np.uint8)


def _decide(solution, keys, null=None, **options):
    users = [f"user{i}" for i in range(len(keys))]
    null = NullModel.fair_coin(LENGTH) if null is None else null
    return decide(solution, users, keys, null=null, **{"max_noise_ratio": 3.0, **options})


def _flip(key, count):
    key = key.copy()
    key[:count] ^= 1
    return key


def test_an_exact_key_names_its_holder():
    keys = _keys(8)
    verdict = _decide(_solution(keys[3]), keys)[0]
    assert verdict.user == "user3" and verdict.reason is Reason.ATTRIBUTED
    assert verdict.matching_bits == 64
    # 8 keys, one agreeing in all of 64 fair bits.
    np.testing.assert_allclose(verdict.p_value, 8 * 0.5**64, rtol=1e-6)


def test_a_few_wrong_bits_are_forgiven_and_many_are_not():
    keys = _keys(8)
    assert _decide(_solution(_flip(keys[3], 9)), keys)[0].user == "user3"
    verdict = _decide(_solution(_flip(keys[3], 20)), keys)[0]
    assert verdict.user is None and verdict.reason is Reason.NO_KEY_CLOSE_ENOUGH


def test_more_registered_users_ask_for_more_evidence():
    keys = _keys(8)
    image = _solution(_flip(keys[0], 11))
    assert _decide(image, keys)[0].user == "user0"
    crowd = np.concatenate([keys, _keys(20_000, seed=1)])
    assert _decide(image, crowd)[0].user is None


def test_a_matching_key_in_an_image_the_generator_does_not_explain_names_nobody():
    keys = _keys(8)
    verdict = _decide(_solution(keys[3], ratio=40.0), keys)[0]
    assert verdict.user is None and verdict.reason is Reason.NOT_EXPLAINED
    assert verdict.nearest_user == "user3"


def test_bits_that_keyless_images_give_too_are_no_evidence():
    """Every keyless image decodes to zeros: an unlucky, nearly zero key must not catch them all."""
    null = NullModel.fit({"zeros": np.zeros((500, LENGTH), np.uint8)})
    key = np.zeros((1, LENGTH), np.uint8)
    key[0, :4] = 1
    keyless = _solution(np.zeros(LENGTH))
    assert _decide(keyless, key, null)[0].user is None
    assert _decide(keyless, key)[0].user == "user0"  # what fair coins would have concluded


def test_a_failed_inversion_and_an_empty_registry_name_nobody():
    keys = _keys(2)
    failed = _solution(keys[0], status=Status.NOT_FINITE)
    assert _decide(failed, keys)[0].reason is Reason.NOT_FINITE
    empty = _decide(_solution(keys[0]), keys[:0])[0]
    assert empty.reason is Reason.NOBODY_REGISTERED and empty.p_value == 1


@pytest.mark.parametrize("rate", [0.0, 1.0, -1.0])
def test_a_rate_that_is_no_probability_is_refused(rate):
    with pytest.raises(ValueError, match="between 0 and 1"):
        _decide(_solution(_keys(1)), _keys(1), false_positive_rate=rate)


def test_attribution_end_to_end_and_from_the_disk(calibrated_scheme, tiny_images, tmp_path):
    from fpjax.fingerprint.scheme import Scheme

    calibrated_scheme.save(tmp_path / "scheme")
    scheme = Scheme.load(tmp_path / "scheme", calibrated_scheme.generator)
    images, keys = tiny_images
    names = [f"user{i}" for i in range(8)]
    with Registry.create(tmp_path / "users.db", key_length=6, scheme_id=scheme.id) as registry:
        holder = {}
        for name, key in zip(names, keys, strict=True):
            if key.tobytes() not in holder:
                registry.issue(name, key=key)
                holder[key.tobytes()] = name
        # Six bits prove little: one in 64 keyless images agrees, times the number of users.
        found = attribute(scheme, images, registry, false_positive_rate=0.9)
        strict = attribute(scheme, images[:2], registry)
    np.testing.assert_array_equal(found.keys, keys)
    for verdict, key in zip(found.verdicts, keys, strict=True):
        assert verdict.user == holder[key.tobytes()]
    assert all(verdict.user is None for verdict in strict.verdicts)


def test_without_a_registry_there_are_keys_but_no_verdicts(calibrated_scheme, tiny_images):
    found = attribute(calibrated_scheme, tiny_images[0][:1])
    assert found.verdicts is None
    np.testing.assert_array_equal(found.keys, tiny_images[1][:1])


def test_a_registry_of_another_scheme_is_refused(calibrated_scheme, tiny_images, tmp_path):
    with (
        Registry.create(tmp_path / "users.db", key_length=6, scheme_id="another") as registry,
        pytest.raises(RegistryError, match="another"),
    ):
        attribute(calibrated_scheme, tiny_images[0], registry)


def test_an_uncalibrated_scheme_says_what_to_do(tiny_scheme):
    with pytest.raises(ValueError, match=r"fpjax.calibrate\(scheme, key\)"):
        calibration_of(tiny_scheme)


def test_calibration_separates_the_generators_images_from_others(calibrated_scheme):
    notes = calibrated_scheme.notes["calibration"]
    assert notes["natural_noise_ratio_max"] < notes["max_noise_ratio"]
    assert notes["max_noise_ratio"] < notes["foreign_noise_ratio_min"]
    null, threshold = calibration_of(calibrated_scheme)
    assert null.length == 6 and threshold == notes["max_noise_ratio"]
