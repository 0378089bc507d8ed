"""Reference numbers of independent implementations, and how far ours are from them."""

import os
from pathlib import Path

import numpy as np
import pytest

_TESTS = Path(__file__).resolve().parent
FOLDERS = (
    _TESTS / "fixtures",
    Path(os.environ.get("FPJAX_FIXTURES", _TESTS.parents[1] / "shared" / "fixtures")),
)


def fixture(name: str) -> Path:
    """Path of a reference file, or a skip that says what is missing and where it was looked for."""
    for folder in FOLDERS:
        if (folder / name).exists():
            return folder / name
    pytest.skip(
        f"reference file {name} is in none of {', '.join(map(str, FOLDERS))}; "
        "set FPJAX_FIXTURES to its folder"
    )


def relative_error(actual, expected) -> float:
    """Largest |difference| divided by the standard deviation of `expected`."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    return float(np.abs(actual - expected).max() / expected.std())
