"""A robustness study in a folder: registries, files and answers are kept, so that it can go on.

The folder holds `users-SCHEME.db`, `files/SCHEME/ATTACK/NNNN.png` (or the codec's suffix), the
pictures as they were sent, `files/SCHEME/originals/NNNN.png` before that, and `robustness.json`
with a record for each of them. The JSON says `"complete": false` until the last picture is in it.
`fpjax.training.attacked_pictures` makes a data set of it.
"""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fpjax.attacks import parse
from fpjax.attribution.files import attribute
from fpjax.attribution.pictures import read_picture
from fpjax.attribution.registry import Registry
from fpjax.errors import InputError
from fpjax.fingerprint.embed import Generated, generate
from fpjax.fingerprint.keys import unpack_words
from fpjax.fingerprint.scheme import Scheme
from fpjax.inversion.solvers.base import Solver
from fpjax.io.atomic import atomic_write
from fpjax.io.images import save_image
from fpjax.parallel import files_at_once
from fpjax.progress import Progress
from fpjax.studies.histories import file_of, known_observation
from fpjax.studies.quality import lpips_distance, psnr_db
from fpjax.studies.robustness import (
    DEFAULT_ATTACKS,
    information_of_file,
    predicted,
    summary,
)

FORMAT_VERSION = 1
RESULT = "robustness.json"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the answers depend on.

    Attributes:
      num_images: pictures with keys for each scheme and attack.
      num_users: registered users.
      false_positive_rate: family-wise, for one picture and all users.
      observation: "file" or "auto", see `fpjax.attribute`.
      lpips: measure LPIPS too.
      seed: of all draws.

    Raises:
      InputError: for no images, fewer than one user, or another observation.
    """

    num_images: int = 64
    num_users: int = 1000
    false_positive_rate: float = 1e-6
    observation: str = "auto"
    lpips: bool = False
    seed: int = 0

    def __post_init__(self):
        if self.num_images < 1 or self.num_users < 1:
            raise InputError(
                f"{self.num_images} images, {self.num_users} users: expected at least 1 of each"
            )
        if self.observation not in ("file", "auto"):
            raise InputError(f"observation {self.observation!r}: choose 'file' or 'auto'")


def run_robustness(
    schemes: Mapping[str, Scheme],
    folder: Path,
    settings: Settings,
    attacks: tuple[str, ...] = DEFAULT_ATTACKS,
    *,
    num_predicted: int = 8,
    solver: Solver | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Attacks pictures of schemes, attributes the files, and keeps what it finds in a folder.

    Args:
      schemes: by name; calibrated.
      folder: made if it is not there; empty unless `resume` is set.
      settings: pictures, users and rate.
      attacks: as `fpjax.attacks.parse` reads them.
      num_predicted: pictures of each scheme and attack whose information predicts; two Jacobians
        each.
      solver: by default that of `fpjax.attribute`.
      resume: go on with a folder of the same schemes and settings. Answers of attacks that are
        asked for again are kept; the attacks may be others, and the pictures more.
      progress: called with (stage, done, in all).

    Returns:
      What `robustness.json` holds.

    Raises:
      InputError: if the folder is not as `resume` says, or of other schemes or settings; for an
        attack that mixes pictures.
    """
    progress = progress or (lambda stage, done, total: None)
    parsed = [parse(attack) for attack in attacks]
    if mixing := [attack.label for attack in parsed if attack.mixes]:
        raise InputError(
            f"{mixing[0]} mixes pictures of several users; a study attacks each by itself"
        )
    labels = [attack.label for attack in parsed]
    header = {
        "format_version": FORMAT_VERSION,
        "schemes": {name: scheme.id for name, scheme in schemes.items()},
        "settings": {
            name: value
            for name, value in dataclasses.asdict(settings).items()
            if name != "num_images"
        },
    }
    records, predictions = _opened(folder, header, resume)
    shapes = {scheme.generator.image_shape for scheme in schemes.values()}
    distances = {shape: lpips_distance(shape) for shape in shapes} if settings.lpips else {}
    result = {"complete": False, **header, "num_images": settings.num_images, "attacks": labels}
    total = len(schemes) * len(labels) * settings.num_images

    def save(complete: bool) -> dict[str, Any]:
        cells = [
            {
                "scheme": name,
                "attack": label,
                **summary(records[name][label]),
                "predicted": predictions[name].get(label),
            }
            for name in schemes
            for label in labels
            if records[name].get(label)
        ]
        whole = {
            **result,
            "complete": complete,
            "cells": cells,
            "records": records,
            "predictions": predictions,
        }
        _write_json(folder / RESULT, whole)
        return whole

    for name in schemes:
        records.setdefault(name, {})
        predictions.setdefault(name, {})
    save(False)
    for name, scheme in schemes.items():
        with _registry(folder, name, scheme, settings) as registry:
            users, words = registry.words()
            owners = np.arange(settings.num_images) % len(users)
            keys = unpack_words(words[owners], scheme.key_length).astype(np.uint8)
            made = generate(scheme, jax.random.key(settings.seed + 1), keys)
            _keep_originals(folder, name, made)
            at_once = files_at_once(4)
            for label in labels:
                cell = records[name].setdefault(label, [])
                while len(cell) < settings.num_images:
                    done = sum(len(c) for r in records.values() for c in r.values())
                    progress(f"{name}, {label}", min(done, total), total)
                    rows = range(len(cell), min(len(cell) + at_once, settings.num_images))
                    paths = [_file(folder, name, label, row, made, settings) for row in rows]
                    cell += _answered(
                        scheme, registry, made, label, paths, rows, settings, distances, solver
                    )
                    save(False)
                few = min(num_predicted, settings.num_images)
                if few and predictions[name].get(label, {}).get("num", 0) < few:
                    guess = _predicted(scheme, made, folder, name, label, few, settings)
                    if guess is not None:
                        predictions[name][label] = {**guess, "num": few}
                        save(False)
    return save(True)


