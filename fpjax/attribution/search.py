"""Search of all keys: the best N candidates for B images, by matching bits or by the soft score.

Keys come in blocks, stored or derived (`StoredKeys`, `fpjax.fingerprint.derived.DerivedKeys`). For
each tile of a block a compiled loop finds a bound on the best score in it (`key_kernels`); only
tiles that might hold one of the best keys are looked at key by key, in exact arithmetic. The
result is that of comparing every key: best first, equal scores by index.

On the host's CPU, threads share the blocks; on a mesh of devices each device has a part of every
block. Ctrl-C stops between two blocks.
"""

from __future__ import annotations

import jax
import numpy as np

from fpjax.attribution.key_kernels import (
    MATCHING_ROWS,
    SOFT_ROWS,
    SoftBound,
    soft_bound,
    tile_distances,
    tile_energies,
)
from fpjax.attribution.key_scan import (
    GROUP,
    BestKeys,
    KeyScan,
    Progress,
    Ranking,
    on_mesh,
)
from fpjax.fingerprint.energy import (
    Levels,
    Quadratic,
    antipodal_form,
    decision_feedback,
    decode_by_feedback,
    energies,
    rounding_slack,
)
from fpjax.fingerprint.packed import num_words, pack_keys, unpack_keys
from fpjax.fingerprint.stored import KeySource, StoredKeys, as_uint64

__all__ = ["KeySource", "Ranking", "StoredKeys", "keys_of", "search_matching", "search_soft"]

_STEP = 8
"""Numbers of linear forms that are tried are multiples of it: each is compiled anew."""
_SAMPLE = 1 << 12
_SAMPLED_IMAGES = 32
_EXACT_COST = 20.0
"""Cost of exact arithmetic on a tile's keys, over that of as many linear forms in the loop."""


