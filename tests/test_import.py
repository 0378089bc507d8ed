"""`import fpjax` is cheap, and what is installed is what the packages say.

Which layer may import which is a contract of import-linter, in pyproject.toml.
"""

import ast
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import checkpoints_convert
import fpjax

PACKAGES = [Path(package.__file__).parent for package in (fpjax, checkpoints_convert)]
HEAVY = ("orbax", "tensorflow_datasets", "matplotlib", "torch", "tensorflow", "scipy", "optax")


def test_import_loads_none_of_the_heavy_packages():
    code = f"import sys, fpjax; print([m for m in {HEAVY} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert run.stdout.strip() == "[]"


def test_every_public_name_can_be_imported():
    for name in fpjax.__all__:
        assert getattr(fpjax, name) is not None
    assert set(fpjax.__all__) <= set(dir(fpjax))


def test_every_public_name_has_a_docstring_with_an_example():
    """Type checkers and the reference show it; a class made by dataclass would show its fields."""
    for name in fpjax.__all__:
        doc = getattr(fpjax, name).__doc__
        assert doc and not doc.startswith(f"{name}("), name
        assert ">>>" in doc or not callable(getattr(fpjax, name)), name


def test_every_package_that_is_imported_is_declared():
    declared = {
        re.split(r"[^\w.-]", requirement)[0].lower().replace("-", "_")
        for requirement in metadata.requires("fpjax") or ()
    }
    owners = metadata.packages_distributions()
    for path in (path for package in PACKAGES for path in package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            for top in {name.split(".")[0] for name in names} - sys.stdlib_module_names:
                if top in ("fpjax", "checkpoints_convert"):
                    continue
                found = {owner.lower().replace("-", "_") for owner in owners.get(top, [top])}
                assert found & declared, f"{path} imports {top}, which no requirement names"


def _installed_files():
    files = metadata.files("fpjax") or []
    names = [file.as_posix() for file in files]
    if not any(name.startswith("fpjax/") for name in names):
        pytest.skip("fpjax is installed in editable mode: its wheel is not here to look into")
    return names


def test_the_wheel_holds_types_pages_and_models():
    names = set(_installed_files())
    for name in (
        "fpjax/py.typed",
        "fpjax/__init__.pyi",
        "fpjax/cli/templates/demo.html",
        "fpjax/zoo/models/avatars-stylegan2/params.safetensors",
        "fpjax/zoo/models/avatars-stylegan2/scheme/scheme.json",
        "fpjax/zoo/models/avatars-stylegan2/scheme-jacobians-64/scheme.safetensors",
    ):
        assert name in names


def test_the_wheel_holds_nothing_but_the_two_packages():
    for name in _installed_files():
        if not name.startswith(("fpjax/", "fpjax-", "checkpoints_convert/", "../../../bin/")):
            raise AssertionError(f"the wheel holds {name}")
        assert not re.search(r"(^|/)(tests?|fixtures)/", name), name
