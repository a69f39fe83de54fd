"""Dynamic dimensions in wrapped networks: right at every declared size, refused beyond."""

from typing import Any

import pytest
import torch
from support.networks.dynamic_sizes import LENGTH, LIMIT, Convolutions, bert, image_shapes, text_shapes, texts
from torch import Tensor, nn
from torch.export import Dim

import dynamic
from dynamic.engines.inputs.dimensions import DimRange
from dynamic.errors import InputError, TraceError
from dynamic.offline.tracing.sizes.dynamic_shapes import common_ranges


def last_logits(net: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """By the whole graph, and stage by stage."""
    carry: tuple[Tensor, ...] = tuple(inputs.values())
    with torch.no_grad():
        for stage in net.exit_stages:
            carry = stage.body(*carry)
        return net(**inputs)[-1], carry[0]


@pytest.fixture(scope="module")
def backbone() -> Any:
    return bert()


@pytest.fixture(scope="module", params=[LENGTH, LIMIT])
def net(backbone: Any, request: Any) -> Any:
    """From an example of a usual length, and of the largest."""
    return dynamic.wrap(backbone, texts(2, request.param), exits=1, dynamic_shapes=text_shapes()).eval()


@pytest.mark.parametrize("length", [1, 2, LENGTH, 4 * LENGTH, LIMIT])
def test_a_wrapped_bert_gives_its_own_logits_at_every_length(net: Any, backbone: Any, length: int) -> None:
    inputs = texts(3, length)
    with torch.no_grad():
        expected = backbone(**inputs).logits
    for logits in last_logits(net, inputs):
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


def test_a_text_beyond_the_limit_is_refused_with_value_limit_and_remedy(net: Any) -> None:
    with pytest.raises(
        InputError, match=rf"\[1, {LIMIT + 1}\].*1 to {LIMIT}.*{LIMIT + 1} is beyond the limit of {LIMIT}: cut, split"
    ):
        net(**texts(1, LIMIT + 1))
    both = texts(1, 20)
    with pytest.raises(InputError, match=r"attention_mask.* has length=12.*input_ids.* length=20.*pad or cut both"):
        net(both["input_ids"], both["attention_mask"][:, :12])


def test_a_max_beyond_what_the_network_takes_is_refused_before_anything_is_traced(backbone: Any) -> None:
    with pytest.raises(InputError, match=r"does not run at length=512, which dynamic_shapes allows"):
        dynamic.wrap(backbone, texts(2, LENGTH), exits=1, dynamic_shapes=text_shapes(512))


@pytest.mark.parametrize("hint", [Dim.AUTO, Dim.DYNAMIC])
def test_torch_export_finds_the_limit_of_a_bert_where_it_is_asked_to(backbone: Any, hint: Any) -> None:
    shapes = {"input_ids": {0: hint, 1: hint}, "attention_mask": (None, hint)}
    net = dynamic.wrap(backbone, texts(2, LENGTH), exits=1, dynamic_shapes=shapes).eval()
    span = DimRange("input_ids_1", 1, LIMIT)
    assert net.traced_sizes.ranges == ((span,), (span,))


@pytest.mark.parametrize("example", [(1, 1), (9, 7), (16, 16)])
def test_height_and_width_are_free_whatever_the_example(example: tuple[int, int]) -> None:
    network = Convolutions().eval()
    net = dynamic.wrap(network, torch.randn(2, 3, *example), exits=["block"], dynamic_shapes=image_shapes()).eval()
    for size in ((1, 1), (3, 64), (64, 5), (20, 28), (64, 64)):
        inputs = {"input": torch.randn(2, 3, *size)}
        with torch.no_grad():
            expected = network(inputs["input"])
        carry: tuple[Tensor, ...] = tuple(inputs.values())
        for stage in net.exit_stages:
            carry = stage.body(*carry)
        torch.testing.assert_close(net(inputs["input"])[-1], expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(carry[0], expected, rtol=0, atol=1e-5)
    with pytest.raises(InputError, match=r"\[1, 3, 65, 8\], expected \[B, 3, height, width\] with height from 1 to 64"):
        net(torch.randn(1, 3, 65, 8))
    with pytest.raises(InputError, match=r"\[1, 4, 8, 8\], expected \[B, 3, height, width\]$"):
        net(torch.randn(1, 4, 8, 8))


class Steps(nn.Module):
    """Halves the length five times by views, so that it takes multiples of 32 alone."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.one(x.reshape(x.shape[0], x.shape[1] // 32, 32, 4).mean(2)))
        return self.two(x.mean(1))  # type: ignore[no-any-return]


def test_a_size_in_steps() -> None:
    network = Steps().eval()
    net = dynamic.wrap(
        network, torch.randn(2, 64, 4), exits=["one"], dynamic_shapes={"x": {1: 32 * Dim("windows", min=1, max=4)}}
    ).eval()
    assert net.traced_sizes.ranges == ((DimRange("windows", 1, 4, 32), None),)
    for length in (32, 64, 128):
        x = torch.randn(2, length, 4)
        with torch.no_grad():
            torch.testing.assert_close(net(x)[-1], network(x), rtol=0, atol=1e-5)
    with pytest.raises(InputError, match=r"32 to 128 in steps of 32. 48 is none of these sizes"):
        net(torch.randn(2, 48, 4))
    with pytest.raises(InputError, match="160 is beyond the limit of 128"):
        net(torch.randn(2, 160, 4))


class Shortened(nn.Module):
    """Computes the length of its features from that of its input, as wav2vec2 does behind its convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.short, self.one = nn.Conv1d(1, 8, 4, stride=3), nn.Linear(8, 8)
        self.two, self.classes = nn.Linear(4, 4), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        length = (x.shape[1] - 4) // 3 + 1
        features = torch.relu(self.one(self.short(x[:, None]).transpose(1, 2)))
        heads = torch.relu(self.two(features.reshape(x.shape[0], length, 2, 4)))
        return self.classes(heads.reshape(x.shape[0], length, 8).mean(1))  # type: ignore[no-any-return]


def test_a_length_that_is_computed_from_that_of_an_input_which_is_not_carried() -> None:
    """Raised "a size cannot be computed from what crosses the exit"."""
    network = Shortened().eval()
    net = dynamic.wrap(
        network, torch.randn(2, 40), exits=["one"], dynamic_shapes=({1: Dim("samples", min=10, max=200)},)
    ).eval()
    assert [place.carry for place in net.exits] == [1]
    for samples in (10, 40, 41, 42, 200):
        x = torch.randn(3, samples)
        with torch.no_grad():
            expected = network(x)
        for logits in last_logits(net, {"x": x}):
            torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


class Numbered(nn.Module):
    """A size decides by its number, which goes into the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        features = torch.relu(self.one(x))
        return self.two(features.sum(1) * {12: 1.0}.get(int(x.shape[1]), 2.0))  # type: ignore[no-any-return]


def test_a_number_in_the_graph_is_refused_and_named() -> None:
    shapes = ({1: Dim("n", min=2, max=40)},)
    with pytest.raises(TraceError, match=r"neither torch.fx nor torch.export captures Numbered"):
        dynamic.wrap(Numbered().eval(), torch.randn(2, 12, 4), exits=["one"], dynamic_shapes=shapes)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"tokens": {1: Dim("n")}}, r"names \['tokens'\], the inputs are \['input'\]"),
        (({1: Dim("n")}, None), "has 2 entries, the inputs are"),
        ("n", "is a str: give a dict by argument name, or a tuple"),
        ((Dim("n"),), r"is a Dim: give \{1: torch.export.Dim\('length'\)\}"),
        (({3: Dim("n")},), "has dimension 3, it has 0 to 2, the batch first"),
        (((None, Dim("n")),), "has 2 entries, the input 3 dimensions"),
        (({1: "n"},), "has 'n' for dimension 1 of input 'input': give torch.export.Dim"),
        (({1: Dim("batch")},), r"Dim\('batch'\) for dimension 1 of input 'input': that is the name of the batch"),
        (({1: 2 * Dim("batch")},), r"Dim\('batch'\) for dimension 1 of input 'input': that is the name of the batch"),
        (({0: 2},), "fixes the batch at 2: it is always dynamic"),
        (({1: 13},), "has 13 for dimension 1 of input 'input', the example has 12"),
        (({1: Dim("n", min=1, max=8)},), "the example does not fit dynamic_shapes.*12 is beyond the limit of 8"),
    ],
)
def test_words_that_do_not_fit_are_named(shapes: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        dynamic.wrap(Numbered(), torch.randn(2, 12, 4), exits=["one"], dynamic_shapes=shapes)


def common(*spans: DimRange) -> DimRange | None:
    return common_ranges([{f"input of {i}": (span,)} for i, span in enumerate(spans)], ["x"])["x"][0]


@pytest.mark.parametrize(
    ("spans", "met"),
    [
        ([DimRange("h", 1, 7, 32), DimRange("k", 64, 224)], DimRange("h", 2, 7, 32)),
        ([DimRange("k", 64, 224), DimRange("h", 1, 7, 32)], DimRange("k", 2, 7, 32)),
        ([DimRange("h", 1, 16), DimRange("h", 4, None)], DimRange("h", 4, 16)),
        # 4, 8, 12, ... and 8, 14, 20, ...: 8, 20, 32, ...
        ([DimRange("a", 1, None, 4), DimRange("b", 1, None, 6, 2)], DimRange("a", 0, None, 12, 8)),
        # 5, 7, ... 21 and 6, 9, ... 18: 9 and 15. Of these 8 to 12 allow 9
        ([DimRange("a", 2, 10, 2, 1), DimRange("b", 2, 6, 3)], DimRange("a", 1, 2, 6, 3)),
        ([DimRange("a", 2, 10, 2, 1), DimRange("b", 2, 6, 3), DimRange("c", 8, 12)], DimRange("a", 1, 1, 6, 3)),
    ],
)
def test_sizes_that_several_networks_take(spans: list[DimRange], met: DimRange) -> None:
    assert common(*spans) == met
    alike = [size for size in range(1, 300) if all(size in span for span in spans)]
    assert alike == [size for size in range(1, 300) if size in met]


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([DimRange("h", 1, 8), DimRange("k", 9, 20)], "one takes 1 to 8, another 9 to 20.*limits that share a size"),
        (
            [DimRange("h", 1, None, 4), DimRange("k", 1, None, 6, 1)],
            "one takes 4 or more in steps of 4, another 7 or more in steps of 6, and no size is in both steps",
        ),
        ([DimRange("h", 1, 3, 32), DimRange("k", 33, 63)], "32 to 96 in steps of 32, another 33 to 63"),
    ],
)
def test_sizes_that_exclude_each_other(spans: list[DimRange], message: str) -> None:
    with pytest.raises(InputError, match=f"no h fits all networks: .*{message}"):
        common(*spans)


def test_shapes_that_are_all_fixed_change_nothing() -> None:
    network = Convolutions().eval()
    plain, named = (
        dynamic.wrap(network, torch.randn(2, 3, 8, 8), exits=["block"], **words)  # type: ignore[arg-type]
        for words in ({}, {"dynamic_shapes": ({0: Dim("batch"), 1: 3, 2: None},)})
    )
    assert plain.traced_sizes == named.traced_sizes
