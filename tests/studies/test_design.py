"""Predictions of designs: closed forms, simulated estimates, solved strengths, and inversions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import fpjax
from fpjax.errors import InputError
from fpjax.fingerprint.basis import pca, sample_latents
from fpjax.fingerprint.codes import code_named
from fpjax.inversion.information import decide_bits
from fpjax.inversion.observation import ROUNDING_STD
from fpjax.inversion.observation_filtered import Filter
from fpjax.io.jpeg_dct import jpeg_coefficients
from fpjax.studies.curvature import coded_errors, decide_symbols, decoding_errors, pixel_grams
from fpjax.studies.design import Study, UnreachableQuality
from fpjax.studies.designs import Design, Prediction, grid, recommend
from fpjax.studies.histories import attack_label, attacked
from fpjax.studies.quality import lpips_distance, psnr_db
from tests import toys

NOISE = 0.1


def _bases(generator):
    latents = sample_latents(generator, jax.random.key(0), 2000)
    image = fpjax.fit_basis(generator, jax.random.key(0), 2000, num_jacobians=4)
    return {"latent": pca(latents), "image": image}


@pytest.fixture(scope="module")
def linear():
    generator = toys.generator(condition=5.0)
    return Study(generator, _bases(generator), jax.random.key(1), num_latents=8, num_pictures=32)


@pytest.fixture(scope="module")
def curved():
    generator = toys.generator(toys.curved_decode, scale=0.1)
    return Study(generator, _bases(generator), jax.random.key(1), num_latents=32, num_pictures=32)


def _curvature(study, scheme, noise):
    """Of the whole posterior of alpha and symbols, symbols without a prior, in closed form."""
    matrix = np.asarray(study.generator.params["matrix"], np.float64)
    free, fingerprint = scheme.split(scheme.basis.directions.astype(np.float64))
    rows = np.concatenate([free, scheme.strength * fingerprint]) @ matrix
    curvature = rows @ rows.T / (noise**2 + ROUNDING_STD**2)
    count = scheme.num_alpha
    curvature[np.arange(count), np.arange(count)] += 1 / scheme.alpha_std.astype(float) ** 2
    return curvature


@pytest.mark.parametrize("basis", ["latent", "image"])
@pytest.mark.parametrize("shift", [None, 3])
def test_information_of_a_linear_generator_has_the_closed_form(linear, basis, shift):
    design = Design(basis, 6, shift, strength=0.3, noise=NOISE)
    scheme = linear.scheme(design)
    covariance = np.linalg.inv(_curvature(linear, scheme, NOISE))
    expected = np.linalg.inv(covariance[-6:, -6:])
    found = linear.information(design)
    assert found.shape == (8, 6, 6)
    # Jacobians are float32.
    np.testing.assert_allclose(found[0], expected, rtol=1e-3, atol=1e-3 * expected.max())
    predicted = linear.predict(design).mutual_information
    closed = 0.5 * np.log2(np.linalg.det(np.eye(6) + expected))
    np.testing.assert_allclose(predicted, closed, rtol=1e-3)


def test_bit_errors_are_those_of_simulated_estimates(linear):
    """Pictures with noise, alpha and symbols from their priors, the posterior mean, decided."""
    rng = np.random.default_rng(0)
    design = Design("latent", 6, strength=0.15, noise=NOISE)
    scheme = linear.scheme(design)
    num, count = 3000, scheme.num_alpha
    matrix = np.asarray(linear.generator.params["matrix"], np.float64)
    free, fingerprint = scheme.split(scheme.basis.directions.astype(np.float64))
    rows = np.concatenate([free, scheme.strength * fingerprint]) @ matrix
    alpha = rng.standard_normal((num, count)) * scheme.alpha_std
    bits = rng.integers(0, 2, (num, 6))
    std = np.sqrt(NOISE**2 + ROUNDING_STD**2)
    unknowns = np.concatenate([alpha, 2 * bits - 1], axis=1)
    pictures = unknowns @ rows + std * rng.standard_normal((num, rows.shape[1]))
    posterior = _curvature(linear, scheme, NOISE)
    posterior[count:, count:] += np.eye(6)
    covariance = np.linalg.inv(posterior)
    means = (pictures @ rows.T / std**2) @ covariance
    information = 4 * np.linalg.inv(covariance[count:, count:])
    decided = decide_bits(0.5 + means[:, count:] / 2, np.broadcast_to(information, (num, 6, 6)))
    predicted = linear.predict(design)
    for found, expected, trials in (
        ((decided != bits).mean(), predicted.bit_error, 6 * num),
        ((decided == bits).all(axis=1).mean(), predicted.exact, num),
    ):
        assert 0.02 < expected < 0.98
        # Both are shares: of `trials`, and of the 8 x 96 keys that the prediction draws.
        drawn = trials / num * 8 * 96
        error = np.sqrt(expected * (1 - expected) * (1 / trials + 1 / drawn))
        assert abs(found - expected) < 3.5 * error


def test_decisions_are_those_of_decision_feedback():
    rng = np.random.default_rng(1)
    factor = rng.standard_normal((12, 20))
    information = factor @ factor.T / 4
    covariance = np.linalg.inv(information + np.eye(12))
    errors = rng.standard_normal((200, 12)) @ np.linalg.cholesky(covariance).T
    means = rng.choice([-1.0, 1.0], (200, 12)) + errors
    shared = np.broadcast_to(4 * (information + np.eye(12)), (200, 12, 12))
    expected = decide_bits(0.5 + means / 2, shared)
    np.testing.assert_array_equal(decide_symbols(means, covariance) > 0, expected)
    assert (expected != (means > 0)).any()


def test_without_information_half_the_bits_are_wrong():
    bit_error, exact = decoding_errors(np.zeros((32, 8, 8)))
    # Of 24,576 bits a share of one half is known to 0.3 points; four of those.
    assert abs(bit_error - 0.5) < 0.013 and exact < 0.02


@pytest.mark.parametrize("psnr", [20.0, 26.0, 29.0])
@pytest.mark.parametrize("basis", ["latent", "image"])
def test_a_stated_psnr_is_what_pictures_have(curved, basis, psnr):
    design = Design(basis, 4, psnr=psnr)
    scheme = curved.scheme(design)
    assert abs(curved.quality(scheme).mean() - psnr) < 0.1
    prediction = curved.predict(design)
    assert prediction.strength == scheme.strength and prediction.psnr_min <= prediction.psnr


def test_a_strength_takes_few_rounds_of_pictures(curved, monkeypatch):
    rounds = []
    quality = Study.quality

    def counted(self, scheme):
        rounds.append(scheme)
        return quality(self, scheme)

    monkeypatch.setattr(Study, "quality", counted)
    curved.scheme(Design("image", 5, psnr=28.0))
    assert len(rounds) <= 8  # bisection to the same precision takes more than twenty
    curved.scheme(Design("image", 5, psnr=28.0, noise=0.1))  # the same pictures
    assert len(rounds) <= 8  # bisection to the same precision takes more than twenty


def test_the_quality_is_that_of_generated_pictures(curved):
    """`fpjax.generate` from the same draws gives the pictures that quality is measured on."""
    scheme = curved.scheme(Design("image", 4, strength=0.5))
    _, key_pictures, key_keys = jax.random.split(jax.random.key(1), 3)
    made = fpjax.generate(scheme, key_pictures, fpjax.sample_keys(key_keys, 32, 4))
    np.testing.assert_array_equal(curved.quality(scheme), psnr_db(made.originals, made.images))


def test_a_quality_that_nothing_reaches_is_refused(curved):
    """Keys overwrite natural variation, which bounds the PSNR however weak they are."""
    with pytest.raises(UnreachableQuality, match="no strength gives 70 dB, the nearest is"):
        curved.scheme(Design("latent", 6, psnr=70.0))


def test_inversions_make_the_errors_that_are_predicted(curved):
    design = Design("latent", 6, strength=0.4, noise=NOISE)
    predicted = curved.predict(design)
    scheme = curved.scheme(design)
    problem = fpjax.Problem(scheme, fpjax.Gaussian(NOISE))
    keys = fpjax.sample_keys(jax.random.key(7), 300, 6)
    made = fpjax.generate(scheme, jax.random.key(8), keys)
    files = problem.observation.simulate(jax.random.key(9), jnp.asarray(made.float_images))
    found = fpjax.invert(problem, files, starts=toys.starts(scheme))
    measured = (found.keys != keys).mean()
    assert 0.04 < predicted.bit_error < 0.3
    # 300 keys of six bits are known to about 0.7 points.
    assert abs(measured - predicted.bit_error) < 0.02


def test_stronger_keys_and_less_noise_are_read_better(curved):
    rows = [
        curved.predict(Design("latent", 4, strength=strength, noise=noise))
        for strength, noise in ((0.4, 0.05), (0.2, 0.05), (0.2, 0.1), (0.2, 0.3))
    ]
    assert np.all(np.diff([p.mutual_information for p in rows]) < 0)
    assert np.all(np.diff([p.bit_error for p in rows]) > 0)


def test_the_recommendation_is_the_best_quality_that_reaches_the_goal():
    def prediction(psnr, exact):
        return Prediction(Design("image", psnr=psnr), 0, 1.0, psnr, psnr, 0.0, exact, 1.0)

    rows = [prediction(34, 1.0), prediction(40, 0.9995), prediction(43, 0.99)]
    assert recommend(rows, 0.999).psnr == 40
    assert recommend(rows, 0.99).psnr == 43
    assert recommend(rows[2:], 0.999) is None


def test_grids_vary_shifts_at_the_lowest_quality_unless_all_is_asked_for():
    choices = dict(key_lengths=(4, 2), shifts={"image": (None, 0)}, psnrs=(20, 30, 40))
    few = grid(["image"], **choices, noises=(0, 0.1))
    assert len(few) == 2 * (2 * 3 + 1)
    assert {(d.key_length, d.psnr) for d in few if d.shift == 0} == {(4, 20)}
    assert len(grid(["image"], **choices, noises=(0, 0.1), product=True)) == 2 * 2 * 2 * 3
    with pytest.raises(InputError, match="one of the two"):
        grid(["image"], psnrs=[40], strengths=[1.0])


def test_grids_judge_codes_at_the_first_shift():
    choices = dict(key_lengths=(64, 8), shifts={"image": (None, 0)}, psnrs=(40, 43))
    some = grid(["image"], **choices, codes=("independent", "bch-64-36", "repetition-4-2"))
    coded = [d for d in some if d.code != "independent"]
    assert len(some) == len(grid(["image"], **choices)) + 4
    assert [(d.code, d.key_length, d.psnr) for d in coded] == [
        ("bch-64-36", 64, 40), ("bch-64-36", 64, 43),
        ("repetition-4-2", 8, 40), ("repetition-4-2", 8, 43),
    ]  # fmt: skip
    assert {d.shift for d in coded} == {None}


def test_payloads_survive_what_bits_do_not(linear):
    """A repeated bit is a longer direction: its error has a closed form."""
    flat = 0.25 * np.eye(12)[None]
    wrong, exact = coded_errors(flat, code_named("repetition-4-3", masked=False), draws=4000)
    expected = scipy.stats.norm.sf(np.sqrt(3 * 0.25))
    assert abs(wrong - expected) < 4 * np.sqrt(expected / 16000)
    assert abs(exact - (1 - expected) ** 4) < 0.05
    design = Design("image", 12, None, strength=0.02, noise=NOISE)
    plain = linear.predict(design)
    coded = linear.predict(dataclasses.replace(design, code="repetition-2-6"))
    assert coded.exact > plain.exact and coded.psnr == plain.psnr


def test_predictions_go_through_json():
    import json

    design = Design("image", 8, None, psnr=40.0, noise=0.02)
    prediction = Prediction(design, 3, 0.1, 40.0, 38.0, 0.01, 0.9, 7.5, 0.002)
    values = json.loads(json.dumps({**prediction.to_json(), "seconds": 1.0}))
    assert Prediction.from_json(values) == prediction


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (dict(basis="image"), "one of the two"),
        (dict(basis="image", psnr=40.0, strength=1.0), "one of the two"),
        (dict(basis="image", psnr=40.0, noise=-0.1), "at least 0"),
        (dict(basis="image", strength=0.0), "positive"),
        (dict(basis="image", psnr=40.0, code="bch-63-45"), "not 64 symbols"),
        (dict(basis="image", psnr=40.0, code="bch-64-60"), "no BCH code of 64 symbols"),
        (dict(basis="image", psnr=40.0, code=None), "expected a name"),
    ],
)
def test_designs_that_cannot_be_are_refused(choice, message):
    with pytest.raises(InputError, match=message):
        Design(**choice)


def test_studies_say_what_does_not_fit(linear):
    with pytest.raises(InputError, match="image, latent"):
        linear.predict(Design("lpips", strength=1.0))
    with pytest.raises(InputError, match=r"expected \(N, 16, 16\)"):
        Study(linear.generator, {}, jax.random.key(0), grams={0.1: np.zeros((2, 3, 3))})
    with pytest.raises(InputError, match="at least 16 a side"):
        lpips_distance(toys.SHAPE)


def test_saturated_pixels_say_nothing():
    """Half of the pixels beyond white: the Jacobian's products are of the others."""
    generator = toys.generator(scale=0.01)
    offset = np.where(np.arange(120) < 60, 2.0, 0.0).astype(np.float32)
    half = generator.replace(params={**generator.params, "offset": jnp.asarray(offset)})
    matrix = np.asarray(generator.params["matrix"], np.float64)[:, 60:]
    found = pixel_grams(half, _bases(half)["image"], jax.random.key(0), (NOISE,), 2)
    np.testing.assert_allclose(found[NOISE][1], matrix @ matrix.T, rtol=1e-3, atol=1e-6)


