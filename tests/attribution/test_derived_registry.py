"""Registries of derived keys: names, numbers, revocation, and what is refused."""

import sqlite3

import numpy as np
import pytest

from fpjax.attribution.derived_registry import DerivedRegistry, open_registry
from fpjax.attribution.registry import Registry, RegistryError, UnknownUserError
from fpjax.fingerprint.derived import DerivedKeys, SecretError, create_secret
from fpjax.fingerprint.scheme import load_scheme
from tests.attribution.registries import mode

SECRET = bytes(range(32))
OPTIONS = {"key_length": 64, "scheme_id": "scheme-1"}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "users.db"


def test_users_have_the_keys_of_their_numbers_named_or_not(path):
    with DerivedRegistry.create(path, SECRET, **OPTIONS) as registry:
        ada = registry.issue("ada")
        assert list(registry.extend(3)) == [1, 2, 3]
        bob = registry.issue("bob")
    keys = DerivedKeys(SECRET, 5, 64)
    np.testing.assert_array_equal(ada, keys.key(0))
    np.testing.assert_array_equal(bob, keys.key(4))
    with DerivedRegistry.open(path, SECRET, scheme_id="scheme-1") as registry:
        assert len(registry) == 5 and registry.users() == ["ada", "bob"]
        assert [registry.holder(i) for i in range(5)] == ["ada", "1", "2", "3", "bob"]
        np.testing.assert_array_equal(registry.key_of("3"), keys.key(3))
        np.testing.assert_array_equal(registry.key_of("bob"), keys.key(4))
        found = registry.candidates()
        assert len(found) == 5 and found.holder(4) == "bob"
    assert mode(path) == 0o600


def test_a_billion_users_are_one_small_file(path):
    with DerivedRegistry.create(path, SECRET, **OPTIONS) as registry:
        registry.extend(10**9)
        assert len(registry.candidates()) == 10**9
        assert registry.holder(999_999_999) == "999999999"
        with pytest.raises(RegistryError, match="has 1000000000 users, no 9000000000 more"):
            registry.extend(9 * 10**9)
    assert path.stat().st_size < 100_000


def test_no_key_and_no_secret_is_in_the_file(path):
    with DerivedRegistry.create(path, SECRET, **OPTIONS) as registry:
        key = registry.issue("ada")
    data = path.read_bytes()
    assert SECRET not in data and np.packbits(key).tobytes() not in data


def test_a_revoked_key_stays_known_and_makes_nothing(path):
    with DerivedRegistry.create(path, SECRET, **OPTIONS) as registry:
        registry.issue("ada")
        registry.extend(2)
        registry.revoke("ada")
        registry.revoke("2")
        first = registry.revoked()
        registry.revoke("ada")
        assert registry.revoked() == first and list(first) == ["ada", "2"]
        with pytest.raises(RegistryError, match=r"is revoked since .*another name"):
            registry.key_of("ada")
        np.testing.assert_array_equal(
            registry.key_of("ada", revoked=True), DerivedKeys(SECRET, 1, 64).key(0)
        )
        assert set(registry.candidates().revoked) == {0, 2}


def test_names_and_secrets_that_cannot_be(path):
    with DerivedRegistry.create(path, SECRET, **OPTIONS) as registry:
        registry.issue("ada")
        for name, message in (("ada", "has a key already"), ("17", "is a number"), ("", "empty")):
            with pytest.raises(RegistryError, match=message):
                registry.issue(name)
        for name in ("1", "bob", "-1", "0x0"):
            with pytest.raises(UnknownUserError):
                registry.key_of(name)
        with pytest.raises(IndexError):
            registry.holder(1)
        assert len(registry) == 1
    with pytest.raises(RegistryError, match="not the one that the keys"):
        DerivedRegistry.open(path, bytes(32))
    with pytest.raises(RegistryError, match="belongs to the scheme 'scheme-1'"):
        DerivedRegistry.open(path, SECRET, scheme_id="scheme-2")
    with pytest.raises(RegistryError, match="exists already"):
        DerivedRegistry.create(path, SECRET, **OPTIONS)
    bundled = load_scheme("avatars-stylegan2/pca")
    of_old = path.with_name("old.db")
    with DerivedRegistry.create(of_old, SECRET, **OPTIONS | {"scheme_id": bundled.id}):
        pass
    with pytest.raises(RegistryError, match=r"\(avatars-stylegan2/pca\), not to"):
        DerivedRegistry.open(of_old, SECRET, scheme_id="scheme-2")
    with pytest.raises(SecretError, match="32 bytes, not 31"):
        DerivedRegistry.create(path.with_name("x"), bytes(31), **OPTIONS)
    assert not path.with_name("x").exists()


def test_without_the_secret_names_are_read_and_no_key(path):
    with DerivedRegistry.create(path, SECRET, **OPTIONS) as registry:
        registry.issue("ada")
    with DerivedRegistry.open(path, None) as registry:
        assert registry.users() == ["ada"]
        for action in (registry.candidates, lambda: registry.issue("bob")):
            with pytest.raises(RegistryError, match="--secret"):
                action()
        assert len(registry) == 1


def test_each_kind_of_registry_says_that_it_is_the_other(path, tmp_path):
    secret = tmp_path / "secret"
    create_secret(secret)
    Registry.create(path, **OPTIONS).close()
    with pytest.raises(RegistryError, match="leave the secret out"):
        open_registry(path, secret)
    other = tmp_path / "derived.db"
    DerivedRegistry.create(other, SECRET, **OPTIONS).close()
    with pytest.raises(RegistryError, match="name the secret's file"):
        open_registry(other)
    with sqlite3.connect(other) as connection:
        connection.execute("PRAGMA user_version = 2")
    connection.close()
    with pytest.raises(RegistryError, match="upgrade fpjax"):
        DerivedRegistry.open(other, SECRET)


def test_a_secret_of_the_wrong_size_or_mode_is_refused(path, tmp_path):
    DerivedRegistry.create(path, SECRET, **OPTIONS).close()
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET + b"\n")
    secret.chmod(0o600)
    with pytest.raises(SecretError, match="has 33 bytes"):
        open_registry(path, secret)
    secret.write_bytes(SECRET)
    secret.chmod(0o640)
    with pytest.raises(SecretError, match=r"mode 0640.*chmod 600"):
        open_registry(path, secret)
    secret.chmod(0o600)
    open_registry(path, secret).close()


def test_a_writer_that_dies_leaves_the_count_as_it_was(path):
    with DerivedRegistry.create(path, SECRET, **OPTIONS) as registry:
        registry.extend(5)
        with pytest.raises(ZeroDivisionError), registry._transaction("try") as connection:
            registry._take(connection, 3)
            raise ZeroDivisionError
        assert len(registry) == 5
