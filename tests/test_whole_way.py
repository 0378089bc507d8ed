"""The whole way, from basis to verdict, whatever switches a user's program has set."""

import contextlib

import jax
import numpy as np
import pytest

import fpjax
from tests import pictures, toys


def _random_keys():
    return [jax.random.key(i) for i in range(4)]


def _whole_way(folder, random=None):
    """Basis, scheme, calibration, files, registry, verdicts."""
    random = _random_keys() if random is None else random
    generator = toys.generator(toys.curved_decode, scale=0.1)
    basis = fpjax.fit_basis(generator, random[0], 400, num_jacobians=2)
    scheme = fpjax.Scheme.create(generator, basis, 6, shift=10, strength=0.5, keep_all=True)
    scheme = fpjax.calibrate(scheme, random[1], num_start_images=100, num_inverted_images=2)
    scheme.save(folder / "scheme")
    scheme = fpjax.load_scheme(folder / "scheme", generator)
    keys = fpjax.sample_keys(random[2], 3, 6)
    paths = fpjax.generate(scheme, random[3], keys).save(folder / "pictures")
    images = np.stack([fpjax.load_image(path, generator.image_shape) for path in paths])
    with fpjax.Registry.create(folder / "users.db", key_length=6, scheme_id=scheme.id) as registry:
        for i, key in enumerate(np.unique(keys, axis=0)):
            registry.issue(f"user{i}", key=key)
        found = fpjax.attribute(scheme, images, registry, false_positive_rate=0.5)
        holders = {registry.key_of(user).tobytes(): user for user in registry.users()}
    assert [v.user for v in found.verdicts] == [holders[key.tobytes()] for key in keys]
    np.testing.assert_array_equal(found.keys, keys)
    return scheme, found


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return _whole_way(tmp_path_factory.mktemp("plain"))


SWITCHES = {
    "x64": lambda: jax.enable_x64(True),
    "strict promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "rank promotion": lambda: jax.numpy_rank_promotion("raise"),
    "debug nans": lambda: jax.debug_nans(True),
    "transfer guard": lambda: jax.transfer_guard("disallow"),
    "rbg keys": lambda: jax.default_prng_impl("rbg"),
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_the_whole_way_works_under(switch, plain, tmp_path):
    # A PRNG key is made of a Python number, which is a transfer of the caller's.
    random = _random_keys() if switch == "transfer guard" else None
    with SWITCHES[switch]():
        scheme, found = _whole_way(tmp_path, random)
    if switch != "rbg keys":
        # The same draws and the same sums, whatever the switch.
        assert scheme.generator.sha256 == plain[0].generator.sha256
        np.testing.assert_allclose(found.soft_bits, plain[1].soft_bits, atol=0.02)
    assert found.soft_bits.dtype == np.float32 and found.information.dtype == np.float32


@pytest.mark.parametrize("switch", ["x64", "strict promotion", "debug nans"])
def test_noisy_files_are_read_under(switch):
    """What follows such files to their solution is no part of the whole way of clean ones."""
    scheme = toys.scheme(toys.generator(toys.curved_decode, scale=0.1))
    starts = toys.starts(scheme)
    keys = fpjax.sample_keys(jax.random.key(0), 2, 6)
    made = fpjax.generate(scheme, jax.random.key(1), keys)
    noise = 0.05 * np.random.default_rng(2).normal(size=made.images.shape)
    files = np.clip(made.float_images + noise, -1, 1).astype(np.float32)
    problem = fpjax.Problem(scheme, fpjax.Gaussian(0.05))
    plain = fpjax.invert(problem, files, starts=starts)
    with SWITCHES[switch]():
        found = fpjax.invert(problem, files, starts=starts)
    np.testing.assert_allclose(found.soft_bits, plain.soft_bits, atol=0.02)
    assert found.loss.dtype == np.float32 and (found.steps == plain.steps).all()


def _read_by_the_encoder(scheme, random):
    settings = {"num_read_images": 64, "num_inverted_images": 2}
    calibrated = fpjax.calibrate(scheme, random[0], encoder_only=True, **settings)
    keys = fpjax.sample_keys(random[1], 3, scheme.key_length)
    images = fpjax.generate(calibrated, random[2], keys).images
    found = fpjax.attribute(calibrated, images)
    assert found.solver == "encoder"
    return found.soft_bits


@pytest.fixture(scope="module")
def first_stage():
    scheme = pictures.scheme(strength=0.4, length=12)
    return scheme, _read_by_the_encoder(scheme, _random_keys())


@pytest.mark.parametrize("switch", [name for name in SWITCHES if name != "rbg keys"])
def test_an_encoder_reads_under(switch, first_stage):
    scheme, plain = first_stage
    random = _random_keys()
    with SWITCHES[switch]():
        found = _read_by_the_encoder(scheme, random)
    np.testing.assert_allclose(found, plain, atol=0.02)


def test_no_program_captures_a_large_array(tmp_path, recwarn):
    """Bases, weights, targets and starts are arguments: nothing above 1 KiB is a constant here."""
    jax.clear_caches()
    with jax_option("jax_captured_constants_warn_bytes", 1 << 10):
        _whole_way(tmp_path)
    assert not [w for w in recwarn if "constant" in str(w.message).lower()]


@contextlib.contextmanager
def jax_option(name, value):
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        yield
    finally:
        jax.config.update(name, before)
