"""One pass over all blocks of a source of keys, with a running list of the best.

Blocks are computed ahead in threads and taken in order, so that equal scores rank by index whatever
finishes first.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec

from fpjax.attribution.key_kernels import COLUMNS, MATCHING_ROWS, tile_keys
from fpjax.fingerprint.packed import num_words
from fpjax.fingerprint.stored import KeySource, StoredKeys
from fpjax.parallel import cores

BLOCK_SIZE = 1 << 21
"""Keys a block: 16 MiB at 64 bits."""
STORED_BLOCK_SIZE = 1 << 23
"""The same where matching reads stored keys in place: a few milliseconds for one image, so that
what a block costs beside the loop over its keys is little."""
GROUP = MATCHING_ROWS * COLUMNS
"""Blocks are multiples of this many keys."""
_FEW = 1 << 16
"""Pairs of image and key that are compared one by one sooner than in a compiled loop."""
_PIECE = 1 << 17
"""Keys looked at one by one at a time: 64 MiB of symbols in float64 at 64 bits."""
_RESULTS = 1 << 24
"""Bounds that a block may have."""

Progress = Callable[[int, int], None]
Bounds = Callable[[Any], Any]
"""Words of a block to bounds (B, tiles) below every score in a tile."""
Exact = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Images (P,) and words (P, T, W) of keys to scores (P, T), lowest best."""


@dataclasses.dataclass(frozen=True, eq=False)
class Ranking:
    """The best candidates for B images, best first, equal scores by index.

    Attributes:
      indices: (B, K) int64 numbers of keys; K is less than asked for if there are fewer keys.
      scores: (B, K): matching bits, int64, highest best; or energies, float64, lowest best.
      compared: keys that were compared, N without the revoked ones: what `family_wise` counts.
      examined: share of the pairs of image and key whose score was computed key by key; all others
        were excluded by a bound.
    """

    indices: np.ndarray
    scores: np.ndarray
    compared: int
    examined: float


class BestKeys:
    """Running best K of (score, index) for B images, lowest first."""

    def __init__(self, count: int, num_best: int, revoked, total: int) -> None:
        if num_best < 1:
            raise ValueError(f"num_best is {num_best}: expected at least 1")
        self.revoked = np.unique(np.fromiter(revoked, np.int64))
        if self.revoked.size and not 0 <= self.revoked[0] <= self.revoked[-1] < total:
            raise ValueError(f"revoked keys lie beyond the {total} there are")
        self.total, self.compared = total, total - len(self.revoked)
        if count == 0 or self.compared == 0:
            raise ValueError(
                "there are no images to search for"
                if count == 0
                else f"all {total} keys are revoked: none is left to search"
            )
        self.pairs = count * total
        self.examined = 0
        kept = min(num_best, self.compared)
        self.scores = np.full((count, kept), np.inf)
        self.indices = np.full((count, kept), np.iinfo(np.int64).max)

    def limits(self) -> np.ndarray:
        """Score (B,) that a key must not exceed to be among the best."""
        return self.scores[:, -1]

    def candidates(self, indices: np.ndarray) -> np.ndarray:
        """Whether keys of these numbers exist and are not revoked."""
        exist = indices < self.total
        if len(self.revoked) == 0:
            return exist
        places = np.searchsorted(self.revoked, indices).clip(max=len(self.revoked) - 1)
        return exist & (self.revoked[places] != indices)

    def merge(self, images: np.ndarray, scores: np.ndarray, indices: np.ndarray) -> None:
        """Takes in keys (n,) for images (n,), for each image distinct ones that are candidates.

        Those already there are ignored.
        """
        owners, kept = np.unique(images), self.scores.shape[1]
        listed = (self.indices[owners] + owners[:, None] * self.total).ravel()
        listed = listed[self.scores[owners].ravel() < np.inf]
        if len(listed):
            new = ~np.isin(indices + images * self.total, listed)
            images, scores, indices = images[new], scores[new], indices[new]
        images = np.concatenate([np.repeat(owners, kept), images])
        scores = np.concatenate([self.scores[owners].ravel(), scores])
        indices = np.concatenate([self.indices[owners].ravel(), indices])
        order = np.lexsort((indices, scores, images))
        first = np.searchsorted(images[order], owners)
        best = order[first[:, None] + np.arange(kept)]
        self.scores[owners], self.indices[owners] = scores[best], indices[best]

    def ranking(self, convert: Callable[[np.ndarray], np.ndarray]) -> Ranking:
        """The list as it stands, scores as `convert` writes them."""
        return Ranking(
            self.indices, convert(self.scores), self.compared, self.examined / max(1, self.pairs)
        )


