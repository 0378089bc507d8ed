"""Energies rank keys by likelihood, and decision feedback finds the likely ones."""

import numpy as np
import pytest

from fpjax.fingerprint.energy import (
    antipodal_form,
    decision_feedback,
    decode_by_feedback,
    energies,
)


def instance(rng, length, scale=10.0):
    """An ill-conditioned information, a linear term that a true key left, and the key's bits."""
    basis = np.linalg.qr(rng.normal(size=(length, length)))[0]
    spectrum = scale * 10.0 ** rng.uniform(-3, 1, length)
    bits = rng.integers(0, 2, length)
    information = (basis * spectrum) @ basis.T
    noise = basis @ (np.sqrt(spectrum) * rng.normal(size=length))
    return information, information @ (2.0 * bits - 1) + noise, bits


def every_key(length):
    return ((np.arange(2**length)[:, None] >> np.arange(length)) & 1).astype(np.uint8)


def test_energy_differences_are_those_of_the_score_around_the_estimate():
    information, linear, _ = instance(np.random.default_rng(0), 12)
    estimate = np.linalg.solve(information, linear)
    error = 2.0 * every_key(12) - 1 - estimate
    score = ((error @ information) * error).sum(1)
    found = energies(antipodal_form(information, linear), every_key(12))[0]
    # The two differ by one constant; both round at 1e-16 of terms of about 1e4.
    np.testing.assert_allclose(2 * found - score, (2 * found - score)[0], atol=1e-9)


def test_levels_zero_and_one_give_the_energy_of_the_bits_themselves():
    information, linear, _ = instance(np.random.default_rng(1), 10)
    bits = every_key(10).astype(float)
    expected = 0.5 * ((bits @ information) * bits).sum(1) - bits @ linear
    found = energies(antipodal_form(information, linear, "binary"), every_key(10))[0]
    np.testing.assert_allclose(found, expected, atol=1e-10)


def test_each_image_may_have_its_own_keys():
    rng = np.random.default_rng(2)
    images = [instance(rng, 8) for _ in range(3)]
    quadratic = antipodal_form(*(np.stack([image[part] for image in images]) for part in (0, 1)))
    bits = rng.integers(0, 2, (3, 5, 8))
    found = energies(quadratic, bits)
    for i, image in enumerate(images):
        alone = energies(antipodal_form(image[0], image[1]), bits[i])[0]
        np.testing.assert_allclose(found[i], alone, atol=1e-9)


def test_feedback_odds_are_those_of_the_gaussian_given_the_bits_before():
    rng = np.random.default_rng(3)
    information, linear, bits = instance(rng, 9)
    theta = 0.7
    order, gain, offset, _ = decision_feedback(information, linear, theta)
    symbols = 2.0 * bits - 1
    odds = offset + gain @ symbols
    precision = theta * information + np.eye(9)
    for step, chosen in enumerate(order):
        known, rest = order[:step], order[step:]
        block = precision[np.ix_(rest, rest)]
        pulled = theta * linear[rest] - precision[np.ix_(rest, known)] @ symbols[known]
        mean, covariance = np.linalg.solve(block, pulled), np.linalg.inv(block)
        variances = np.diag(covariance)
        assert variances[0] <= variances.min() * (1 + 1e-9)  # the surest of the rest is next
        np.testing.assert_allclose(odds[chosen], mean[0] / variances[0], rtol=1e-8)


def test_feedback_decodes_a_clear_image_and_takes_a_singular_information():
    rng = np.random.default_rng(4)
    information, linear, bits = instance(rng, 64, scale=1e4)
    decoded = decode_by_feedback(decision_feedback(information, linear, 1.0))
    assert (decoded == bits).all()
    singular = np.zeros((64, 64))
    singular[:32, :32] = information[:32, :32]
    decoded = decode_by_feedback(decision_feedback(singular - 1e-4 * np.eye(64), linear, 1.0))
    assert decoded.shape == (64,)


@pytest.mark.parametrize(
    ("information", "linear", "message"),
    [
        (np.eye(3), np.zeros(4), "don't belong together"),
        (np.eye(3)[None], np.zeros(3), "don't belong together"),
        (np.zeros((0, 0)), np.zeros(0), "no symbols"),
        (np.full((2, 2), np.nan), np.zeros(2), "not finite"),
    ],
)
def test_what_is_no_information_is_refused(information, linear, message):
    with pytest.raises(ValueError, match=message):
        antipodal_form(information, linear)


def test_keys_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"expected \(N, 3\)"):
        energies(antipodal_form(np.eye(3), np.zeros(3)), np.ones((2, 4)))
