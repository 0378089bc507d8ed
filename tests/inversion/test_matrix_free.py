"""The matrix-free solver: what the dense one finds, from products alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fpjax
from fpjax.errors import InputError
from fpjax.inversion import krylov
from fpjax.inversion.information import key_information
from fpjax.inversion.problem import Problem, check_images
from fpjax.inversion.solution import Status
from fpjax.inversion.solvers.levenberg_marquardt import LevenbergMarquardt
from fpjax.inversion.solvers.matrix_free import MatrixFree
from fpjax.inversion.starts import encoder_starts
from tests import pictures, toys

KEYS = np.random.default_rng(3).integers(0, 2, (4, 6)).astype(np.uint8)


@pytest.fixture(scope="module")
def problem():
    return Problem(pictures.scheme(), fpjax.Gaussian(0.01))


@pytest.fixture(scope="module")
def files(problem):
    made = fpjax.generate(problem.scheme, jax.random.key(2), KEYS)
    return np.asarray(
        problem.observation.simulate(jax.random.key(3), jnp.asarray(made.float_images))
    )


@pytest.fixture(scope="module")
def found(problem, files):
    return fpjax.invert(problem, files, MatrixFree(tolerance=1e-5, forcing=1e-3))


def test_it_reads_every_key_from_the_encoders_start(found):
    np.testing.assert_array_equal(found.keys, KEYS)
    assert set(found.status.tolist()) == {Status.SOLVED}
    assert (found.noise_ratio < 1.3).all()


def test_it_agrees_with_the_dense_solver_to_a_thousandth(problem, files, found):
    starts = encoder_starts(problem, check_images(problem, files))[:, None]
    # near=0: its last Jacobian is taken at the solution, so that it is exact.
    exact = LevenbergMarquardt(tolerance=1e-5, near=0)
    dense = fpjax.invert(problem, files, exact, starts=starts)
    np.testing.assert_allclose(found.soft_bits, dense.soft_bits, atol=1e-3)
    np.testing.assert_allclose(found.loss, dense.loss, rtol=1e-3)
    spread = problem.scheme.alpha_std
    np.testing.assert_allclose(found.alpha / spread, dense.alpha / spread, atol=5e-3)
    size = np.abs(dense.information).max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(found.information / size, dense.information / size, atol=1e-3)


def test_systems_give_the_information_of_the_rows_within_their_bound(problem, files, found):
    systems = MatrixFree(
        tolerance=1e-5,
        forcing=1e-3,
        information="systems",
        information_steps=80,
        information_forcing=1e-4,
    )
    again = fpjax.invert(problem, files, systems)
    np.testing.assert_array_equal(again.soft_bits, found.soft_bits)
    size = np.abs(found.information).max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(again.information / size, found.information / size, atol=1e-3)
    np.testing.assert_allclose(again.linear / size[..., 0], found.linear / size[..., 0], atol=1e-3)


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_early_information_exceeds_the_exact_by_no_more_than_the_bound(
    problem, files, found, steps
):
    unknowns = np.concatenate([found.alpha, _symbols(problem, found)], axis=1)[:1]
    exact = key_information(problem, unknowns, files[:1])
    target = jnp.asarray(check_images(problem, files[:1])[0])

    @jax.jit
    def early(problem, unknowns, target):
        here = krylov.linearised(problem, unknowns, target, 0.0)
        scale = krylov.scale_of(problem, here)
        return krylov.key_information(problem, here, unknowns, scale, steps, 1e-6, 8)

    bounded = early(problem.prepared(), jnp.asarray(unknowns[0]), target)
    difference = np.asarray(bounded.key.information) - exact.information[0]
    values = np.linalg.eigvalsh(difference)
    size = np.linalg.eigvalsh(exact.information[0])[-1]
    assert values[0] > -1e-4 * size
    assert np.trace(difference) <= float(bounded.excess) + 1e-3 * size


def _symbols(problem, found):
    return 2 * found.soft_bits - 1


def test_conjugate_gradients_agree_with_a_factorisation():
    rng = np.random.default_rng(0)
    root = rng.standard_normal((20, 30))
    matrix = (root @ root.T + 0.1 * np.eye(20)).astype(np.float32)
    right = rng.standard_normal(20).astype(np.float32)
    found = krylov.conjugate_gradients(
        lambda v: jnp.asarray(matrix) @ v, jnp.asarray(right), jnp.asarray(np.diag(matrix)), 200,
        forcing=1e-9, settled=0.0,
    )  # fmt: skip
    exact = np.linalg.solve(matrix.astype(np.float64), right)
    np.testing.assert_allclose(found.x, exact, atol=1e-3 * np.abs(exact).max())
    np.testing.assert_allclose(found.gain, 0.5 * right @ exact, rtol=1e-3)


def test_it_takes_dense_bases_and_linear_starts_too():
    scheme = toys.scheme()
    images = fpjax.generate(scheme, jax.random.key(2), KEYS).images
    found = fpjax.invert(Problem(scheme), images, MatrixFree(), starts=toys.starts(scheme))
    np.testing.assert_array_equal(found.keys, KEYS)
    assert set(found.status.tolist()) == {Status.SOLVED}
    with pytest.raises(InputError, match="calibrate"):
        fpjax.invert(Problem(scheme), images, MatrixFree())


def test_noise_and_values_that_are_not_finite_get_their_statuses(problem):
    noise = np.random.default_rng(0).uniform(-1, 1, (3, *pictures.SHAPE)).astype(np.float32)
    noise[1, 0, 0] = np.nan
    found = fpjax.invert(problem, noise, MatrixFree())
    assert found.status[1] == Status.NOT_FINITE
    assert (found.status != Status.SOLVED).all() and (found.noise_ratio[[0, 2]] > 5).all()


def test_without_information_there_is_none(problem, files):
    found = fpjax.invert(problem, files[:1], MatrixFree(information="none"))
    assert found.information is None
    np.testing.assert_array_equal(found.keys, KEYS[:1])


def test_it_refuses_what_is_no_least_squares_and_settings_that_do_nothing(problem):
    for changed, reason in (
        (dataclasses.replace(problem, symbols="sigmoid"), "symbols are 'sigmoid'"),
        (dataclasses.replace(problem, prior=fpjax.BoundsPrior()), "prior is BoundsPrior"),
        (Problem.paper_ldm(problem.scheme), "no sum of squared residuals"),
    ):
        with pytest.raises(InputError, match=reason):
            fpjax.invert(changed, np.zeros((1, *pictures.SHAPE), np.uint8), MatrixFree())
    for make in (
        lambda: MatrixFree(cg_steps=0),
        lambda: MatrixFree(forcing=0),
        lambda: MatrixFree(information="all"),
    ):
        with pytest.raises(InputError):
            make()


def test_the_papers_preset_for_latent_diffusion():
    problem = Problem.paper_ldm(pictures.scheme())
    assert problem.prior == fpjax.BoundsPrior(0.005) and problem.symbols == "sigmoid"
