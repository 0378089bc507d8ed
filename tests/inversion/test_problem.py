"""Inversion problems: composition, priors, symbols, and the published starts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpjax.errors import InputError
from fpjax.fingerprint.keys import to_symbols
from fpjax.inversion.perceptual_distance import LPIPSDistance
from fpjax.inversion.prior import BoundsPrior, GaussianPrior
from fpjax.inversion.problem import Problem
from fpjax.inversion.starts import latin_hypercube_starts, low_pass
from tests import toys


@pytest.fixture(scope="module")
def scheme():
    return toys.scheme()


def test_the_image_of_a_keys_unknowns_is_the_embedded_one(scheme):
    alpha = np.random.default_rng(0).normal(size=(1, 10)).astype(np.float32)
    keys = np.array([[1, 0, 1, 1, 0, 0]])
    unknowns = np.concatenate([alpha, to_symbols(keys, scheme.levels)], axis=1)[0]
    image = Problem(scheme).image(jnp.asarray(unknowns))
    expected = scheme.decode(scheme.embed(jnp.asarray(alpha), keys))[0]
    np.testing.assert_allclose(image, expected, atol=1e-6)


def test_sigmoid_symbols_stay_between_the_two_levels(scheme):
    problem = Problem(scheme, symbols="sigmoid")
    unknowns = jnp.zeros(16).at[10:].set(jnp.array([-50, -1, 0, 0, 1, 50.0]))
    symbols = problem.symbols_of(unknowns)
    assert float(symbols.min()) >= -1 and float(symbols.max()) <= 1
    np.testing.assert_allclose(
        problem.bits_of(unknowns)[np.array([0, 2, 5])], [0, 0.5, 1], atol=1e-6
    )


@pytest.mark.parametrize(("levels", "values"), [("binary", [0, 1]), ("antipodal", [-1, 1])])
def test_bits_read_the_same_for_both_level_conventions(levels, values):
    problem = Problem(toys.scheme(levels=levels))
    unknowns = jnp.zeros(16).at[10:12].set(jnp.asarray(values, jnp.float32))
    np.testing.assert_allclose(problem.bits_of(unknowns)[:2], [0, 1])


def test_latin_hypercube_starts_are_the_published_ones(scheme):
    """Centred strata in [-s, s], one start in each stratum of every coordinate, kappa 0."""
    problem = Problem.paper(scheme)
    starts = latin_hypercube_starts(problem, 20)
    scaled = starts[:, :10] / scheme.alpha_std
    strata = np.sort((scaled + 1) / 2 * 20 - 0.5, axis=0)
    np.testing.assert_allclose(strata, np.repeat(np.arange(20)[:, None], 10, 1), atol=1e-3)
    np.testing.assert_array_equal(starts[:, 10:], 0)
    np.testing.assert_array_equal(starts, latin_hypercube_starts(problem, 20))


def test_the_published_problem_is_a_composition_and_reads_no_file(scheme, monkeypatch):
    import builtins

    monkeypatch.setattr(builtins, "open", None)
    problem = Problem.paper(scheme)
    assert isinstance(problem.observation, LPIPSDistance) and problem.observation.params is None
    assert (problem.prior, problem.symbols) == (BoundsPrior(0.1), "sigmoid")


def test_bounds_penalty_is_zero_within_three_standard_deviations(scheme):
    s = jnp.asarray(scheme.alpha_std)
    inside, outside = jnp.zeros(16).at[:10].set(2.9 * s), jnp.zeros(16).at[:10].set(-3.5 * s)
    assert float(BoundsPrior(0.1).penalty(scheme, inside)) == 0
    np.testing.assert_allclose(
        BoundsPrior(0.1).penalty(scheme, outside), 0.1 * 0.5 * s.sum(), rtol=1e-5
    )


def test_an_infinitely_wide_prior_leaves_alpha_free_and_symbols_bounded(scheme):
    unknowns = jnp.full(16, 5.0).at[10:].set(2.0)
    penalty = GaussianPrior(float("inf")).penalty(scheme, unknowns)
    np.testing.assert_allclose(penalty, 0.5 * 6 * 2.0**2, rtol=1e-6)
    wide, narrow = (GaussianPrior(s).penalty(scheme, unknowns) for s in (2.0, 1.0))
    assert float(penalty) < float(wide) < float(narrow)


def test_low_pass_averages_boxes_of_large_images_and_leaves_small_ones():
    image = jax.random.normal(jax.random.key(0), (1, 64, 96, 3))
    expected = image.reshape(1, 32, 2, 32, 3, 3).mean(axis=(2, 4)).reshape(1, -1)
    np.testing.assert_allclose(low_pass(image), expected, atol=1e-6)
    assert low_pass(image[:, :16, :16]).shape == (1, 768)


@pytest.mark.parametrize("shape", [(48, 100, 3), (100, 33, 1), (7, 5, 3)])
def test_low_pass_takes_any_sides_and_keeps_the_mean(shape):
    image = jnp.full((2, *shape), 0.25)
    np.testing.assert_allclose(low_pass(image), 0.25, atol=1e-5)


def test_unknown_choices_are_refused(scheme):
    with pytest.raises(InputError, match="'relaxed' or 'sigmoid'"):
        Problem(scheme, symbols="hard")
    with pytest.raises(InputError, match="positive"):
        GaussianPrior(0.0)
