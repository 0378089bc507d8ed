"""Codes: published generators, distances, masks, and decoding that beats bit by bit."""

import json

import numpy as np
import pytest

from fpjax.fingerprint.bch import _generator_polynomials, bch_generator, bch_payloads
from fpjax.fingerprint.codes import (
    BCH,
    Code,
    IndependentBits,
    Repetition,
    code_from_json,
    secret_mask,
)
from fpjax.fingerprint.energy import antipodal_form, energies

# Lin & Costello, "Error Control Coding", appendix C: (n, k) to (t, generator in octal).
PUBLISHED = {
    (7, 4): (1, "13"),
    (15, 11): (1, "23"),
    (15, 7): (2, "721"),
    (15, 5): (3, "2467"),
    (31, 26): (1, "45"),
    (31, 21): (2, "3551"),
    (31, 16): (3, "107657"),
    (31, 11): (5, "5423325"),
    (63, 57): (1, "103"),
    (63, 51): (2, "12471"),
    (63, 45): (3, "1701317"),
    (63, 39): (4, "166623567"),
    (63, 36): (5, "1033500423"),
    (63, 30): (6, "157464165547"),
    (127, 120): (1, "211"),
    (127, 113): (2, "41567"),
    (255, 247): (1, "435"),
    (255, 239): (2, "267543"),
    (511, 502): (1, "1021"),
    (1023, 1013): (1, "2011"),
}


def fixed_mask(num_symbols):
    """A mask that is the same in every run."""
    bits = np.random.default_rng(num_symbols).integers(0, 2, num_symbols, np.uint8)
    return np.packbits(bits).tobytes().hex()


CODES = [
    IndependentBits(12),
    Repetition(4, 4),
    Repetition(5, 3, fixed_mask(15)),
    BCH(16, 7, fixed_mask(16)),
    BCH(15, 5),
    BCH(24, 14, fixed_mask(24)),
]


def every_word(bits):
    return ((np.arange(2**bits)[:, None] >> np.arange(bits)) & 1).astype(np.uint8)


def observe(rng, word, information):
    """Linear term that an image with this word leaves under this information."""
    noise = np.linalg.cholesky(information + 1e-9 * np.eye(len(word))) @ rng.normal(size=len(word))
    return information @ (2.0 * word - 1) + noise


def wishart(rng, length, strength):
    factor = rng.normal(size=(length, 2 * length)) * 10 ** rng.uniform(-1, 0.3, (length, 1))
    return strength * factor @ factor.T / (2 * length)


@pytest.mark.parametrize(("length", "payload"), PUBLISHED)
def test_generator_polynomials_are_the_published_ones(length, payload):
    t, octal = PUBLISHED[length, payload]
    assert (t, int(octal, 8)) in _generator_polynomials((length + 1).bit_length() - 1)
    assert bch_payloads(length)[payload] == 2 * t + 1


@pytest.mark.parametrize("length", [15, 16, 12, 31, 32, 24])
def test_words_differ_in_at_least_the_designed_distance(length):
    for payload, distance in bch_payloads(length).items():
        if payload <= 11:
            weights = (every_word(payload) @ bch_generator(length, payload) % 2).sum(1)
            assert weights[1:].min() >= distance


@pytest.mark.parametrize("code", CODES, ids=repr)
def test_every_code_keeps_the_protocol(code):
    rng = np.random.default_rng(0)
    assert isinstance(code, Code)
    bits = rng.integers(0, 2, (20, code.payload_bits))
    words = code.encode(bits)
    assert words.shape == (20, code.num_symbols) and words.dtype == np.uint8
    information = np.broadcast_to(
        np.eye(code.num_symbols), (20, code.num_symbols, code.num_symbols)
    )
    decoded, energy = code.decode(information, 3.0 * (2.0 * words - 1))
    np.testing.assert_array_equal(decoded, bits)
    quadratic = antipodal_form(information, 3.0 * (2.0 * words - 1))
    np.testing.assert_allclose(energy, energies(quadratic, words[:, None])[:, 0])
    saved = json.loads(json.dumps(code.to_json()))
    assert code_from_json(saved) == code and hash(code_from_json(saved)) == hash(code)


