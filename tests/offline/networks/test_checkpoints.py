"""Files of weights and training states: whole or refused, never half loaded."""

import json
import os
import re
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from dynamic.models import load_weights, save_weights
from dynamic.offline.networks.checkpoints import Checkpoint, digest, read_tensors, signature, write_tensors
from dynamic.policies.errors import BundleError, CorruptError, InputError, SchemaError


def small(seed: int = 0, width: int = 4) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(width, 2))


def equal(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_weights_come_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "net.safetensors"
    one, other = small(0), small(1)
    one.to(memory_format=torch.channels_last)
    save_weights(one, path)
    load_weights(other, path)
    assert equal(one, other)
    assert load_file(path).keys() == one.state_dict().keys()  # any reader of safetensors can read it
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    def tied(seed: int) -> nn.Sequential:
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        network[1].weight = network[0].weight
        return network

    one, other = tied(0), tied(1)
    save_weights(one, tmp_path / "net")
    assert sorted(load_file(tmp_path / "net")) == ["0.bias", "0.weight", "1.bias"]
    load_weights(other, tmp_path / "net")
    assert equal(one, other)
    assert other[1].weight is other[0].weight


def test_slices_of_one_piece_of_memory(tmp_path: Path) -> None:
    network = nn.Linear(2, 2)
    flat = torch.arange(6.0)
    network.weight.data, network.bias.data = flat[:4].view(2, 2), flat[4:]
    save_weights(network, tmp_path / "net")
    assert load_file(tmp_path / "net")["bias"].tolist() == [4.0, 5.0]


def test_missing_file(tmp_path: Path) -> None:
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(CorruptError, match=re.escape(str(path))):
            load_weights(small(), path)


@pytest.mark.parametrize("cut", [0, 4, 60, -1])
def test_truncated(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "net"
    save_weights(small(), path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CorruptError, match="not a whole safetensors file"):
        load_weights(small(), path)


class Runs:
    """An object whose unpickling makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_is_read_as_weights_and_runs_nothing(tmp_path: Path) -> None:
    for content in (small(), {"state_dict": small()}, {"a": Runs(tmp_path / "made")}):
        torch.save(content, tmp_path / "net.pt")
        with pytest.raises(CorruptError, match=r"holds Python objects, whose code is not run.*state_dict\(\)"):
            load_weights(small(), tmp_path / "net.pt")
    assert not (tmp_path / "made").exists()
    for content, told in ((torch.zeros(3), "holds Tensor"), ({"epoch": 3}, "holds the keys epoch")):
        torch.save(content, tmp_path / "net.pt")
        with pytest.raises(CorruptError, match=rf"{told} and no weights by name"):
            load_weights(small(), tmp_path / "net.pt")
    torch.save(small().state_dict(), tmp_path / "net.pt")
    (tmp_path / "net.pt").write_bytes((tmp_path / "net.pt").read_bytes()[:300])
    with pytest.raises(CorruptError, match=r"not a whole file of torch\.save"):
        load_weights(small(), tmp_path / "net.pt")


@pytest.mark.parametrize("ending", [".pt", ".pth", ".safetensors"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod.", "model."])
def test_weights_under_the_names_of_other_wrappers(ending: str, prefix: str, tmp_path: Path) -> None:
    path, own = tmp_path / f"net{ending}", small(1)
    state = {f"{prefix}{name}": tensor for name, tensor in small(0).state_dict().items()}
    save_file(state, path) if ending == ".safetensors" else torch.save(state, path)
    load_weights(own, path)
    assert equal(own, small(0))


@pytest.mark.parametrize(
    "around",
    [
        lambda state: {"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1}, "args": Namespace(lr=0.1)},
        lambda state: {"model": {f"module.{name}": tensor for name, tensor in state.items()}},
        lambda state: {"model": {"state_dict": state}},
        lambda state: OrderedDict(state),
    ],
)
@pytest.mark.parametrize("older", [False, True])
def test_weights_inside_what_training_scripts_save(around: Any, older: bool, tmp_path: Path) -> None:
    path, own = tmp_path / "net.pt", small(1)
    torch.save(around(small(0).state_dict()), path, _use_new_zipfile_serialization=not older)
    load_weights(own, path)
    assert equal(own, small(0))


def test_weights_into_a_compiled_network_and_out_of_one(tmp_path: Path) -> None:
    inside = nn.Sequential(torch.compile(small(0)), nn.Identity())  # type: ignore[arg-type]
    save_weights(inside, tmp_path / "net.safetensors")
    plain = nn.Sequential(small(1), nn.Identity())
    load_weights(plain, tmp_path / "net.safetensors")
    assert equal(plain, nn.Sequential(small(0)))
    save_weights(small(2), tmp_path / "plain.safetensors")
    compiled = torch.compile(small(1))
    load_weights(compiled, tmp_path / "plain.safetensors")  # type: ignore[arg-type]
    assert equal(compiled, small(2))  # type: ignore[arg-type]


def test_another_network_under_a_prefix_is_named_as_the_file_names_it(tmp_path: Path) -> None:
    torch.save({"module.conv.weight": torch.zeros(2)}, tmp_path / "net.pt")
    with pytest.raises(InputError, match=r"lacks 0\.weight.*holds module\.conv\.weight that"):
        load_weights(small(), tmp_path / "net.pt")


def test_every_altered_byte_is_noticed(tmp_path: Path) -> None:
    path, network = tmp_path / "net", small(1)
    save_weights(small(), path)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 2]) + whole[position + 1 :])
        with pytest.raises((CorruptError, InputError)):
            load_weights(network, path)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_weights_of_another_network(tmp_path: Path) -> None:
    path = tmp_path / "net"
    save_weights(small(), path)
    with pytest.raises(InputError, match=r"0.bias has shape \[4\], the network's has \[5\]"):
        load_weights(small(width=5), path)
    with pytest.raises(InputError, match=r"lacks 4.weight, 4.bias, and holds nothing"):
        load_weights(nn.Sequential(*small(), nn.Linear(2, 2)), path)
    with pytest.raises(
        InputError, match=r"lacks nothing, and holds 1.bias, 1.num_batches_tracked, 1.running_mean and 4 more"
    ):
        load_weights(nn.Sequential(nn.Conv2d(1, 4, 3)), path)


def test_weights_by_others(tmp_path: Path) -> None:
    path, one, other = tmp_path / "net", small(0), small(1)
    state = {n: t for n, t in one.state_dict().items() if not n.endswith("num_batches_tracked")}
    save_file(state, path)  # as networks from before torch 0.4.1 have it
    load_weights(other, path)
    assert equal(one, other)
    save_file({**state, "3.bias": torch.tensor([0.0, torch.nan])}, path)
    with pytest.raises(CorruptError, match=r"3.bias holds NaN"):
        load_weights(other, path)
    assert equal(one, other)


def trained(network: nn.Module, steps: int, optimizer: torch.optim.Optimizer) -> None:
    torch.manual_seed(steps)
    for _ in range(steps):
        optimizer.zero_grad()
        network(torch.randn(8, 1, 3, 3)).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_network_and_optimizer_go_on_alike(kind: type[torch.optim.Optimizer], tmp_path: Path) -> None:
    options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    one, other = small(0), small(1)
    first = kind(one.parameters(), lr=0.01, **options)
    second = kind(other.parameters(), lr=0.01, **options)
    checkpoint = Checkpoint(tmp_path / "run", {"lr": 0.01})
    assert checkpoint.load(other.state_dict(), second) is None
    trained(one, 3, first)
    checkpoint.save(one.state_dict(), first, {"epoch": 3})
    assert checkpoint.load(other.state_dict(), second) == {"epoch": 3}
    assert equal(one, other)
    trained(one, 4, first)
    trained(other, 4, second)
    assert equal(one, other)


def test_a_checkpoint_without_path_keeps_nothing(tmp_path: Path) -> None:
    network = small()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    checkpoint = Checkpoint(None, {})
    checkpoint.save(network.state_dict(), optimizer, {"epoch": 1})
    assert checkpoint.load(network.state_dict(), optimizer) is None


def test_other_files_are_no_checkpoint(tmp_path: Path) -> None:
    network, path = small(), tmp_path / "net"
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    save_weights(network, path)
    with pytest.raises(BundleError, match="no training checkpoint"):
        Checkpoint(path, {}).load(network.state_dict(), optimizer)
    save_file(network.state_dict(), path)
    with pytest.raises(BundleError, match="no training checkpoint"):
        Checkpoint(path, {}).load(network.state_dict(), optimizer)


def test_other_settings_are_named(tmp_path: Path) -> None:
    network, path = small(), tmp_path / "run"
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    Checkpoint(path, {"lr": 0.1, "seed": 0, "weights": (1.0, 2.0)}).save(network.state_dict(), optimizer, {})
    Checkpoint(path, {"lr": 0.1, "seed": 0, "weights": (1.0, 2.0)}).load(network.state_dict(), optimizer)
    with pytest.raises(BundleError, match=r"made with seed=0 \(now 1\)\. Call fit as that run did"):
        Checkpoint(path, {"lr": 0.1, "seed": 1, "weights": (1.0, 2.0)}).load(network.state_dict(), optimizer)


def test_a_newer_schema(tmp_path: Path) -> None:
    write_tensors(tmp_path / "net", {"x": torch.zeros(1)}, {"schema": 99})
    with pytest.raises(SchemaError, match="schema 99"):
        read_tensors(tmp_path / "net")


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, network = tmp_path / "net", small()
    save_weights(network, path)
    whole = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        save_weights(small(1), path)
    assert path.read_bytes() == whole
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_facts_are_readable_json(tmp_path: Path) -> None:
    write_tensors(tmp_path / "net", {"x": torch.zeros(2)}, {"kind": "weights", "epoch": 3})
    with safe_open(tmp_path / "net", framework="pt") as file:
        assert json.loads(file.metadata()["dynamic"]) == {"schema": 1, "kind": "weights", "epoch": 3}


def test_hashes() -> None:
    one, other = small(0).state_dict(), small(1).state_dict()
    assert signature(one) == signature(other) != signature(small(0, width=5).state_dict())
    assert digest(one) == digest(small(0).state_dict()) != digest(other)


def test_the_same_tensors_give_the_same_bytes(tmp_path: Path) -> None:
    tensors = {"\u00e9/\\weight": torch.arange(3.0), "b": torch.ones(2, 2)}
    files = [tmp_path / str(number) for number in range(16)]
    for path in files:
        write_tensors(path, tensors, {"kind": "weights", "note": "a \u00e9"})
    assert len({path.read_bytes() for path in files}) == 1
    again, facts = read_tensors(files[0])
    assert again.keys() == tensors.keys()
    assert facts["note"] == "a \u00e9"
    with safe_open(files[0], framework="pt") as file:
        assert set(file.keys()) == set(tensors)
