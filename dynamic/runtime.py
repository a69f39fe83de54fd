"""Runs inputs through a bundle under a budget, deciding anew for every request."""

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from dynamic.bundle import Bundle, names_of
from dynamic.engines.contract import Array, Engine, Output
from dynamic.engines.loop import check_inputs
from dynamic.labels import AnswerBook, Label
from dynamic.monitor import Monitor
from dynamic.policies.budget import Budget
from dynamic.policies.budget_policy import BudgetPolicy
from dynamic.policies.decision import Decision, Feedback, Policy
from dynamic.policies.drift import DriftTest
from dynamic.policies.errors import BudgetError, InputError
from dynamic.policies.frontier import Frontier, FrontierPoint
from dynamic.policies.snapshot import Snapshot
from dynamic.progress import size_of, track
from dynamic.result import Result, Statistics, answers

logger = logging.getLogger("dynamic")

# Of a batch, that are tested for drift: a large one must not pay for each. Where a row stands says nothing of what it
# holds, so the first are as good as any, and rows that are left out take nothing from what the test promises.
TESTED = 8


class HasLatest(Protocol):
    """What a runtime needs of a monitor."""

    @property
    def latest(self) -> Snapshot:
        """The newest snapshot; reading it must not block."""

    def start(self) -> Any:
        """Begin to refresh."""

    def close(self) -> None:
        """Stop refreshing."""


