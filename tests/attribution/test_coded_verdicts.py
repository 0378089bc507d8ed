"""Verdicts with codes, derived keys and revocation: who is named, and at which rate."""

import jax
import numpy as np
import pytest

import fpjax
from fpjax.attribution.candidates import Candidates, candidates_of
from fpjax.attribution.decision import Reason, attribute, decide, decide_among, read_keys
from fpjax.attribution.registry import Registry
from fpjax.errors import InputError
from fpjax.fingerprint.codes import BCH, Repetition, code_from_json, secret_mask
from fpjax.fingerprint.derived import DerivedKeys
from fpjax.fingerprint.encoded import EncodedKeys
from fpjax.fingerprint.packed import unpack_keys
from fpjax.fingerprint.stored import StoredKeys
from tests import toys
from tests.attribution.test_decision import _solution

CODES = (
    BCH(63, 45, "f6ad440ead6bc0f4"),
    BCH(64, 36),
    Repetition(13, 5, "42263ae29224ee1e00"),
    Repetition(20, 3),
)


def _noisy(words, precision, rng):
    """A solution whose symbols were seen with white noise of this precision."""
    symbols = 2.0 * words - 1
    linear = precision * symbols + np.sqrt(precision) * rng.standard_normal(symbols.shape)
    length = words.shape[1]
    information = np.repeat(precision * np.eye(length)[None], len(words), axis=0)
    return fpjax.Solution(
        **{**vars(_solution(linear > 0)), "information": information, "linear": linear}
    )


@pytest.mark.parametrize("code", CODES, ids=lambda code: f"{code.name}{code.uniform}")
def test_encoded_keys_are_the_words_of_their_keys(code):
    keys = np.random.default_rng(0).integers(0, 2, (300, code.payload_bits), np.uint8)
    source = EncodedKeys(StoredKeys.from_bits(keys), code)
    assert (len(source), source.key_length) == (300, code.num_symbols)
    found = unpack_keys(source.words(0, 300), code.num_symbols)
    np.testing.assert_array_equal(found, code.encode(keys))
    derived = DerivedKeys(bytes(32), 16, code.payload_bits)
    found = unpack_keys(EncodedKeys(derived, code).words(0, 16), code.num_symbols)
    np.testing.assert_array_equal(found, code.encode(derived.keys(range(16))))


def test_encoded_keys_of_another_length_are_refused():
    with pytest.raises(ValueError, match="the code carries 45"):
        EncodedKeys(DerivedKeys(bytes(32), 16, 44), CODES[0])


@pytest.mark.parametrize("code", CODES, ids=lambda code: f"{code.name}{code.uniform}")
def test_a_coded_key_is_read_and_its_holder_named(code):
    rng = np.random.default_rng(1)
    keys = rng.integers(0, 2, (50, code.payload_bits), np.uint8)
    users = [f"user{i}" for i in range(50)]
    image = _noisy(code.encode(keys[7:9]), 4.0, rng)
    assert (image.keys != code.encode(keys[7:9])).sum() > 0  # single symbols are wrong
    np.testing.assert_array_equal(read_keys(image, code, "antipodal"), keys[7:9])
    rate = 1e-6 if code.payload_bits > 30 or code.uniform else 1e-2
    found = decide(image, users, keys, code=code, false_positive_rate=rate)
    assert [verdict.user for verdict in found] == ["user7", "user8"]
    compared = code.num_symbols if code.uniform else code.payload_bits
    assert all(verdict.key_length == compared for verdict in found)


@pytest.mark.parametrize("code", CODES, ids=lambda code: f"{code.name}{code.uniform}")
def test_images_without_keys_are_attributed_no_more_often_than_stated(code):
    """Over keys and masks, for decodings that look like words: a repeated value everywhere."""
    rng = np.random.default_rng(2)
    named = 0
    for trial in range(40):
        mask = secret_mask(code.num_symbols) if code.uniform else ""
        drawn = code_from_json({**code.to_json(), "mask": mask})
        words = np.full((1, code.num_symbols), trial % 2, np.uint8)
        keys = rng.integers(0, 2, (20, code.payload_bits), np.uint8)
        image = _noisy(words, 0.5, rng)
        named += decide(image, [str(i) for i in range(20)], keys, code=drawn,
                        false_positive_rate=0.2)[0].user is not None  # fmt: skip
    # At most 20 % of 40, plus three standard deviations of a binomial.
    assert named <= 8 + 3 * np.sqrt(40 * 0.2 * 0.8)


