"""Candidate keys: exact profile likelihoods, and what they are worth where scores extrapolate."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import fpjax
from fpjax.errors import InputError
from fpjax.inversion.candidates import invert_candidates
from tests import toys

EVERY = np.array(list(itertools.product((0, 1), repeat=6)), np.uint8)


def _problem(num, scale=0.3, strength=1.5, noise=0.6, **options):
    """A strongly curved generator: (problem, noisy files, keys, inversion)."""
    made = toys.generator(toys.curved_decode, scale=scale)
    scheme = toys.scheme(made, strength=strength, **options)
    observation = fpjax.Gaussian(noise)
    keys = fpjax.sample_keys(jax.random.key(0), num, scheme.key_length)
    images = fpjax.generate(scheme, jax.random.key(1), keys).float_images
    files = observation.simulate(jax.random.key(2), jax.device_put(images))
    problem = fpjax.Problem(scheme, observation)
    files = np.asarray(files)
    return problem, files, keys, fpjax.invert(problem, files, starts=toys.starts(scheme))


@pytest.fixture(scope="module")
def noisy():
    return _problem(60)


def _linearised(solution, scheme, keys):
    symbols = scheme.symbols_of(keys).astype(np.float64)
    information = solution.information.astype(np.float64)
    quadratic = np.einsum("cl,blm,cm->bc", symbols, information, symbols) / 2
    return quadratic - solution.linear.astype(np.float64) @ symbols.T


def test_candidates_name_keys_that_the_linearised_score_does_not(noisy):
    """Of 60 noisy images, all 64 keys tried on each: at least three more come first."""
    problem, files, keys, solution = noisy
    true = keys @ (1 << np.arange(5, -1, -1))
    fits = invert_candidates(problem, files, EVERY, solution)
    linear = int((_linearised(solution, problem.scheme, EVERY).argmin(1) == true).sum())
    exact = int((fits.best == true).sum())
    assert exact >= linear + 3
    # The true key's lead or lag is now that of an honest likelihood.
    behind = fits.cost[np.arange(60), true] - fits.cost.min(1)
    assert behind.max() < 8


def test_costs_are_those_of_a_long_optimisation_of_each_candidate(noisy):
    """Against SciPy's trust-region least squares on residual and prior, in double precision."""
    problem, files, keys, solution = noisy
    some = np.concatenate([keys[:1], EVERY[[0, 21, 63]]])
    fits = invert_candidates(problem, files[:2], some, solution.take([0, 1]), tolerance=0.005,
                             steps=12, polish=40)  # fmt: skip
    std = np.asarray(problem.scheme.alpha_std, np.float64)
    prepared = problem.prepared()

    @jax.jit
    def residual(alpha, symbols, target):
        return prepared.residual(jnp.concatenate([alpha, symbols]), target)

    jacobian = jax.jit(jax.jacfwd(residual))
    for image, number in itertools.product(range(2), range(len(some))):
        symbols = problem.scheme.symbols_of(some)[number]
        target = files[image].astype(np.float32) / np.float32(127.5) - 1

        def weighted(alpha, symbols=symbols, target=target):
            value = residual(*jax.device_put((alpha.astype(np.float32), symbols, target)))
            return np.concatenate([np.asarray(value, np.float64), alpha / std])

        def slopes(alpha, symbols=symbols, target=target):
            value = jacobian(*jax.device_put((alpha.astype(np.float32), symbols, target)))
            return np.concatenate([np.asarray(value, np.float64), np.diag(1 / std)])

        found = scipy.optimize.least_squares(weighted, np.zeros(len(std)), slopes, x_scale=std)
        # From another start another minimum may be found; neither may be above the other's by more
        # than what is said to be left.
        excess = float(fits.cost[image, number]) - found.cost
        assert excess < 0.05 + 3 * fits.left[image, number], (image, number, excess)


def test_a_linear_generator_needs_no_steps_and_agrees_with_the_information():
    """There the linearised score is exact: differences of costs are differences of energies."""
    scheme = toys.scheme(toys.generator(scale=0.05), strength=0.3)
    keys = fpjax.sample_keys(jax.random.key(0), 3, 6)
    images = fpjax.generate(scheme, jax.random.key(1), keys).images
    problem = fpjax.Problem(scheme)
    solution = fpjax.invert(problem, images, starts=toys.starts(scheme))
    fits = invert_candidates(problem, images, EVERY, solution)
    energies = _linearised(solution, scheme, EVERY)
    near = np.argsort(energies, axis=1)[:, :8]
    exact = np.take_along_axis(fits.cost, near, 1).astype(np.float64)
    linear = np.take_along_axis(energies, near, 1)
    # Costs of thousands of nats in single precision.
    np.testing.assert_allclose(exact - exact[:, :1], linear - linear[:, :1], rtol=2e-3, atol=0.05)
    assert (fits.left < 0.05).mean() > 0.9
    assert (fits.noise_ratio[np.arange(3), fits.best] < 1.3).all()


def test_each_image_may_have_candidates_of_its_own_and_chunks_change_nothing(noisy):
    problem, files, _, solution = noisy
    two = solution.take([0, 1])
    own = np.stack([EVERY[:5], EVERY[5:10]])
    whole = invert_candidates(problem, files[:2], EVERY[:10], two)
    done = []
    found = invert_candidates(problem, files[:2], own, two,
                              progress=lambda n, total: done.append((n, total)))  # fmt: skip
    # Another number of candidates at once is another program: rounding, and where steps stop.
    np.testing.assert_allclose(found.cost[0], whole.cost[0, :5], atol=0.3)
    np.testing.assert_allclose(found.cost[1], whole.cost[1, 5:], atol=0.3)
    assert done == [(5, 10), (10, 10)]


def test_a_code_makes_candidates_of_payloads():
    problem, files, keys, solution = _problem(3, noise=0.1, length=None, code="repetition-3-2")
    every = np.array(list(itertools.product((0, 1), repeat=3)), np.uint8)
    fits = invert_candidates(problem, files, every, solution)
    np.testing.assert_array_equal(every[fits.best], keys)


def test_an_image_that_is_not_finite_has_no_candidate(noisy):
    problem, files, _, _ = noisy
    broken = np.full((1, *files.shape[1:]), np.nan, np.float32)
    found = fpjax.invert(problem, broken, starts=toys.starts(problem.scheme))
    fits = invert_candidates(problem, broken, EVERY[:2], found)
    assert np.isinf(fits.cost).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keys": EVERY[:, :5]}, r"expected \(C, 6\) or \(1, C, 6\)"),
        ({"keys": EVERY[:0]}, "at least one"),
        ({"keys": EVERY[:1] + 2}, "other values than the bits"),
        ({"steps": 0}, "at least 1"),
        ({"tolerance": 0.0}, "positive"),
        ({"solution": 3}, "3 images for 1"),
    ],
)
def test_what_does_not_fit_is_said(noisy, change, message):
    problem, files, _, solution = noisy
    rows = [0, 1, 2] if "solution" in change else [0]
    options = {"keys": EVERY, **change, "solution": solution.take(rows)}
    with pytest.raises(InputError, match=message):
        invert_candidates(problem, files[:1], **options)


def test_a_problem_without_a_jacobian_is_refused(noisy):
    problem, files, _, solution = noisy
    with pytest.raises(InputError, match="relaxed"):
        invert_candidates(fpjax.Problem(problem.scheme, symbols="sigmoid"), files, EVERY, solution)
