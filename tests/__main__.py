"""Everything a change must pass: `python -m tests` from the root of a checkout.

Lint, formatting, types and import contracts look at the checkout; the tests and doctests run on the
installed package, from a folder that holds no copy of it. Arguments go to pytest, and then nothing
but pytest is run: `python -m tests -k registry`.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("fpjax", "checkpoints_convert")
COPIED = ("tests", "docs", "examples", "mkdocs.yml", "pyproject.toml", "README.md")
CHECKS = {
    "lint": ("ruff", "check", "."),
    "format": ("ruff", "format", "--check", "."),
    "imports": ("import-linter", "lint"),
    "types": ("pyright", "--pythonpath", sys.executable),
}
SIDE_BY_SIDE = ("-n", "2", "--dist", "loadfile")
"""A file's tests in one process, which compiles what they share once."""
BIN = Path(sys.executable).parent


def run(name: str, command: list[str], **options) -> bool:
    """Runs one check; says how long it took."""
    print(f"\n== {name}: {' '.join(command)}", flush=True)
    began = time.monotonic()
    passed = subprocess.run(command, check=False, **options).returncode == 0
    print(f"== {name}: {'passed' if passed else 'FAILED'}, {time.monotonic() - began:.0f} s")
    return passed


def tested(arguments: list[str]) -> bool:
    """Runs pytest on the installed packages."""
    with tempfile.TemporaryDirectory(prefix="fpjax-tests-") as folder:
        for name in COPIED:
            source, target = ROOT / name, Path(folder, name)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            elif source.exists():
                shutil.copy2(source, target)
        environment = {
            **os.environ,
            "JAX_COMPILATION_CACHE_DIR": os.environ.get(
                "JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache")
            ),
            "FPJAX_CHECKOUT": str(ROOT),
        }
        environment.pop("PYTHONPATH", None)
        where = subprocess.run(
            [sys.executable, "-c", "import fpjax; print(fpjax.__file__)"],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        ).stdout.strip()
        if not where:
            print("fpjax is not installed: pip install '.[test]'", file=sys.stderr)
            return False
        print(f"\n== testing {Path(where).parent}")
        options = ["-c", "pyproject.toml", "--rootdir", "."]
        selected = arguments or [*SIDE_BY_SIDE, "tests", "--pyargs", *PACKAGES]
        command = [sys.executable, "-m", "pytest", *options, *selected]
        return run("tests", command, cwd=folder, env=environment)


def main(arguments: list[str]) -> int:
    """Runs what is asked for and returns the exit code."""
    failed = []
    if not arguments:
        for name, command in CHECKS.items():
            program = BIN / command[0]
            if not run(name, [str(program), *command[1:]], cwd=ROOT):
                failed.append(name)
    if not tested(arguments):
        failed.append("tests")
    print(f"\nfailed: {', '.join(failed)}" if failed else "\neverything passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
