"""A shortcut that skips pixels and pads channels is exported as a convolution, with torch's numbers bit for bit."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from dynamic.models import CifarResNet
from dynamic.models.compress import quantize
from dynamic.offline.cascade import Cascade
from dynamic.offline.onnx_export.padded_shortcuts import convolve_shortcuts
from dynamic.offline.onnx_export.stage_graphs import export_stages

C = 3
RNG = np.random.default_rng(0)


class Shortcut(nn.Module):
    """Logits `[B, 4]`, the first values of a function of `x [B, C, H, W]`: no sum changes their bits."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x).transpose(1, 3).flatten(1)[:, :60]


def exported(network: nn.Module, x: Tensor, folder: Path) -> tuple[onnx.GraphProto, np.ndarray]:
    """The graph of a network, and its logits on ONNX Runtime."""
    spec = export_stages(Cascade(network.eval()), folder, x)
    path = folder / spec.stages[0].graph
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    (logits,) = onnxruntime.InferenceSession(str(path)).run(["logits"], {spec.inputs[0].name: x.numpy()})
    return model.graph, logits


def ops(graph: onnx.GraphProto) -> list[str]:
    return [node.op_type for node in graph.node]


REWRITTEN: dict[str, Callable[[Tensor], Tensor]] = {
    "padded on both sides": lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)),
    "padded before": lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 0)),
    "padded behind": lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, 3)),
    "padded unevenly, all axes named": lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 3, 0, 0), value=0.0),
    "every third pixel": lambda x: F.pad(x[:, :, ::3, ::3], (0, 0, 0, 0, 2, 2)),
    "two different strides": lambda x: F.pad(x[:, :, ::2, ::3], (0, 0, 0, 0, 2, 2)),
    "rows alone": lambda x: F.pad(x[:, :, ::2], (0, 0, 0, 0, 2, 2)),
    "columns alone": lambda x: F.pad(x[..., ::2], (0, 0, 0, 0, 2, 2)),
    "columns first": lambda x: F.pad(x[..., ::2][:, :, ::2], (0, 0, 0, 0, 2, 2)),
    "up to its very end": lambda x: F.pad(x[:, :, 0 : x.shape[2] : 2, : x.shape[3] : 2], (0, 0, 0, 0, 2, 2)),
}

LEFT_ALONE: dict[str, Callable[[Tensor], Tensor]] = {
    "another value": lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2), value=0.5),
    "padded in height": lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 1, 0, 2, 2)),
    "padded in width": lambda x: F.pad(x[:, :, ::2, ::2], (0, 1, 0, 0, 2, 2)),
    "cut in height": lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, -1, 0, 2, 2)),
    "channels dropped": lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, -1, 3)),
    "from the second pixel on": lambda x: F.pad(x[:, :, 1::2, ::2], (0, 0, 0, 0, 2, 2)),
    "without the last rows": lambda x: F.pad(x[:, :, :4:2, ::2], (0, 0, 0, 0, 2, 2)),
    "without the last row": lambda x: F.pad(x[:, :, :-1:2, ::2], (0, 0, 0, 0, 2, 2)),
    "every second channel": lambda x: F.pad(x[:, ::2, ::2, ::2], (0, 0, 0, 0, 2, 2)),
    "rows twice": lambda x: F.pad(x[:, :, ::2][:, :, ::2], (0, 0, 0, 0, 2, 2)),
    "the mean of pixels": lambda x: F.pad(F.avg_pool2d(x, 2), (0, 0, 0, 0, 2, 2)),
    "all pixels": lambda x: F.pad(x, (0, 0, 0, 0, 2, 2)),
    "other than zeros": lambda x: F.pad(x[:, :, ::2, ::2].transpose(1, 2), (0, 0, 1, 1), mode="reflect"),
    "integers": lambda x: F.pad((8 * x).int()[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)).float(),
    "five dimensions": lambda x: F.pad(x[:, :, None, ::2, ::2], (0, 0, 0, 0, 0, 0, 2, 2))[:, :, 0],
}


