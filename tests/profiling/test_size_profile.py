"""Which sizes of input are measured, and what they cost, by an engine whose times are known."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
from support.fake_graph import Fake

from dynamic.engines.contract import CascadeSpec, InputSpec, StageSpec
from dynamic.engines.inputs.dimensions import DimRange
from dynamic.engines.route_choice import CascadeEngine
from dynamic.profiling import stage_profile
from dynamic.profiling.example_inputs import other_sizes
from dynamic.profiling.size_profile import measure_sizes
from dynamic.profiling.stage_profile import profile


def spec(*sides: tuple[int, DimRange]) -> CascadeSpec:
    """One stage, whose input has such dimensions, each of an example and its range."""
    shape, ranges = (size for size, _ in sides), (span for _, span in sides)
    inputs = (InputSpec("input", tuple(shape), "float32", tuple(ranges)),)
    return CascadeSpec(inputs, (StageSpec("s0", 0, 0, "0.onnx", None, 1.0, 0.1),), 2)


@pytest.mark.parametrize(
    ("sides", "sizes", "largest"),
    [
        ([(12, DimRange("length", 1, 64))], [1, 48, 64], None),
        ([(12, DimRange("length", 1, 12))], [1], None),
        ([(12, DimRange("length", 1, None))], [1, 48], 48),
        ([(12, DimRange("length", 1, 10_000))], [1, 48, 768], 768),  # 64 times 12
        ([(12, DimRange("length", 12, 10_000))], [48, 768], 768),
        # both at 8 times their own
        ([(10, DimRange("height", 1, 1000)), (20, DimRange("width", 1, 1000))], [1, 3200, 12_800], 12_800),
        # the width at its limit of twice its own, so that 32 times remain for the height
        ([(10, DimRange("height", 1, 1000)), (20, DimRange("width", 1, 40))], [1, 1600, 12_800], 12_800),
        # whole steps: 64 times 2 * 32
        ([(64, DimRange("rows", 1, 1000, 32))], [32, 256, 4096], 4096),
        # without a limit four times its own, whatever the other
        ([(10, DimRange("height", 1, None)), (20, DimRange("width", 1, 1000))], [1, 3200, 12_800], 12_800),
    ],
)
def test_the_sizes_that_are_measured(sides: Any, sizes: list[int], largest: int | None) -> None:
    found, beyond = other_sizes(spec(*sides))
    assert list(found) == sizes
    assert beyond == largest
    for size, numbers in found.items():
        assert math.prod(span.size(numbers[span.name]) for _, span in sides) == size


class ByTokens(Fake):
    """Takes 2 ms for the call, and 1 ms for each token of each row."""

    def __init__(self, spec: CascadeSpec) -> None:
        super().__init__(spec, 2.0, [0.0], [0.0])
        self.batches: list[tuple[int, int]] = []

    def run(self, inputs: Any, thresholds: Any, rows: int) -> Any:
        self.ms += inputs["input"].size
        if inputs["input"].shape not in self.batches:
            self.batches.append(inputs["input"].shape)
        return super().run(inputs, thresholds, rows)


def engine(most: int) -> tuple[CascadeEngine, ByTokens]:
    own = spec((10, DimRange("length", 1, most)))
    stages: Any = SimpleNamespace(name="fake", precision="f32", threads=1, options={}, spec=own)
    graph = ByTokens(own)
    return CascadeEngine(stages, graph, route="graph"), graph  # type: ignore[arg-type]


def test_sizes_beyond_64_times_the_example_are_named() -> None:
    opened, graph = engine(10_000)
    costs = profile(opened, None, (1, 2), 0.0, graph.clock, progress=False)
    assert [entry.size for entry in costs.sizes] == [1, 40, 640]
    assert "sizes above 640" in costs.not_measured
    for entry in costs.sizes:
        whole = [stage + call for stage, call in zip(entry.latency_ms[0], entry.call_ms, strict=True)]
        assert whole == pytest.approx([2 + entry.size, 2 + 2 * entry.size])


def test_batches_that_need_more_memory_than_there_is_are_left_out() -> None:
    """A row of the example takes 1 MB, so 64 rows of size 40 take 256. Of 500 MB 225 may be taken."""
    opened, graph = engine(40)
    sized = measure_sizes(opened, (1, 8, 64), ["graph"] * 3, 0.0, math.inf, graph.clock, False, 1.0, 500.0)
    assert graph.batches == [(1, 1), (8, 1), (64, 1), (1, 40), (8, 40)]
    assert sized.not_measured == ("batches of 64 or more at size 40, which need more memory than there is",)
    assert sized.sizes[1].latency_ms[0][2] == pytest.approx(8 * sized.sizes[1].latency_ms[0][1])


def test_the_memory_of_this_machine_is_finite() -> None:
    assert 0 < stage_profile._available_mb() < math.inf
