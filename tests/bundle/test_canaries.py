"""Canaries as a file, and what a bundle makes of an engine that answers otherwise."""

import errno
import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

import dynamic
from dynamic.bundle import bundle_reader
from dynamic.bundle.canaries import check, reports
from dynamic.bundle.canaries.canary_set import CANARIES, LEAST, MOST, MOST_BYTES, Canaries, noise
from dynamic.bundle.canaries.check import CHECKS, CanaryReport, check_canaries, labels_limit, moved
from dynamic.bundle.canaries.reservoir import Reservoir
from dynamic.bundle.fingerprint import EngineIdentity
from dynamic.cli.doctor import examine
from dynamic.engines.contract import CascadeSpec, InputSpec, StageSpec
from dynamic.engines.engine_factory import engine_version
from dynamic.engines.onnxruntime import OnnxRuntimeExecutor, OnnxRuntimeGraph
from dynamic.errors import CorruptError, InputError
from dynamic.monitoring.contract import Reading
from dynamic.policies.errors import CalibrationError, EngineError
from dynamic.policies.ladder import Ladder, OperatingPoint
from dynamic.profiling.machine import instruction_sets

INF = float("inf")
NORMALIZE = dynamic.Preprocess.of(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def spec(stages: int = 2, classes: int = 3, shape: tuple[int, ...] = (3, 8, 8)) -> CascadeSpec:
    names = (StageSpec(f"stage {s}", s, 1, "", None, 1.0, 0.0) for s in range(stages))
    return CascadeSpec((InputSpec("input", shape, "float32"),), tuple(names), classes)


def some(count: int = 10, shape: tuple[int, ...] = (3, 8, 8)) -> Canaries:
    random = np.random.default_rng(0)
    logits = random.normal(size=(count, 2, 3)).astype(np.float32)
    return Canaries({"input": random.normal(size=(count, *shape)).astype(np.float32)}, logits, "calibration")


# ---- the file


def test_what_is_written_is_read_bit_for_bit(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    odd = some(12).inputs["input"].copy()
    odd[0, 0, 0, :3] = [np.nan, -0.0, 0.0]
    for array in (NORMALIZE(pixels), odd, np.zeros((12, 3, 8, 8), np.float32)):
        canaries = Canaries({"input": array}, some(12).logits, "given")
        canaries.save(tmp_path / "c.npz")
        loaded = Canaries.load(tmp_path / "c.npz", spec())
        assert loaded.inputs["input"].tobytes() == array.tobytes()
        assert loaded.logits.tobytes() == canaries.logits.tobytes()
        assert loaded.source == "given"


def test_normalized_photographs_take_a_byte_a_pixel(tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(32), np.arange(32))[None, :, :, None] * np.ones((64, 1, 1, 3))
    canaries = Canaries({"input": NORMALIZE((smooth * 4 % 256).astype(np.uint8))}, some(64).logits, "calibration")
    canaries.save(tmp_path / "c.npz")
    assert (tmp_path / "c.npz").stat().st_size < 64 * 3 * 32 * 32


def test_integers_and_several_inputs_travel(tmp_path: Path) -> None:
    tokens, mask = np.arange(40).reshape(8, 5), np.ones((8, 5), bool)
    inputs = (InputSpec("tokens", (5,), "int64"), InputSpec("mask", (5,), "bool"))
    Canaries({"tokens": tokens, "mask": mask}, some(8).logits, "calibration").save(tmp_path / "c.npz")
    loaded = Canaries.load(tmp_path / "c.npz", replace(spec(), inputs=inputs))
    assert loaded.inputs["tokens"].tolist() == tokens.tolist()
    assert loaded.inputs["mask"].dtype == np.bool_


def test_as_many_as_fit_and_at_least_eight(tmp_path: Path) -> None:
    assert len(some(100).save(tmp_path / "c.npz")) == MOST
    large = some(30, (3, 100, 100))  # 120 kB of noise each, about 110 when packed
    written = large.save(tmp_path / "c.npz")
    assert LEAST <= len(written) < 30
    assert (tmp_path / "c.npz").stat().st_size <= MOST_BYTES
    assert len(some(9, (3, 300, 300)).save(tmp_path / "c.npz")) == LEAST  # a megabyte each
    assert len(some(3).save(tmp_path / "c.npz")) == 3  # there are no more


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (spec(stages=3), r"holds logits \[10, 2, 3\], the cascade gives \[N, 3, 3\]"),
        (spec(classes=4), r"the cascade gives \[N, 2, 4\]"),
        (spec(shape=(3, 9, 8)), r"shape \[10, 3, 8, 8\], expected \[B, 3, 9, 8\]"),
        (replace(spec(), inputs=(InputSpec("pixels", (3, 8, 8), "float32"),)), "there is no input 'pixels'"),
    ],
)
def test_canaries_of_another_cascade_are_refused(tmp_path: Path, other: CascadeSpec, message: str) -> None:
    some().save(tmp_path / "c.npz")
    with pytest.raises(CorruptError, match=message):
        Canaries.load(tmp_path / "c.npz", other)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", "half"])
