"""int8 convolutions of networks that torch.fx cannot trace, or whose layers it sees as functions."""

import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from support.networks.untraceable_layers import SameConv, StandardConv, photos
from torch import Tensor, nn

import dynamic
from dynamic.errors import DynamicWarning, InputError, TraceError
from dynamic.models import compress
from dynamic.models.compress.quantization.int8_arithmetic import Int8Conv, Int8Linear, RoundedLinear
from dynamic.offline.onnx_export.stage_graphs import export_stages
from dynamic.offline.tracing.multiply_adds import share_macs
from dynamic.offline.tracing.trace import capture_fx

GENERATOR = torch.Generator().manual_seed(5)
# pictures of one colour each, with noise: answers then depend on the picture
X = torch.randn(256, 3, 1, 1, generator=GENERATOR) + 0.5 * torch.randn(256, 3, 18, 18, generator=GENERATOR)
KINDS = [SameConv, StandardConv, nn.Conv2d]


def logits(network: nn.Module, x: Tensor = X) -> Tensor:
    with torch.no_grad():
        result: Tensor = network(x)
    return result


def int8(network: nn.Module) -> compress.Compressed:
    return compress.quantize(network, X[:2], calibration_loader=[X[:64]], latency=False, ranges="minmax")


def kinds(network: nn.Module) -> Counter[str]:
    return Counter(type(module).__name__ for module in network.modules())


@pytest.mark.parametrize("kind", KINDS)
def test_every_convolution_is_int8_and_answers_agree(kind: type[nn.Conv2d]) -> None:
    network = photos(kind, X)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    made = int8(network)
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    found = kinds(made.network)
    assert (found["Int8Conv"], found["Total"]) == (5, 2)
    assert not found["_AnyNorm"] + found["BatchNorm2d"] + found["ReLU6"], "norms and rectifiers are inside convolutions"
    assert made.report.facts["layers"] == 6
    assert made.report.facts["int8_share"] == 1.0
    assert "int8: 100% of the multiply-adds, in 6 layers" in str(made.report)
    own, other = logits(network), logits(made.network)
    assert float((own - other).abs().max()) < 0.1 * float(own.abs().max())
    assert len(own.argmax(1).unique()) > 2
    assert float((own.argmax(1) == other.argmax(1)).float().mean()) >= 0.95


def test_torch_fx_stops_at_the_padding() -> None:
    with pytest.raises(TraceError):
        capture_fx(photos(SameConv, X), {"x": X}, training=False)


def test_standardized_weights_are_computed_once() -> None:
    network = photos(StandardConv, X)
    layer = int8(network).network.get_submodule("blocks.0.dw")
    assert isinstance(layer, Int8Conv)
    weight = network.blocks[0].dw.weight.detach()
    centred = weight - weight.mean((1, 2, 3), keepdim=True)
    norm = network.blocks[0].bn1
    gain = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()  # of the batch norm that is folded
    expected = centred / (centred.var((1, 2, 3), correction=0, keepdim=True) + 1e-6).sqrt() * gain[:, None, None, None]
    scales = layer.weights.scales[:, None, None, None]
    assert float(((layer.weights.codes * scales - expected) / scales).abs().max()) <= 1.501  # as "portable" allows


def test_a_fixed_size_any_batch_and_an_example_of_one() -> None:
    network = photos(SameConv, X)
    smaller = compress.quantize(network, X[:1], calibration_loader=[X[:64]], latency=False, ranges="minmax").network
    for count in (1, 5):
        torch.testing.assert_close(logits(smaller, X[:count]), logits(smaller)[:count])
    torch.testing.assert_close(logits(smaller), smaller(x=X))
    with pytest.raises(InputError, match=r"input 'x' is \[2, 3, 16, 16\].*\['B', 3, 18, 18\]"):
        smaller(X[:2, :, :16, :16])


@pytest.mark.parametrize("kind", [SameConv, StandardConv])
def test_onnx_runtime_convolves_in_integers(tmp_path: Path, kind: type[nn.Conv2d]) -> None:
    smaller = int8(photos(kind, X)).network
    export_stages(dynamic.Cascade(smaller), tmp_path, X[:2], progress=False)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    path = tmp_path / "backbones" / "0_0.onnx"
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found = Counter(
        node.op_type for node in onnx.load(options.optimized_model_filepath, load_external_data=False).graph.node
    )
    assert (found["QLinearConv"], found["QLinearAdd"]) == (5, 2), found
    assert not found["Conv"] + found["FusedConv"], found
    (name,) = (entry.name for entry in session.get_inputs())
    expected = logits(smaller).numpy()
    actual = session.run(None, {name: X.numpy()})[0]
    # a value between two codes may fall to either side
    assert np.abs(actual - expected).max() < 0.05 * np.abs(expected).max()


def test_exits_on_the_result_and_before() -> None:
    network = photos(SameConv, X)
    smaller = int8(network).network
    after = dynamic.wrap(smaller, X[:2], exits=1)
    torch.testing.assert_close(logits(after)[-1], logits(smaller))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DynamicWarning)  # captured with torch.export
        wrapped = dynamic.wrap(network, X[:2], exits=1)
    made = int8(wrapped)
    assert kinds(made.network)["Int8Conv"] == 5
    torch.testing.assert_close(logits(made.network)[-1], logits(smaller), rtol=0, atol=0.1)


class Tagged(nn.Module):
    """A convolution of 4 x 4 patches [B, 3, 8, 8] -> [B, 4, 8], then linear layers in a branch on the values."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patch, self.inner, self.head = SameConv(3, 8, 4, stride=4), nn.Linear(8, width), nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        logits: Tensor = self.head(torch.relu(self.inner(tokens)).mean(1))
        return logits


def test_shares_by_hand_and_linear_layers_where_they_stand() -> None:
    network = Tagged(256).eval()
    x = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    # patch has 4 places, 8 channels and 48 weights, inner 4 tokens and 8 x 256, head 256 x 2
    patch, inner, head = 4 * 8 * 48, 4 * 8 * 256, 512
    total = patch + inner + head
    shares = share_macs(network, (x,), {})
    assert shares.convolutions == pytest.approx(patch / total)
    assert shares.parts == pytest.approx({"patch": patch / total, "inner": inner / total, "head": head / total})
    made = compress.quantize(network, x[:2], calibration_loader=[x], latency=False)
    assert isinstance(made.network, Tagged)
    assert isinstance(made.network.inner, RoundedLinear)
    assert made.report.facts["int8_share"] == pytest.approx((inner + head) / total)
    assert made.report.facts["float_shares"] == pytest.approx({"patch": patch / total})
    whole = compress.quantize(Tagged(16).eval(), x[:2], calibration_loader=[x], latency=False)
    assert isinstance(whole.network.get_submodule("patch"), Int8Conv)
    assert isinstance(whole.network.get_submodule("inner"), Int8Linear)


def test_much_that_remains_float_is_never_silent() -> None:
    torch.manual_seed(0)
    mirrored = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"), nn.Flatten(), nn.Linear(8 * 18 * 18, 2)
    ).eval()
    convolution, layer = 18 * 18 * 8 * 27, 8 * 18 * 18 * 2
    share = layer / (convolution + layer)
    says = f"only {share:.0%} of the multiply-adds are in int8.*0, .*%: engines have no int8 kernel"
    with pytest.warns(DynamicWarning, match=says):
        made = int8(mirrored)
    assert made.report.facts["int8_share"] == pytest.approx(share)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compress.quantize(mirrored, X[:2], calibration_loader=[X[:64]], latency=False, skip=["0"])  # asked for
