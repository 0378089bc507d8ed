"""The driver: lanes, statuses, chunks, meshes, and what is compiled."""

import inspect
import math
import threading

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

import fpjax
from fpjax.errors import InputError
from fpjax.inversion import driver, rounds
from fpjax.inversion.problem import Problem
from fpjax.inversion.solution import Status
from fpjax.inversion.solvers.adam import Adam
from fpjax.inversion.solvers.levenberg_marquardt import LevenbergMarquardt
from tests import toys


@pytest.fixture(scope="module")
def scheme():
    return toys.scheme(toys.generator(toys.curved_decode, scale=0.1))


@pytest.fixture(scope="module")
def keys():
    return fpjax.sample_keys(jax.random.key(1), 9, 6)


@pytest.fixture(scope="module")
def images(scheme, keys):
    return fpjax.generate(scheme, jax.random.key(2), keys).images


def test_answers_do_not_depend_on_the_company_an_image_is_in(scheme, images):
    starts = toys.starts(scheme)
    alone = fpjax.invert(Problem(scheme), images[5:6], starts=starts)
    together = fpjax.invert(Problem(scheme), images, starts=starts)
    np.testing.assert_array_equal(alone.soft_bits[0], together.soft_bits[5])
    np.testing.assert_array_equal(alone.information[0], together.information[5])


def test_images_are_yielded_as_they_are_finished_each_once(scheme, images, keys, monkeypatch):
    monkeypatch.setattr(driver, "images_in_wave", lambda *arguments: 4)
    seen, calls = [], []
    for rows, part in fpjax.invert_iter(
        Problem(scheme), images, starts=toys.starts(scheme), progress=lambda *c: calls.append(c)
    ):
        np.testing.assert_array_equal(part.keys, keys[rows])
        seen += rows.tolist()
    assert sorted(seen) == list(range(9)) and len(calls) > 1 and calls[-1] == (9, 9)


def test_a_start_made_needless_has_its_own_status_and_never_wins(scheme, images, keys):
    """The second start is next to the first: it must stop without a step, whatever its cost."""
    starts = np.repeat(toys.starts(scheme), 2, axis=0)
    starts[1] += 1e-3
    found = fpjax.invert(Problem(scheme), images, starts=starts)
    once = fpjax.invert(Problem(scheme), images, starts=starts[:1])
    np.testing.assert_array_equal(found.keys, keys)
    np.testing.assert_array_equal(found.steps, once.steps)
    assert (found.status == Status.SOLVED).all()


def test_a_start_that_repeats_another_takes_no_steps(scheme, images, monkeypatch):
    """Of files that nothing explains, of which every other start is followed to its end."""
    foreign = np.random.default_rng(0).integers(0, 256, images[:3].shape).astype(np.uint8)
    rounds, advance = [], driver._round
    monkeypatch.setattr(driver, "_round", lambda *of: rounds.append(of) or advance(*of))
    once = toys.starts(scheme)
    other = once + 1
    counts = []
    for starts in ([once, other], [once, once, other, other, once], [once, other, other + 1]):
        rounds.clear()
        found = fpjax.invert(Problem(scheme), foreign, starts=np.concatenate(starts))
        counts.append(len(rounds))
    assert counts[0] == counts[1] < counts[2]
    assert not (found.status == Status.SOLVED).any()


def test_a_bad_first_start_is_rescued_by_the_second(scheme, images, keys):
    bad = np.full((1, 16), 30.0, np.float32)
    few = LevenbergMarquardt(max_steps=6)
    starts = np.concatenate([bad, toys.starts(scheme)])
    found = fpjax.invert(Problem(scheme), images[:3], few, starts=starts)
    np.testing.assert_array_equal(found.keys, keys[:3])


def of_automatic_axes(shape, names):
    return Mesh(np.array(jax.devices()[: math.prod(shape)]).reshape(shape), names)


