"""Degradations whose parameters are unknown: the attacks they stand for, and inversions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fpjax
from fpjax.attacks import (
    Brightness,
    Contrast,
    CropResize,
    GaussianBlur,
    Rotate,
    Saturation,
    Shift,
)
from fpjax.errors import InputError
from fpjax.inversion import window_starts as starts_of_windows
from fpjax.inversion.candidates import invert_candidates
from fpjax.inversion.degradation import PARTS, Degradation
from fpjax.inversion.information import key_information
from fpjax.inversion.observation import Gaussian, Rounded8Bit
from fpjax.inversion.problem import Problem
from fpjax.inversion.solvers.matrix_free import MatrixFree
from fpjax.inversion.starts import nearer_start
from fpjax.inversion.window_starts import window_starts

SIZE = (24, 20)
LEVEL = 1 / 127.5


def _picture():
    rng = np.random.default_rng(0)
    coarse = rng.normal(0, 0.3, (SIZE[0] // 4, SIZE[1] // 4, 3))
    return np.clip(np.repeat(np.repeat(coarse, 4, 0), 4, 1), -0.6, 0.6).astype(np.float32)


def _parameters(degradation, **values):
    named = {name.replace(" ", "_"): 0.0 for name in degradation.names} | values
    return jnp.asarray(list(named.values()), jnp.float32)


def _taps(sigma):
    weights = np.exp(-0.5 * np.arange(-12, 13) ** 2 / sigma**2)
    return dict(zip(["tap_1", "tap_2", "tap_3"], (weights / weights.sum())[13:16], strict=True))


PICTURE = np.rint(_picture() * 127.5 + 127.5).astype(np.uint8)
CASES = [
    (GaussianBlur(sigma=0.7), _taps(0.7), 1.1),
    (Shift(down=1, right=-2), {"top": -1 / 24, "bottom": -1 / 24, "left": 0.1, "right": 0.1}, 0.51),
    (Brightness(factor=1.1), {"gain": 0.1, "offset": 0.1}, 1.1),
    (Saturation(factor=0.7), {"saturation": -0.3}, 1.1),
    (Contrast(factor=0.9), {"gain": -0.1}, None),
]


@pytest.mark.parametrize(
    ("attack", "values", "levels"), CASES, ids=lambda x: getattr(x, "name", "")
)
def test_it_is_the_attack_of_some_parameters_but_for_rounding(attack, values, levels):
    degradation = Degradation()
    attacked = attack(None, PICTURE[None])[0].astype(np.float32) / 127.5 - 1
    if attack.name == "contrast":  # about the picture's mean
        own = PICTURE.astype(np.float32) / 127.5 - 1
        values, levels = values | {"offset": float((attacked - 0.9 * own).mean())}, 1.1
    made = degradation(
        jnp.asarray(PICTURE, jnp.float32) / 127.5 - 1, _parameters(degradation, **values)
    )
    assert np.abs(made - attacked).max() <= levels * LEVEL


@pytest.mark.parametrize("degrees", [3.0, -7.5, 90.0])
def test_a_turn_is_pillow_s_rotation_but_for_rounding(degrees):
    attacked = Rotate(degrees=degrees)(None, PICTURE[None])[0].astype(np.float32) / 127.5 - 1
    degradation = Degradation(("turn", "window"))
    made = degradation(
        jnp.asarray(PICTURE, jnp.float32) / 127.5 - 1, _parameters(degradation, degrees=degrees)
    )
    # Pillow cuts off what is less than a level.
    assert np.abs(np.clip(made, -1, 1) - attacked).max() <= 1.01 * LEVEL


def test_a_crop_is_a_window_but_for_its_border():
    attack = CropResize(side=0.9, position="centre")
    attacked = attack(jax.random.key(0), PICTURE[None])[0].astype(np.float32) / 127.5 - 1
    degradation = Degradation(("window",))
    window = {"top": 1 / 24, "bottom": -1 / 24, "left": 1 / 20, "right": -1 / 20}
    made = degradation(
        jnp.asarray(PICTURE, jnp.float32) / 127.5 - 1, _parameters(degradation, **window)
    )
    assert np.abs(made - attacked)[2:-2, 2:-2].max() <= 1.6 * LEVEL


def test_nothing_is_done_where_all_parameters_are_zero():
    degradation = Degradation(tuple(PARTS))
    image = jnp.asarray(_picture())
    made = degradation(image, jnp.zeros(len(degradation.names)))
    np.testing.assert_allclose(made, image, atol=1e-6)
    assert degradation.words(np.zeros(len(degradation.names))) == ""


def test_its_derivatives_are_those_of_finite_differences():
    degradation = Degradation(tuple(PARTS))
    image = jnp.asarray(_picture())
    rng = np.random.default_rng(1)
    point = jnp.asarray(0.3 * degradation.std * rng.normal(size=len(degradation.names)), "f4")
    slopes = jax.jacfwd(lambda p: degradation(image, p))(point)
    for i, name in enumerate(degradation.names):
        step = 0.01 * jnp.zeros_like(point).at[i].set(degradation.std[i])
        change = degradation(image, point + step) - degradation(image, point - step)
        error = change / (2 * step[i]) - slopes[..., i]
        assert float(jnp.abs(error).max()) < 0.02 * float(jnp.abs(slopes[..., i]).max()), name


def test_parts_are_named_and_in_order():
    assert Degradation(("kernel", "colours")).names[0] == "tap 1"
    for parts in ((), ("colours", "kernel"), ("rotation",)):
        with pytest.raises(InputError, match="turn, window, kernel, colours, in that order"):
            Degradation(parts)
    with pytest.raises(InputError, match="with a window only"):
        Degradation(("turn", "kernel"))
    assert Degradation(("turn", "window")).words([0.4, 0, 0, 0, 0]) == ""


@pytest.fixture(scope="module")
def degraded(calibrated_scheme):
    """The problem, files that were blurred and brightened, their keys, what was done to them, and
    what an inversion finds."""
    scheme = dataclasses.replace(calibrated_scheme, strength=1.0)
    keys = fpjax.sample_keys(jax.random.key(5), 2, 6)
    made = fpjax.generate(scheme, jax.random.key(6), keys)
    degradation = Degradation(("kernel", "colours"))
    parameters = _parameters(degradation, **_taps(0.6), gain=0.1, offset=0.05)
    pictures = jax.vmap(degradation, (0, None))(
        jnp.asarray(made.images, jnp.float32) / 127.5 - 1, parameters
    )
    files = np.asarray(Rounded8Bit().simulate(jax.random.key(7), pictures))
    problem = Problem(scheme, degradation=degradation)
    return problem, files, np.asarray(keys), np.asarray(parameters), fpjax.invert(problem, files)


def test_inversion_finds_key_and_parameters_at_once(degraded):
    _, _, keys, parameters, found = degraded
    assert found.keys.tolist() == keys.tolist()
    assert (found.noise_ratio < 1.3).all()
    np.testing.assert_allclose(found.parameters, np.tile(parameters, (2, 1)), atol=0.03)


def test_so_it_does_without_a_jacobian(degraded):
    problem, files, keys, parameters, _ = degraded
    found = fpjax.invert(problem, files, MatrixFree(information="none"))
    assert found.keys.tolist() == keys.tolist()
    np.testing.assert_allclose(found.parameters, np.tile(parameters, (2, 1)), atol=0.03)


def test_what_must_be_found_out_is_paid_for_in_information(degraded):
    problem, files, _, _, found = degraded
    scheme = problem.scheme
    alphas, end = scheme.num_alpha, problem.num_nuisances
    std = np.concatenate([scheme.alpha_std, problem.degradation.std]).astype(np.float64)

    def profiled(rows, std):
        free = len(std)
        curvature = rows.T @ rows
        curvature[:free, :free] += np.diag(1 / std**2)
        inverse = np.linalg.inv(curvature[:free, :free])
        return curvature[free:, free:] - curvature[free:, :free] @ inverse @ curvature[:free, free:]

    target = jnp.asarray(files[0], jnp.float32) / 127.5 - 1
    symbols = 2 * found.soft_bits[0] - 1
    point = np.concatenate([found.alpha[0], found.parameters[0], symbols]).astype(np.float32)
    rows = jax.jacfwd(lambda u: problem.residual(u, target))(jnp.asarray(point))
    rows = np.asarray(rows, np.float64)
    paid = profiled(rows, std)
    known = profiled(np.delete(rows, np.arange(alphas, end), axis=1), std[:alphas])
    said = key_information(problem, point[None], files[:1]).information[0]
    np.testing.assert_allclose(said, paid, atol=0.02 * np.abs(paid).max())
    gained = np.linalg.eigvalsh(known - paid)
    assert gained.min() > -1e-6 * gained.max() and gained.max() > 0


def test_candidates_are_compared_with_the_parameters_free_too(degraded):
    problem, files, keys, _, found = degraded
    some = np.concatenate([keys, 1 - keys])
    fits = invert_candidates(problem, files, some, found, polish=0)
    assert fits.best.tolist() == [0, 1]
    with pytest.raises(InputError, match="without a degradation"):
        invert_candidates(problem, files, some, dataclasses.replace(found, parameters=None))


def test_a_crop_s_window_is_among_the_starts():
    scheme = fpjax.load_scheme("avatars-stylegan2")
    keys = fpjax.sample_keys(jax.random.key(8), 2, scheme.key_length)
    images = fpjax.generate(scheme, jax.random.key(9), keys).images
    cropped = CropResize(side=0.9, position="centre")(jax.random.key(0), images)  # 29 of 32, from 1
    problem = Problem(scheme, Gaussian(0.3), degradation=Degradation(("window", "kernel")))
    starts = window_starts(problem, cropped.astype(np.float32) / 127.5 - 1)
    found = 32 * starts[..., scheme.num_alpha : scheme.num_alpha + 4]
    # To a pixel: the windows that are tried are that far apart. The whole picture is two away.
    far = np.abs(found - [1, 1, -2, -2]).max(-1)
    assert (far.min(1) <= 1.01).all()


def test_a_turned_picture_s_angle_is_among_the_starts_and_found():
    scheme = fpjax.load_scheme("avatars-stylegan2/robust")
    keys = fpjax.sample_keys(jax.random.key(8), 2, scheme.key_length)
    images = fpjax.generate(scheme, jax.random.key(9), keys).images
    degrees = np.asarray([4.0, -2.0])
    images = np.concatenate(
        [
            Rotate(degrees=float(d))(None, image[None])
            for d, image in zip(degrees, images, strict=True)
        ]
    )
    degradation = Degradation(("turn", "window"))
    problem = Problem(scheme, Gaussian(0.05), degradation=degradation)
    starts = window_starts(problem, images.astype(np.float32) / 127.5 - 1)
    angles = starts[..., scheme.num_alpha]
    assert (np.abs(angles - degrees[:, None]).min(1) <= 1).all()
    solver = fpjax.LevenbergMarquardt(max_steps=4)
    found = fpjax.invert(problem, images, solver, starts=starts[:, :1])
    np.testing.assert_allclose(found.parameters[:, 0], degrees, atol=0.5)
    # From the likeliest start alone the second picture ends beside its best explanation.
    right = (found.keys == scheme.words_of(keys)).mean(axis=1)
    assert right[0] == 1 and right[1] > 0.6
    assert degradation.words(found.parameters[0]).startswith("a turn by ")


def test_starts_know_which_window_was_taken():
    scheme = fpjax.load_scheme("avatars-stylegan2")
    keys = fpjax.sample_keys(jax.random.key(8), 2, scheme.key_length)
    images = fpjax.generate(scheme, jax.random.key(9), keys).images
    images = np.concatenate([images[:1], Shift(down=1, right=0)(None, images[1:])])
    problem = Problem(scheme, Gaussian(0.1), degradation=Degradation())
    starts = window_starts(problem, images.astype(np.float32) / 127.5 - 1)
    assert starts.shape == (2, 3, problem.num_unknowns)
    windows = starts[..., scheme.num_alpha : scheme.num_alpha + 4]
    np.testing.assert_array_equal(windows[:, 0], [[0, 0, 0, 0], [-1 / 32, 0, -1 / 32, 0]])
    # What is far less likely is not tried: the likeliest is repeated, which takes no steps.
    assert (starts[1] == starts[1, :1]).all()
    assert len(window_starts(problem, np.zeros((0, *images.shape[1:]), np.float32))) == 0
    uncalibrated = dataclasses.replace(problem, scheme=scheme.without_calibration())
    with pytest.raises(InputError, match="no start"):
        window_starts(uncalibrated, images[:1].astype(np.float32) / 127.5 - 1)


def test_windows_that_are_far_off_are_not_taken_nearer():
    scheme = fpjax.load_scheme("avatars-stylegan2")
    problem = Problem(scheme, Gaussian(0.05)).prepared()
    image = fpjax.generate(scheme, jax.random.key(9), np.zeros((1, 64), np.uint8)).images[0]
    image = image.astype(np.float32) / 127.5 - 1
    placed = Degradation(("window",))
    start = 0.1 * np.random.default_rng(0).normal(size=(2, problem.num_unknowns)).astype(np.float32)
    given = start, np.stack([image] * 2), np.zeros((2, 4), np.float32), np.array([True, False])
    nearer, errors = starts_of_windows._nearer(problem, *given, image, placed, 4)
    np.testing.assert_array_equal(nearer[1], start[1])
    assert np.isinf(errors[1]) and np.isfinite(errors[0])
    expected = jax.jit(lambda x, y: nearer_start(problem, x, y, 4))(start[0], image)
    # Gram matrices summed in another order: float32, through four steps of some unknowns a std far.
    np.testing.assert_allclose(nearer[0], expected, atol=1e-3)
    assert np.abs(nearer[0] - start[0]).max() > 0.1
