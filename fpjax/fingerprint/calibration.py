"""What calibration learns about a scheme, as typed values with a header and a hash of their own.

No false-positive rate depends on any of it. A start changes what an inversion costs, the reference
residual is evidence that is reported, and an encoder's errors say what its readings are worth.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from fpjax.errors import FpjaxError
from fpjax.models.checkpoint import CheckpointFormatError, canonical_json, load_tensors

FORMAT_VERSION = 2
FORMAT_VERSION_WITH_ENCODER = 3
FORMAT_VERSION_WITH_FIRST_RATIO = 4
_READABLE = (1, FORMAT_VERSION, FORMAT_VERSION_WITH_ENCODER, FORMAT_VERSION_WITH_FIRST_RATIO)
_HEADER, _ARRAYS = "calibration.json", "calibration.safetensors"
_ENCODER_ARRAYS = ("gain", "offset", "covariance")
_ENCODER_VALUES = ("scheme_id", "num_images", "observation", "rereadings")

MOST_REREADINGS = 1000


class CalibrationError(FpjaxError, ValueError):
    """A calibration that is missing, damaged, or of a newer format."""


@dataclasses.dataclass(frozen=True, eq=False)
class LinearStart:
    """Ridge regression from low-pass pixels to the unknowns of an inversion, and back.

    Attributes:
      weight: (F, K) float16; half precision is ample for a start.
      bias: (K,) float32. K coordinates, alpha first, then symbols.
      forward: (K, F) float16, how the pixels follow the unknowns on average over natural images;
        None in calibrations of format 1, whose inversions cost about one Jacobian more.
    """

    weight: np.ndarray
    bias: np.ndarray
    forward: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class EncoderErrors:
    """What a generator's encoder reads of a scheme's symbols: r = gain k + offset + e.

    Attributes:
      scheme_id: of the scheme that it was measured for.
      gain: (L, L) float64.
      offset: (L,) float64.
      covariance: (L, L) float64, of the errors e, which are taken to be normal.
      num_images: files that it was measured on.
      observation: name of the observation that they were seen through.
      rereadings: how often a file's reading was decoded and read again; 0 is one pass alone.

    Raises:
      ValueError: for arrays of other shapes, values that are not finite, a covariance that is none,
        or too few images.

    >>> errors = EncoderErrors("", np.eye(2), np.zeros(2), np.eye(2) / 4, 10_000, "rounded-8bit", 0)
    >>> np.diag(errors.information).round(2).tolist()  # 1 / variance
    [4.0, 4.0]
    """

    scheme_id: str
    gain: np.ndarray
    offset: np.ndarray
    covariance: np.ndarray
    num_images: int
    observation: str
    rereadings: int

    def __post_init__(self):
        length = len(self.offset)
        shapes = (self.gain.shape, self.offset.shape, self.covariance.shape)
        if shapes != ((length, length), (length,), (length, length)):
            raise ValueError(f"gain, offset and covariance of an encoder have shapes {shapes}")
        if not all(np.isfinite(x).all() for x in (self.gain, self.offset, self.covariance)):
            raise ValueError("gain, offset and covariance of an encoder are not finite")
        if not isinstance(self.num_images, int) or self.num_images <= 2 * length + 3:
            raise ValueError(f"an encoder's errors in {length} symbols from too few images")
        if not isinstance(self.rereadings, int) or not 0 <= self.rereadings <= MOST_REREADINGS:
            raise ValueError(f"rereadings: expected 0 to {MOST_REREADINGS}")
        try:
            np.linalg.cholesky(self.covariance)
        except np.linalg.LinAlgError:
            raise ValueError("the covariance of an encoder's errors is none") from None

    @property
    def share(self) -> float:
        """Share of the estimate's inverse covariance that is to be believed, of so many files:
        the inverse of a sample covariance is too large (Hartlap et al. 2007)."""
        length = len(self.offset)
        return (self.num_images - 2 * length - 3) / (self.num_images - length - 1)

    @property
    def information(self) -> np.ndarray:
        """S of every image, (L, L) float64: gain^T covariance^-1 gain, by its believed share."""
        return self.share * self.gain.T @ np.linalg.solve(self.covariance, self.gain)


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
    """What was learned about a scheme, and how.

    Attributes:
      start: where inversions start; None where they start from the generator's encoder.
      observation: name of the observation that images were seen through.
      solver: name of the solver that inverted them; "encoder" where the encoder alone read them.
      max_noise_ratio: residual up to which a file counts as explained by the generator, in units of
        the observation's noise; for an encoder the error of its reading, in units of the usual.
      own_noise_ratio: largest such residual of the generator's own files with keys.
      num_start_images, num_inverted_images: what the start was fitted on; what was read.
      encoder: what the encoder's readings are worth, where it was measured.
      first_noise_ratio: largest residual of those files that were solved after one Jacobian from
        the start, in units of the observation's noise: what leaves many times as much is given up
        there. None where the solver takes none, and before format 4.

    Raises:
      ValueError: for a residual that is no positive number.

    >>> start = LinearStart(np.zeros((4, 2), np.float16), np.zeros(2, np.float32))
    >>> len(Calibration(start, "rounded-8bit", "levenberg-marquardt", 1.5, 1.0, 200, 4).sha256)
    64
    """

    start: LinearStart | None
    observation: str
    solver: str
    max_noise_ratio: float
    own_noise_ratio: float
    num_start_images: int
    num_inverted_images: int
    encoder: EncoderErrors | None = None
    first_noise_ratio: float | None = None

    def __post_init__(self):
        ratios = {"max_noise_ratio": self.max_noise_ratio, "own_noise_ratio": self.own_noise_ratio}
        if self.first_noise_ratio is not None:
            ratios["first_noise_ratio"] = self.first_noise_ratio
        for name, value in ratios.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0 < value <= 1e30:
                raise ValueError(
                    f"{name} of a calibration: {value!r:.40}, expected a number above 0"
                )

    @property
    def sha256(self) -> str:
        """Hash of all of it; answers report it."""
        digest = hashlib.sha256(canonical_json(self._header()).encode())
        for name, array in self._arrays().items():
            digest.update(canonical_json([name, list(array.shape), array.dtype.str]).encode())
            digest.update(array.tobytes())
        return digest.hexdigest()

    def _header(self) -> dict[str, Any]:
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del values["start"], values["encoder"]
        if self.first_noise_ratio is None:
            del values["first_noise_ratio"]  # hashes of earlier formats stay
        if self.encoder is not None:
            values["encoder"] = {name: getattr(self.encoder, name) for name in _ENCODER_VALUES}
        return values

    def _arrays(self) -> dict[str, np.ndarray]:
        arrays = {}
        if self.start is not None:
            arrays["start/weight"] = np.ascontiguousarray(self.start.weight, "<f2")
            arrays["start/bias"] = np.ascontiguousarray(self.start.bias, "<f4")
            if self.start.forward is not None:
                arrays["start/forward"] = np.ascontiguousarray(self.start.forward, "<f2")
        if self.encoder is not None:
            for name in _ENCODER_ARRAYS:
                value = getattr(self.encoder, name)
                arrays[f"encoder/{name}"] = np.ascontiguousarray(value, "<f8")
        return arrays

    def write(self, folder: Path) -> None:
        """Writes its two files into a scheme's folder."""
        from safetensors.numpy import save_file

        old = self.start is not None and self.start.forward is None
        version = 1 if old else FORMAT_VERSION
        if self.encoder is not None:
            version = FORMAT_VERSION_WITH_ENCODER
        if self.first_noise_ratio is not None:
            version = FORMAT_VERSION_WITH_FIRST_RATIO
        header = {"format_version": version, "sha256": self.sha256, **self._header()}
        text = json.dumps(header, indent=2, allow_nan=False) + "\n"
        (folder / _HEADER).write_text(text, "utf-8")
        save_file(self._arrays(), folder / _ARRAYS)

    @classmethod
    def read(cls, folder: Path) -> Calibration | None:
        """The calibration in a scheme's folder, or None where there is none.

        Raises:
          CalibrationError: if it is damaged or of a newer format.
        """
        file = folder / _HEADER
        try:
            header = json.loads(file.read_text("utf-8"))
        except FileNotFoundError:
            return None
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise CalibrationError(f"{file}: damaged ({error})") from error
        if not isinstance(header, dict) or "format_version" not in header:
            raise CalibrationError(f"{file}: not the header of a calibration")
        if (version := header.pop("format_version")) not in _READABLE:
            raise CalibrationError(
                f"{file}: format version {version!r:.20}, this fpjax reads up to {max(_READABLE)}"
            )
        recorded = header.pop("sha256", None)
        try:
            arrays = load_tensors(folder / _ARRAYS)
            start = encoder = None
            if (values := header.pop("encoder", None)) is not None:
                parts = {name: arrays[f"encoder/{name}"] for name in _ENCODER_ARRAYS}
                encoder = EncoderErrors(**parts, **values)
            if "start/weight" in arrays or header.get("num_start_images") != 0:
                forward = arrays.get("start/forward")
                start = LinearStart(arrays["start/weight"], arrays["start/bias"], forward)
            found = cls(start=start, encoder=encoder, **header)
            fits = found.sha256 == recorded
        except (CheckpointFormatError, KeyError, TypeError, ValueError) as error:
            raise CalibrationError(f"{file}: damaged ({error})") from error
        if not fits:
            raise CalibrationError(f"{file}: damaged (its contents do not give its recorded hash)")
        return found

    @classmethod
    def of_version_1(
        cls, arrays: dict[str, np.ndarray], notes: dict[str, Any]
    ) -> Calibration | None:
        """What the first version of fpjax kept in a scheme, or None where it kept nothing."""
        if "extras/linear_start/weight" not in arrays:
            return None
        measured = notes.get("calibration", {})
        return cls(
            LinearStart(arrays["extras/linear_start/weight"], arrays["extras/linear_start/bias"]),
            observation="rounded-8bit",
            solver="levenberg-marquardt",
            max_noise_ratio=float(measured.get("max_noise_ratio", 3.0)),
            own_noise_ratio=float(measured.get("natural_noise_ratio_max", 1.0)),
            num_start_images=int(measured.get("num_start_images", 0)),
            num_inverted_images=int(measured.get("num_null_images", 0)),
        )
