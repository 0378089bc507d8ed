"""Search: the same candidates as comparing every key, from any source, on any devices."""

import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest

from fpjax.attribution.key_kernels import soft_bound
from fpjax.attribution.search import StoredKeys, search_matching, search_soft
from fpjax.fingerprint.derived import DerivedKeys
from fpjax.fingerprint.energy import antipodal_form, energies
from fpjax.fingerprint.packed import pack_keys, unpack_keys
from tests.attribution.test_tails import SPECTRA, instance

BLOCK = 1 << 15


def every_match(keys, bits):
    """(B, N) matching bits, by comparing everything."""
    return (bits[:, None] == keys[None]).sum(-1)


def assert_best_matches(found, keys, bits, num_best, revoked=()):
    matches = every_match(keys, bits)
    matches[:, list(revoked)] = -1
    order = np.argsort(-matches, axis=1, kind="stable")[:, :num_best]
    np.testing.assert_array_equal(found.indices, order)
    np.testing.assert_array_equal(found.scores, np.take_along_axis(matches, order, 1))


def noisy_copies(rng, keys, count, flips):
    bits = keys[rng.choice(len(keys), count, replace=False)].copy()
    for row in bits:
        row[rng.choice(keys.shape[1], flips, replace=False)] ^= 1
    return bits


@pytest.mark.parametrize("length", [5, 32, 64, 70, 128, 300])
def test_matching_finds_the_nearest_keys_of_every_length(length):
    rng = np.random.default_rng(length)
    keys = rng.integers(0, 2, (70_001, length), np.uint8)
    bits = noisy_copies(rng, keys, 3, length // 5)
    found = search_matching(StoredKeys.from_bits(keys), bits, num_best=7, block_size=BLOCK)
    assert_best_matches(found, keys, bits, 7)
    assert found.compared == 70_001


@pytest.mark.parametrize("count", [1, 5])
def test_one_image_and_several_give_the_same(count):
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 2, (100_000, 64), np.uint8)
    bits = noisy_copies(rng, keys, count, 20)
    for threads in (1, 3):
        found = search_matching(
            StoredKeys.from_bits(keys), bits, num_best=20, block_size=BLOCK, threads=threads
        )
        assert_best_matches(found, keys, bits, 20)
        assert found.examined < 0.5


def test_equal_keys_rank_by_their_number():
    keys = np.ones((100_000, 64), np.uint8)
    keys[77_777, 0] = 0
    found = search_matching(StoredKeys.from_bits(keys), keys[77_777:77_778], block_size=BLOCK)
    assert found.indices[0].tolist() == [77_777, *range(9)]


def test_revoked_keys_are_no_candidates_and_not_counted():
    rng = np.random.default_rng(1)
    keys = rng.integers(0, 2, (40_000, 64), np.uint8)
    bits = keys[[5, 39_999]]
    revoked = {5, 17, 20_000}
    source = StoredKeys.from_bits(keys)
    found = search_matching(source, bits, num_best=3, revoked=revoked, block_size=BLOCK)
    assert_best_matches(found, keys, bits, 3, revoked)
    assert found.compared == 39_997
    soft = search_soft(
        source, np.stack([np.eye(64)] * 2), 2.0 * bits - 1, num_best=3, revoked=revoked
    )
    np.testing.assert_array_equal(soft.indices[:, 0] == [5, 39_999], [False, True])
    with pytest.raises(ValueError, match="beyond the 40000"):
        search_matching(source, bits, revoked=[40_000])


def test_fewer_keys_than_candidates_wanted_are_all_ranked():
    keys = np.eye(3, dtype=np.uint8)
    found = search_matching(StoredKeys.from_bits(keys), keys[1:2], num_best=10)
    assert found.indices.tolist() == [[1, 0, 2]] and found.scores.tolist() == [[3, 1, 1]]
    one = search_matching(StoredKeys.from_bits(keys[:1]), keys[1:2], num_best=10)
    assert one.indices.tolist() == [[0]]


def test_stored_words_of_32_and_64_bits_and_files_are_the_same_keys(tmp_path):
    rng = np.random.default_rng(2)
    keys = rng.integers(0, 2, (50_000, 64), np.uint8)
    bits = noisy_copies(rng, keys, 2, 15)
    packed = pack_keys(keys)
    np.save(tmp_path / "keys.npy", packed.view(np.uint64)[:, 0])
    mapped = np.load(tmp_path / "keys.npy", mmap_mode="r")
    for memory in (packed, packed.view(np.uint64), mapped):
        found = search_matching(StoredKeys(memory, 64), bits, block_size=BLOCK)
        assert_best_matches(found, keys, bits, 10)


