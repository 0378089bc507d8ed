"""A scheme: everything that is needed both to write keys into images and to read them back.

It binds a generator (by hash), a basis, the fingerprint directions, the strength and the levels;
what attribution learns about the generator (a linear start, the null distribution) is kept with it
in `extras`. A scheme is saved once and loaded bit-exactly in any later process.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import operator
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from fpjax.data.atomic import atomic_directory
from fpjax.fingerprint.basis import Basis
from fpjax.fingerprint.keys import Levels, check_keys, to_levels
from fpjax.models.checkpoint import CheckpointFormatError, canonical_json, load_tensors
from fpjax.models.generator import Generator, load_generator

Array = jax.Array
NoiseMode = Literal["const", "none"]

FORMAT_VERSION = 1


class SchemeError(ValueError):
    """A scheme that is damaged, of a newer format, or of another generator."""


@dataclasses.dataclass(frozen=True, eq=False)
class Scheme:
    """Where and how strongly keys are written.

    Attributes:
      generator: what makes the images.
      basis: principal directions of its latents.
      key_length: bits L of a key.
      shift: index of the first fingerprint direction; V = components[shift : shift + L].
      strength: sigma, the size of the shift in latent units.
      levels: "binary" writes bits as {0, 1}, "antipodal" as {-1, +1}.
      noise: noise mode that images are generated and inverted with.
      code: how a user's identity becomes bits; "independent" means random bits.
      extras: named arrays that attribution adds, such as its linear start.
      notes: named JSON values beside them, such as calibrated thresholds.
    """

    generator: Generator
    basis: Basis
    key_length: int
    shift: int
    strength: float
    levels: Levels = "binary"
    noise: NoiseMode = "const"
    code: str = "independent"
    extras: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        # NumPy's numbers would not go into JSON.
        object.__setattr__(self, "key_length", operator.index(self.key_length))
        object.__setattr__(self, "shift", operator.index(self.shift))
        object.__setattr__(self, "strength", float(self.strength))
        directions = len(self.basis)
        if self.key_length < 1 or self.shift < 0 or self.shift + self.key_length > directions:
            raise ValueError(
                f"key length {self.key_length} at shift {self.shift} needs components "
                f"{self.shift}..{self.shift + self.key_length - 1}; the basis has {directions}"
            )
        if not (np.isfinite(self.strength) and self.strength > 0):
            raise ValueError(f"strength {self.strength}: expected a positive number")
        if self.levels not in ("binary", "antipodal"):
            raise ValueError(f"levels {self.levels!r}: choose 'binary' or 'antipodal'")
        if self.noise not in ("const", "none"):
            raise ValueError(f"noise {self.noise!r}: choose 'const' or 'none'")
        if self.code != "independent":
            raise ValueError(f"code {self.code!r}: this fpjax knows 'independent'")
        size = int(np.prod(self.generator.latent_shape))
        if self.basis.dimension != size:
            raise ValueError(
                f"the basis is of latents with {self.basis.dimension} values, the generator's have "
                f"{size}"
            )

    @classmethod
    def create(
        cls,
        generator: Generator,
        basis: Basis,
        key_length: int = 64,
        shift: int | None = None,
        strength: float = 1.0,
        levels: Levels = "binary",
        noise: NoiseMode = "const",
    ) -> Scheme:
        """Makes a scheme; by default the key takes the last directions of the basis.

        Args:
          generator: what makes the images.
          basis: principal directions of its latents.
          key_length: bits of a key.
          shift: index of the first fingerprint direction.
          strength: sigma, in latent units.
          levels: "binary" or "antipodal".
          noise: "const" or "none".

        Raises:
          ValueError: saying what does not fit.
        """
        shift = len(basis) - key_length if shift is None else shift
        return cls(generator, basis, key_length, shift, float(strength), levels, noise)

    @functools.cached_property
    def _masks(self) -> tuple[np.ndarray, np.ndarray]:
        key = np.arange(self.shift, self.shift + self.key_length)
        return np.setdiff1d(np.arange(len(self.basis)), key), key

    @property
    def alpha_indices(self) -> np.ndarray:
        """Components that are free to vary, U's rows: (K - L,)."""
        return self._masks[0]

    @property
    def key_indices(self) -> np.ndarray:
        """Components that carry the key, V's rows: (L,)."""
        return self._masks[1]

    @property
    def alpha_std(self) -> np.ndarray:
        """Standard deviations of alpha, (K - L,)."""
        return self.basis.std[self.alpha_indices]

    @functools.cached_property
    def id(self) -> str:
        """Hash of all that decides how keys are written (not of `extras`); names a registry's."""
        header = self._header()
        del header["generator_name"]  # a name may differ between machines, the hash does not
        digest = hashlib.sha256(canonical_json(header).encode())
        for array in (self.basis.mean, self.basis.components, self.basis.std):
            digest.update(np.ascontiguousarray(array, "<f4").tobytes())
        return digest.hexdigest()

    def _header(self) -> dict[str, Any]:
        return {
            "generator_name": self.generator.name,
            "generator_sha256": self.generator.sha256,
            "key_length": self.key_length,
            "shift": self.shift,
            "strength": self.strength,
            "levels": self.levels,
            "noise": self.noise,
            "code": self.code,
            "basis_num_samples": self.basis.num_samples,
        }

    def replace(self, **changes) -> Scheme:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def project(self, latents: Array) -> Array:
        """alpha = U (w - mean): natural latents (B, *latent_shape) -> (B, K - L)."""
        flat = jnp.asarray(latents).reshape(latents.shape[0], -1)
        return (flat - self.basis.mean) @ jnp.asarray(self.basis.components[self.alpha_indices].T)

    def embed(self, alpha: Array, keys) -> Array:
        """w_key = mean + U^T alpha + sigma V^T key.

        Args:
          alpha: (B, K - L).
          keys: (B, L) bits.

        Returns:
          Latents (B, *latent_shape).

        Raises:
          ValueError: if the keys are not (B, L) bits.
        """
        keys = check_keys(keys, self.key_length)
        if len(keys) != alpha.shape[0]:
            raise ValueError(f"{len(keys)} keys for {alpha.shape[0]} latents")
        return self.latents_of(alpha, jnp.asarray(to_levels(keys, self.levels)))

    def latents_of(self, alpha: Array, levels: Array) -> Array:
        """Latents of alpha (B, K - L) and real-valued levels (B, L); differentiable in both."""
        components = jnp.asarray(self.basis.components)
        flat = (
            jnp.asarray(self.basis.mean)
            + alpha @ components[self.alpha_indices]
            + self.strength * (levels @ components[self.key_indices])
        )
        return flat.reshape(alpha.shape[0], *self.generator.latent_shape)

    def decode(self, params, latents: Array) -> Array:
        """Images of latents in the scheme's noise mode; pure, for use under jit."""
        return self.generator.decode(params, latents, noise=self.noise)

    def save(self, path: str | os.PathLike) -> None:
        """Writes a folder (`scheme.json`, `scheme.safetensors`), atomically.

        Raises:
          FileExistsError: if it exists already.
        """
        from safetensors.numpy import save_file

        arrays = {
            "basis/mean": self.basis.mean,
            "basis/components": self.basis.components,
            "basis/std": self.basis.std,
        }
        arrays |= {f"extras/{name}": np.asarray(array) for name, array in self.extras.items()}
        header = {"format_version": FORMAT_VERSION, "scheme_id": self.id, **self._header()}
        header["notes"] = dict(self.notes)
        header["extras_sha256"] = _extras_sha256(self.extras, self.notes)
        with atomic_directory(path) as folder:
            text = json.dumps(header, indent=2, allow_nan=False) + "\n"
            (folder / "scheme.json").write_text(text, "utf-8")
            save_file(
                {name: np.array(array, order="C") for name, array in arrays.items()},
                folder / "scheme.safetensors",
            )

    @classmethod
    def load(cls, path: str | os.PathLike, generator: Generator | None = None) -> Scheme:
        """Opens a saved scheme.

        Args:
          path: the folder.
          generator: the generator it belongs to; by default the bundled one of the recorded name.

        Raises:
          SchemeError: if the folder is no scheme, damaged, or of another generator.
        """
        path = Path(path)
        header = _read_header(path)
        if generator is None:
            try:
                generator = load_generator(header["generator_name"])
            except ValueError as error:
                raise SchemeError(
                    f"{path}: made for generator {header['generator_name']!r}, which is not "
                    "bundled; say where it is"
                ) from error
        if header["generator_sha256"] != generator.sha256:
            raise SchemeError(
                f"{path}: made for generator {header['generator_name']!r} with SHA-256 "
                f"{header['generator_sha256']}, but {generator.name!r} has {generator.sha256}"
            )
        try:
            arrays = load_tensors(path / "scheme.safetensors")
            basis = Basis(
                arrays["basis/mean"],
                arrays["basis/components"],
                arrays["basis/std"],
                header["basis_num_samples"],
            )
            scheme = cls(
                generator,
                basis,
                *(header[name] for name in ("key_length", "shift", "strength", "levels")),
                *(header[name] for name in ("noise", "code")),
                extras={
                    name.removeprefix("extras/"): array
                    for name, array in arrays.items()
                    if name.startswith("extras/")
                },
                notes=header.get("notes", {}),
            )
        except (CheckpointFormatError, KeyError, TypeError, ValueError) as error:
            raise SchemeError(f"{path}: damaged ({error})") from error
        if scheme.id != header["scheme_id"]:
            raise SchemeError(f"{path}: damaged (its contents do not give its recorded identity)")
        if _extras_sha256(scheme.extras, scheme.notes) != header.get("extras_sha256"):
            raise SchemeError(f"{path}: damaged (its calibration is not the recorded one)")
        return scheme


