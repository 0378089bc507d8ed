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
    monkeypatch.setattr(programs, "_map_limit", lambda: 10)


def test_nothing_is_dropped_while_there_is_room(monkeypatch):
    monkeypatch.setattr(programs, "_map_limit", lambda: 1 << 40)
    assert not programs.make_room()
    monkeypatch.setattr(programs, "_map_limit", lambda: None)
    assert not programs.make_room()


def test_programs_are_dropped_where_maps_run_out(monkeypatch, no_maps_left):
    monkeypatch.setattr(programs, "_PROGRAMS", [])
    if jax.default_backend() != "cpu" or not programs._maps():
        pytest.skip("maps are counted of Linux, where JAX computes on CPUs")
    twice = programs.droppable(jax.jit(lambda x: 2 * x))
    twice(1.0)
    assert programs.make_room() and twice._cache_size() == 0
    assert float(twice(1.5)) == 3.0


def test_inversions_are_the_same_when_programs_were_dropped(no_maps_left):
    """Each kind of problem finds no room and compiles its own anew; the last stays."""
    scheme = toys.scheme(toys.generator(toys.curved_decode, scale=0.1))
    keys = fpjax.sample_keys(jax.random.key(1), 2, 6)
    images = fpjax.generate(scheme, jax.random.key(2), keys).images
    starts = toys.starts(scheme)
    driver._BEGUN.clear()
    found = fpjax.invert(fpjax.Problem(scheme), images, starts=starts)
    one = fpjax.invert(fpjax.Problem(scheme), images[:1], starts=starts)
    again = fpjax.invert(fpjax.Problem(scheme), images, starts=starts)
    np.testing.assert_array_equal(found.soft_bits, again.soft_bits)
    np.testing.assert_array_equal(one.soft_bits, again.soft_bits[:1])
