"""Huffman codes of small whole numbers, canonical: the lengths of the code words are all a decoder needs.

The coding itself is the library bitarray's, in C.
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
    """`count` symbols as `bits`, filled up with zeros to whole bytes. `lengths[s]`: bits of the code word of symbol
    s, 0 where s does not occur; code words of one length rise with their symbols."""

    lengths: bytes
    count: int
    bits: bytes

    @property
    def size(self) -> int:
        """Bytes of table and bits."""
        return len(self.lengths) + len(self.bits)


def encode(symbols: NDArray[np.integer]) -> Encoded:
    """Code `symbols [N]`, whole numbers from 0 to 65535, with the code that is shortest for them (Huffman 1952).

    Raises InputError on anything else.
    """
    found = np.asarray(symbols)
    if found.ndim != 1 or not np.issubdtype(found.dtype, np.integer):
        raise InputError(f"symbols are {found.dtype} of shape {list(found.shape)}; give whole numbers [N]")
    if not len(found):
        return Encoded(b"", 0, b"")
    if found.min() < 0 or found.max() >= MOST:
        raise InputError(f"symbols run from {found.min()} to {found.max()}; they have to lie in 0..{MOST - 1}")
    often = np.bincount(found)
    lengths = np.zeros(len(often), np.uint8)
    for symbol, shortest in huffman_code({int(s): int(often[s]) for s in np.flatnonzero(often)}).items():
        lengths[symbol] = len(shortest)
    words, word = {}, 0
    for symbol, following in pairwise([*_ordered(lengths), -1]):  # counting up, with a zero more for every longer word
        bits = int(lengths[symbol])
        words[symbol] = int2ba(word, bits)
        word = (word + 1) << (int(lengths[following]) - bits if following >= 0 else 0)
    coded = bitarray()
    coded.encode(words, found.tolist())
    return Encoded(lengths.tobytes(), len(found), coded.tobytes())


def decode(encoded: Encoded) -> NDArray[np.int64]:
    """The symbols `[N]`. Raises CorruptError where table, count and bits do not belong together."""
    if not encoded.count:
        if encoded.bits:
            raise CorruptError(f"{len(encoded.bits)} bytes code no symbol; the data are damaged, get them again")
        return np.zeros(0, np.int64)
    lengths = np.frombuffer(encoded.lengths, np.uint8)
    symbols = np.flatnonzero(lengths)
    per_length = np.bincount(lengths[symbols]) if len(symbols) else np.zeros(1, np.int64)
    filled = sum(int(n) << (len(per_length) - 1 - bits) for bits, n in enumerate(per_length))
    if filled != 1 << (len(per_length) - 1) and per_length.tolist() != [0, 1]:  # Kraft's sum is 1, save for one symbol
        raise CorruptError("the lengths are those of no Huffman code; the data are damaged, get them again")
    per_length[0] = 0
    coded = bitarray(encoded.bits)
    try:
        steps: Iterator[int] = canonical_decode(coded, per_length.tolist(), _ordered(lengths))
        found = np.fromiter(steps, np.int64, encoded.count)
    except ValueError as error:
        raise CorruptError(f"the bits are no {encoded.count} symbols ({error}); get the data again") from error
    used = int(lengths[found].sum(dtype=np.int64))
    if -(-used // 8) != len(encoded.bits) or coded[used:].any():
        raise CorruptError(f"{encoded.count} symbols take {used} of {8 * len(encoded.bits)} bits; get the data again")
    return found


def _ordered(lengths: NDArray[np.uint8]) -> list[int]:
    """The symbols that occur, by length of their code words, then by value."""
    symbols = np.flatnonzero(lengths)
    found: list[int] = symbols[np.argsort(lengths[symbols], kind="stable")].tolist()
    return found