def test_a_file_that_does_not_read_is_corrupt(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / "c.npz"
    some().save(path)
    path.write_bytes(content if isinstance(content, bytes) else path.read_bytes()[:-200])
    with pytest.raises(CorruptError, match="does not read as canaries"):
        Canaries.load(path, spec())


def test_shapes_that_do_not_fit() -> None:
    good = some()
    with pytest.raises(InputError, match="10 rows, the logits have 9"):
        Canaries(good.inputs, good.logits[:9], "given")
    with pytest.raises(InputError, match=r"N > 0"):
        Canaries({}, good.logits[:0], "given")
    with pytest.raises(InputError, match="source='mine'"):
        Canaries(good.inputs, good.logits, "mine")  # type: ignore[arg-type]


def test_a_reservoir_draws_evenly_and_keeps_rows_with_their_logits() -> None:
    counts = np.zeros(40)
    for seed in range(600):
        sample = Reservoir(size=10, seed=seed)
        for start in range(0, 40, 8):
            sample.add({"input": np.arange(start, start + 8)[:, None]})
        canaries = sample.canaries(np.arange(40, dtype=np.float32).reshape(40, 1, 1))
        places = canaries.inputs["input"][:, 0]
        assert len(set(places.tolist())) == 10
        assert places.tolist() == canaries.logits[:, 0, 0].tolist()
        counts[places] += 1
    # each is drawn with probability 1/4: 150 of 600, standard deviation 10.6, five of them for the farthest of 40
    assert np.abs(counts - 150).max() < 5 * 10.6


def lengths_sample(lengths: list[int], **options: Any) -> Reservoir:
    """One text after the other, each with its number in every token, and its mask."""
    sample = Reservoir(**options)
    for number, length in enumerate(lengths):
        sample.add({"tokens": np.full((1, length), number), "mask": np.ones((1, length), np.int8)})
    return sample


def places_of(sample: Reservoir, count: int) -> list[int]:
    """Of the canaries, by logits that are the numbers of the rows. Those that are run get 10000 more."""

    def run(inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        assert all(array.flags.c_contiguous for array in inputs.values())
        return inputs["tokens"][:, :1, None].astype(np.float32) + 10000

    canaries = sample.canaries(np.arange(count, dtype=np.float32).reshape(-1, 1, 1), run)
    assert (canaries.inputs["tokens"] == canaries.logits[:, 0] % 10000).all()
    assert canaries.inputs["mask"].shape == canaries.inputs["tokens"].shape
    return [int(place) for place in canaries.logits[:, 0, 0]]


def test_texts_of_many_lengths_give_as_many_canaries_as_are_needed() -> None:
    """4 texts of 9 tokens, the most of one length. Longer ones are cut to them, of the next lengths first."""
    lengths = [9, 9, 9, 9, *(n for n in range(5, 30) if n != 9 for _ in range(2))]
    sample = lengths_sample(lengths)
    places = places_of(sample, len(lengths))
    assert places[:4] == [0, 1, 2, 3]
    assert [lengths[place - 10000] for place in places[4:]] == [10, 11, 12, 13]
    assert len(places) == LEAST


def test_a_shorter_length_counts_where_too_few_texts_are_longer() -> None:
    lengths = [30, 30, 30, *range(10, 16)]  # of 30 there are 3, from 10 on all 9, from 11 on 8
    assert sorted(place % 10000 for place in places_of(lengths_sample(lengths), 9)) != [0, 1, 2]
    assert len(places_of(lengths_sample(lengths), 9)) == LEAST
    assert len(places_of(lengths_sample([3, 4, 5]), 3)) == 3, "no more than there are"


def test_a_length_that_comes_late_counts_whatever_came_before() -> None:
    lengths = [*range(1, 3001), *[4000] * 20]
    # the first of them is no more frequent than others
    assert places_of(lengths_sample(lengths), len(lengths)) == list(range(3001, 3020))


def test_the_memory_of_rows_has_a_bound() -> None:
    """Rows of 16 sizes. Of the most frequent size all remain, and 8 of 10 sizes fit beside it at most."""
    sample, count = Reservoir(most_bytes=2_000_000), 0
    for turn in range(40):
        for side in (*range(100, 116), 100, 100):
            sample.add({"image": np.full((4, side, side), turn, np.float32)})
            assert sample.held_bytes <= 2_000_000 or len(sample._samples) == 1
            count += 4
    canaries = sample.canaries(np.zeros((count, 1, 1), np.float32))
    assert canaries.inputs["image"].shape[1:] == (100, 100)
    assert len(canaries) >= LEAST


def test_of_one_size_rows_have_no_bound_but_their_number() -> None:
    sample = Reservoir(most_bytes=1)
    for start in range(0, 160, 8):
        sample.add({"input": np.arange(start, start + 8)[:, None]})
    random, places = np.random.default_rng(0), list(range(MOST))
    for number in range(MOST, 160):  # algorithm R
        place = int(random.integers(number + 1))
        if place < MOST:
            places[place] = number
    canaries = sample.canaries(np.arange(160, dtype=np.float32).reshape(160, 1, 1))
    assert canaries.inputs["input"][:, 0].tolist() == canaries.logits[:, 0, 0].tolist() == places


def test_noise_lies_within_the_example_and_is_the_same_again() -> None:
    example = {"a": np.array([[-2.0, 3.0]], np.float32), "b": np.array([[5, 9]])}
    drawn = noise(example, 500)
    assert drawn["a"].dtype == np.float32
    assert (drawn["a"].min(), drawn["a"].max()) == (-2, 3)
    assert (drawn["b"].dtype, drawn["b"].min(), drawn["b"].max()) == (np.int64, 5, 9)
    assert all((drawn[name] == array).all() for name, array in noise(example, 500).items())


# ---- what a difference moves


def ladder(*points: OperatingPoint) -> Ladder:
    return Ladder((1.0, 1.0), "max_probability", "last", (0, 1), ("small", "large"), points, "f", True)


def point(name: str, threshold: float, target: float | None, bound: float | None) -> OperatingPoint:
    return OperatingPoint(name, (threshold,), (0, 1), target, 0.0, bound, 0.1, 9, (0.8, 0.9, 1.0), (0.5, 0.5))


REFERENCE = point("reference", INF, 0.0, 0.0)


def test_what_differences_move_by_hand() -> None:
    """Two classes. Probability 0.9 is a logit difference of 2.2, and the exit asks for 0.8, that is 1.386."""
    cheap = ladder(REFERENCE, point("drop 0.01", 0.8, 0.01, 0.009))
    records = np.zeros((4, 2, 2), np.float32)
    records[:, 0, 0] = [2.2, 1.4, 1.3, -2.2]  # of the exit: 0, 0, not confident, 1
    records[:, 1, 0] = [3.0, 3.0, 3.0, 3.0]
    nothing = np.zeros((2, 2, 2), np.float32)
    assert moved(records, nothing, cheap) == (0.0, 0.0)
    lower = nothing.copy()
    lower[1, 0, 0] = -0.1  # records 1 and 3: 1.3 is below the threshold, -2.3 stays above it
    assert moved(records, lower, cheap) == (0.0, 0.25)
    larger = nothing.copy()
    larger[1, 0, 0] = 5.0  # 6.4 stays class 0, and -2.2 becomes 2.8: another label, the same exit
    assert moved(records, larger, cheap) == (0.25, 0.0)
    last = nothing.copy()
    last[0, 1, 0] = -4.0  # the reference: records 0 and 2 get another label
    assert moved(records, last, cheap) == (0.5, 0.0)
    strange = nothing.copy()
    strange[0, 0, :] = np.nan  # a NaN score never exits: record 0 goes on
    assert moved(records, strange, cheap)[1] == 0.25


def test_the_limit_is_a_tenth_of_the_smallest_certified_drop() -> None:
    certified = (point("drop 0.02", 0.5, 0.02, 0.019), point("drop 0.01", 0.6, 0.01, 0.008))
    assert labels_limit(ladder(REFERENCE, *certified)) == pytest.approx(0.001)
    assert labels_limit(ladder(REFERENCE, point("drop 0.01", 0.5, 0.01, None))) == 0.001
    assert labels_limit(ladder(REFERENCE, certified[0])) == pytest.approx(0.002)


# ---- bundles


def blobs() -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    centers = torch.randn(4, 12, generator=random)
    label = torch.arange(2400) % 4
    return centers[label] + 0.9 * torch.randn(2400, 12, generator=random), label


def nearest(width: int) -> nn.Module:
    """Logits by the distance to the centers, seen through the first `width` features."""
    inputs, label = blobs()
    centers = torch.stack([inputs[label == c].mean(0) for c in range(4)])[:, :width]
    last = nn.Linear(12, 4)
    with torch.no_grad():
        last.weight.zero_()
        last.weight[:, :width] = 2 * centers
        last.bias.copy_(-centers.square().sum(1))
    if width < 12:
        return last.eval()
    first = nn.Linear(12, 12)  # the larger network costs more
    nn.init.eye_(first.weight)
    nn.init.zeros_(first.bias)
    return nn.Sequential(first, last).eval()


@pytest.fixture(scope="module")
def made() -> dynamic.Bundle:
    inputs, label = blobs()
    return dynamic.build(
        [nearest(6), nearest(12)], [(inputs, label)], max_drops=(0.05,), classes=tuple("abcd"), progress=False
    )


@pytest.fixture
def shelf(made: dynamic.Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(reports, "_reports", {})
    return made.save(tmp_path / "shelf").folder


def shifted(monkeypatch: pytest.MonkeyPatch, by: float, stage: int = 1) -> None:
    """ONNX Runtime as if one stage cut off large sums: logits of class 0 are `by` lower, stage by stage."""
    step = OnnxRuntimeExecutor.step

    def lower(self: Any, number: int, carry: Any, head: bool) -> Any:
        logits, after = step(self, number, carry, head)
        if logits is not None and number == stage:
            logits = logits.copy()
            logits[:, 0] -= by
        return logits, after

    monkeypatch.setattr(OnnxRuntimeExecutor, "step", lower)


def quiet() -> dynamic.FixedMonitor:
    return dynamic.FixedMonitor()


def test_a_bundle_that_agrees_is_certified_and_asks_once(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = dynamic.load(shelf)
    assert bundle.canaries is not None
    assert len(bundle.canaries) == MOST
    assert bundle.calibrated_on == EngineIdentity.of(bundle.open())
    monkeypatch.setattr(reports, "_reports", {})
    for kept in (shelf / CHECKS).iterdir():
        kept.unlink()
    inputs, _ = blobs()
    with dynamic.load(shelf).runtime(dynamic.Budget(max_drop=0.05), monitor=quiet()) as run:
        assert run(inputs[0].numpy()).certified
    (kept,) = (shelf / CHECKS).iterdir()
    monkeypatch.setattr(reports, "_reports", {})

    def never(*_: Any, **__: Any) -> CanaryReport:
        raise AssertionError("the canaries ran again")

    monkeypatch.setattr(reports, "check_canaries", never)
    report = dynamic.load(shelf).check()
    assert report is not None
    assert report.agrees
    assert report.stages[0].logits == 0.0, "the same engine on the same machine"
    assert CanaryReport.from_json(json.loads(kept.read_text())) == report


def test_the_canaries_are_the_calibrations_own_inputs_and_logits(made: dynamic.Bundle) -> None:
    inputs, _ = blobs()
    canaries = made.canaries
    assert canaries is not None
    rows = [int((inputs.numpy() == row).all(1).argmax()) for row in canaries.inputs["input"]]
    assert len(set(rows)) == MOST
    np.testing.assert_array_equal(canaries.logits, made.records.logits[rows])


def test_an_engine_that_cuts_off_sums_is_not_certified_and_named(
    shelf: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shifted(monkeypatch, 4.0)
    inputs, _ = blobs()
    bundle = dynamic.load(shelf)
    with (
        caplog.at_level(logging.WARNING, "dynamic"),
        bundle.runtime(dynamic.Budget(max_drop=0.05), monitor=quiet()) as r,
    ):
        assert not r(inputs[0].numpy()).certified
        assert r.stats().drift is None, "scores of another arithmetic say nothing of inputs"
    (message,) = {m for m in caplog.messages if "not certified on this machine" in m}
    assert f"Stage {bundle.spec.stages[1].name!r} of network 1 differs most, by 4" in message
    assert "bundle.calibrate(loader)" in message
    assert "weight_range='portable'" in message
    report = bundle.check()
    assert report is not None
    assert not report.agrees
    assert [round(stage.logits, 4) for stage in report.stages] == [0.0, 4.0]
    # independent: the reference's label with class 0 four lower, on all records
    logits = bundle.records.logits[:, 1]
    lower = logits - np.float32([4, 0, 0, 0])
    assert report.labels_moved >= (logits.argmax(1) != lower.argmax(1)).mean() > report.labels_limit


def test_rounding_that_moves_nothing_stays_certified(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shifted(monkeypatch, 1e-6)
    report = dynamic.load(shelf).check()
    assert report is not None
    assert report.agrees
    assert report.stages[1].logits > 0


def test_a_single_graph_that_answers_otherwise_is_noticed(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = OnnxRuntimeGraph.run

    def turned(self: Any, inputs: Mapping[str, NDArray[Any]], thresholds: NDArray[np.float32], rows: int) -> Any:
        output = run(self, inputs, thresholds, rows)
        return replace(output, logits=output.logits[:, ::-1].copy())

    monkeypatch.setattr(OnnxRuntimeGraph, "run", turned)
    report = dynamic.load(shelf).check()
    assert report is not None
    assert not report.agrees
    assert report.graph_differs > 0.9  # but for those between two classes
    assert "the single graph differs for 9" in str(report)
    assert report.graph_count == MOST + 8, "each alone, and eight as a batch"


def test_an_engine_that_fails_in_the_canaries_is_said_and_the_next_one_answers(
    shelf: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("openvino")

    def fails(*_: Any) -> Any:
        raise EngineError("no such instruction")

    monkeypatch.setattr(OnnxRuntimeExecutor, "step", fails)
    monkeypatch.setattr(OnnxRuntimeGraph, "run", fails)
    bundle, (inputs, label) = dynamic.load(shelf), blobs()
    with caplog.at_level(logging.WARNING, "dynamic"):
        opened = dynamic.load(shelf).open()
        assert not opened.agrees
        opened.close()
    assert any("fails on the canaries" in m and "no such instruction" in m for m in caplog.messages)
    assert not (shelf / CHECKS).exists(), "a failure is tried again"
    monkeypatch.undo()
    profiled = bundle.profile(batch=(1,), seconds=0.01, progress=False)
    monkeypatch.setattr(OnnxRuntimeExecutor, "step", fails)
    monkeypatch.setattr(OnnxRuntimeGraph, "run", fails)
    with profiled.runtime(monitor=quiet()) as run:
        result = run(inputs[0].numpy())
        assert result.label == int(label[0])
        assert not result.certified
        assert run.stats().engine_failures > 0


def test_altered_canaries_do_not_load(shelf: Path) -> None:
    path = shelf / CANARIES
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(CorruptError, match=r"canaries\.npz was altered"):
        dynamic.load(shelf)


def test_a_shelf_that_cannot_be_written_keeps_the_report_in_memory(
    shelf: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(check, "replace_text", refused)
    with caplog.at_level(logging.WARNING, "dynamic"):
        first = dynamic.load(shelf).check()
        second = dynamic.load(shelf).check()
    assert first is second
    assert len([m for m in caplog.messages if "cannot be written" in m]) == 1


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"agrees": "yes"}', "[" * 5000, "\ufeff{"])
def test_a_kept_report_that_does_not_read_is_made_again(
    shelf: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    dynamic.load(shelf).check()
    (kept,) = (shelf / CHECKS).iterdir()
    kept.write_text(text, encoding="utf-8")
    monkeypatch.setattr(reports, "_reports", {})
    report = dynamic.load(shelf).check()
    assert report is not None
    assert report.agrees
    assert json.loads(kept.read_text())["labels_moved"] == 0.0


def test_another_thread_setting_or_kernel_variable_is_another_engine(
    shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = dynamic.load(shelf)
    bundle.check(threads=1)
    bundle.check(threads=2)
    assert len(list((shelf / CHECKS).iterdir())) == 2
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    bundle.check(threads=1)
    assert len(list((shelf / CHECKS).iterdir())) == 3
    identity = EngineIdentity.of(bundle.open(threads=1))
    assert identity.version == engine_version("onnxruntime")
    assert identity.variables["MKL_CBWR"] == "COMPATIBLE"
    assert identity.instruction_sets == instruction_sets()


def test_a_bundle_without_canaries_is_certified_where_it_was_calibrated(shelf: Path) -> None:
    loaded = bundle_reader.read(shelf, verify=False)
    bundle = replace(loaded, hashes={name: known for name, known in loaded.hashes.items() if name != CANARIES})
    assert bundle.canaries is None
    assert bundle.check() is None
    assert bundle.open().agrees, "the machine and the engine of the calibration"
    assert not bundle.open(threads=7).agrees, "elsewhere nothing could be noticed"
    assert not replace(bundle, calibrated_on=None).open().agrees


@pytest.mark.parametrize("source", ["noise", "given"])
def test_inputs_that_may_not_travel_do_not(source: str) -> None:
    inputs, label = blobs()
    own = torch.randn(20, 12, generator=torch.Generator().manual_seed(9))
    canaries: Any = source if source == "noise" else own
    bundle = dynamic.build([nearest(12)], [(inputs, label)], canaries=canaries, progress=False)
    assert bundle.canaries is not None
    rows = bundle.canaries.inputs["input"]
    assert not any((inputs.numpy() == row).all(1).any() for row in rows)
    report = bundle.check()
    assert report is not None
    assert report.agrees
    assert ("noise, which can miss" in str(report)) == (source == "noise")
    if source == "given":
        np.testing.assert_array_equal(rows, own.numpy())


def test_an_unknown_word_for_canaries_is_refused_before_any_work() -> None:
    with pytest.raises(InputError, match="canaries='none' is not known"):
        dynamic.build([nearest(12)], iter(()), canaries="none")  # type: ignore[arg-type]


def test_certified_again_on_the_device_that_differs(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shifted(monkeypatch, 4.0)
    monkeypatch.setattr(check, "_graph_differs", lambda *_: (0.0, 0))  # the stages alone are shifted here
    bundle, (inputs, label) = dynamic.load(shelf), blobs()
    batches = [(x.numpy(), y.numpy()) for x, y in zip(inputs.split(400), label.split(400), strict=True)]
    records = bundle.calibrate(batches, progress=False)
    logits = bundle.records.logits.copy()
    logits[:, 1, 0] -= 4
    np.testing.assert_allclose(records.logits, logits, atol=1e-4)
    # a test on one machine cannot make records elsewhere: the same machine under another variable is elsewhere
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    elsewhere = bundle.calibrate(batches, progress=False)
    certified = dynamic.recertify(bundle, (0.05,), records=elsewhere)
    report = certified.check()
    assert report is not None
    assert report.agrees
    assert certified.calibrated_on is not None
    assert certified.calibrated_on.variables["MKL_CBWR"] == "COMPATIBLE"
    monkeypatch.delenv("MKL_CBWR")
    with pytest.raises(CalibrationError, match=r"made on .*MKL_CBWR=COMPATIBLE.* Call recertify where"):
        dynamic.recertify(bundle, (0.05,), records=elsewhere)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (np.zeros((3, 12), np.float32), "is no batch"),
        ((np.zeros((3, 12), np.float32), np.zeros(3)), r"labels are float64 \[3\]"),
        ((np.zeros((3, 12), np.float32), np.zeros(2, int)), "3 inputs and 2 labels"),
        ((np.zeros((3, 12), np.float32), np.full(3, 4)), "labels run from 4 to 4"),
        ((np.zeros((3, 11), np.float32), np.zeros(3, int)), r"expected \[B, 12\]"),
    ],
)
def test_batches_that_do_not_calibrate(made: dynamic.Bundle, batch: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        made.calibrate([batch], progress=False)


def test_canaries_stop_in_time_but_not_before_eight(made: dynamic.Bundle) -> None:
    now = iter(np.arange(0.0, 1e6, 1.0))
    opened = made.open()
    canaries = made.canaries
    assert canaries is not None
    report = check_canaries(opened, canaries, made.records, made.ladder, clock=lambda: float(next(now)))
    assert report.count == 8  # each look at the clock takes a second
    assert report.agrees
    assert not opened.loaded()


def test_doctor_says_what_the_canaries_said(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, code = examine(shelf, as_json=False)
    assert code == 0
    assert "64 canaries agree" in text
    shifted(monkeypatch, 4.0)
    monkeypatch.setattr(reports, "_reports", {})
    for kept in (shelf / CHECKS).iterdir():
        kept.unlink()
    text, code = examine(shelf, as_json=True)
    state = json.loads(text)["shelf"]
    assert code == 0, "it answers, and says that nothing is certified"
    assert state["agrees"] is False
    assert "of network 1 differs most, by 4" in state["canaries"]
    assert any("not certified on this machine" in hint for hint in state["hints"])


def test_a_report_that_contradicts_itself_or_is_of_another_engine_is_not_believed(
    shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shifted(monkeypatch, 4.0)
    dynamic.load(shelf).check()
    (kept,) = (shelf / CHECKS).iterdir()
    honest = json.loads(kept.read_text())
    forged = [
        honest | {"agrees": True},
        honest | {"labels_limit": 1.0},
        honest | {"labels_moved": -1.0, "exits_moved": 0.0},
        honest | {"identity": honest["identity"] | {"version": "0.1"}, "labels_moved": 0.0, "exits_moved": 0.0},
        honest | {"stages": []},
    ]
    for data in forged:
        kept.write_text(json.dumps(data), encoding="utf-8")
        monkeypatch.setattr(reports, "_reports", {})
        report = dynamic.load(shelf).check()
        assert report is not None
        assert not report.agrees, data
        assert report.stages


def test_other_files_are_another_report(shelf: Path) -> None:
    bundle = dynamic.load(shelf)
    bundle.check()
    replace(bundle, hashes={**bundle.hashes, "another file": "0" * 64}).check()
    assert len(list((shelf / CHECKS).iterdir())) == 2


def test_where_memory_is_short_the_single_graph_does_not_run(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def __call__(self) -> Reading:
            return Reading({"memory_available_mb": 0.0}, "a test")

    monkeypatch.setattr(reports, "MemoryLimit", Full)
    report = dynamic.load(shelf).check()
    assert report is not None
    assert report.agrees
    assert report.graph_count == 0


def test_options_that_change_arithmetic_are_part_of_the_identity(made: dynamic.Bundle) -> None:
    modules = dynamic.Cascade([nearest(6), nearest(12)])
    bundle = replace(made, modules=tuple(modules.stages), modules_cascade=modules.fingerprint(), preload=False)
    plain, named = bundle.open("torch"), bundle.open("torch", options=dynamic.TorchOptions(device="cpu"))
    assert EngineIdentity.of(plain).options == {}
    assert EngineIdentity.of(named).options == {"device": "cpu"}
    assert EngineIdentity.of(plain).key != EngineIdentity.of(named).key


def test_too_few_or_unfit_canaries_are_refused_before_any_work() -> None:
    inputs, label = blobs()
    with pytest.raises(InputError, match="7 canaries were given, at least 8 are needed"):
        dynamic.build([nearest(12)], [(inputs, label)], canaries=inputs[:7])
    with pytest.raises(InputError, match=r"expected \[B, 12\]"):
        dynamic.build([nearest(12)], [(inputs, label)], canaries=torch.zeros(9, 11))


def test_noise_of_masks_and_integers_takes_every_value() -> None:
    drawn = noise({"mask": np.ones((2, 3), bool), "tokens": np.array([[0, 1]])}, 400)
    assert set(np.unique(drawn["mask"])) == {False, True}
    counts = np.bincount(drawn["tokens"].ravel())
    assert len(counts) == 2
    assert abs(counts[0] - 400) < 5 * np.sqrt(800 / 4)  # 800 draws, five standard deviations
