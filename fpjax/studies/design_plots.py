"""Plots and page of a design study, from what `design.json` holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fpjax.studies.design_run import predictions_of
from fpjax.studies.designs import INDEPENDENT, Design, Prediction
from fpjax.studies.histories import history_name, in_order
from fpjax.studies.page import LINES, MARKERS, plot_style, write_study_page

BASIS_NAMES = {"image": "image metric", "latent": "PCA"}
_COLOURS = {"image": "C0", "latent": "C1"}
PAPER_LENGTH = 64


def is_paper(prediction: Prediction, num_directions: Mapping[str, int]) -> bool:
    """Whether a design is the published one: PCA, 64 bits, on the last directions."""
    design = prediction.design
    last = num_directions[design.basis] - design.key_length
    return (
        design.basis == "latent"
        and design.code == INDEPENDENT
        and design.key_length == PAPER_LENGTH
        and prediction.first_direction == last
    )


def write_page(folder: Path, result: Mapping[str, Any]) -> list[Path]:
    """Draws the plots (SVG and PNG) and writes `index.html` beside them.

    Args:
      folder: of the study.
      result: what `run_design` returned.

    Returns:
      The files, the page first.
    """
    return write_study_page(
        folder,
        "design.html",
        _figures(result),
        result=result,
        names=BASIS_NAMES,
        history_name=history_name,
        history=lambda values: history_name(Design(**values).history),
        payload=lambda design: Design(**design).made_code.payload_bits,
    )


def _figures(result: Mapping[str, Any]):
    """(file name, title, what it shows, figure) of each plot for which there are rows."""
    from matplotlib.figure import Figure

    of_codes = predictions_of(result["rows"])
    predictions = [p for p in of_codes if p.design.code == INDEPENDENT]
    designs = [Design(**row["design"]) for row in result["rows"]]
    if not of_codes:
        return
    length = designs[0].key_length
    shifts = {design.basis: design.shift for design in reversed(designs)}  # the first of each
    qualities = list(dict.fromkeys(design.quality for design in designs))
    middle = qualities[len(qualities) // 2]
    at_length = [p for p in predictions if p.design.key_length == length]
    at_shift = [p for p in predictions if p.design.shift == shifts[p.design.basis]]
    at_quality = [p for p in predictions if p.design.quality == middle]
    lowest = (min if middle[0] == "psnr" else max)(qualities)
    level, low_level = (
        f"{value:g} dB" if kind == "psnr" else f"strength {value:g}"
        for kind, value in (middle, lowest)
    )
    plots = [
        (
            "accuracy-quality",
            f"Accuracy against quality, {length} bits",
            "The share of wrong bits against PSNR: further right looks more like the original, "
            "further down is read better. Stars mark the published choice, where it is among the "
            f"designs: PCA, {PAPER_LENGTH} bits on the last directions; here antipodal, and at "
            f"{level}.",
            [p for p in at_length if p in at_shift],
            lambda p: p.psnr,
            "PSNR between original and fingerprinted (dB)",
        ),
        (
            "accuracy-strength",
            f"Accuracy against strength, {length} bits",
            "The share of wrong bits against strength, in units of each basis: of the latent for "
            "PCA, of the image for the image metric, so that curves of two bases compare in shape "
            "alone.",
            [p for p in at_length if p in at_shift],
            lambda p: p.strength,
            "Strength (units of the basis)",
        ),
        (
            "accuracy-shift",
            f"Accuracy against shift, {length} bits at {low_level}",
            "The share of wrong bits against where in the basis the key is written. Natural images "
            "vary most along the first directions, least along the last; a shift without a point "
            "overwrites so much of a picture that no strength gives the quality.",
            [p for p in at_length if p.design.quality == lowest],
            lambda p: p.first_direction,
            "First fingerprint direction (index in the basis)",
        ),
        (
            "accuracy-length",
            f"Accuracy against key length at {level}",
            "The share of wrong bits against the bits of a key, at equal quality.",
            [p for p in at_shift if p in at_quality],
            lambda p: p.design.key_length,
            "Key length (bits)",
        ),
    ]
    paper = [p for p in at_quality if is_paper(p, result["num_directions"])]
    with plot_style():
        for name, title, text, some, position, label in plots:
            if len({position(p) for p in some}) < 2:
                continue
            figure = Figure()
            axes = figure.add_subplot()
            _draw(axes, some, position, result["num_drawn_keys"])
            if name == "accuracy-quality":
                _mark_paper(axes, [p for p in paper if p in some], result["num_drawn_keys"])
            axes.set(title=title, xlabel=label, ylabel="Predicted bit error (share of wrong bits)")
            axes.set_ylim(top=1)
            figure.legend(loc="outside lower center", ncols=2)
            yield name, title, text, figure
        quality = [p for p in at_length if p in at_shift and p.design.history == designs[0].history]
        if len({p.strength for p in quality}) > 1:
            yield from _quality_figures(quality, length)
        coded = [p for p in of_codes if p.design.code != INDEPENDENT]
        for length in sorted({p.design.key_length for p in coded}, reverse=True):
            basis = designs[0].basis
            some = [
                p
                for p in of_codes
                if (p.design.basis, p.design.shift) == (basis, shifts[basis])
                and p.design.key_length == length
            ]
            figure = Figure()
            axes = figure.add_subplot()
            _draw_codes(axes, some, result["num_drawn_keys"])
            title = f"Payloads on {length} directions, {BASIS_NAMES[basis]}"
            axes.set(title=title, xlabel=plots[0][-1], ylabel="Share with a wrong bit (predicted)")
            figure.legend(loc="outside lower center", ncols=2)
            text = (
                "The share of pictures whose payload is not read whole, against PSNR, at equal "
                "quality for all codes. What lies further down survives more. Where none was "
                f"wrong in {result['num_drawn_keys']} that were drawn, one in all of them is shown."
            )
            yield f"payload-quality-{length}", title, text, figure


def _quality_figures(predictions: Sequence[Prediction], length: int):
    """PSNR against strength, and LPIPS where it was measured; quality knows of no history."""
    from matplotlib.figure import Figure

    measures: list[tuple[str, str, Callable[[Prediction], float | None]]] = [
        ("psnr", "PSNR between original and fingerprinted (dB)", lambda p: p.psnr),
        ("lpips", "LPIPS between original and fingerprinted", lambda p: p.lpips),
    ]
    for name, label, value in measures:
        points: dict[str, list[tuple[float, float]]] = {}
        for prediction in predictions:
            measured = value(prediction)
            if measured is not None:
                own = points.setdefault(prediction.design.basis, [])
                own.append((prediction.strength, measured))
        if not points:
            continue
        figure = Figure()
        axes = figure.add_subplot()
        for basis, curve in points.items():
            strengths, values = zip(*sorted(curve), strict=True)
            axes.plot(
                strengths,
                values,
                color=_COLOURS[basis],
                marker=MARKERS[0],
                label=BASIS_NAMES[basis],
            )
        title = f"Quality against strength, {length} bits"
        axes.set(title=title, xlabel="Strength (units of the basis)", ylabel=label)
        figure.legend(loc="outside lower center", ncols=2)
        text = "Measured on pictures that were made; strengths are in units of each basis."
        yield f"{name}-strength", f"{title}: {name.upper()}", text, figure


def _shown_error(prediction: Prediction, drawn: int) -> float:
    """A logarithmic axis has no zero: no wrong bit is drawn where one in all would be."""
    return max(prediction.bit_error, 1 / (drawn * prediction.design.key_length))


def _draw(axes, predictions, position: Callable[[Prediction], float], drawn: int) -> None:
    """One curve a basis and history; colours tell bases, lines and markers tell histories."""
    bases = list(dict.fromkeys(p.design.basis for p in predictions))
    histories = in_order(p.design.history for p in predictions)
    axes.set_yscale("log")
    for basis in bases:
        for i, history in enumerate(histories):
            of_curve = sorted(
                (p for p in predictions if (p.design.basis, p.design.history) == (basis, history)),
                key=position,
            )
            axes.plot(
                [position(p) for p in of_curve],
                [_shown_error(p, drawn) for p in of_curve],
                color=_COLOURS[basis],
                linestyle=LINES[i % len(LINES)],
                marker=MARKERS[i % len(MARKERS)],
                label=f"{BASIS_NAMES[basis]}, {history_name(history)}",
            )
    unseen = [p for p in predictions if p.bit_error == 0]
    axes.plot(
        [position(p) for p in unseen],
        [_shown_error(p, drawn) for p in unseen],
        linestyle="none",
        marker="o",
        markersize=9,
        markerfacecolor="none",
        markeredgecolor="0.4",
        label=f"none wrong in {drawn} keys" if unseen else None,
    )


def _draw_codes(axes, predictions: Sequence[Prediction], drawn: int) -> None:
    """One curve a code and history; colours tell codes, lines and markers tell histories."""
    payloads = {p.design.code: p.design.made_code.payload_bits for p in predictions}
    codes = sorted(payloads, key=lambda code: (code != INDEPENDENT, -payloads[code], code))
    histories = in_order(p.design.history for p in predictions)
    axes.set_yscale("log")
    for colour, code in enumerate(codes):
        for i, history in enumerate(histories):
            of_curve = sorted(
                (p for p in predictions if (p.design.code, p.design.history) == (code, history)),
                key=lambda p: p.psnr,
            )
            axes.plot(
                [p.psnr for p in of_curve],
                # A logarithmic axis has no zero.
                [max(1 - p.exact, 1 / drawn) for p in of_curve],
                color=f"C{colour}",
                linestyle=LINES[i % len(LINES)],
                marker=MARKERS[i % len(MARKERS)],
                label=f"{payloads[code]} bits, {code}, {history_name(history)}",
            )


def _mark_paper(axes, paper: Sequence[Prediction], drawn: int) -> None:
    axes.plot(
        [p.psnr for p in paper],
        [_shown_error(p, drawn) for p in paper],
        linestyle="none",
        marker="*",
        markersize=14,
        color="black",
        label="the published choice" if paper else None,
    )