def _answered(scheme, registry, made, label, paths, rows, settings, distances, solver):
    """Records of some pictures."""
    started = time.monotonic()
    shape = scheme.generator.image_shape
    pictures = [read_picture(path, shape, resize=True) for path in paths]
    found = attribute(
        scheme,
        pictures,
        registry,
        false_positive_rate=settings.false_positive_rate,
        observation=settings.observation,
        solver=solver,
    )
    seconds = (time.monotonic() - started) / len(paths)
    users, _ = registry.words()
    assert found.verdicts is not None  # There is a registry.
    records = []
    for i, row in enumerate(rows):
        verdict, owner = found.verdicts[i], users[row % len(users)]
        pixels, sent = pictures[i].pixels, made.images[row]
        same_size = pixels.shape == sent.shape
        outcome = "none" if verdict.user is None else "right" if verdict.user == owner else "wrong"
        records.append(
            {
                "image": paths[i].name,
                "outcome": outcome,
                "bit_accuracy": float((found.keys[i] == made.keys[row]).mean()),
                "p_value": float(verdict.p_value),
                "finding": verdict.finding.replace(str(verdict.user), "its user"),
                "history": verdict.history,
                "noise_ratio": float(np.nan_to_num(verdict.noise_ratio, posinf=1e6, nan=1e6)),
                "steps": int(found.solution.steps[i]),
                "psnr": float(min(psnr_db(sent[None], pixels[None])[0], 99)) if same_size else None,
                "lpips": float(distances[shape](sent[None], pixels[None])[0])
                if distances and same_size
                else None,
                "seconds": round(seconds, 3),
            }
        )
    return records


def _predicted(scheme, made: Generated, folder, name, label, count, settings):
    """What information predicts, or None for an attack that no observation describes."""
    attack, shape, said = parse(label), scheme.generator.image_shape, []
    coordinates = np.asarray(made.alpha)
    for row in range(count):
        path = _file(folder, name, label, row, made, settings)
        pixels = read_picture(path, shape, resize=True).pixels
        if pixels.shape != shape:
            return None
        observation = known_observation(attack, path.read_bytes(), pixels)
        if observation is None:
            return None
        alpha, key = coordinates[row], made.keys[row]
        draw = jax.random.fold_in(jax.random.key(settings.seed + 3), row)
        said.append(information_of_file(scheme, observation, alpha, key, pixels, draw))
    return predicted(said, scheme.code)


def _file(folder: Path, name: str, label: str, row: int, made: Generated, settings) -> Path:
    """The file of an attacked picture, made unless it is there."""
    place = folder / "files" / _slug(name) / _slug(label)
    if there := sorted(place.glob(f"{row:04d}.*")):
        return there[0]
    key = jax.random.fold_in(jax.random.key(settings.seed + 2), row)
    data, suffix = file_of(parse(label), key, np.asarray(made.images[row]))
    place.mkdir(parents=True, exist_ok=True)
    with atomic_write(place / f"{row:04d}{suffix}") as file:
        file.write(data)
    return place / f"{row:04d}{suffix}"


