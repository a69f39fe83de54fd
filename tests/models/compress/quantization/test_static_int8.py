"""int8 networks: against integer arithmetic in numpy, and by what ONNX Runtime makes of their graphs."""

import copy
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torchvision
from torch import Tensor, nn

import dynamic
from dynamic.models import CifarResNet, load_weights, save_weights
from dynamic.models.compress.quantization.activation_ranges import grids
from dynamic.models.compress.quantization.int8_arithmetic import (
    Grid,
    Int8Conv,
    Int8Linear,
    Rounded,
    Total,
    round_to_grid,
)
from dynamic.models.compress.quantization.int8_graph import float_stages
from dynamic.models.compress.quantization.quantized_exits import QuantizedExits
from dynamic.models.compress.quantization.static_int8 import quantize
from dynamic.offline.onnx_export.stage_graphs import describe, export_stages
from dynamic.offline.onnx_export.whole_graph import plain_ladder
from dynamic.offline.staged_network import StagedNetwork
from dynamic.policies.errors import CalibrationError, EngineError, InputError, SettingError, TraceError, WrapError

GENERATOR = torch.Generator().manual_seed(3)
X = torch.randn(32, 3, 16, 16, generator=GENERATOR)
DATA = [X[:16], X[16:]]


def resnet(depth: int = 8) -> nn.Module:
    """Batch norms that have seen data, so that folding them matters."""
    torch.manual_seed(0)
    network = CifarResNet(depth, width=8)
    network.train()
    with torch.no_grad():
        network(X * 2 + 1)
    return network.eval()


def int8(network: nn.Module, data: Any = DATA, **options: Any) -> nn.Module:
    """The quantized network alone."""
    return quantize(network, X[:2], calibration_loader=data, latency=False, **options).network


def far(network: nn.Module, other: nn.Module, x: Tensor = X) -> float:
    """The largest difference of the (last) logits, as a share of the largest logit."""
    with torch.no_grad():
        a, b = (n(x) for n in (network, other))
    a, b = (found[-1] if isinstance(found, list) else found for found in (a, b))
    return float((a - b).abs().max() / a.abs().max())


def operators(graph: onnx.GraphProto) -> Counter[str]:
    """Kinds of nodes, those in branches too."""
    found = Counter(node.op_type for node in graph.node)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found += operators(attribute.g)
    return found


