"""Bundles whose inputs have dynamic dimensions: torch's answers at every size, on every engine, by every route."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.networks.dynamic_sizes import (
    CLASSES,
    LENGTH,
    LIMIT,
    Convolutions,
    bert,
    image_shapes,
    text_shapes,
    texts,
)
from torch import Tensor, nn
from torch.export import Dim

import dynamic
from dynamic.bundle import manifest
from dynamic.bundle.manifest import read_facts, read_manifest
from dynamic.bundle.tables import costs_text
from dynamic.engines.inputs.dimensions import DimRange
from dynamic.errors import CorruptError, InputError, SchemaError
from dynamic.policies.control.budget_policy import BudgetPolicy
from dynamic.policies.costing.size_costs import SizeCosts
from dynamic.policies.scores import Combiner

ENGINES = ("onnxruntime", "openvino", "torch")
LENGTHS = (1, LENGTH, 4 * LENGTH, LIMIT)
SIZES = ((1, 1), (12, 10), (48, 40), (64, 64))


def labelled(network: nn.Module, batches: list[dict[str, Tensor]]) -> list[Any]:
    with torch.no_grad():
        outputs = [network(**batch) for batch in batches]
    return [(b, getattr(o, "logits", o).argmax(1)) for b, o in zip(batches, outputs, strict=True)]


@pytest.fixture(scope="module")
def text_cascade() -> dynamic.Cascade:
    network = bert()
    return dynamic.Cascade(dynamic.wrap(network, texts(2, LENGTH), exits=1, dynamic_shapes=text_shapes()).eval())


@pytest.fixture(scope="module", params=ENGINES)
def text_bundle(request: Any, text_cascade: Any, tmp_path_factory: pytest.TempPathFactory) -> dynamic.Bundle:
    lengths = [LENGTH, *(5, 20, 33, LIMIT), LENGTH]
    loader = labelled(text_cascade.networks[0].backbone, [texts(40, n, seed) for seed, n in enumerate(lengths)])
    bundle = dynamic.build(text_cascade, loader, engine=request.param, max_drops=(0.1,), floor=0, progress=False)
    folder = tmp_path_factory.mktemp(request.param) / "shelf"
    bundle.save(folder)
    return dynamic.load(folder, modules=text_cascade if request.param == "torch" else None)


def image_cascade() -> dynamic.Cascade:
    small, large = Convolutions(4).eval(), Convolutions(8).eval()
    wrapped = dynamic.wrap(large, torch.randn(2, 3, 12, 10), exits=["block"], dynamic_shapes=image_shapes())
    return dynamic.Cascade([small, wrapped.eval()], names=("small", "large"))


@pytest.fixture(scope="module", params=ENGINES)
def image_bundle(request: Any) -> tuple[dynamic.Bundle, dynamic.Cascade]:
    torch.manual_seed(1)
    cascade = image_cascade()
    loader = [(torch.randn(60, 3, h, w), torch.randint(0, CLASSES, (60,))) for h, w in ((12, 10), (20, 30), (7, 64))]
    return dynamic.build(cascade, loader, engine=request.param, max_drops=(0.1,), floor=0, progress=False), cascade


def stage_logits(cascade: dynamic.Cascade, inputs: dict[str, Tensor]) -> NDArray[np.float32]:
    """`[B, S, C]`, by torch without the library's stages."""
    with torch.no_grad():
        logits = cascade(**inputs) if len(inputs) > 1 else cascade(*inputs.values())
    return torch.stack(logits, 1).numpy()


def check_engine(bundle: dynamic.Bundle, cascade: dynamic.Cascade, inputs: dict[str, Tensor]) -> None:
    """Stages and graph against torch, with every exit off, on and for everyone."""
    expected = stage_logits(cascade, inputs)
    arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
    engine = bundle.open()
    try:
        np.testing.assert_allclose(engine.all_logits(arrays), expected, atol=2e-5)
        ladder, exits = bundle.ladder, expected.shape[1] - 1
        combiner = Combiner(ladder.temperature, ladder.score, combine=ladder.combine, backbone=ladder.backbone)
        for stage in range(exits + 1):  # everyone exits there
            limits = np.full(exits, np.inf, np.float32)
            limits[stage:] = -np.inf
            state, answer = combiner.start(), None
            for s in range(stage + 1):
                if s in (stage, exits) or limits[s] < np.inf:
                    answer, _, state = combiner.add(state, s, expected[:, s])
            assert answer is not None
            runs = [engine.stages.run(arrays, limits)]
            runs += [engine.run_graph(arrays, limits)] if engine.graph is not None else []
            for output in runs:
                assert output.stage.tolist() == [stage] * len(expected)
                np.testing.assert_allclose(np.exp(output.logits), answer, atol=2e-5)
    finally:
        engine.close()


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("length", LENGTHS)
def test_a_text_of_any_length_gets_the_answer_of_torch(
    text_bundle: Any, text_cascade: Any, length: int, rows: int
) -> None:
    check_engine(text_bundle, text_cascade, texts(rows, length, seed=9))


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("size", SIZES)
def test_an_image_of_any_size_gets_the_answer_of_torch(image_bundle: Any, size: tuple[int, int], rows: int) -> None:
    bundle, cascade = image_bundle
    check_engine(bundle, cascade, {"input": torch.randn(rows, 3, *size)})


