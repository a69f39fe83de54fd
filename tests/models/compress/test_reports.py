"""What a report of compression claims: no gain that is noise, no loss without a word, no name that misleads."""

import inspect
import logging
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

import dynamic
from dynamic.models import compress
from dynamic.models.compress import prune_weights, quantize, quantize_weights, separate
from dynamic.models.compress.pruning.block_pruning import time_estimate
from dynamic.models.compress.report import Measured, Report, measure
from dynamic.offline.cascade import Cascade
from dynamic.offline.onnx_export.stage_graphs import export_stages
from dynamic.policies.errors import ExitError, InputError, SettingError, WrapError

X = torch.zeros(2, 3, 8, 8)


def trained() -> tuple[nn.Module, list[Any]]:
    """A network that tells ten random patterns apart for certain, and inputs of them."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 64, 10)).eval()
    patterns = torch.randn(10, 3, 8, 8)
    label = torch.arange(600) % 10
    x = patterns[label] + 0.3 * torch.randn(600, 3, 8, 8)
    with torch.no_grad():
        features = network[:3](patterns)
        network[3].weight.copy_(features - features.mean(0))
        weight = network[3].weight
        network[3].bias.copy_(-weight @ features.mean(0) - 0.5 * weight.square().sum(1))
    return network, [(x, label)]


def figures(accuracy: float | None = None, **changes: Any) -> Measured:
    """A network of a thousand weights."""
    known: dict[str, Any] = {"chance": 0.1, "inputs": 1000, "latency_ms": 1.0, "latency_spread_ms": 0.05}
    return Measured(1000, 1000, file_bytes=4000, macs=1e6, accuracy=accuracy, **(known | changes))


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (0.9, 0.1, "at chance"),
        (0.9, 0.11, "at chance"),
        (0.9, 0.08, "at chance"),
        (0.9, 0.5, "fell by 40.0 points, more than the 2 that are usual"),
        (0.9, 0.89, None),
        (0.9, 0.95, None),
        (0.1, 0.1, None),  # it knew nothing before
        (None, None, None),
    ],
)
def test_a_loss_is_said(before: float | None, after: float | None, words: str | None) -> None:
    report = Report("pruned", figures(before), after=figures(after))
    assert (words is None) == (not report.warnings)
    if words is not None:
        assert words in report.warnings[0]
        assert f"WARNING: {report.warnings[0]}" in str(report)


def test_few_inputs_do_not_make_a_loss() -> None:
    report = Report("pruned", figures(0.9, inputs=20), after=figures(0.8, inputs=20))
    assert report.warnings == ()  # two of 20


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"latency_ms": 0.798}, "79.8%"),
        ({"latency_ms": 0.96}, "no difference beyond the spread of 0.050 ms"),
        ({"latency_ms": 0.798, "latency_spread_ms": 0.3}, "no difference beyond the spread of 0.300 ms"),
    ],
)
def test_no_gain_within_the_spread(changes: dict[str, Any], words: str) -> None:
    report = Report("pruned", figures(), after=figures(**changes))
    line = next(line for line in str(report).splitlines() if "latency" in line)
    assert words in line
    assert ("%" in line) == ("%" in words)


def test_zeros_claim_no_time(caplog: pytest.LogCaptureFixture) -> None:
    network, data = trained()
    report = prune_weights(network, X, amount=0.5, eval_loader=data).report
    line = next(line for line in str(report).splitlines() if "latency" in line)
    assert "%" not in line
    assert "same arithmetic" in line
    assert "zeros save no time" in str(report)
    coded = quantize_weights(network, X, bits=8).report
    assert "same arithmetic" in str(coded)


@pytest.mark.parametrize(
    "method",
    [
        lambda network, data: prune_weights(network, X, amount=0.995, eval_loader=data, latency=False),
        lambda network, data: quantize(
            network, X, calibration_loader=[0 * data[0][0]], eval_loader=data, latency=False, ranges="minmax"
        ),
        lambda network, data: separate(_forgetful(network), X, eval_loader=data, latency=False),
    ],
    ids=["weights", "int8", "separable"],
)
def test_methods_warn_of_what_nobody_would_accept(method: Any, caplog: pytest.LogCaptureFixture) -> None:
    network, data = trained()
    assert measure([network], X, eval_loader=data, latency=False)[0].accuracy == pytest.approx(1.0, abs=0.01)
    with caplog.at_level(logging.WARNING, "dynamic"):
        compressed = method(network, data)
    assert compressed.report.warnings
    assert compressed.report.warnings[0] in caplog.text


def _forgetful(network: nn.Module) -> nn.Module:
    """Many kernels that one depthwise kernel does not approximate, before what the network does."""
    torch.manual_seed(1)
    first = nn.Conv2d(3, 48, 3, padding=1, bias=False)
    last = nn.Conv2d(48, 3, 3, padding=1, bias=False)
    with torch.no_grad():
        first.weight.zero_()
        last.weight.zero_()
        for channel in range(3):
            for k in range(9):
                first.weight[channel * 9 + k, channel, k // 3, k % 3] = 1.0
            last.weight[channel, channel * 9 + 4, 1, 1] = 1.0
    return nn.Sequential(first, last, *network)


def test_the_onnx_file_stands_beside_the_weights(tmp_path: Path) -> None:
    network, data = trained()
    compressed = quantize(network, X, calibration_loader=data)
    after = compressed.report.after
    export_stages(Cascade(compressed.network), tmp_path, X, progress=False)
    shipped = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert after.exported_bytes == pytest.approx(shipped, rel=0.02)
    assert any(onnx.load(path).graph.node for path in tmp_path.rglob("*.onnx"))
    text = str(compressed.report)
    assert f"{shipped / 1e3:.1f}"[:3] in next(line for line in text.splitlines() if "ONNX file" in line)
    assert "weights " in text
    assert not any(line.strip().startswith("file") for line in text.splitlines())


WRONG = ["a", None, True, 1.5, [0.5]]


@pytest.mark.parametrize("value", WRONG)
@pytest.mark.parametrize(
    ("words", "method"),
    [
        ("amount=", lambda network, value: compress.prune_weights(network, X, amount=value, latency=False)),
        ("amount=", lambda network, value: compress.prune_channels(network, X, amount=value, latency=False)),
        ("count=", lambda network, value: compress.prune_blocks(network, X, count=value, latency=False)),
        ("widths=", lambda network, value: compress.slimmable(network, X, widths=value)),
        ("clusters=", lambda network, value: compress.cluster(network, X, clusters=value, latency=False)),
        ("bits=", lambda network, value: compress.quantize_weights(network, X, bits=value, latency=False)),
        ("rank=", lambda network, value: compress.separate(network, X, rank=value, latency=False)),
        ("energy=", lambda network, value: compress.low_rank(network, X, energy=value, latency=False)),
        ("sparsity=", lambda network, value: compress.lottery_ticket(trained, X, train=len, sparsity=value)),
        ("macs=", lambda network, value: compress.Target(macs=value, drop=0.5)),
    ],
)
def test_amounts_are_checked(words: str, method: Any, value: Any) -> None:
    if (words, value) == ("macs=", None) or (words == "count=" and isinstance(value, list)):
        pytest.skip("not asked for; names of no module")
    with pytest.raises(SettingError, match=words):
        method(trained()[0], value)


WRONG_CHANNELS = torch.zeros(2, 1, 8, 8)


@pytest.mark.parametrize(
    "method",
    [
        lambda network, x, pairs: compress.prune_weights(network, x, amount=0.5),
        lambda network, x, pairs: compress.prune_channels(network, x, amount=0.5),
        lambda network, x, pairs: compress.prune_blocks(network, x, count=1),
        lambda network, x, pairs: compress.low_rank(network, x, energy=0.5),
        lambda network, x, pairs: compress.separate(network, x),
        lambda network, x, pairs: compress.quantize(network, X, calibration_loader=[x]),
        lambda network, x, pairs: compress.quantize(network, x, calibration_loader=[X]),
        lambda network, x, pairs: compress.cluster(network, x, clusters=2),
        lambda network, x, pairs: compress.slimmable(network, x),
        lambda network, x, pairs: compress.distill(network, x, teacher=network, train_loader=pairs, epochs=1),
        lambda network, x, pairs: compress.deep_compress(network, x, train_loader=pairs),
        lambda network, x, pairs: compress.prune_until(
            network, x, train_loader=pairs, target=compress.Target(macs=0.5)
        ),
    ],
)
def test_a_wrong_number_of_channels_is_said_in_words(method: Any) -> None:
    with pytest.raises(InputError, match="expected input"):
        method(trained()[0], WRONG_CHANNELS, [(WRONG_CHANNELS, torch.arange(2))])


class Recurrent(nn.Module):
    """An LSTM and a linear layer behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.LSTM(5, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, 5] -> [B, 3]."""
        answer: Tensor = self.outer(self.inner(x)[0][:, -1])
        return answer


@pytest.mark.filterwarnings("ignore:only .* of the multiply-adds are in int8")
def test_an_lstm_is_left_alone_with_a_reason() -> None:
    network, x = Recurrent().eval(), torch.zeros(2, 6, 5)
    for compressed in (
        compress.prune_weights(network, x, amount=0.5, latency=False),
        compress.low_rank(network, x, energy=0.5, latency=False),
        compress.separate(network, x, latency=False),
        compress.quantize(network, x, calibration_loader=[torch.randn(4, 6, 5)], latency=False),
        compress.quantize_weights(network, x, latency=False),
    ):
        assert any("LSTM" in why for why in compressed.report.left_alone.values())
    with pytest.raises(WrapError, match="LSTM"):
        compress.prune_channels(network, x, amount=0.5, latency=False)
    with pytest.raises(ExitError, match="no place where it can be cut, since it has too few layers"):
        dynamic.wrap(network, x, exits=2)
    with pytest.raises(ExitError, match="no place where it can be cut"):
        dynamic.wrap(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), X, exits=2)


def test_a_target_that_is_not_met_is_said(caplog: pytest.LogCaptureFixture) -> None:
    # 16 channels are pruned by multiples of 8: half of them may go, and three quarters were asked for
    network, data = trained()
    options = {"round_to": 8}
    with caplog.at_level(logging.WARNING, "dynamic"):
        found = compress.prune_until(
            network,
            X,
            train_loader=data,
            target=compress.Target(macs=0.25),
            amount=0.5,
            epochs=1,
            steps=4,
            method_options=options,
        )
    assert not found.report.facts["met"]
    note = next(note for note in found.report.notes if "not met" in note)
    assert "macs 50.0% of the original's where 25.0% was the target" in note
    assert "widths are multiples" in note
    assert note in caplog.text
    assert note in str(found.report)


def test_passes_over_the_data_are_estimated() -> None:
    assert time_estimate(27, 1.0) is None
    words = time_estimate(351, 0.9)
    assert words is not None
    assert "351 passes over the data of 0.9 s each take about 316 s" in words


def test_names_and_defaults() -> None:
    ours, theirs = inspect.signature(compress.distill).parameters, dynamic.DistillationConfig()
    defaults = [ours["distill_share"].default, ours["temperature"].default]
    defaults += [theirs.share, theirs.temperature]
    reason = " ".join((compress.distill.__doc__ or "").split())
    assert "{:g} and {:g}, differ from those of `dynamic.fit`, {:g} and {:g}, for a reason".format(*defaults) in reason
    assert "Nesterov" in (dynamic.TrainingConfig.__doc__ or "")
    for name in (".dense", ".ticket", ".control"):
        assert name in (compress.Lottery.__doc__ or "")
        assert name in (compress.lottery_ticket.__doc__ or "")


@pytest.mark.parametrize("name", ["x.xml", "x.tflite", "x.pt", "model.v2"])
def test_onnx_is_not_written_under_another_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"what is written is ONNX: name it \w+\.onnx"):
        dynamic.export(trained()[0], tmp_path / name, example_inputs=X)
    assert not any(tmp_path.iterdir())