def optimized(path: Path) -> tuple[onnxruntime.InferenceSession, Counter[str]]:
    """A session, and the kinds of nodes it runs."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.optimized_model_filepath = str(path.with_suffix(".optimized.onnx"))
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session, operators(onnx.load(options.optimized_model_filepath, load_external_data=False).graph)


def widest_gap(values: np.ndarray) -> float:
    """The middle of the widest gap in the middle half of some values."""
    inner = np.sort(values)[len(values) // 4 : -(len(values) // 4)]
    at = np.diff(inner).argmax()
    return float(inner[at] + inner[at + 1]) / 2


# ---- arithmetic


def test_rounding_by_hand() -> None:
    x = torch.tensor([-1.0, 0.25, 0.75, 1.25, 1.0, 200.0])
    assert round_to_grid(x, Grid(0.5, 0, False).sides).tolist() == [0, 0, 1, 1, 1, 127.5]  # half to even, and the ends
    assert round_to_grid(x, Grid(0.5, 0, True).sides).tolist() == [-1, 0, 1, 1, 1, 63.5]
    assert round_to_grid(x, Grid(0.5, 2, False).sides).tolist() == [-1, 0, 1, 1, 1, 126.5]
    assert Grid(0.5, 2, False).values == (-1, 126.5)


def test_convolution_is_integer_arithmetic() -> None:
    """The simulated layer against sums of products of codes."""
    rng = np.random.default_rng(0)
    x, w, b = rng.integers(0, 256, (2, 3, 5, 5)), rng.integers(-127, 128, (4, 3, 3, 3)), rng.integers(-5000, 5000, 4)
    x_scale, scales, out = 2.0**-6, np.array([2.0**-7, 2.0**-8, 2.0**-9, 2.0**-7]), Grid(2.0**-2, 0, True)
    layer = Int8Conv(
        nn.Conv2d(3, 4, 3, stride=2),
        nn.Parameter(torch.from_numpy(w).to(torch.int8), requires_grad=False),
        torch.from_numpy(scales).float(),
        torch.from_numpy(b * scales * x_scale).float(),
        x_scale,
        out,
    ).eval()
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))[:, :, ::2, ::2]
    sums = np.einsum("bchwij,kcij->bkhw", windows, w) + b[:, None, None]
    real = sums * (scales * x_scale)[:, None, None]
    expected = out.scale * np.clip(np.rint(real / out.scale), -128, 127)
    found = layer(torch.from_numpy(x * x_scale).float())
    np.testing.assert_array_equal(found.numpy(), expected)
    assert layer.weights.bias is not None
    assert layer.weights.bias.tolist() == b.tolist()


# ---- ranges


def show(*batches: Tensor) -> Callable[[Any], int]:
    def passes(seen: Any) -> int:
        for batch in batches:
            seen("x", batch)
        return len(batches)

    return passes


def test_ranges_by_hand() -> None:
    low = torch.linspace(0, 508, 100)
    found = grids(show(low, -low), "minmax", str)["x"]
    assert found == Grid(4, 0, True)
    assert grids(show(low, low / 2), "minmax", str)["x"].scale == pytest.approx(508 / 255)
    assert not grids(show(low), "minmax", str)["x"].signed
    # -128 is a code too
    assert grids(show(torch.tensor([-128.0, 1.0])), "minmax", str)["x"] == Grid(1, 0, True)


def test_percentile_and_mse_cut_what_is_rare() -> None:
    many = torch.linspace(0, 1, 100_000)
    with_outlier = torch.cat([many, torch.tensor([4.0])])
    whole = grids(show(with_outlier), "minmax", str)["x"]
    percentile = grids(show(with_outlier), "percentile", str)["x"]
    assert whole.values[1] == pytest.approx(4)
    assert percentile.values[1] == pytest.approx(1, abs=2 * 4 / 4096)

    def error(grid: Grid) -> float:
        return float((round_to_grid(with_outlier, grid.sides) - with_outlier).square().sum())

    assert error(grids(show(with_outlier), "mse", str)["x"]) < min(error(whole), error(percentile))


def test_a_tensor_of_zeros_has_a_grid() -> None:
    grid = grids(show(torch.zeros(5)), "percentile", str)["x"]
    assert grid.scale > 0
    assert round_to_grid(torch.zeros(5), grid.sides).tolist() == [0] * 5


# ---- networks


def test_batch_norms_are_folded() -> None:
    network = resnet()
    (stage,) = float_stages(copy.deepcopy(network), X[:2])
    assert not [m for m in stage.modules() if isinstance(m, nn.BatchNorm2d)]
    assert far(network, stage) < 1e-5


@pytest.mark.parametrize("ranges", ["percentile", "minmax", "mse"])
def test_close_to_the_network_which_stays_as_it_is(ranges: str) -> None:
    network = resnet()
    before = copy.deepcopy(network.state_dict())
    made = quantize(network, X[:2], calibration_loader=DATA, ranges=ranges, latency=False)
    assert 0 < far(network, made.network) < 0.06
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    assert (made.report.facts["layers"], made.report.facts["sums"]) == (8, 3)
    assert made.report.left_alone == {}
    kinds = Counter(type(m) for m in made.network.modules())
    assert (kinds[Int8Conv], kinds[Total]) == (7, 3)
    weights = sum(p.numel() for n, p in network.named_parameters() if "conv" in n or "linear.weight" in n)
    assert sum(p.numel() for p in made.network.parameters() if p.dtype == torch.int8) == weights
    assert made.report.after.file_bytes < 0.35 * made.report.before.file_bytes
    assert made.report.after.macs == made.report.before.macs


def test_weights_are_rounded_by_channel() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(6, 3)
    with torch.no_grad():
        layer.weight[1] *= 100
        layer.weight[2] = 0
    data = [torch.randn(64, 6)]
    made = quantize(
        nn.Sequential(layer), data[0][:2], calibration_loader=data, weight_range="full", latency=False
    ).network
    (found,) = [m for m in made.modules() if isinstance(m, Int8Linear)]
    peaks = layer.weight.detach().abs().amax(1)
    torch.testing.assert_close(found.scales[:2], peaks[:2] / 127)
    assert found.codes.abs().amax(1).tolist() == [127, 127, 0]
    error = (found.codes * found.scales[:, None] - layer.weight).abs()
    assert bool((error <= found.scales[:, None] / 2 * 1.001).all())


def test_a_bias_over_tiny_weights_survives() -> None:
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1e-10, 0], [1, 1]]))
        layer.bias.copy_(torch.tensor([3.0, -2.0]))
    network = nn.Sequential(layer)
    made = quantize(network, torch.zeros(2, 2), calibration_loader=[torch.eye(2)], latency=False).network
    torch.testing.assert_close(made(torch.zeros(1, 2)), torch.tensor([[3.0, -2.0]]), atol=1 / 127**2, rtol=0)


def test_reduced_range_has_seven_bits() -> None:
    made = int8(resnet(), weight_range="seven_bits")
    assert max(int(p.abs().max()) for p in made.parameters() if p.dtype == torch.int8) == 63


class Twice(nn.Module):
    """One convolution called twice, one weight in two layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.again = nn.Conv2d(8, 8, 3, padding=1)
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(self.again(x))
        x = self.again(x).relu().mean((2, 3))
        return self.b(self.a(x))