@pytest.mark.parametrize("place", [0, 3, 60_000])
def test_keys_at_any_address_are_searched_and_ties_go_to_the_first(place):
    """XLA reads memory at multiples of 64 bytes; a slice begins anywhere."""
    words = np.random.default_rng(8).integers(0, 2**64, 70_010, np.uint64, endpoint=False)
    for first in range(8):
        memory = words[first : first + 70_001].copy() if first == 0 else words[first:][:70_001]
        source = StoredKeys(memory, 64)
        bits = unpack_keys(memory.view(np.uint32).reshape(-1, 2), 64)
        doubled = bits[[place]]
        found = search_matching(source, doubled, num_best=5, block_size=BLOCK)
        assert_best_matches(found, bits, doubled, 5)


@pytest.mark.parametrize("first", [0, 5])
def test_many_images_are_ranked_at_once_each_with_its_own_ties(first):
    """Keys of 9 bits: whole tiles are equally near."""
    rng = np.random.default_rng(11)
    words = rng.integers(0, 1 << 9, 40_000, np.uint64)[first:]
    keys = unpack_keys(words.view(np.uint32).reshape(-1, 2), 64)
    bits, revoked = noisy_copies(rng, keys, 40, 3), rng.choice(len(keys), 500, replace=False)
    source = StoredKeys(words, 64)
    found = search_matching(source, bits, num_best=3, revoked=revoked, block_size=BLOCK)
    assert_best_matches(found, keys, bits, 3, revoked)
    assert found.compared == len(keys) - 500


@pytest.mark.parametrize("length", [64, 100])
def test_derived_keys_are_searched_without_being_stored(length):
    source = DerivedKeys(bytes(range(32)), count=90_000, key_length=length)
    keys = np.concatenate([unpack_keys(np.asarray(w), length) for _, w in source.blocks(BLOCK)])
    keys = keys[:90_000]
    rng = np.random.default_rng(3)
    bits = noisy_copies(rng, keys, 2, 15)
    assert_best_matches(search_matching(source, bits, block_size=BLOCK), keys, bits, 10)


@pytest.mark.parametrize("kind", SPECTRA)
@pytest.mark.parametrize("registered", [True, False])
def test_soft_search_finds_the_keys_of_least_energy(kind, registered):
    rng = np.random.default_rng(4)
    keys = rng.integers(0, 2, (40_000, 64), np.uint8)
    images = [instance(rng, 64, kind) for _ in range(3)]
    information, linear, bits = (np.stack(part) for part in zip(*images, strict=True))
    if registered:
        keys[[11, 30_000, 39_999]] = bits
    every = energies(antipodal_form(information, linear), keys)
    order = np.argsort(every, axis=1, kind="stable")[:, :6]
    found = search_soft(
        StoredKeys.from_bits(keys), information, linear, num_best=6, block_size=BLOCK
    )
    np.testing.assert_array_equal(found.indices, order)
    np.testing.assert_allclose(found.scores, np.take_along_axis(every, order, 1), rtol=1e-9)
    if registered and kind != "singular":
        assert found.indices[:, 0].tolist() == [11, 30_000, 39_999]


def test_soft_search_of_derived_keys_and_binary_levels():
    source = DerivedKeys(bytes(32), count=50_000, key_length=20)
    keys = np.concatenate([unpack_keys(np.asarray(w), 20) for _, w in source.blocks(BLOCK)])[
        :50_000
    ]
    information, linear, _ = instance(np.random.default_rng(5), 20, "moderate")
    every = energies(antipodal_form(information, linear, "binary"), keys)[0]
    found = search_soft(source, information, linear, levels="binary", block_size=BLOCK)
    np.testing.assert_array_equal(found.indices[0], np.argsort(every, kind="stable")[:10])


@pytest.mark.parametrize("num_forms", [0, 4, 63, 64])
@pytest.mark.parametrize("kind", SPECTRA)
def test_the_bound_is_below_every_energy_and_whole_at_full_rank(kind, num_forms):
    rng = np.random.default_rng(6)
    information, linear, _ = instance(rng, 64, kind)
    information = information - 1e-5 * np.trace(information) / 64 * np.eye(64)  # not quite psd
    quadratic = antipodal_form(information, linear)
    bits = rng.integers(0, 2, (3_000, 64), np.uint8)
    bound = soft_bound(quadratic).keep(num_forms)
    products = (2.0 * bits - 1).astype(np.float32) @ bound.forms[0]
    lower = (products[:, :-1] ** 2).sum(-1) / 2 - products[:, -1] + bound.constant[0]
    exact = energies(quadratic, bits)[0]
    assert (lower - bound.margin[0] <= exact).all()
    if num_forms == 64:
        assert np.abs(lower - exact).max() <= bound.margin[0] + 1e-4 * np.abs(exact).max()


