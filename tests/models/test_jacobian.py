"""Jacobians in blocks: the same numbers, within the stated memory at every published size."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpjax.inversion.problem import Problem
from fpjax.inversion.solvers.levenberg_marquardt import LevenbergMarquardt
from fpjax.models import stylegan2
from fpjax.models.jacobian import block_size, jacobian_rows, tangent_bytes
from fpjax.models.stylegan2 import StyleGAN2Config
from fpjax.models.stylegan2_generator import StyleGAN2Generator

GIB = 1 << 30
CONFIGS = {
    side: StyleGAN2Config(side, channel_base=16384 if side <= 256 else 32768)
    for side in (32, 64, 128, 256, 512, 1024)
}


@pytest.mark.parametrize("block", [1, 3, 5, 7, None])
def test_blocks_of_any_size_give_the_same_rows(block):
    weight = jax.random.normal(jax.random.key(0), (7, 20))
    function = lambda x: jnp.tanh(x @ weight)  # noqa: E731
    value, rows = jacobian_rows(function, jnp.ones(7), jnp.eye(7), block=block)
    # Sums in another order; where tanh is flat its slope is a difference of numbers near one.
    np.testing.assert_allclose(rows, jax.jacfwd(function)(jnp.ones(7)).T, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(value, function(jnp.ones(7)), rtol=1e-6)


def _abstract_problem(config):
    """A problem of that architecture without a byte of it allocated."""
    from fpjax.fingerprint.basis import Basis
    from fpjax.fingerprint.scheme import Scheme

    params = stylegan2.param_shapes(config)
    generator = StyleGAN2Generator.create("abstract", config, params)
    shape = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    size = config.w_dim
    basis = Basis(shape((size,)), shape((size, size)), shape((size, size)), shape((size,)), 2)
    return Problem(Scheme(generator, basis, shape(()), 64, size - 64))


@pytest.mark.slow
@pytest.mark.parametrize("side", [32, 1024])
def test_a_solver_step_stays_in_its_memory_beyond_the_jacobian(side):
    """The compiler's own analysis; benchmarks/solver_memory.py prints it for the sizes between."""
    temporary, jacobian = step_memory(side)
    assert temporary - jacobian < 4 * GIB, (temporary / GIB, jacobian / GIB)


def step_memory(side, dtype="float32", memory=4 * GIB):
    """Bytes of temporary memory of one step, and of the Jacobian alone."""
    problem = _abstract_problem(CONFIGS[side])
    solver = LevenbergMarquardt(jacobian_dtype=dtype)
    target = jax.ShapeDtypeStruct((side, side, 3), jnp.float32)
    start = jax.ShapeDtypeStruct((problem.num_unknowns,), jnp.float32)
    plan = solver.plan(problem, memory)
    state = jax.eval_shape(solver.init, problem, start, target)
    step = jax.jit(lambda problem, state, target: solver.step(problem, state, target, plan))
    analysis = step.lower(problem, state, target).compile().memory_analysis()
    itemsize = 4 if dtype == "float32" else 2
    return analysis.temp_size_in_bytes, itemsize * problem.num_unknowns * 3 * side * side


def test_a_tangent_is_costed_without_computing_it():
    each = tangent_bytes(lambda x: jnp.sin(x) @ jnp.ones((1000, 10)), jnp.ones(1000))
    assert 8000 <= each <= 10 * 44_000


def test_blocks_are_equal_and_fit():
    for num, each, memory in ((512, 10, 1000), (512, 10, 10**9), (7, 100, 250), (5, 10, 1)):
        block = block_size(num, each, memory)
        blocks = -(-num // block)
        assert block == 1 or block * each <= memory
        assert 0 <= blocks * block - num < blocks
