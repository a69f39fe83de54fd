"""One request from arrival to result: the decision, the engine, and everybody who learns from it."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from dynamic.bundle.input_conversion import named_inputs
from dynamic.engines.contract import Array
from dynamic.policies.budget import Budget
from dynamic.policies.control.feasibility import covered
from dynamic.policies.decision import Decision, Feedback
from dynamic.policies.errors import ClosedError
from dynamic.policies.snapshot import Snapshot
from dynamic.runtime.batch_splitting import most_rows, run_split
from dynamic.runtime.counters import RuntimeCounters
from dynamic.runtime.decisions.decision_log import Announcer
from dynamic.runtime.decisions.device_reading import RequestReading
from dynamic.runtime.deployment import Deployment
from dynamic.runtime.drift.feedback_log import FeedbackLog
from dynamic.runtime.fallback import Answer, SubModelError
from dynamic.runtime.requests.request_queue import CLOSED
from dynamic.runtime.result import Result, answers, names_of

_FEEDING_MS = 1.0  # less is not told to the policy, so that calls of cheap inputs share one snapshot


class RequestHandler:
    """Answers requests, from several threads at once, on the bundle that is at work when they begin.

    `waiting()`: how many requests wait; `servers`: how many that were submitted are served at once. `lock`: of tally
    and answers, and of what changes in a serving. It is reentrant, since a signal handler may run a request while its
    own thread is in one. `inside`: threads that are in this runtime's code, once for each call.
    """

    serving: Deployment
    budget: Budget

    def __init__(
        self,
        read: RequestReading,
        announce: Announcer,
        tally: RuntimeCounters,
        book: FeedbackLog,
        waiting: Callable[[], int],
        servers: int,
        clock: Callable[[], float],
    ) -> None:
        self._read, self._announce, self._clock = read, announce, clock
        self._waiting, self._servers = waiting, servers
        self.tally, self.book = tally, book
        self.closed = False
        self.forget()

    def forget(self) -> None:
        """A lock that the parent held, perhaps, is no lock in a forked child."""
        self.lock = threading.RLock()
        # the thread that forks is the only one in a child
        self.inside: list[int] = [thread for thread in getattr(self, "inside", ()) if thread == threading.get_ident()]

    @contextmanager
    def held(self) -> Iterator[None]:
        """The lock, with this thread among those `inside`."""
        thread = threading.get_ident()
        self.inside.append(thread)
        try:
            with self.lock:
                yield
        finally:
            self.inside.remove(thread)

    def check_open(self) -> None:
        """Raises ClosedError where no request is taken any more."""
        if self.closed:
            raise ClosedError(CLOSED)

    def __call__(self, x: Any, came: float | None = None) -> Result:
        """Answer an input that came at `came` and has waited for its turn since; None: it comes now."""
        began = self._clock()
        servers = None if came is None else self._servers
        if came is None:
            self.check_open()
            came = began
        thread = threading.get_ident()
        self.inside.append(thread)
        try:
            serving = self._enter(thread)
            try:
                return self._answer(serving, x, came, began, servers)
            finally:
                serving.leave(thread)
        finally:
            self.inside.remove(thread)

    def _enter(self, thread: int) -> Deployment:
        """The serving at work, entered. Raises ClosedError where there is none any more."""
        while True:
            serving = self.serving
            if serving.enter(thread):
                return serving
            serving.leave(thread)
            if serving is self.serving:  # else a swap has put another in its place
                raise ClosedError(CLOSED)

    def _answer(self, serving: Deployment, x: Any, came: float, began: float, servers: int | None) -> Result:
        inputs = named_inputs(serving.bundle, x)
        rows = len(next(iter(inputs.values())))
        serving.rows[rows > 1] = rows  # what a swap loads before the exchange
        budget = self.budget
        waited_ms, feeding_ms = (began - came) * 1e3, (self._clock() - began) * 1e3
        if feeding_ms > _FEEDING_MS:  # preprocessing is no work of the engine, but time that has passed
            waited_ms += feeding_ms
        snapshot = self._read(rows, waited_ms, self._waiting(), servers)
        if serving.unchecked is not None:  # after the first reading, which is of memory without networks
            serving.check()
        ends_s = None if budget.deadline_ms is None else came + budget.deadline_ms / 1e3
        whole = False
        while True:
            decision = self._decide(serving, budget, snapshot)
            stagewise = serving.stagewise(decision, ends_s is not None, snapshot, rows)
            expected_s = None if ends_s is None else serving.expected_s(decision, rows)
            starts = self._clock()  # what comes before is the same however slow the engine is
            try:
                run = partial(
                    serving.engines.run,
                    point=decision.point,
                    resident=decision.keep_loaded,
                    stagewise=stagewise,
                    ends_s=ends_s,
                    expected_s=expected_s,
                    whole=whole,
                )
                most = rows if rows == 1 else self._most_rows(serving, decision, budget, snapshot)
                answer = run(inputs, rows) if rows <= most else run_split(run, inputs, rows, most)
                break
            except SubModelError as error:
                with self.lock:
                    whole = not serving.exclude_backbones(error.backbones)
        work_ms = (self._clock() - starts) * 1e3
        return self._result(serving, budget, decision, snapshot, answer, work_ms, came, began, inputs, x)

    def _most_rows(self, serving: Deployment, decision: Decision, budget: Budget, snapshot: Snapshot) -> int:
        costs, point, first = serving.frontier.costs, decision.point, self._read.first
        before_mb = None if first is None else first.memory_process_mb  # without networks
        return most_rows(costs, point.operating_point.backbones, budget, snapshot, before_mb)

    def _decide(self, serving: Deployment, budget: Budget, snapshot: Snapshot) -> Decision:
        with self.lock:
            if serving.lost:
                serving.restore_excluded()
            decision = serving.guard.decide(serving.frontier, budget, snapshot)
            last = serving.decision
            if decision.one_request_only and last is not None:  # for this request alone: what runs stays what it was
                return decision
            serving.decision = decision
            changed = last is not None and last.point is not decision.point
            self.tally.changes += changed
        if last is None or changed:
            self._announce(None if last is None else last.point, decision, snapshot)
        return decision

    def _result(
        self,
        serving: Deployment,
        budget: Budget,
        decision: Decision,
        snapshot: Snapshot,
        answer: Answer,
        work_ms: float,
        came: float,
        began: float,
        inputs: Mapping[str, Array],
        x: Any,
    ) -> Result:
        """The result, once everybody who learns from it has."""
        ended = self._clock()
        latency_ms, waited_ms = (ended - came) * 1e3, (began - came) * 1e3
        output, point = answer.output, decision.point
        # of several engines, one that was not calibrated decides
        engine = next((engine for engine in answer.engines if not serving.calibrated(engine)), answer.engine)
        stages = answer.stages  # [B]
        rows, deepest, of = len(stages), max(stages), len(serving.bundle.spec.stages)
        label, probability = answers(output.logits, answer.is_answered or None)
        labels = label.tolist()
        # loading, and the first run after it, happen once and say nothing about how slow the device is; nor does an
        # engine or a way that was not profiled
        usual = answer.usual and not answer.moved
        read = serving.bundle.preprocess is not None and not isinstance(x, Mapping)  # from pixels, which are finite
        expected_ms = serving.frontier.path_ms(point, deepest, rows) if usual else 0.0
        with self.lock:
            drift, drifts = serving.drift(engine, point, stages, output, inputs, x)
            if drifts or not answer.moved:
                feedback = Feedback(point, deepest, rows, work_ms, expected_ms, engine.threads, snapshot, drift)
                serving.last_feedback = feedback
                serving.guard.observe(feedback)
            certified = (
                output.complete
                and answer.is_answered
                and not answer.ignores_deadline
                and not drift
                and serving.certified(engine)
                and covered(point.operating_point, budget)
                and (read or serving.covers(inputs))
            )
            self.tally.enter(point.name, stages, of, certified, output.complete, latency_ms, waited_ms)
            number = self.book.enter(labels, point.operating_point)
        if drifts:
            serving.watch.warn(budget.on_drift)
        return Result(
            id=number,
            logits=output.logits,
            label=label,
            name=names_of(serving.bundle.classes, labels),
            probability=probability,
            stage=output.stage,
            score=output.score,
            latency_ms=latency_ms,
            decision=decision,
            certified=certified,
            waited_ms=waited_ms,
        )