def test_padding_under_the_mask_changes_no_answer(text_bundle: Any) -> None:
    """A batch of several lengths: each row answers as it does alone, unpadded."""
    lengths = (3, LENGTH, 30)
    alone = [{name: t.numpy() for name, t in texts(1, length, seed=3).items()} for length in lengths]
    padded = {
        name: np.concatenate([np.pad(row[name], ((0, 0), (0, max(lengths) - row[name].shape[1]))) for row in alone])
        for name in ("input_ids", "attention_mask")
    }
    engine = text_bundle.open()
    try:  # the last stage: heads pool over all positions
        own = np.concatenate([engine.all_logits(row)[:, -1] for row in alone])
        np.testing.assert_allclose(engine.all_logits(padded)[:, -1], own, atol=2e-5)
    finally:
        engine.close()


def test_requests_of_several_sizes_follow_each_other(text_bundle: Any, text_cascade: Any) -> None:
    bundle = text_bundle.profile((1, 4), seconds=0.01)
    costs = bundle.costs
    assert costs is not None
    assert costs.size == LENGTH
    assert [entry.size for entry in costs.sizes] == [1, 4 * LENGTH, LIMIT]
    assert "by size of input, at batch 1. The example has size 12" in costs_text(bundle, costs)
    modules = text_cascade if bundle.engine == "torch" else None
    assert dynamic.load(bundle.folder, modules=modules).costs == costs  # as it was kept
    with bundle.runtime(dynamic.Budget(max_drop=0.0)) as run:
        for length in (LENGTH, LENGTH, 1, LIMIT, LENGTH, 20, 20):
            inputs = texts(1, length, seed=5)
            answer = run({name: tensor.numpy() for name, tensor in inputs.items()})
            expected = stage_logits(text_cascade, inputs)[0, -1]
            assert answer.stage.tolist() == [1]  # the reference
            assert answer.label.tolist() == [int(expected.argmax())]
        assert run.stats().requests == 7
        with pytest.raises(InputError, match=f"{LIMIT + 1} is beyond the limit of {LIMIT}: cut, split or resize"):
            run({name: tensor.numpy() for name, tensor in texts(1, LIMIT + 1).items()})


def test_the_manifest_has_a_named_range_for_a_dynamic_dimension(text_bundle: Any) -> None:
    written = json.loads((text_bundle.folder / "bundle.json").read_text())
    length = {"name": "length", "min": 1, "max": LIMIT, "factor": 1, "offset": 0, "example": LENGTH}
    assert written["schema"] == 3, "with the rows of its table of embeddings"
    assert [i["shape"] for i in written["spec"]["inputs"]] == [[length], [length]]
    assert [i.ranges for i in text_bundle.spec.inputs] == [(DimRange("length", 1, LIMIT),)] * 2
    assert text_bundle.spec.size_of({"input_ids": np.zeros((2, 30)), "attention_mask": np.zeros((2, 30))}) == 30


def test_without_dynamic_dimensions_a_bundle_is_as_it_was(calibrated: Any) -> None:
    bundle, _ = calibrated
    written = json.loads((bundle.folder / "bundle.json").read_text())
    assert written["schema"] == 1
    assert written["spec"]["inputs"] == [{"name": "input", "shape": [3, 8, 8], "dtype": "float32"}]
    assert bundle.spec.size_of({"input": np.zeros((1, 3, 8, 8))}) is None


@pytest.fixture(scope="module")
def calibrated() -> tuple[dynamic.Bundle, nn.Module]:
    network = Convolutions().eval()
    loader = [(torch.randn(60, 3, 8, 8), torch.randint(0, CLASSES, (60,)))]
    return dynamic.build(network, loader, engine="torch", max_drops=(0.1,), floor=0, progress=False), network


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max": 5}, "example=12 must be from"),
        ({"min": -1}, "min"),
        ({"factor": 0}, "factor"),
        ({"name": 3}, "name"),
    ],
)
def test_a_range_that_is_none_is_refused(text_bundle: Any, change: Any, message: str) -> None:
    altered = read_manifest(text_bundle.folder)
    altered["spec"]["inputs"][0]["shape"][0] |= change
    with pytest.raises(CorruptError, match=message):
        read_facts(altered, text_bundle.folder)


