"""Weights in 2 to 8 bits, activations in float: for the size of the file, not for the time of an inference.

The network computes in float with the weights that the file holds, so that every engine gives the accuracy that the
report says.
"""

import tempfile
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

BITS = range(2, 9)

_KIND = "weight codes"
_SHARES = np.linspace(1.0, 0.3, 15)  # of the largest weight, that a scale may reach to
_SMALLEST = 2.0**-100  # of a scale: a group of zeros gets it, and bfloat16 has it


@dataclass(frozen=True)
class Coded:
    """A weight as codes `[K, D]` int8 from -2^(bits-1)+1 to 2^(bits-1)-1, and scales `[K, G]` bfloat16, one for each
    `group` of a row. `axis`: the dimension of the weight that K is; `shape` and `dtype`: the weight's."""

    codes: Tensor
    scales: Tensor
    group: int
    axis: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def value(self) -> Tensor:
        """The weight. Exact: a product of 8 bits and 8 bits."""
        scales = self.scales.float().repeat_interleave(self.group, 1)[:, : self.codes.shape[1]]
        return _from_rows(self.codes.float() * scales, self.shape, self.axis).to(self.dtype)


@dataclass(frozen=True)
class WeightsCompressed(Compressed):
    """A network with the codes that its weights were made of, by name."""

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
    """A copy of `network` whose kernels and matrices hold `2^bits - 1` values an output channel.

    `group`: so many weights of a channel in a row share a scale (None: all of it); finer scales lose less and cost 16
    bits each. A scale reaches to the share of the largest weight that gives the least squared error. `skip`: names of
    weights or modules that stay as they are. `data`: a loader of `(inputs, labels)` for the report's accuracy.
    `report.after.file_bytes` is the file that `save_codes` writes.

    Raises SettingError on `bits` outside 2..8 and `group` below 1, InputError on a weight that is not finite, on names
    in `skip` that do not exist, and where nothing is left to quantize.
    """
    if isinstance(bits, bool) or bits not in BITS:
        raise SettingError(f"bits={bits!r}: 2 to 8, whole")
    if group is not None and (isinstance(group, bool) or not isinstance(group, int) or group < 1):
        raise SettingError(f"group={group!r}: a number of weights from 1, or None for one scale a channel")
    made = copied(network)
    weights, left = weights_of(made, skip)
    if not weights:
        raise InputError(f"this {type(network).__name__} has no weight to quantize; left alone: {left or 'nothing'}")
    coded, errors = {}, {}
    with torch.no_grad():
        for weight in weights:
            if not bool(weight.value.isfinite().all()):
                raise InputError(f"{weight.name} holds NaN or infinity; train again, or name it in skip")
            axis = int(getattr(weight.places[0][0], "transposed", False))
            found = coded[weight.name] = _code(weight.value, bits, group, axis)
            size = weight.value.norm().clamp(min=1e-30)
            errors[weight.name] = float((found.value - weight.value).norm() / size)
            weight.value.copy_(found.value)
    facts = {"bits": bits, "group": group, "relative_error": errors}
    result = WeightsCompressed(made, None, bits, coded)  # type: ignore[arg-type]  # measured below
    with tempfile.TemporaryDirectory(prefix="dynamic-codes-") as folder:
        size_bytes = save_codes(result, Path(folder) / "weights.safetensors")
    told = report(
        f"int{bits} weights",
        network,
        made,
        example_inputs,
        eval_loader,
        latency=latency,
        file_bytes=size_bytes,
        left_alone=left,
        facts=facts,
        same_work=True,
    )
    return WeightsCompressed(made, told, bits, coded)


def save_codes(compressed: WeightsCompressed, path: str | Path) -> int:
    """Write the network to `path`, its quantized weights as packed codes with their scales, and give the bytes.

    What has no codes is written as it is. A weight that was changed since (fine-tuning) is not: raises InputError.
    """
    tensors: dict[str, Tensor] = {}
    told: dict[str, Any] = {}
    for name, tensor in untied(compressed.network.state_dict()).items():
        coded = compressed.coded.get(name)
        if coded is None:
            tensors[name] = tensor
            continue
        if not torch.equal(coded.value, tensor.cpu()):
            raise InputError(f"{name} is not what its codes say: it changed since; call quantize_weights again")
        tensors[f"{name}|codes"] = torch.from_numpy(_packed(coded.codes.numpy(), compressed.bits))
        tensors[f"{name}|scales"] = coded.scales
        kind = str(coded.dtype).removeprefix("torch.")
        told[name] = {"shape": list(coded.shape), "group": coded.group, "axis": coded.axis, "dtype": kind}
    write_tensors(path, tensors, {"kind": _KIND, "bits": compressed.bits, "weights": told})
    return Path(path).stat().st_size


def load_codes(network: nn.Module, path: str | Path) -> None:
    """Read what `save_codes` wrote into a network of the same architecture, bit for bit. All or nothing.

    Raises CorruptError where the file is missing or damaged, InputError where it belongs to another network or was
    written by something else.
    """
    tensors, facts = read_tensors(path)
    if facts.get("kind") != _KIND:
        raise InputError(f"{path} holds no weight codes; read it with load_weights, or give one that save_codes wrote")
    found = {name: tensor for name, tensor in tensors.items() if "|" not in name}
    try:
        for name, entry in facts["weights"].items():
            scales, shape, axis = tensors[f"{name}|scales"], tuple(entry["shape"]), entry["axis"]
            columns = int(np.prod(shape)) // shape[axis]
            codes = _unpacked(tensors[f"{name}|codes"].numpy(), facts["bits"], shape[axis] * columns)
            rows = torch.from_numpy(codes).view(shape[axis], columns)
            found[name] = Coded(rows, scales, entry["group"], axis, shape, getattr(torch, entry["dtype"])).value
    except (KeyError, ValueError, RuntimeError) as error:
        raise CorruptError(f"{path} is no whole file of weight codes ({error}); save it again") from error
    put_weights(network, found, path)


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


def _packed(codes: NDArray[np.int8], bits: int) -> NDArray[np.uint8]:
    """Codes one after the other, `bits` of a byte each, the lowest code as 0."""
    plain = (codes.reshape(-1).astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8)
    return np.packbits(np.unpackbits(plain[:, None], axis=1)[:, 8 - bits :].reshape(-1))


def _unpacked(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.int8]:
    """The inverse; raises ValueError where there are fewer."""
    if 8 * len(packed) < bits * count:
        raise ValueError(f"{len(packed)} bytes for {count} codes of {bits} bits")
    each = np.unpackbits(packed, count=bits * count).reshape(count, bits)
    plain = np.packbits(np.pad(each, ((0, 0), (8 - bits, 0))), axis=1)[:, 0]
    codes: NDArray[np.int8] = (plain.astype(np.int16) - 2 ** (bits - 1)).astype(np.int8)
    return codes