@pytest.mark.parametrize("code", CODES, ids=repr)
def test_decoding_finds_the_best_of_all_words(code):
    """40 noisy images: whether the right word wins or loses, the best one is found."""
    rng = np.random.default_rng(1)
    words = code.encode(every_word(code.payload_bits))
    found, least, right = [], [], []
    for _ in range(40):
        information = wishart(rng, code.num_symbols, 4.0)
        sent = rng.integers(0, 2, (1, code.payload_bits))
        linear = observe(rng, code.encode(sent)[0], information)
        bits, energy = code.decode(information, linear)
        found.append(energy[0])
        least.append(energies(antipodal_form(information, linear), words).min())
        right.append((bits == sent).all())
    assert (np.array(found) <= np.array(least) + 1e-9).mean() >= 0.95
    assert 0 < np.mean(right) < 1


def test_levels_zero_and_one_decode_to_the_same_bits():
    rng = np.random.default_rng(2)
    code = BCH(16, 7, fixed_mask(16))
    information = wishart(rng, 16, 10.0)
    sent = rng.integers(0, 2, (1, 7))
    linear = information @ code.encode(sent)[0].astype(float)
    bits, energy = code.decode(information, linear, "binary")
    np.testing.assert_array_equal(bits, sent)
    word = code.encode(bits)[0].astype(float)
    assert energy[0] == pytest.approx(0.5 * word @ information @ word - linear @ word, abs=1e-9)


def test_errors_beyond_half_the_distance_are_corrected_by_their_reliability():
    """(63, 36) corrects 5 errors of hard bits; here 60 words have 3 to 14, about 7."""
    rng = np.random.default_rng(3)
    code = BCH(63, 36, fixed_mask(63))
    sent = rng.integers(0, 2, (60, 36))
    words = code.encode(sent)
    information = np.broadcast_to(1.5 * np.eye(63), (60, 63, 63))
    linear = np.stack([observe(rng, word, information[0]) for word in words])
    errors = ((linear > 0) != words).sum(1)
    assert errors.mean() > 6
    decoded, _ = code.decode(information, linear)
    assert (decoded == sent).all(1).mean() > 0.75


def test_soft_decoding_of_a_code_beats_the_same_payload_without_it():
    """64 symbols at 2 dB: 36 bits by BCH against 36 of 64 independent bits."""
    rng = np.random.default_rng(4)
    code, plain = BCH(64, 36, fixed_mask(64)), IndependentBits(64)
    information = np.broadcast_to(1.6 * np.eye(64), (60, 64, 64))
    sent, other = rng.integers(0, 2, (60, 36)), rng.integers(0, 2, (60, 64))
    observed = [
        np.stack([observe(rng, word, information[0]) for word in words])
        for words in (code.encode(sent), other)
    ]
    coded = (code.decode(information, observed[0])[0] == sent).all(1).mean()
    uncoded = (plain.decode(information, observed[1])[0][:, :36] == other[:, :36]).all(1).mean()
    assert coded > 0.8 and uncoded < 0.2


def test_a_mask_makes_each_symbol_of_a_word_uniform_and_its_loss_shows():
    assert BCH(16, 7, secret_mask(16)).uniform and not BCH(16, 7).uniform
    zeros = np.zeros((1, 7), int)
    words = np.concatenate([BCH(16, 7, secret_mask(16)).encode(zeros) for _ in range(400)])
    # 400 fair coins are within 0.13 of one half but once in a million symbols.
    assert (np.abs(words.mean(0) - 0.5) < 0.13).all()
    assert len({secret_mask(64) for _ in range(8)}) == 8


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BCH(64, 40), "payloads are 57, 51, 45, 39, 36"),
        (lambda: BCH(2, 1), "3 to 1024 symbols"),
        (lambda: BCH(64, 36, "ff"), "the mask has 8 bits"),
        (lambda: BCH(60, 33, "f" * 16), "the mask has 64 bits"),
        (lambda: Repetition(4, 4, "zz" * 2), "not hexadecimal"),
        (lambda: Repetition(4, 0), "repeats is 0"),
        (lambda: IndependentBits(0), "length is 0"),
        (lambda: IndependentBits(4).encode(np.ones((2, 5))), r"expected \(N, 4\)"),
        (lambda: IndependentBits(4).encode(np.full((2, 4), 2)), "other values"),
        (lambda: BCH(16, 7).decode(np.eye(15), np.ones(15)), "about 15 symbols"),
        (lambda: code_from_json({"code": "turbo"}), "unknown code 'turbo'"),
        (lambda: code_from_json({"code": "bch", "length": 16}), "has the fields"),
        (lambda: code_from_json({"code": "independent", "length": "16"}), "expected int"),
    ],
)
def test_misuse_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
