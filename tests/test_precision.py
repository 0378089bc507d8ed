"""Products of what embeds and reads keys are in full float32, whatever the device and switches."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fpjax
from fpjax.fingerprint import decode, embed
from fpjax.inversion import driver, information, starts
from fpjax.inversion.solvers.levenberg_marquardt import LevenbergMarquardt
from fpjax.io.jpeg_dct import JpegLayout, jpeg_coefficients
from tests import pictures, toys


def _round(scheme):
    solver, problem = LevenbergMarquardt(), fpjax.Problem(scheme)
    placed = driver.Placed.of(jax.sharding.Mesh(np.array(jax.devices()[:1]), ("images",)))
    targets = np.zeros((1, *scheme.generator.image_shape), np.float32)
    first = np.zeros((1, 1, problem.num_unknowns), np.float32)
    wave = driver._begin(solver, placed, 1, problem.prepared(), (targets, None), first, True)
    return driver._round.lower(solver, placed, 1, 16, problem.prepared(), wave)


def _programs(scheme):
    problem = fpjax.Problem(scheme).prepared()
    alpha = jnp.zeros((2, scheme.num_alpha))
    symbols = jnp.ones((2, scheme.num_symbols))
    unknowns = jnp.concatenate([alpha, symbols], axis=1)
    latents = jnp.zeros((2, *scheme.generator.latent_shape))
    images = jnp.zeros((2, *scheme.generator.image_shape))
    return {
        "embed": embed._latents_of.lower(scheme, alpha, symbols),
        "project": embed._project.lower(scheme, latents.reshape(2, -1)),
        "decode": decode._decode.lower(scheme.generator, latents),
        "information": information._key_information.lower(problem, unknowns, images, 4),
        "inversion": _round(scheme),
    }


@pytest.mark.parametrize("switch", ["default", "bfloat16", "tensorfloat32"])
def test_every_product_is_in_full_precision(switch):
    scheme = toys.scheme()
    with jax.default_matmul_precision(switch):
        for name, program in _programs(scheme).items():
            _check(name, program)


def test_so_is_every_product_of_an_encoders_rereading_and_of_a_jpeg():
    scheme = pictures.scheme(strength=0.4, length=12)
    images = jnp.zeros((2, *scheme.generator.image_shape))
    _check("rereading", starts._read_again.lower(scheme, images, 1))
    _check("jpeg", jpeg_coefficients.lower(images, JpegLayout.of(*images.shape[1:3])))


def _check(name, program):
    products = re.findall(r"stablehlo\.(?:dot_general|convolution).*", program.as_text())
    assert products, name
    assert all(product.count("HIGHEST") == 2 for product in products), name
