"""What all tests share: a small generator, a compilation cache, JAX's strictest types."""

import os
from pathlib import Path

import jax
import pytest

CACHE = Path(__file__).resolve().parents[1] / ".jax_cache"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
# No silent promotion of types, here and in the processes that tests start.
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
jax.config.update("jax_numpy_dtype_promotion", "strict")
# Most programs of tests run once or twice: the same operations in machine code that is made
# quickly. StyleGAN2's tests take 0.67 of the time for it, a resumed training run 0.6.
_QUICK_CODE = "--xla_backend_optimization_level="
if _QUICK_CODE not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_QUICK_CODE}0".strip()
# Eight virtual devices, for what is sharded; everything else uses the first.
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


class _FewMaps:
    """Forgets compiled programs when a process has many: each maps memory, and the system allows a
    process 65,530 maps, beyond which XLA crashes. A plugin, so that doctests are among its tests.
    """

    most = 20_000

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_teardown(self):
        maps = Path("/proc/self/maps")
        if maps.exists() and maps.read_bytes().count(b"\n") > self.most:
            jax.clear_caches()


def pytest_configure(config):
    """Registers what acts on all tests, also those outside this folder."""
    config.pluginmanager.register(_FewMaps(), "few-maps")


@pytest.fixture(scope="session")
def tiny_generator():
    """16 px, 16-d latents, images well inside [-1, 1]."""
    from fpjax.models import stylegan2
    from fpjax.models.stylegan2_generator import StyleGAN2Generator

    config = stylegan2.StyleGAN2Config(16, 16, 16, 2, channel_base=128, channel_max=16)
    params = stylegan2.init(config, jax.random.key(0))
    for block in params["synthesis"].values():
        block["torgb"]["weight"] = block["torgb"]["weight"] * 0.15
    return StyleGAN2Generator.create("tiny", config, params)


@pytest.fixture(scope="session")
def tiny_scheme(tiny_generator):
    """6-bit keys on the last six of sixteen principal components."""
    from fpjax.fingerprint.fit import fit_basis
    from fpjax.fingerprint.scheme import Scheme

    basis = fit_basis(tiny_generator, jax.random.key(1), 2000, metric="latent")
    return Scheme.create(
        tiny_generator, basis, key_length=6, shift=10, strength=0.5, levels="binary"
    )


@pytest.fixture(scope="session")
def calibrated_scheme(tiny_scheme):
    """The tiny scheme with its linear start."""
    from fpjax.attribution.calibration import calibrate

    return calibrate(tiny_scheme, jax.random.key(2), num_start_images=600, num_inverted_images=4)


@pytest.fixture(scope="session")
def tiny_images(tiny_scheme):
    """Eight 8-bit images with keys: (images, keys)."""
    from fpjax.fingerprint.embed import generate
    from fpjax.fingerprint.keys import sample_keys

    keys = sample_keys(jax.random.key(3), 8, 6)
    return generate(tiny_scheme, jax.random.key(4), keys).images, keys
