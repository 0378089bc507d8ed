"""What the pages of all studies share: plots in files, and one layout around them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fpjax.errors import InputError
from fpjax.io.atomic import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", ":", "-.")


def check_matplotlib() -> None:
    """Complains, before the work, if plots could not be drawn after it.

    Raises:
      InputError: if matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputError(
            "plots need matplotlib: pip install 'fpjax[plot]', or leave them out with --no_page"
        ) from error


def plot_style() -> contextlib.AbstractContextManager[None]:
    """The studies' own look, while figures are drawn."""
    import matplotlib.style

    return matplotlib.style.context(str(resources.files("fpjax.studies") / "fpjax.mplstyle"))


def write_study_page(
    folder: Path, template: str, figures: Iterable[tuple[str, str, str, Figure]], **values: Any
) -> list[Path]:
    """Writes plots (SVG and PNG) and `index.html` beside them.

    Args:
      folder: of the study.
      template: of the page, in `fpjax/studies/templates`; it extends `study.html`.
      figures: (file name, title, what it shows, figure) of each plot; drawn as they are written.
      values: what the template takes beside `figures`.

    Returns:
      The files, the page first.
    """
    import jinja2

    files, described = [], []
    for name, title, text, figure in figures:
        for suffix in ("svg", "png"):
            path = folder / f"{name}.{suffix}"
            buffer = io.BytesIO()
            metadata = {"Date": None} if suffix == "svg" else None
            figure.savefig(buffer, format=suffix, metadata=metadata)
            with atomic_write(path) as file:
                file.write(buffer.getvalue())
            files.append(path)
        described.append({"name": name, "title": title, "text": text})
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fpjax.studies"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template(template).render(figures=described, **values)
    with atomic_write(folder / "index.html", "w") as file:
        file.write(page)
    return [folder / "index.html", *files]
