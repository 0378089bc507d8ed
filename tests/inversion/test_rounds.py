"""How many images are on a device, and how many lanes a round has."""

from __future__ import annotations

import dataclasses

import jax
import pytest

import fpjax
from fpjax.inversion import rounds
from tests import toys


@pytest.fixture(scope="module")
def problem():
    return fpjax.Problem(toys.scheme())


@dataclasses.dataclass(frozen=True)
class _Lanes:
    """What rounds ask of a solver."""

    cpu_lanes: int
    bytes_each: int = 1 << 20

    def lane_bytes(self, problem):
        return self.bytes_each


def _on(monkeypatch, backend):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)


@pytest.mark.parametrize("count, wave", [(1, 1), (3, 4), (64, 64), (200, 256), (5000, 256)])
def test_waves_of_accelerators_are_powers_of_two(monkeypatch, problem, count, wave):
    _on(monkeypatch, "gpu")
    assert rounds.images_in_wave(_Lanes(1), problem, count) == wave


@pytest.mark.parametrize("own_bytes, wave", [(1 << 10, 256), (8 << 20, 64), (1 << 30, 64)])
def test_waves_of_accelerators_shrink_with_what_images_bring(monkeypatch, problem, own_bytes, wave):
    _on(monkeypatch, "gpu")
    assert rounds.images_in_wave(_Lanes(1), problem, 5000, own_bytes=own_bytes) == wave


def test_rounds_of_accelerators_fit_memory(monkeypatch, problem):
    _on(monkeypatch, "gpu")
    assert rounds.chunk_sizes(_Lanes(1), problem, 200 << 20, 500) == (128, 16)
    assert rounds.chunk_sizes(_Lanes(1), problem, 5 << 20, 500) == (4,)


@pytest.mark.parametrize(
    "backend, waiting, chunk",
    [
        ("gpu", 64, 64),
        ("gpu", 32, 64),
        ("gpu", 31, 8),
        ("gpu", 1, 8),
        ("cpu", 64, 64),
        ("cpu", 63, 8),
        ("cpu", 1, 8),
    ],
)
def test_half_filled_rounds_are_for_accelerators(monkeypatch, backend, waiting, chunk):
    _on(monkeypatch, backend)
    assert rounds.chunk_for((64, 8), waiting) == chunk
