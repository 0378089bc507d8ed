"""`import fpjax` is cheap, and nothing in the package needs torch or tensorflow."""

import ast
import subprocess
import sys
from pathlib import Path

import fpjax

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("orbax", "tensorflow_datasets", "matplotlib", "torch", "tensorflow", "scipy", "optax")


def test_import_loads_none_of_the_heavy_packages():
    code = f"import sys, fpjax; print([m for m in {HEAVY} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert run.stdout.strip() == "[]"


def test_every_public_name_can_be_imported():
    for name in fpjax.__all__:
        assert getattr(fpjax, name) is not None
    assert set(fpjax.__all__) <= set(dir(fpjax))


def test_nothing_in_the_package_imports_torch_or_tensorflow():
    for package in ("fpjax", "checkpoints_convert"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = []
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    names = [node.module or ""]
                for name in names:
                    top = name.split(".")[0]
                    assert top not in ("torch", "tensorflow"), f"{path} imports {name}"


def test_layers_of_the_house_import_only_downwards():
    """models, fingerprint, inversion, attribution, cli: arrows point from later to earlier."""
    order = ["models", "fingerprint", "inversion", "attribution", "cli"]
    for i, layer in enumerate(order):
        for path in (ROOT / "fpjax" / layer).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fpjax."):
                    target = node.module.split(".")[1]
                    if target in order:
                        assert order.index(target) <= i, f"{path} imports {node.module}"
