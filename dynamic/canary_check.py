"""Whether an engine on this machine answers as it did in calibration: the canaries, run once and compared.

What counts is not how far logits are off but what that does. The differences that were seen on canaries are added to
the calibration records, one canary's to each record in turn. Every operating point is replayed with and without them.
The share of records that get another label bounds what accuracy can lose. It may be a tenth of the smallest certified
drop. The share that gets another exit says how far costs are off. It may be one in a hundred.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamic.canaries import LEAST, Canaries
from dynamic.engines.switching import CascadeEngine
from dynamic.fingerprint import EngineIdentity
from dynamic.policies.errors import EngineError
from dynamic.policies.ladder import Ladder
from dynamic.policies.records import Records
from dynamic.policies.replay import replay
from dynamic.policies.scores import Combiner
from dynamic.progress import track
from dynamic.writing import write_atomically

CHECKS = "checks"  # of a bundle's folder: one file for each engine and machine
SECONDS = 3.0  # of canaries and single graph together, once `LEAST` canaries are done
EXITS_LIMIT = 0.01
_DROP_SHARE = 10  # labels may differ for a tenth of the smallest certified drop
_UNCERTIFIED_LIMIT = 0.001  # of labels, where the ladder certifies no drop above 0
_GRAPH_LIMIT = 0.02  # of single inputs that the single graph answers otherwise than the stages: rounding moves a few
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
        agrees: whether answers may be called certified here.
        count: canaries that ran.
        source: see `dynamic.canaries.Canaries`.
        stages: one entry a stage, in order. Empty where the engine failed.
        labels_moved: largest share of calibration records, over the operating points, that get another label.
        labels_limit: the share up to which the engine agrees.
        exits_moved: the same for exits, whose limit is `EXITS_LIMIT`.
        graph_differs: share of canaries that the single graph answers otherwise than the stages do.
        problem: why the canaries could not run, or None.
    """

    identity: EngineIdentity
    agrees: bool
    count: int
    source: str
    stages: tuple[StageDifference, ...]
    labels_moved: float
    labels_limit: float
    exits_moved: float
    graph_differs: float
    problem: str | None = None

    @property
    def worst(self) -> StageDifference | None:
        """The stage with the largest difference, as a share of its largest logit."""
        return max(self.stages, key=lambda stage: stage.share, default=None)

    def __str__(self) -> str:
        worst = self.worst
        if worst is None:
            return f"canaries did not run: {self.problem}"
        weak = " (noise, which can miss a difference)" if self.source == "noise" else ""
        graph = f", the single graph differs for {self.graph_differs:.1%} of canaries" if self.graph_differs else ""
        return (
            f"{self.count} canaries{weak} {'agree' if self.agrees else 'differ'}: stage {worst.stage!r} of network "
            f"{worst.network} by {worst.logits:.3g} ({worst.share:.2%} of its largest logit). That moves "
            f"{self.labels_moved:.2%} of labels (limit {self.labels_limit:.2%}) and {self.exits_moved:.2%} of exits "
            f"(limit {EXITS_LIMIT:.0%}){graph}"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "CanaryReport":
        """What `to_json` gave. Raises KeyError, TypeError or ValueError on anything else."""
        report = cls(
            **{
                **data,
                "identity": EngineIdentity.from_json(data["identity"]),
                "stages": tuple(StageDifference(**stage) for stage in data["stages"]),
            }
        )
        if not isinstance(report.agrees, bool):
            raise TypeError(f"agrees={report.agrees!r} must be true or false")
        return report


def run_canaries(
    engine: CascadeEngine, canaries: Canaries, progress: bool | None, clock: Callable[[], float] = time.perf_counter
) -> NDArray[np.float32]:
    """Logits `[n, S, C]` of the first n canaries: all of them, or as many as `SECONDS` allow, at least `LEAST`."""
    engine.load(engine.spec.backbones)  # compiling takes longer than running: it is not counted
    began, parts = clock(), []
    for start in track(range(0, len(canaries), _CHUNK), "canaries", None, progress):
        if start >= LEAST and clock() - began > SECONDS / 2:
            break
        parts.append(engine.all_logits({k: a[start : start + _CHUNK] for k, a in canaries.inputs.items()}))
    return np.concatenate(parts)


def check_canaries(
    engine: CascadeEngine,
    canaries: Canaries,
    records: Records,
    ladder: Ladder,
    progress: bool | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> CanaryReport:
    """Run the canaries on an open engine and compare. What that loads is unloaded again.

    Args:
        engine: the engine, on which the ladder was calibrated or another.
        canaries: of the bundle.
        records: of the calibration, whose labels and exits a difference moves.
        ladder: its operating points.
        progress: a progress bar on stderr. None: where that is a terminal.
        clock: seconds.

    Returns:
        The report. An engine that fails gives one with `problem`, and does not agree.
    """
    identity = EngineIdentity.of(engine)
    limit = labels_limit(ladder)
    try:
        logits = run_canaries(engine, canaries, progress, clock)
        graph_differs = _graph_differs(engine, canaries, logits, ladder, clock)
    except (EngineError, MemoryError) as error:
        return CanaryReport(identity, False, 0, canaries.source, (), 1.0, limit, 1.0, 1.0, str(error))
    finally:
        engine.close()
    expected = canaries.logits[: len(logits)]
    same = (logits == expected) | (np.isnan(logits) & np.isnan(expected))
    differences = np.where(same, np.float32(0), logits - expected)
    other = logits.argmax(2) != expected.argmax(2)  # [n, S]
    stages = tuple(
        _difference(differences[:, s], expected[:, s], float(other[:, s].mean()), name, ladder.backbone[s])
        for s, name in enumerate(ladder.stage_names)
    )
    labels, exits = moved(records.logits, differences, ladder)
    agrees = labels <= limit and exits <= EXITS_LIMIT and graph_differs <= _GRAPH_LIMIT
    count, source = len(logits), canaries.source
    return CanaryReport(identity, agrees, count, source, stages, labels, limit, exits, graph_differs)


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
        before, after = (replay(some, combiner, point.thresholds, ladder.backbone) for some in (records, other))
        labels = max(labels, float((before.prediction != after.prediction).mean()))
        exits = max(exits, float((before.stage != after.stage).mean()))
    return labels, exits


def _combiner(ladder: Ladder) -> Combiner:
    return Combiner(ladder.temperature, ladder.score, ladder.combine, ladder.backbone)


def _difference(
    differences: NDArray[np.float32], expected: NDArray[np.float32], labels: float, name: str, network: int
) -> StageDifference:
    """Of one stage, `[n, C]` both. NaN on one side alone is a difference without limit."""
    largest = float(np.nan_to_num(np.abs(differences), nan=np.inf, posinf=np.inf).max())
    scale = float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0))
    return StageDifference(name, network, largest, largest / max(scale, 1e-12), labels)


