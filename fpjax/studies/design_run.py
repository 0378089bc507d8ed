"""A design study in a folder: bases, Jacobians and finished rows are kept, so that it can go on.

The folder holds `basis-NAME.npz`, `jacobians/NNNN.npz` (what Jacobians of one natural latent say
for each noise or attack, see `curvature.py`) and `design.json`. The JSON says `"complete": false`
until the last row is in it.
"""

from __future__ import annotations

import dataclasses
import io
import json
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fpjax.errors import InputError
from fpjax.fingerprint.basis import Basis, Metric
from fpjax.fingerprint.fit import fit_basis
from fpjax.io.atomic import atomic_write
from fpjax.models.generator import Generator
from fpjax.progress import Progress
from fpjax.studies.curvature import CODE_DRAWS, DRAWS, NUM_LATENTS, iter_pixel_grams
from fpjax.studies.design import NUM_PICTURES, Study, UnreachableQuality, prior_of, study_keys
from fpjax.studies.designs import Design, Prediction, recommend, recommend_for_all
from fpjax.studies.histories import History, described, in_order
from fpjax.studies.quality import lpips_distance

FORMAT_VERSION = 2
"""1 predicted from Jacobians of latents as if who reads a file knew them."""
RESULT = "design.json"
METRICS: tuple[Metric, ...] = ("image", "latent")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What Jacobians, bases and qualities depend on.

    Attributes:
      bases: metrics of the bases, of `METRICS`.
      num_samples: latents that the bases are fitted on.
      num_jacobians: latents that the image metric is averaged over.
      num_latents: other latents, whose Jacobians predict.
      num_pictures: pictures that quality is measured on.
      lpips: measure LPIPS too.
      seed: of all draws.

    Raises:
      InputError: for another metric.
    """

    bases: tuple[Metric, ...] = METRICS
    num_samples: int = 10_000
    num_jacobians: int = 128
    num_latents: int = NUM_LATENTS
    num_pictures: int = NUM_PICTURES
    lpips: bool = False
    seed: int = 0

    def __post_init__(self):
        for metric in self.bases:
            if metric not in METRICS:
                raise InputError(f"basis {metric!r}: choose of {', '.join(METRICS)}")


def run_design(
    generator: Generator,
    folder: Path,
    settings: Settings,
    designs: Callable[[Mapping[str, Basis]], Sequence[Design]],
    *,
    goal_exact: float,
    resume: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Judges designs, and keeps what it has found in a folder.

    Args:
      generator: what makes the images.
      folder: made if it is not there; empty unless `resume` is set.
      settings: samples, Jacobians and pictures.
      designs: from the fitted bases to the designs, which may depend on how many directions there
        are.
      goal_exact: share of images with every bit right that recommendations ask for.
      resume: go on with a folder of the same generator and settings. Rows of designs that are asked
        for again are kept; the designs may be others.
      progress: called with (stage, done, in all).

    Returns:
      What `design.json` holds.

    Raises:
      InputError: if the folder is not as `resume` says, or of another generator or settings; if
        a design does not fit its basis.
    """
    progress = progress or (lambda stage, done, total: None)
    perceptual = lpips_distance(generator.image_shape) if settings.lpips else None
    header = {
        "format_version": FORMAT_VERSION,
        "generator": {"name": generator.name, "sha256": generator.sha256},
        "settings": json.loads(json.dumps(dataclasses.asdict(settings))),
    }
    before = _opened(folder, header, resume)
    started = time.monotonic()
    result = {"complete": False, **header, "goal_exact": goal_exact, "rows": []}
    write_json(folder / RESULT, {**result, "rows": list(before)})

    key_basis, key_study = jax.random.split(jax.random.key(settings.seed))
    bases = {
        metric: _basis(generator, folder, key_basis, metric, settings, progress)
        for metric in settings.bases
    }
    chosen = list(designs(bases))
    for design in chosen:
        _check_fits(design, len(bases[design.basis]))
    grams = stored_grams(
        generator,
        prior_of(bases),
        folder,
        study_keys(key_study)[0],
        in_order([0.0, *(design.history for design in chosen)]),
        settings.num_latents,
        progress,
    )
    study = Study(
        generator,
        bases,
        key_study,
        num_latents=settings.num_latents,
        num_pictures=settings.num_pictures,
        grams=grams,
        perceptual=perceptual,
    )
    # Rows from before there were codes do not name theirs.
    done = {Design(**row["design"]): row for row in before}
    result["num_directions"] = {name: len(basis) for name, basis in bases.items()}
    result["num_drawn_keys"] = DRAWS * settings.num_latents
    result["num_drawn_payloads"] = CODE_DRAWS * settings.num_latents
    for i, design in enumerate(chosen):
        if design not in done:
            done[design] = _judged(study, design)
        result["rows"].append({**done[design], "design": dataclasses.asdict(design)})
        # What an earlier run had found stays in the file until this one comes to it.
        judged = {Design(**row["design"]) for row in result["rows"]}
        later = [row for row in before if Design(**row["design"]) not in judged]
        write_json(folder / RESULT, {**result, "rows": result["rows"] + later})
        progress("judging designs", i + 1, len(chosen))
    result["recommendations"] = recommendations(result["rows"], goal_exact)
    result["seconds"] = round(time.monotonic() - started, 1)
    result["complete"] = True
    write_json(folder / RESULT, result)
    return result


def predictions_of(rows: Sequence[Mapping[str, Any]]) -> list[Prediction]:
    """The predictions of a result's rows; designs that cannot be are left out."""
    return [Prediction.from_json(row) for row in rows if "reason" not in row]


