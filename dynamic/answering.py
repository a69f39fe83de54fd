"""One request from arrival to result: the decision, the engine, and everybody who learns from it."""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from dynamic.bundle import names_of
from dynamic.changes import Announcer
from dynamic.failover import Answer, SubModelError
from dynamic.feeding import named_inputs
from dynamic.labels import AnswerBook
from dynamic.policies.budget import Budget
from dynamic.policies.decision import Decision, Feedback
from dynamic.policies.errors import ClosedError
from dynamic.policies.snapshot import Snapshot
from dynamic.reading import RequestReading
from dynamic.result import Result, answers
from dynamic.serving import Serving
from dynamic.splitting import most_rows, run_split
from dynamic.tally import Tally

_FEEDING_MS = 1.0  # less is not told to the policy, so that calls of cheap inputs share one snapshot


class Answering:
    """Answers requests, from several threads at once, on the bundle that is at work when they begin.

    `waiting()`: how many requests wait; `servers`: how many that were submitted are served at once. `lock`: of tally
    and answers, and of what changes in a serving.
    """

    serving: Serving
    budget: Budget

    def __init__(
        self,
        read: RequestReading,
        announce: Announcer,
        tally: Tally,
        book: AnswerBook,
        waiting: Callable[[], int],
        servers: int,
        clock: Callable[[], float],
    ) -> None:
        self._read, self._announce, self._clock = read, announce, clock
        self._waiting, self._servers = waiting, servers
        self.tally, self.book = tally, book
        self.closed = False
        self.before_mb: float | None = None  # memory of this process without networks
        self.forget()

    def forget(self) -> None:
        """A lock that the parent held, perhaps, is no lock in a forked child."""
        self.lock = threading.Lock()

    def check_open(self) -> None:
        """Raises ClosedError where no request is taken any more."""
        if self.closed:
            raise ClosedError("this runtime is closed: open another with bundle.runtime(...)")

    def __call__(self, x: Any, came: float | None = None) -> Result:
        """Answer an input that came at `came` and has waited for its turn since; None: it comes now."""
        began = self._clock()
        servers = None if came is None else self._servers
        if came is None:
            self.check_open()
            came = began
        with self.lock:
            serving = self.serving
            serving.users += 1
        try:
            return self._answer(serving, x, came, began, servers)
        finally:
            with self.lock:
                serving.users -= 1
                last = serving.idle
            if last:
                serving.engines.close()

    def _answer(self, serving: Serving, x: Any, came: float, began: float, servers: int | None) -> Result:
        inputs = named_inputs(serving.bundle, x)
        rows = len(next(iter(inputs.values())))
        budget = self.budget
        waited_ms, feeding_ms = (began - came) * 1e3, (self._clock() - began) * 1e3
        if feeding_ms > _FEEDING_MS:  # preprocessing is no work of the engine, but time that has passed
            waited_ms += feeding_ms
        snapshot = self._read(rows, waited_ms, self._waiting(), servers)
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
                    resident=decision.resident,
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
                    whole = not serving.lose(error.backbones)
        work_ms = (self._clock() - starts) * 1e3
        return self._result(serving, decision, snapshot, answer, work_ms, came, began)

    def _most_rows(self, serving: Serving, decision: Decision, budget: Budget, snapshot: Snapshot) -> int:
        costs, point = serving.frontier.costs, decision.point
        return most_rows(costs, point.point.backbones, budget, snapshot, self.before_mb)

    def _decide(self, serving: Serving, budget: Budget, snapshot: Snapshot) -> Decision:
        with self.lock:
            if serving.lost:
                serving.look_again()
            decision = serving.guard.decide(serving.frontier, budget, snapshot)
            last = serving.decision
            if decision.passing and last is not None:  # for this request alone: what runs stays what it was
                return decision
            serving.decision = decision
            changed = last is not None and last.point is not decision.point
            self.tally.changes += changed
        if last is None or changed:
            self._announce(None if last is None else last.point, decision, snapshot)
        return decision

    def _result(
        self,
        serving: Serving,
        decision: Decision,
        snapshot: Snapshot,
        answer: Answer,
        work_ms: float,
        came: float,
        began: float,
    ) -> Result:
        """The result, once everybody who learns from it has."""
        ended = self._clock()
        latency_ms, waited_ms = (ended - came) * 1e3, (began - came) * 1e3
        output, engine, point = answer.output, answer.engine, decision.point
        stages = output.stage.tolist()  # [B]
        rows, deepest, of = len(stages), max(stages), len(serving.bundle.spec.stages)
        label, probability = answers(output.logits)
        labels = label.tolist()
        # loading, and the first run after it, happen once and say nothing about how slow the device is; nor does an
        # engine or a way that was not profiled
        usual = answer.usual and not answer.moved
        expected_ms = serving.frontier.path_ms(point, deepest, rows) if usual else 0.0
        with self.lock:
            drift, drifts = serving.drift(engine, point, stages, output)
            if drifts or not answer.moved:
                told = Feedback(point, deepest, rows, work_ms, expected_ms, engine.threads, snapshot, drift)
                serving.told = told
                serving.guard.observe(told)
            certified = output.complete and not drift and point.point.bound is not None and serving.certified(engine)
            self.tally.enter(point.point.name, stages, of, certified, output.complete, latency_ms, waited_ms)
            number = self.book.enter(labels, point.point)
        if drifts:
            serving.watch.warn(self.budget.on_drift)
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