def _graph_differs(
    engine: CascadeEngine, canaries: Canaries, logits: NDArray[np.float32], ladder: Ladder, clock: Callable[[], float]
) -> float:
    """The share of single canaries whose label or exit in the single graph is not that of the stages.

    Each canary runs at the next operating point in turn, for as long as `SECONDS` allow.
    """
    if not engine.can("graph"):
        return 0.0
    assert engine.graph is not None
    engine.graph.load(1)
    combiner, began = _combiner(ladder), clock()
    truths = [replay(logits, combiner, p.thresholds, ladder.backbone) for p in ladder.points]
    differing = runs = 0
    for row in range(len(logits)):
        if runs >= LEAST and clock() - began > SECONDS / 2:
            break
        point, truth = ladder.points[row % len(truths)], truths[row % len(truths)]
        inputs = {name: array[row : row + 1] for name, array in canaries.inputs.items()}
        output = engine.run_graph(inputs, np.asarray(point.thresholds, np.float32))
        label = int(output.logits[0].argmax()) if np.isfinite(output.logits).all() else -1
        differing += (label, int(output.stage[0])) != (int(truth.prediction[row]), int(truth.stage[row]))
        runs += 1
    return differing / max(runs, 1)


def kept_report(folder: Path, name: str) -> CanaryReport | None:
    """The report that was kept in a bundle's folder. None where there is none, or it does not read."""
    path = folder / CHECKS / name
    try:
        return CanaryReport.from_json(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        logger.warning("%s does not read (%s). The canaries run again", path, error)
        return None


def keep_report(folder: Path, name: str, report: CanaryReport) -> None:
    """Keep a report for the next load. A folder that cannot be written is said once: reports stay in memory too."""
    try:
        (folder / CHECKS).mkdir(exist_ok=True)
        write_atomically(folder / CHECKS / name, json.dumps(report.to_json(), indent=1))
    except OSError as error:
        logger.warning("%s cannot be written (%s). The canaries run again in the next process", folder / CHECKS, error)