def test_a_solution_without_information_is_read_by_its_nearest_word():
    code = CODES[0]
    keys = np.random.default_rng(3).integers(0, 2, (2, 45), np.uint8)
    words = code.encode(keys)
    words[:, :2] ^= 1  # distance 7; without reliabilities two errors are always found
    for levels in ("antipodal", "binary"):
        np.testing.assert_array_equal(read_keys(_solution(words), code, levels), keys)


def test_derived_keys_name_the_same_users_as_their_list():
    keys = DerivedKeys(bytes(range(32)), 40_000, 64)
    everyone = keys.keys(range(40_000))
    bits = everyone[[3, 39_999]].copy()
    bits[:, :4] ^= 1
    image = _solution(np.concatenate([bits, 1 - bits]))
    listed = decide(image, [str(i) for i in range(40_000)], everyone)
    derived = decide_among(image, candidates_of(keys))
    assert derived == listed
    assert [verdict.user for verdict in derived] == ["3", "39999", None, None]


def test_a_revoked_key_is_recognised_and_names_nobody():
    keys = np.random.default_rng(4).integers(0, 2, (3, 64), np.uint8)
    candidates = Candidates(StoredKeys.from_bits(keys), ["ada", "bob", "eve"].__getitem__, {1: "x"})
    found = decide_among(_solution(keys), candidates)
    assert [verdict.user for verdict in found] == ["ada", None, "eve"]
    assert found[1].reason is Reason.REVOKED and found[1].nearest_user == "bob"
    assert found[1].p_value == found[0].p_value  # it still counts as a comparison


def test_a_registry_remembers_revocations_and_old_files_have_none(tmp_path):
    path = tmp_path / "users.db"
    with Registry.create(path, key_length=64, scheme_id="s") as registry:
        key = registry.issue("ada")
        registry.issue("bob")
        assert registry.revoked() == {}
        registry.revoke("ada")
        with pytest.raises(fpjax.UnknownUserError, match="'bob'"):
            registry.revoke("bobb")
    with Registry.open(path) as registry:
        assert list(registry.revoked()) == ["ada"]
        with pytest.raises(fpjax.RegistryError, match="revoked since"):
            registry.key_of("ada")
        np.testing.assert_array_equal(registry.key_of("ada", revoked=True), key)
        found = registry.candidates()
        assert list(found.revoked) == [0] and found.holder(0) == "ada"
        with pytest.raises(fpjax.RegistryError, match="has a key already"):
            registry.issue("ada")
        registry.remove("ada")
        assert registry.revoked() == {} and not registry.candidates().revoked


def test_a_coded_scheme_is_attributed_from_its_images(tmp_path):
    made = toys.generator(scale=0.3)
    scheme = toys.scheme(made, strength=1.5, length=None, code="repetition-3-2")
    keys = np.array([[0, 1, 1], [1, 0, 0], [1, 1, 1]], np.uint8)
    images = fpjax.generate(scheme, jax.random.key(3), keys).images
    problem = fpjax.Problem(scheme)
    solution = fpjax.invert(problem, images, starts=toys.starts(scheme))
    assert solution.keys.shape == (3, 6)
    np.testing.assert_array_equal(solution.keys, scheme.words_of(keys))
    found = decide(solution, ["a", "b", "c"], keys, code=scheme.code, false_positive_rate=0.2)
    assert [verdict.user for verdict in found] == ["a", "b", "c"]


def test_keys_of_another_length_are_refused_before_inverting(calibrated_scheme, tiny_images):
    with pytest.raises(InputError, match="keys of 64 bits: the scheme's have 6"):
        attribute(calibrated_scheme, tiny_images[0], DerivedKeys(bytes(32), 10, 64))


def test_a_bare_source_of_keys_is_attributed_by_number(calibrated_scheme, tiny_images):
    keys = DerivedKeys(bytes(32), 10, 6)
    found = attribute(calibrated_scheme, tiny_images[0][:1], keys, false_positive_rate=0.9)
    assert found.verdicts[0].nearest_user in map(str, range(10))