def test_shared_weights_stay_shared() -> None:
    network = Twice()
    made = quantize(network, X[:2], calibration_loader=DATA, latency=False)
    assert far(network, made.network) < 0.06
    convs = [m for m in made.network.modules() if isinstance(m, Int8Conv)]
    assert len(convs) == 3
    assert convs[1].weights.codes is convs[2].weights.codes
    assert convs[1].grid != convs[2].grid
    assert sum(p.numel() for p in made.network.parameters() if p.dtype == torch.int8) == 8 * 27 + 8 * 72 + 64


@pytest.mark.filterwarnings("ignore:only .* of the multiply-adds:dynamic.policies.errors.DynamicWarning")
def test_skipped_and_unknown_layers_are_left_alone_and_listed() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
        nn.ReLU(),
        nn.ConvTranspose2d(4, 4, 3),
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU()),
        nn.Conv2d(4, 4, 3),
        nn.Flatten(),
        nn.Linear(4 * 14 * 14, 3),
    )
    made = quantize(network, X[:2], calibration_loader=DATA, skip=["3"], latency=False)
    left = made.report.left_alone
    assert set(left) == {"0", "2", "3.0"}
    assert "reflect" in left["0"]
    assert "ConvTranspose2d" in left["2"]
    assert made.report.facts["layers"] == 2
    assert far(network, made.network) < 0.06
    assert type(made.network.get_submodule("3.0")) is nn.Conv2d


def test_saved_with_its_grids(tmp_path: Path) -> None:
    network = resnet()
    made, other = int8(network), int8(network, [X * 3])
    assert far(made, other) > 0
    save_weights(made, tmp_path / "w.safetensors")
    load_weights(other, tmp_path / "w.safetensors")
    assert far(made, other) == 0


def test_a_loader_of_pairs_and_accuracy() -> None:
    network = resnet()
    labels = network(X).argmax(1)
    made = quantize(network, X[:2], calibration_loader=[(X, labels)], latency=False, eval_loader=[(X, labels)])
    assert made.report.before.accuracy == 1
    assert made.report.after.accuracy is not None
    assert made.report.after.accuracy > 0.8


def _vit() -> nn.Module:
    network = torchvision.models.VisionTransformer(16, 8, 2, 2, 32, 64, num_classes=10)
    nn.init.normal_(network.heads.head.weight)  # zeros as it is made
    return network


def _swin() -> nn.Module:
    return torchvision.models.SwinTransformer([2, 2], 16, [1, 2], [1, 2], [4, 4], num_classes=10)


FAMILIES: list[tuple[Callable[[], nn.Module], int, str]] = [
    (lambda: torchvision.models.resnet18(weights=None), 64, ""),
    (lambda: torchvision.models.mobilenet_v3_small(weights=None), 64, ""),
    (lambda: torchvision.models.convnext_tiny(weights=None), 32, ""),
    (_vit, 16, "encoder.layers.encoder_layer_0.self_attention"),
    (_swin, 16, "features.1.0.attn.qkv.weight"),
]


