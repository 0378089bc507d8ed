"""The shapes and types that public functions state are those that they take and give."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("beartype", reason="annotations are checked with beartype")

PROGRAM = """
import sys
from pathlib import Path
from jaxtyping import install_import_hook
install_import_hook("fpjax", "beartype.beartype")
from tests.test_whole_way import _whole_way
_whole_way(Path(sys.argv[1]))
import fpjax, jax, jaxtyping, numpy as np
try:
    fpjax.pca(np.zeros(3, np.float32))
except jaxtyping.TypeCheckError:
    print("checked")
"""


def test_the_whole_way_keeps_its_annotations(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        cwd=Path(__file__).resolve().parents[1],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "checked\n", done.stderr[-3000:]
