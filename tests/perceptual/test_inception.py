"""Inception-v3 for FID: parity with PyTorch's layers, tree of names, derivatives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpjax.perceptual import inception, inception_features, inception_shapes, init_inception
from tests.reference import relative_error


@pytest.fixture(scope="module")
def params():
    """Random weights, and batch-norm statistics that are neither zero nor one."""
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        if path[-1].key in ("running_var", "weight") and leaf.ndim == 1:
            return jnp.asarray(rng.uniform(0.5, 2, leaf.shape), jnp.float32)
        if leaf.ndim == 1:
            return jnp.asarray(rng.normal(size=leaf.shape) * 0.3, jnp.float32)
        return leaf

    return jax.tree_util.tree_map_with_path(fill, init_inception(jax.random.key(0)))


def test_features_equal_pytorchs_on_random_weights(params):
    torch = pytest.importorskip("torch")
    from tests.perceptual import torch_reference

    # Narrower and wider than 299: the resize goes up along one axis and down along the other.
    x = np.random.default_rng(1).uniform(-1, 1, (2, 40, 320, 3)).astype(np.float32)
    with torch.no_grad():
        expected = torch_reference.inception(
            torch_reference.to_torch(params), torch_reference.nchw(x)
        )
    actual = jax.jit(inception_features)(params, x)
    assert actual.shape == (2, 2048)
    # 94 float32 convolutions summed in another order.
    assert relative_error(actual, expected.numpy()) < 1e-4


def test_the_tree_has_the_94_units_of_the_published_checkpoint():
    shapes = inception_shapes()
    units = jax.tree.leaves(shapes, is_leaf=lambda node: "conv" in node)
    assert len(units) == 94
    assert len(jax.tree.leaves(shapes)) == 94 * 5
    count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    # torchvision's Inception3 without its fc and auxiliary head, running statistics included.
    assert count == 21_785_568 + 2 * 17_216


def test_jvp_and_vjp_are_adjoint(params):
    # On a small map, past the resize (which is linear): the whole network compiles slowly.
    rng = np.random.default_rng(2)
    x, direction = rng.uniform(-1, 1, (2, 1, 75, 75, 3)).astype(np.float32)
    cotangent = rng.normal(size=(1, 2048)).astype(np.float32)

    @jax.jit
    def products(params, x, direction, cotangent):
        features = functools.partial(inception._pool3, params)
        tangent = jax.jvp(features, (x,), (direction,))[1]
        pulled = jax.vjp(features, x)[1](cotangent)[0]
        return tangent, jnp.vdot(cotangent, tangent), jnp.vdot(pulled, direction)

    tangent, forward, reverse = products(params, x, direction, cotangent)
    bound = 1e-4 * np.linalg.norm(cotangent) * np.linalg.norm(tangent)  # float32 sums
    assert abs(forward - reverse) < bound


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_no_implicit_dtype_promotion_and_float32_out(dtype):
    x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    features = functools.partial(inception_features, dtype=dtype)
    with jax.numpy_dtype_promotion("strict"):
        out = jax.eval_shape(features, inception_shapes(), x)
    assert out.shape == (1, 2048) and out.dtype == jnp.float32
