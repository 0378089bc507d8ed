"""A scheme: everything that is needed both to write keys into images and to read them back.

It binds a generator (by hash), a basis, the fingerprint directions, the strength and the levels,
and carries what calibration learned. It is a pytree: arrays and the strength are leaves, so that
another value of them compiles nothing. Files are in `scheme_files.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import operator
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from fpjax.errors import InputError
from fpjax.fingerprint.basis import Basis
from fpjax.fingerprint.block_basis import BlockBasis
from fpjax.fingerprint.calibration import Calibration
from fpjax.fingerprint.codes import Code, IndependentBits, code_named
from fpjax.fingerprint.keys import Levels, check_keys, to_symbols
from fpjax.fingerprint.rotation import rotated, secret_rotation
from fpjax.fingerprint.scheme_files import open_scheme, save_scheme
from fpjax.models.checkpoint import canonical_json
from fpjax.models.generator import Generator, static
from fpjax.precision import full_precision

Array = jax.Array

LEFT_OUT_PSNR = 50.0
"""Decibels, by the image metric, between natural images and those whose latents keep the mean along
the directions that `Scheme.create` leaves out."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Scheme:
    """Where and how strongly keys are written. Made by `Scheme.create` or `fpjax.load_scheme`.

    Attributes:
      generator: what makes the images.
      basis: directions of its latents that are in use; latents keep the mean along all others.
      strength: sigma, the size of the shift: along each fingerprint direction the latent moves by
        `strength * symbol`.
      key_length: bits of a user's key.
      shift: index of the first fingerprint direction; V = directions[shift : shift + L], L being
        `num_symbols`.
      levels: "binary" writes symbols as {0, 1}, "antipodal" as {-1, +1}.
      code: turns a key's bits into L symbols; None writes each bit as a symbol of its own.
      calibration: what was learned about the scheme, or None.

    >>> import fpjax
    >>> from fpjax.models.linear import linear_generator
    >>> generator = linear_generator()
    >>> basis = fpjax.fit_basis(generator, jax.random.key(0), 100, metric="latent")
    >>> scheme = fpjax.Scheme.create(generator, basis, key_length=4, strength=0.5)
    >>> scheme.num_alpha, scheme.shift, len(scheme.id)
    (12, 12, 64)
    """

    generator: Generator
    basis: Basis | BlockBasis
    strength: Array | float
    key_length: int = static()
    shift: int = static()
    levels: Levels = static(default="antipodal")
    code: Code | None = static(default=None)
    calibration: Calibration | None = static(default=None)

    @classmethod
    def create(
        cls,
        generator: Generator,
        basis: Basis | BlockBasis,
        key_length: int | None = None,
        shift: int | None = None,
        strength: float | None = None,
        levels: Levels = "antipodal",
        code: Code | str | None = None,
        *,
        keep_all: bool = False,
        rotate: bool = False,
    ) -> Scheme:
        """Makes a scheme; by default the key takes the last directions of the basis.

        Args:
          generator: what makes the images.
          basis: directions of its latents.
          key_length: bits of a user's key; by default 64, or what the code carries.
          shift: index of the first fingerprint direction.
          strength: sigma, in the basis's units (`Basis.std`); by default 1, as published, and in
            the image metric, where a symbol changes the image by `strength`, what gives about 40 dB
            of PSNR between original and fingerprinted.
          levels: "antipodal" or "binary" (published).
          code: None for a symbol a bit; a `Code`; or a name as `code_named` takes it, such as
            "bch-63-45", which draws the secret mask of a new scheme.
          keep_all: keep directions along which natural images hardly vary. By default, in the image
            metric, as many of the last ones are left out as change natural images by no more than
            `LEFT_OUT_PSNR` in all: each costs the inversion time, and embedding sets them to their
            mean.
          rotate: turn the fingerprint directions by a secret random rotation among themselves, so
            that who fits the basis again knows their span, but not the directions of symbols.

        Raises:
          InputError: saying what does not fit.
        """
        code, key_length = _chosen_code(code, key_length)
        length = key_length if code is None else code.num_symbols
        directions = len(basis)
        shift = directions - length if shift is None else operator.index(shift)
        if length < 1 or shift < 0 or shift + length > directions:
            raise InputError(
                f"{length} symbols (key length {key_length}) at shift {shift} need directions "
                f"{shift}..{shift + length - 1}; the basis has {directions}"
            )
        pixels = math.prod(generator.image_shape)
        if strength is None:
            strength = 1.0
            if basis.metric == "image":
                # The mean squared change is L strength^2 / pixels, half of it for levels {0, 1}.
                share = 1.0 if levels == "antipodal" else 0.5
                strength = math.sqrt(4e-4 * pixels / (share * length))
        strength = float(strength)
        if not (math.isfinite(strength) and strength > 0):
            raise InputError(f"strength {strength}: expected a positive number")
        if levels not in ("binary", "antipodal"):
            raise InputError(f"levels {levels!r}: choose 'binary' or 'antipodal'")
        if basis.dimension != generator.latent_size:
            raise InputError(
                f"the basis is of latents with {basis.dimension} values, the generator's have "
                f"{generator.latent_size}"
            )
        if basis.metric == "image" and not keep_all:
            rows = np.arange(directions)
            fingerprint = (rows >= shift) & (rows < shift + length)
            energy = np.where(fingerprint, 0, basis.std.astype(np.float64) ** 2)
            left_out = np.cumsum(energy[::-1])[::-1]
            rows = rows[fingerprint | (left_out > 4 * 10 ** (-LEFT_OUT_PSNR / 10) * pixels)]
            shift = int(np.searchsorted(rows, shift))
            if len(rows) < directions:
                basis = basis.select(rows)
        if rotate:
            if isinstance(basis, BlockBasis):
                raise InputError("a basis in blocks has no secret rotation: each block is its own")
            basis = rotated(basis, shift, secret_rotation(length))
        return cls(generator, basis, strength, key_length, shift, levels, code)

    @property
    def num_symbols(self) -> int:
        """Fingerprint directions, L: a symbol each, which without a code is a bit each."""
        return self.key_length if self.code is None else self.code.num_symbols

    @property
    def num_alpha(self) -> int:
        """Directions that are free to vary, U's rows: K - L."""
        return len(self.basis) - self.num_symbols

    def split(self, rows: Any) -> tuple[Any, Any]:
        """U's and V's part of rows, one a direction: (K, ...) -> (K - L, ...), (L, ...).

        >>> scheme = Scheme(None, None, 1.0, key_length=1, shift=1)
        >>> alpha, symbols = scheme.split(np.array([7, 8, 9]))
        >>> alpha.tolist(), symbols.tolist()
        ([7, 9], [8])
        """
        stack = np if isinstance(rows, np.ndarray) else jnp
        first, last = self.shift, self.shift + self.num_symbols
        return stack.concatenate([rows[:first], rows[last:]]), rows[first:last]

    def join(self, alpha: Any, symbols: Any) -> Any:
        """The inverse of `split` along the last axis: (B, K - L), (B, L) -> (B, K).

        >>> scheme = Scheme(None, None, 1.0, key_length=1, shift=1)
        >>> scheme.join(jnp.array([[7, 9]]), jnp.array([[8]])).tolist()
        [[7, 8, 9]]
        """
        first = self.shift
        return jnp.concatenate([alpha[:, :first], symbols, alpha[:, first:]], axis=1)

    @property
    def alpha_std(self):
        """Natural standard deviations of alpha, (K - L,)."""
        return self.split(self.basis.std)[0]

    @functools.cached_property
    def id(self) -> str:
        """Hash of all that decides how keys are written (not of `calibration`)."""
        header = self.header()
        del header["generator_name"]  # a name may differ between machines, the hash does not
        digest = hashlib.sha256(canonical_json(header).encode())
        for array in self.basis.arrays().values():
            kind = "<f4" if np.issubdtype(array.dtype, np.floating) else "<i4"
            digest.update(np.ascontiguousarray(array, kind).tobytes())
        return digest.hexdigest()

    def header(self) -> dict[str, Any]:
        """What identifies the scheme beside its arrays, as JSON values."""
        header = {
            "generator_name": self.generator.name,
            "generator_sha256": self.generator.sha256,
            "key_length": self.key_length,
            "shift": self.shift,
            "strength": float(self.strength),
            "levels": self.levels,
            "noise": self.generator.noise,
            "code": "independent" if self.code is None else self.code.to_json(),
            "basis_num_samples": self.basis.num_samples,
        }
        if self.basis.metric != "latent":
            header["basis_metric"] = self.basis.metric
        if isinstance(self.basis, BlockBasis):
            header["basis_transform"] = self.basis.transform
            header["basis_grid"] = list(self.basis.grid)
        return header

    def replace(self, **changes) -> Scheme:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    @full_precision
    def project(self, latents: Float[Array, "batch ..."]) -> Float[Array, "batch coordinates"]:
        """alpha = dual_U (w - mean): natural latents (B, *latent_shape) -> (B, K - L)."""
        flat = jnp.asarray(latents).reshape(latents.shape[0], -1)
        if isinstance(self.basis, BlockBasis):
            return self.split(self.basis.coordinates(flat).T)[0].T
        return (flat - jnp.asarray(self.basis.mean)[None]) @ self.split(
            jnp.asarray(self.basis.dual)
        )[0].T

    @full_precision
    def read(
        self, latents: Float[Array, "batch ..."]
    ) -> tuple[Float[Array, "batch coordinates"], Float[Array, "batch symbols"]]:
        """The inverse of `latents_of`: alpha (B, K - L) and real-valued symbols (B, L)."""
        flat = jnp.asarray(latents).reshape(latents.shape[0], -1)
        if isinstance(self.basis, BlockBasis):
            coordinates = self.basis.coordinates(flat)
        else:
            flat = flat - jnp.asarray(self.basis.mean)[None]
            coordinates = flat @ jnp.asarray(self.basis.dual).T
        alpha, symbols = self.split(coordinates.T)
        return alpha.T, symbols.T / jnp.asarray(self.strength, jnp.float32)

    def embed(
        self, alpha: Float[Array, "batch coordinates"], keys: Any
    ) -> Float[Array, "batch ..."]:
        """w_key = mean + U^T alpha + sigma V^T symbols.

        Args:
          alpha: (B, K - L).
          keys: (B, key_length) bits.

        Returns:
          Latents (B, *latent_shape).

        Raises:
          InputError: if the keys are not (B, key_length) bits.
        """
        symbols = self.symbols_of(keys)
        if len(symbols) != alpha.shape[0]:
            raise InputError(f"{len(symbols)} keys for {alpha.shape[0]} latents")
        return self.latents_of(alpha, jnp.asarray(symbols))

    def words_of(self, keys: Any) -> np.ndarray:
        """Words (N, L) uint8 of keys (N, key_length): bits of the symbols, before their levels.

        Raises:
          InputError: if the keys are not (N, key_length) bits.
        """
        keys = check_keys(keys, self.key_length)
        return keys if self.code is None else self.code.encode(keys)

    def symbols_of(self, keys: Any) -> np.ndarray:
        """Symbols (N, L) float32 of keys (N, key_length), in the scheme's levels.

        Raises:
          InputError: if the keys are not (N, key_length) bits.
        """
        return to_symbols(self.words_of(keys), self.levels)

    @full_precision
    def latents_of(
        self,
        alpha: Float[Array, "batch coordinates"],
        symbols: Float[Array, "batch symbols"],
    ) -> Float[Array, "batch ..."]:
        """Latents of alpha (B, K - L) and real-valued symbols (B, L); differentiable in both."""
        strength = jnp.asarray(self.strength, jnp.float32)
        if isinstance(self.basis, BlockBasis):
            flat = self.basis.latents(self.join(alpha, strength * symbols))
            return flat.reshape(alpha.shape[0], *self.generator.latent_shape)
        free, fingerprint = self.split(jnp.asarray(self.basis.directions))
        flat = (
            jnp.asarray(self.basis.mean)[None] + alpha @ free + strength * (symbols @ fingerprint)
        )
        return flat.reshape(alpha.shape[0], *self.generator.latent_shape)

    def decode(
        self, latents: Float[Array, "batch ..."]
    ) -> Float[Array, "batch height width channels"]:
        """Images (B, *image_shape) of latents, not clipped."""
        return self.generator.decode(self.generator.params, latents)

    def without_calibration(self) -> Scheme:
        """What compiled programs take: symbols alone; calibration and code are for the host."""
        if self.calibration is None and self.code is None:
            return self
        return self.replace(calibration=None, code=None, key_length=self.num_symbols)

    def save(self, path: str | os.PathLike) -> None:
        """Writes a folder that `Scheme.load` opens, atomically; see `scheme_files.save_scheme`."""
        save_scheme(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike, generator: Generator | None = None) -> Scheme:
        """Opens a saved scheme; see `scheme_files.open_scheme`."""
        return open_scheme(cls.create, path, generator)


def _chosen_code(code: Code | str | None, key_length: int | None) -> tuple[Code | None, int]:
    """The code, None for independent bits, and the bits of a key; or what does not fit."""
    length = None if key_length is None else operator.index(key_length)
    if isinstance(code, str):
        try:
            code = code_named(code)
        except ValueError as error:
            raise InputError(str(error)) from None
    if code is None:
        return None, 64 if length is None else length
    if length not in (None, code.payload_bits):
        raise InputError(
            f"key length {length}: the code {code.to_json()['code']} carries {code.payload_bits} "
            "bits; leave the key length out, or choose another code"
        )
    return (None if isinstance(code, IndependentBits) else code), code.payload_bits


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
    return Scheme.load(zoo.scheme_path(text) if text in zoo.scheme_names() else text, generator)
