"""Model copies to hand out: generators whose every image carries one key.

Embedding a projected latent is an affine map of it,

    w' = mean + (w - mean) dual_U^T U + sigma symbols V,

so a key can be made part of a generator's weights. Every layer of a StyleGAN2 reads w through an
affine layer of its own, which takes the map up: the copy is a plain StyleGAN2 that any program
runs, without the scheme. Other generators get a function before them.

The map comes last, after truncation and after styles are mixed: whatever w a layer is given, it
sees the key in it at full strength.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from fpjax.errors import InputError
from fpjax.fingerprint.block_basis import BlockBasis, Transform, from_blocks, to_blocks
from fpjax.fingerprint.keys import check_keys
from fpjax.fingerprint.scheme import Scheme
from fpjax.models.generator import Generator
from fpjax.models.stylegan2_generator import StyleGAN2Generator
from fpjax.precision import full_precision

Array = jax.Array

LICENCE_FIELDS = ("licence", "license", "licence_url", "license_url")
"""Of a generator's `info`, what its copies keep. The rest (hashes, file names, recipes) would tell
a copy's holder which other weights to compare theirs with."""

_COMPLETE = 1e-4
"""Largest relative error up to which a basis counts as complete, so that M = I - dual_V^T V."""


def issue_model(scheme: Scheme, key: ArrayLike) -> Generator:
    """A copy of the scheme's generator that writes this key into each of its images.

    Its images are those of `generate(scheme, ..., alpha="projected")` for the same natural latents.
    Neither its parameters nor its `info` hold the key, a code or a direction by itself; what they
    show when copies are compared is in `docs/security.md`.

    * A StyleGAN2 comes back as a plain one, for `save`. In noise mode "none" its noise strengths
      are 0, so that it adds no noise wherever it is run.
    * Any other generator comes back as a `Generator` that maps latents first; where the basis is in
      blocks, so is the map.

    Args:
      scheme: of the generator.
      key: (key_length,) bits.

    Raises:
      InputError: if the key is not one of `key_length` bits.

    >>> import fpjax
    >>> scheme = fpjax.load_scheme("avatars-stylegan2")
    >>> copy = issue_model(scheme, fpjax.secret_keys(1, scheme.key_length)[0])
    >>> copy.image_shape, copy.sha256 == scheme.generator.sha256
    ((32, 32, 3), False)
    """
    keys = check_keys(key, scheme.key_length)
    if len(keys) != 1:
        raise InputError(f"{len(keys)} keys: a copy carries one")
    symbols = scheme.symbols_of(keys)[0].astype(np.float64)
    if isinstance(scheme.basis, BlockBasis):
        return _wrapped_blocks(scheme, scheme.basis, symbols)
    rows = _Rows.of(scheme)
    offset = rows.mean - (rows.mean @ rows.dual_u.T) @ rows.u
    offset = offset + float(scheme.strength) * (symbols @ rows.v)
    if isinstance(scheme.generator, StyleGAN2Generator):
        return _folded(scheme.generator, rows.dual_u.T @ rows.u, offset)
    return _wrapped(scheme.generator, rows, offset)


@dataclasses.dataclass(frozen=True)
class _Rows:
    """A scheme's mean (D,) and its directions, (K - L, D) and (L, D), in double precision."""

    mean: np.ndarray
    u: np.ndarray
    v: np.ndarray
    dual_u: np.ndarray
    dual_v: np.ndarray

    @classmethod
    def of(cls, scheme: Scheme) -> _Rows:
        basis = scheme.basis
        mean, directions, dual = (
            np.asarray(jax.device_get(array), np.float64)
            for array in (basis.mean, basis.directions, basis.dual)
        )
        u, v = map(np.asarray, scheme.split(directions))
        dual_u, dual_v = map(np.asarray, scheme.split(dual))
        return cls(mean, u, v, dual_u, dual_v)


def _folded(
    generator: StyleGAN2Generator, matrix: np.ndarray, offset: np.ndarray
) -> StyleGAN2Generator:
    """The generator with w -> w @ matrix + offset taken up by the affine layer of every style.

    style = (w M + b) A g + c = w (M A) g + (c + g b A), where A is stored before the equalised
    learning rate's gain g = 1 / sqrt(D), and the bias c has none.
    """
    gain = 1 / math.sqrt(len(offset))

    def fold(layer: Mapping[str, Any]) -> dict[str, Any]:
        made = dict(layer)
        weight, bias = (
            np.asarray(jax.device_get(layer["affine"][name]), np.float64)
            for name in ("weight", "bias")
        )
        made["affine"] = {
            "weight": _stored(matrix @ weight),
            "bias": _stored(bias + gain * (offset @ weight)),
        }
        if generator.noise == "none" and "noise_strength" in made:
            made["noise_strength"] = _stored(np.zeros(()))
        return made

    blocks = {
        block: {
            name: fold(layer) if isinstance(layer, Mapping) else layer
            for name, layer in layers.items()
        }
        for block, layers in generator.params["synthesis"].items()
    }
    return StyleGAN2Generator.create(
        generator.name,
        generator.config,
        {**generator.params, "synthesis": blocks},
        {name: generator.info[name] for name in LICENCE_FIELDS if name in generator.info},
    )


