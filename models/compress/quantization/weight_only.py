"""Weights in 2 to 8 bits, activations in float: for a small file, not for a fast inference.

The network computes in float with the weights that the file holds. So every engine has the accuracy of the report.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dynamic.models.compress.compressible_weights import weights_of
from dynamic.models.compress.report import Compressed, copied, report
from dynamic.offline.batches import Batch
from dynamic.offline.networks.checkpoints import put_weights, read_tensors, untied, write_tensors
from dynamic.policies.errors import CorruptError, InputError, SettingError
from dynamic.storage.temporary_files import TemporaryFolder

BITS = range(2, 9)

_KIND = "weight codes"
_SHARES = np.linspace(1.0, 0.3, 15)  # of the largest weight, to which a scale may reach
_SMALLEST = 2.0**-100  # scale of a group of zeros, which bfloat16 can hold


@dataclass(frozen=True)
class Coded:
    """A weight as codes `[K, D]` int8 and scales `[K, G]` bfloat16.

    Codes lie in -2^(bits-1)+1 to 2^(bits-1)-1. There is one scale for each `group` of a row. `axis` is the dimension
    of the weight that K is. `shape` and `dtype` are those of the weight.
    """

    codes: Tensor
    scales: Tensor
    group: int
    axis: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def value(self) -> Tensor:
        """The weight. It is exact: a product of 8 bits and 8 bits."""
        scales = self.scales.float().repeat_interleave(self.group, 1)[:, : self.codes.shape[1]]
        return _from_rows(self.codes.float() * scales, self.shape, self.axis).to(self.dtype)


@dataclass(frozen=True)
class WeightsCompressed(Compressed):
    """A network with the codes of its weights, by name."""

    bits: int = 8
    coded: Mapping[str, Coded] = field(default_factory=dict)


def quantize_weights(
    network: nn.Module,
    example_inputs: Batch,
    *,
    bits: int = 4,
    group: int | None = None,
    skip: Collection[str] = (),
    eval_loader: Iterable[Any] | None = None,
    latency: bool = True,
) -> WeightsCompressed:
    """A copy of a network whose kernels and matrices have `2^bits - 1` values an output channel.

    A scale reaches to the share of the largest weight that has the least squared error.

    Args:
        network: The network. It does not change.
        example_inputs: A batch as the network takes it.
        bits: 2 to 8.
        group: How many weights of a channel in a row share a scale. None: all. Finer scales lose less and cost 16 bits
            each.
        skip: Names of weights or modules to leave alone.
        eval_loader: `(inputs, labels [B])` for the accuracy in the report. It chooses nothing.
        latency: Whether the report measures latency.

    Returns:
        The network, its codes and a report. `report.after.file_bytes` is of the file that `save_codes` writes.

    Raises:
        SettingError: `bits` or `group` is out of range.
        InputError: Weights are not finite, a name in `skip` does not exist, or nothing can be quantized.

    Example:
        >>> from dynamic.models import compress
        >>> coded = compress.quantize_weights(large, torch.zeros(2, 12), bits=4, latency=False)
        >>> coded.report.after.file_bytes < coded.report.before.file_bytes
        True
    """
    if isinstance(bits, bool) or bits not in BITS:
        raise SettingError(f"bits={bits!r}: give a whole number, 2 to 8")
    if group is not None and (isinstance(group, bool) or not isinstance(group, int) or group < 1):
        raise SettingError(f"group={group!r}: give a number of weights from 1, or None for one scale a channel")
    smaller = copied(network)
    weights, left_alone = weights_of(smaller, skip)
    if not weights:
        raise InputError(
            f"this {type(network).__name__} has no weight to quantize (left alone: {left_alone or 'nothing'})"
        )
    coded, errors = {}, {}
    with torch.no_grad():
        for weight in weights:
            if not bool(weight.value.isfinite().all()):
                raise InputError(f"{weight.name} holds NaN or infinity: train again, or name it in skip")
            axis = int(getattr(weight.places[0][0], "transposed", False))
            codes = coded[weight.name] = _code(weight.value, bits, group, axis)
            size = weight.value.norm().clamp(min=1e-30)
            errors[weight.name] = float((codes.value - weight.value).norm() / size)
            weight.value.copy_(codes.value)
    facts = {"bits": bits, "group": group, "relative_error": errors}
    result = WeightsCompressed(smaller, None, bits, coded)  # type: ignore[arg-type]  # measured below
    with TemporaryFolder("codes") as folder:
        size_bytes = save_codes(result, Path(folder) / "weights.safetensors")
    comparison = report(
        f"int{bits} weights",
        network,
        smaller,
        example_inputs,
        eval_loader,
        latency=latency,
        file_bytes=size_bytes,
        left_alone=left_alone,
        facts=facts,
        same_work=True,
    )
    return WeightsCompressed(smaller, comparison, bits, coded)


def save_codes(compressed: WeightsCompressed, path: str | Path) -> int:
    """Write a network to a file, its quantized weights as packed codes with their scales.

    Weights without codes are written as they are.

    Args:
        compressed: The result of `quantize_weights`.
        path: The file.

    Returns:
        The bytes of the file.

    Raises:
        InputError: A weight changed after it was quantized, by fine-tuning for example.
        DiskError: The disk is full, or refuses.

    Example:
        >>> from dynamic.models import compress
        >>> coded = compress.quantize_weights(large, torch.zeros(2, 12), latency=False)
        >>> compress.save_codes(coded, "large.codes") > 0
        True
    """
    tensors: dict[str, Tensor] = {}
    entries: dict[str, Any] = {}
    for name, tensor in untied(compressed.network.state_dict()).items():
        coded = compressed.coded.get(name)
        if coded is None:
            tensors[name] = tensor
            continue
        if not torch.equal(coded.value, tensor.cpu()):
            raise InputError(f"{name} differs from its codes, since it changed: call quantize_weights again")
        tensors[f"{name}|codes"] = torch.from_numpy(pack_codes(coded.codes.numpy(), compressed.bits))
        tensors[f"{name}|scales"] = coded.scales
        kind = str(coded.dtype).removeprefix("torch.")
        entries[name] = {"shape": list(coded.shape), "group": coded.group, "axis": coded.axis, "dtype": kind}
    write_tensors(path, tensors, {"kind": _KIND, "bits": compressed.bits, "weights": entries})
    return Path(path).stat().st_size


def load_codes(network: nn.Module, path: str | Path) -> None:
    """Read what `save_codes` wrote into a network of the same architecture, bit for bit. All or nothing.

    Args:
        network: The network. Its weights are replaced.
        path: The file.

    Raises:
        CorruptError: The file is missing or damaged.
        InputError: The file is of another network, or no file of `save_codes`.

    Example:
        >>> import copy
        >>> from dynamic.models import compress
        >>> coded = compress.quantize_weights(large, torch.zeros(2, 12), latency=False)
        >>> size = compress.save_codes(coded, "large.codes")
        >>> compress.load_codes(copy.deepcopy(large), "large.codes")
    """
    tensors, facts = read_tensors(path)
    if facts.get("kind") != _KIND:
        raise InputError(f"{path} holds no weight codes: read it with load_weights, or give a file of save_codes")
    state = {name: tensor for name, tensor in tensors.items() if "|" not in name}
    try:
        for name, entry in facts["weights"].items():
            scales, shape, axis = tensors[f"{name}|scales"], tuple(entry["shape"]), entry["axis"]
            columns = int(np.prod(shape)) // shape[axis]
            codes = unpack_codes(tensors[f"{name}|codes"].numpy(), facts["bits"], shape[axis] * columns)
            rows = torch.from_numpy(codes).view(shape[axis], columns)
            state[name] = Coded(rows, scales, entry["group"], axis, shape, getattr(torch, entry["dtype"])).value
    except (KeyError, ValueError, RuntimeError) as error:
        raise CorruptError(f"{path} is no whole file of weight codes ({error}): save it again") from error
    put_weights(network, state, path)


def _code(weight: Tensor, bits: int, group: int | None, axis: int) -> Coded:
    rows = weight.detach().movedim(axis, 0).flatten(1).float().cpu()  # [K, D]
    channels, columns = rows.shape
    size = min(group or columns, columns)
    padded = nn.functional.pad(rows, (0, -columns % size)).view(channels, -1, size)  # [K, G, size]
    most = 2 ** (bits - 1) - 1
    reach = padded.abs().amax(2)
    best: Tensor | None = None
    least = torch.full_like(reach, torch.inf)
    for share in _SHARES:
        scales = (reach * share / most).clamp(min=_SMALLEST).bfloat16()
        error = (_codes_of(padded, scales, most) * scales.float()[..., None] - padded).square().sum(2)
        best = scales if best is None else torch.where(error < least, scales, best)
        least = torch.minimum(least, error)
    assert best is not None
    codes = _codes_of(padded, best, most).view(channels, -1)[:, :columns].to(torch.int8).contiguous()
    return Coded(codes, best, size, axis, tuple(weight.shape), weight.dtype)


def _codes_of(values: Tensor, scales: Tensor, most: int) -> Tensor:
    return (values / scales.float()[..., None]).round().clamp(-most, most)


def _from_rows(rows: Tensor, shape: tuple[int, ...], axis: int) -> Tensor:
    moved = (shape[axis], *shape[:axis], *shape[axis + 1 :])
    return rows.view(moved).movedim(0, axis).contiguous()


def pack_codes(codes: NDArray[np.int8], bits: int) -> NDArray[np.uint8]:
    """Codes in order, each in `bits` bits, the lowest code as 0."""
    plain = (codes.reshape(-1).astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8)
    return np.packbits(np.unpackbits(plain[:, None], axis=1)[:, 8 - bits :].reshape(-1))


def unpack_codes(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.int8]:
    """The inverse of `pack_codes`. ValueError where there are fewer codes."""
    if 8 * len(packed) < bits * count:
        raise ValueError(f"{len(packed)} bytes for {count} codes of {bits} bits")
    each = np.unpackbits(packed, count=bits * count).reshape(count, bits)
    plain = np.packbits(np.pad(each, ((0, 0), (8 - bits, 0))), axis=1)[:, 0]
    codes: NDArray[np.int8] = (plain.astype(np.int16) - 2 ** (bits - 1)).astype(np.int8)
    return codes