def test_jacobians_count_as_far_as_a_file_tells_them():
    """A pixel sin(0.7 z) / 2: noise hides z, and with it all but the mean of the slope."""

    def decode(params, latents):
        wave = jnp.sin(0.7 * latents[:, :1]) / 2
        return jnp.tile(wave, (1, 120)).reshape(-1, *toys.SHAPE)

    generator = toys.generator(decode)
    prior = pca(sample_latents(generator, jax.random.key(0), 4000))
    found = pixel_grams(generator, prior, jax.random.key(1), (1e-4, 100.0), 500)
    squares = {
        noise: float(grams[:, 0, 0].mean()) / (120 * 0.35**2) for noise, grams in found.items()
    }
    np.testing.assert_allclose(squares[1e-4], (1 + np.exp(-0.98)) / 2, atol=0.03)
    np.testing.assert_allclose(squares[100.0], np.exp(-0.49), atol=0.03)


def test_an_attack_by_noise_says_what_noise_says(linear):
    """Of a linear generator, whose Jacobian hides nothing, to what files of noise leave of it."""
    label = f"gaussian_noise:std={NOISE}"
    noise, attack = (
        linear.predict(Design("image", 6, strength=0.2, **history))
        for history in ({"noise": NOISE}, {"attack": label})
    )
    assert attack.psnr == noise.psnr and attack.strength == noise.strength
    np.testing.assert_allclose(attack.mutual_information, noise.mutual_information, rtol=1e-3)


