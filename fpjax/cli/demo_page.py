"""The page of `fpjax demo`: every picture, what the key changed, and the verdict."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
from pathlib import Path

import numpy as np

from fpjax.data.atomic import atomic_write

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .25rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.figures { display: flex; flex-wrap: wrap; gap: .5rem 2rem; margin: 1rem 0; }
.figures div b { display: block; font-size: 1.4rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .35rem .6rem; border-bottom: 1px solid #8884; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
img { width: 96px; height: 96px; image-rendering: pixelated; display: block; }
.right { color: #0072b2; font-weight: 600; } .wrong { color: #d55e00; font-weight: 600; }
@media (prefers-color-scheme: dark) { .right { color: #56b4e9; } .wrong { color: #e69f00; } }
"""


@dataclasses.dataclass
class Row:
    """One picture of the demo.

    Attributes:
      path: its file.
      owner: the user whose key it carries, or None.
      original: (R, R, 3) uint8 without the key, where there is one.
      kind: what it is, where it carries no key.
      image: (R, R, 3) uint8 as read from the file.
      verdict: the answer.
    """

    path: Path
    owner: str | None
    original: np.ndarray | None
    kind: str = "fingerprinted"
    image: np.ndarray | None = None
    verdict: object = None


def difference_image(a: np.ndarray, b: np.ndarray, gain: int = 10) -> np.ndarray:
    """Absolute difference of two uint8 images, `gain` times enlarged and clipped.

    >>> difference_image(np.uint8([[[10]]]), np.uint8([[[12]]]))
    array([[[20]]], dtype=uint8)
    """
    return np.clip(np.abs(a.astype(np.int32) - b) * gain, 0, 255).astype(np.uint8)


def _img(image: np.ndarray | None, text: str) -> str:
    if image is None:
        return ""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(text)}" src="data:image/png;base64,{data}">'


def _verdict(row: Row) -> str:
    verdict = row.verdict
    right = verdict.user == row.owner
    mark = "right" if right else "wrong"
    sign = "&#10003;" if right else "&#10007;"
    answer = verdict.user or "not attributed"
    return (
        f'<span class="{mark}">{sign} {html.escape(answer)}</span><br>'
        f"<small>{html.escape(str(verdict.reason))}</small>"
    )


def _numbers(row: Row) -> str:
    verdict = row.verdict
    return (
        f'<td class="number">{verdict.matching_bits}/{verdict.key_length}</td>'
        f'<td class="number">{verdict.p_value:.1e}</td>'
        f'<td class="number">{verdict.noise_ratio:.1f}</td>'
    )


def write_page(path: Path, rows: list[Row], figures: dict) -> None:
    """Writes the page, one self-contained file."""
    with_key = [row for row in rows if row.owner is not None]
    without = [row for row in rows if row.owner is None]
    head = (
        '<th>Verdict</th><th class="number">Bits</th><th class="number">p-value</th>'
        '<th class="number">Residual</th>'
    )
    keyed = "\n".join(
        f"<tr><td>{html.escape(row.owner)}</td>"
        f"<td>{_img(row.original, 'original')}</td><td>{_img(row.image, 'fingerprinted')}</td>"
        f"<td>{_img(difference_image(row.original, row.image), 'difference')}</td>"
        f"<td>{_verdict(row)}</td>{_numbers(row)}</tr>"
        for row in with_key
    )
    plain = "\n".join(
        f"<tr><td>{html.escape(row.kind)}</td><td>{_img(row.image, row.kind)}</td>"
        f"<td>{_verdict(row)}</td>{_numbers(row)}</tr>"
        for row in without
    )
    summary = "".join(
        f"<div><b>{value}</b>{label}</div>"
        for label, value in (
            ("users right", f"{figures['correct_users']} / {figures['num_images']}"),
            ("keys exact", f"{figures['exact_keys']} / {figures['num_images']}"),
            (
                "pictures without a key attributed",
                f"{figures['false_attributions']} / {figures['num_without_key']}",
            ),
            ("PSNR, original to fingerprinted", f"{figures['psnr_db']:.1f} dB"),
            ("for all of it", f"{figures['seconds']:.0f} s"),
        )
    )
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>fpjax demo</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>
<body><h1>Who made these pictures?</h1>
<p>Each user holds the same generator and a private key; the key moves every picture a little. The
verdicts below were read from the saved 8-bit files alone. Bits: agreement with the nearest
registered key. p-value: how often a picture without a key agrees so well with anybody's. Residual:
what the generator cannot explain, in units of 8-bit rounding noise.</p>
<div class="figures">{summary}</div>
<h2>With a key</h2>
<table><tr><th>Made by</th><th>Original</th><th>Fingerprinted</th><th>Difference &times; 10</th>{head}
</tr>{keyed}</table>
<h2>Without a key</h2>
<table><tr><th>What it is</th><th>Picture</th>{head}</tr>{plain}</table>
</body></html>
"""
    with atomic_write(path, "w") as file:
        file.write(page)
