"""The weighted sample of keys: its weights are right, bounded, and bounded by what is proved."""

import numpy as np
import pytest

from fpjax.attribution.key_sample import (
    NUM_PROPOSALS,
    draw_key_sample,
    log_weight_bound,
    log_weights_of,
    proposals,
)
from fpjax.fingerprint.energy import antipodal_form, energies
from tests.attribution.test_tails import SPECTRA, every_key, instance


@pytest.mark.parametrize("kind", SPECTRA)
def test_the_mixture_is_a_distribution_over_keys(kind):
    """The probabilities 2^-L / w of all keys add up to 1."""
    information, linear, _ = instance(np.random.default_rng(0), 12, kind)
    weights = log_weights_of(proposals(information, linear), every_key(12))
    assert np.exp(-12 * np.log(2) - weights).sum() == pytest.approx(1, abs=1e-9)


def test_drawn_weights_are_the_weights_of_the_keys_drawn():
    """Energies of 2^10 keys are distinct, so that they name the keys."""
    information, linear, _ = instance(np.random.default_rng(1), 10, "moderate")
    quadratic = antipodal_form(information, linear)
    sample = draw_key_sample(quadratic, 0, 3_000)
    assert len(sample.energies) == 3_000 and (np.diff(sample.energies) >= 0).all()
    every = energies(quadratic, every_key(10))[0]
    nearest = np.abs(every - sample.energies[:, None]).argmin(1)
    np.testing.assert_allclose(every[nearest], sample.energies, atol=1e-9)
    expected = log_weights_of(sample.mixture, every_key(10)[nearest])
    # Exponentials are taken in float32 while drawing.
    np.testing.assert_allclose(sample.log_weights, expected, atol=1e-5)
    assert sample.log_weights.max() <= np.log(NUM_PROPOSALS)
    assert np.exp(sample.log_weights).mean() == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("kind", SPECTRA)
def test_bound_on_weights_holds_for_every_key_and_bounds_the_tail(kind):
    information, linear, _ = instance(np.random.default_rng(2), 12, kind)
    scores = energies(antipodal_form(information, linear), every_key(12))[0]
    mixture = proposals(information, linear)
    bound = log_weight_bound(mixture, information, linear, scores)
    assert (log_weights_of(mixture, every_key(12)) <= bound + 1e-9).all()
    tails = (np.argsort(np.argsort(scores)) + 1) / 2**12
    assert (np.log(tails) <= bound + 1e-9).all()