@pytest.mark.parametrize("size", [(8, 6), (7, 9)])
@pytest.mark.parametrize("name", REWRITTEN)
def test_as_torch_bit_for_bit(tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    network, x = Shortcut(REWRITTEN[name]), torch.randn(2, C, *size)
    graph, logits = exported(network, x, tmp_path)
    np.testing.assert_array_equal(logits, network(x))
    assert "Pad" not in ops(graph)
    assert ops(graph).count("Conv") == 1
    read = {entry for node in graph.node for entry in node.input}
    assert {tensor.name for tensor in graph.initializer} <= read, "what only the old nodes read is gone"


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_relatives_remain(tmp_path: Path, name: str) -> None:
    network, x = Shortcut(LEFT_ALONE[name]), torch.randn(2, C, 7, 9)
    graph, logits = exported(network, x, tmp_path)
    np.testing.assert_allclose(logits, network(x).numpy(), rtol=1e-6)
    assert {"Pad", "Conv"}.intersection(ops(graph)) == {"Pad"}


def test_the_pixels_that_others_read_too_remain(tmp_path: Path) -> None:
    def function(x: Tensor) -> Tensor:
        pixels = x[:, :, ::2, ::2]
        return F.pad(pixels, (0, 0, 0, 0, 1, 2)) + pixels.sum(1, keepdim=True)

    network, x = Shortcut(function), torch.randn(2, C, 7, 8)
    graph, logits = exported(network, x, tmp_path)
    np.testing.assert_array_equal(logits, network(x))
    assert "Pad" not in ops(graph)
    assert {"Conv", "Slice"} < set(ops(graph))


def test_a_resnet_with_its_shortcuts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, x = CifarResNet(8).eval(), torch.rand(2, 3, 32, 32)
    graph, logits = exported(network, x, tmp_path)
    assert not {"Slice", "Pad"}.intersection(ops(graph))
    assert ops(graph).count("Conv") == 7 + 2
    with torch.no_grad():
        np.testing.assert_allclose(logits, network(x), rtol=1e-6, atol=1e-6)


def test_the_same_resnet_in_int8(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, x = CifarResNet(8).eval(), torch.rand(8, 3, 32, 32)
    int8 = quantize(network, x[:2], calibration_loader=[(x, torch.zeros(8, dtype=torch.int64))], latency=False).network
    graph, logits = exported(int8, x, tmp_path)
    assert not {"Slice", "Pad"}.intersection(ops(graph))
    assert ops(graph).count("Conv") == 7 + 2
    sources = {name: node.op_type for node in graph.node for name in node.output}
    weights = [sources.get(node.input[1]) for node in graph.node if node.op_type == "Conv"]
    assert weights == ["DequantizeLinear"] * 9
    with torch.no_grad():
        np.testing.assert_allclose(logits, int8(x), rtol=1e-5, atol=1e-5)


# ---- written by hand: what torch does not export

STARTS = {"starts": [0, 0], "ends": [2**63 - 1] * 2, "axes": [-2, -1], "steps": [2, 2]}
CODES = np.arange(-128, 128)


def hand_made(**changes: list[int]) -> onnx.GraphProto:
    """x -> Slice -> Pad -> y, all arguments constants. `axes` of the padding are negative."""
    arguments = STARTS | {"pads": [0, 1, 0, 2], "of": [0, -3]} | changes
    nodes = [
        helper.make_node("Slice", ["x", *STARTS], ["pixels"], "slice"),
        helper.make_node("Pad", ["pixels", "pads", "", "of"], ["y"], "pad"),
    ]
    return helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", C, "h", "w"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", "c", None, None])],
        [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in arguments.items()],
    )


