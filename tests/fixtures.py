"""Where the independent reference numbers live, and a skip with a reason where they do not."""

import os
from pathlib import Path

import pytest

FIXTURES = Path(
    os.environ.get("FPJAX_FIXTURES", Path(__file__).resolve().parents[2] / "shared" / "fixtures")
)


def fixture(name: str) -> Path:
    """Path of a reference file, or a skip that says what is missing and where it was looked for."""
    path = FIXTURES / name
    if not path.exists():
        pytest.skip(f"reference file {name} is not at {path}; set FPJAX_FIXTURES to its folder")
    return path


def relative_error(actual, expected) -> float:
    """Largest |difference| divided by the standard deviation of `expected`."""
    import numpy as np

    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    return float(np.abs(actual - expected).max() / expected.std())
