"""A registry never loses, doubles or leaks a key, whatever happens to the processes using it."""

import itertools
import os
import sqlite3
import warnings

import numpy as np
import pytest

from fpjax.attribution.registry import (
    FORMAT_VERSION,
    Registry,
    RegistryError,
    RegistryWarning,
    UnknownUserError,
    check_user,
)
from fpjax.attribution.registry_file import checksum
from fpjax.fingerprint.keys import pack_words
from tests.attribution.registries import create


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys.db"


def test_keys_come_back_in_order_of_issue_after_reopening(path):
    with create(path, 70, minimum_distance=10) as registry:
        issued = {user: registry.issue(user) for user in ("zoe", "ada", "Bob")}
        assert len(registry) == 3
    with Registry.open(path, scheme_id="scheme-1") as registry:
        assert (registry.key_length, registry.minimum_distance) == (70, 10)
        assert registry.users() == ["zoe", "ada", "Bob"]
        users, keys = registry.keys()
        assert users == registry.users()
        assert keys.shape == (3, 70) and keys.dtype == np.uint8
        for user, key in zip(users, keys, strict=True):
            np.testing.assert_array_equal(key, issued[user])
            np.testing.assert_array_equal(key, registry.key_of(user))


def test_an_empty_registry_has_no_keys_and_is_not_false(path):
    with create(path, minimum_distance=5) as registry:
        users, keys = registry.keys()
        assert users == [] and keys.shape == (0, 64) and len(registry) == 0
        assert registry


def test_drawn_bits_are_fair(path):
    with create(path, 4096) as registry:
        bits = np.stack([registry.issue(user) for user in "abcd"])
    # 16384 fair coins have a mean within 5 standard deviations, 0.02, but once in 2 million runs.
    assert abs(bits.mean() - 0.5) < 0.02


def test_a_generator_draws_repeatably(path, tmp_path):
    with create(path) as one, create(tmp_path / "other.db") as two:
        first = one.issue("ada", rng=np.random.default_rng(0))
        np.testing.assert_array_equal(first, two.issue("ada", rng=np.random.default_rng(0)))


def test_a_given_key_is_kept_as_it_is(path):
    key = np.arange(64) % 3 == 0
    with create(path) as registry:
        np.testing.assert_array_equal(registry.issue("ada", key=key), key)
        np.testing.assert_array_equal(registry.key_of("ada"), key)


def test_a_user_has_one_key_and_a_key_one_user(path):
    with create(path) as registry:
        key = registry.issue("ada")
        with pytest.raises(RegistryError, match="'ada' has a key already"):
            registry.issue("ada")
        with pytest.raises(RegistryError, match="'bob' is the key of 'ada'"):
            registry.issue("bob", key=key)
        assert registry.users() == ["ada"]


def test_a_key_too_near_to_another_is_refused_by_name(path):
    with create(path, 16, minimum_distance=4) as registry:
        registry.issue("far", key=np.ones(16, int))
        registry.issue("ada", key=np.zeros(16, int))
        near = np.zeros(16, int)
        near[[2, 7, 9]] = 1
        with pytest.raises(RegistryError, match=r"3 bits from the key of 'ada'.*at least 4 bits"):
            registry.issue("bob", key=near)
        near[11] = 1
        registry.issue("bob", key=near)  # exactly the minimum


def test_all_drawn_keys_keep_the_minimum_distance(path):
    with create(path, 24, minimum_distance=6) as registry:
        for number in range(40):
            registry.issue(f"user {number}")
        keys = registry.keys()[1].astype(int)
    assert min((a != b).sum() for a, b in itertools.combinations(keys, 2)) >= 6


def test_distance_is_kept_from_keys_that_another_connection_issued_or_removed(path):
    zeros, ones = np.zeros(8, int), np.ones(8, int)
    with create(path, 8, minimum_distance=5) as one, Registry.open(path) as two:
        one.issue("ada", key=zeros)
        with pytest.raises(RegistryError, match="the key of 'ada'"):
            two.issue("bob", key=zeros)
        one.issue("eve", key=ones)
        one.remove("ada")
        two.issue("bob", key=zeros)
        with pytest.raises(RegistryError, match="the key of 'eve'"):
            two.issue("carol", key=ones)


def test_a_full_key_space_ends_in_a_clear_error(path):
    with create(path, 8, minimum_distance=8) as registry:
        registry.issue("ada", key=np.zeros(8, int))
        registry.issue("bob", key=np.ones(8, int))
        with pytest.raises(RegistryError, match=r"no key of 8 bits .* all 2 keys .* is full"):
            registry.issue("eve")
        assert registry.users() == ["ada", "bob"]


