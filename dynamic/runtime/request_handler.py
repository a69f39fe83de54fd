"""One request from arrival to result: it decides, runs and learns.

The short way comes first: while nothing has changed since the last decision (see `RequestPlan`), a request checks its
input, calls the engine, appends one observation and returns. Everything else goes the long way, under the lock where
it changes something.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import count
from typing import Any

import numpy as np

from dynamic.bundle.input_conversion import named_inputs
from dynamic.engines.contract import Array
from dynamic.engines.memory import own_buffers
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
from dynamic.runtime.request_plan import MOST_OBSERVATIONS, Conditions, Observation, RequestPlan
from dynamic.runtime.requests.request_queue import CLOSED
from dynamic.runtime.result import BatchResult, Prediction, Result, answers

_MOST_WAITING_FACTOR = 8  # times what may wait to be learned from: then a thread decides although another does
_CONVERSION_MS = 1.0  # conversion of inputs that takes less is no wait for the policy: such requests share one snapshot


class RequestHandler:
    """Answers requests, from several threads at once, on the deployment at work when they begin.

    `plan`: what requests repeat, None where the next one decides. `lock`: of counters, feedback and observations, and
    of what changes in a deployment. It is reentrant, since a signal handler may run a request while its own thread is
    in one. `inside`: threads that are in this runtime's code, once for each call.

    Args:
        read: Reads the monitor.
        announce: Logs changes of the decision.
        counters: Counts requests.
        feedback_log: Keeps answers until their labels come.
        waiting: Gives how many requests wait.
        servers: How many requests that were submitted are answered at once.
        clock: Seconds.
    """

    deployment: Deployment
    budget: Budget

    def __init__(
        self,
        read: RequestReading,
        announce: Announcer,
        counters: RuntimeCounters,
        feedback_log: FeedbackLog,
        waiting: Callable[[], int],
        servers: int,
        clock: Callable[[], float],
    ) -> None:
        self._read, self._announce, self._clock = read, announce, clock
        self._waiting, self._servers = waiting, servers
        self.counters, self.feedback_log = counters, feedback_log
        self.closed = False
        self.plan: RequestPlan | None = None
        self.deciding_thread: int | None = None  # the thread that decides again, while others repeat what was decided
        self._is_due = False  # whether the next request decides again
        self.observations: list[Observation] = []  # that the policy has not seen: appended without a lock
        self._ids = count()
        self._learns = False
        self.forget()

    def forget(self) -> None:
        """A lock that the parent held, perhaps, is no lock in a forked child."""
        self.lock = threading.RLock()
        self._learns, self.deciding_thread = False, None
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

    @contextmanager
    def learned(self) -> Iterator[None]:
        """`held`, once every observation has been learned from. An alarm is logged when the lock is free again."""
        alarmed = None
        try:
            with self.held():
                alarmed = self.learn()
                yield
        finally:
            self._warn(alarmed)

    def check_open(self) -> None:
        """Raises ClosedError where no request is taken any more."""
        if self.closed:
            raise ClosedError(CLOSED)

    def __call__(self, x: Any, came: float | None = None) -> Result:
        """Answer an input that came at `came` and has waited for its turn since. None: it comes now."""
        began = self._clock()
        thread = threading.get_ident()
        self.inside.append(thread)
        try:
            alone = self.inside.count(thread) == 1  # else a signal handler is in the middle of a request of its thread
            plan = self.plan
            if alone and plan is not None and came is None and plan.budget is self.budget and not self.closed:
                result = self._repeat(plan, x, began, thread)
                if result is not None:
                    return result
            if came is None:
                self.check_open()
            deployment = self._enter(thread)
            try:
                with nullcontext() if alone else own_buffers():
                    return self._answer(deployment, x, came, began)
            finally:
                deployment.leave(thread)
        finally:
            if self.deciding_thread == thread:
                self.deciding_thread = None
            self.inside.remove(thread)  # in a child that was forked meanwhile it is another list

    def _repeat(self, plan: RequestPlan, x: Any, began: float, thread: int) -> Result | None:
        """The answer under a plan. None where it does not hold for this request, which then goes the long way."""
        deployment, observations = plan.deployment, self.observations
        count = len(observations)
        is_due = self._is_due or self._read.latest is not plan.latest or count >= MOST_OBSERVATIONS
        if is_due and (self.deciding_thread is None or count >= _MOST_WAITING_FACTOR * MOST_OBSERVATIONS):
            self.deciding_thread = thread
            return None
        try:
            if not deployment.enter(thread):
                return None
            ready = plan.inputs(x)
            inputs, single = ready or named_inputs(deployment.bundle, x)
            starts = self._clock()
            if ready is None and ((starts - began) * 1e3 > _CONVERSION_MS or len(next(iter(inputs.values()))) != 1):
                return None
            try:
                output = plan.run(inputs)
                ended = self._clock()
                stage = plan.stage(output)
            except Exception:  # the long way tries again, and has other ways to answer
                self.plan = None
                return None
            work_ms, latency_ms = (ended - starts) * 1e3, (ended - began) * 1e3
            certified = plan.certified and deployment.covers(inputs)
            number = next(self._ids)
            captured = deployment.watch.capture(inputs) if plan.watches else None
            observations.append(
                Observation(
                    id=number,
                    conditions=plan.conditions,
                    stages=(stage,),
                    output=output,
                    captured=captured,
                    work_ms=work_ms,
                    expected_ms=plan.expected_ms[stage],
                    certified=certified,
                    latency_ms=latency_ms,
                    waited_ms=0.0,
                )
            )
            if work_ms > plan.slow_ms[stage]:
                self._is_due = True
            kind = Prediction if single else BatchResult
            return kind(number, output, plan.names, latency_ms, plan.decision, certified)
        finally:
            deployment.leave(thread)

    def _enter(self, thread: int) -> Deployment:
        """The deployment at work, entered. Raises ClosedError where there is none any more."""
        while True:
            deployment = self.deployment
            if deployment.enter(thread):
                return deployment
            deployment.leave(thread)
            if deployment is self.deployment:  # else a swap has put another in its place
                raise ClosedError(CLOSED)

    def _answer(self, deployment: Deployment, x: Any, came: float | None, began: float) -> Result:
        """The answer of a request that goes the long way."""
        inputs, single = named_inputs(deployment.bundle, x)
        rows = len(next(iter(inputs.values())))
        deployment.rows[rows > 1] = rows  # what a swap loads before the exchange
        budget = self.budget
        arrival = began if came is None else came
        waited_ms, conversion_ms = (began - arrival) * 1e3, (self._clock() - began) * 1e3
        if conversion_ms > _CONVERSION_MS:  # preprocessing is no work of the engine, but time that has passed
            waited_ms += conversion_ms
        latest, servers = self._read.latest, None if came is None else self._servers
        snapshot = self._read.of_request(latest, rows, waited_ms, self._waiting(), servers)
        if deployment.unchecked is not None:  # after the first reading, which is of memory without networks
            deployment.check()
        ends_s = None if budget.deadline_ms is None else arrival + budget.deadline_ms / 1e3
        whole = False
        while True:
            decision = self._decide(deployment, budget, snapshot)
            stagewise = deployment.stagewise(decision, ends_s is not None, snapshot, rows)
            expected_s = None if ends_s is None else deployment.expected_s(decision, rows)
            starts = self._clock()  # what comes before is the same however slow the engine is
            try:
                run = partial(
                    deployment.engines.run,
                    point=decision.point,
                    resident=decision.keep_loaded,
                    stagewise=stagewise,
                    ends_s=ends_s,
                    expected_s=expected_s,
                    whole=whole,
                )
                most = rows if rows == 1 else self._most_rows(deployment, decision, budget, snapshot)
                answer = run(inputs, rows) if rows <= most else run_split(run, inputs, rows, most)
                break
            except SubModelError as error:
                with self.lock:
                    whole = not deployment.exclude_backbones(error.backbones)
                    self.plan = None
        ended = self._clock()
        observation = self._observed(
            deployment,
            budget,
            decision,
            snapshot,
            answer,
            inputs,
            x,
            work_ms=(ended - starts) * 1e3,
            latency_ms=(ended - arrival) * 1e3,
            waited_ms=(began - arrival) * 1e3,
        )
        if deployment.lost or deployment.engines.has_failures:
            self.plan = None
        elif rows == 1 and waited_ms == 0.0 and ends_s is None and not stagewise:
            self._plan_next(deployment, budget, latest, snapshot, decision, answer)
        kind = Prediction if single else BatchResult
        classes = deployment.bundle.classes
        return kind(
            observation.id,
            answer.output,
            classes,
            observation.latency_ms,
            decision,
            observation.certified,
            observation.waited_ms,
        )

    def _most_rows(self, deployment: Deployment, decision: Decision, budget: Budget, snapshot: Snapshot) -> int:
        costs, point, first = deployment.frontier.costs, decision.point, self._read.first
        before_mb = None if first is None else first.memory_process_mb  # without networks
        return most_rows(costs, point.operating_point.backbones, budget, snapshot, before_mb)

    def _decide(self, deployment: Deployment, budget: Budget, snapshot: Snapshot) -> Decision:
        with self.learned():
            self._is_due = False
            if deployment.lost:
                deployment.restore_excluded()
            decision = deployment.guard.decide(deployment.frontier, budget, snapshot)
            plan = self.plan
            if plan is not None and not plan.runs_the_same_as(deployment, budget, decision):
                self.plan = None
            last = deployment.decision
            if decision.one_request_only and last is not None:  # what runs for the others stays what it was
                return decision
            deployment.decision = decision
            changed = last is not None and last.point is not decision.point
            self.counters.changes += changed
        if last is None or changed:
            self._announce(None if last is None else last.point, decision, snapshot)
        return decision

    def _plan_next(
        self,
        deployment: Deployment,
        budget: Budget,
        latest: Snapshot,
        snapshot: Snapshot,
        decision: Decision,
        answer: Answer,
    ) -> None:
        """Let the next requests repeat this one, where its decision holds until something changes."""
        engine, point = deployment.engines.first, decision.point
        repeats = (
            answer.engine is engine
            and answer.usual
            and not answer.moved
            and answer.is_answered
            and not self.closed
            and not decision.one_request_only
            and not deployment.guard.decides_each_request
            and not deployment.watch.groups_requests
        )
        run = deployment.engines.bind(point.backbones, point.thresholds, 1) if repeats else None
        if run is None:
            self.plan = None
            return
        frontier = deployment.frontier
        expected_ms = [frontier.path_ms(point, stage, rows=1) for stage in range(len(deployment.bundle.spec.stages))]
        certified = (
            deployment.certified(engine) and covered(point.operating_point, budget) and not deployment.watch.drifted
        )
        with self.lock:
            current = decision is deployment.decision and deployment is self.deployment
            if current and budget is self.budget and not self.closed:
                self.plan = RequestPlan(
                    deployment, budget, latest, snapshot, decision, engine, run, certified, expected_ms
                )

    def _observed(
        self,
        deployment: Deployment,
        budget: Budget,
        decision: Decision,
        snapshot: Snapshot,
        answer: Answer,
        inputs: Mapping[str, Array],
        x: Any,
        work_ms: float,
        latency_ms: float,
        waited_ms: float,
    ) -> Observation:
        """What a request showed, once everybody who learns from it has."""
        output, point, stages = answer.output, decision.point, answer.stages
        # of several engines, one that was not calibrated decides
        engine = next((engine for engine in answer.engines if not deployment.calibrated(engine)), answer.engine)
        # loading, and the first run after it, happen once and say nothing about how slow the device is. Nor does an
        # engine or a way that was not profiled
        usual = answer.usual and not answer.moved
        expected_ms = deployment.frontier.path_ms(point, max(stages), rows=len(stages)) if usual else 0.0
        pixels = deployment.bundle.preprocess is not None and not isinstance(x, Mapping)  # which are finite
        with self.lock:
            captured = deployment.capture(engine, inputs, x)
            certified = (
                output.complete
                and answer.is_answered
                and not answer.ignores_deadline
                and deployment.certified(engine)
                and covered(point.operating_point, budget)
                and (pixels or deployment.covers(inputs))
            )
            observation = Observation(
                id=next(self._ids),
                conditions=Conditions(deployment, decision, engine, snapshot, learns=not answer.moved, repeated=False),
                stages=stages,
                output=output,
                captured=captured,
                work_ms=work_ms,
                expected_ms=expected_ms,
                certified=certified,
                latency_ms=latency_ms,
                waited_ms=waited_ms,
            )
            self.observations.append(observation)
            alarmed = self.learn()
            drifted = bool(deployment.watch.drifted)
        self._warn(alarmed)
        return observation._replace(certified=False) if drifted else observation

    def learn(self) -> Deployment | None:
        """Give the observations that wait to the drift test, the policy, the feedback log and the counters.

        To be called under the lock. A call inside another, by a signal handler, does nothing.

        Returns:
            The deployment whose inputs have just been found to drift, for `_warn` once the lock is free.
        """
        if self._learns:
            return None
        self._learns = True
        try:
            batch = self.observations[:]  # other threads append meanwhile
            if not batch:
                return None
            labels = answers(np.concatenate([one.output.logits for one in batch]))[0].tolist()
            entries, alarmed, row = [], None, 0
            for one in batch:
                shared, rows = one.conditions, len(one.stages)
                deployment, point = shared.deployment, shared.decision.point
                drift, is_first = deployment.drift(shared.engine, point, one.stages, one.output, one.captured)
                if is_first:
                    alarmed = deployment
                if is_first or shared.learns:
                    feedback = Feedback(
                        point,
                        max(one.stages),
                        rows,
                        one.work_ms,
                        one.expected_ms,
                        shared.engine.threads,
                        shared.snapshot,
                        drift,
                    )
                    deployment.last_feedback = feedback
                    deployment.guard.observe(feedback)
                self.feedback_log.enter(one.id, labels[row : row + rows], point.operating_point)
                entries.append(one.entry(one.certified and (shared.repeated or not drift)))
                row += rows
            self.counters.enter(entries, frozenset(one.id for one in batch))
            del self.observations[: len(batch)]
        finally:
            self._learns = False
        if alarmed is not None:
            self.plan = None
        return alarmed

    def _warn(self, alarmed: Deployment | None) -> None:
        """Log that the inputs of a deployment have drifted. Handlers of logs may be slow: not under the lock."""
        if alarmed is not None:
            alarmed.watch.warn(self.budget.on_drift)
