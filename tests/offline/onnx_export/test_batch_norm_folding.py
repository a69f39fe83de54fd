"""A norm in front of a linear layer becomes part of it: the same numbers as torch, one operator less."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from dynamic.offline.cascade import Cascade
from dynamic.offline.onnx_export.batch_norm_folding import fold_norms
from dynamic.offline.onnx_export.stage_graphs import export_stages

D, OUT = 5, 3
RNG = np.random.default_rng(0)


def lively(norm: nn.BatchNorm1d) -> nn.BatchNorm1d:
    norm.running_mean.normal_()  # type: ignore[union-attr]
    norm.running_var.uniform_(0.2, 3)  # type: ignore[union-attr]
    if norm.affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return norm.eval()


def ops(graph: onnx.GraphProto) -> list[str]:
    return [node.op_type for node in graph.node]


def run(graph: onnx.GraphProto, x: np.ndarray) -> list[np.ndarray]:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})  # type: ignore[no-any-return]


def hand_made(norm: nn.BatchNorm1d, layer: nn.Linear, trans: bool = True, **attributes: Any) -> onnx.GraphProto:
    """x -> BatchNormalization -> Gemm -> y, with a bias where the layer has one."""
    weight = layer.weight.detach().numpy()
    tensors = {
        "scale": norm.weight,
        "shift": norm.bias,
        "mean": norm.running_mean,
        "variance": norm.running_var,
        "w": torch.from_numpy(np.ascontiguousarray(weight if trans else weight.T)),
    }
    if layer.bias is not None:
        tensors["b"] = layer.bias
    nodes = [
        helper.make_node("BatchNormalization", ["x", *list(tensors)[:4]], ["n"], "norm", epsilon=norm.eps),
        helper.make_node("Gemm", ["n", *list(tensors)[4:]], ["y"], "gemm", transB=int(trans), **attributes),
    ]
    return helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", D])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", OUT])],
        [numpy_helper.from_array(t.detach().numpy(), name) for name, t in tensors.items()],  # type: ignore[union-attr]
    )


@pytest.mark.parametrize("trans", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("epsilon", [1e-5, 0.3])
def test_as_torch(trans: bool, bias: bool, epsilon: float) -> None:
    torch.manual_seed(0)
    norm, layer = lively(nn.BatchNorm1d(D, eps=epsilon)), nn.Linear(D, OUT, bias=bias)
    graph, x = hand_made(norm, layer, trans), RNG.standard_normal((7, D)).astype(np.float32)
    fold_norms(graph)
    assert ops(graph) == ["Gemm"]
    assert len(graph.initializer) == 2, "the norm's own are gone"
    with torch.no_grad():
        np.testing.assert_allclose(run(graph, x)[0], layer(norm(torch.from_numpy(x))), rtol=1e-4, atol=1e-5)


def test_norms_that_must_stay() -> None:
    """Where the layer's weights, or what the norm gives, are used elsewhere, or the layer is no plain one."""
    torch.manual_seed(0)
    norm, layer, x = lively(nn.BatchNorm1d(D)), nn.Linear(D, OUT), RNG.standard_normal((7, D)).astype(np.float32)
    plain = run(hand_made(norm, layer), x)[0]
    seen: dict[str, onnx.GraphProto] = {}
    seen["read twice"] = hand_made(norm, layer)
    seen["read twice"].node.append(helper.make_node("Relu", ["n"], ["z"]))
    seen["an output too"] = hand_made(norm, layer)
    seen["an output too"].output.append(helper.make_tensor_value_info("n", TensorProto.FLOAT, ["b", D]))
    seen["weights shared"] = hand_made(norm, layer)
    seen["weights shared"].node.append(helper.make_node("Identity", ["w"], ["z"]))
    seen["bias shared"] = hand_made(norm, layer)
    seen["bias shared"].node.append(helper.make_node("Identity", ["b"], ["z"]))
    seen["factors"] = hand_made(norm, layer, beta=0.5)
    seen["computed weights"] = hand_made(norm, layer)
    seen["computed weights"].node.insert(0, helper.make_node("Abs", ["w"], ["made"]))
    seen["computed weights"].node[2].input[1] = "made"
    seen["computed norm"] = hand_made(norm, layer)
    seen["computed norm"].node.insert(0, helper.make_node("Abs", ["scale"], ["made"]))
    seen["computed norm"].node[1].input[1] = "made"
    for why, graph in seen.items():
        before = run(graph, x)
        fold_norms(graph)
        assert "BatchNormalization" in ops(graph), why
        for a, b in zip(before, run(graph, x), strict=True):
            np.testing.assert_array_equal(a, b, err_msg=why)
    assert not np.array_equal(run(seen["factors"], x)[0], plain)