@pytest.mark.parametrize(("make", "size", "left"), FAMILIES, ids=["resnet18", "mobilenet", "convnext", "vit", "swin"])
def test_families(make: Callable[[], nn.Module], size: int, left: str) -> None:
    torch.manual_seed(0)
    network = make().eval()
    x = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    made = quantize(network, x[:2], calibration_loader=[x], ranges="minmax", latency=False)
    assert far(network, made.network, x) < 0.15
    assert (left in made.report.left_alone) == bool(left)
    quantized = sum(p.numel() for p in made.network.parameters() if p.dtype == torch.int8)
    layers = sum(m.weight.numel() for m in network.modules() if type(m) in (nn.Conv2d, nn.Linear))
    assert quantized == layers if not left else quantized > 0.4 * layers


# ---- engines


def test_onnx_runtime_computes_in_integers(tmp_path: Path) -> None:
    network = int8(resnet())
    export_stages(dynamic.Cascade(network), tmp_path, X[:2], progress=False)
    path = tmp_path / "backbones" / "0_0.onnx"
    written = {t.data_type for t in onnx.load(path, load_external_data=False).graph.initializer if len(t.dims) > 1}
    assert written == {onnx.TensorProto.INT8}
    session, ran = optimized(path)
    # 7 of the network, and its two shortcuts, which are exported as convolutions
    assert (ran["QLinearConv"], ran["QLinearAdd"], ran["QGemm"]) == (9, 3, 1)
    assert not {"Conv", "FusedConv", "Add", "Relu", "Gemm", "FusedGemm"} & set(ran)
    found = session.run(None, {session.get_inputs()[0].name: X.numpy()})[0]
    expected = network(X).numpy()
    assert np.abs(found - expected).max() < 0.03 * np.abs(expected).max()


