"""The file of a pruned and clustered network: distances between weights and indices into tables, Huffman coded.

It is a safetensors file with a hash over all of it. It holds a header, which says how each tensor is coded, and the
codes. Nothing is rounded: `load_packed` reads what was saved, bit for bit.
"""

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dynamic.models.compress.packing.huffman import Encoded, decode, encode
from dynamic.offline.networks.checkpoints import put_weights, read_tensors, untied, write_tensors
from dynamic.policies.errors import CorruptError, InputError

_KIND = "packed"
_FAR = 255  # zeros that one symbol skips: the filler of Han et al. 2016, figure 2, without a weight of its own
_TABLE = 1 << 12  # distinct values up to which a table is tried
_FLOATS = ("float64", "float32", "float16", "bfloat16")
_DTYPES = {n: getattr(torch, n) for n in (*_FLOATS, "int64", "int32", "int16", "int8", "uint8", "bool")}
_MOST_HEADER = 1 << 28

Bits = NDArray[np.unsignedinteger[Any]]  # numbers as their bit patterns


@dataclass(frozen=True)
class _Coded:
    """A tensor as codes. `facts` is JSON. The `parts` follow each other in the file."""

    facts: dict[str, Any]
    parts: tuple[bytes, ...]

    @property
    def size(self) -> int:
        return len(json.dumps(self.facts)) // 2 + sum(len(part) for part in self.parts)  # the header is compressed


def save_packed(network: nn.Module, path: str | Path) -> int:
    """Write parameters and buffers of a network, each in its smallest form.

    - Zeros and few values: the zeros before each weight (Han et al. 2016, "Deep Compression", section 2) and the index
    of
      the weight in a table (section 3). Both are Huffman coded (section 5), with a code for each tensor.
    - Zeros and many values: the same positions, and the values. One value only: that value. Else all numbers in order.
    - float32 numbers that are all float16 numbers too are written in 16 bits.

    Tensors that share memory are written once. -0.0 counts as a value, since bits are stored.

    Args:
        network: The network. It does not change.
        path: The file.

    Returns:
        The bytes of the file.

    Raises:
        InputError: A dtype that the format does not have.
        DiskError: The disk is full, or refuses.

    Example:
        >>> from dynamic.models import compress
        >>> compress.save_packed(small, "small.packed") > 0
        True
    """
    header, pieces = [], []
    for name, tensor in untied(network.state_dict()).items():
        coded = _code(name, tensor)
        header.append({"name": name, **coded.facts})
        pieces.append(b"".join(coded.parts))
    text = zlib.compress(json.dumps(header, separators=(",", ":")).encode(), 9)
    tensors = {"header": _bytes(text), "codes": _bytes(b"".join(pieces))}
    write_tensors(path, tensors, {"kind": _KIND})
    return Path(path).stat().st_size


def load_packed(network: nn.Module, path: str | Path) -> None:
    """Read what `save_packed` wrote into a network of the same architecture. All or nothing.

    Args:
        network: The network. Its weights are replaced.
        path: The file.

    Raises:
        CorruptError: The file is missing or damaged.
        InputError: The file is of another network, or is no packed file.

    Example:
        >>> from dynamic.models import compress
        >>> size = compress.save_packed(small, "small.packed")
        >>> compress.load_packed(small, "small.packed")
    """
    put_weights(network, unpacked(path), path)