def test_looking_up_an_unknown_user_names_the_closest(path):
    with create(path) as registry:
        with pytest.raises(UnknownUserError, match="'ada' holds no key in"):
            registry.key_of("ada")
        for user in ("Ada Lovelace", "Alan Turing", "Grace Hopper"):
            registry.issue(user)
        with pytest.raises(UnknownUserError, match=r"closest names are 'Ada Lovelace'$"):
            registry.key_of("ada lovelase")
        with pytest.raises(UnknownUserError, match="'Grace Hopper'"):
            registry.remove("Grace Hoper")
        assert len(registry) == 3


def test_a_removed_user_leaves_no_key_in_the_file(path):
    with create(path) as registry:
        registry.issue("ada")
        removed = np.packbits(registry.issue("bob")).tobytes()
        registry.issue("eve")
        registry.remove("bob")
        assert registry.users() == ["ada", "eve"]
        assert removed not in path.read_bytes()
        registry.issue("bob")
        assert registry.users() == ["ada", "eve", "bob"]


@pytest.mark.parametrize("length", [8, 63, 64, 70, 200])
def test_words_are_the_keys_packed(path, length):
    with create(path, length) as registry:
        assert registry.words()[1].shape == (0, -(-length // 64))
        for user in ("zoe", "ada", "bob"):
            registry.issue(user)
        users, words = registry.words()
        assert users == ["zoe", "ada", "bob"] and words.dtype == np.uint64
        np.testing.assert_array_equal(words, pack_words(registry.keys()[1]))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("coco", "\u0441\u043e\u0441\u043e"),  # Cyrillic
        ("\u03bf\u03c1", "\u043e\u0440"),  # Greek and Cyrillic
        ("lan", "Ian"),
        ("bill", "bi11"),
        ("Otto", "0tto"),
        ("modern", "modem"),
    ],
)
def test_a_name_that_looks_like_another_users_is_refused(path, first, second):
    with create(path) as registry:
        registry.issue(first)
        with pytest.raises(RegistryError, match="looks like") as error:
            registry.issue(second)
        assert str(error.value).isascii()  # so that the two can be told apart
        registry.remove(first)
        registry.issue(second)


FORMAT_1 = """
CREATE TABLE settings (scheme_id TEXT NOT NULL, key_length INTEGER NOT NULL,
  minimum_distance INTEGER NOT NULL, removals INTEGER NOT NULL);
CREATE TABLE keys (number INTEGER PRIMARY KEY AUTOINCREMENT, user TEXT NOT NULL UNIQUE,
  key BLOB NOT NULL UNIQUE CHECK (typeof(key) = 'blob' AND length(key) = 8));
INSERT INTO settings VALUES ('scheme-1', 64, 4, 0);
PRAGMA application_id = 1718643320;
PRAGMA user_version = 1;
"""


@pytest.fixture
def old(path):
    """A registry as format 1 wrote it, with a name that would be refused today."""
    keys = np.random.default_rng(0).integers(0, 2, (3, 64), np.uint8)
    with sqlite3.connect(path) as connection:
        connection.executescript(FORMAT_1)
        rows = zip(("ada", "lab: 3", "a\u200db"), map(bytes, np.packbits(keys, 1)), strict=True)
        connection.executemany("INSERT INTO keys (user, key) VALUES (?, ?)", rows)
    connection.close()
    path.chmod(0o600)
    return keys


def version_of(path):
    with sqlite3.connect(path) as connection:
        return connection.execute("PRAGMA user_version").fetchone()[0]


def test_a_registry_of_format_1_is_read_and_reading_changes_nothing(path, old):
    before = path.read_bytes()
    with Registry.open(path, scheme_id="scheme-1") as registry:
        np.testing.assert_array_equal(registry.keys()[1], old)
        np.testing.assert_array_equal(registry.key_of("lab: 3"), old[1])
    assert path.read_bytes() == before


def test_the_first_write_brings_format_1_up_to_date(path, old):
    with Registry.open(path) as first, Registry.open(path) as second:
        first.issue("bob")
        assert version_of(path) == FORMAT_VERSION == 3
        second.issue("eve")
        with pytest.raises(RegistryError, match="looks like 'ada'"):
            second.issue("\u0430\u0501\u0430")
        first.remove("a\u200db")
    with Registry.open(path) as registry:
        assert registry.users() == ["ada", "lab: 3", "bob", "eve"]
        np.testing.assert_array_equal(registry.keys()[1][:2], old[:2])
    flip(path, np.packbits(old[0]).tobytes(), 3)
    with pytest.raises(RegistryError, match="1 keys differ from their checksums"):
        Registry.open(path)