class KeyScan:
    """One pass over all blocks of a source."""

    def __init__(self, source, best, rows, mesh, block_size, threads, progress) -> None:
        devices = mesh.devices.size if mesh is not None else 1
        unit = GROUP * devices
        if block_size is None:
            in_place = isinstance(source, StoredKeys) and num_words(source.key_length) % 2 == 0
            in_place &= mesh is None and jax.default_backend() == "cpu" and rows == MATCHING_ROWS
            block_size = STORED_BLOCK_SIZE if in_place else max(BLOCK_SIZE // unit, 1) * unit
        if block_size < 1 or block_size % unit:
            raise ValueError(f"block_size is {block_size}: expected a multiple of {unit}")
        if threads is not None and threads < 1:
            raise ValueError(f"threads is {threads}: expected at least 1")
        self.source, self.best, self.rows, self.mesh = source, best, rows, mesh
        most = _RESULTS * rows // len(best.scores) // unit * unit
        few = _FEW // len(best.scores) if rows == MATCHING_ROWS else 0
        self.blocks, self.ends = _plan(source, min(block_size, max(unit, most)), unit, few)
        on_host = mesh is None and jax.default_backend() == "cpu"
        self.threads = threads or (cores() if on_host else 1)
        self.progress = progress

    def run(self, bounds: Bounds, exact: Exact, *, as_uint64: bool) -> None:
        """Puts the best keys of the source into `best`; words are uint32, or uint64 if possible."""
        total = len(self.source)
        if total <= GROUP:  # not worth compiling for: no tile is excluded
            nothing = np.full((len(self.best.scores), GROUP // self.rows), -np.inf)
            self._merge(0, self._words(0, GROUP, as_uint64), nothing, exact)
            if self.progress:
                self.progress(total, total)
            return
        for start, size, words, found in self._computed(bounds, as_uint64):
            self._merge(start, words, found, exact)
            if self.progress:
                self.progress(min(start + size, total), total)
        if self.ends:
            self._compare_ends(exact, as_uint64)
            if self.progress:
                self.progress(total, total)

    def _compare_ends(self, exact: Exact, as_uint64: bool) -> None:
        parts = [self._words(start, end - start, as_uint64) for start, end in self.ends]
        indices = np.concatenate([np.arange(start, end) for start, end in self.ends])
        images, words = np.arange(len(self.best.scores)), np.concatenate(parts)
        scores = exact(images, np.broadcast_to(words, (len(images), *words.shape)))
        self._take(images, scores, np.broadcast_to(indices, scores.shape))

    def _computed(self, bounds, as_uint64) -> Iterator[tuple[int, int, Any, np.ndarray]]:
        """Yields (first key, keys, words on host or device, bounds (B, tiles)) in order."""

        def one(block: tuple[int, int]):
            start, size = block
            if self.mesh is None:
                words = self._words(start, size, as_uint64)
            else:
                words = self._shared(self.mesh, start, size, as_uint64)
            return start, size, words, np.asarray(bounds(words))

        if self.threads == 1 or len(self.blocks) < 4:
            yield from map(one, self.blocks)
            return
        pool = concurrent.futures.ThreadPoolExecutor(self.threads)
        pending: collections.deque[concurrent.futures.Future] = collections.deque()
        try:
            for block in self.blocks:
                pending.append(pool.submit(one, block))
                if len(pending) > 2 * self.threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            # An interruption waits for the blocks that are being computed, not for those in line.
            pool.shutdown(wait=True, cancel_futures=True)

    def _words(self, start: int, size: int, as_uint64: bool):
        if as_uint64 and isinstance(self.source, StoredKeys):
            return self.source.words64(start, size)
        return self.source.words(start, size)

    def _shared(self, mesh: jax.sharding.Mesh, start: int, size: int, as_uint64: bool):
        """Words over the mesh: stored ones in parts, derived ones made on each device."""
        sharding = jax.sharding.NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        if isinstance(self.source, StoredKeys):
            with jax.enable_x64(True) if as_uint64 else contextlib.nullcontext():
                return jax.device_put(self._words(start, size, as_uint64), sharding)
        devices = list(mesh.devices.flat)
        part = size // len(devices)
        parts = []
        for i, device in enumerate(devices):
            with jax.default_device(device):
                parts.append(jax.device_put(self.source.words(start + i * part, part), device))
        shape = (size, parts[0].shape[1])
        return jax.make_array_from_single_device_arrays(shape, sharding, parts)

    def _merge(self, start: int, words, bounds: np.ndarray, exact: Exact) -> None:
        # Later keys lose ties.
        active = bounds < self.best.limits()[:, None]
        counts = active.sum(1)
        if not counts.any():
            return
        words = np.asarray(words)
        wanted = self.best.scores.shape[1]
        many = np.flatnonzero(counts > 4 * wanted)
        if len(many):
            first = min(wanted, bounds.shape[1])
            tiles = np.argpartition(bounds[many], first - 1, axis=1)[:, :first]
            self._expand(start, words, np.repeat(many, first), tiles.ravel(), exact, first)
            active[many] &= bounds[many] <= self.best.limits()[many, None]
            active[np.repeat(many, first), tiles.ravel()] = False
        images, tiles = np.nonzero(active)
        self._expand(start, words, images, tiles, exact, 1)

    def _expand(self, start: int, words, images, tiles, exact: Exact, each: int) -> None:
        """Looks at each key of tiles (P,) for images (P,), `each` tiles in a row for one image."""
        step = max(1, _PIECE // self.rows // each) * each
        for piece in range(0, len(images), step):
            places = tile_keys(self.rows, tiles[piece : piece + step])
            scores = exact(images[piece : piece + step], words[places])
            owners = images[piece : piece + step : each]
            shape = len(owners), each * self.rows
            self._take(owners, scores.reshape(shape), start + places.reshape(shape))

    def _take(self, images: np.ndarray, scores: np.ndarray, indices: np.ndarray) -> None:
        """Merges scores (P, T) of keys (P, T), distinct ones of an image in each row."""
        self.best.examined += scores.size
        limits, wanted = self.best.limits()[images, None], self.best.scores.shape[1]
        possible = (scores <= limits) & self.best.candidates(indices)
        count = possible.sum()
        if not count:
            return
        if count > 4 * wanted * len(images):  # the best of each row alone
            scores = np.where(possible, scores, np.inf)
            kth = np.partition(scores, wanted - 1, axis=1)[:, wanted - 1, None]
            possible &= scores <= kth
        rows, columns = np.nonzero(possible)
        self.best.merge(images[rows], scores[rows, columns], indices[rows, columns])


def _plan(
    source: KeySource, block_size: int, unit: int, few: int
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(first key, keys) of each block, of few sizes, since each is compiled; and (first key, end)
    of those that are better compared one by one.

    Blocks of derived keys have one size. Stored keys are read where they are, which XLA does at
    multiples of 64 bytes only: blocks begin at the first such address. The keys before it are no
    block, nor are up to `few` keys after the last whole unit, for which a unit would be copied.
    """
    total = len(source)
    size = min(block_size, -(-total // unit) * unit)
    if not isinstance(source, StoredKeys):
        return [(start, size) for start in range(0, total, size)], []
    row, address = source.packed.strides[0], source.packed.ctypes.data
    first = next((i for i in range(64) if (address + i * row) % 64 == 0), 0)
    end = first + (total - first) // unit * unit
    blocks = [(start, min(size, end - start)) for start in range(first, end, size)]
    ends = [(0, first)] * (first > 0)
    if total - end > few:
        blocks.append((end, unit))
    elif total > end:
        ends.append((end, total))
    return blocks, ends


def on_mesh(kernel, mesh, words, queries, key_length: int):
    """Runs a kernel on one device, or each device's part of the block on that device."""
    if mesh is None:
        return kernel(words, queries, key_length=key_length)
    return _sharded(kernel, mesh, key_length)(words, queries)


@functools.lru_cache(maxsize=16)
def _sharded(kernel, mesh: jax.sharding.Mesh, key_length: int):
    keys = mesh.axis_names
    return jax.jit(
        jax.shard_map(
            functools.partial(kernel, key_length=key_length),
            mesh=mesh,
            in_specs=(PartitionSpec(keys), PartitionSpec()),
            out_specs=PartitionSpec(None, keys),
            check_vma=False,  # the loop over groups starts from values that do not vary
        )
    )