@dataclasses.dataclass(frozen=True, eq=False)
class SentPicture:
    """A picture of a study, as it was sent.

    Attributes:
      scheme, attack: what made it, and what was done to it.
      number: of the picture; the same in all cells of a scheme.
      user: who made it.
      key: (L,) bits, the user's.
      file: as it was sent.
      original: PNG file of the picture before the attack.
    """

    scheme: str
    attack: str
    number: int
    user: str
    key: np.ndarray
    file: Path
    original: Path


def pictures_of(folder: Path) -> list[SentPicture]:
    """All pictures of a study that were answered.

    Raises:
      InputError: if the folder holds no study, or a damaged one, or one without the pictures as
        they were before the attacks.
      RegistryError: if its registry of users is missing, damaged or of another scheme.
    """
    sent = []
    try:
        study = json.loads((folder / RESULT).read_text("utf-8"))
        for name, of_scheme in study["records"].items():
            if not of_scheme:
                continue
            with Registry.open(_users(folder, name), scheme_id=study["schemes"][name]) as registry:
                users, words = registry.words()
                keys = unpack_words(words, registry.key_length).astype(np.uint8)
            if len(users) != study["settings"]["num_users"]:
                raise InputError(f"{_users(folder, name)}: has not the users of the study")
            for label, cell in of_scheme.items():
                place = folder / "files" / _slug(name) / _slug(label)
                for record in cell:
                    number = int(Path(record["image"]).stem)
                    owner = number % len(users)
                    original = _original(folder, name, number)
                    file = place / record["image"]
                    sent.append(
                        SentPicture(name, label, number, users[owner], keys[owner], file, original)
                    )
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{folder / RESULT}: missing or damaged") from error
    for picture in sent:
        if not picture.original.exists():
            raise InputError(
                f"{picture.original}: missing; the study's own command, with --resume, makes it"
            )
        if not picture.file.exists():
            raise InputError(f"{picture.file}: missing")
    return sent


def _original(folder: Path, name: str, number: int) -> Path:
    """Where a picture is kept as it was before any attack."""
    return folder / "files" / _slug(name) / "originals" / f"{number:04d}.png"


def _keep_originals(folder: Path, name: str, made: Generated) -> None:
    for number, image in enumerate(made.images):
        path = _original(folder, name, number)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            save_image(path, np.asarray(image))


def _slug(text: str) -> str:
    """A name as it may stand in a path.

    >>> _slug("jpeg:quality=75,subsampling=4:2:0")
    'jpeg-quality=75-subsampling=4-2-0'
    """
    return re.sub(r"[^A-Za-z0-9=.+_]+", "-", text)


def _users(folder: Path, name: str) -> Path:
    return folder / f"users-{_slug(name)}.db"


def _registry(folder: Path, name: str, scheme: Scheme, settings: Settings) -> Registry:
    """The study's users; their keys are drawn repeatably, since they guard nothing."""
    path = _users(folder, name)
    if not path.exists():
        registry = Registry.create(path, key_length=scheme.key_length, scheme_id=scheme.id)
    else:
        registry = Registry.open(path, scheme_id=scheme.id)
    for user in range(len(registry), settings.num_users):
        rng = np.random.default_rng((settings.seed, user))
        registry.issue(f"user-{user:06d}", rng=rng)
    return registry


def _opened(folder: Path, header: dict[str, Any], resume: bool):
    """Records and predictions of an earlier run, after checking that the folder is as expected."""
    file = folder / RESULT
    if not resume:
        if folder.exists() and any(folder.iterdir()):
            raise InputError(
                f"{folder} holds files already: go on with --resume, or choose another folder"
            )
        folder.mkdir(parents=True, exist_ok=True)
        return {}, {}
    try:
        begun = json.loads(file.read_text("utf-8"))
        records = begun["records"]
        # Those of before said the bound alone.
        predictions = {
            name: {label: said for label, said in of_scheme.items() if "bound" in said}
            for name, of_scheme in begun["predictions"].items()
        }
    except FileNotFoundError:
        if folder.exists() and any(folder.iterdir()):
            raise InputError(f"{folder}: no {RESULT}, so no study to go on with") from None
        folder.mkdir(parents=True, exist_ok=True)
        return {}, {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(f"{file}: damaged; remove it") from error
    for name, value in header.items():
        if begun.get(name) != json.loads(json.dumps(value)):
            raise InputError(
                f"{file} was begun with {name} {begun.get(name)!s:.200}, not {value!s:.200}: "
                "resume with the same, or choose another folder"
            )
    return records, predictions


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    with atomic_write(path, "w") as file:
        file.write(json.dumps(values, indent=1, allow_nan=False) + "\n")