def run(graph: onnx.GraphProto, x: np.ndarray) -> np.ndarray:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("size", [(8, 8), (5, 6)])
def test_images_of_any_size(size: tuple[int, int]) -> None:
    graph, x = hand_made(), RNG.standard_normal((2, C, *size)).astype(np.float32)
    convolve_shortcuts(graph)
    assert ops(graph) == ["Conv"]
    assert len(graph.initializer) == 1
    expected = np.zeros((2, 1 + C + 2, -(-size[0] // 2), -(-size[1] // 2)), np.float32)
    expected[:, 1 : 1 + C] = x[:, :, ::2, ::2]
    np.testing.assert_array_equal(run(graph, x), expected)


def test_arguments_that_are_computed_or_do_not_fit() -> None:
    x = RNG.standard_normal((2, C, 8, 8)).astype(np.float32)
    graphs = {
        "ends where a larger image continues": hand_made(ends=[8, 8]),
        "backwards": hand_made(starts=[-1, -1], ends=[-(2**63)] * 2, steps=[-2, -2]),
        "another axis is padded": hand_made(of=[0, -2]),
    }
    for name in (*STARTS, "pads", "of"):
        graph = graphs[f"{name} computed"] = hand_made()
        graph.node.insert(0, helper.make_node("Identity", [name], ["computed"]))
        for node in graph.node[1:]:
            node.input[:] = ["computed" if entry == name else entry for entry in node.input]
    unknown = graphs["an unknown number of channels"] = hand_made()
    unknown.input[0].type.tensor_type.shape.dim[1].dim_param = "channels"
    for why, graph in graphs.items():
        before = run(graph, x)
        convolve_shortcuts(graph)
        assert {"Pad", "Conv"}.intersection(ops(graph)) == {"Pad"}, why
        np.testing.assert_array_equal(run(graph, x), before, err_msg=why)


def between_int8(scale: float = 0.05, zero: int = 3, channels: int = 1) -> onnx.GraphProto:
    """x -> codes -> Slice -> Pad -> codes -> y. The second grid has `scale` and `zero`, the first 0.05 and 3."""
    graph = hand_made()
    nodes = list(graph.node)
    nodes[0].input[0], nodes[1].output[0] = "values", "padded"
    first, second = ["a", "a_zero"], ["b", "b_zero"]
    del graph.node[:]
    graph.node.extend(
        [
            helper.make_node("QuantizeLinear", ["x", *first], ["codes"], axis=1),
            helper.make_node("DequantizeLinear", ["codes", *first], ["values"], axis=1),
            *nodes,
            helper.make_node("QuantizeLinear", ["padded", *second], ["padded_codes"]),
            helper.make_node("DequantizeLinear", ["padded_codes", *second], ["y"]),
        ]
    )
    steps, zeros = (0.05, 3) if channels == 1 else ([0.05] * channels, [3] * channels)
    graph.initializer.extend(
        numpy_helper.from_array(np.array(value, kind), name)
        for name, value, kind in (
            ("a", steps, np.float32), ("a_zero", zeros, np.int8), ("b", scale, np.float32), ("b_zero", zero, np.int8),
        )
    )  # fmt: skip
    graph.value_info.append(helper.make_tensor_value_info("values", TensorProto.FLOAT, ["b", C, "h", "w"]))
    return graph


def test_every_code_remains_the_same() -> None:
    graph, x = between_int8(), np.zeros((1, C, 1, 2 * len(CODES)), np.float32)
    x[:] = np.repeat((CODES - 3) * np.float32(0.05), 2)
    expected = run(graph, x)
    assert len(np.unique(expected)) == len(CODES)
    convolve_shortcuts(graph)
    assert ops(graph).count("Conv") == 1
    assert "Pad" not in ops(graph)
    np.testing.assert_array_equal(run(graph, x), expected)


def test_int8_that_is_left_alone() -> None:
    """Another grid would round elsewhere, and a float between two int8 tensors gains nothing."""
    x = RNG.standard_normal((2, C, 8, 8)).astype(np.float32)
    graphs = {
        "another scale": between_int8(scale=0.06),
        "another zero point": between_int8(zero=4),
        "a scale for each channel": between_int8(channels=C),
        "read as floats too": between_int8(),
        "given out": between_int8(),
        "read in a branch": between_int8(),
    }
    graphs["read as floats too"].node.append(helper.make_node("Relu", ["padded"], ["z"]))
    graphs["given out"].output.append(
        helper.make_tensor_value_info("padded", TensorProto.FLOAT, ["b", "c", None, None])
    )
    value = [helper.make_tensor_value_info("v", TensorProto.FLOAT, None)]
    parts = {
        name: helper.make_graph([helper.make_node(op, ["padded"], ["v"])], name, [], value)
        for name, op in (("then_branch", "Identity"), ("else_branch", "Neg"))
    }
    graphs["read in a branch"].initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    graphs["read in a branch"].node.append(helper.make_node("If", ["yes"], ["z"], **parts))
    for why, graph in graphs.items():
        before = run(graph, x)
        convolve_shortcuts(graph)
        assert {"Pad", "Conv"}.intersection(ops(graph)) == {"Pad"}, why
        np.testing.assert_array_equal(run(graph, x), before, err_msg=why)
