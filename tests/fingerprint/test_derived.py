"""Derived keys: RFC 8439, the same key from every road, uniform, and secrets that stay secret."""

import os
import stat

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpjax.fingerprint.derived import (
    DerivedKeys,
    SecretError,
    chacha20_block,
    create_secret,
    read_secret,
)
from fpjax.fingerprint.packed import num_words, pack_keys, unpack_keys

SECRET = bytes(range(32))


def words(text):
    return jnp.asarray(np.frombuffer(bytes.fromhex(text.replace(":", "")), "<u4").astype(np.uint32))


# RFC 8439, section 2.3.2 and appendix A.1: key, counter, nonce, key stream.
VECTORS = [
    (
        bytes(range(32)).hex(),
        1,
        "000000090000004a00000000",
        "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e"
        "d2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e",
    ),
    (
        "00" * 32,
        0,
        "00" * 12,
        "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
        "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586",
    ),
    (
        "00" * 32,
        1,
        "00" * 12,
        "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed"
        "29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f",
    ),
    (
        "00" * 31 + "01",
        1,
        "00" * 12,
        "3aeb5224ecf849929b9d828db1ced4dd832025e8018b8160b82284f3c949aa5a"
        "8eca00bbb4a73bdad192b5c42f73f2fd4e273644c8b36125a64addeb006c13a0",
    ),
    (
        "00ff" + "00" * 30,
        2,
        "00" * 12,
        "72d54dfbf12ec44b362692df94137f328fea8da73990265ec1bbbea1ae9af0ca"
        "13b25aa26cb4a648cb9b9d1be65b2c0924a66c54d545ec1b7374f4872e99f096",
    ),
    (
        "00" * 32,
        0,
        "00" * 11 + "02",
        "c2c64d378cd536374ae204b9ef933fcd1a8b2288b3dfa49672ab765b54ee27c7"
        "8a970e0e955c14f3a88e741b97c286f75f8fc299e8148362fa198a39531bed6d",
    ),
]


@pytest.mark.parametrize(("key", "counter", "nonce", "stream"), VECTORS)
def test_block_function_is_that_of_the_rfc(key, counter, nonce, stream):
    counters = jnp.asarray([counter, counter ^ 5], jnp.uint32)
    found = np.asarray(chacha20_block(words(key), counters, words(nonce)))
    assert found[0].astype("<u4").tobytes().hex() == stream


def test_packing_is_little_endian_and_goes_back():
    rng = np.random.default_rng(0)
    for length in (1, 31, 32, 33, 64, 100):
        bits = rng.integers(0, 2, (7, length), np.uint8)
        packed = pack_keys(bits)
        assert packed.shape == (7, num_words(length)) and packed.dtype == np.uint32
        np.testing.assert_array_equal(unpack_keys(packed, length), bits)
        number = sum(int(bit) << i for i, bit in enumerate(bits[0]))
        assert sum(int(word) << 32 * i for i, word in enumerate(packed[0])) == number


@pytest.mark.parametrize("length", [1, 20, 32, 64, 96, 128, 600])
def test_one_key_by_number_is_the_key_in_its_block(length):
    keys = DerivedKeys(SECRET, count=10_000, key_length=length)
    starts, blocks = zip(*keys.blocks(2048), strict=True)
    assert starts == (0, 2048, 4096, 6144, 8192)
    assert all(block.shape == (2048, keys.num_words) for block in blocks)
    every = unpack_keys(np.concatenate([np.asarray(block) for block in blocks]), length)
    for index in (0, 1, 7, 8, 4095, 9_999):
        np.testing.assert_array_equal(keys.key(index), every[index])
    np.testing.assert_array_equal(keys.keys([9, 3, 9]), every[[9, 3, 9]])


def test_keys_are_the_same_forever():
    """Registries of users depend on it: these digits were printed once and must never change."""
    keys = DerivedKeys(SECRET, count=1 << 34, key_length=64)
    assert pack_keys(keys.keys([0, 1, 10**9])).tobytes().hex() == (
        "dcd2a899127cbb1b9fad1f9a8376fe9027d2f77c5cefda61"
    )
    longer = DerivedKeys(SECRET, count=5, key_length=65)
    assert (longer.key(0)[:64] != keys.key(0)).any()


def test_the_key_of_a_user_does_not_depend_on_how_many_there_are():
    few, many = (DerivedKeys(SECRET, count, 64) for count in (5, 10**10))
    np.testing.assert_array_equal(few.key(4), many.key(4))
    assert few.holder(4) == "4"
    for index in (5, -1):
        with pytest.raises(IndexError, match="there are 5, from 0"):
            few.key(index)


def test_bits_are_fair_and_keys_differ():
    keys = DerivedKeys(SECRET, count=1 << 16, key_length=64)
    ((_, block),) = keys.blocks(1 << 16)
    bits = unpack_keys(np.asarray(block), 64)
    # Standard deviation of a mean of 65,536 fair bits: 0.002.
    assert np.abs(bits.mean(0) - 0.5).max() < 0.01
    assert len(np.unique(np.asarray(block), axis=0)) == 1 << 16


def test_settings_of_jax_do_not_change_keys():
    keys = DerivedKeys(SECRET, count=100, key_length=64)
    expected = keys.keys(range(20))
    with (
        jax.enable_x64(True),
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
    ):
        np.testing.assert_array_equal(keys.keys(range(20)), expected)


def test_a_secret_is_not_shown():
    assert "secret" not in repr(DerivedKeys(SECRET, count=5, key_length=64))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((bytes(31), 5, 64), "32 bytes, not 31"),
        (("a" * 32, 5, 64), "32 bytes, not str"),
        ((SECRET, 0, 64), "count is 0"),
        ((SECRET, 1 << 36, 64), "serve 1 to 34359738368 users"),
        ((SECRET, 5, 0), "key_length is 0"),
    ],
)
def test_misuse_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        DerivedKeys(*arguments)
    with pytest.raises(ValueError, match="multiple of 8"):
        DerivedKeys(SECRET, 100, 64).words(4, 8)


def test_secret_files_are_private_whole_and_never_overwritten(tmp_path):
    path = tmp_path / "secret"
    secret = create_secret(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and len(secret) == 32
    assert read_secret(path) == secret and os.listdir(tmp_path) == ["secret"]
    with pytest.raises(SecretError, match="never overwritten"):
        create_secret(path)
    assert read_secret(path) == secret and os.listdir(tmp_path) == ["secret"]


def test_secret_files_of_another_size_or_mode_are_refused(tmp_path):
    path = tmp_path / "secret"
    with pytest.raises(SecretError, match="No such file"):
        read_secret(path)
    with pytest.raises(SecretError, match="can't"):
        create_secret(tmp_path / "missing" / "secret")
    path.write_bytes(bytes(33))
    path.chmod(0o600)
    with pytest.raises(SecretError, match="33 bytes: a secret has 32"):
        read_secret(path)
    path.write_bytes(bytes(32))
    path.chmod(0o640)
    with pytest.raises(SecretError, match="mode 0640"):
        read_secret(path)
    with pytest.raises(SecretError):
        read_secret(tmp_path)
