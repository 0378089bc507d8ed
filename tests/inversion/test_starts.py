"""Starts by a generator's own encoder, and by whichever reads better."""

import jax
import numpy as np

import fpjax
from fpjax.fingerprint.codes import Repetition
from fpjax.inversion.starts import encoder_starts
from tests import pictures, toys


def test_an_encoder_that_misreads_a_file_is_not_started_from():
    made = pictures.generator()
    basis = fpjax.fit_basis(made, jax.random.key(1), 400, num_jacobians=4, in_blocks=False)
    scheme = fpjax.Scheme.create(made, basis, 8, strength=0.3)
    files = fpjax.generate(scheme, jax.random.key(3), np.ones((2, 8), np.uint8)).images
    images = files.astype(np.float32) / 127.5 - 1
    assert np.abs(encoder_starts(fpjax.Problem(scheme), images)).min() > 0
    blind = made.replace(encode=lambda params, x: 50 + made.encode(params, x))
    scheme = fpjax.Scheme.create(blind, basis, 8, strength=0.3)
    np.testing.assert_array_equal(encoder_starts(fpjax.Problem(scheme), images), 0)


def test_calibration_keeps_a_linear_start_where_it_reads_better_than_the_encoder():
    made = pictures.generator()
    basis = fpjax.fit_basis(made, jax.random.key(1), 400, num_jacobians=4, in_blocks=False)
    settings = {"num_start_images": 1000, "num_inverted_images": 2}
    scheme = fpjax.Scheme.create(made, basis, 8, strength=0.3)
    assert fpjax.calibrate(scheme, jax.random.key(2), **settings).calibration.start is None
    blind = made.replace(encode=lambda params, x: 50 + made.encode(params, x))
    scheme = fpjax.Scheme.create(blind, basis, 8, strength=0.3)
    assert fpjax.calibrate(scheme, jax.random.key(2), **settings).calibration.start is not None


def test_a_start_knows_nothing_of_a_code_and_its_mask():
    """It is fitted on any symbols: copies of a bit tell nothing of each other."""
    settings = {"num_start_images": 100, "num_inverted_images": 2}
    plain = toys.scheme(strength=1.0)
    coded = toys.scheme(strength=1.0, length=None, code=Repetition(2, 3, "a4"))
    found = [fpjax.calibrate(made, jax.random.key(1), **settings) for made in (plain, coded)]
    assert found[1].code == coded.code and found[1].key_length == 2
    first, second = (made.calibration.start for made in found)
    np.testing.assert_array_equal(first.weight, second.weight)
    np.testing.assert_array_equal(first.forward, second.forward)
