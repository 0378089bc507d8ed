"""Verdicts: who is named, who is not, and why."""

import numpy as np
import pytest

import fpjax
from fpjax.attribution.decision import Reason, attribute, decide
from fpjax.attribution.registry import Registry, RegistryError
from fpjax.errors import InputError
from fpjax.inversion.observation import ROUNDING_STD, Gaussian
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


def _decide(solution, keys, **options):
    users = [f"user{i}" for i in range(len(keys))]
    return decide(solution, users, keys, **{"max_noise_ratio": 3.0, **options})


def _flip(key, count):
    key = key.copy()
    key[:count] ^= 1
    return key


def test_an_exact_key_names_its_holder():
    keys = _keys(8)
    verdict = _decide(_solution(keys[3]), keys)[0]
    assert verdict.user == "user3" and verdict.reason is Reason.ATTRIBUTED
    assert verdict.matching_bits == 64
    # 8 keys in two statistics, one agreeing in all of 64 fair bits.
    np.testing.assert_allclose(verdict.p_value, 2 * 8 * 0.5**64, rtol=1e-6)


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


def test_a_processed_file_still_names_its_holder_and_says_that_it_is_not_explained():
    keys = _keys(8)
    verdict = _decide(_solution(keys[3], ratio=40.0), keys)[0]
    assert verdict.user == "user3" and not verdict.explained and verdict.noise_ratio == 40.0


def test_an_image_that_nothing_explains_and_no_key_fits_says_the_former():
    keys = _keys(8)
    verdict = _decide(_solution(_keys(1, seed=9), ratio=40.0), keys)[0]
    assert verdict.user is None and verdict.reason is Reason.NOT_EXPLAINED


def test_the_soft_score_names_where_matching_bits_do_not_suffice():
    """Half of the bits carry all of the information: they agree, the others are coins."""
    rng = np.random.default_rng(0)
    keys = _keys(100)
    precision = np.where(np.arange(LENGTH) < 32, 100.0, 1e-3)
    symbols = 2.0 * keys[7] - 1
    estimate = symbols + rng.standard_normal(LENGTH) / np.sqrt(precision)
    bits = (estimate > 0).astype(np.uint8)
    bits[32:] = rng.integers(0, 2, 32)
    image = _solution(bits)
    hard = _decide(image, keys)[0]
    image = fpjax.Solution(
        **{
            **vars(image),
            "information": np.diag(precision)[None],
            "linear": (precision * estimate)[None],
        }
    )
    soft = _decide(image, keys)[0]
    assert hard.user is None and soft.user == "user7"
    assert soft.p_value < 1e-6 < hard.p_value


def test_random_keys_reach_the_stated_rate_no_more_often_than_stated():
    """Family-wise over 50 users and two statistics, at a rate that 100 trials can see."""
    rng = np.random.default_rng(1)
    named = 0
    for trial in range(100):
        factor = rng.standard_normal((LENGTH, LENGTH)) * rng.uniform(0.1, 2)
        information = factor @ factor.T
        linear = information @ rng.standard_normal(LENGTH)
        image = fpjax.Solution(
            **{
                **vars(_solution(_keys(1, seed=1000 + trial))),
                "information": information[None],
                "linear": linear[None],
            }
        )
        keys = rng.integers(0, 2, (50, LENGTH)).astype(np.uint8)
        named += _decide(image, keys, false_positive_rate=0.1)[0].user is not None
    # At most 10 % of 100, plus three standard deviations of a binomial.
    assert named <= 10 + 3 * np.sqrt(100 * 0.1 * 0.9)


def test_a_failed_inversion_and_an_empty_registry_name_nobody():
    keys = _keys(2)
    failed = _solution(keys[0], status=Status.NOT_FINITE)
    assert _decide(failed, keys)[0].reason is Reason.NOT_FINITE
    empty = _decide(_solution(keys[0]), keys[:0])[0]
    assert empty.reason is Reason.NOBODY_REGISTERED and empty.p_value == 1


@pytest.mark.parametrize("rate", [0.0, 1.0, -1.0])
def test_a_rate_that_is_no_probability_is_refused(rate):
    with pytest.raises(InputError, match="between 0 and 1"):
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
        # Six bits prove little: one key in 64 agrees by chance, for each user and statistic.
        found = attribute(scheme, images, registry, false_positive_rate=0.5)
        strict = attribute(scheme, images[:2], registry)
    np.testing.assert_array_equal(found.keys, keys)
    for verdict, key in zip(found.verdicts, keys, strict=True):
        assert verdict.user == holder[key.tobytes()] and verdict.explained
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


def test_an_answer_says_what_it_was_read_with(calibrated_scheme, tiny_images):
    found = attribute(calibrated_scheme, tiny_images[0][:1], observation=Gaussian(0.01))
    assert (found.observation, found.solver) == ("gaussian-noise", "levenberg-marquardt")
    assert found.calibration_sha256 == calibrated_scheme.calibration.sha256
    assert found.information.shape == (1, 6, 6)


def test_an_image_that_is_not_finite_says_so_with_nobody_registered_too(
    calibrated_scheme, tmp_path
):
    broken = np.full((1, 16, 16, 3), np.nan, np.float32)
    with Registry.create(
        tmp_path / "users.db", key_length=6, scheme_id=calibrated_scheme.id
    ) as registry:
        found = attribute(calibrated_scheme, broken, registry)
    assert found.verdicts[0].reason is Reason.NOT_FINITE and found.verdicts[0].user is None


def test_a_doctored_calibration_changes_the_reported_hash(calibrated_scheme):
    from dataclasses import replace

    calibration = calibrated_scheme.calibration
    doctored = replace(calibration, max_noise_ratio=1e9)
    assert doctored.sha256 != calibration.sha256


def test_calibration_knows_what_the_schemes_own_files_leave(calibrated_scheme):
    calibration = calibrated_scheme.calibration
    assert 0.5 < calibration.own_noise_ratio < 1.3 < calibration.max_noise_ratio
    assert (calibration.observation, calibration.solver) == ("rounded-8bit", "levenberg-marquardt")