def test_linear_layers_of_sequences_compute_in_integers(tmp_path: Path) -> None:
    torch.manual_seed(0)

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(12, 24), nn.Linear(24, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(nn.functional.gelu(self.up(x))).mean(1)

    x = torch.randn(8, 7, 12, generator=torch.Generator().manual_seed(0))
    network = quantize(Tokens(), x[:2], calibration_loader=[x], latency=False).network
    export_stages(dynamic.Cascade(network), tmp_path, x[:2], progress=False)
    session, ran = optimized(tmp_path / "backbones" / "0_0.onnx")
    assert ran["MatMulIntegerToFloat"] == 2
    assert "MatMul" not in ran
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    np.testing.assert_allclose(found, network(x).numpy(), atol=1e-2)


def test_in_the_single_graph_beside_a_float_network(tmp_path: Path) -> None:
    """A cascade of an int8 network with an exit, inside whose branch integers go on, and a float one."""
    wrapped = dynamic.wrap(resnet(), X[:2], exits=1)
    dynamic.fit(wrapped, [(X, wrapped.backbone(X).argmax(1))], mode="heads", epochs=5, progress=False)
    small, reference = int8(wrapped.eval()), resnet(8)
    path = dynamic.export(
        dynamic.Cascade([small, reference]), tmp_path / "c.onnx", example_inputs=X[:2], batch="dynamic", progress=False
    )
    session, ran = optimized(path)
    assert ran["QLinearConv"] == 8  # 7 of the network, and the shortcut that does not start from the carry
    # 7 and two shortcuts of the float network, and the int8 network's shortcut from the carry, which is in float32
    assert ran["Conv"] + ran["FusedConv"] == 10
    logits = [*small(X), reference(X)]
    chances = [found.softmax(1).detach().numpy() for found in logits]
    sure = [found.max(1) for found in chances]
    limits = np.array([widest_gap(found) for found in sure[:2]], np.float32)
    answers, stage = session.run(["logits", "stage"], {session.get_inputs()[0].name: X.numpy(), "thresholds": limits})
    expected = np.where(sure[0] > limits[0], 0, np.where(sure[1] > limits[1], 1, 2))
    assert (stage != expected).sum() <= 1  # engines round a step apart: one may lie that close to a threshold
    assert set(stage.tolist()) == {0, 1, 2}
    first = stage == 0
    np.testing.assert_allclose(np.exp(answers[first]), chances[0][first], atol=0.03)


@pytest.mark.parametrize(("classes", "temperature"), [(10, 1.0), (10, 1.7), (100, 1.7)])
def test_the_last_layer_is_in_integers_under_a_temperature(tmp_path: Path, classes: int, temperature: float) -> None:
    """The temperature is in the layer's steps: ONNX Runtime would compute a Gemm with factors of its own in float."""
    torch.manual_seed(0)
    reference = CifarResNet(8, classes, width=8).eval()
    small = int8(reference)
    cascade = dynamic.Cascade([small, reference])
    spec = describe(cascade, X[:2])
    ladder = replace(plain_ladder(spec, "mean"), temperature=(temperature, 1.0))
    path = dynamic.export(
        cascade, tmp_path / "c.onnx", batch="single", example_inputs=X[:2], ladder=ladder, progress=False
    )
    session, ran = optimized(path)
    assert ran["QGemm"] == 1
    assert ran["Gemm"] == 1  # the float network's
    everybody = {"thresholds": np.array([-1], np.float32)}
    answers = [session.run(["logits"], {"input": row[None], **everybody})[0][0] for row in X.numpy()]
    np.testing.assert_allclose(np.exp(answers), (small(X) / temperature).softmax(1).detach().numpy(), atol=0.03)


# ---- exits


def test_a_network_with_exits_keeps_them() -> None:
    network = dynamic.wrap(resnet(14), X[:2], exits=2).eval()
    before = [found.detach().clone() for found in network(X)]
    made = quantize(network, X[:2], calibration_loader=DATA, latency=False)
    assert all(torch.equal(a, b) for a, b in zip(before, network(X), strict=True))  # nor are its graphs changed
    net = made.network
    assert isinstance(net, QuantizedExits)
    assert [s.name for s in net.exit_stages] == [s.name for s in network.exit_stages]
    found = net(X)
    for a, b in zip(before, found, strict=True):
        assert 0 < float((a - b.detach()).abs().max()) < 0.1 * float(a.abs().max())
    carry: tuple[Tensor, ...] = (X,)
    for stage, logits in zip(net.exit_stages, found, strict=True):
        carry = stage.body(*carry)
        assert torch.equal(stage.head(carry[0]), logits)
    # a carry that is on a grid already does not move when it is rounded again
    whole = int8(resnet(14))
    torch.testing.assert_close(found[-1], whole(X), atol=1e-5, rtol=0)


@pytest.mark.parametrize("order", ["wrap first", "quantize first"])
def test_heads_can_be_trained(order: str) -> None:
    net: StagedNetwork
    if order == "wrap first":
        found = int8(dynamic.wrap(resnet(14), X[:2], exits=1))
        assert isinstance(found, StagedNetwork)
        net = found
    else:
        net = dynamic.wrap(int8(resnet(14)), X[:2], exits=1)
    body = {k: v.clone() for k, v in net.state_dict().items() if not k.startswith("heads.")}
    last = net(X)[-1].clone()
    labels = last.argmax(1)
    fitted = dynamic.fit(net, [(X, labels)], mode="heads", epochs=3, progress=False)
    assert fitted.history_loss[-1] < fitted.history_loss[0]
    assert torch.equal(net(X)[-1], last)
    assert all(torch.equal(net.state_dict()[k], v) for k, v in body.items())
    with pytest.raises(WrapError, match="heads"):
        dynamic.fit(net, [(X, labels)], mode="joint", epochs=1, progress=False)


def test_exits_do_not_tear_operations_apart() -> None:
    """Whatever crosses an exit lies on a grid."""
    net = dynamic.wrap(int8(resnet(14)), X[:2], exits=3)
    carry: tuple[Tensor, ...] = (X,)
    scales = [m.grid.scale for m in net.modules() if isinstance(m, Rounded)]
    for stage in net.exit_stages[:-1]:
        carry = stage.body(*carry)
        for tensor in carry:
            off = [float((tensor / s - (tensor / s).round()).abs().max()) for s in scales]
            assert min(off) < 1e-3


# ---- bad input


def test_data_without_use() -> None:
    network = resnet()
    with pytest.raises(CalibrationError, match="no input"):
        int8(network, [])
    with pytest.raises(CalibrationError, match="second time"):
        int8(network, iter(DATA))
    with pytest.raises(CalibrationError, match="not finite"):
        int8(network, [torch.full_like(X, torch.nan)])
    with pytest.raises(CalibrationError, match="not finite"):
        int8(network, [X, X / 0])
    with pytest.raises(InputError, match="loader"):
        int8(network, X)


def test_settings_and_networks_without_use() -> None:
    network = resnet()
    with pytest.raises(SettingError, match=r"ranges='median'"):
        int8(network, ranges="median")
    with pytest.raises(InputError, match=r"layer1\.0\.conv9.*layer1\.0\.conv"):
        int8(network, skip=["layer1.0.conv9"])
    with pytest.raises(InputError, match="one string"):
        int8(network, skip="layer1")
    with pytest.raises(InputError, match=r"float16.*\.float\(\)"):
        int8(resnet().half())
    with pytest.raises(InputError, match="int8"):
        int8(int8(network))
    with pytest.raises(InputError, match="no Conv or Linear"):
        quantize(nn.Sequential(nn.ReLU()), torch.zeros(2, 3), calibration_loader=[torch.zeros(2, 3)], latency=False)
    with pytest.raises(InputError, match="no Conv or Linear"):
        int8(network, skip=["conv1", "layer1", "layer2", "layer3", "linear"])


def test_what_torch_fx_cannot_follow() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) if x.sum() > 0 else -self.layer(x)

    with pytest.raises(TraceError, match="Branching"):
        quantize(Branching(), torch.zeros(2, 3), calibration_loader=[torch.zeros(2, 3)], latency=False)