def flip(path, where: bytes, position: int) -> None:
    data = bytearray(path.read_bytes())
    at = data.index(where) + position
    data[at] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("what", ["key", "user", "checksum"])
def test_one_flipped_bit_in_a_row_is_found_on_opening(path, what):
    with create(path) as registry:
        registry.issue("ada")
        key = np.packbits(registry.issue("robert")).tobytes()
    where = {"key": key, "user": b"robert" + key, "checksum": checksum("robert", key)}[what]
    flip(path, where, 2)
    with pytest.raises(RegistryError, match=r"damaged: .*\(numbers 2\): restore"):
        Registry.open(path)


@pytest.mark.skipif(os.name == "nt", reason="modes of files are POSIX")
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o622])
def test_a_registry_that_others_may_read_is_opened_with_a_warning(path, mode):
    create(path).close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Registry.open(path).close()
    path.chmod(mode)
    with pytest.warns(RegistryWarning, match=f"mode 0{mode:o}.*chmod 600"):
        Registry.open(path).close()


def test_names_are_the_same_however_they_were_typed(path):
    with create(path) as registry:
        key = registry.issue("  Zoe\u0308 ")
        assert registry.users() == ["Zo\u00eb"]
        np.testing.assert_array_equal(registry.key_of("Zo\u00eb"), key)
        with pytest.raises(RegistryError, match="has a key already"):
            registry.issue("Zo\u00eb")


@pytest.mark.parametrize(
    "name, complaint",
    [
        ("", "empty"),
        ("   ", "empty"),
        ("x" * 201, "201 characters"),
        ("a\nb", "U\\+000A"),
        ("a\x00b", "U\\+0000"),
        ("a\x1b[31m", "U\\+001B"),
        ("bob\u202eada", "U\\+202E"),
        ("a\u2028b", "U\\+2028"),
        ("\ud800", "U\\+D800"),
        ("a\u200bda", "U\\+200B"),
        ("a\u200dda", "U\\+200D"),
        ("ada\ufeff", "U\\+FEFF"),
        ("a\u00adda", "U\\+00AD"),
        ("ada\u3164", "U\\+3164"),
        ("ada\ufe0f", "U\\+FE0F"),
        ("ada\u00a0b", "U\\+00A0"),
        ("ada\U000e0061", "U\\+E0061"),
        ("ada  b", "two spaces"),
        ("\u0301ada", "drawn over other text"),
        ("a" + "\u0324" * 40, "drawn over other text"),
        ("\u0430da", "mixes Cyrillic and Latin"),
        ("ad\u03b1", "mixes Greek and Latin"),
        ("\uff41da", "write 'ada'"),
        ("\U0001d41ada", "write 'ada'"),
        ("not attributed", "reads like a verdict"),
        ("NOT Attributed", "reads like a verdict"),
        ("n0t attributed", "reads like a verdict"),
        ("Unattributed", "reads like a verdict"),
        ("no key close enough", "reads like a verdict"),
        ("eve (64/64 bits, p = 1.0e-20)", "reads like a verdict"),
        ("b.png: eve", "reads like a verdict"),
        ("b.png:", "reads like a verdict"),
        ("nobody", "reads like a verdict"),
    ],
)
def test_names_that_could_not_be_shown_are_refused(path, name, complaint):
    with create(path) as registry, pytest.raises(RegistryError, match=complaint) as error:
        registry.issue(name)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "name",
    [
        *("x" * 200, "李小龍", "O'Brien; DROP TABLE keys", "👩🔬", "%_", "Zoë", "Сара", "Νίκος"),
        *(
            "김민수 Kim",
            "トム・ハンクス",
            "ada@lab.example",
            "lab:3",
            "Attila",
            "Notker",
            "user 10/64",
        ),
    ],
)
def test_names_of_all_kinds_are_kept(path, name):
    with create(path) as registry:
        registry.issue(name)
        assert registry.users() == [name] == [check_user(name)]
        registry.remove(name)


@pytest.mark.parametrize(
    "key", [np.zeros(63), np.zeros((1, 64)), np.full(64, 2), np.full(64, 0.5), np.full(64, -1)]
)
def test_keys_that_are_no_bits_of_this_length_are_refused(path, key):
    with create(path) as registry, pytest.raises(ValueError, match=r"64|the bits 0 and 1"):
        registry.issue("ada", key=key)
