"""Every network works wherever a program has already set JAX's switches, and captures no arrays."""

import contextlib
import functools
import math
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpjax import perceptual
from fpjax.models import autoencoder, autoencoder_tiny, diffusion, stylegan2, unet
from fpjax.models.autoencoder import AutoencoderConfig
from fpjax.models.autoencoder_tiny import AutoencoderTinyConfig
from fpjax.models.diffusion import Denoiser, DiffusionConfig
from fpjax.models.stylegan2 import StyleGAN2Config
from fpjax.models.unet import UNetConfig
from fpjax.training import discriminator

GAN = StyleGAN2Config(8, 8, 8, 1, channel_base=64, channel_max=8)
KL = AutoencoderConfig(ch=32, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(4,), resolution=8)
VQ = AutoencoderConfig(
    ch=32, ch_mult=(1, 1), num_res_blocks=1, n_embed=16, double_z=False, resolution=8
)
TINY = AutoencoderTinyConfig(
    channels=8, encoder_blocks=(1, 1), decoder_blocks=(1, 1), midblock_norm=True, resolution=8
)
UNET = UNetConfig(
    image_size=8,
    model_channels=32,
    channel_mult=(1, 1),
    num_res_blocks=1,
    use_scale_shift_norm=True,
)
PRIOR = DiffusionConfig(UNET)


def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def synthesize_with_key(params, w, key):
    return stylegan2.synthesis(GAN, params, w, noise=key)


def encode_with_key(params, x, key):
    return autoencoder.encode(KL, params, x, key=key)


def sample(params, eta, key):
    prior = diffusion.DiffusionPrior(PRIOR, params)
    return diffusion.ddim_sample(prior, params, key, 2, 3, eta)


def lpips_alex(params, x, y):
    return perceptual.lpips(params, x, y, net="alex")


KEY = jax.eval_shape(jax.random.key, 0)
IMAGES = array(2, 8, 8, 3)
LATENTS = array(2, 4, 4, 3)

# name: (function, its arguments as shapes, parameters first)
NETWORKS = {
    "stylegan2 mapping": (
        functools.partial(stylegan2.mapping, GAN, truncation_psi=0.7),
        (stylegan2.param_shapes(GAN), array(2, 8)),
    ),
    "stylegan2 synthesis": (
        functools.partial(stylegan2.synthesis, GAN),
        (stylegan2.param_shapes(GAN), array(2, 8)),
    ),
    "stylegan2 keyed noise": (
        synthesize_with_key,
        (stylegan2.param_shapes(GAN), array(2, 4, 8), KEY),
    ),
    "discriminator": (
        functools.partial(discriminator.discriminate, GAN),
        (discriminator.param_shapes(GAN), array(4, 8, 8, 3)),
    ),
    "kl encode": (encode_with_key, (autoencoder.param_shapes(KL), IMAGES, KEY)),
    "kl decode": (
        functools.partial(autoencoder.decode, KL),
        (autoencoder.param_shapes(KL), LATENTS),
    ),
    "vq encode": (
        functools.partial(autoencoder.encode, VQ),
        (autoencoder.param_shapes(VQ), IMAGES),
    ),
    "vq decode": (
        functools.partial(autoencoder.decode, VQ),
        (autoencoder.param_shapes(VQ), LATENTS),
    ),
    "tiny encode": (
        functools.partial(autoencoder_tiny.encode, TINY),
        (autoencoder_tiny.param_shapes(TINY), IMAGES),
    ),
    "tiny decode": (
        functools.partial(autoencoder_tiny.decode, TINY),
        (autoencoder_tiny.param_shapes(TINY), array(2, 4, 4, 4)),
    ),
    "unet": (
        Denoiser(UNET),
        (unet.param_shapes(UNET), IMAGES, jax.ShapeDtypeStruct((2,), jnp.int32)),
    ),
    "ddim": (sample, (unet.param_shapes(UNET), array(), KEY)),
    "lpips vgg": (perceptual.lpips, (perceptual.lpips_shapes(), *2 * (array(1, 16, 16, 3),))),
    "lpips alex": (lpips_alex, (perceptual.lpips_shapes("alex"), *2 * (array(1, 31, 31, 3),))),
    "lpips features": (
        perceptual.lpips_features,
        (perceptual.lpips_shapes(), array(1, 16, 16, 3)),
    ),
    "pooled vgg": (
        perceptual.pooled_vgg_features,
        (perceptual.vgg16_shapes(), array(1, 16, 16, 3)),
    ),
    "inception": (
        perceptual.inception_features,
        (perceptual.inception_shapes(), array(1, 8, 8, 3)),
    ),
}


