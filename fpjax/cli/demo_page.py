"""The page of `fpjax demo`: every picture, what the key changed, and the verdict."""

from __future__ import annotations

import base64
import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np

from fpjax.io.atomic import atomic_write


@dataclasses.dataclass
class Row:
    """One picture of the demo.

    Attributes:
      path: its file.
      owner: the user whose key it carries, or None.
      original: (H, W, 3) uint8 without the key, where there is one.
      kind: what it is, where it carries no key.
      image: (H, W, 3) uint8 as read from the file.
      verdict: the answer.
    """

    path: Path
    owner: str | None
    original: np.ndarray | None
    kind: str = "fingerprinted"
    image: np.ndarray | None = None
    verdict: Any = None


def difference_image(a: np.ndarray, b: np.ndarray, gain: int = 10) -> np.ndarray:
    """Absolute difference of two uint8 images, `gain` times enlarged and clipped.

    >>> difference_image(np.uint8([[[10]]]), np.uint8([[[12]]]))
    array([[[20]]], dtype=uint8)
    """
    return np.clip(np.abs(a.astype(np.int32) - b) * gain, 0, 255).astype(np.uint8)


def _data_uri(image: np.ndarray) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _values(row: Row) -> dict[str, Any]:
    assert row.image is not None, "pages are of pictures that were read"
    values = {"owner": row.owner, "kind": row.kind, "verdict": row.verdict}
    assert row.image is not None  # filled in when it is attributed
    values["image"] = _data_uri(row.image)
    if row.original is not None:
        values["original"] = _data_uri(row.original)
        values["difference"] = _data_uri(difference_image(row.original, row.image))
    return values


def write_page(path: Path, rows: list[Row], figures: dict[str, Any]) -> None:
    """Writes the page, one self-contained file."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fpjax.cli"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("demo.html").render(
        with_key=[_values(row) for row in rows if row.owner is not None],
        without_key=[_values(row) for row in rows if row.owner is None],
        figures=figures,
    )
    with atomic_write(path, "w") as file:
        file.write(page)
