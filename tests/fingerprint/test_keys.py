"""Keys: sources, text form, and what is refused."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fpjax.fingerprint import keys


@given(st.lists(st.integers(0, 1), min_size=1, max_size=200))
def test_hexadecimal_round_trips_at_any_length(bits):
    text = keys.to_hex(np.array(bits))
    np.testing.assert_array_equal(keys.from_hex(text, len(bits)), bits)


def test_sampled_keys_repeat_and_are_balanced():
    drawn = keys.sample_keys(jax.random.key(0), 1000, 64)
    np.testing.assert_array_equal(drawn, keys.sample_keys(jax.random.key(0), 1000, 64))
    # 64,000 fair bits: five standard deviations are 0.01.
    assert abs(drawn.mean() - 0.5) < 0.01


def test_secret_keys_differ_between_calls_and_are_balanced():
    drawn = keys.secret_keys(1000, 64)
    assert not np.array_equal(drawn, keys.secret_keys(1000, 64))
    assert drawn.shape == (1000, 64) and abs(drawn.mean() - 0.5) < 0.01


@pytest.mark.parametrize(
    ("text", "message"),
    [("zz", "not hexadecimal"), ("ffff", "8 bits take 2"), ("0 1", "not hexadecimal|digits")],
)
def test_broken_key_text_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        keys.from_hex(text, 8)


def test_bits_beyond_the_length_are_refused():
    with pytest.raises(ValueError, match="beyond the first 4"):
        keys.from_hex("0f", 4)


def test_keys_of_the_wrong_length_or_with_other_values_are_refused():
    with pytest.raises(ValueError, match=r"expected \(N, 4\)"):
        keys.check_keys(np.zeros((2, 5)), 4)
    with pytest.raises(ValueError, match="other values"):
        keys.check_keys([[0, 1, 2, 0]], 4)


def test_levels_follow_their_convention():
    bits = np.array([0, 1])
    assert keys.to_symbols(bits, "binary").tolist() == [0, 1]
    assert keys.to_symbols(bits, "antipodal").tolist() == [-1, 1]