@pytest.mark.parametrize("lanes", [1, 2, 8])
def test_chunks_of_any_size_compute_what_single_lanes_do(scheme, images, monkeypatch, lanes):
    # Batched products are summed in another order, and a stop may come a step later: both stop
    # where hardly anything is left.
    solver = LevenbergMarquardt(tolerance=1e-4, near=0)
    alone = fpjax.invert(Problem(scheme), images, solver, starts=toys.starts(scheme))
    monkeypatch.setattr(driver, "chunk_sizes", lambda *arguments: (lanes,))
    monkeypatch.setattr(driver, "waves_at_once", lambda *arguments: 1)
    chunked = fpjax.invert(Problem(scheme), images, solver, starts=toys.starts(scheme))
    np.testing.assert_array_equal(alone.keys, chunked.keys)
    np.testing.assert_allclose(alone.soft_bits, chunked.soft_bits, atol=0.02)


@pytest.mark.parametrize("threads", [2, 3])
def test_cores_with_images_of_their_own_give_the_answers_of_one(
    scheme, images, keys, monkeypatch, threads
):
    monkeypatch.setattr(rounds, "cores", lambda: 1)
    alone = fpjax.invert(Problem(scheme), images, starts=toys.starts(scheme))
    monkeypatch.setattr(rounds, "cores", lambda: threads)
    problem, solver = Problem(scheme), LevenbergMarquardt()
    assert rounds.waves_at_once(solver, problem, 1 << 30, len(images)) == threads
    seen = []
    spread = fpjax.invert(
        problem, images, starts=toys.starts(scheme), progress=lambda done, of: seen.append(done)
    )
    np.testing.assert_array_equal(spread.keys, keys)
    np.testing.assert_array_equal(spread.soft_bits, alone.soft_bits)
    np.testing.assert_array_equal(spread.steps, alone.steps)
    assert seen[-1] == len(images) and sorted(seen) == seen
    # Memory that holds one lane is one lane's.
    lane = solver.lane_bytes(problem)
    assert rounds.waves_at_once(solver, problem, 2 * lane, len(images)) == 1
    assert rounds.shared_memory(solver, problem, 9 * lane, 3) == 2 * lane


def test_an_error_and_an_early_end_stop_all_threads(scheme, images, monkeypatch):
    monkeypatch.setattr(rounds, "cores", lambda: 2)
    before = threading.active_count()
    parts = fpjax.invert_iter(Problem(scheme), images, starts=toys.starts(scheme))
    next(parts)
    parts.close()
    monkeypatch.setattr(driver, "_collect", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fpjax.invert(Problem(scheme), images, starts=toys.starts(scheme))
    assert threading.active_count() == before


def test_chunks_shrink_to_the_memory_budget(scheme):
    problem = Problem(scheme)
    large, small, none = (
        driver.chunk_sizes(Adam(), problem, memory, 1000)[0] for memory in (1 << 30, 1 << 18, 1)
    )
    assert large > small >= none == 1


def test_lanes_of_a_round_share_the_memory(scheme, images):
    asked = []

    class Asking(Adam):
        def plan(self, problem, memory):
            asked.append(memory)
            return super().plan(problem, memory)

    solver = Asking(num_steps=1)
    fpjax.invert(Problem(scheme), images[:8], solver, starts=toys.starts(scheme), memory=1 << 24)
    sizes = driver.chunk_sizes(solver, Problem(scheme), 1 << 24, 8)
    assert sizes[0] > 1 and asked == [(1 << 24) // size for size in sizes]


def test_a_few_images_more_or_fewer_compile_nothing(scheme, images):
    """Lanes that go one by one share programs, of however many images."""
    starts = toys.starts(scheme)
    problem = Problem(scheme)
    fpjax.invert(problem, images[:1], starts=starts)
    before = driver._round.cache_size(), driver._init.cache_size()
    alone = fpjax.invert(problem, images[:5], starts=starts)
    found = fpjax.invert(problem, images[:8], starts=starts)
    np.testing.assert_array_equal(alone.soft_bits, found.soft_bits[:5])
    assert (driver._round.cache_size(), driver._init.cache_size()) == before


def test_waves_are_filled_up_where_that_takes_little(scheme):
    problem, solver = Problem(scheme), LevenbergMarquardt()
    if jax.default_backend() != "cpu":
        pytest.skip("waves are filled up on CPUs")
    assert [rounds.images_in_wave(solver, problem, count) for count in (1, 9, 200)] == [64] * 3
    # A file of another size brings its own pixels; and lanes that go together fill nothing.
    sizes = [rounds.images_in_wave(solver, problem, count, 1, 1 << 22) for count in (1, 9, 200)]
    assert sizes == [1, 16, 64]
    assert rounds.images_in_wave(Adam(), problem, 9) == 16


def test_other_arrays_of_the_same_shapes_compile_nothing(scheme, images):
    """Another strength, basis, weights and number of images run the programs of the first."""
    starts = toys.starts(scheme)
    fpjax.invert(Problem(scheme), images[:5], starts=starts)
    before = driver._round.cache_size(), driver._init.cache_size()
    fpjax.invert(Problem(scheme), images[:8], starts=starts)
    fpjax.invert(Problem(scheme.replace(strength=0.31)), images[:7], starts=starts)
    generator = toys.generator(toys.curved_decode, scale=0.1, seed=3)
    other = toys.scheme(generator)
    fpjax.invert(Problem(other), images[:6], starts=starts)
    assert (driver._round.cache_size(), driver._init.cache_size()) == before


def test_no_images_give_an_empty_solution(scheme):
    found = fpjax.invert(Problem(scheme), np.zeros((0, *toys.SHAPE), np.uint8))
    assert len(found) == 0 and found.keys.shape == (0, 6)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 8, 8, 1), np.uint8), r"expected \(B, 12, 10, 1\)"),
        (np.zeros(toys.SHAPE, np.uint8), r"expected \(B, 12, 10, 1\)"),
        (np.zeros((1, *toys.SHAPE), np.int64), "uint8, or float"),
        (np.full((1, *toys.SHAPE), 200.0), r"outside \[-1, 1\]"),
    ],
)
def test_images_that_do_not_fit_are_refused(scheme, images, message):
    with pytest.raises(InputError, match=message):
        fpjax.invert(Problem(scheme), images)