def _extras_sha256(extras: Mapping[str, np.ndarray], notes: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(canonical_json(notes).encode())
    for name in sorted(extras):
        array = np.asarray(extras[name])
        array = array.astype(array.dtype.newbyteorder("<"))
        digest.update(canonical_json([name, list(array.shape), array.dtype.str]).encode())
        digest.update(np.array(array, order="C").tobytes())
    return digest.hexdigest()


def _read_header(path: Path) -> dict[str, Any]:
    file = path / "scheme.json"
    try:
        header = json.loads(file.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise SchemeError(f"{path}: no scheme.json, so this is no scheme") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise SchemeError(f"{file}: damaged ({error})") from error
    if not isinstance(header, dict) or "format_version" not in header:
        raise SchemeError(f"{file}: not the description of a scheme")
    if header["format_version"] != FORMAT_VERSION:
        raise SchemeError(
            f"{file}: format version {header['format_version']}, this fpjax reads {FORMAT_VERSION}"
        )
    missing = {"generator_name", "generator_sha256", "basis_num_samples", "scheme_id"} - set(header)
    if missing:
        raise SchemeError(f"{file}: damaged ({', '.join(sorted(missing))} missing)")
    return header


def load_scheme(name_or_path: str | os.PathLike, generator: Generator | None = None) -> Scheme:
    """Opens the ready-made scheme of a bundled generator by its name, or a saved scheme's folder.

    Args:
      name_or_path: "avatars-stylegan2", or a folder.
      generator: the generator the scheme belongs to, where it is not a bundled one.

    Raises:
      SchemeError: if the folder is no scheme, damaged, or of another generator.

    >>> load_scheme("avatars-stylegan2").key_length
    64
    """
    from fpjax import zoo

    text = os.fspath(name_or_path)
    return Scheme.load(zoo.scheme_path(text) if text in zoo.names() else text, generator)


@dataclasses.dataclass(frozen=True, eq=False)
class Generated:
    """What `generate` returns.

    Attributes:
      images: (B, R, R, 3) float32 in [-1, 1].
      latents: (B, *latent_shape).
      originals: images of the same latents without the key, None for sampled alpha.
      alpha: (B, K - L).
      keys: (B, L) uint8.
    """

    images: Array
    latents: Array
    originals: Array | None
    alpha: Array
    keys: np.ndarray


@functools.lru_cache(maxsize=16)
def _decoder(scheme: Scheme):
    return jax.jit(lambda params, latents: jnp.clip(scheme.decode(params, latents), -1, 1))


def decode_images(scheme: Scheme, latents: Array, batch: int = 64) -> Array:
    """Images (N, R, R, 3) in [-1, 1] of latents, a batch at a time through one program."""
    decode, count = _decoder(scheme), latents.shape[0]
    batch = min(batch, count)
    padding = -count % batch
    padded = jnp.concatenate([latents, latents[:1].repeat(padding, axis=0)])
    parts = [
        decode(scheme.generator.params, padded[i : i + batch])
        for i in range(0, count + padding, batch)
    ]
    return jnp.concatenate(parts)[:count]


def generate(
    scheme: Scheme,
    key: Array,
    keys,
    *,
    alpha: Literal["projected", "sampled"] = "projected",
) -> Generated:
    """Generates one image for each key.

    Args:
      scheme: where keys are written.
      key: PRNG key of the latents.
      keys: (B, L) bits.
      alpha: "projected" takes a natural latent's coordinates, so that the image stays what the
        generator would have made; "sampled" draws N(0, std^2), as the published code does.

    Returns:
      The `Generated` images.

    Raises:
      ValueError: if the keys are not (B, L) bits.
    """
    keys = check_keys(keys, scheme.key_length)
    if len(keys) == 0:
        raise ValueError("no keys: one image is generated for each key")
    generator, originals = scheme.generator, None
    if alpha == "projected":
        natural = generator.sample_latents(generator.params, key, len(keys))
        originals = decode_images(scheme, natural)
        coordinates = scheme.project(natural)
    elif alpha == "sampled":
        shape = (len(keys), len(scheme.alpha_indices))
        coordinates = jax.random.normal(key, shape) * scheme.alpha_std
    else:
        raise ValueError(f"alpha {alpha!r}: choose 'projected' or 'sampled'")
    latents = scheme.embed(coordinates, keys)
    images = decode_images(scheme, latents)
    return Generated(images, latents, originals, coordinates, keys)
