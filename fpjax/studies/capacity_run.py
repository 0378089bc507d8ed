"""A capacity study in a folder: decodings and predictions are kept, so that it can go on.

The folder holds `jacobians/NNNN.npz`, `starts/LENGTH.npz`, `decodings/CELL/NNNN.npz` (inverted
images, eight a file), `predicted/CELL.npz` and `capacity.json`, which says `"complete": false`
until the last cell is in it. Cells are named after code, PSNR and noise; numbers of users and rates
may change from one run to the next, since they cost next to nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fpjax.attribution.decision import decide
from fpjax.errors import InputError
from fpjax.fingerprint.basis import Basis
from fpjax.fingerprint.block_basis import BlockBasis
from fpjax.fingerprint.calibration import Calibration, LinearStart
from fpjax.fingerprint.codes import Code
from fpjax.fingerprint.embed import generate
from fpjax.fingerprint.keys import sample_keys
from fpjax.fingerprint.scheme import Scheme
from fpjax.inversion.driver import invert
from fpjax.inversion.observation import Gaussian, Rounded8Bit
from fpjax.inversion.problem import Problem
from fpjax.inversion.solution import Solution
from fpjax.inversion.starts import fit_linear_start
from fpjax.progress import Progress
from fpjax.studies.capacity import (
    SHARES,
    Cell,
    Evidence,
    coding_bound,
    curve,
    drawn_evidence,
    evidence_of,
    usable_users,
)
from fpjax.studies.design import Study, UnreachableQuality, study_keys
from fpjax.studies.design_run import read_npz, stored_grams, write_json, write_npz
from fpjax.studies.designs import Design

FORMAT_VERSION = 2
"""1 predicted as version 1 of a design study did."""
RESULT = "capacity.json"
BATCH = 8
"""Images inverted and kept together: what an early end may cost."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decodings and predictions depend on.

    Attributes:
      num_images: inverted in each cell, rounded up to eights.
      num_latents: other latents, whose Jacobians predict.
      draws: keys and noises that are drawn for each of those.
      num_pictures: pictures that the PSNR is measured on.
      num_start_images: images that the start of inversions is fitted on, for key lengths other than
        the scheme's own.
      seed: of all draws.
    """

    num_images: int = 32
    num_latents: int = 32
    draws: int = 4
    num_pictures: int = 64
    num_start_images: int = 4000
    seed: int = 0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < (field.name != "seed"):
                raise InputError(f"{field.name} {getattr(self, field.name)}: expected at least 1")


def run_capacity(
    scheme: Scheme,
    folder: Path,
    settings: Settings,
    cells: Sequence[Cell],
    *,
    users: Sequence[int],
    rates: Sequence[float],
    simulated: Sequence[int] = (1000,),
    resume: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measures and predicts shares of images that name their user, and keeps them in a folder.

    Args:
      scheme: calibrated; its generator, basis and first direction (where that is not of the last
        ones, which serve every length). Strength, key length and code are the cells'. Files are
        inverted by the solver of whole directions, whatever reads the scheme's own.
      folder: made if it is not there; empty unless `resume` is set.
      settings: images and latents.
      cells: codes, qualities and noises.
      users: numbers of users N, ascending.
      rates: family-wise false-positive rates; the first is the reference.
      simulated: numbers of users for which a registry of random keys is made as a check, at the
        first rate.
      resume: go on with a folder of the same scheme and settings; the other arguments may change.
      progress: called with (stage, done, in all).

    Returns:
      What `capacity.json` holds.

    Raises:
      InputError: if the folder is not as `resume` says, or of another scheme or settings; if a
        code does not fit the basis.
    """
    progress = progress or (lambda stage, done, total: None)
    if scheme.calibration is None:
        raise InputError("the scheme is not calibrated: fpjax.calibrate(scheme, key) first")
    if not users or min(users) < 1 or not rates or not all(0 < rate < 1 for rate in rates):
        raise InputError("users are at least 1, and rates between 0 and 1")
    shift = _first_direction(scheme)
    for cell in cells:
        if (shift or 0) + cell.num_symbols > len(scheme.basis):
            raise InputError(
                f"{cell.code} needs {cell.num_symbols} directions"
                f"{f' from {shift} on' if shift else ''}: the basis has {len(scheme.basis)}"
            )
    header = {
        "format_version": FORMAT_VERSION,
        "generator": {"name": scheme.generator.name, "sha256": scheme.generator.sha256},
        "scheme": scheme.id,
        "settings": dataclasses.asdict(settings),
    }
    if shift is not None:
        header["first_direction"] = shift
    # Strengths and codes are tried on directions one by one.
    if isinstance(scheme.basis, BlockBasis):
        scheme = scheme.replace(basis=scheme.basis.dense())
    _check_folder(folder, header, resume)
    started = time.monotonic()
    result: dict[str, Any] = {
        "complete": False, **header, "users": list(users), "rates": list(rates), "cells": []
    }  # fmt: skip
    write_json(folder / RESULT, result)
    noises = sorted({0.0, *(cell.noise for cell in cells)})
    work = _Work(scheme, shift, folder, settings, noises, progress)
    for i, cell in enumerate(cells):
        try:
            values = work.judge(cell, users, rates, simulated)
        except UnreachableQuality as error:
            values = {"reason": str(error)}
        result["cells"].append({"cell": dataclasses.asdict(cell), **values})
        write_json(folder / RESULT, result)
        progress("cells", i + 1, len(cells))
    result["seconds"] = round(time.monotonic() - started, 1)
    result["complete"] = True
    write_json(folder / RESULT, result)
    return result


