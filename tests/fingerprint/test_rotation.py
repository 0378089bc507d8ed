"""A secret rotation: the same span and quality, keys that only its owner reads."""

import jax
import numpy as np

import fpjax
from fpjax.fingerprint.rotation import rotated, secret_rotation
from fpjax.fingerprint.scheme import Scheme
from tests import toys


def test_the_span_its_dual_and_all_other_coordinates_stay():
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((10, 10))
    basis = fpjax.Basis(
        np.zeros(10, np.float32),
        directions.astype(np.float32),
        np.linalg.inv(directions).T.astype(np.float32),
        np.linspace(2, 1, 10).astype(np.float32),
        100,
        "image",
    )
    turned = rotated(basis, 4, secret_rotation(6))
    np.testing.assert_array_equal(turned.directions[:4], basis.directions[:4])
    np.testing.assert_array_equal(turned.dual[:4], basis.dual[:4])
    np.testing.assert_allclose(turned.dual @ turned.directions.T, np.eye(10), atol=1e-4)
    # What is projected onto the span is the same: dual_V^T V.
    before, after = (b.dual[4:].T @ b.directions[4:] for b in (basis, turned))
    np.testing.assert_allclose(before, after, atol=1e-4)
    np.testing.assert_allclose((turned.std**2).sum(), (basis.std**2).sum(), rtol=1e-5)


def test_only_the_rotation_reads_the_keys_and_pictures_change_as_much(tmp_path):
    made = toys.generator(scale=0.3)
    plain = toys.scheme(made, strength=1.0)
    scheme = toys.scheme(made, strength=1.0, rotate=True)
    assert scheme.id != plain.id != toys.scheme(made, strength=1.0, rotate=True).id
    keys = fpjax.sample_keys(jax.random.key(0), 40, 6)
    out = fpjax.generate(scheme, jax.random.key(1), keys)
    scheme.save(tmp_path / "scheme")
    opened = Scheme.load(tmp_path / "scheme", made)
    read = {
        name: fpjax.invert(fpjax.Problem(one), out.images, starts=toys.starts(one)).keys
        for name, one in (("owner", opened), ("refitted", plain))
    }
    np.testing.assert_array_equal(read["owner"], keys)
    # Of 240 bits; a rotation of six dimensions may by chance be near to none.
    assert (read["refitted"] == keys).mean() < 0.95
    nothing = [one.replace(strength=1e-6) for one in (plain, scheme)]
    images = [
        fpjax.generate(one, jax.random.key(1), keys).float_images
        for one in (plain, scheme, *nothing)
    ]
    change = [np.square(images[i] - images[i + 2]).sum() for i in range(2)]
    assert 0.5 < change[0] / change[1] < 2
