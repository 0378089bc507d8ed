"""The bundled models: weights, model cards and ready-made schemes, and how they were made."""

from __future__ import annotations

from pathlib import Path

_MODELS = Path(__file__).parent / "models"


def names() -> tuple[str, ...]:
    """Names of the bundled generators.

    >>> "avatars-stylegan2" in names()
    True
    """
    return tuple(sorted(p.name for p in _MODELS.iterdir() if (p / "config.json").exists()))


def model_path(name: str) -> Path:
    """Folder of a bundled generator."""
    return _MODELS / name


def scheme_path(name: str) -> Path:
    """Folder of the ready-made scheme of a bundled generator."""
    return _MODELS / name / "scheme"


def foreign_image_paths(name: str) -> list[Path]:
    """Image files of the generator's size that it did not make, for demonstrations."""
    return sorted((_MODELS / name / "foreign").glob("*.png"))
