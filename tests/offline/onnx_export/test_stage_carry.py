"""Sizes inside a network that follow from those of its inputs: cut, exported and run at other sizes."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn.functional import interpolate, max_pool2d, scaled_dot_product_attention

import dynamic
from dynamic.engines.inputs.dimensions import DimRange
from dynamic.offline.tracing.sizes.dynamic_shapes import numbers_of, range_of, trial_inputs

SPANS = {"h": DimRange("h", 1, 9), "w": DimRange("w", 2, None)}
NUMBERS = [{"h": 3, "w": 4}, {"h": 7, "w": 5}, {"h": 8, "w": 6}]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([6, 14, 16], DimRange("h", 1, 9, 2)),
        ([4, 5, 6], DimRange("w", 2, None)),
        ([11, 14, 17], DimRange("w", 2, None, 3, -1)),
        ([1, 3, 4], None),  # halves of h, rounded down
        ([3, 3, 3], None),  # it does not follow anything
        ([12, 35, 48], None),  # a product of both
        ([6, 5, 4], None),  # it falls
    ],
)
def test_sizes_are_multiples_of_one_number(sizes: list[int], expected: DimRange | None) -> None:
    assert range_of(sizes, NUMBERS, SPANS) == expected


def test_two_points_lie_on_a_line_whatever_they_are() -> None:
    assert range_of([6, 14], NUMBERS[:2], SPANS) is None
    assert range_of([6, 6, 14], [NUMBERS[0], *NUMBERS[:2]], SPANS) is None


def test_narrow_limits_are_tried_where_sides_differ() -> None:
    ranges = {"x": (None, DimRange("h", 7, 9, 32), DimRange("w", 7, 9, 32))}
    found = [numbers_of(ranges, inputs) for inputs in trial_inputs(ranges, {"x": torch.zeros(2, 3, 224, 224)})]
    assert found == [{"h": 9, "w": 9}, {"h": 8, "w": 9}, {"h": 9, "w": 8}]
    wide = {"x": (DimRange("n", 1, 512),)}
    found = [numbers_of(wide, inputs) for inputs in trial_inputs(wide, {"x": torch.zeros(2, 12)})]
    assert found == [{"n": 25}, {"n": 48}, {"n": 6}, {"n": 1}, {"n": 512}]


class Convolved(nn.Module):
    """Two convolutions that halve both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.down = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 3, stride=2, padding=1))
        self.mixed, self.classes = nn.Linear(8, 8), nn.Linear(8, 4)


class Lines(Convolved):
    """Pixels become lines of tokens. What comes later needs their sides, of which nothing that is carried has."""

    def forward(self, x: Tensor) -> Tensor:
        fine = torch.relu(self.stem(x))
        coarse = torch.relu(self.down(fine))
        height, width = coarse.shape[2], coarse.shape[3]
        tokens = self.mixed(coarse.flatten(2).transpose(1, 2))
        image = tokens.transpose(1, 2).reshape(x.shape[0], 8, height, width)
        return self.classes((fine + interpolate(image, size=fine.shape[2:])).mean((2, 3)))  # type: ignore[no-any-return]


class Shortcut(Convolved):
    """A large tensor is pooled and meets a small one again, behind the exit."""

    def forward(self, x: Tensor) -> Tensor:
        fine = torch.relu(self.stem(x))
        coarse = torch.relu(self.down(fine))
        return self.classes((max_pool2d(max_pool2d(fine, 2), 2) + coarse).mean((2, 3)))  # type: ignore[no-any-return]


SHAPES = ({2: 8 * Dim("height", min=2, max=9), 3: 8 * Dim("width", min=2, max=9)},)


def in_onnxruntime(net: Any, x: Tensor, path: Path, others: list[Tensor]) -> list[np.ndarray[Any, Any]]:
    """Logarithms of the last answer's probabilities, by the graph of the whole cascade."""
    dynamic.export(dynamic.Cascade([net]), path, example_inputs=x, progress=False)
    session = onnxruntime.InferenceSession(path)
    limits = np.full(len(net.exits), np.inf, np.float32)
    name = session.get_inputs()[0].name
    return [session.run(["logits"], {name: other.numpy(), "thresholds": limits})[0] for other in others]


@pytest.mark.parametrize(("kind", "exits"), [(Lines, "mixed"), (Shortcut, "down"), (Shortcut, "down.0")])
def test_a_size_that_is_a_part_of_another_is_right_at_every_size(
    kind: type[Convolved], exits: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = kind().eval()
    x = torch.randn(2, 3, 32, 32)
    net = dynamic.wrap(network, x, exits=[exits], dynamic_shapes=SHAPES).eval()
    others = [torch.randn(3, 3, 8 * h, 8 * w) for h, w in ((4, 4), (2, 9), (9, 2), (3, 5), (8, 7))]
    for other, found in zip(others, in_onnxruntime(net, x, tmp_path / "whole.onnx", others), strict=True):
        with torch.no_grad():
            expected = network(other)
            np.testing.assert_allclose(net(other)[-1].numpy(), expected.numpy(), atol=1e-5)
        np.testing.assert_allclose(found, expected.log_softmax(1).numpy(), atol=1e-5)


def test_a_part_of_a_size_that_may_have_a_rest_is_computed_from_the_input() -> None:
    """Halves of odd sizes are rounded, so that no multiple is right. Lines of the input cross the exit for that."""
    torch.manual_seed(0)
    anything = ({2: Dim("height", min=16, max=72), 3: Dim("width", min=16, max=72)},)
    network = Lines().eval()
    net = dynamic.wrap(network, torch.randn(2, 3, 32, 32), exits=["mixed"], dynamic_shapes=anything).eval()
    for size in ((16, 72), (17, 33), (18, 71), (35, 50), (64, 19)):
        x = torch.randn(3, 3, *size)
        carry: tuple[Tensor, ...] = (x,)
        with torch.no_grad():
            for stage in net.exit_stages:
                carry = stage.body(*carry)
            torch.testing.assert_close(carry[0], network(x), rtol=0, atol=1e-5)
            torch.testing.assert_close(net(x)[-1], network(x), rtol=0, atol=1e-5)


class Windows(nn.Module):
    """Attention inside windows: queries, keys and values of three or five dimensions."""

    def __init__(self, rank: int, mask: Tensor | None) -> None:
        super().__init__()
        self.rank, self.mask = rank, mask
        self.features, self.classes = nn.Linear(4, 24), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.features(x)  # [B, 12, 24]
        if self.rank == 5:
            tokens = tokens.reshape(x.shape[0], 2, 2, 3, 24)
        query, key, value = tokens.chunk(3, -1)
        return self.classes(scaled_dot_product_attention(query, key, value, self.mask).flatten(1, -2).mean(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("rank", [3, 5])
@pytest.mark.parametrize("masked", ["not", "bool", "numbers"])
def test_attention_of_other_than_four_dimensions(rank: int, masked: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    length = {3: 12, 5: 3}[rank]
    kept = torch.ones(length, length, dtype=torch.bool).tril()
    mask = {"not": None, "bool": kept, "numbers": torch.randn(length, length)}[masked]
    network, x = Windows(rank, mask).eval(), torch.randn(2, 12, 4)
    net = dynamic.wrap(network, x, exits=["features"]).eval()
    (found,) = in_onnxruntime(net, x, tmp_path / "whole.onnx", [x])
    with torch.no_grad():
        np.testing.assert_allclose(found, network(x).log_softmax(1).numpy(), atol=1e-5)