def test_canaries_are_of_the_most_frequent_size(text_bundle: Any) -> None:
    canaries = text_bundle.canaries
    assert canaries is not None
    assert canaries.inputs["input_ids"].shape[1] == LENGTH  # two batches of it, one of each other length
    assert len(canaries) == 64
    assert text_bundle.agrees(text_bundle.open())


def test_canaries_of_images_of_many_sizes_are_cut_to_one() -> None:
    cascade = image_cascade()
    sizes = [(side, 60 - side) for side in range(20, 40)] + [(40, 41 + side) for side in range(20)]
    loader = [(torch.randn(4, 3, *size), torch.arange(4) % CLASSES) for size in sizes]
    bundle = dynamic.build(cascade, loader, engine="torch", max_drops=(0.1,), floor=0, progress=False)
    canaries = bundle.canaries
    assert canaries is not None
    assert len(canaries) == 8  # 4 of one size, and 4 of larger ones
    expected = stage_logits(cascade, {"input": torch.from_numpy(canaries.inputs["input"])})
    np.testing.assert_allclose(canaries.logits, expected, atol=2e-5)


def test_networks_without_heads_take_the_dynamic_shapes_of_the_cascade() -> None:
    networks = [Convolutions(4).eval(), Convolutions(8).eval()]
    example = {"input": torch.randn(2, 3, 8, 8)}
    cascade = dynamic.Cascade(networks, dynamic_shapes={"x": {2: Dim("side", min=1, max=32), 3: Dim("width", max=20)}})
    spans = (None, DimRange("side", 1, 32), DimRange("width", 1, 20))
    assert cascade.ranges(example) == {"input": spans}
    with pytest.raises(InputError, match=r"does not run at .*which dynamic_shapes allows"):
        dynamic.Cascade([nn.Sequential(nn.Flatten(), nn.Linear(192, 4))], dynamic_shapes=image_shapes()).ranges(example)


def test_limits_of_several_networks_are_combined() -> None:
    images = torch.randn(2, 3, 8, 8)

    def wrapped(least: int, most: int) -> Any:
        shapes = ({2: Dim("h", min=least, max=most)},)
        return dynamic.wrap(Convolutions().eval(), images, exits=["block"], dynamic_shapes=shapes)

    cascade = dynamic.Cascade([wrapped(1, 16), wrapped(4, 32)])
    assert cascade.ranges({"input": images}) == {"input": (None, DimRange("h", 4, 16), None)}
    fixed = dynamic.wrap(Convolutions().eval(), images[:, :, :, :], exits=["block"])
    fixed.traced_sizes = type(fixed.traced_sizes).of("Convolutions", {"input": images})
    with pytest.raises(InputError, match=r"dynamic_shapes allows h=.*traced at .*with dynamic_shapes="):
        dynamic.Cascade([wrapped(1, 16), fixed]).ranges({"input": images})


def test_images_of_any_size_are_preprocessed_within_the_limits() -> None:
    cascade = image_cascade()
    loader = [(torch.randn(60, 3, 12, 10), torch.randint(0, CLASSES, (60,)))]
    preprocess = dynamic.Preprocess.of(mean=(0.5,) * 3, std=(0.5,) * 3)
    bundle = dynamic.build(
        cascade, loader, engine="torch", preprocess=preprocess, max_drops=(0.1,), floor=0, progress=False
    )
    bundle = bundle.profile((1,), seconds=0.01)
    random = np.random.default_rng(0)
    with bundle.runtime() as run:
        for height, width in SIZES:
            pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
            assert run(pixels).probabilities.shape == (CLASSES,)
        with pytest.raises(InputError, match=r"\[3, 65, 8\], expected \[3, height from 1 to 64, width from 1 to 64\]"):
            run(np.zeros((65, 8, 3), np.uint8))