def test_a_blur_takes_what_the_file_has_lost(linear):
    """The closed form: rows of the linear picture, blurred, in units of rounding."""
    design = Design("image", 6, strength=0.2, attack="gaussian_blur:sigma=1.0,size=25")
    found = linear.information(design)[0]
    scheme = linear.scheme(design)
    matrix = np.asarray(linear.generator.params["matrix"], np.float64)
    blur = Filter.blur(*toys.SHAPE[:2], 1.0)
    rows, columns = (np.asarray(part, np.float64) for part in (blur.rows, blur.columns))
    pictures = matrix.reshape(-1, *toys.SHAPE[:2])
    matrix = np.einsum("ih,khw,jw->kij", rows, pictures, columns).reshape(len(matrix), -1)
    free, fingerprint = scheme.split(scheme.basis.directions.astype(np.float64))
    along = np.concatenate([free, scheme.strength * fingerprint]) @ matrix / ROUNDING_STD
    curvature, count = along @ along.T, scheme.num_alpha
    curvature[np.arange(count), np.arange(count)] += 1 / scheme.alpha_std.astype(float) ** 2
    expected = np.linalg.inv(np.linalg.inv(curvature)[-6:, -6:])
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3 * expected.max())


def test_a_jpeg_file_says_what_its_tables_leave(linear):
    """The closed form: coefficients of the linear picture, each in units of its own noise."""
    design = Design("image", 6, strength=0.2, attack="jpeg:quality=60,subsampling=4:2:0")
    found = linear.information(design)[0]
    scheme = linear.scheme(design)
    seen, _ = attacked(design.attack, jax.random.key(0), np.full(toys.SHAPE, 128, np.uint8))
    matrix = jnp.asarray(linear.generator.params["matrix"]).reshape(-1, *toys.SHAPE)
    middle = jpeg_coefficients(jnp.zeros(toys.SHAPE), seen.layout)
    rows = jax.vmap(lambda row: jpeg_coefficients(row, seen.layout) - middle)(matrix)
    rows = np.asarray(rows / seen.std, np.float64)
    free, fingerprint = scheme.split(scheme.basis.directions.astype(np.float64))
    along = np.concatenate([free, scheme.strength * fingerprint]) @ rows
    curvature, count = along @ along.T, scheme.num_alpha
    curvature[np.arange(count), np.arange(count)] += 1 / scheme.alpha_std.astype(float) ** 2
    expected = np.linalg.inv(np.linalg.inv(curvature)[-6:, -6:])
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3 * expected.max())


