"""Plots and page of a robustness study, from what `robustness.json` holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fpjax.studies.page import MARKERS, plot_style, write_study_page

_QUALITIES = (
    ("performance-quality", "psnr", "PSNR of the attack (dB; rightmost: unchanged)", "right"),
    ("performance-lpips", "lpips", "LPIPS of the attack", "left"),
)
"""Plots of attribution against quality: name, figure of a cell, its axis, where less was done."""

_UNCHANGED = 99.0
"""PSNR of pictures that are the same, in records."""


def write_page(folder: Path, result: Mapping[str, Any]) -> list[Path]:
    """Draws the plots (SVG and PNG) and writes `index.html` beside them.

    Args:
      folder: of the study.
      result: what `run_robustness` returned.

    Returns:
      The files, the page first.
    """
    return write_study_page(
        folder,
        "robustness.html",
        _figures(result),
        result=result,
    )


def _figures(result: Mapping[str, Any]):
    """(file name, title, what it shows, figure) of each plot for which there are cells."""
    from matplotlib.figure import Figure

    cells = result["cells"]
    if not cells:
        return
    with plot_style():
        for name, quality, axis, milder in _QUALITIES:
            known = [cell for cell in cells if cell[quality] is not None]
            if not known:
                continue
            figure = Figure()
            _performance(figure.add_subplot(), known, quality, axis)
            figure.legend(loc="outside lower center", ncols=2)
            yield (
                name,
                f"Attribution against quality after the attack: {quality.upper()}",
                "The share of pictures that are attributed to their maker, against how much the "
                f"attack changed them. Further {milder} it was milder. Bars are 95% intervals.",
                figure,
            )
        if any(cell["predicted"] for cell in cells):
            figure = Figure()
            _prediction(figure.add_subplot(), [cell for cell in cells if cell["predicted"]])
            figure.legend(loc="outside lower center", ncols=2)
            yield (
                "predicted-measured",
                "Bit accuracy: predicted and measured",
                "What the information is expected to give, against what inversions of the files "
                "gave. On the line an inversion got all that a file of the generator tells about "
                "its key on average; the bound of the table is what it would tell to who knew the "
                "Jacobian at the latent that made it.",
                figure,
            )


def _by_scheme(cells):
    for i, name in enumerate(dict.fromkeys(cell["scheme"] for cell in cells)):
        of_scheme = [cell for cell in cells if cell["scheme"] == name]
        yield f"C{i}", MARKERS[i % len(MARKERS)], name, of_scheme


def _performance(axes, cells, quality: str, axis: str) -> None:
    # Pictures that no attack has changed stand beside the others, not 60 dB away.
    changed = [cell["psnr"] for cell in cells if cell["psnr"] and cell["psnr"] < _UNCHANGED]
    furthest = {"psnr": max(changed, default=_UNCHANGED) + 3}.get(quality, float("inf"))
    for colour, marker, name, some in _by_scheme(cells):
        right = [cell["right"] for cell in some]
        axes.errorbar(
            [min(cell[quality], furthest) for cell in some],
            [share for share, _, _ in right],
            yerr=[
                [share - low for share, low, _ in right],
                [high - share for share, _, high in right],
            ],
            linestyle="none",
            marker=marker,
            color=colour,
            label=name,
        )
    axes.set(
        xlabel=axis,
        ylabel="Share attributed to their maker",
        ylim=(-0.02, 1.02),
    )


def _prediction(axes, cells) -> None:
    for colour, marker, name, some in _by_scheme(cells):
        measured = [cell["bit_accuracy"] for cell in some]
        axes.errorbar(
            [cell["predicted"]["bit_accuracy"] for cell in some],
            [share for share, _, _ in measured],
            yerr=[
                [share - low for share, low, _ in measured],
                [high - share for share, _, high in measured],
            ],
            linestyle="none",
            marker=marker,
            color=colour,
            label=name,
        )
    axes.plot([0.5, 1], [0.5, 1], color="0.6", linewidth=1)
    axes.set(xlabel="Predicted share of right bits", ylabel="Measured share of right bits")
