"""A wrapped network at sizes that it was not traced at: right, or refused."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dynamic
from dynamic.errors import InputError
from dynamic.models.compress.quantization.static_int8 import quantize


class Sequence(nn.Module):
    """A classifier of `[B, N, 8]`; `change` reads the length N."""

    def __init__(self, change: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.three = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.table = nn.Parameter(torch.randn(1, 40, 8))
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        x = self.change(x, self.table)
        return self.three(torch.relu(self.two(torch.relu(self.one(x)))).sum(1))


def scaled(x: Tensor, _: Tensor) -> Tensor:
    return x / math.sqrt(int(x.shape[1]))  # the number goes into the graph


def stepped(x: Tensor, _: Tensor) -> Tensor:
    return x * 2 if x.shape[1] <= 64 else x


def last_position(x: Tensor, _: Tensor) -> Tensor:
    return x + x[:, len(x[0]) - 1 :]


def live(x: Tensor, table: Tensor) -> Tensor:
    return (x + table[:, : x.shape[1]]) * x.shape[1] ** -0.5


def wrapped(network: nn.Module, example: Any, **options: Any) -> Any:
    return dynamic.wrap(network, example, exits=1, **options).eval()


@pytest.mark.parametrize("change", [scaled, stepped, last_position])
def test_a_length_that_went_into_the_graph_is_the_only_one_that_is_taken(change: Any) -> None:
    network = Sequence(change).eval()
    net = wrapped(network, torch.randn(2, 12, 8))
    same, longer = torch.randn(3, 12, 8), torch.randn(2, 20, 8)
    with torch.no_grad():
        torch.testing.assert_close(net(same)[-1], network(same), rtol=0, atol=1e-5)
    with pytest.raises(
        InputError, match=r"\[2, 20, 8\]: it was traced at \[B, 12, 8\].*resized or padded.*wrap the backbone"
    ):
        net(longer)
    with pytest.raises(InputError, match="traced at"):
        dynamic.fit(net, [(same, torch.tensor([0, 1, 2])), (torch.randn(3, 20, 8), torch.tensor([0, 1, 2]))], epochs=1)


def test_a_length_that_stays_in_the_graph_is_taken_and_right_in_graph_and_stages() -> None:
    network = Sequence(live).eval()
    net = wrapped(network, torch.randn(2, 12, 8))
    assert net.traced_sizes.free == (frozenset({0}),)
    for length in (1, 7, 12, 20, 33, 40):
        x = torch.randn(3, length, 8)
        carry: tuple[Tensor, ...] = (x,)
        for stage in net.exit_stages:
            carry = stage.body(*carry)
        with torch.no_grad():
            torch.testing.assert_close(net(x)[-1], network(x), rtol=0, atol=1e-5)
            torch.testing.assert_close(carry[0], network(x), rtol=0, atol=1e-5)
    with pytest.raises(InputError, match=r"float32 \[2, 12, 9\]"):  # channels are never free
        net(torch.randn(2, 12, 9))


class Written(nn.Module):
    """Stages cannot read this length off what crosses the exit where only one other length fits the table."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Parameter(torch.randn(1, rows, 8))
        self.one, self.two, self.three = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.one(x + self.table[:, : x.shape[1]])).sum(1)
        return self.three(torch.relu(self.two(hidden)) / x.shape[1])


@pytest.mark.parametrize("rows", [12, 13, 20])
def test_stages_are_never_wrong_in_silence_at_a_length_that_the_table_still_holds(rows: int) -> None:
    network = Written(rows).eval()
    net = wrapped(network, torch.randn(2, 12, 8))
    for length in range(1, rows + 1):
        x = torch.randn(2, length, 8)
        carry: tuple[Tensor, ...] = (x,)
        try:
            net.traced_sizes.check(carry)
        except InputError:
            with pytest.raises(InputError, match="traced at"):
                net(x)
            continue
        for stage in net.exit_stages:
            carry = stage.body(*carry)
        with torch.no_grad():
            torch.testing.assert_close(net(x)[-1], network(x), rtol=0, atol=1e-5)
            torch.testing.assert_close(carry[0], network(x), rtol=0, atol=1e-5)


class Picture(nn.Module):
    """Convolutions; `count` divides by the number of positions, as a number or live."""

    def __init__(self, written: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.more = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.out, self.written = nn.Linear(8, 4), written

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.more(torch.relu(self.conv(x))))
        count = int(y.shape[2]) * int(y.shape[3]) if self.written else y.shape[2] * y.shape[3]
        return self.out(y.sum((2, 3)) / count)


def test_pictures_of_another_size() -> None:
    x = torch.randn(2, 3, 10, 14)
    free, fixed = wrapped(Picture(False).eval(), x), wrapped(Picture(True).eval(), x)
    wide = torch.randn(2, 3, 9, 31)
    with torch.no_grad():
        assert torch.equal(free(wide)[-1], free.backbone(wide))
    with pytest.raises(InputError, match=r"\[2, 3, 9, 31\].*\[B, 3, 10, 14\]"):
        fixed(wide)


class Text(nn.Module):
    """Word numbers and a mask, both `[B, N]`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.hidden, self.out = nn.Embedding(20, 8), nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        kept = self.words(input_ids) * attention_mask[..., None]
        return self.out(torch.relu(self.hidden(kept)).sum(1) / input_ids.shape[1])


def test_inputs_that_change_together_and_those_that_are_missing() -> None:
    network = Text().eval()

    def batch(length: int) -> dict[str, Tensor]:
        return {"attention_mask": torch.ones(2, length), "input_ids": torch.randint(0, 20, (2, length))}

    net = wrapped(network, batch(12))
    assert net.traced_sizes.free == (frozenset({0}), frozenset({0}))
    other = batch(17)
    with torch.no_grad():
        assert torch.equal(net(**other)[-1], network(**other))
        assert torch.equal(net(other["input_ids"], attention_mask=other["attention_mask"])[-1], network(**other))
    with pytest.raises(InputError, match=r"traced with \['input_ids', 'attention_mask'\]"):
        net(input_ids=other["input_ids"])
    with pytest.raises(InputError, match="1 inputs given"):
        net(other["input_ids"])


def test_int8_exits_take_the_sizes_of_the_wrapped_network() -> None:
    net = wrapped(Written(12).eval(), torch.randn(2, 12, 8))
    made = quantize(net, torch.randn(2, 12, 8), calibration_loader=[torch.randn(8, 12, 8)], latency=False).network
    assert len(made(torch.randn(2, 12, 8))) == 2
    with pytest.raises(InputError, match=r"\[2, 7, 8\].*\[B, 12, 8\]"):
        made(torch.randn(2, 7, 8))


def test_a_loader_of_several_lengths_is_refused_where_the_length_is_written(tmp_path: Any) -> None:
    network, labels = Sequence(scaled).eval(), torch.arange(30) % 3
    with pytest.raises(InputError, match=r"\[30, 20, 8\], expected \[B, 12, 8\]"):
        dynamic.build(network, [(torch.randn(30, 12, 8), labels), (torch.randn(30, 20, 8), labels)])
    net = wrapped(network, torch.randn(2, 12, 8))
    with pytest.raises(InputError, match=r"\[30, 20, 8\].*traced at \[B, 12, 8\]"):
        dynamic.calibrate(net, [(torch.randn(30, 20, 8), labels)])
