"""Huffman codes against entropy, against the best of all prefix codes, and against damage."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamic.models.compress.packing.huffman import Encoded, decode, encode
from dynamic.policies.errors import CorruptError, InputError


def bits(encoded: Encoded, often: np.ndarray) -> int:
    return int((np.frombuffer(encoded.lengths, np.uint8).astype(int) * often).sum())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=300))
def test_symbols_come_back(symbols: list[int]) -> None:
    found = decode(encode(np.array(symbols, np.int64)))
    assert found.tolist() == symbols


def test_by_hand() -> None:
    """a 4, b 2, c 1, d 1: words 0, 10, 110, 111; abacada b -> 0 10 0 110 0 111 0 10."""
    encoded = encode(np.array([0, 1, 0, 2, 0, 3, 0, 1]))
    assert encoded.lengths == bytes([1, 2, 3, 3])
    assert encoded.bits == bytes([0b01001100, 0b11101000])
    assert decode(encoded).tolist() == [0, 1, 0, 2, 0, 3, 0, 1]


def test_words_of_one_length_rise_with_their_symbols() -> None:
    encoded = encode(np.array([9, 4, 7, 2]))
    assert encoded.bits == bytes([0b11011000])  # 9 is 11, 4 is 01, 7 is 10, 2 is 00
    assert encoded.lengths == bytes([0, 0, 2, 0, 2, 0, 0, 2, 0, 2])


@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.9])
def test_within_a_bit_of_the_entropy(share: float) -> None:
    symbols = np.random.default_rng(0).geometric(share, 20_000) - 1
    often = np.bincount(symbols)
    p = often[often > 0] / len(symbols)
    entropy = -(p * np.log2(p)).sum()
    mean = bits(encode(symbols), often) / len(symbols)
    assert entropy <= mean < entropy + 1  # Shannon 1948, theorem 9
    assert len(encode(symbols).bits) == -(-bits(encode(symbols), often) // 8)


@pytest.mark.parametrize(
    "often", [(1, 1, 1, 1, 1), (16, 8, 4, 2, 1), (10, 9, 3, 3, 2), (100, 1, 1, 1, 1), (5, 5, 4, 2)]
)
def test_no_prefix_code_is_shorter(often: tuple[int, ...]) -> None:
    """All lengths that obey Kraft's inequality are tried."""
    symbols = np.repeat(np.arange(len(often)), often)
    lengths = itertools.product(range(1, len(often)), repeat=len(often))
    best = min(sum(map(int.__mul__, often, tried)) for tried in lengths if sum(2.0**-length for length in tried) <= 1)
    assert bits(encode(symbols), np.array(often)) == best


def test_one_symbol_and_none() -> None:
    encoded = encode(np.full(17, 5))
    assert (encoded.lengths, len(encoded.bits)) == (bytes([0, 0, 0, 0, 0, 1]), 3)
    assert decode(encoded).tolist() == [5] * 17
    assert encode(np.zeros(0, np.int64)) == Encoded(b"", 0, b"")
    assert decode(Encoded(b"", 0, b"")).tolist() == []


def test_many_symbols() -> None:
    symbols = np.random.default_rng(1).integers(0, 65_536, 30_000)
    assert np.array_equal(decode(encode(symbols)), symbols)


@pytest.mark.parametrize(
    "symbols", [np.array([1, -1]), np.array([65_536]), np.array([0.5]), np.zeros((2, 2), np.int64)], ids=str
)
def test_what_is_no_symbol(symbols: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"whole numbers \[N\]|numbers in 0\.\.65535"):
        encode(symbols)


@pytest.mark.parametrize(
    "damage",
    [
        lambda good: {"bits": good.bits[:-1]},
        lambda good: {"bits": good.bits + b"\0"},
        lambda good: {"count": good.count + 5000},
        lambda good: {"count": good.count - 50},
        lambda good: {"count": 0},
        lambda good: {"lengths": bytes([1, 1, 1])},  # more words than there can be
        lambda good: {"lengths": bytes([2, 2, 2])},  # fewer than there have to be
        lambda good: {"lengths": b""},
    ],
)
def test_damage_is_noticed(damage: Callable[[Encoded], dict[str, Any]]) -> None:
    good = encode(np.random.default_rng(0).geometric(0.3, 500) - 1)
    with pytest.raises(CorruptError, match="again"):
        decode(replace(good, **damage(good)))


def test_filling_has_to_be_zeros() -> None:
    good = encode(np.array([0, 1, 0, 2, 0, 3, 0, 0]))  # 13 bits
    with pytest.raises(CorruptError, match="13 of 16"):
        decode(replace(good, bits=bytes([good.bits[0], good.bits[1] | 1])))
