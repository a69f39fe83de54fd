"""Networks of every kind give torch's stages and labels on every engine, stage by stage and as one graph."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support.engine_cases import CLASSES, INF, WAYS, Case, Plain, check
from torch import Tensor, nn
from torchvision import models as tv

import dynamic
from dynamic.data import load_images
from dynamic.engines.openvino import computes_bf16
from dynamic.models import load_weights, resnet20, resnet32
from dynamic.offline.cascade import Cascade

ROWS = 42
Made = tuple[list[nn.Module], dict[str, Tensor] | Tensor]


def image(size: int, channels: int = 3) -> Tensor:
    return torch.randn(ROWS, channels, size, size)


class Convolutional(nn.Sequential):
    """Norms, strides, pooling."""

    def __init__(self) -> None:
        layers = [nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)]
        layers += [nn.Conv2d(8, 12, 3, stride=2), nn.BatchNorm2d(12), nn.Hardswish(), nn.Conv2d(12, 12, 1), nn.ReLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, CLASSES))


def convolutional() -> Made:
    return [dynamic.wrap(Convolutional(), image(12), exits=["3", "6"])], image(12)


def vision_transformer() -> Made:
    network = tv.VisionTransformer(16, 4, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=24, num_classes=CLASSES)
    nn.init.normal_(network.heads.head.weight)  # type: ignore[arg-type]
    return [dynamic.wrap(network, image(16), exits=1)], image(16)


def channels_last() -> Made:
    network = tv.SwinTransformer([2, 2], 8, [1, 1], [1, 2], [2, 2], num_classes=CLASSES)
    return [dynamic.wrap(network, image(8), exits=1)], image(8)


def carry_of_a_dense_block() -> Made:
    network = tv.DenseNet(4, (3,), 6, bn_size=2, num_classes=CLASSES)
    exits = ["features.denseblock1.denselayer1", "features.denseblock1.denselayer2"]
    return [dynamic.wrap(network, image(12), exits=exits)], image(12)


def carry_inside_a_residual() -> Made:
    network = tv.ResNet(tv.resnet.BasicBlock, [1, 1, 1, 1], num_classes=CLASSES)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.out_channels > 64:
            module.weight.data.mul_(0.7)
    return [dynamic.wrap(network, image(16), exits=["layer1.0.bn1"])], image(16)


def several_backbones() -> Made:
    network = dynamic.wrap(
        nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 4)), image(8, 1), exits=1
    )
    return [Plain(), network, Plain()], image(8, 1)


class TwoInputs(nn.Module):
    """An image and numbers beside it, which are wanted again behind the exit."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(9, 12), nn.Linear(5, 12), nn.Linear(17, CLASSES)

    def forward(self, picture: Tensor, numbers: Tensor) -> Tensor:
        hidden = torch.relu(self.first(picture.flatten(1)) + self.second(numbers))
        return self.last(torch.cat([torch.tanh(hidden * 2), numbers], 1))


