"""The whole of Deep Compression on digits: small, as good, read back bit for bit, and the same after a kill."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.networks.fitting_networks import digits, digits_loader
from torch import Tensor, nn

import dynamic
from dynamic.models import CifarResNet
from dynamic.models.compress import Compressed
from dynamic.models.compress.packing import deep_compression
from dynamic.models.compress.packing.deep_compression import deep_compress
from dynamic.models.compress.packing.packed_file import load_packed
from dynamic.offline.networks.checkpoints import read_tensors, write_tensors
from dynamic.policies.errors import BundleError, CorruptError, SettingError

PICTURE = torch.zeros(1, 1, 8, 8)
STEPS = ((0.5, 1), (0.8, 2))


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    torch.manual_seed(0)
    network = CifarResNet(8, in_channels=1, width=8)
    dynamic.fit(network, digits_loader(), mode="joint", epochs=4, lr=0.1, progress=False)
    return network.eval()


def run(network: nn.Module, **changed: Any) -> Compressed:
    options: dict[str, Any] = {"steps": STEPS, "clusters": 8, "cluster_epochs": 1, "lr": 0.05, "latency": False}
    return deep_compress(
        network, PICTURE, train_loader=digits_loader(), **(options | {"skip": ("conv1",), "progress": False} | changed)
    )


def state(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_small_and_as_good_and_read_back(trained: nn.Module, tmp_path: Path) -> None:
    before = state(trained)
    _, _, x, y = digits()
    found = run(trained, path=tmp_path / "net", eval_loader=[(x, y)])
    report = found.report
    assert equal(before, state(trained))
    other = CifarResNet(8, in_channels=1, width=8)
    load_packed(other, tmp_path / "net")
    assert equal(state(found.network), state(other))
    assert report.after.file_bytes == (tmp_path / "net").stat().st_size < report.before.file_bytes / 8
    assert report.before.accuracy is not None
    assert report.after.accuracy is not None
    assert report.after.accuracy > report.before.accuracy - 0.03
    weights = {name: w for name, w in found.network.named_parameters() if w.ndim > 1}
    kept = sum(int(w.count_nonzero()) for n, w in weights.items() if n != "conv1.weight")
    assert kept == pytest.approx(0.2 * sum(w.numel() for n, w in weights.items() if n != "conv1.weight"), abs=1)
    assert all(len(torch.unique(w[w != 0])) <= 8 for n, w in weights.items() if n != "conv1.weight")
    assert report.left_alone == {"conv1.weight": "in skip"}
    assert report.facts["sparsity"]["layer3.0.conv2.weight"] > 0.5


def test_killed_between_steps_and_started_again(
    trained: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(trained)
    fit, calls = deep_compression.fit, []

    def killed(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs["seed"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return fit(*args, **kwargs)

    monkeypatch.setattr(deep_compression, "fit", killed)
    with pytest.raises(KeyboardInterrupt):
        run(trained, checkpoint=tmp_path)
    monkeypatch.undo()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["prune-0.safetensors", "run.safetensors"]
    again = run(trained, checkpoint=tmp_path)
    assert equal(state(whole.network), state(again.network))


def test_a_folder_of_another_run_is_refused(trained: nn.Module, tmp_path: Path) -> None:
    options: dict[str, Any] = {"steps": ((0.5, 1),), "cluster_epochs": 0, "checkpoint": tmp_path}
    first = run(trained, **options)
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for changed, message in (
        ({"steps": ((0.8, 1),)}, r"steps=\[\[0\.5, 1\]\] \(now \[\[0\.8, 1\]\]\)"),
        ({"skip": ()}, r"skip=\['conv1'\] \(now \[\]\)"),
        ({"clusters": {"conv": 8}}, r"clusters=8 \(now \{'conv': 8\}\)"),
    ):
        with pytest.raises(BundleError, match=message):
            run(trained, **(options | changed))
    other = CifarResNet(8, in_channels=1, width=8)
    with pytest.raises(BundleError, match="network="):
        run(other, **options)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == kept
    assert equal(state(first.network), state(run(trained, **options).network))


def test_folders_without_a_header_go_on_and_damaged_ones_are_refused(trained: nn.Module, tmp_path: Path) -> None:
    options: dict[str, Any] = {"steps": ((0.5, 1),), "cluster_epochs": 0, "checkpoint": tmp_path}
    first, header = run(trained, **options), tmp_path / "run.safetensors"
    header.unlink()  # as written before there were headers
    assert equal(state(first.network), state(run(trained, **options).network))
    assert read_tensors(header)[1]["run"]["steps"] == [[0.5, 1]]
    write_tensors(header, {}, {"kind": "weights"})
    with pytest.raises(BundleError, match="is no run of deep_compress"):
        run(trained, **options)
    header.write_bytes(header.read_bytes()[:-3])
    with pytest.raises(CorruptError, match=r"run\.safetensors"):
        run(trained, **options)


def test_in_float32_and_without_training(trained: nn.Module) -> None:
    half, whole = (run(trained, steps=((0.5, 0),), cluster_epochs=0, half=h).report.after for h in (True, False))
    assert half.file_bytes < whole.file_bytes
    assert half.nonzero == whole.nonzero


@pytest.mark.parametrize("steps", [(), ((0.8, 1), (0.5, 1)), ((1.0, 1),), ((0.0, 1),)])
def test_bad_steps(trained: nn.Module, steps: Any) -> None:
    with pytest.raises(SettingError, match="shares between 0 and 1 that rise"):
        run(trained, steps=steps)
