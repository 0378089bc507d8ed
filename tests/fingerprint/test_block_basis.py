"""Bases of latents with a picture's shape: the same as dense ones, without their matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft

import fpjax
from fpjax.errors import InputError
from fpjax.fingerprint import block_basis, grid_metric, large_pca, tied_pca
from fpjax.fingerprint.basis import pca
from fpjax.fingerprint.image_metric import image_basis, image_metric
from fpjax.fingerprint.scheme_files import SchemeError
from tests.pictures import GRID, generator

SIZE = int(np.prod(GRID))


@pytest.fixture(scope="module")
def latents():
    return np.asarray(generator().natural_latents(jax.random.key(1), 4000)).reshape(4000, -1)


@pytest.fixture(scope="module")
def metric(latents):
    return grid_metric.grid_metric(generator(), latents[:64], jax.random.key(2), 256)


@pytest.fixture(scope="module")
def basis(latents, metric):
    return grid_metric.grid_basis(latents, metric, GRID)


def test_the_transform_is_scipys_and_its_inverse_is_its_transpose(latents):
    pictures = latents[:3].reshape(3, *GRID)
    expected = scipy.fft.dctn(pictures, axes=(1, 2), norm="ortho").reshape(3, -1, GRID[2])
    found = block_basis.to_blocks("dct", GRID, jnp.asarray(latents[:3]))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for transform in ("dct", "channels", "none"):
        there = block_basis.to_blocks(transform, GRID, jnp.asarray(latents[:3]))
        assert there.shape[1] == block_basis.num_blocks(transform, GRID)
        np.testing.assert_allclose(
            block_basis.from_blocks(transform, GRID, there), latents[:3], atol=1e-5
        )


def test_coordinates_and_latents_are_inverses_and_agree_with_the_dense_form(basis, latents):
    there = np.asarray(basis.coordinates(jnp.asarray(latents[:5])))
    back = np.asarray(basis.latents(jnp.asarray(there)))
    np.testing.assert_allclose(back, latents[:5], atol=1e-4)
    dense = basis.dense()
    np.testing.assert_allclose(dense.dual @ dense.directions.T, np.eye(len(basis)), atol=1e-4)
    np.testing.assert_allclose((latents[:5] - dense.mean) @ dense.dual.T, there, atol=1e-3)
    np.testing.assert_allclose(dense.mean + there @ dense.directions, back, atol=1e-4)


def test_some_of_the_coordinates_are_the_dense_basis_of_them(basis):
    rows = [3, 0, 17]
    some = basis.select(rows)
    np.testing.assert_allclose(some.dense().directions, basis.dense().directions[rows], atol=1e-6)
    np.testing.assert_array_equal(some.std, basis.std[rows])


def test_blocks_of_the_metric_are_those_of_the_dense_one(latents, metric):
    """Probes have noise of about 1 / sqrt(256) of what the other frequencies put there."""
    dense = image_metric(generator(), latents[:64])
    rows = np.asarray(block_basis.to_blocks("dct", GRID, jnp.asarray(dense, jnp.float32)))
    rows = rows.reshape(SIZE, SIZE)
    transformed = np.asarray(block_basis.to_blocks("dct", GRID, jnp.asarray(rows.T)))
    transformed = transformed.reshape(SIZE, -1, GRID[2])
    count = GRID[0] * GRID[1]
    expected = np.stack([transformed[i * GRID[2] : (i + 1) * GRID[2], i] for i in range(count)])
    error = np.sqrt(np.sum((metric - expected) ** 2) / np.sum(expected**2))
    assert error < 0.15


def test_the_basis_orders_directions_as_the_dense_one_does(latents, basis):
    dense = image_basis(latents, image_metric(generator(), latents[:64]))
    assert (np.diff(basis.std) <= 0).all()
    # Six pixels a side are all border, where a convolution is not the same everywhere: spreads
    # agree to a tenth (0.10 measured, in the median), those at the ends to a factor.
    assert np.corrcoef(np.log(basis.std), np.log(dense.std))[0, 1] > 0.9
    assert np.median(np.abs(np.log(basis.std / dense.std))) < 0.15


def test_a_coordinate_changes_an_image_by_about_one(latents, basis):
    """What the metric promises: unit image effect on average, whatever the direction."""
    dense = basis.dense()
    made = generator()

    def picture(flat):
        return made.decode(made.params, flat.reshape(1, *GRID)).reshape(-1)

    rows = np.stack([np.asarray(jax.jacfwd(picture)(jnp.asarray(z))).T for z in latents[:8]])
    effect = np.sqrt(np.mean(np.sum((dense.directions @ rows) ** 2, axis=2), axis=0))
    assert 0.8 < np.median(effect) < 1.25 and (effect < 3).all()


@pytest.mark.parametrize("method", ["covariance", "gram", "randomised"])
@pytest.mark.parametrize("num", [30, 200])
def test_every_large_pca_is_the_exact_one(method, num):
    rng = np.random.default_rng(0)
    latents = (rng.normal(size=(num, 40)) * np.logspace(0, -2, 40)).astype(np.float32)
    exact = pca(latents)
    parts = [latents[:7], latents[7:20], latents[20:]]
    found = large_pca.large_pca(lambda: parts, 12, method=method)
    np.testing.assert_allclose(found.std, exact.std[:12], rtol=2e-3)
    overlap = np.abs(np.sum(found.directions[:6] * exact.directions[:6], axis=1))
    np.testing.assert_allclose(overlap, 1, atol=1e-2 if method == "randomised" else 1e-4)
    np.testing.assert_allclose(found.directions @ found.directions.T, np.eye(12), atol=1e-5)
    np.testing.assert_allclose(found.mean, exact.mean, atol=1e-6)


def test_large_pca_keeps_to_its_memory_and_says_what_does_not_fit():
    latents = np.random.default_rng(0).normal(size=(50, 100))
    with pytest.raises(InputError, match=r"are allowed"):
        large_pca.large_pca(lambda: [latents], method="covariance", memory=1000)
    with pytest.raises(InputError, match="1 to 49"):
        large_pca.large_pca(lambda: [latents], 50)
    with pytest.raises(InputError, match="finite"):
        large_pca.large_pca(lambda: [latents * np.nan])


def test_per_channel_components_write_the_same_symbols_in_every_channel():
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(300, SIZE)).astype(np.float32)
    basis, shift = tied_pca.channel_pca(latents, GRID, key_length=5, shift=20)
    scheme = fpjax.Scheme.create(generator(), basis, 5, shift, 0.7, "binary")
    channels = GRID[2]
    assert scheme.num_alpha == channels * (GRID[0] * GRID[1] - 5)
    keys = np.array([[1, 0, 1, 1, 0]], np.uint8)
    made = np.asarray(scheme.embed(jnp.zeros((1, scheme.num_alpha)), keys)).reshape(-1, channels)
    mean = latents.reshape(300, -1, channels).mean(axis=0)
    for c in range(channels):
        own = pca(latents.reshape(300, -1, channels)[..., c])
        expected = mean[:, c] + 0.7 * keys[0].astype(np.float32) @ own.directions[20:25]
        np.testing.assert_allclose(made[:, c], expected, atol=1e-4)


def test_joint_components_write_each_symbol_on_three_in_a_row():
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(300, SIZE)).astype(np.float32)
    basis, shift = tied_pca.joint_pca(latents, GRID, key_length=4, shift=30)
    scheme = fpjax.Scheme.create(generator(), basis, 4, shift, 0.5, "binary")
    keys = np.array([[1, 0, 1, 1]], np.uint8)
    alpha = np.asarray(scheme.project(jnp.asarray(latents[:1].reshape(1, *GRID))))
    made = np.asarray(scheme.embed(jnp.asarray(alpha), keys)).reshape(-1)
    whole = pca(latents)
    coordinates = whole.dual @ (latents[0] - whole.mean)
    coordinates[30:42] = 0.5 * np.repeat(keys[0], 3)
    np.testing.assert_allclose(made, whole.mean + coordinates @ whole.directions, atol=1e-4)
    # And back: the mean over a symbol's three rows.
    back = np.asarray(basis.coordinates(jnp.asarray(made[None])))[0]
    np.testing.assert_allclose(back[30:34], 0.5 * keys[0], atol=1e-4)


def test_symbols_that_the_components_do_not_reach_are_refused():
    latents = np.random.default_rng(0).normal(size=(40, SIZE))
    with pytest.raises(InputError, match="draw more latents"):
        tied_pca.joint_pca(latents, GRID, key_length=8, shift=30)
    with pytest.raises(InputError, match="picture's shape"):
        tied_pca.joint_pca(latents, (SIZE,))


def test_a_saved_scheme_comes_back_bit_for_bit(tmp_path, basis):
    scheme = fpjax.Scheme.create(generator(), basis, 6)
    scheme.save(tmp_path / "scheme")
    again = fpjax.Scheme.load(tmp_path / "scheme", generator())
    assert again.id == scheme.id and again.shift == scheme.shift
    for name, array in scheme.basis.arrays().items():
        np.testing.assert_array_equal(again.basis.arrays()[name], array)
    np.testing.assert_array_equal(
        fpjax.generate(again, jax.random.key(3), np.eye(6, dtype=np.uint8)).images,
        fpjax.generate(scheme, jax.random.key(3), np.eye(6, dtype=np.uint8)).images,
    )


@pytest.mark.parametrize("fault", ["owner", "grid", "transform", "blocks"])
def test_a_damaged_basis_is_refused(tmp_path, basis, fault):
    import json

    from safetensors.numpy import load_file, save_file

    folder = tmp_path / "scheme"
    fpjax.Scheme.create(generator(), basis, 6, keep_all=True).save(folder)
    header = json.loads((folder / "scheme.json").read_text())
    arrays = load_file(folder / "scheme.safetensors")
    if fault == "owner":
        arrays["basis/owner"] = arrays["basis/owner"] * 0
    elif fault == "blocks":
        arrays["basis/blocks"] = arrays["basis/blocks"][:, :1]
    elif fault == "grid":
        header["basis_grid"] = [1, 2, 3]
    else:
        header["basis_transform"] = "fourier"
    save_file(arrays, folder / "scheme.safetensors")
    (folder / "scheme.json").write_text(json.dumps(header))
    with pytest.raises(SchemeError, match="damaged"):
        fpjax.Scheme.load(folder, generator())


def test_too_few_probes_are_refused(latents):
    with pytest.raises(InputError, match="take at least 12"):
        grid_metric.grid_metric(generator(), latents, jax.random.key(0), 8)

    def drawn(*_, **__):
        pytest.fail("latents were drawn, which may take hours")

    with pytest.raises(InputError, match="take at least 12"):
        slow = generator().replace(sample_latents=drawn)
        fpjax.fit_basis(slow, jax.random.key(0), 10, in_blocks=True, num_probes=8)