def two_inputs() -> Made:
    given = {"picture": torch.randn(ROWS, 1, 3, 3), "numbers": torch.randn(ROWS, 5)}
    return [dynamic.wrap(TwoInputs(), given, exits=["first"]), TwoInputs()], given


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.hidden, self.last = nn.Embedding(50, 8), nn.Linear(8, 16), nn.Linear(16, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.last(torch.relu(self.hidden(self.embedding(tokens))).mean(1))


def integers() -> Made:
    tokens = torch.randint(0, 50, (ROWS, 6))
    return [Words(), dynamic.wrap(Words(), tokens, exits=["embedding"])], tokens


# with the carry that each hands on
NETWORKS: dict[Callable[[], Made], list[int]] = {
    convolutional: [1, 1, 0],
    vision_transformer: [1, 0],
    channels_last: [1, 0],
    carry_of_a_dense_block: [2, 3, 0],
    carry_inside_a_residual: [2, 0],
    several_backbones: [0, 1, 0, 0],
    two_inputs: [2, 0, 0],
    integers: [0, 1, 0],
}


def lively(cascade: Cascade) -> None:
    """Norms that do something, and scores that differ."""
    for module in cascade.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
        if isinstance(module, nn.Linear) and module.out_features == CLASSES:
            module.weight.data.mul_(4)


@pytest.fixture(scope="module", params=NETWORKS, ids=lambda make: make.__name__)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    torch.manual_seed(3)
    networks, inputs = request.param()
    cascade = Cascade([network.eval() for network in networks])
    lively(cascade)
    count = sum(len(getattr(network, "exit_stages", [0])) for network in networks)
    made = Case.of(cascade, tmp_path_factory.mktemp("graphs"), inputs, np.linspace(0.8, 1.6, count).tolist())
    assert [stage.carry for stage in made.spec.stages] == NETWORKS[request.param]
    assert made.scores().std(axis=0).min() > 0.02, "scores must differ"
    return made


def thresholds(case: Case) -> list[tuple[float, ...]]:
    """Rows leave everywhere, at the last alone, at once; exits off, the first, all but the first, a whole backbone."""
    some, off = case.quantiles(0.4), (INF,) * (len(case.spec.stages) - 1)
    return [some, case.quantiles(0.15), (2.0,) * len(off), off, (INF, *some[1:]), (some[0], *off[1:]), (-INF, *off[1:])]


@pytest.mark.parametrize("way", WAYS)
def test_torch_s_stages_and_labels(case: Case, way: str) -> None:
    opened = case.shared(way)
    seen: set[int] = set()
    for limits in thresholds(case):
        truth, given = case.truth(limits), np.array(limits, np.float32)
        seen |= set(truth.stage.tolist())
        assert truth.near.sum() <= 4
        for at in [slice(i, i + 7) for i in range(0, ROWS, 7)]:
            check(opened.run(case.rows(at), given), truth, at, atol=1e-4)
        _, one_of_each = np.unique(truth.stage, return_index=True)
        for row in one_of_each.tolist():
            check(opened.run(case.rows(slice(row, row + 1)), given), truth, slice(row, row + 1), atol=1e-4)
    assert seen == set(range(len(case.spec.stages)))
    assert len(set(case.truth(case.quantiles(0.4)).stage.tolist())) == len(case.spec.stages), "everywhere at once"


@pytest.fixture(scope="session")
def bf16() -> None:
    pytest.importorskip("openvino")
    if not computes_bf16():
        pytest.skip("this processor does not compute in bf16")


@pytest.mark.parametrize("route", ["stages", "graph"])
def test_bf16_agrees_with_f32_on_most_rows(case: Case, bf16: None, route: str) -> None:
    limits = np.array(case.quantiles(0.4), np.float32)
    opened = case.open(f"openvino/{route}", precision="bf16", threads=1)
    parts = [slice(i, i + 7) for i in range(0, ROWS, 7)]
    exact, found = ([e.run(case.rows(at), limits) for at in parts] for e in (case.shared("openvino/stages"), opened))
    stage = [np.concatenate([o.stage for o in outputs]) for outputs in (exact, found)]
    label = [np.concatenate([o.logits.argmax(1) for o in outputs]) for outputs in (exact, found)]
    score = [np.concatenate([o.score for o in outputs]) for outputs in (exact, found)]
    same = stage[0] == stage[1]
    assert same.mean() >= 0.9
    assert (label[0] == label[1])[same].mean() >= 0.9
    assert 0 < np.abs(score[0] - score[1])[same].max() < 0.1, "bf16, and not f32 again"


def test_bf16_on_real_images(shared_data: Path, bf16: None) -> None:
    """ResNet-20 and 32 calibrated on bf16: of 500 other images as many are right as on f32."""
    networks: list[nn.Module] = []
    for name, make in (("resnet20", resnet20), ("resnet32", resnet32)):
        networks.append(make().eval())
        load_weights(networks[-1], shared_data / "weights" / f"{name}_cifar10.safetensors")
    images = load_images(shared_data / "cifar10.zip", "test", cache=False).select(np.arange(0, 10_000, 10))
    preprocess = dynamic.Preprocess.of(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    inputs, even = preprocess(images.images), np.arange(len(images)) % 2 == 0
    held_out = [(torch.from_numpy(inputs[even]), torch.from_numpy(images.labels[even]))]
    bundle = dynamic.build(networks, held_out, engine="openvino", precision="bf16", search_share=0.9)
    point = min(bundle.ladder.points[1:], key=lambda p: abs(p.shares[0] - 0.7))
    right: dict[str, list[bool]] = {}
    for precision in ("f32", "bf16"):
        opened = bundle.open(precision=precision, route="graph", threads=1)
        assert opened.precision == precision
        output = opened.run({"input": inputs[~even]}, np.array(point.thresholds, np.float32))
        assert 0.4 < (output.stage == 0).mean() < 0.95
        right[precision] = (output.logits.argmax(1) == images.labels[~even]).tolist()
    assert np.mean(right["f32"]) > 0.89
    difference = np.array(right["bf16"], int) - np.array(right["f32"], int)  # paired: few rows differ
    # 5 images, or three standard errors: which rows bf16 turns depends on how the processor rounds
    assert abs(difference.mean()) <= max(0.01, 3 * difference.std() / np.sqrt(len(difference)))