def recommendations(rows: Sequence[Mapping[str, Any]], exact: float) -> list[dict[str, Any]]:
    """For each noise or attack, key length and code: the design of highest PSNR that reaches the
    goal, or None; then those that reach it under all of the noises and attacks.

    Args:
      rows: of a result.
      exact: share of images with every bit right.

    Returns:
      Dicts of `noise` and `attack`, both None for all of several; `key_length`, `code`,
      `payload_bits` and `prediction`, of all that where the design is read worst.
    """
    predictions = predictions_of(rows)
    histories = in_order(p.design.history for p in predictions)

    def case(p: Prediction) -> tuple:
        return p.design.made_code.payload_bits, p.design.key_length, p.design.code

    several = [None] if len(histories) > 1 else []
    found = []
    for history in [*histories, *several]:
        some = [p for p in predictions if history in (None, p.design.history)]
        for payload, length, code in sorted({case(p) for p in some}):
            of_case = [p for p in some if case(p) == (payload, length, code)]
            if history is None:
                best = recommend_for_all(of_case, histories, exact)
            else:
                best = recommend(of_case, exact)
            found.append(
                {
                    "noise": None if isinstance(history, str) else history,
                    "attack": history if isinstance(history, str) else None,
                    "key_length": length, "code": code, "payload_bits": payload,
                    "prediction": None if best is None else best.to_json(),
                }
            )  # fmt: skip
    return found


def _judged(study: Study, design: Design) -> dict[str, Any]:
    started = time.monotonic()
    try:
        values = study.predict(design).to_json()
    except UnreachableQuality as error:
        values = {"design": dataclasses.asdict(design), "reason": str(error)}
    return {**values, "seconds": round(time.monotonic() - started, 3)}


def _check_fits(design: Design, directions: int) -> None:
    """Complains before Jacobians are taken for designs that cannot be, or be predicted."""
    if design.attack is not None:
        described(design.attack)
    if (design.shift or 0) + design.key_length > directions:
        raise InputError(
            f"{design.key_length} bits at shift {'last' if design.shift is None else design.shift}:"
            f" the {design.basis} basis has {directions} directions"
        )


def _opened(folder: Path, header: dict[str, Any], resume: bool) -> list[dict[str, Any]]:
    """Rows of an earlier run, after checking that the folder is as expected."""
    file = folder / RESULT
    if not resume:
        if folder.exists() and any(folder.iterdir()):
            raise InputError(
                f"{folder} holds files already: go on with --resume, or choose another folder"
            )
        return []
    try:
        begun = json.loads(file.read_text("utf-8"))
        rows = begun["rows"]
        for row in rows:
            Design(**row["design"])
    except FileNotFoundError:
        if folder.exists() and any(folder.iterdir()):
            raise InputError(f"{folder}: no {RESULT}, so no study to go on with") from None
        return []
    except (OSError, ValueError, TypeError, KeyError, RecursionError, InputError) as error:
        raise InputError(f"{file}: damaged; remove it") from error
    for name, value in header.items():
        if begun.get(name) != value:
            raise InputError(
                f"{file} was begun with {name} {begun.get(name)!s:.200}, not {value!s:.200}: "
                "resume with the same, or choose another folder"
            )
    return rows


def _basis(generator, folder, key, metric: Metric, settings: Settings, progress: Progress) -> Basis:
    path = folder / f"basis-{metric}.npz"
    if (arrays := read_npz(path)) is not None:
        return Basis(**arrays, num_samples=settings.num_samples, metric=metric)
    basis = fit_basis(
        generator,
        key,
        settings.num_samples,
        metric=metric,
        num_jacobians=settings.num_jacobians,
        in_blocks=False,
        progress=lambda done, total: progress("averaging the image metric", done, total),
    )
    assert isinstance(basis, Basis)  # not in blocks
    names = ("mean", "directions", "dual", "std")
    write_npz(path, {name: getattr(basis, name) for name in names})
    return basis


def stored_grams(
    generator: Generator,
    prior: Basis,
    folder: Path,
    key: jax.Array,
    histories: Sequence[History],
    num_latents: int,
    progress: Progress,
) -> dict[History, np.ndarray]:
    """What `curvature.pixel_grams` gives, taken where the folder does not have it."""
    paths = [folder / "jacobians" / f"{i:04d}.npz" for i in range(num_latents)]
    names = {str(history): history for history in histories}
    kept = [read_npz(path) or {} for path in paths]
    lacking = {name: h for name, h in names.items() if any(name not in k for k in kept)}
    wanted = [i for i, arrays in enumerate(kept) if not names.keys() <= arrays.keys()]
    taken = iter_pixel_grams(
        generator, prior, key, tuple(lacking.values()), num_latents, wanted=wanted
    )
    for count, (i, grams) in enumerate(taken, num_latents - len(wanted) + 1):
        kept[i] |= {name: grams[history] for name, history in lacking.items()}
        write_npz(paths[i], kept[i])
        progress("taking Jacobians", count, num_latents)
    return {h: np.stack([arrays[name] for arrays in kept]) for name, h in names.items()}


def read_npz(path: Path) -> dict[str, np.ndarray] | None:
    """Arrays of a file, or None where there is none; InputError for a damaged one."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: damaged; remove it") from error


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays as one file, whole or not at all."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # pyright: ignore[reportArgumentType]
    with atomic_write(path) as file:
        file.write(buffer.getvalue())


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes JSON values, whole or not at all."""
    with atomic_write(path, "w") as file:
        file.write(json.dumps(values, indent=2, allow_nan=False) + "\n")
