"""Compiled programs are dropped before a process has no memory maps left."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import fpjax
from fpjax import programs
from fpjax.inversion import driver
from tests import toys


@pytest.fixture
def no_maps_left(monkeypatch):
    """A process with more maps than it may have."""
    if jax.default_backend() != "cpu" or not programs._maps():
        pytest.skip("maps are counted of Linux, where JAX computes on CPUs")
    monkeypatch.setattr(programs, "_STATE", programs._State())
    monkeypatch.setattr(programs, "_map_limit", lambda: 10)


@pytest.fixture
def twice(monkeypatch):
    """A program that may be dropped, and is compiled."""
    monkeypatch.setattr(programs, "_DROPPABLE", [])
    program = programs.droppable(programs.program()(lambda x: 2 * x))
    program(1.0)
    return program


@pytest.mark.parametrize("limit", [1 << 40, None])
def test_nothing_is_dropped_while_there_is_room(monkeypatch, twice, limit):
    monkeypatch.setattr(programs, "_map_limit", lambda: limit)
    assert not programs.make_room() and twice.cache_size() == 1


def test_programs_are_dropped_where_maps_run_out(no_maps_left, twice):
    assert programs.make_room() and twice.cache_size() == 0
    assert float(twice(1.5)) == 3.0


def test_programs_that_are_in_use_stay(no_maps_left, twice):
    with programs.in_use():
        assert not programs.make_room() and twice.cache_size() == 1
    assert programs.make_room()


def test_what_is_not_dropped_does_not_drop_the_rest_again_and_again(
    monkeypatch, no_maps_left, twice
):
    count = iter([100, 99, 99])  # before and after dropping; no growth
    monkeypatch.setattr(programs, "_maps", lambda: next(count))
    monkeypatch.setattr(programs, "_map_limit", lambda: 20)
    assert programs.make_room() and not programs.make_room()
    monkeypatch.setattr(programs, "_maps", lambda: 101)
    assert programs.make_room()


def test_inversions_are_the_same_when_programs_were_dropped(monkeypatch, no_maps_left):
    scheme = toys.scheme(toys.generator(toys.curved_decode, scale=0.1))
    keys = fpjax.sample_keys(jax.random.key(1), 2, 6)
    images = fpjax.generate(scheme, jax.random.key(2), keys).images
    starts = toys.starts(scheme)
    found = []
    for count in (2, 1, 2):
        monkeypatch.setattr(programs, "_STATE", programs._State())
        found.append(fpjax.invert(fpjax.Problem(scheme), images[:count], starts=starts))
        assert driver._round.cache_size() == 1  # the one before was dropped
    np.testing.assert_array_equal(found[0].soft_bits, found[2].soft_bits)
    np.testing.assert_array_equal(found[1].soft_bits, found[2].soft_bits[:1])


@pytest.fixture
def on_gpu(monkeypatch):
    """As where JAX's default backend is a GPU; CPUs' compiler takes the options too."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    programs._options_of_gpus.cache_clear()
    yield
    programs._options_of_gpus.cache_clear()


@pytest.fixture
def asked(monkeypatch):
    """Compiler options of what is compiled."""
    options, jit = [], jax.jit

    def noting(function, *, compiler_options=None, **how):
        jitted = jit(function, compiler_options=compiler_options, **how)

        def run(*args, **kwargs):
            options.append(compiler_options)
            return jitted(*args, **kwargs)

        return run

    monkeypatch.setattr(jax, "jit", noting)
    return options


def test_programs_have_options_on_gpus_alone(on_gpu, asked, monkeypatch):
    twice = programs.program(static_argnums=1)(lambda x, times: times * x)
    assert float(twice(1.5, 2)) == 3.0
    assert asked[-1] == programs._OF_GPUS
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert float(twice(2.5, 2)) == 5.0
    assert asked[-1] is None


def test_part_of_another_program_has_its_options(on_gpu):
    twice = programs.program()(lambda x: 2 * x)
    assert float(jax.jit(lambda x: twice(x) + 1)(1.5)) == 4.0
    np.testing.assert_array_equal(jax.vmap(twice)(np.arange(3.0)), [0, 2, 4])
    assert float(jax.grad(twice)(1.5)) == 2.0
    # Of numbers that nothing depends on, too.
    assert float(jax.jit(lambda x: x + twice(np.float32(1)))(1.5)) == 3.5


def test_options_that_the_compiler_does_not_know_are_left_out(on_gpu, asked, monkeypatch):
    monkeypatch.setattr(programs, "_OF_GPUS", {"xla_gpu_no_such_option": True})
    twice = programs.program()(lambda x: 2 * x)
    assert float(twice(1.5)) == 3.0
    assert asked[-1] is None