INITS = {
    "stylegan2": functools.partial(stylegan2.init, GAN),
    "discriminator": functools.partial(discriminator.init, GAN),
    "autoencoder": functools.partial(autoencoder.init, VQ),
    "tiny": functools.partial(autoencoder_tiny.init, TINY),
    "unet": functools.partial(unet.init, UNET),
    "vgg": perceptual.init_vgg16,
    "alexnet": perceptual.init_alexnet,
    "lpips": perceptual.init_lpips,
    "inception": perceptual.init_inception,
}


@pytest.fixture(params=NETWORKS)
def network(request):
    return NETWORKS[request.param]


def derivatives(function, params, *arguments):
    """The function, its jvp along its second argument and the vjp of that, where it is a float."""
    rest = arguments[1:]
    if not arguments or not jnp.issubdtype(arguments[0].dtype, jnp.floating):
        return function(params, *arguments)
    along = lambda x: function(params, x, *rest)  # noqa: E731
    y, tangent = jax.jvp(along, arguments[:1], arguments[:1])
    _, pullback = jax.vjp(along, arguments[0])
    return y, tangent, pullback(y)[0]


STRICT = {"jax_numpy_dtype_promotion": "strict", "jax_numpy_rank_promotion": "raise"}
X64 = {"jax_enable_x64": True}


@contextlib.contextmanager
def switches(**values):
    before = {name: getattr(jax.config, name) for name in values}
    try:
        for name, value in values.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


@pytest.mark.parametrize("values", [STRICT, X64, STRICT | X64], ids=["strict", "x64", "both"])
def test_float32_in_is_float32_out(network, values):
    """With derivatives. Traced only: promotion is decided before anything is computed."""
    function, arguments = network
    with switches(**values):
        shapes = jax.eval_shape(functools.partial(derivatives, function), *arguments)
    chex.assert_type(jax.tree.leaves(shapes), jnp.float32)


@pytest.mark.parametrize("init", INITS)
def test_parameters_are_float32_whatever_the_default_is(init):
    with switches(**STRICT, **X64):
        drawn = jax.eval_shape(INITS[init], KEY)
    chex.assert_type(jax.tree.leaves(drawn), jnp.float32)


def test_no_parameter_is_captured_by_a_compiled_network(network):
    """Parameters are arguments. JAX warns above a bound, here half of what the parameters take."""
    function, (params, *rest) = network
    size = sum(4 * math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    with switches(jax_captured_constants_warn_bytes=size // 2), warnings.catch_warnings():
        warnings.simplefilter("error")
        jax.jit(functools.partial(derivatives, function)).lower(params, *rest)


@pytest.mark.parametrize(
    "name",
    ["stylegan2 mapping", "stylegan2 synthesis", "discriminator", "tiny decode", "lpips alex"],
)
def test_no_nan_is_met_on_the_way(name):
    """Not even one that is masked later, nor in a derivative; at zero, where roots have none."""
    function, (params, *rest) = NETWORKS[name]
    rng = np.random.default_rng(0)

    def draw(leaf):
        fan_in = math.prod(leaf.shape[:-1])
        return jnp.asarray(rng.normal(0, fan_in**-0.5, leaf.shape), leaf.dtype)

    zeros = [jnp.zeros(leaf.shape, leaf.dtype) for leaf in rest]
    with switches(jax_debug_nans=True):
        jax.jit(functools.partial(derivatives, function))(jax.tree.map(draw, params), *zeros)
