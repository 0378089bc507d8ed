"""The basis is the PCA that scikit-learn computes, with signs that do not depend on LAPACK."""

import jax
import numpy as np
import pytest

from fpjax.fingerprint import basis as basis_module
from fpjax.fingerprint.basis import pca
from fpjax.fingerprint.fit import fit_basis


def _latents(num, dimension, seed=0):
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((dimension, dimension)) / np.arange(1, dimension + 1)
    return (rng.standard_normal((num, dimension)) @ mixing + rng.standard_normal(dimension)).astype(
        np.float32
    )


@pytest.mark.parametrize(("num", "dimension"), [(500, 32), (40, 64)])
def test_pca_is_scikit_learns_up_to_sign(num, dimension):
    sklearn = pytest.importorskip("sklearn.decomposition")
    latents = _latents(num, dimension)
    count = min(num - 1, dimension)
    reference = sklearn.PCA(n_components=count, svd_solver="full").fit(latents.astype(np.float64))
    basis = pca(latents)
    assert len(basis) == count
    # Stored in float32: seven digits.
    np.testing.assert_allclose(basis.mean, reference.mean_, atol=1e-6)
    np.testing.assert_allclose(basis.std**2, reference.explained_variance_, rtol=1e-4, atol=1e-9)
    cosines = np.abs(np.sum(basis.directions * reference.components_, axis=1))
    np.testing.assert_allclose(cosines, 1, atol=1e-4)


def test_signs_make_the_largest_entry_positive_whatever_the_library_returns(monkeypatch):
    latents = _latents(200, 12)
    expected = pca(latents)
    real = np.linalg.eigh

    def flipped(matrix):
        values, vectors = real(matrix)
        return values, -vectors

    monkeypatch.setattr(basis_module.np.linalg, "eigh", flipped)
    again = pca(latents)
    np.testing.assert_array_equal(again.directions, expected.directions)
    rows = np.arange(12)
    assert (expected.directions[rows, np.abs(expected.directions).argmax(axis=1)] > 0).all()


def test_components_are_orthonormal_and_sorted():
    basis = pca(_latents(1000, 24))
    np.testing.assert_allclose(basis.directions @ basis.directions.T, np.eye(24), atol=1e-6)
    assert (np.diff(basis.std) <= 0).all()


def test_fit_is_a_function_of_the_prng_key(tiny_generator):
    one, same = (
        fit_basis(tiny_generator, jax.random.key(5), 300, metric="latent") for _ in range(2)
    )
    other = fit_basis(tiny_generator, jax.random.key(6), 300, metric="latent")
    np.testing.assert_array_equal(one.directions, same.directions)
    assert not np.array_equal(one.directions, other.directions)
    assert one.num_samples == 300


def test_latents_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        pca(np.array([[0.0, np.nan], [1.0, 2.0]]))
    with pytest.raises(ValueError, match="at least 2"):
        pca(np.zeros((1, 4)))
