"""Packed files: every bit comes back, small ones are small, damaged ones are refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

import dynamic
from dynamic.models import CifarResNet, save_weights
from dynamic.models.compress.packing.half_precision import to_half_precision
from dynamic.models.compress.packing.packed_file import (
    gaps_between,
    load_packed,
    positions_after,
    save_packed,
    unpacked,
)
from dynamic.models.compress.packing.weight_clustering import cluster
from dynamic.models.compress.pruning.weight_pruning import baked, prune_weights
from dynamic.offline.networks.checkpoints import read_tensors, write_tensors
from dynamic.policies.errors import CorruptError, InputError

PICTURE = torch.zeros(1, 1, 8, 8)


def small(seed: int = 0, width: int = 8) -> CifarResNet:
    torch.manual_seed(seed)
    network = CifarResNet(8, in_channels=1, width=width)
    for tensor in network.state_dict().values():
        if tensor.ndim == 1:
            tensor.copy_(torch.rand(tensor.shape))
    return network.eval()


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def same(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(bits(a[name]) == bits(b[name]) for name in a)


def compressed(amount: float, clusters: int) -> nn.Module:
    pruned = prune_weights(small(), PICTURE, amount=amount, latency=False).network
    return cluster(pruned, PICTURE, clusters=clusters, reduce=True, latency=False).network


@pytest.mark.parametrize("kind", ["as it is", "pruned", "shared", "pruned and shared", "half"])
def test_every_bit_comes_back(kind: str, tmp_path: Path) -> None:
    made: dict[str, Any] = {
        "as it is": small,
        "pruned": lambda: baked(prune_weights(small(), PICTURE, amount=0.9, latency=False).network),
        "shared": lambda: cluster(small(), PICTURE, clusters=4, latency=False).network,
        "pruned and shared": lambda: compressed(0.8, 4),
        "half": lambda: to_half_precision(compressed(0.8, 4)),
    }
    network, other = made[kind](), small(1)
    size = save_packed(network, tmp_path / "net")
    load_packed(other, tmp_path / "net")
    assert same(network, other)
    assert size == (tmp_path / "net").stat().st_size


def test_sizes(tmp_path: Path) -> None:
    """18,824 weights, a fifth kept, of 16 values: Huffman codes come within 5% of the entropy of gaps and indices."""
    network = compressed(0.8, 16)
    size = save_packed(network, tmp_path / "net")
    save_weights(network, tmp_path / "plain")
    needed = 0.0
    for weight in network.parameters():
        if weight.ndim > 1:
            flat = weight.detach().flatten().numpy()
            where = np.flatnonzero(flat)
            for symbols in (np.diff(where, prepend=-1), np.unique(flat[where], return_inverse=True)[1]):
                p = np.unique(symbols, return_counts=True)[1] / len(symbols)
                needed -= len(symbols) * (p * np.log2(p)).sum() / 8
    with safe_open(tmp_path / "net", "pt") as file:
        codes = file.get_tensor("codes").numel()
    others = sum(4 * t.numel() for t in network.state_dict().values() if t.ndim == 1)
    tables = 4 * 16 * sum(w.ndim > 1 for w in network.parameters())
    assert needed < codes - others - tables + 64 < 1.05 * needed + 200
    assert size < (tmp_path / "plain").stat().st_size / 7


def test_half_the_bytes_where_no_bit_is_lost(tmp_path: Path) -> None:
    network = nn.Linear(64, 64)
    whole = save_packed(network, tmp_path / "whole")
    half = save_packed(to_half_precision(network), tmp_path / "half")
    assert whole - half == pytest.approx(2 * (64 * 64 + 64), abs=16)


def test_gaps_by_hand() -> None:
    assert gaps_between(np.array([0, 1, 5, 260, 1000])).tolist() == [0, 0, 3, 254, 255, 255, 229]
    assert gaps_between(np.array([255, 511])).tolist() == [255, 0, 255, 0]
    for where in ([0], [254], [255], [256], [3, 600, 601, 5000]):
        assert positions_after(gaps_between(np.array(where))).tolist() == where


def test_all_dtypes_and_odd_shapes(tmp_path: Path) -> None:
    def made(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        network = nn.Module()
        for kind in ("float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8"):
            for zeros in (0.0, 0.9):
                values = torch.randn(7, 9) * 100 * (torch.rand(7, 9) >= zeros)
                network.register_buffer(f"{kind}_{zeros:.0f}", values.to(getattr(torch, kind)))
        network.register_buffer("flags", torch.rand(30) < 0.5)
        network.register_buffer("empty", torch.zeros(0, 3))
        network.register_buffer("number", torch.tensor(seed))
        network.register_buffer("ones", torch.full((5, 2), 1.5 + seed))
        network.register_buffer("signs", torch.tensor([0.0, -0.0, float("inf"), 1e-40]))
        network.register_buffer("turned", torch.randn(4, 6).t())
        return network

    one, other = made(1), made(2)
    save_packed(one, tmp_path / "net")
    load_packed(other, tmp_path / "net")
    assert same(one, other)


def test_shared_memory_is_written_once(tmp_path: Path) -> None:
    def tied(seed: int) -> nn.Sequential:
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        network[1].weight = network[0].weight
        return network

    one, other = tied(0), tied(1)
    save_packed(one, tmp_path / "net")
    assert list(unpacked(tmp_path / "net")) == ["0.weight", "0.bias", "1.bias"]
    load_packed(other, tmp_path / "net")
    assert same(one, other)
    assert other[1].weight is other[0].weight


def test_a_network_with_exits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = cluster(dynamic.wrap(small(), PICTURE, exits=2), PICTURE, clusters=5, latency=False).network
    torch.manual_seed(1)
    other = dynamic.wrap(small(1), PICTURE, exits=2)
    save_packed(network, tmp_path / "net")
    load_packed(other, tmp_path / "net")
    assert same(network, other)


def test_damage_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    path, network = tmp_path / "net", small(1, width=2)
    save_packed(cluster(small(0, width=2), PICTURE, clusters=3, latency=False).network, path)
    whole = path.read_bytes()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for position in range(0, len(whole), 7):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 2]) + whole[position + 1 :])
        with pytest.raises((CorruptError, InputError)):
            load_packed(network, path)
    for cut in (0, 4, 100, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(CorruptError):
            load_packed(network, path)
    with pytest.raises(CorruptError, match="does not exist"):
        load_packed(network, tmp_path / "none")
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_codes_that_do_not_fit_their_header(tmp_path: Path) -> None:
    """As only a wrong writer makes them: the hash is right."""
    path, network = tmp_path / "net", small(1)
    save_packed(small(), path)
    tensors, _ = read_tensors(path)
    for changed in (
        {"codes": tensors["codes"][:-5]},
        {"codes": torch.cat([tensors["codes"], torch.zeros(3, dtype=torch.uint8)])},
        {"header": tensors["header"][:-9]},
        {"header": torch.zeros(5, dtype=torch.uint8)},
    ):
        write_tensors(path, {**tensors, **changed}, {"kind": "packed"})
        with pytest.raises(CorruptError, match="save it again"):
            load_packed(network, path)
    write_tensors(path, {"codes": tensors["codes"]}, {"kind": "packed"})
    with pytest.raises(CorruptError, match="header"):
        load_packed(network, path)


def test_other_files_and_networks(tmp_path: Path) -> None:
    save_weights(small(), tmp_path / "plain")
    with pytest.raises(InputError, match="no packed network: read it with load_weights"):
        load_packed(small(), tmp_path / "plain")
    save_packed(small(), tmp_path / "net")
    with pytest.raises(InputError, match="has shape"):
        load_packed(small(width=4), tmp_path / "net")
    with pytest.raises(InputError, match="belongs to another network"):
        load_packed(nn.Linear(2, 2), tmp_path / "net")


def test_a_dtype_without_a_code(tmp_path: Path) -> None:
    network = nn.Linear(2, 2)
    network.register_buffer("wave", torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(InputError, match=r"wave is torch\.complex64: a packed file holds float64"):
        save_packed(network, tmp_path / "net")
    assert list(tmp_path.iterdir()) == []


def test_pruned_weights_alone_are_small_too(tmp_path: Path) -> None:
    """A mask leaves 0.0 and no -0.0: a tenth of the weights, and where they are."""
    network = baked(prune_weights(small(), PICTURE, amount=0.9, latency=False).network)
    weights = [w for w in network.parameters() if w.ndim > 1]
    others = sum(4 * t.numel() for t in network.state_dict().values() if t.ndim == 1)
    kept = sum(int(w.count_nonzero()) for w in weights)
    assert save_packed(network, tmp_path / "net") < 5.5 * kept + others + 2000


def test_the_same_network_gives_the_same_bytes(tmp_path: Path) -> None:
    # safetensors writes metadata in another order each time
    network = baked(prune_weights(small(), PICTURE, amount=0.5, latency=False).network)
    files = [tmp_path / f"{number}.packed" for number in range(16)]
    for path in files:
        save_packed(network, path)
    assert len({path.read_bytes() for path in files}) == 1
    load_packed(other := small(1), files[0])
    assert same(network, other)