def test_an_earlier_version_refuses_the_schema_of_dynamic_dimensions(text_bundle: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(manifest, "SCHEMA", 1)  # what an earlier version reads
    with pytest.raises(SchemaError, match="has schema 3, this version reads up to 1: update dynamic-inference"):
        manifest.read_manifest(text_bundle.folder)


def test_the_first_request_gets_the_point_for_its_length(text_bundle: Any) -> None:
    """By costs of our own: a long text takes a thousand times as long at the last stage."""
    costs = text_bundle.profile((1,), seconds=0.01).costs
    ones, nothing = ((1.0,), (1.0,)), ((0.0,), (0.0,))
    long = SizeCosts(LIMIT, ((1.0,), (1e3,)), ((1.0,), (1e3,)), nothing, ((1.0,), (1e3,)), (0.0,))
    tables = {"latency_ms": ones, "latency_p95_ms": ones, "head_ms": nothing, "cpu_ms": ones}
    costs = replace(costs, **tables, call_ms=(0.0,), call_cpu_ms=(), sizes=(long,), noise=0.0)
    point = {}
    for length in (LENGTH, LIMIT):
        with text_bundle.with_costs(costs, None).runtime(dynamic.Budget(latency_ms=100, percentile=None)) as run:
            answer = run({name: tensor.numpy() for name, tensor in texts(1, length).items()})
            point[length] = answer.decision.point
            assert answer.decision.feasible
    assert point[LENGTH].deep_ms[0] == 2.0
    assert point[LIMIT].operating_point.thresholds == (-np.inf,)


def sized_costs(bundle: dynamic.Bundle, stage_ms: float) -> dynamic.Bundle:
    """Each stage takes so many ms at the size of the example, and three times as many at four times the size."""
    costs = bundle.profile((1,), seconds=0.01).costs
    assert costs is not None
    assert costs.size is not None
    once, thrice, nothing = (((factor * stage_ms,),) * len(costs.latency_ms) for factor in (1.0, 3.0, 0.0))
    large = SizeCosts(4 * costs.size, thrice, thrice, nothing, thrice, (0.0,))
    tables: Any = {"latency_ms": once, "latency_p95_ms": once, "head_ms": nothing, "cpu_ms": once}
    fields: Any = {"call_ms": (0.0,), "call_cpu_ms": (), "sizes": (large,), "noise": 0.0}
    return bundle.with_costs(replace(costs, **tables, **fields), None)


class Counting(BudgetPolicy):
    """Counts its decisions."""

    decisions = 0

    def decide(self, *given: Any) -> Any:
        self.decisions += 1
        return super().decide(*given)


def test_requests_of_several_sizes_repeat_a_plan_each(image_bundle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # no request and no conversion is slow, however busy the machine is
    monkeypatch.setattr("dynamic.runtime.request_handler._CONVERSION_MS", 1e9)
    bundle, policy = sized_costs(image_bundle[0], 1e6), Counting()
    monitor = dynamic.FixedMonitor(dynamic.Snapshot(time_s=0.0))
    small, large, between = (torch.randn(3, *size).numpy() for size in ((12, 10), (24, 20), (15, 16)))
    with bundle.runtime(policy=policy, monitor=monitor, drift_alpha=None) as run:
        run(small)  # networks are loaded
        for x in (small, large, between, small, large):
            run(x)
        policy.decisions = 0
        decisions = [[run(x).decision for x in (small, large, between)] for _ in range(5)]
        assert policy.decisions == 0
        assert all(one is first for row in decisions for one, first in zip(row, decisions[0], strict=True))
        plans = run._controller.plans
        assert set(plans) == {120, 240, 480}
        for size, factor in ((120, 1.0), (240, 1.0 + 2.0 / 3.0), (480, 3.0)):  # between them a line
            expected_ms = factor * 1e6 * np.cumsum(plans[size].decision.point.plan.run)
            assert plans[size].slow_ms == pytest.approx(2 * plans[size].decision.slowdown * expected_ms)
        monitor.set(battery=0.5)
        run(large)
        assert policy.decisions == 1
        assert list(run._controller.plans) == [480], "the others end with it"
        run._controller.plan = None
        assert run._controller.plans == {}


def test_a_plan_is_for_requests_of_one_size(image_bundle: Any) -> None:
    bundle, _ = image_bundle
    bundle = sized_costs(bundle, 1.0)
    sizes = ((12, 10), (12, 10), (12, 10), (24, 20), (24, 20), (20, 24), (12, 10), (12, 10))  # two of equal area
    planned: list[Any] = []
    engine = bundle.open()
    with bundle.runtime(monitor=dynamic.FixedMonitor(dynamic.Snapshot(time_s=0.0))) as run:
        for number, size in enumerate(sizes):
            x = torch.randn(3, *size, generator=torch.Generator().manual_seed(number)).numpy()
            answer = run(x)
            expected = engine.stages.run({"input": x[None]}, answer.decision.point.thresholds)
            assert answer.stage == expected.stage[0]
            np.testing.assert_allclose(answer.log_probs, expected.logits[0], atol=1e-4)
            if number and sizes[number - 1] == size:
                plan = run._controller.plans[size[0] * size[1]]
                assert (plan.size, plan.shape) == (size[0] * size[1], (3, *size))
                stage_ms = 1.0 if plan.size == 120 else 3.0
                expected_ms = stage_ms * np.cumsum(plan.decision.point.plan.run)  # of stages that run so far
                assert plan.expected_ms == pytest.approx(expected_ms)
                assert plan.slow_ms == pytest.approx(2 * plan.decision.slowdown * expected_ms)
                planned.append(plan.size)
    assert planned == [120, 120, 480, 120]
    engine.close()
