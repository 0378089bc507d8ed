"""Plots and page of a capacity study, from what `capacity.json` holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fpjax.studies.capacity import PAPER_BITS
from fpjax.studies.histories import history_name
from fpjax.studies.page import LINES, MARKERS, plot_style, write_study_page

_SHARE = "0.9"


def write_page(folder: Path, result: Mapping[str, Any]) -> list[Path]:
    """Draws the plots (SVG and PNG) and writes `index.html` beside them.

    Args:
      folder: of the study.
      result: what `run_capacity` returned.

    Returns:
      The files, the page first.
    """
    return write_study_page(
        folder,
        "capacity.html",
        _figures(result),
        result=result,
        history_name=history_name,
        code_name=code_name,
        users_name=users_name,
        share=_SHARE,
    )


def code_name(code: str) -> str:
    """A code for people.

    >>> code_name("independent-64"), code_name("bch-63-45"), code_name("repetition-16-4")
    ('64 independent bits', 'BCH (63, 45)', '16 bits, 4 times')
    """
    kind, *numbers = code.split("-")
    if kind == "independent":
        return f"{numbers[0]} independent bits"
    if kind == "bch":
        return f"BCH ({numbers[0]}, {numbers[1]})"
    return f"{numbers[0]} bits, {numbers[1]} times"


def users_name(users: float) -> str:
    """A number of users for people.

    >>> users_name(0), users_name(1000), users_name(1.8e19)
    ('none', '1000', '1.8e+19')
    """
    if users < 1:
        return "none"
    return f"{users:.0f}" if users < 1e5 else f"{users:.2g}"


def _figures(result: Mapping[str, Any]):
    """(file name, title, what it shows, figure) of each plot for which there are cells."""
    from matplotlib.figure import Figure

    rows = [row for row in result["cells"] if "reason" not in row]
    rate = result["rates"][0] if result["rates"] else 0
    codes = list(dict.fromkeys(row["cell"]["code"] for row in rows))
    with plot_style():
        for code in codes:
            some = [row for row in rows if row["cell"]["code"] == code]
            figure = Figure(figsize=(6.4, 5.2))
            _draw_users(figure, some, result["users"], rate)
            title = f"{code_name(code)}, at a rate of {rate:g}"
            yield (
                f"users-{code}",
                title,
                "The share of images that are attributed to their user, among N. Marks are "
                "measured on inverted images; lines are predicted from the Jacobians of others; "
                "dotted lines are the random-coding bound, which the prediction must not fall "
                "below. Faint lines say how often the best of N keys would be the right one, were "
                "it always named.",
                figure,
            )
        for name, axis, label, title in (
            ("quality", "psnr", "PSNR between original and fingerprinted (dB)", "quality"),
            ("length", "bits", "Bits of a key", "key length"),
        ):
            position = _position(axis)
            if len({position(row) for row in rows}) < 2:
                continue
            figure = Figure(figsize=(6.4, 5.2))
            _draw_usable(figure, rows, axis, label)
            yield (
                f"usable-{name}",
                f"Usable users against {title}",
                f"The largest number of users among whom {float(_SHARE):.0%} of the images name "
                f"theirs at a rate of {rate:g}. Marks are measured, lines predicted. What is below "
                "one user is drawn at the bottom.",
                figure,
            )


def _position(axis: str):
    return (lambda r: r["psnr"]) if axis == "psnr" else (lambda r: r["payload_bits"])


def _draw_users(figure, rows: Sequence[Mapping[str, Any]], users, rate: float) -> None:
    axes = figure.add_subplot()
    axes.set_xscale("log")
    for i, row in enumerate(rows):
        cell = row["cell"]
        colour, marker = f"C{i % 7}", MARKERS[i % len(MARKERS)]
        name = f"{row['psnr']:.1f} dB, {history_name(cell['noise'])}"
        measured, predicted = row["measured"]["curves"][0], row["predicted"]["curves"][0]
        kept = users[: len(predicted["right"])]
        axes.plot(kept, predicted["right"], color=colour, label=name)
        axes.plot(kept, predicted["bound"], color=colour, linestyle=":")
        axes.plot(kept, predicted["closed"], color=colour, linewidth=0.8, alpha=0.35)
        axes.plot(kept, measured["right"], color=colour, linestyle="none", marker=marker)
    axes.set(
        xlabel="Users N",
        ylabel="Share of images attributed to the right user",
        ylim=(-0.02, 1.02),
    )
    axes.set_title(f"Marks measured, lines predicted, dots the bound; rate {rate:g}", fontsize=10)
    figure.legend(loc="outside lower center", ncols=2)


def _draw_usable(figure, rows: Sequence[Mapping[str, Any]], axis: str, label: str) -> None:
    axes = figure.add_subplot()
    axes.set_yscale("log")
    position = _position(axis)
    other = "code" if axis == "psnr" else "psnr"
    cases = list(dict.fromkeys((row["cell"][other], row["cell"]["noise"]) for row in rows))
    for i, (value, noise) in enumerate(cases):
        some = sorted(
            (r for r in rows if (r["cell"][other], r["cell"]["noise"]) == (value, noise)),
            key=position,
        )
        name = code_name(value) if axis == "psnr" else f"{value:g} dB"
        colour, marker = f"C{i % 7}", MARKERS[i % len(MARKERS)]
        at = [position(row) for row in some]
        usable = {
            kind: [max(1.0, row[kind]["curves"][0]["usable"][_SHARE]) for row in some]
            for kind in ("predicted", "measured")
        }
        axes.plot(
            at, usable["predicted"], color=colour, linestyle=LINES[i % len(LINES)],
            label=f"{name}, {history_name(noise)}",
        )  # fmt: skip
        axes.plot(at, usable["measured"], color=colour, linestyle="none", marker=marker)
    axes.axhline(2.0**PAPER_BITS, color="0.4", linewidth=1, linestyle="--",
                 label=f"the published claim, 2^{PAPER_BITS}")  # fmt: skip
    axes.set(xlabel=label, ylabel=f"Users, {float(_SHARE):.0%} of images attributed")
    axes.set_ylim(bottom=0.7)
    figure.legend(loc="outside lower center", ncols=2)
