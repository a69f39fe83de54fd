"""Runs inputs through a bundle under a budget, deciding anew for every request."""

import itertools
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from dynamic.bundle import Bundle, names_of
from dynamic.engines.contract import Array, Engine, Output
from dynamic.engines.loop import check_inputs
from dynamic.monitor import Monitor
from dynamic.policies.budget import Budget
from dynamic.policies.budget_policy import BudgetPolicy
from dynamic.policies.decision import Decision, Feedback, Policy
from dynamic.policies.errors import InputError
from dynamic.policies.frontier import Frontier
from dynamic.policies.snapshot import Snapshot
from dynamic.progress import size_of, track
from dynamic.result import Result, Statistics, answers

logger = logging.getLogger("dynamic")


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
    """A bundle at work. Call it with an input; change `budget` at any time, from any thread."""

    def __init__(
        self,
        bundle: Bundle,
        frontier: Frontier,
        engine: Engine,
        budget: Budget,
        monitor: HasLatest,
        policy: Policy,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.bundle, self.frontier, self.engine, self.monitor, self.policy = (
            bundle,
            frontier,
            engine,
            monitor,
            policy,
        )
        self.budget = budget
        self._clock = clock
        self._whole_mb = sum(frontier.costs.memory_mb)
        self._certified = bundle.ladder.certified and bundle.ladder.fingerprint == bundle.fingerprint(
            engine.name, engine.precision
        )
        self._ids = itertools.count()
        self._asked: tuple[Snapshot, Snapshot] | None = None  # the monitor's latest, and the same with the rows asked
        self._lock = threading.Lock()  # of everything below
        self._state = policy.initial()
        self._decision: Decision | None = None
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
        **options: Any,
    ) -> Self:
        """Open the engine (its `options`: threads, idle, device, route), start the monitor, and decide by `policy`.

        Profiles where costs of that engine, and of a `route` that is given, are not at hand.
        Raises EngineError where the engine cannot be had.
        """
        watch = monitor if monitor is not None else Monitor()
        watch.start()  # before the engine: the policy takes the first reading for memory without models
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
            return cls(bundle, bundle.frontier, opened, budget, watch, policy or BudgetPolicy())
        except BaseException:
            watch.close()  # nobody else will
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
        self._observe(decision, snapshot, output, latency_ms, representative=not moved)
        return self._result(output, decision, latency_ms)

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
            )

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
        if known is None or known[0] is not latest or known[1].queue_length != rows:
            known = self._asked = latest, replace(latest, queue_length=rows)
        return known[1]

    def _too_large(self, snapshot: Snapshot, rows: int) -> bool:
        """Whether the single graph would have to be loaded, which holds every backbone, and memory is too short."""
        free_mb = snapshot.memory_available_mb
        return free_mb is not None and free_mb < self._whole_mb and not self.engine.ready(rows)

    def _observe(
        self, decision: Decision, snapshot: Snapshot, output: Output, latency_ms: float, representative: bool
    ) -> None:
        stages = output.stage.tolist()  # [B]
        rows, deepest = len(stages), max(stages)
        feedback = Feedback(
            point=decision.point,
            stage=deepest,
            rows=rows,
            latency_ms=latency_ms,
            expected_ms=self.frontier.path_ms(decision.point, deepest, rows),
            threads=self.engine.threads,
            snapshot=snapshot,
        )
        with self._lock:
            # loading, and the first run after it, happen once and say nothing about how slow the device is
            if representative:
                self._state = self.policy.observe(self._state, feedback)
            self._requests += 1
            self._sure += self._certified and output.complete
            self._latency_ms += latency_ms
            self._points[decision.point.point.name] += 1
            for stage in stages:
                self._stages[stage] += 1

    def _result(self, output: Output, decision: Decision, latency_ms: float) -> Result:
        label, probability = answers(output.logits)
        return Result(
            id=next(self._ids),
            logits=output.logits,
            label=label,
            name=names_of(self.bundle.classes, label.tolist()),
            probability=probability,
            stage=output.stage,
            score=output.score,
            latency_ms=latency_ms,
            decision=decision,
            certified=self._certified and output.complete,
        )