def unpacked(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a packed file by name, on the CPU. It raises as `load_packed` does."""
    tensors, facts = read_tensors(path)
    if facts.get("kind") != _KIND:
        raise InputError(f"{path} is no packed network: read it with load_weights, or give a file of save_packed")
    try:
        unzip = zlib.decompressobj()
        text = unzip.decompress(tensors["header"].numpy().tobytes(), _MOST_HEADER)
        codes = memoryview(tensors["codes"].numpy().tobytes())
        tensors_by_name, position = {}, 0
        for entry in json.loads(text):
            tensors_by_name[entry["name"]], position = _decoded(entry, codes, position)
    except (KeyError, ValueError, TypeError, IndexError, zlib.error) as error:
        raise CorruptError(f"{path} is no whole packed network ({error}): get it again, or save it again") from error
    if position != len(codes):
        raise CorruptError(f"{path} holds {len(codes)} bytes of codes and describes {position}: save it again")
    return tensors_by_name


def _code(name: str, tensor: Tensor) -> _Coded:
    """The smallest form of a tensor."""
    kind = str(tensor.dtype).removeprefix("torch.")
    if kind not in _DTYPES:
        raise InputError(f"{name} is {tensor.dtype}: a packed file holds {', '.join(_DTYPES)}")
    facts = {"shape": list(tensor.shape), "dtype": kind}
    bits = _as_bits(tensor)
    if len(bits) and (bits == bits[0]).all():
        return _Coded({**facts, "same": int(bits[0])}, ())
    nonzero = np.flatnonzero(bits)
    ways = [_numbers(facts, bits), *_tabled(facts, bits)]
    if 0 < len(nonzero) < len(bits):
        gaps = encode(gaps_between(nonzero))
        values = bits[nonzero]
        few = [_numbers(facts, values), *_tabled(facts, values)]
        ways += [_Coded({**way.facts, "gaps": _code_facts(gaps)}, (gaps.bits, *way.parts)) for way in few]
    return min(ways, key=lambda way: way.size)


def _decoded(entry: Mapping[str, Any], codes: memoryview, position: int) -> tuple[Tensor, int]:
    """A tensor, and where the codes of the next begin."""
    dtype = _DTYPES[entry["dtype"]]
    size = math.prod(entry["shape"])

    def take(count: int) -> bytes:
        nonlocal position
        position += count
        if count < 0 or position > len(codes):
            raise CorruptError(f"{entry['name']} ends beyond the end of the file: get it again, or save it again")
        return bytes(codes[position - count : position])

    def stream(code: Mapping[str, Any]) -> NDArray[np.int64]:
        return decode(Encoded(bytes.fromhex(code["lengths"]), code["count"], take(code["bytes"])))

    bits = np.zeros(size, f"u{dtype.itemsize}")
    if "same" in entry:
        bits[:] = entry["same"]
    else:
        where = positions_after(stream(entry["gaps"])) if "gaps" in entry else slice(None)
        index = stream(entry["index"]) if "index" in entry else slice(None)
        if entry["half"]:
            numbers = np.frombuffer(take(2 * entry["numbers"]), "<f2").astype(np.float32).view(np.uint32)
        else:
            numbers = np.frombuffer(take(dtype.itemsize * entry["numbers"]), f"<u{dtype.itemsize}")
        bits[where] = numbers[index]
    return torch.from_numpy(bits).view(dtype).reshape(entry["shape"]), position


def gaps_between(nonzero: NDArray[np.int64]) -> NDArray[np.int64]:
    """Zeros before each weight. `_FAR` stands for that many zeros and no weight."""
    before = np.diff(nonzero, prepend=-1) - 1
    skips = before // _FAR
    gaps = np.full(len(before) + int(skips.sum()), _FAR)
    gaps[np.cumsum(skips + 1) - 1] = before % _FAR
    return gaps


def positions_after(gaps: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where the weights are: the inverse of `gaps_between`."""
    steps = np.where(gaps == _FAR, _FAR, gaps + 1)
    positions: NDArray[np.int64] = (np.cumsum(steps) - 1)[gaps != _FAR]
    return positions


def _numbers(facts: Mapping[str, Any], bits: Bits) -> _Coded:
    """Numbers in order, in half the bytes where no bit is lost."""
    half = False
    if facts["dtype"] == "float32":
        with np.errstate(over="ignore", invalid="ignore"):
            halves = bits.view(np.float32).astype("<f2")
        half = np.array_equal(halves.astype(np.float32).view(np.uint32), bits)
    data = halves.tobytes() if half else bits.astype(f"<u{bits.itemsize}").tobytes()
    return _Coded({**facts, "numbers": len(bits), "half": half}, (data,))


def _tabled(facts: Mapping[str, Any], bits: Bits) -> list[_Coded]:
    """Numbers as indices into a table of them, where there are few."""
    table, index = np.unique(bits, return_inverse=True)
    if len(table) > min(_TABLE, len(bits) // 2):
        return []
    coded = encode(index)
    few = _numbers(facts, table)
    return [_Coded({**few.facts, "index": _code_facts(coded)}, (coded.bits, *few.parts))]


def _code_facts(encoded: Encoded) -> dict[str, Any]:
    return {"lengths": encoded.lengths.hex(), "count": encoded.count, "bytes": len(encoded.bits)}


def _as_bits(tensor: Tensor) -> Bits:
    """The numbers of a tensor in order as bit patterns `[N]`."""
    plain = tensor.detach().cpu().contiguous().flatten()
    return plain.view(torch.uint8).numpy().view(f"u{tensor.element_size()}")


def _bytes(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())