def _stored(array: np.ndarray) -> Array:
    return jax.device_put(np.asarray(array, np.float32))


@dataclasses.dataclass(frozen=True)
class _Decode:
    """w' = offset + w M, then the generator; M or its complement I - M is left @ right."""

    decode: Callable[..., Array]
    complement: bool

    @full_precision
    def __call__(self, params, latents: Array, **options) -> Array:
        flat = latents.reshape(latents.shape[0], -1)
        mapped = (flat @ params["left"]) @ params["right"]
        mapped = flat - mapped if self.complement else mapped
        mapped = mapped + params["offset"][None]
        return self.decode(params["generator"], mapped.reshape(latents.shape), **options)


@dataclasses.dataclass(frozen=True)
class _DecodeBlocks:
    """z' = offset + z M, then the generator; M is one small matrix for each block."""

    decode: Callable[..., Array]
    transform: Transform
    grid: tuple[int, int, int]

    @full_precision
    def __call__(self, params, latents: Array, **options) -> Array:
        flat = latents.reshape(latents.shape[0], -1)
        values = to_blocks(self.transform, self.grid, flat)
        values = jnp.einsum("bns,nst->bnt", values, params["matrices"])
        mapped = params["offset"][None] + from_blocks(self.transform, self.grid, values)
        return self.decode(params["generator"], mapped.reshape(latents.shape), **options)


@dataclasses.dataclass(frozen=True)
class _Inner:
    """A function of the generator inside."""

    function: Callable[..., Array]

    def __call__(self, params, *arguments, **options) -> Array:
        return self.function(params["generator"], *arguments, **options)


def _wrapped(generator: Generator, rows: _Rows, offset: np.ndarray) -> Generator:
    """The generator behind w -> w @ M + offset, without a D x D matrix where D is large."""
    complement = _is_complete(rows)
    factors = (rows.dual_v, rows.v) if complement else (rows.dual_u, rows.u)
    left, right = _factors(*factors)
    return Generator(
        decode=_Decode(generator.decode, complement),
        params={
            "generator": generator.params,
            "left": _stored(left),
            "right": _stored(right),
            "offset": _stored(offset),
        },
        latent_shape=generator.latent_shape,
        image_shape=generator.image_shape,
        sample_latents=_inner(generator.sample_latents),
        encode=_inner(generator.encode),
        name=generator.name,
    )


def _wrapped_blocks(scheme: Scheme, basis: BlockBasis, symbols: np.ndarray) -> Generator:
    """The generator behind z -> z @ M + offset, M in the blocks of the scheme's basis.

    A block's matrix says which directions carry keys, as M does, and not which is which bit.
    """
    generator, (count, rows, _) = scheme.generator, basis.blocks.shape
    owner = np.asarray(jax.device_get(basis.owner)).reshape(count, rows, 1)
    carries = (owner >= scheme.shift) & (owner < scheme.shift + scheme.num_symbols)
    free = (owner >= 0) & ~carries
    blocks, dual = (
        np.asarray(jax.device_get(x), np.float64) for x in (basis.blocks, basis.dual_blocks)
    )
    matrices = _stored(np.einsum("nrs,nrt->nst", np.where(free, dual, 0), blocks))
    mean = jax.device_put(np.asarray(jax.device_get(basis.mean), np.float32))
    alpha = jnp.zeros((1, scheme.num_alpha), jnp.float32)
    shifted = scheme.latents_of(alpha, _stored(symbols)[None]).reshape(-1)
    values = to_blocks(basis.transform, basis.grid, mean[None])
    kept = from_blocks(
        basis.transform,
        basis.grid,
        jnp.einsum("bns,nst->bnt", values, matrices, precision="highest"),
    )
    return Generator(
        decode=_DecodeBlocks(generator.decode, basis.transform, basis.grid),
        params={
            "generator": generator.params,
            "matrices": matrices,
            "offset": shifted - kept[0],
        },
        latent_shape=generator.latent_shape,
        image_shape=generator.image_shape,
        sample_latents=_inner(generator.sample_latents),
        encode=_inner(generator.encode),
        name=generator.name,
    )


def _inner(function: Callable[..., Array] | None) -> _Inner | None:
    return None if function is None else _Inner(function)


def _is_complete(rows: _Rows) -> bool:
    """Whether the directions span all latents, so that dual_U^T U + dual_V^T V is the identity."""
    size = len(rows.mean)
    if len(rows.u) + len(rows.v) != size:
        return False
    probe = np.random.default_rng(0).standard_normal((4, size))
    back = (probe @ rows.dual_u.T) @ rows.u + (probe @ rows.dual_v.T) @ rows.v
    return bool(np.abs(back - probe).max() <= _COMPLETE)


def _factors(dual: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Factors (D, r) and (r, D) of dual^T @ directions that say no more than the product does.

    The two themselves would give a copy's holder the direction of every single bit. The columns of
    the first factor are an orthonormal basis of the product's range, found from its images of fixed
    random vectors, so that both factors are functions of the product.
    """
    size, rank = directions.shape[1], len(directions)
    probes = np.random.default_rng(0).standard_normal((size, rank))
    left, _ = np.linalg.qr(dual.T @ (directions @ probes))
    return left, (left.T @ dual.T) @ directions
