"""Files as people send them: what a file says about its own history, and what the picture says.

`observation="file"` believes the file: a JPEG file is read through its own tables, a picture of
another size, when asked for, through the filter that changed it, everything else as a lossless
file. `observation="auto"` goes on where that does not explain the picture: a lossless file that was
once a JPEG is read through the tables that its pixels give away, if they explain it; otherwise what
was done is looked for, and noise of unknown power (`fpjax/attribution/second_look.py`), and of
pictures that leave much in a part of them, what is not covered is read (`covers.py`).

What is tried depends on the picture alone, never on a key, so that its rate stays exact; a picture
that is read twice is two questions, and its p-value is doubled; of three readings, tripled.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Shaped

from fpjax.attribution import decision
from fpjax.attribution.candidates import Candidates, Directory, candidates_of
from fpjax.attribution.covers import covered_look, uneven
from fpjax.attribution.decision import (
    DEFAULT_FALSE_POSITIVE_RATE,
    Attribution,
    Reason,
    Verdict,
    decide_among,
    read_keys,
)
from fpjax.attribution.file_reader import FileReader, Readings
from fpjax.attribution.pictures import (
    Picture,
    read_picture,
    stated,
)
from fpjax.attribution.registry import RegistryError
from fpjax.attribution.second_look import second_look
from fpjax.errors import InputError
from fpjax.fingerprint.scheme import Scheme
from fpjax.fingerprint.stored import KeySource
from fpjax.inversion.observation import Observation
from fpjax.inversion.problem import Problem
from fpjax.inversion.readers import (
    Reader,
)
from fpjax.inversion.solution import Solution, Status
from fpjax.models.jacobian import DEFAULT_MEMORY

Reading = Literal["file", "auto"]


def attribute(
    scheme: Scheme,
    images: Shaped[Array | np.ndarray, "batch height width channels"]
    | Sequence[str | os.PathLike | Picture],
    registry: Directory | Candidates | KeySource | None = None,
    *,
    false_positive_rate: float = DEFAULT_FALSE_POSITIVE_RATE,
    observation: Observation | Reading | None = None,
    resize: bool = False,
    problem: Problem | None = None,
    solver: Reader | None = None,
    memory: int = DEFAULT_MEMORY,
    mesh: Mesh | None = None,
    progress: Callable[[int, int], None] | None = None,
    key_progress: Callable[[int, int], None] | None = None,
) -> Attribution:
    """Reads the keys out of images and, given a registry, names their holders.

    Args:
      scheme: a calibrated scheme, as bundled or from `calibrate`.
      images: (B, H, W, C), uint8 or float in [-1, 1]; or paths of files, or `Picture`s.
      registry: who holds which key: a `Registry`, a `DerivedRegistry`, or a source of keys such as
        `DerivedKeys`, whose holders are numbers; without it there are no verdicts.
      false_positive_rate: chance that an image made without the registered keys is attributed to
        anybody at all. It is exact for keys that are uniformly random and secret, whatever the
        image, the observation and the solver.
      observation: how the generator's output became the files. "file" (the default for paths):
        what each file says of itself. "auto": what the picture says, too, where that does not
        explain it. An `Observation` (the default for arrays: `Rounded8Bit()`): that one for all.
      resize: for paths: whether to take pictures of another size than the generator's.
      problem: for `invert`, instead of one made of scheme and observation.
      solver: how keys are read: see `default_solver`; or an `EncoderReader`, for files that are
        such as it was measured on, the others being inverted. By default the encoder where the
        scheme was calibrated for it.
      memory: see `invert`.
      mesh: see `invert`.
      progress: called with (images finished, images in all).
      key_progress: called with (keys compared, keys in all) in each pass over the registry.

    Returns:
      The `Attribution`; where there are several readings, its arrays are of the last one that fits
      a key as well as those before, or of the last one if none finds any.

    Raises:
      InputError: if the images do not fit the generator or the scheme is not calibrated.
      ImageError: if a file cannot be read.
      RegistryError: if the registry belongs to another scheme.

    >>> import fpjax
    >>> scheme = fpjax.load_scheme("avatars-stylegan2")
    >>> attribute(scheme, [], observation="auto").keys.shape
    (0, 64)
    """
    is_array = not isinstance(images, Sequence)
    if isinstance(observation, str) and observation not in ("file", "auto"):
        raise InputError(f"observation {observation!r}: choose 'file', 'auto', or an Observation")
    if isinstance(observation, str) and problem is not None:
        raise InputError("give a problem or an observation, not both")
    if is_array and not isinstance(observation, str):
        return decision.attribute(
            scheme, images, registry, false_positive_rate=false_positive_rate,
            observation=observation, problem=problem, solver=solver, memory=memory, mesh=mesh,
            progress=progress, key_progress=key_progress,
        )  # fmt: skip
    shape = scheme.generator.image_shape
    pictures = _pictures(images, shape, resize)
    if not isinstance(observation, str) and (observation is not None or problem is not None):
        return decision.attribute(
            scheme, np.stack([picture.pixels for picture in pictures]), registry,
            false_positive_rate=false_positive_rate, observation=observation, problem=problem,
            solver=solver, memory=memory, mesh=mesh, progress=progress, key_progress=key_progress,
        )  # fmt: skip
    if isinstance(registry, Directory) and registry.scheme_id != scheme.id:
        raise RegistryError(
            f"{registry.path} belongs to scheme {registry.scheme_id}, the images are read with "
            f"{scheme.id}"
        )
    auto = observation == "auto"
    reader = FileReader(scheme, solver, memory, mesh, progress, len(pictures), brief=auto)
    first = reader.read([stated(picture, shape) for picture in pictures], pictures)
    readings = [first]
    if auto:
        rows = np.flatnonzero(~(first.solution.noise_ratio <= first.limits))
        if len(rows):
            second = second_look(reader, pictures, rows, first.solution)
            readings.append(second)
            chosen = [pictures[row] for row in second.rows]
            may_be = uneven(reader, chosen, second)
            if may_be.any():
                second = second.take(may_be, second.rows[may_be])
                chosen = [pictures[row] for row in second.rows]
                readings.append(covered_look(reader, chosen, second))
    name = " and ".join(reader.names) or reader.chosen(Problem(scheme)).name
    return _answer(
        scheme, readings, registry, false_positive_rate, name, observation or "file", key_progress
    )


def _pictures(images, shape, resize: bool) -> list[Picture]:
    if not isinstance(images, Sequence):
        images = np.asarray(jax.device_get(images))
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != shape:
            raise InputError(
                f"images are {images.dtype} {images.shape}: expected uint8 "
                f"(B, {', '.join(map(str, shape))}), as files hold them"
            )
        return [Picture(image) for image in images]
    return [
        item if isinstance(item, Picture) else read_picture(item, shape, resize=resize)
        for item in images
    ]


def _answer(
    scheme: Scheme,
    readings: list[Readings],
    registry: Directory | Candidates | KeySource | None,
    rate: float,
    solver: str,
    name: str,
    progress: Callable[[int, int], None] | None,
) -> Attribution:
    """The reading of each picture that stands, at a rate that counts them all."""
    count = len(readings[0].solution)
    attempts = np.zeros(count, int)
    for reading in readings:
        attempts[reading.rows] += 1
    # Of each picture: which reading's answer stands, the last one's where nobody is asked for.
    stands = np.zeros(count, int)
    best: dict[int, Verdict] = {}
    candidates = None if registry is None else candidates_of(registry)
    for place, reading in enumerate(readings):
        if candidates is None:
            finite = reading.solution.status != Status.NOT_FINITE
            stands[reading.rows[finite]] = place
            continue
        for tries in np.unique(attempts[reading.rows]):
            chosen = np.flatnonzero(attempts[reading.rows] == tries)
            answers = decide_among(
                reading.solution.take(chosen), candidates, levels=scheme.levels, code=scheme.code,
                max_noise_ratio=reading.limits[chosen], false_positive_rate=rate / int(tries),
                progress=progress,
            )  # fmt: skip
            for i, found in zip(chosen, answers, strict=True):
                row = int(reading.rows[i])
                found = _told(found, reading, int(i), int(tries))
                if row not in best or _stands(found, best[row]):
                    best[row], stands[row] = found, place
    verdicts = None if candidates is None else [best[row] for row in range(count)]
    solution = _standing(readings, stands)
    calibration = scheme.calibration
    return Attribution(
        read_keys(solution, scheme.code, scheme.levels),
        solution.soft_bits,
        solution.information,
        solution.residual,
        solution.status,
        solution,
        verdicts,
        name,
        solver,
        None if calibration is None else calibration.sha256,
    )


def _stands(later: Verdict, earlier: Verdict) -> bool:
    """Whether a later reading stands, which knows more of the picture: where neither finds a key,
    or it fits one as well."""
    found = (Reason.ATTRIBUTED, Reason.REVOKED)
    if later.reason not in found and earlier.reason not in found:
        return later.reason != Reason.NOT_FINITE
    return later.p_value <= earlier.p_value


def _told(verdict: Verdict, reading: Readings, i: int, attempts: int) -> Verdict:
    """A verdict with what is believed of the picture's history, and with all attempts counted."""
    explained, reason = verdict.explained, verdict.reason
    if reading.guessed[i] and verdict.user is None:
        # Any picture is explained by enough noise.
        explained = False
        if reason == Reason.NO_KEY_CLOSE_ENOUGH:
            reason = Reason.NOT_EXPLAINED
    return dataclasses.replace(
        verdict,
        p_value=min(1.0, verdict.p_value * attempts),
        explained=explained,
        reason=reason,
        history=reading.histories[i],
        attempts=attempts,
    )


def _standing(readings: list[Readings], stands: np.ndarray) -> Solution:
    """Of each picture, the solution of the reading that stands."""
    index = np.zeros(len(stands), int)
    begins = 0
    for place, reading in enumerate(readings):
        mine = stands[reading.rows] == place
        index[reading.rows[mine]] = begins + np.flatnonzero(mine)
        begins += len(reading.rows)
    return Solution.concatenate([reading.solution for reading in readings]).take(index)
