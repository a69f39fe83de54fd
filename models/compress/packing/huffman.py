"""Canonical Huffman codes of small whole numbers: a decoder needs only the lengths of the code words.

The library bitarray codes, in C.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from bitarray import bitarray
from bitarray.util import canonical_decode, huffman_code, int2ba
from numpy.typing import NDArray

from dynamic.policies.errors import CorruptError, InputError

MOST = 1 << 16  # symbols are below this


@dataclass(frozen=True)
class Encoded:
    """`count` symbols as `bits`, filled with zeros to whole bytes.

    `lengths[s]` is the number of bits of the code word of symbol s, 0 where s does not occur. Code words of one length
    rise with their symbols.
    """

    lengths: bytes
    count: int
    bits: bytes

    @property
    def size(self) -> int:
        """Bytes of table and bits."""
        return len(self.lengths) + len(self.bits)


def encode(symbols: NDArray[np.integer]) -> Encoded:
    """The shortest code (Huffman 1952) of `symbols [N]`, whole numbers from 0 to 65535. InputError on anything else."""
    numbers = np.asarray(symbols)
    if numbers.ndim != 1 or not np.issubdtype(numbers.dtype, np.integer):
        raise InputError(f"symbols are {numbers.dtype} of shape {list(numbers.shape)}: give whole numbers [N]")
    if not len(numbers):
        return Encoded(b"", 0, b"")
    if numbers.min() < 0 or numbers.max() >= MOST:
        raise InputError(f"symbols run from {numbers.min()} to {numbers.max()}: give numbers in 0..{MOST - 1}")
    frequencies = np.bincount(numbers)
    lengths = np.zeros(len(frequencies), np.uint8)
    for symbol, shortest in huffman_code({int(s): int(frequencies[s]) for s in np.flatnonzero(frequencies)}).items():
        lengths[symbol] = len(shortest)
    words, word = {}, 0
    for symbol, following in pairwise([*_ordered(lengths), -1]):  # words count up, and a longer word gets a zero more
        bits = int(lengths[symbol])
        words[symbol] = int2ba(word, bits)
        word = (word + 1) << (int(lengths[following]) - bits if following >= 0 else 0)
    coded = bitarray()
    coded.encode(words, numbers.tolist())
    return Encoded(lengths.tobytes(), len(numbers), coded.tobytes())


def decode(encoded: Encoded) -> NDArray[np.int64]:
    """The symbols `[N]`. CorruptError where table, count and bits do not belong together."""
    if not encoded.count:
        if encoded.bits:
            raise CorruptError(f"{len(encoded.bits)} bytes code no symbol: the data are damaged, get them again")
        return np.zeros(0, np.int64)
    lengths = np.frombuffer(encoded.lengths, np.uint8)
    symbols = np.flatnonzero(lengths)
    per_length = np.bincount(lengths[symbols]) if len(symbols) else np.zeros(1, np.int64)
    filled = sum(int(n) << (len(per_length) - 1 - bits) for bits, n in enumerate(per_length))
    if filled != 1 << (len(per_length) - 1) and per_length.tolist() != [
        0,
        1,
    ]:  # Kraft's sum is 1, except for one symbol
        raise CorruptError("the lengths are those of no Huffman code: the data are damaged, get them again")
    per_length[0] = 0
    coded = bitarray(encoded.bits)
    try:
        steps: Iterator[int] = canonical_decode(coded, per_length.tolist(), _ordered(lengths))
        decoded = np.fromiter(steps, np.int64, encoded.count)
    except ValueError as error:
        raise CorruptError(f"the bits are no {encoded.count} symbols ({error}): get the data again") from error
    size = int(lengths[decoded].sum(dtype=np.int64))
    if -(-size // 8) != len(encoded.bits) or coded[size:].any():
        raise CorruptError(f"{encoded.count} symbols take {size} of {8 * len(encoded.bits)} bits: get the data again")
    return decoded


def _ordered(lengths: NDArray[np.uint8]) -> list[int]:
    """The symbols that occur, by the length of their code words, then by value."""
    symbols = np.flatnonzero(lengths)
    order: list[int] = symbols[np.argsort(lengths[symbols], kind="stable")].tolist()
    return order
