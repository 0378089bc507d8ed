"""Programs for other machines, and for several processes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fpjax
from fpjax.inversion.problem import Problem
from fpjax.inversion.solvers.levenberg_marquardt import LevenbergMarquardt
from tests import toys

PLATFORMS = ("cpu", "cuda", "tpu")


def test_decode_generate_and_a_solver_step_are_exported_for_every_platform(tiny_scheme):
    """Programs of flat arrays: an export takes no record of functions."""
    scheme = toys.scheme(toys.generator(toys.curved_decode))
    solver, problem = LevenbergMarquardt(inner_steps=2), Problem(scheme)
    leaves, tree = jax.tree.flatten(problem)
    leaves = [jnp.asarray(leaf, jnp.float32) for leaf in leaves]
    target = jnp.zeros(toys.SHAPE)
    state = solver.init(problem, jnp.zeros(16), target)

    def step(leaves, state, target):
        return tuple(solver.step(jax.tree.unflatten(tree, leaves), state, target, 8))

    def generate(leaves, alpha, symbols):
        made = jax.tree.unflatten(tree, leaves).scheme
        return made.decode(made.latents_of(alpha, symbols))

    generator = tiny_scheme.generator
    for function, arguments in (
        (step, (leaves, tuple(state), target)),
        (generate, (leaves, jnp.zeros((2, 10)), jnp.ones((2, 6)))),
        (lambda p, w: generator.decode(p, w), (generator.params, jnp.zeros((2, 16)))),
    ):
        if function is step:
            wrapped = lambda leaves, state, target: step(  # noqa: E731
                leaves, type(solver.init(problem, jnp.zeros(16), target))(*state), target
            )
        else:
            wrapped = function
        exported = jax.export.export(jax.jit(wrapped), platforms=PLATFORMS)(*arguments)
        assert set(exported.platforms) == set(PLATFORMS)
        chex.assert_trees_all_close(
            exported.call(*arguments), jax.jit(wrapped)(*arguments), rtol=1e-3, atol=1e-3
        )


_PROGRAM = """
import sys
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"localhost:{sys.argv[1]}", 2, int(sys.argv[2]))
import numpy as np
from jax.sharding import Mesh
import fpjax
from tests import toys
scheme = toys.scheme()
keys = np.random.default_rng(0).integers(0, 2, (6, 6)).astype(np.uint8)
images = np.load(sys.argv[3])
mesh = Mesh(np.array(jax.devices()), ("images",))
assert mesh.devices.size == 4
found = fpjax.invert(fpjax.Problem(scheme), images, starts=toys.starts(scheme), mesh=mesh)
assert (found.keys == keys).all(), found.keys
print("process", sys.argv[2], "read", len(found), "keys")
"""


@pytest.mark.slow
def test_two_processes_read_the_keys_together(tmp_path):
    scheme = toys.scheme()
    keys = np.random.default_rng(0).integers(0, 2, (6, 6)).astype(np.uint8)
    np.save(tmp_path / "images.npy", fpjax.generate(scheme, jax.random.key(0), keys).images)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": root}
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(port), str(i), str(tmp_path / "images.npy")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=tmp_path,
        )
        for i in range(2)
    ]
    try:
        outputs = [run.communicate(timeout=240) for run in runs]
    finally:
        for run in runs:
            run.kill()
    for i, (run, (out, error)) in enumerate(zip(runs, outputs, strict=True)):
        assert run.returncode == 0, error[-2000:]
        assert f"process {i} read 6 keys" in out