def test_training_is_refused() -> None:
    network = int8(resnet())
    with pytest.raises(WrapError, match="eval"):
        network.train()(X)


def test_a_build_allows_int8_what_rounding_needs_and_float_no_more() -> None:
    """A value between two codes falls to either side; a float network that is as far off is still refused."""
    from dynamic.offline.onnx_export.parity import check_parity

    class Off:
        name, precision, graph = "pretended", "f32", None

        def __init__(self, cascade: dynamic.Cascade, spec: Any) -> None:
            self.cascade, self.spec, self.stages = cascade, spec, self

        def all_logits(self, inputs: dict[str, Any]) -> Any:
            with torch.no_grad():
                found = torch.stack(self.cascade(torch.from_numpy(inputs["input"])), dim=1)
            return (found + 0.05 * found.abs().max()).numpy()

    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    x = torch.randn(4, 3, 8, 8)
    int8 = quantize(plain, x, calibration_loader=[x], latency=False).network
    for network, allowed in ((int8, True), (plain, False)):
        cascade = dynamic.Cascade(network)
        spec = describe(cascade, x)
        with nullcontext() if allowed else pytest.raises(EngineError, match="off torch's logits"):
            check_parity(cascade, Off(cascade, spec), spec, x)  # type: ignore[arg-type]


def test_a_result_of_compression_is_no_network_and_the_error_says_what_to_give() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()
    made = quantize(network, torch.zeros(2, 12), calibration_loader=[torch.randn(8, 12)], latency=False)
    message = r"network 0 of the cascade is a Compressed, neither an nn\.Module nor the path of an ONNX file\. Give its"
    with pytest.raises(InputError, match=message):
        dynamic.Cascade([made, network])  # type: ignore[list-item]


def test_an_int8_network_before_its_original_has_operating_points() -> None:
    """It has as many multiply-adds, but they cost less: a search that took them for as dear would never use it."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 3)).eval()
    x = torch.randn(2000, 3, 2, 2)
    with torch.no_grad():
        labels = network(x).argmax(1)
    int8 = quantize(network, x[:2], calibration_loader=[x[:200]], latency=False).network
    bundle = dynamic.build([int8, network], [(x, labels)], max_drops=(0.05,), progress=False)
    assert bundle.records.macs == (12 * 32 / 2 + 32 * 3 / 2, 12 * 32 + 32 * 3)
    assert bundle.ladder.certified
    assert [p.name for p in bundle.ladder.points if p.shares[0] > 0.9], "int8 answers nearly all"
    assert "drop 0.05" in [p.name for p in bundle.ladder.points]