def search_matching(
    source: KeySource,
    bits: np.ndarray,
    *,
    num_best: int = 10,
    revoked=(),
    mesh: jax.sharding.Mesh | None = None,
    block_size: int | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Ranking:
    """Keys that agree with decoded bits in most places.

    Args:
      source: the keys.
      bits: (B, L) decoded bits of 0 and 1.
      num_best: candidates wanted for each image, K.
      revoked: numbers of keys that are not candidates any more.
      mesh: devices that share each block; by default the source's device, or the host's CPU.
      block_size: keys a block, a multiple of 2^15 times the devices; by default 2^23 where they are
        read in place, and 2^21 elsewhere.
      threads: of the host; by default its cores, or 1 for accelerators.
      progress: called with (keys done, keys in all).

    Returns:
      `Ranking` with numbers of matching bits.

    Raises:
      ValueError: for bits of another length than the keys', no images, no keys that aren't
        revoked, or settings out of range.

    >>> keys = StoredKeys.from_bits(np.array([[0, 0, 0], [1, 1, 0], [1, 1, 1]]))
    >>> found = search_matching(keys, np.array([[1, 1, 1]]), num_best=2)
    >>> found.indices.tolist(), found.scores.tolist()
    ([[2, 1]], [[3, 2]])
    """
    length = source.key_length
    bits = np.asarray(bits)
    if bits.ndim != 2 or bits.shape[1] != length:
        raise ValueError(
            f"bits have shape {bits.shape}: the keys have {length}, expected (B, {length})"
        )
    queries = as_uint64(pack_keys(bits))

    def bounds(words):
        with jax.enable_x64(True):
            return on_mesh(tile_distances, mesh, words, queries, length)

    def exact(images, words):
        words = as_uint64(words)
        ones = np.bitwise_count(words ^ queries[images][:, None])
        return ones[..., 0] if ones.shape[-1] == 1 else ones.sum(-1, dtype=np.uint16)

    best = BestKeys(len(bits), num_best, revoked, len(source))
    scan = KeyScan(source, best, MATCHING_ROWS, mesh, block_size, threads, progress)
    scan.run(bounds, exact, as_uint64=True)
    return best.ranking(lambda scores: length - scores.astype(np.int64))


def search_soft(
    source: KeySource,
    information,
    linear,
    *,
    levels: Levels = "antipodal",
    num_best: int = 10,
    revoked=(),
    mesh: jax.sharding.Mesh | None = None,
    block_size: int | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Ranking:
    """Keys of least energy, the most likely ones given the image.

    The keys nearest to the decoded bits are scored first. A key can then be better only if a lower
    bound of its energy is: the quadratic part with its small eigenvalues left out, one matrix
    product a block. How many are kept is chosen by the share of a sample of keys that the bound
    excludes; in the worst case all are, and the bound is the energy itself in float32.

    Args:
      source: the keys.
      information: (B, L, L) or (L, L), see `fpjax.fingerprint.energy`.
      linear: (B, L) or (L,).
      levels: what the information is about.
      num_best, revoked, mesh, block_size, threads, progress: see `search_matching`; progress counts
        the keys twice, for the two passes.

    Returns:
      `Ranking` with energies.

    Raises:
      ValueError: for information of another length than the keys', and as `search_matching`.

    >>> keys = StoredKeys.from_bits(np.array([[0, 0, 0], [1, 1, 0], [1, 0, 1]]))
    >>> search_soft(keys, np.eye(3), np.array([1.0, 0.1, -0.5]), num_best=2).indices.tolist()
    [[1, 2]]
    """
    quadratic = antipodal_form(information, linear, levels)
    count, length = quadratic.linear.shape
    if length != source.key_length:
        raise ValueError(
            f"the information is about {length} symbols, keys have {source.key_length}"
        )
    total = len(source)

    def passes(first: int) -> Progress | None:
        if progress is None:
            return None
        report = progress
        return lambda done, _: report(first + done, 2 * total)

    decoded = decode_by_feedback(decision_feedback(*quadratic[:2], 1.0))
    near = search_matching(
        source,
        decoded,
        num_best=max(32, num_best),
        revoked=revoked,
        mesh=mesh,
        block_size=block_size,
        threads=threads,
        progress=passes(0),
    )
    best = BestKeys(count, num_best, revoked, total)
    slack = rounding_slack(quadratic)
    for image, indices in enumerate(near.indices):
        found = keys_of(source, indices)
        scores = energies(_one(quadratic, image), found)[0]
        best.merge(np.full(len(indices), image), scores, indices)
    bound = _choose_bound(source, quadratic, best.limits())
    grouped = _grouped(bound.forms)
    shift = (bound.constant - bound.margin - slack)[:, None]

    def bounds(words):
        found = on_mesh(tile_energies, mesh, words, grouped, length)
        return np.asarray(found, np.float64)[:count] + shift

    def exact(images, words):
        scores = np.empty(words.shape[:2])
        for image in np.unique(images):
            rows = images == image
            found = unpack_keys(words[rows], length).reshape(-1, length)
            scores[rows] = energies(_one(quadratic, int(image)), found).reshape(-1, words.shape[1])
        return scores

    scan = KeyScan(source, best, SOFT_ROWS, mesh, block_size, threads, passes(total))
    scan.run(bounds, exact, as_uint64=False)
    return best.ranking(lambda scores: scores)


def _one(quadratic: Quadratic, image: int) -> Quadratic:
    return Quadratic(*(part[image : image + 1] for part in quadratic))


def keys_of(source: KeySource, indices: np.ndarray) -> np.ndarray:
    """Bits (len(indices), L) uint8 of single keys of a source.

    >>> keys_of(StoredKeys.from_bits(np.array([[0, 1], [1, 1]])), np.array([1])).tolist()
    [[1, 1]]
    """
    found = np.empty((len(indices), num_words(source.key_length)), np.uint32)
    for group in np.unique(indices // GROUP):
        mine = indices // GROUP == group
        words = np.asarray(source.words(int(group) * GROUP, GROUP))
        found[mine] = words[indices[mine] % GROUP]
    return unpack_keys(found, source.key_length)


def _choose_bound(source: KeySource, quadratic: Quadratic, limits: np.ndarray) -> SoftBound:
    """The bound that costs least, with what it leaves to exact arithmetic in a sample of keys."""
    length = quadratic.linear.shape[1]
    bound = soft_bound(quadratic)
    words = np.asarray(source.words(0, GROUP))[: max(SOFT_ROWS, min(_SAMPLE, len(source)))]
    symbols = 2 * unpack_keys(words, length).astype(np.float32) - 1
    some = slice(0, _SAMPLED_IMAGES)
    products = symbols @ bound.forms[some]
    start = (bound.constant - bound.margin)[some, None] - products[..., -1]
    sums = np.cumsum(products[..., -2::-1] ** 2, -1) / 2  # the largest forms first
    best, least = length, np.inf
    for num_forms in [*range(_STEP, length, _STEP), length]:
        lower = (start + sums[..., num_forms - 1])[:, : len(words) // SOFT_ROWS * SOFT_ROWS]
        tiles = lower.reshape(len(lower), -1, SOFT_ROWS).min(2) <= limits[some, None]
        cost = num_forms + _EXACT_COST * length * tiles.mean()
        if cost < least:
            best, least = num_forms, cost
    return bound.keep(best)


def _grouped(forms: np.ndarray) -> np.ndarray:
    """Forms (B, L, m + 1) as (Q, L, q, m + 1), so that a matrix product has about 1,024 columns."""
    count, length, width = forms.shape
    each = max(1, min(count, 1024 // width))
    padded = np.concatenate([forms, np.repeat(forms[-1:], -count % each, axis=0)])
    return np.ascontiguousarray(padded.reshape(-1, each, length, width).swapaxes(1, 2))
