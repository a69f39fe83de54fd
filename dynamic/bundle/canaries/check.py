"""Whether an engine on this machine answers as it did in calibration: the canaries, run once and compared.

What counts is not how far logits are off but what that does. The differences that were seen on canaries are added to
the calibration records, one canary's to each record in turn. Every operating point is replayed with and without them.
The share of records that get another label estimates what accuracy can lose. It may be a tenth of the smallest
certified drop. The share that gets another exit says how far costs are off. It may be one in a hundred.

It is an estimate from n canaries. A fault that befalls fewer than `1 - 0.05 ** (1 / n)` of inputs (4.6% for 64) stays
unseen with a probability above 0.05. Arithmetic that differs, such as sums that saturate, touches nearly every input.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from dynamic.bundle.canaries.canary_set import LEAST, Canaries, Source
from dynamic.bundle.fingerprint import EngineIdentity
from dynamic.engines.contract import Array, Output
from dynamic.engines.route_choice import CascadeEngine
from dynamic.policies.certification.replay import Replay, replay
from dynamic.policies.errors import EngineError
from dynamic.policies.ladder import Ladder
from dynamic.policies.records import Records
from dynamic.policies.scores import Combiner
from dynamic.policies.validation.fields import fraction, items, mapping, number, text, whole, word
from dynamic.progress import track
from dynamic.storage.atomic_write import make_room, replace_text
from dynamic.storage.json_files import MEASURED_BYTES, SEAL, read_json, seal, unseal

CHECKS = "checks"  # of a bundle's folder: one file for each engine and machine
SECONDS = 3.0  # of canaries and single graph together, once `LEAST` canaries are done
EXITS_LIMIT = 0.01
_DROP_SHARE = 10  # labels may differ for a tenth of the smallest certified drop
_UNCERTIFIED_LIMIT = 0.001  # of labels, where the ladder certifies no drop above 0
_GRAPH_LIMIT = 0.02  # of single inputs that the single graph answers otherwise than the stages: rounding moves a few
_NEAR = 0.02  # of a score or a probability: what rounding moves, about
_CHUNK = 8  # canaries that run together
_VALUES = 8_000_000  # logits of records that are replayed

logger = logging.getLogger("dynamic")


@dataclass(frozen=True)
class StageDifference:
    """How far a stage is from its calibration on the canaries.

    Args:
        stage: name of the stage.
        network: number of its backbone.
        logits: the largest difference of a logit.
        share: the same as a share of the largest logit in calibration.
        labels: share of canaries whose label of this stage is another.
    """

    stage: str
    network: int
    logits: float
    share: float
    labels: float


@dataclass(frozen=True)
class CanaryReport:
    """What running the canaries on one engine said.

    Args:
        identity: of the engine and machine they ran on.
        count: canaries that ran.
        source: see `dynamic.bundle.canaries.canary_set.Canaries`.
        stages: one entry a stage, in order. Empty where the engine failed.
        labels_moved: largest share of calibration records, over the operating points, that get another label.
        labels_limit: the share up to which the engine agrees.
        exits_moved: the same for exits, whose limit is `EXITS_LIMIT`.
        graph_differs: share of canaries that the single graph answers clearly otherwise than the stages do.
        graph_count: how many ran through the single graph. None run where the engine has none, or memory is short.
        problem: why the canaries could not run, or None.
    """

    identity: EngineIdentity
    count: int
    source: str
    stages: tuple[StageDifference, ...]
    labels_moved: float
    labels_limit: float
    exits_moved: float
    graph_differs: float
    graph_count: int = 0
    problem: str | None = None

    @property
    def violations(self) -> tuple[str, ...]:
        """What keeps answers from being called certified, each with its limit."""
        if self.problem is not None:
            return (f"the canaries did not run: {self.problem}",)
        violations = []
        if not self.labels_moved <= self.labels_limit:
            violations.append(f"{self.labels_moved:.2%} of labels move (limit {self.labels_limit:.2%})")
        if not self.exits_moved <= EXITS_LIMIT:
            violations.append(f"{self.exits_moved:.2%} of exits move (limit {EXITS_LIMIT:.0%})")
        if not self.graph_differs <= _GRAPH_LIMIT:
            violations.append(
                f"the single graph differs for {self.graph_differs:.1%} of canaries (limit {_GRAPH_LIMIT:.0%})"
            )
        return tuple(violations)

    @property
    def agrees(self) -> bool:
        """Whether answers may be called certified here."""
        return not self.violations

    @property
    def remedy(self) -> str:
        """What to do where answers differ."""
        return (
            "certify it here with labelled inputs, dynamic.recertify(bundle, records=bundle.calibrate(loader)), or "
            "build it again from networks that are the same everywhere (int8 with weight_range='portable')"
        )

    @property
    def worst(self) -> StageDifference | None:
        """The stage with the largest difference, as a share of its largest logit."""
        return max(self.stages, key=lambda stage: stage.share, default=None)

    def __str__(self) -> str:
        worst = self.worst
        if worst is None:
            return f"canaries did not run: {self.problem}"
        weak = " (noise, which can miss a difference)" if self.source == "noise" else ""
        verdict = "agree" if self.agrees else f"differ: {' and '.join(self.violations)}"
        return (
            f"{self.count} canaries{weak} {verdict}. Stage {worst.stage!r} of network {worst.network} differs most, by "
            f"{worst.logits:.3g}, which is {worst.share:.2%} of its largest logit"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "CanaryReport":
        """What `to_json` gave. Raises ValueError on anything else."""
        fields = mapping(
            data, "report", [n for n in cls.__dataclass_fields__ if n != "graph_count"], ["graph_count", SEAL]
        )
        if fields["problem"] is not None:
            raise ValueError("it is of an engine that failed, which is not kept")
        report = cls(
            identity=EngineIdentity.from_json(fields["identity"]),
            count=whole(fields["count"], "count", 1),
            source=word(fields["source"], "source", get_args(Source)),
            stages=items(fields["stages"], "stages", _stage),
            labels_moved=fraction(fields["labels_moved"], "labels_moved"),
            labels_limit=fraction(fields["labels_limit"], "labels_limit"),
            exits_moved=fraction(fields["exits_moved"], "exits_moved"),
            graph_differs=fraction(fields["graph_differs"], "graph_differs"),
            graph_count=whole(fields.get("graph_count", 0), "graph_count"),
        )
        if not report.stages:
            raise ValueError("stages has 0 entries")
        return report


def _stage(value: Any, name: str) -> StageDifference:
    data = mapping(value, name, StageDifference.__dataclass_fields__)
    return StageDifference(
        stage=text(data["stage"], f"{name}.stage"),
        network=whole(data["network"], f"{name}.network"),
        logits=number(data["logits"], f"{name}.logits", 0.0, math.inf),  # inf: NaN on one side alone
        share=number(data["share"], f"{name}.share", 0.0, math.inf),
        labels=fraction(data["labels"], f"{name}.labels"),
    )


def run_canaries(
    engine: CascadeEngine,
    inputs: Mapping[str, Array],
    *,
    seconds: float | None = None,
    progress: bool | None = False,
    clock: Callable[[], float] = time.perf_counter,
) -> NDArray[np.float32]:
    """Logits of every stage for some inputs, one backbone in memory at a time.

    Args:
        engine: open. What is loaded for it is unloaded again.
        inputs: by name, each `[N, ...]`. The first two run alone, since one row may take other kernels than a batch.
        seconds: once they are over, no further inputs run behind the first `LEAST`. Loading does not count.
        progress: a progress bar on stderr. None: where that is a terminal.
        clock: seconds.

    Returns:
        `[n, S, C]` of the first n inputs.
    """
    executor, backbones = engine.executor, engine.spec.backbone
    count = len(next(iter(inputs.values())))
    logits: list[NDArray[np.float32]] = []  # [n, C] of each stage
    for backbone in track(engine.spec.backbones, "canaries", len(engine.spec.backbones), progress):
        executor.load([backbone])
        own = [stage for stage, belongs in enumerate(backbones) if belongs == backbone]
        parts: list[list[NDArray[np.float32]]] = []
        began = clock()
        for start, end in _chunks(count):
            late = seconds is not None and clock() - began > seconds * (1 / len(engine.spec.backbones))
            if start >= LEAST and not logits and late:
                count = start  # the other backbones run as many
                break
            carry = executor.start({name: array[start:end] for name, array in inputs.items()})
            answers = []
            for stage in own:
                answer, carry = executor.step(stage, carry, True)
                assert answer is not None
                answers.append(np.array(answer))
            parts.append(answers)
        logits += [np.concatenate([answers[i] for answers in parts]) for i in range(len(own))]
        executor.unload([backbone])
    return np.stack([answers[:count] for answers in logits], axis=1)


def _chunks(count: int) -> list[tuple[int, int]]:
    ends = sorted({min(end, count) for end in (1, 2, *range(_CHUNK, count + _CHUNK, _CHUNK))})
    return list(zip([0, *ends], ends, strict=False))


def check_canaries(
    engine: CascadeEngine,
    canaries: Canaries,
    records: Records,
    ladder: Ladder,
    *,
    room_for_graph: bool = True,
    progress: bool | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> CanaryReport:
    """Run the canaries on an open engine and compare. What that loads is unloaded again.

    Args:
        engine: the engine, on which the ladder was calibrated or another.
        canaries: of the bundle.
        records: of the calibration, whose labels and exits a difference moves.
        ladder: its operating points.
        room_for_graph: whether there is memory for the single graph, which holds every backbone.
        progress: a progress bar on stderr. None: where that is a terminal.
        clock: seconds.

    Returns:
        The report. An engine that fails gives one with `problem`, and does not agree.
    """
    identity = EngineIdentity.of(engine)
    limit = labels_limit(ladder)
    differs, graph_count = 0.0, 0
    try:
        with np.errstate(all="ignore"):  # what an altered network gives is compared, however large
            logits = run_canaries(engine, canaries.inputs, seconds=SECONDS / 2, progress=progress, clock=clock)
            if logits.shape[1:] != canaries.logits.shape[1:]:
                raise EngineError(f"logits {list(logits.shape)}, expected [N, {canaries.logits.shape[1:]}]")
            if room_for_graph:
                differs, graph_count = _graph_differs(engine, canaries, logits, ladder, clock)
    # graphs that changed places give outputs of other shapes
    except (EngineError, MemoryError, ValueError, IndexError, TypeError) as error:
        problem = str(error) or type(error).__name__
        return CanaryReport(identity, 0, canaries.source, (), 1.0, limit, 1.0, 1.0, problem=problem)
    finally:
        engine.close()
    expected = canaries.logits[: len(logits)]
    same = (logits == expected) | (np.isnan(logits) & np.isnan(expected))
    with np.errstate(all="ignore"):
        differences = np.subtract(logits, expected, where=~same, out=np.zeros_like(logits))
        labels, exits = moved(records.logits, differences, ladder)
    other = logits.argmax(2) != expected.argmax(2)  # [n, S]
    stages = tuple(
        _difference(differences[:, s], expected[:, s], float(other[:, s].mean()), name, ladder.backbone[s])
        for s, name in enumerate(ladder.stage_names)
    )
    return CanaryReport(
        identity, len(logits), canaries.source, stages, labels, limit, exits, differs, graph_count=graph_count
    )


def labels_limit(ladder: Ladder) -> float:
    """The share of records that may get another label: a tenth of the smallest certified drop above 0."""
    drops = [p.target for p in ladder.points if p.target and p.bound is not None]
    return min(drops) / _DROP_SHARE if drops else _UNCERTIFIED_LIMIT


def moved(records: NDArray[np.float32], differences: NDArray[np.float32], ladder: Ladder) -> tuple[float, float]:
    """The shares of records whose label and whose exit other logits move, each the largest over the points.

    Args:
        records: `[N, S, C]`, logits of the calibration.
        differences: `[n, S, C]`, of canaries. Record i gets those of canary i modulo n. NaN moves what it meets.
        ladder: its operating points, temperatures and score.
    """
    if not differences.any():  # NaN counts as a difference
        return 0.0, 0.0
    records = records[: max(1, _VALUES // max(1, records[0].size))]
    other = records + differences[np.arange(len(records)) % len(differences)]
    combiner = _combiner(ladder)
    labels, exits = 0.0, 0.0
    for point in ladder.points:
        before, after = (
            replay(some, combiner, thresholds=point.thresholds, backbone=ladder.backbone) for some in (records, other)
        )
        labels = max(labels, float((before.prediction != after.prediction).mean()))
        exits = max(exits, float((before.stage != after.stage).mean()))
    return labels, exits


def _combiner(ladder: Ladder) -> Combiner:
    return Combiner(ladder.temperature, ladder.score, combine=ladder.combine, backbone=ladder.backbone)


def _difference(
    differences: NDArray[np.float32], expected: NDArray[np.float32], labels: float, name: str, network: int
) -> StageDifference:
    """Of one stage, `[n, C]` both. NaN on one side alone is a difference without limit."""
    largest = float(np.nan_to_num(np.abs(differences), nan=np.inf, posinf=np.inf).max())
    scale = float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0))
    return StageDifference(name, network, largest, largest / max(scale, 1e-12), labels)


def _graph_differs(
    engine: CascadeEngine, canaries: Canaries, logits: NDArray[np.float32], ladder: Ladder, clock: Callable[[], float]
) -> tuple[float, int]:
    """The share of canaries that the single graph answers clearly otherwise than the stages, and how many ran.

    Each canary runs alone at the next operating point in turn, for as long as `SECONDS` allow. The first eight also run
    as a batch. Near a threshold or between two classes rounding decides, and that does not count.
    """
    if not engine.can("graph"):
        return 0.0, 0
    assert engine.graph is not None
    engine.graph.load(1)
    combiner, began = _combiner(ladder), clock()
    limits = [np.asarray(point.thresholds, np.float32) for point in ladder.points]
    truths = [replay(logits, combiner, thresholds=thresholds, backbone=ladder.backbone) for thresholds in limits]
    differing: list[bool] = []
    for row in range(len(logits)):
        if row >= LEAST and clock() - began > SECONDS / 2:
            break
        point = row % len(limits)
        inputs = {name: array[row : row + 1] for name, array in canaries.inputs.items()}
        output = engine.run_graph(inputs, limits[point])
        differing += _clearly_other(output, truths[point], limits[point], slice(row, row + 1))
    batch = {name: array[:_CHUNK] for name, array in canaries.inputs.items()}
    if len(logits) >= _CHUNK:
        output = engine.run_graph(batch, limits[-1])
        differing += _clearly_other(output, truths[-1], limits[-1], slice(0, _CHUNK))
    return sum(differing) / len(differing), len(differing)


def _clearly_other(output: Output, truth: Replay, thresholds: NDArray[np.float32], rows: slice) -> list[bool]:
    """Of each row, whether the graph's answer is another one by more than rounding explains."""
    verdicts = []
    answers = zip(output.logits, output.stage, output.score, strict=True)
    expected = zip(truth.stage[rows], truth.prediction[rows], truth.score[rows], strict=True)
    for (log_probs, stage, score), (own_stage, own_label, own_score) in zip(answers, expected, strict=True):
        if stage != own_stage:
            first = min(int(stage), int(own_stage))  # the exit at which they part
            at = own_score if first == own_stage else score
            verdicts.append(not abs(float(at) - float(thresholds[first])) < _NEAR)
            continue
        label = int(log_probs.argmax()) if np.isfinite(log_probs).all() else -1
        top = np.sort(np.exp(log_probs))[-2:]
        tied = label != -1 and len(top) == 2 and top[1] - top[0] < _NEAR
        verdicts.append((label != own_label and not tied) or abs(float(score) - float(own_score)) > 2 * _NEAR)
    return verdicts


def kept_report(folder: Path, name: str, identity: EngineIdentity, limit: float) -> CanaryReport | None:
    """The report that was kept in a bundle's folder for an engine. None where there is none, or it does not read."""
    path = folder / CHECKS / name
    try:
        report = CanaryReport.from_json(unseal(read_json(path, folder, most_bytes=MEASURED_BYTES), f"{CHECKS}/{name}"))
        if (report.identity, report.labels_limit) != (identity, limit):
            raise ValueError(f"it is of {report.identity}, limit {report.labels_limit}")
        return report
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logger.warning("%s does not read (%s). The canaries run again", path, error)
        return None


def keep_report(folder: Path, name: str, report: CanaryReport) -> None:
    """Keep a report for the next load. A folder that cannot be written is said once: reports stay in memory too."""
    try:
        content = seal(report.to_json(), f"{CHECKS}/{name}")
        replace_text(make_room(folder, CHECKS) / name, json.dumps(content, indent=1))
    except OSError as error:
        logger.warning("%s cannot be written (%s). The canaries run again in the next process", folder / CHECKS, error)