class Runtime:
    """A bundle at work. Call it with an input; change `budget` at any time, from any thread.

    Unless `drift_alpha` is None, inputs are watched, by their score at the first exit that is evaluated: no labels are
    needed. Where they no longer look like those of the calibration, a warning is logged, results are not certified any
    more, and the budget's `on_drift` says what runs from then on; `restart_drift` starts anew. While inputs are
    independent and like those of the calibration, the probability of a false alarm is at most `drift_alpha`, on a
    stream of any length; with a restart after each, false alarms are 1 / `drift_alpha` inputs or more apart on average.
    **Correlated inputs void that**: frames of a video, bursts, images sorted by class. Inputs are not watched where the
    ladder does not know how calibration inputs scored, or was measured on another engine or precision.
    """

    def __init__(
        self,
        bundle: Bundle,
        frontier: Frontier,
        engine: Engine,
        budget: Budget,
        monitor: HasLatest,
        policy: Policy,
        clock: Callable[[], float] = time.perf_counter,
        drift_alpha: float | None = 0.01,
    ) -> None:
        self.bundle, self.frontier, self.engine, self.monitor, self.policy = (
            bundle,
            frontier,
            engine,
            monitor,
            policy,
        )
        self.budget = budget  # checked by the setter
        self._clock = clock
        self._whole_mb = sum(frontier.costs.memory_mb)
        same = bundle.ladder.fingerprint == bundle.fingerprint(engine.name, engine.precision)
        self._certified = bundle.ladder.certified and same
        watched = drift_alpha is not None and same
        self._asked: tuple[Snapshot, Snapshot] | None = None  # the monitor's latest, and the same with the rows asked
        self._lock = threading.Lock()  # of everything below
        self._state = policy.initial()
        self._decision: Decision | None = None
        self._test = DriftTest(bundle.ladder.scores if watched else (), 0.01 if drift_alpha is None else drift_alpha)
        if watched and bundle.ladder.scores and not self._test.watching:
            logger.warning(
                "inputs are not watched for drift: under score %r all score alike at their first exit",
                bundle.ladder.score,
            )
        self._entrances: dict[FrontierPoint, tuple[int, float]] = {}  # see `_entrance`
        self._told: Feedback | None = None  # what the policy observed last
        self._answers = AnswerBook(bundle.spec.classes, bundle.classes)
        self._requests = self._changes = self._sure = 0
        self._stages = [0] * len(bundle.spec.stages)  # [S], inputs that left at each
        self._points: Counter[str] = Counter()
        self._latency_ms = 0.0

    @classmethod
    def of(
        cls,
        bundle: Bundle,
        budget: Budget,
        engine: str | None = None,
        monitor: HasLatest | None = None,
        policy: Policy | None = None,
        drift_alpha: float | None = 0.01,
        **options: Any,
    ) -> Self:
        """Open the engine (its `options`: threads, idle, device, route), start the monitor, and decide by `policy`.

        Profiles where costs of that engine, and of a `route` that is given, are not at hand. `drift_alpha`: see the
        class. Raises EngineError where the engine cannot be had, BudgetError where `drift_alpha` is not in (0, 1).
        """
        watch = monitor if monitor is not None else Monitor()
        watch.start()  # before the engine: the policy takes the first reading for memory without models
        opened = None
        try:
            opened = bundle.open(engine, **options)
            how = (opened.name, opened.precision, opened.threads)
            route = options.get("route")
            costs = bundle.costs_on(*how, route)
            if costs is None:
                logger.info("no costs of %s, %s, %d threads here: profiling", *how)
                costs = bundle.profile(engine=opened.name, **options).costs
                assert costs is not None
            bundle = replace(bundle, costs=costs, forced=route)
            if costs.route:  # it was opened before they were known
                opened.follow(costs.batch, costs.route)
            return cls(
                bundle, bundle.frontier, opened, budget, watch, policy or BudgetPolicy(), drift_alpha=drift_alpha
            )
        except BaseException:
            watch.close()  # nobody else will
            if opened is not None:
                opened.close()
            raise

    def __call__(self, x: Any) -> Result:
        """Answer one input or a batch, as the bundle's preprocessing expects it.

        Raises InputError on a wrong shape or dtype, EngineError when the engine fails.
        """
        began = self._clock()
        inputs = self._inputs(x)
        budget = self.budget
        rows = len(next(iter(inputs.values())))
        decision, snapshot = self._decide(budget, rows)
        point = decision.point
        managed = budget.memory_mb is not None
        stagewise = managed or budget.deadline_ms is not None or self._too_large(snapshot, rows)
        moved = self.engine.prepare(point.backbones, rows, managed, stagewise)
        deadline_s = None if budget.deadline_ms is None else budget.deadline_ms / 1e3 - (self._clock() - began)
        output = self.engine.run(inputs, point.thresholds, deadline_s, stagewise)
        latency_ms = (self._clock() - began) * 1e3
        return self._result(decision, snapshot, output, latency_ms, representative=not moved)

    @property
    def budget(self) -> Budget:
        """The limits that the next request is decided under; to be set at any time, from any thread.

        Setting anything else raises BudgetError.
        """
        return self._budget

    @budget.setter
    def budget(self, budget: Budget) -> None:
        if not isinstance(budget, Budget):
            raise BudgetError(f"budget={budget!r} must be a dynamic.Budget, such as Budget(latency_ms=20)")
        self._budget = budget

    def map(self, items: Iterable[Any], progress: bool | None = None) -> Iterator[Result]:
        """Answer one item after another, with a progress bar on a terminal."""
        for item in track(items, "inference", size_of(items), progress):
            yield self(item)

    def stats(self) -> Statistics:
        """What has been done so far."""
        with self._lock:
            inputs = sum(self._stages)
            return Statistics(
                requests=self._requests,
                inputs=inputs,
                stage_shares=tuple(count / max(inputs, 1) for count in self._stages),
                point_shares={name: n / max(self._requests, 1) for name, n in self._points.items()},
                decision_changes=self._changes,
                certified_share=self._sure / max(self._requests, 1),
                mean_latency_ms=self._latency_ms / max(self._requests, 1),
                drift=self._test.alarm if self._test.watching else None,
                feedback=self._answers.estimate(),
            )

    def feedback(self, result_id: int, label: Label | Iterable[Label]) -> None:
        """Hand in the true label of the result with this `id`, from any thread: `stats` then estimates accuracy.

        `label`: a class's number, or its name where the bundle has names; for a batch `[B]` of them. The answers of the
        latest 10,000 results are kept. Raises InputError where the result is unknown, too old, or has its label already
        (it counts once, and the first label stands); where there are more labels than rows or fewer; and on a label
        that is no class. Nothing is counted then.
        """
        with self._lock:
            self._answers.feedback(result_id, label)

    def restart_drift(self) -> None:
        """Watch inputs anew, after an alarm or before one: the next request is decided as if there had been none.

        Inputs seen so far count as known: what comes is compared with them too. So inputs that have changed for good
        alarm less and less, and are as little covered by the certificate as before: calibrate again with such inputs.
        """
        with self._lock:
            self._test.restart()
            if self._told is not None and self._told.drift:
                self._told = replace(self._told, drift=False, expected_ms=0.0)
                self._state = self.policy.observe(self._state, self._told)

    def close(self) -> None:
        """Stop the monitor and give the engine's memory back."""
        self.monitor.close()
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _inputs(self, x: Any) -> Mapping[str, Array]:
        spec = self.bundle.spec.inputs
        if isinstance(x, Mapping):
            named = {name: np.asarray(value) for name, value in x.items()}
            check_inputs(named, spec)
            return named
        if self.bundle.preprocess is not None:
            return {spec[0].name: self.bundle.preprocess(x)}
        if isinstance(x, tuple):
            if len(x) != len(spec):
                raise InputError(f"{len(x)} inputs given; this cascade takes {[i.name for i in spec]}")
            return {i.name: np.asarray(value) for i, value in zip(spec, x, strict=True)}
        array = np.atleast_1d(np.asarray(x))
        return {spec[0].name: array[None] if array.ndim == len(spec[0].shape) else array}

    def _decide(self, budget: Budget, rows: int) -> tuple[Decision, Snapshot]:
        snapshot = self._snapshot(rows)
        with self._lock:
            decision, self._state = self.policy.decide(self.frontier, budget, snapshot, self._state)
            last, self._decision = self._decision, decision
            changed = last is not None and last.point is not decision.point
            self._changes += changed
        if last is None or changed:
            logger.info("decision %s: %s", decision.point.point.name, decision.reason)
        return decision, snapshot

    def _snapshot(self, rows: int) -> Snapshot:
        """The monitor's latest with `rows` waiting; the same object until one of the two changes."""
        latest, known = self.monitor.latest, self._asked
        if known is None or known[0] is not latest or known[1].rows != rows:
            known = self._asked = latest, replace(latest, rows=rows)
        return known[1]

    def _too_large(self, snapshot: Snapshot, rows: int) -> bool:
        """Whether the single graph would have to be loaded, which holds every backbone, and memory is too short."""
        free_mb = snapshot.memory_available_mb
        return free_mb is not None and free_mb < self._whole_mb and not self.engine.ready(rows)

    def _result(
        self, decision: Decision, snapshot: Snapshot, output: Output, latency_ms: float, representative: bool
    ) -> Result:
        """The result, once everybody who learns from it has."""
        point, stages = decision.point, output.stage.tolist()  # [B]
        rows, deepest = len(stages), max(stages)
        label, probability = answers(output.logits)
        labels = label.tolist()
        # loading, and the first run after it, happen once and say nothing about how slow the device is
        expected_ms = self.frontier.path_ms(point, deepest, rows) if representative else 0.0
        with self._lock:
            drift, drifts = self._watch(point, stages, output)
            if representative or drifts:
                self._told = Feedback(
                    point, deepest, rows, latency_ms, expected_ms, self.engine.threads, snapshot, drift
                )
                self._state = self.policy.observe(self._state, self._told)
            certified = self._certified and output.complete and point.point.bound is not None and not drift
            self._requests += 1
            self._sure += certified
            self._latency_ms += latency_ms
            self._points[point.point.name] += 1
            for stage in stages:
                self._stages[stage] += 1
            number = self._answers.enter(labels, point.point)
        if drifts:
            self._warn()
        return Result(
            id=number,
            logits=output.logits,
            label=label,
            name=names_of(self.bundle.classes, labels),
            probability=probability,
            stage=output.stage,
            score=output.score,
            latency_ms=latency_ms,
            decision=decision,
            certified=certified,
        )

    def _watch(self, point: FrontierPoint, stages: Sequence[int], output: Output) -> tuple[bool, bool]:
        """Test what these rows scored: whether inputs have drifted, and whether these rows are the first to say so."""
        test = self._test
        if test.alarm or not test.watching:
            return test.alarm, False
        entrance = self._entrances.get(point)
        if entrance is None:
            entrance = self._entrances[point] = _entrance(point)
        first, threshold = entrance
        for row, score in enumerate(output.score[:TESTED].tolist()):
            # a row that a deadline cut at its first exit has a score there below the threshold, as one that went on
            test.observe(first, threshold, stages[row], score)
        return test.alarm, test.alarm

    def _warn(self) -> None:
        test, on_drift = self._test, self.budget.on_drift
        logger.warning(
            "inputs no longer look like those of the calibration (nor do repeated or sorted ones): noticed after %d, a "
            "false alarm with probability at most %g; results are not certified from now on, and %s",
            test.inputs,
            test.alpha,
            "the safest point that the budget allows runs (on_drift='safest')"
            if on_drift == "safest"
            else f"decisions stay as they are (on_drift={on_drift!r})",
        )


def _entrance(point: FrontierPoint) -> tuple[int, float]:
    """The first stage whose exit is evaluated, and its threshold; -inf where it is the last."""
    first = point.plan.on.index(True)
    return first, float(point.thresholds[first]) if first < len(point.thresholds) else -math.inf
