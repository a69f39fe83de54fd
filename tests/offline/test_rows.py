"""One row alone, among others, and as the last of a training epoch."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.networks.fitting_networks import fit
from torch import Tensor, nn

import dynamic
from dynamic.engines.contract import GRAPH, SINGLE_GRAPH
from dynamic.errors import EngineError, InputError
from dynamic.models.compress.quantization.static_int8 import quantize
from dynamic.offline.build_steps import engine_comparison

CLASSES = 3


class Squeezed(nn.Module):
    """Pools to `[B, C, 1, 1]` and drops what is 1, which is the batch too where it holds one row."""

    def __init__(self, drop: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.pool, self.drop = nn.Conv2d(1, CLASSES, 3), nn.AdaptiveAvgPool2d(1), drop

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.pool(self.conv(x)))


class Middle(Squeezed):
    """The same before the last layer."""

    def __init__(self) -> None:
        super().__init__(torch.squeeze)
        self.out = nn.Linear(CLASSES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(super().forward(x))


class Centred(nn.Module):
    """Subtracts the mean of the batch: a row alone is answered by the bias."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.out(x - x.mean(0))


def data(count: int = 120, size: int = 40) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    x, y = torch.randn(count, 1, 8, 8), torch.arange(count) % CLASSES
    return list(zip(x.split(size), y.split(size), strict=True))


X = torch.randn(4, 1, 8, 8)
LOSES_THE_BATCH = {
    "squeeze": lambda: Squeezed(torch.squeeze),
    "method": lambda: Squeezed(lambda x: x.squeeze()),
    "twice": lambda: Squeezed(lambda x: x.squeeze(-1).squeeze()),
    "reshape": lambda: Squeezed(lambda x: x.reshape(-1, CLASSES) if len(x) > 1 else x.reshape(CLASSES)),
    "middle": Middle,
}


@pytest.mark.parametrize("name", LOSES_THE_BATCH)
@pytest.mark.parametrize("where", ["build", "calibrate", "export", "torch", "fit"])
def test_a_network_that_loses_the_batch_of_one_row_is_refused_before_any_work(
    name: str, where: str, tmp_path: Path
) -> None:
    network = LOSES_THE_BATCH[name]().eval()
    work = {
        "build": lambda: dynamic.build(network, data()),
        "calibrate": lambda: dynamic.calibrate(network, data(), engine="torch"),
        "export": lambda: dynamic.export(network, tmp_path / "one.onnx", batch="single", example_inputs=X),
        "torch": lambda: dynamic.build(network, data(), engine="torch"),
        "fit": lambda: dynamic.fit(network, data(), mode="joint", epochs=1),
    }
    with pytest.raises(InputError, match=r"gives \[3\] for one row, expected \[1, C\].*flatten\(1\)"):
        work[where]()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["squeeze", "middle"])
def test_wrap_refuses_it_too(name: str) -> None:
    with pytest.raises(InputError, match=r"gives \[3\] for one row"):
        dynamic.wrap(LOSES_THE_BATCH[name]().eval(), X, exits=["conv"])


def test_rows_that_are_mixed_are_refused() -> None:
    torch.manual_seed(0)
    with pytest.raises(InputError, match="mixes the rows of a batch"):
        dynamic.build(Centred(), data())


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "torch"])
def test_one_two_and_five_rows_are_run_before_anything_is_certified(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino")
    seen: list[tuple[str, int]] = []
    stages, graph = engine_comparison._check_stages, engine_comparison._check_graph

    def on_stages(*args: Any) -> None:
        seen.append(("stages", len(args[2])))
        stages(*args)

    def on_graph(*args: Any) -> None:
        seen.append(("graph", len(args[3].stage)))
        graph(*args)

    monkeypatch.setattr(engine_comparison, "_check_stages", on_stages)
    monkeypatch.setattr(engine_comparison, "_check_graph", on_graph)
    torch.manual_seed(0)
    two = [nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES)) for _ in range(2)]
    dynamic.build(two, data(), engine=engine)
    ways = {"stages"} if engine == "torch" else {"stages", "graph"}
    assert set(seen) == {(way, rows) for way in ways for rows in (1, 2, 5)}


@pytest.mark.parametrize("file", [GRAPH, SINGLE_GRAPH])
def test_a_graph_that_says_something_else_is_refused(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both graphs are checked: one with another bias does not ship."""
    import onnx
    from onnx import numpy_helper

    from dynamic.offline import building

    written = building.write_graphs

    def spoiled(folder: Path, *args: Any, **kwargs: Any) -> None:
        written(folder, *args, **kwargs)
        model = onnx.load(folder / file, load_external_data=False)
        for tensor in model.graph.initializer:
            values = numpy_helper.to_array(tensor) if not tensor.external_data else None
            if values is not None and values.dtype == np.float32 and values.shape == (CLASSES,):
                tensor.CopyFrom(
                    numpy_helper.from_array(values + np.eye(1, CLASSES, dtype=np.float32)[0] * 3, tensor.name)
                )
        onnx.save(model, folder / file)

    monkeypatch.setattr(building, "write_graphs", spoiled)
    torch.manual_seed(0)
    with pytest.raises(EngineError, match="the single graph on engine 'onnxruntime' is off torch's probabilities"):
        dynamic.build(nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES)), data())


def normed() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES))


@pytest.mark.parametrize("mode", ["joint", "distill"])
def test_a_last_batch_of_one_is_left_out_where_batch_norm_needs_two(
    mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "dynamic")
    options: dict[str, Any] = {} if mode == "joint" else {"teacher": normed()}
    network, expected = normed(), normed()
    fit(network, data(81), mode=mode, epochs=2, **options)  # batches of 40, 40 and 1
    fit(expected, data(81)[:2], mode=mode, epochs=2, **options)
    assert [r.message for r in caplog.records] == [
        "a batch of one input is left out: batch norm needs two or more. See drop_last=True"
    ]
    for own, other in zip(network.state_dict().values(), expected.state_dict().values(), strict=True):
        assert own.isfinite().all()
        assert own.shape == other.shape


def test_a_last_batch_of_one_trains_where_it_can() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.LayerNorm(8), nn.Linear(8, CLASSES))
    before = [p.clone() for p in network.parameters()]
    dynamic.fit(network, data(1), mode="joint", epochs=1)
    assert any(not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


@pytest.mark.parametrize("mode", ["joint", "heads", "uncached"])
def test_batches_of_one_alone_are_an_error_of_ours(mode: str) -> None:
    options: dict[str, Any] = {"cache": False} if mode == "uncached" else {}
    network = normed()
    if mode != "joint":
        network = dynamic.wrap(nn.Sequential(*network, nn.Linear(CLASSES, CLASSES)).eval(), X, exits=["1"])
    loader = data(1 if mode == "heads" else 4, size=1)
    with pytest.raises(InputError, match=r"all \d batches hold one input, and batch norm needs two"):
        fit(network, loader, mode="joint" if mode == "joint" else "heads", epochs=2, **options)


def test_a_last_batch_of_one_in_every_other_reader(tmp_path: Path) -> None:
    network, loader = normed().eval(), data(81)
    assert len(dynamic.calibrate(network, loader)) == 81
    made = quantize(network, X, calibration_loader=loader, latency=False, eval_loader=loader)
    assert made.report.after.accuracy is not None
    net = dynamic.wrap(network, X, exits=["1"])
    dynamic.fit(net, loader, epochs=1, training=dynamic.TrainingConfig(cache=False))
    dynamic.fit(net, loader, epochs=1)