def test_a_constant_that_only_a_branch_uses_stays() -> None:
    torch.manual_seed(0)
    norm, layer, x = lively(nn.BatchNorm1d(D)), nn.Linear(D, OUT), RNG.standard_normal((7, D)).astype(np.float32)
    graph = hand_made(norm, layer)
    value = [helper.make_tensor_value_info("v", TensorProto.FLOAT, [OUT])]
    branches = {
        name: helper.make_graph([helper.make_node(op, ["inner"], ["v"])], name, [], value)
        for name, op in (("then_branch", "Identity"), ("else_branch", "Neg"))
    }
    graph.initializer.insert(0, numpy_helper.from_array(np.arange(OUT, dtype=np.float32), "inner"))
    graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    graph.node.append(helper.make_node("If", ["yes"], ["z"], **branches))
    graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [OUT]))
    fold_norms(graph)
    assert ops(graph) == ["Gemm", "If"]
    y, z = run(graph, x)
    assert z.tolist() == [0, 1, 2]
    with torch.no_grad():
        np.testing.assert_allclose(y, layer(norm(torch.from_numpy(x))), rtol=1e-4, atol=1e-5)


class Twice(nn.Module):
    """One norm whose result goes two ways, and one layer that two norms share."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.other, self.layer = nn.BatchNorm1d(D), nn.BatchNorm1d(D), nn.Linear(D, OUT)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.norm(x)) + self.layer(self.other(x)) * self.norm(x)[:, :OUT]


NETWORKS = {
    "folded": (nn.Sequential(nn.BatchNorm1d(D), nn.Linear(D, OUT)), 0),
    "without bias": (nn.Sequential(nn.BatchNorm1d(D), nn.Linear(D, OUT, bias=False)), 0),
    "not affine": (nn.Sequential(nn.BatchNorm1d(D, affine=False), nn.Linear(D, OUT)), 0),
    "in a row": (nn.Sequential(nn.BatchNorm1d(D), nn.Linear(D, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, OUT)), 0),
    "after": (nn.Sequential(nn.Linear(D, OUT), nn.BatchNorm1d(OUT)), 0),
    "behind a relu": (nn.Sequential(nn.BatchNorm1d(D), nn.ReLU(), nn.Linear(D, OUT)), 1),
    "used twice": (Twice(), 2),
    "of a sequence": (nn.Sequential(nn.BatchNorm1d(2), nn.Flatten(), nn.Linear(D * 2, OUT)), 1),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_what_torch_exports(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    network, most = NETWORKS[name]
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d):
            lively(module)
    x = torch.randn(6, 2, D) if name == "of a sequence" else torch.randn(6, D)
    spec = export_stages(Cascade(network.eval()), tmp_path, x)
    path = tmp_path / spec.stages[0].graph
    assert ops(onnx.load(path).graph).count("BatchNormalization") <= most
    found = onnxruntime.InferenceSession(str(path)).run(["logits"], {"input": x.numpy()})[0]
    with torch.no_grad():
        np.testing.assert_allclose(found, network(x), rtol=1e-4, atol=1e-5)


def test_what_is_given_out_and_a_norm_in_training_mode_stay() -> None:
    torch.manual_seed(0)
    norm, layer, x = lively(nn.BatchNorm1d(D)), nn.Linear(D, OUT), RNG.standard_normal((7, D)).astype(np.float32)
    for name, shape in (("w", [OUT, D]), ("b", [OUT])):
        graph = hand_made(norm, layer)
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        before = run(graph, x)
        fold_norms(graph)
        for a, b in zip(before, run(graph, x), strict=True):
            np.testing.assert_array_equal(a, b, err_msg=name)
    graph = hand_made(norm, layer)
    graph.node[0].attribute.append(helper.make_attribute("training_mode", 1))
    fold_norms(graph)
    assert ops(graph) == ["BatchNormalization", "Gemm"]
