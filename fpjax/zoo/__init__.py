"""The bundled models: weights, model cards and ready-made schemes, and how they were made."""

from __future__ import annotations

import json
from pathlib import Path

from fpjax.errors import InputError

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


def scheme_names() -> tuple[str, ...]:
    """Names of the ready-made schemes: a generator's name for its default one, or NAME/SCHEME.

    >>> "avatars-stylegan2" in scheme_names()
    True
    """
    found = []
    for name in names():
        for folder in sorted(_MODELS.joinpath(name).glob("scheme*")):
            found.append(name if folder.name == "scheme" else f"{name}/{folder.name[7:]}")
    return tuple(found)


def scheme_path(name: str) -> Path:
    """Folder of a ready-made scheme.

    Raises:
      InputError: for a name that is none.
    """
    if name not in scheme_names():
        raise InputError(f"{name!r} is no bundled scheme; choose {', '.join(scheme_names())}")
    model, _, variant = name.partition("/")
    return _MODELS / model / (f"scheme-{variant}" if variant else "scheme")


def scheme_of(scheme_id: str) -> str | None:
    """Name of the ready-made scheme with this id, or None.

    >>> scheme_of("4d7dfe804b19374834f0c9502244ec9041f8094a5faee3c40df6258023160b6c")
    'avatars-stylegan2/pca'
    """
    for name in scheme_names():
        header = json.loads(scheme_path(name).joinpath("scheme.json").read_text("utf-8"))
        if header["scheme_id"] == scheme_id:
            return name
    return None


def foreign_image_paths(name: str) -> list[Path]:
    """Image files of the generator's size that it did not make, for demonstrations."""
    return sorted((_MODELS / name / "foreign").glob("*.png"))
