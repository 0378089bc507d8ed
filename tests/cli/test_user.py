"""`fpjax user`: keys derived from a secret, and keys that leaked, from the command line."""

import json

import pytest

from fpjax.attribution.derived_registry import DerivedRegistry
from fpjax.cli.main import run
from fpjax.fingerprint.derived import read_secret
from tests.attribution.registries import mode
from tests.cli.conftest import opened


@pytest.fixture
def derived(workplace, tmp_path):
    """Flags of a registry of derived keys, which is not there yet."""
    registry, secret = tmp_path / "derived.db", tmp_path / "secret"
    return [*workplace.flags[:2], f"--registry={registry}", f"--secret={secret}"]


def _users(derived):
    return [flag for flag in derived if not flag.startswith(("--generator", "--scheme"))]


def test_derived_keys_from_the_first_user_to_the_verdict(derived, tmp_path, capsys):
    assert run(["user", "add", "ada", "--count=40", *derived]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[1] == "users 1 to 40: 41 in all"
    assert "made the secret" in printed.err and mode(tmp_path / "secret") == 0o600
    assert run(["generate", "17", "--num=2", "--seed=1", f"--out={tmp_path / 'x'}", *derived]) == 0
    capsys.readouterr()
    images = sorted(str(path) for path in (tmp_path / "x").glob("*.png"))
    # Eight bits and 41 keys: others share them. The rate is that of two statistics.
    flags = [*derived, "--false_positive_rate=0.9", "--json=-", "--show_keys"]
    assert run(["attribute", *images, *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    with DerivedRegistry.open(tmp_path / "derived.db", read_secret(tmp_path / "secret")) as users:
        key = users.key_of("17")
    assert found["num_users"] == 41
    assert {entry["key"] for entry in found["images"]} == {f"{int(''.join(map(str, key)), 2):02x}"}
    assert {entry["matching_bits"] for entry in found["images"]} == {8}


def test_lists_names_numbers_and_revocations(derived, capsys):
    assert run(["user", "add", "ada", "bob", "--count=2", *derived]) == 0
    assert run(["user", "revoke", "bob", "3", *_users(derived)]) == 0
    assert "bob  revoked since 20" in capsys.readouterr().out
    assert run(["user", "list", *_users(derived)]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0] == "ada" and lines[1].startswith("bob  revoked since")
    assert lines[2].startswith("3  revoked") and "4 users, of whom 2 have a name" in printed.err
    assert run(["user", "list", "--keys", *_users(derived)]) == 0
    assert len(capsys.readouterr().out.splitlines()[0].split()[1]) == 2


def test_a_revoked_key_is_said_to_be_revoked(workplace, tmp_path, capsys):
    flags = [*workplace.flags[:2], f"--registry={tmp_path / 'users.db'}"]
    assert run(["user", "add", "eve", *flags]) == 0
    assert run(["generate", "eve", "--num=1", "--seed=3", f"--out={tmp_path / 'x'}", *flags]) == 0
    (image,) = (tmp_path / "x").glob("*.png")
    assert run(["user", "revoke", "eve", flags[2]]) == 0
    capsys.readouterr()
    out = tmp_path / "answers.json"
    assert run(["attribute", str(image), *flags, "--false_positive_rate=0.5",
                f"--json={out}"]) == 0  # fmt: skip
    assert "not attributed: the key is a revoked one" in (printed := capsys.readouterr().out)
    assert "that of eve" in printed
    entry = json.loads(out.read_text())["images"][0]
    assert (entry["status"], entry["user"], entry["revoked_user"]) == (
        "not attributed", None, "eve"
    )  # fmt: skip
    assert run(["generate", "eve", f"--out={tmp_path / 'y'}", *flags]) == 1
    assert "is revoked since" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["add", "--count=3"], 2, "add --secret"),
        (["add"], 2, "name the users"),
        (["add", "--count=0"], 2, "count"),
        (["revoke"], 2, "name the users"),
        (["revoke", "nobody"], 1, "holds no key"),
        (["list", "--secret=missing"], 1, "can't read the secret missing"),
    ],
)
def test_what_cannot_be_is_one_line(workplace, arguments, code, message, capsys):
    flags = workplace.flags if arguments[0] == "add" else workplace.flags[2:]
    assert run(["user", *arguments, *flags]) == code
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_secrets_that_others_can_read_or_of_another_size_are_refused(derived, tmp_path, capsys):
    secret = tmp_path / "secret"
    secret.write_bytes(b"x" * 16)
    secret.chmod(0o600)
    assert run(["user", "add", "ada", *derived]) == 1
    assert "has 16 bytes: a secret has 32" in capsys.readouterr().err
    secret.write_bytes(b"x" * 32)
    secret.chmod(0o644)
    assert run(["user", "add", "ada", *derived]) == 1
    assert "mode 0644" in (error := capsys.readouterr().err) and error.count("\n") == 1
    assert not (tmp_path / "derived.db").exists()


def test_a_scheme_with_a_code_from_the_command_line(workplace, tmp_path, capsys):
    """Made, written with, and read, with keys of four bits on seven directions."""
    create = ["scheme", "create", workplace.flags[0], f"--out={tmp_path / 'coded'}"]
    small = ["--strength=1.5", "--num_samples=500", "--num_jacobians=8", "--num_start_images=200",
             "--num_inverted_images=2"]  # fmt: skip
    assert run([*create, "--code=bch-7-5", *small]) == 2
    assert "payloads are" in capsys.readouterr().err
    assert run([*create, "--code=bch-7-4", "--key_length=7", *small]) == 2
    assert run([*create, "--code=bch-7-4", *small]) == 0
    assert "4-bit keys as 7 symbols" in capsys.readouterr().out
    saved = opened(tmp_path / "coded")
    assert (saved.key_length, saved.num_symbols, saved.code.payload_bits) == (4, 7, 4)
    assert saved.calibration.num_inverted_images == 2
    flags = [
        workplace.flags[0],
        f"--scheme={tmp_path / 'coded'}",
        f"--registry={tmp_path / 'u.db'}",
    ]
    assert run(["user", "add", "ada", *flags]) == 0
    assert run(["generate", "ada", "--num=2", "--seed=1", f"--out={tmp_path / 'x'}", *flags]) == 0
    images = sorted(str(path) for path in (tmp_path / "x").glob("*.png"))
    capsys.readouterr()
    assert run(["attribute", *images, *flags, "--false_positive_rate=0.05"]) == 0
    assert capsys.readouterr().out.count(": ada (7/7 bits") == 2