@pytest.mark.parametrize(
    ("history", "message"),
    [
        ({"attack": "smear"}, "unknown attack"),
        ({"attack": "jpeg", "noise": 0.1}, "a noise or an attack"),
        ({"attack": "jpeg"}, "in full, jpeg:quality="),
    ],
)
def test_designs_say_what_is_wrong_with_their_history(history, message):
    with pytest.raises(InputError, match=message):
        Design("image", psnr=30.0, **history)


def test_what_no_observation_describes_is_not_predicted(linear):
    with pytest.raises(InputError, match="no observation describes it"):
        linear.predict(
            Design("image", 6, strength=0.2, attack=attack_label("crop_resize:side=0.9"))
        )


def test_the_strength_of_a_quality_depends_on_no_noise(curved):
    """Whichever design a study judges first."""

    def strengths(noises):
        study = Study(
            curved.generator, curved.bases, jax.random.key(2), num_latents=4, num_pictures=8
        )
        designs = [Design("image", 6, psnr=30.0, noise=noise) for noise in noises]
        return [study.predict(design).strength for design in designs]

    assert strengths([0.1, 0.0]) == strengths([0.0, 0.1])


def test_jacobians_do_not_depend_on_memory(curved):
    """A budget of one byte takes tangents one at a time, on one core."""
    prior = curved.bases["latent"]
    some, others = (
        pixel_grams(curved.generator, prior, jax.random.key(3), (0.1,), 3, memory=memory)[0.1]
        for memory in (1, 1 << 30)
    )
    np.testing.assert_allclose(some, others, rtol=1e-3, atol=1e-3 * np.abs(others).max())
