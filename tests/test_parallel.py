"""Threads: their items, errors, settings of JAX, and an end when nobody wants more."""

import itertools
import subprocess
import sys
import textwrap
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from threadpoolctl import threadpool_info

from fpjax.parallel import concurrently, one_blas_thread


def blas_threads():
    return {
        library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"
    }


def test_all_items_come_and_the_first_part_goes_ahead_alone():
    seen = []

    def part(name, count):
        for i in range(count):
            seen.append(name)
            yield name, i

    found = list(concurrently([part("a", 5), part("b", 3), part("c", 0)], alone=4))
    assert seen[:4] == ["a"] * 4
    assert sorted(found) == [("a", i) for i in range(5)] + [("b", i) for i in range(3)]
    assert list(concurrently([part("a", 3)], alone=9)) == [("a", i) for i in range(3)]


def test_an_error_is_raised_here_and_ends_the_others():
    done = []

    def endless():
        for i in itertools.count():
            time.sleep(0.01)
            done.append(i)
            yield i

    def broken():
        yield -1
        raise RuntimeError("no more")

    before = threading.active_count()
    with pytest.raises(RuntimeError, match="no more"):
        list(concurrently([endless(), broken()]))
    assert threading.active_count() == before
    count = len(done)
    time.sleep(0.05)
    assert len(done) == count


def test_closing_ends_all_threads():
    before = threading.active_count()
    parts = concurrently([itertools.repeat(0), itertools.repeat(1)])
    next(parts)
    parts.close()
    assert threading.active_count() == before


def test_threads_are_a_few_items_ahead_and_no_more():
    made = []

    def part():
        for i in itertools.count():
            made.append(i)
            yield i

    parts = concurrently([part(), part()])
    next(parts)
    time.sleep(0.1)
    assert len(made) <= 8
    parts.close()


def test_a_program_ends_with_an_iterator_that_is_half_read():
    text = """
        import itertools, jax, jax.numpy as jnp
        from fpjax.parallel import concurrently
        work = jax.jit(lambda x: (x @ x).sum())
        parts = concurrently([map(work, itertools.repeat(jnp.ones((300, 300)))) for _ in "ab"])
        next(parts)
        """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text)], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0 and not run.stderr


def test_threads_have_the_callers_settings_of_jax():
    def part():
        yield jnp.asarray(np.float64(1)).dtype
        with pytest.raises(ValueError, match="rank"):
            jnp.ones(2) + jnp.ones((2, 2))
        yield jax.config.jax_default_matmul_precision

    with (
        jax.enable_x64(True),
        jax.numpy_rank_promotion("raise"),
        jax.default_matmul_precision("high"),
    ):
        found = list(concurrently([part(), part()]))
    assert found.count(jnp.float64) == 2 and found.count("high") == 2


def test_blas_has_one_thread_until_the_last_one_that_wants_it_is_done():
    before = blas_threads()
    with one_blas_thread:
        assert blas_threads() == {1}
        with one_blas_thread:
            pass
        assert blas_threads() == {1}
    assert blas_threads() == before