def test_a_scheme_without_a_start_says_how_to_make_one(scheme, images):
    with pytest.raises(InputError, match=r"fpjax.calibrate\(scheme, key\)"):
        fpjax.invert(Problem(scheme), images)


def test_starts_of_another_length_are_refused(scheme, images):
    with pytest.raises(InputError, match=r"expected \(S, 16\)"):
        fpjax.invert(Problem(scheme), images, starts=np.zeros((1, 15)))


def test_no_solver_is_given_the_key():
    """Nothing that solves takes a key, a true latent or a registry."""
    for function in (fpjax.invert, driver._round, LevenbergMarquardt.step, Adam.step):
        names = set(inspect.signature(function).parameters)
        assert not names & {"key", "keys", "true_keys", "registry", "latents"}


@pytest.mark.parametrize("make", [jax.make_mesh, of_automatic_axes])
def test_eight_devices_give_the_answers_of_one(scheme, images, keys, make):
    if jax.device_count() < 8:
        pytest.skip("needs eight virtual devices, as conftest.py sets them up")
    mesh = make((4, 2), ("data", "more"))
    starts = toys.starts(scheme)
    spread = fpjax.invert(Problem(scheme), images, starts=starts, mesh=mesh)
    alone = fpjax.invert(Problem(scheme), images, starts=starts)
    np.testing.assert_array_equal(spread.keys, keys)
    np.testing.assert_array_equal(spread.soft_bits, alone.soft_bits)
    np.testing.assert_array_equal(spread.steps, alone.steps)


def _round_program(scheme, devices):
    solver = LevenbergMarquardt()
    placed = driver.Placed.of(Mesh(np.array(jax.devices()[:devices]), ("images",)))
    problem = jax.device_put(Problem(scheme).prepared(), placed.everywhere)
    targets = np.zeros((2 * devices, *toys.SHAPE), np.float32)
    starts = np.zeros((2 * devices, 1, 16), np.float32)
    real = np.ones(len(starts), bool)
    wave = driver._begin(solver, placed, 1, problem, (targets, None), starts, real)
    return driver._round.lower(solver, placed, 1, 16, problem, wave).compile()


def test_devices_do_the_work_of_one_and_send_nothing(scheme):
    if jax.device_count() < 8:
        pytest.skip("needs eight virtual devices, as conftest.py sets them up")
    one, eight = (_round_program(scheme, n) for n in (1, 8))
    # The compiler's count for one device's program: two images' lanes each time.
    flops = [program.cost_analysis()["flops"] for program in (one, eight)]
    np.testing.assert_allclose(*flops, rtol=0.01)
    for word in ("all-reduce", "all-gather", "collective-permute", "all-to-all"):
        assert word not in eight.as_text()