def _first_direction(scheme: Scheme) -> int | None:
    """Where symbols are written: on the last directions, or from where the scheme's own begin."""
    last = scheme.shift + scheme.num_symbols == len(scheme.basis)
    return None if last else scheme.shift


class _Work:
    """What cells share: Jacobians, original pictures, starts."""

    def __init__(
        self,
        scheme: Scheme,
        shift: int | None,
        folder: Path,
        settings: Settings,
        noises: Sequence[float],
        progress: Progress,
    ):
        basis = scheme.basis
        assert isinstance(basis, Basis)
        self.shift = shift
        self.scheme, self.folder, self.settings, self.progress = scheme, folder, settings, progress
        key_study, self.key = jax.random.split(jax.random.key(settings.seed))
        grams = stored_grams(
            scheme.generator,
            basis,
            folder,
            study_keys(key_study)[0],
            noises,
            settings.num_latents,
            progress,
        )
        self.study = Study(
            scheme.generator,
            {"scheme": basis},
            key_study,
            num_latents=settings.num_latents,
            num_pictures=settings.num_pictures,
            grams=grams,
            keep_all=True,
        )

    def judge(self, cell: Cell, users, rates, simulated) -> dict[str, Any]:
        """All that is said of a cell."""
        design = Design("scheme", cell.num_symbols, self.shift, psnr=cell.psnr, noise=cell.noise)
        placed = self.study.scheme(design)
        code = cell.made_code(_mask(cell, self.settings.seed))
        chosen = placed.replace(
            code=code, key_length=cell.payload_bits, calibration=self._start(placed)
        )
        predicted = self._predicted(cell, design, code)
        keys, solution, measured = self._measured(cell, chosen)
        bits = cell.payload_bits
        found: dict[str, Any] = {
            "strength": float(np.asarray(chosen.strength)),
            "psnr": float(self.study.quality(chosen.replace(code=None, key_length=cell.num_symbols))
                          .mean()),
            "payload_bits": bits,
            "num_symbols": cell.num_symbols,
            "num_images": len(solution),
            "num_drawn": len(predicted.p_soft),
            "noise_ratio": float(np.median(solution.noise_ratio)),
        }  # fmt: skip
        for name, evidence in (("measured", measured), ("predicted", predicted)):
            finite = evidence.density[np.isfinite(evidence.density)]
            found[name] = {
                "exact": float(evidence.exact.mean()),
                "wrong_symbols": float(evidence.wrong.mean()),
                "density_bits": float(finite.mean()) if len(finite) else None,
                "curves": [_curve(evidence, users, rate, bits) for rate in rates],
            }
        found["simulated"] = [
            _simulate(solution, keys, num, rates[0], code, self.settings.seed) for num in simulated
        ]
        return found

    def _start(self, placed: Scheme) -> Calibration:
        """A calibration with a linear start for this many symbols."""
        own = self.scheme.calibration
        assert own is not None
        same = (placed.num_symbols, placed.shift) == (self.scheme.num_symbols, self.scheme.shift)
        if same and placed.levels == self.scheme.levels:
            return own
        path = self.folder / "starts" / f"{placed.num_symbols}.npz"
        if (arrays := read_npz(path)) is None:
            key = jax.random.fold_in(self.key, placed.num_symbols)
            start = fit_linear_start(
                placed, key, self.settings.num_start_images,
                progress=lambda done, total: self.progress("fitting a start", done, total),
            )  # fmt: skip
            arrays = {name: part for name, part in vars(start).items() if part is not None}
            write_npz(path, arrays)
        return dataclasses.replace(own, start=LinearStart(**arrays), encoder=None)

    def _predicted(self, cell: Cell, design: Design, code: Code | None) -> Evidence:
        path = self.folder / "predicted" / f"{cell.name}.npz"
        if (arrays := read_npz(path)) is None:
            information = self.study.information(design)
            found = drawn_evidence(information, self.settings.draws, code, self.settings.seed)
            arrays = found._asdict()
            write_npz(path, arrays)
        return Evidence(**arrays)

    def _measured(self, cell: Cell, chosen: Scheme) -> tuple[np.ndarray, Solution, Evidence]:
        """Keys, inversions and evidence of a cell's images."""
        observation = Gaussian(cell.noise) if cell.noise else Rounded8Bit()
        batches = -(-self.settings.num_images // BATCH)
        keys, solutions, evidence = [], [], []
        for batch in range(batches):
            path = self.folder / "decodings" / cell.name / f"{batch:04d}.npz"
            arrays = read_npz(path)
            if arrays is None:
                random = jax.random.split(jax.random.fold_in(self.key, batch), 3)
                some = sample_keys(random[0], BATCH, chosen.key_length)
                made = generate(chosen, random[1], some)
                files = observation.simulate(random[2], jax.device_put(made.float_images))
                files = np.asarray(jax.device_get(files))
                solution = invert(Problem(chosen, observation), files)
                assert solution.information is not None and solution.linear is not None
                seen = evidence_of(
                    chosen.words_of(some), solution.keys, solution.information, solution.linear,
                    chosen.code,
                )  # fmt: skip
                arrays = {
                    "true_keys": some,
                    **{f"solution_{k}": v for k, v in vars(solution).items() if v is not None},
                    **{f"evidence_{k}": v for k, v in seen._asdict().items()},
                }
                write_npz(path, arrays)
            keys.append(arrays["true_keys"])
            solutions.append(Solution(**_part(arrays, "solution_")))
            evidence.append(_part(arrays, "evidence_"))
            self.progress(f"inverting images of {cell.name}", batch + 1, batches)
        joined = {name: np.concatenate([part[name] for part in evidence]) for name in evidence[0]}
        return np.concatenate(keys), Solution.concatenate(solutions), Evidence(**joined)


def _part(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, Any]:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def _mask(cell: Cell, seed: int) -> str:
    """A mask that the next run draws again; a study's keys are no secrets."""
    size = -(-cell.num_symbols // 8)
    digest = hashlib.shake_256(f"{cell.code} {seed}".encode()).digest(size)
    bits = np.unpackbits(np.frombuffer(digest, np.uint8))
    bits[cell.num_symbols :] = 0
    return np.packbits(bits).tobytes().hex()


def _curve(evidence: Evidence, users, rate: float, payload_bits: int) -> dict[str, Any]:
    # There are no more users than keys.
    most = 2.0**payload_bits
    kept = [num for num in users if num <= most]
    found = curve(evidence, kept, rate)
    return {
        "rate": rate,
        "right": found.right.tolist(),
        "wrong": found.wrong.tolist(),
        "none": (1 - found.right - found.wrong).tolist(),
        "closed": found.closed.tolist(),
        "bound": coding_bound(evidence, kept, rate).tolist(),
        "usable": {str(share): usable_users(evidence, share, rate, payload_bits)
                   for share in SHARES},
    }  # fmt: skip


def _simulate(
    solution: Solution, keys: np.ndarray, num: int, rate: float, code: Code | None, seed: int
) -> dict[str, Any]:
    """Verdicts with a registry of all images' own keys and random ones, `num` in all."""
    count = len(keys)
    names = [str(user) for user in range(max(num, count))]
    rng = np.random.default_rng([seed, num])
    others = rng.integers(0, 2, (len(names) - count, keys.shape[1]), np.uint8)
    verdicts = decide(
        solution, names, np.concatenate([keys, others]), code=code, false_positive_rate=rate
    )
    # A key that was drawn twice has two holders.
    right = [
        verdict.user is not None
        and (int(verdict.user) == i or (int(verdict.user) < count
                                        and (keys[int(verdict.user)] == keys[i]).all()))
        for i, verdict in enumerate(verdicts)
    ]  # fmt: skip
    none = sum(verdict.user is None for verdict in verdicts)
    return {
        "users": len(names), "rate": rate, "images": count, "right": sum(right), "none": none,
        "wrong": count - sum(right) - none,
    }  # fmt: skip


def _check_folder(folder: Path, header: dict[str, Any], resume: bool) -> None:
    file = folder / RESULT
    if not resume:
        if folder.exists() and any(folder.iterdir()):
            raise InputError(
                f"{folder} holds files already: go on with --resume, or choose another folder"
            )
        return
    try:
        begun = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        if folder.exists() and any(folder.iterdir()):
            raise InputError(f"{folder}: no {RESULT}, so no study to go on with") from None
        return
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: damaged; remove it") from error
    begun = begun if isinstance(begun, dict) else {}
    for name, value in header.items():
        if begun.get(name) != value:
            raise InputError(
                f"{file} was begun with {name} {begun.get(name)!s:.200}, not {value!s:.200}: "
                "resume with the same, or choose another folder"
            )
