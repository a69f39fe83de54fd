"""Layers of torch's own encoders, which run as one fused operator in evaluation mode."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dynamic
from dynamic.engines.engine_factory import open_engine
from dynamic.models import compress
from dynamic.models.compress.quantization.int8_arithmetic import RoundedLinear
from dynamic.offline.build_steps.record_collection import plain_combiner
from dynamic.offline.onnx_export.stage_graphs import export_stages

pytestmark = [
    pytest.mark.filterwarnings("ignore:captured with torch.export:dynamic.policies.errors.DynamicWarning"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning"),
]


class Texts(nn.Module):
    """Two encoder layers on `[B, 9]` ids, where 0 is padding. torch.fx cannot trace it."""

    def __init__(self, masked: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(50, 16, padding_idx=0)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.classifier = nn.Linear(16, 4)
        self.masked = masked

    def forward(self, ids: Tensor) -> Tensor:
        if ids.shape[1] < 1:
            raise ValueError("no token")
        mask = ids == 0 if self.masked else None
        features = self.encoder(self.embed(ids), src_key_padding_mask=mask)
        logits: Tensor = self.classifier(features[:, 0])
        return logits


@pytest.fixture
def ids() -> Tensor:
    ids = torch.randint(1, 50, (16, 9), generator=torch.Generator().manual_seed(1))
    ids[::2, 6:] = 0
    ids[0] = ids[0].clamp(min=1)
    return ids


def calls_of(network: nn.Module, ids: Tensor) -> tuple[list[str], Tensor]:
    """The int8 layers that are called, without hooks, which end the fused operator. And the answer."""
    calls: list[str] = []

    def counted(name: str, forward: object) -> object:
        def call(x: Tensor) -> Tensor:
            calls.append(name)
            return forward(x)  # type: ignore[operator, no-any-return]

        return call

    for name, module in network.named_modules():
        if isinstance(module, RoundedLinear):
            module.rounded.forward = counted(name, module.rounded.forward)  # type: ignore[method-assign, assignment]
    with torch.no_grad():
        answer = network(ids)
    for module in network.modules():
        if isinstance(module, RoundedLinear):
            del module.rounded.forward
    return calls, answer


@pytest.mark.filterwarnings("ignore:only .* of the multiply-adds are in int8")
@pytest.mark.parametrize("masked", [False, True])
def test_int8_layers_are_called_as_onnx_runtime_computes(masked: bool, ids: Tensor, tmp_path: Path) -> None:
    network = Texts(masked).eval()
    result = compress.quantize(network, ids[:2], calibration_loader=[ids], latency=False, ranges="minmax")
    calls, answer = calls_of(result.network, ids)
    layers = [f"encoder.layers.{i}.linear{j}" for i in (0, 1) for j in (1, 2)]
    assert calls == [*layers, "classifier"]
    spec = export_stages(dynamic.Cascade(result.network), tmp_path, ids[:2], progress=False)
    opened = open_engine("onnxruntime", tmp_path, spec, plain_combiner(spec), None, "f32")
    try:
        (name,) = (given.name for given in spec.inputs)
        np.testing.assert_allclose(opened.stages.all_logits({name: ids.numpy()})[:, -1], answer, atol=1e-5)
    finally:
        opened.close()
    assert network.encoder.layers[0].activation_relu_or_gelu == 1  # the user's own is as before
    assert network.encoder.use_nested_tensor


def test_encoder_layers_in_skip_remain_fused(ids: Tensor) -> None:
    result = compress.quantize(Texts(True).eval(), ids[:2], calibration_loader=[ids], latency=False, skip=["encoder"])
    encoder = result.network.get_submodule("encoder")
    assert encoder.use_nested_tensor
    assert encoder.get_submodule("layers.0").activation_relu_or_gelu == 1


@pytest.mark.filterwarnings("ignore:only .* of the multiply-adds are in int8")
def test_a_weight_that_attention_reads_is_left_alone(ids: Tensor) -> None:
    network = Texts(False).eval()
    attention = network.encoder.layers[0].self_attn
    own = attention.out_proj
    attention.out_proj = nn.Linear(16, 16).requires_grad_(False)
    attention.out_proj.load_state_dict(own.state_dict())
    result = compress.quantize(network, ids[:2], calibration_loader=[ids], latency=False)
    assert "without calling it" in result.report.left_alone["encoder.layers.0.self_attn.out_proj"]


@pytest.mark.parametrize("masked", [False, True])
def test_low_rank_layers_are_called(masked: bool, ids: Tensor) -> None:
    """Answers are those of the parts. torch calls these wherever weights need gradients."""
    network = Texts(masked).eval()
    rank = {f"encoder.layers.{i}.linear{j}": 2 for i in (0, 1) for j in (1, 2)}
    for loader in (None, [ids]):
        thin = compress.low_rank(network, ids[:2], rank=rank, latency=False, calibration_loader=loader).network
        assert isinstance(thin.get_submodule("encoder.layers.0.linear1"), nn.Sequential)
        with torch.no_grad():
            fused = thin(ids)
        with torch.enable_grad():
            assert torch.allclose(thin(ids), fused, atol=1e-5)


class ByName(nn.Module):
    """Layers that are called with their parameter's name."""

    def __init__(self, traced: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.traced = traced
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        if not self.traced and x.shape[0] < 1:
            raise ValueError("no row")
        return self.b(input=torch.relu(self.a(input=x)))  # type: ignore[no-any-return]


def smaller(traced: bool, x: Tensor) -> Iterator[nn.Module]:
    network = ByName(traced).eval()
    yield compress.quantize(network, x, calibration_loader=[x], latency=False, ranges="minmax").network
    yield compress.low_rank(network, x, rank={"a": 4}, latency=False, calibration_loader=[x]).network
    yield compress.low_rank(network, x, rank={"a": 4}, latency=False).network
    yield compress.slimmable(network, x, widths=(0.5, 1.0))


@pytest.mark.parametrize("traced", [False, True])
def test_layers_may_be_called_by_name(traced: bool) -> None:
    x = torch.randn(32, 8, generator=torch.Generator().manual_seed(2))
    for network in smaller(traced, x):
        with torch.no_grad():
            output = network.eval()(x)
        logits = output[-1] if isinstance(output, list) else output
        assert logits.shape == (32, 3)
        assert bool(logits.isfinite().all())