def test_the_bound_excludes_most_keys_where_the_image_knows_its_own():
    rng = np.random.default_rng(7)
    keys = rng.integers(0, 2, (200_000, 64), np.uint8)
    information, linear, bits = instance(rng, 64, "flat")
    keys[123_456] = bits
    found = search_soft(StoredKeys.from_bits(keys), information, linear, num_best=1)
    assert found.indices[0, 0] == 123_456 and found.examined < 0.01


def test_an_interruption_ends_the_search_at_once_and_progress_reaches_the_end():
    keys = StoredKeys(np.zeros((20 * BLOCK, 2), np.uint32), 64)
    seen = []

    def interrupt(done, total):
        seen.append(done)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search_matching(keys, np.zeros((1, 64)), progress=interrupt, block_size=BLOCK)
    assert len(seen) == 3
    seen.clear()
    search_matching(
        keys,
        np.zeros((1, 64)),
        progress=lambda done, total: seen.append((done, total)),
        block_size=BLOCK,
    )
    assert seen[-1] == (20 * BLOCK, 20 * BLOCK) and 20 <= len(seen) <= 22


@pytest.mark.parametrize("count", [1, 3])
def test_settings_of_jax_do_not_change_the_ranking(count):
    rng = np.random.default_rng(9)
    keys = rng.integers(0, 2, (70_000, 40), np.uint8)
    bits = keys[[9, 69_999, 3]][:count]
    information = np.stack([3 * np.eye(40)] * count)
    derived = DerivedKeys(bytes(32), 40_000, 70)
    with (
        jax.enable_x64(True),
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
    ):
        source = StoredKeys.from_bits(keys)
        assert search_matching(source, bits).scores[:, 0].tolist() == [40] * count
        found = search_soft(source, information, 2.0 * bits - 1)
        assert found.indices[:, 0].tolist() == [9, 69_999, 3][:count]
        found = search_matching(derived, derived.keys([39_999] * count))
        assert found.indices[:, 0].tolist() == [39_999] * count


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda k: search_matching(k, np.ones((1, 63))), r"expected \(B, 64\)"),
        (lambda k: search_matching(k, np.ones((0, 64))), "no images"),
        (lambda k: search_matching(k, np.ones((1, 64)), revoked=range(10)), "all 10 keys are"),
        (lambda k: search_matching(k, np.ones((1, 64)), num_best=0), "num_best is 0"),
        (lambda k: search_matching(k, np.ones((1, 64)), block_size=1000), "multiple of 32768"),
        (lambda k: search_matching(k, np.ones((1, 64)), threads=0), "threads is 0"),
        (lambda k: search_soft(k, np.eye(63), np.ones(63)), "about 63 symbols"),
        (lambda k: StoredKeys(np.zeros((0, 2), np.uint32), 64), "register a user first"),
        (lambda k: StoredKeys(np.zeros((5, 3), np.uint32), 64), r"take \(N, 2\) uint32"),
        (lambda k: StoredKeys(np.zeros((5, 2), np.int32), 64), "uint32 or uint64"),
    ],
)
def test_misuse_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(StoredKeys(np.zeros((10, 2), np.uint32), 64))


def test_several_devices_share_the_keys():
    script = """
        import jax, numpy as np
        from fpjax.attribution.search import StoredKeys, search_matching, search_soft
        from fpjax.fingerprint.derived import DerivedKeys
        mesh = jax.make_mesh((4,), ("keys",))
        rng = np.random.default_rng(0)
        keys = rng.integers(0, 2, (140_000, 64), np.uint8)
        derived = DerivedKeys(bytes(32), count=140_000, key_length=64)
        linear = rng.normal(size=(2, 64))
        information = np.stack([np.eye(64), 2 * np.eye(64)])
        for source, search, arguments in (
            (StoredKeys.from_bits(keys), search_matching, ((linear > 0).astype(int),)),
            (derived, search_soft, (information, linear)),
        ):
            alone = search(source, *arguments, block_size=1 << 17)
            shared = search(source, *arguments, mesh=mesh, block_size=1 << 17)
            np.testing.assert_array_equal(alone.indices, shared.indices)
            np.testing.assert_allclose(alone.scores, shared.scores)
        print("same")
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=Path(__file__).parents[2],
        env={"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.stdout == "same\n", ran.stderr
