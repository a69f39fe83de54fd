"""Branches that sizes decide: taken as at one size, and right at every size that is allowed, or refused by name."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional

import dynamic
from dynamic.errors import InputError, TraceError

SIDES = ({2: Dim("height", min=4, max=40), 3: Dim("width", min=4, max=40)},)
TRIED = ((4, 4), (16, 16), (16, 9), (11, 16), (7, 13), (32, 32), (40, 4), (40, 40))


class Small(nn.Module):
    """Two convolutions and a classifier. What is between them decides by sizes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.classes = nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.between(torch.relu(self.norm(self.one(self.before(x)))))
        return self.classes(torch.relu(self.two(x)).mean((2, 3)))  # type: ignore[no-any-return]

    def before(self, x: Tensor) -> Tensor:
        return x

    def between(self, x: Tensor) -> Tensor:
        return x


class Resizes(Small):
    """Resizes its input to 16 pixels where it has others, as CrossViT does."""

    def before(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if height != 16 or width != 16:
            x = functional.interpolate(x, size=(16, 16), mode="bicubic", align_corners=False)
        return x


class Windows(Small):
    """Means of windows of 4 pixels, padded, or of all where there is one window, as attention in windows is written."""

    def between(self, x: Tensor) -> Tensor:
        rows, channels, height, width = x.shape
        if height == 4 and width == 4:
            return x + x.mean((2, 3), keepdim=True)
        below, right = (4 - height % 4) % 4, (4 - width % 4) % 4
        wide = functional.pad(x, (0, right, 0, below))
        high, long = (height + below) // 4, (width + right) // 4
        parts = wide.view(rows, channels, high, 4, long, 4)
        parts = parts + parts.mean((3, 5), keepdim=True)
        return parts.reshape(rows, channels, height + below, width + right)[:, :, :height, :width]


class Pools(Small):
    """Reads sizes in a loop and in `max`, which Python decides."""

    def between(self, x: Tensor) -> Tensor:
        total = 1
        for size in x.shape[2:]:
            total = total * size
        return x * (total / max(x.shape[2] * x.shape[3], 1)) * len(x.shape)


def by_stages(net: Any, x: torch.Tensor) -> torch.Tensor:
    """The logits `[B, C]` of the last stage, after all others."""
    carry: Any = (x,)
    for stage in net.exit_stages:
        carry = stage.body(*carry)
    logits: torch.Tensor = carry[0]
    return logits


@pytest.mark.parametrize("kind", [Resizes, Windows, Pools])
@pytest.mark.parametrize("example", [(16, 16), (7, 13)])
def test_a_branch_by_size_is_right_at_every_size(kind: type[Small], example: tuple[int, int]) -> None:
    """Raised "neither torch.fx nor torch.export captures" for the first two."""
    network = kind().eval()
    net = dynamic.wrap(network, torch.randn(2, 3, *example), exits=["one"], dynamic_shapes=SIDES).eval()
    assert net.tracer == "fx"
    assert net.trainable_backbone
    for size in TRIED:
        x = torch.randn(3, 3, *size)
        with torch.no_grad():
            assert torch.equal(net(x)[-1], network(x)), size
            assert torch.equal(by_stages(net, x), network(x)), size


def called(forward: Any) -> Any:
    """A decorator as those of `transformers`, whose calls torch.fx does not follow by itself."""

    @functools.wraps(forward)
    def call(self: Any, *args: Any, **options: Any) -> Any:
        options.pop("return_dict", None)
        return forward(self, *args, **options)

    return call


class Positions(nn.Module):
    """Adds the numbers of positions, and returns what it added too."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        height, width = x.shape[2:]
        places = torch.arange(height, device=x.device)[:, None] + torch.arange(width, device=x.device) / 7
        return torch.relu(self.one(x)) + torch.sin(places), places


class Decorated(nn.Module):
    """A forward with a decorator and `**options`, whose parts return tuples."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.positions, self.windows, self.classes = Positions(), Windows(), nn.Linear(8, 4)

    @called
    def forward(self, x: Tensor, **options: Any) -> dict[str, Tensor]:
        x, places = self.positions(x)
        return {"logits": self.classes(self.windows.between(x).mean((2, 3)) + places.mean())}


@pytest.mark.filterwarnings("ignore:Decorated gives more than logits")
def test_a_decorated_forward_is_traced_from_outside_where_two_sizes_are_dynamic() -> None:
    """torch.export took it, and took minutes for Swin."""
    network = Decorated().eval()
    net = dynamic.wrap(network, torch.randn(2, 3, 16, 16), exits=["positions"], dynamic_shapes=SIDES).eval()
    assert net.tracer == "fx"
    assert net.trainable_backbone
    assert [(place.name, place.channel, place.shape[0]) for place in net.exits] == [("positions", 1, 8)]
    assert {name.partition(".")[0] for name in net.state_dict()} == {"backbone", "heads"}
    for size in TRIED:
        x = torch.randn(3, 3, *size)
        with torch.no_grad():
            assert torch.equal(net(x)[-1], network(x)["logits"]), size
            assert torch.equal(by_stages(net, x), network(x)["logits"]), size


class TwoWays(Small):
    """Takes another way at one size, 36, that no usual trial meets."""

    def between(self, x: Tensor) -> Tensor:
        if x.shape[2] == 36:
            return x * 2
        return x


def test_a_size_with_a_branch_of_its_own_is_found_and_its_line_named() -> None:
    with pytest.raises(
        TraceError,
        match=r"test_size_decisions.py line \d+: `if x.shape\[2\] == 36:` decides otherwise there than in the graph",
    ):
        dynamic.wrap(TwoWays().eval(), torch.randn(2, 3, 16, 16), exits=["one"], dynamic_shapes=SIDES)
    narrower = ({2: Dim("height", min=4, max=32)},)
    net = dynamic.wrap(TwoWays().eval(), torch.randn(2, 3, 16, 16), exits=["one"], dynamic_shapes=narrower)
    assert net.tracer == "fx"


def test_without_dynamic_shapes_the_size_is_that_of_the_example() -> None:
    network = Windows().eval()
    net = dynamic.wrap(network, torch.randn(2, 3, 4, 4), exits=["one"]).eval()
    x = torch.randn(5, 3, 4, 4)
    with torch.no_grad():
        assert net.tracer == "fx"
        assert torch.equal(net(x)[-1], network(x))
    with pytest.raises(InputError, match="traced at"):
        net(torch.randn(2, 3, 8, 8))


class ByRows(Small):
    """Another way for batches than for single rows."""

    def between(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[0] > 2 else x


class ByNumbers(Small):
    """Another way for bright pictures."""

    def between(self, x: Tensor) -> Tensor:
        return x * 2 if bool(x.mean() > 2) else x


@pytest.mark.parametrize(
    ("kind", "reason"), [(ByRows, "depends on the number of rows"), (ByNumbers, "depends on the numbers of a tensor")]
)
def test_branches_by_rows_and_by_numbers_are_refused(kind: type[Small], reason: str) -> None:
    with pytest.raises(TraceError, match=reason):
        dynamic.wrap(kind().eval(), torch.randn(2, 3, 8, 8), exits=["one"])


class Flattened(nn.Module):
    """Rows of pixels between two layers of pictures, as in Swin: they show neither height nor width."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.rows = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Linear(8, 8)
        self.two, self.classes = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.one(x))
        height, width = x.shape[2:]
        pixels = torch.relu(self.rows(x.flatten(2).transpose(1, 2)))
        pictures = pixels.transpose(1, 2).reshape(x.shape[0], 8, height, width)
        return self.classes(torch.relu(self.two(pictures)).mean((2, 3)))  # type: ignore[no-any-return]


def test_height_and_width_cross_an_exit_that_shows_their_product_alone(tmp_path: Path) -> None:
    """Raised "a size cannot be computed from what crosses the exit"."""
    network = Flattened().eval()
    sides = ({2: 4 * Dim("height", min=1, max=8), 3: 4 * Dim("width", min=1, max=8)},)
    example = torch.randn(2, 3, 16, 16)
    net = dynamic.wrap(network, example, exits=["rows"], dynamic_shapes=sides).eval()
    assert [place.carry for place in net.exits] == [3]  # pixels, and a line of the input for each side
    path = dynamic.export(dynamic.Cascade([net]), tmp_path / "whole.onnx", example_inputs=example, progress=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for size in ((16, 16), (4, 32), (28, 8), (32, 32)):
        x = torch.randn(3, 3, *size)
        with torch.no_grad():
            expected = network(x)
            assert torch.equal(by_stages(net, x), expected), size
        feeds = {session.get_inputs()[0].name: x.numpy(), "thresholds": np.full(1, np.inf, np.float32)}
        (logits,) = session.run(["logits"], feeds)
        torch.testing.assert_close(torch.from_numpy(logits), torch.log_softmax(expected, 1), rtol=0, atol=1e-4)
