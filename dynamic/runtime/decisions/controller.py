"""Decides when something has changed, not once for each request, and learns from what requests showed meanwhile."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count, groupby
from operator import attrgetter
from typing import NamedTuple

import numpy as np

from dynamic.policies.budget import Budget
from dynamic.policies.control.feasibility import covered
from dynamic.policies.control.repetition import MOST_OBSERVATIONS
from dynamic.policies.decision import Decision, Feedback
from dynamic.policies.errors import ClosedError
from dynamic.policies.snapshot import Snapshot
from dynamic.runtime.counters import Entry, RuntimeCounters
from dynamic.runtime.decisions.decision_log import Announcer
from dynamic.runtime.decisions.device_reading import RequestReading
from dynamic.runtime.deployment import Deployment
from dynamic.runtime.drift.feedback_log import FeedbackLog
from dynamic.runtime.fallback import Answer
from dynamic.runtime.request_plan import Conditions, DecisionContext, Observation, RequestPlan
from dynamic.runtime.requests.request_queue import CLOSED
from dynamic.runtime.result import answers

_FEWEST = 2  # requests since the last decision: in a slower stream each request decides, and once is enough
_LONGEST_PAUSE = 10  # snapshots between groups of requests that are decided on: 2 s at five a second
_MOST_WAITING_FACTOR = 2  # times what may wait to be learned from: then a thread decides although another does
_MOST_SIZES = 64  # of inputs, for which there is a plan


class Renewal(NamedTuple):
    """Another decision for a request that was about to repeat the last one. No plan: it goes the long way."""

    context: DecisionContext
    plan: RequestPlan | None


class Controller:
    """What requests share: the deployment at work, the budget, the plan, and what is still to be learned from.

    `plan`: what requests repeat, None where the next one decides the long way. `plans`: by size of input, where
    dimensions are dynamic. `lock`: of counters, feedback and observations, and of what changes in a deployment. It is
    reentrant, since a signal handler may run a request while its own thread is in one. `inside`: threads that are in
    this runtime's code, once for each call.

    Args:
        read: Reads the monitor.
        announce: Logs changes of the decision.
        counters: Counts requests.
        feedback_log: Keeps answers until their labels come.
        waiting: Gives how many requests wait.
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
    ) -> None:
        self.read, self._announce, self.waiting = read, announce, waiting
        self.counters, self.feedback_log = counters, feedback_log
        self.closed = False
        self.plans: dict[int | None, RequestPlan] = {}
        self._plan: RequestPlan | None = None
        self.deciding_thread: int | None = None  # the thread that decides again, while others repeat what was decided
        self.due = False  # whether the next request decides again: two in a row were slow, or drift
        self.was_slow = False  # the last request
        self.observations: list[Observation] = []  # that the policy has not seen: appended without a lock
        self.answered = 0  # requests since the last decision that the policy has seen
        self.ids = count()
        self._pause = 0  # snapshots since the last group of requests
        self._last_pause = 0  # the same of the pause before: as long as the next one, probably
        self._learns = False
        self.forget()

    @property
    def plan(self) -> RequestPlan | None:
        """What requests repeat."""
        return self._plan

    @plan.setter
    def plan(self, plan: RequestPlan | None) -> None:
        last = self._plan
        if plan is None or last is None or plan.family is not last.family or len(self.plans) >= _MOST_SIZES:
            self.plans = {}  # plans of one family end together
        if plan is not None:
            self.plans[plan.size] = plan
        self._plan = plan

    def plan_at(self, plan: RequestPlan, size: int | None) -> RequestPlan | None:
        """The plan of the same family for requests of another size. None: there is none."""
        other = self.plans.get(size)
        return other if other is not None and other.family is plan.family else None

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
            self.warn(alarmed)

    def check_open(self) -> None:
        """Raises ClosedError where no request is taken any more."""
        if self.closed:
            raise ClosedError(CLOSED)

    def entered(self, thread: int) -> Deployment:
        """The deployment at work, entered. Raises ClosedError where there is none any more."""
        while True:
            deployment = self.deployment
            if deployment.enter(thread):
                return deployment
            deployment.leave(thread)
            if deployment is self.deployment:  # else a swap has put another in its place
                raise ClosedError(CLOSED)

    def take_turn(self, thread: int) -> bool:
        """Let this thread decide again. False where another one does: the others repeat their plan meanwhile."""
        waiting = len(self.observations) + self.answered
        if self.deciding_thread is not None and waiting < _MOST_WAITING_FACTOR * MOST_OBSERVATIONS:
            return False
        self.deciding_thread = thread
        return True

    def decide(self, deployment: Deployment, budget: Budget, snapshot: Snapshot) -> Decision:
        """The decision for a request, after everything that was observed. A plan that runs another way ends.

        Args:
            deployment: What the request runs on.
            budget: The limits.
            snapshot: The readings, with what is known of the request.

        Returns:
            The decision.
        """
        self.due = False  # before what was observed is looked at: what comes meanwhile counts for the next decision
        with self.learned():
            self.answered = 0
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

    def decide_alone(self, deployment: Deployment, budget: Budget, snapshot: Snapshot) -> Decision:
        """The decision for one request with a budget of its own. What runs for the others stays what it was."""
        with self.learned():
            if deployment.lost:
                deployment.restore_excluded()
            return deployment.guard.decide_alone(deployment.frontier, budget, snapshot)

    def refresh(self) -> None:
        """Decide on a new snapshot on the monitor's thread, so that no request pays for it: 1 ms with cold caches.

        Requests repeat the plan meanwhile. Only a decision that runs the same is taken, and renews the plan. Otherwise
        nothing is, and the next request decides, as it does in a stream that is slower than the snapshots. In a pause
        between groups of requests each decision takes the place of the one before.
        """
        plan = self.plan
        if plan is None or self.deciding_thread is not None or plan.latest is self.read.latest:
            return
        if not self._note_snapshot(len(self.observations) + self.answered):
            return
        thread = self.deciding_thread = threading.get_ident()
        try:
            with self.learned():
                if self.plan is plan and self._holds(plan.conditions.context):
                    plan.deployment.enter(thread)
                    try:
                        self.plan = self._repeated(plan)
                    finally:
                        plan.deployment.leave(thread)
        except Exception:  # the caller of the next request sees what is wrong
            self.plan = None
            raise
        finally:
            if self.deciding_thread == thread:
                self.deciding_thread = None

    def _note_snapshot(self, requests: int) -> bool:
        """Count a snapshot, after so many requests since the last decision. Returns whether to decide on it."""
        if requests >= _FEWEST:
            self._last_pause, self._pause = self._pause, 0
            return True
        self._pause += 1
        return requests == 0 and self._pause <= self._last_pause <= _LONGEST_PAUSE

    def _repeated(self, plan: RequestPlan) -> RequestPlan | None:
        """The plan under a new decision, where that runs the same. Otherwise none, and nothing is decided."""
        deployment, budget, latest = plan.deployment, plan.budget, self.read.latest
        snapshot = self.read.of_request(latest, 1, 0.0, self.waiting(), None, plan.size)
        if deployment.lost or deployment.stagewise(plan.decision, False, snapshot, 1):
            return None
        repeats = partial(plan.runs_the_same_as, deployment, budget)
        decision = deployment.guard.decide_if(deployment.frontier, budget, snapshot, repeats)
        point = plan.decision.point
        run = None if decision is None else deployment.engines.bind(point.backbones, point.thresholds, 1)
        if decision is None or run is None:
            return None
        self.due, self.answered, deployment.decision = False, 0, decision
        return plan.renewed(DecisionContext(deployment, budget, latest, snapshot, decision), run)

    def renew(self, plan: RequestPlan) -> Renewal | None:
        """Decide again for a request of one row that would repeat `plan`. None: there is another budget by now."""
        deployment, budget, latest = plan.deployment, plan.budget, self.read.latest
        if budget is not self.budget:
            return None
        snapshot = self.read.of_request(latest, 1, 0.0, self.waiting(), None, plan.size)
        decision = self.decide(deployment, budget, snapshot)
        context = DecisionContext(deployment, budget, latest, snapshot, decision)
        point, renewed = decision.point, None
        with self.lock:
            # whatever ended the plan, or put another in its place, may have changed what it runs or certifies
            current = self.plan is not None and self.plan.family is plan.family
            if current and not deployment.stagewise(decision, False, snapshot, 1):
                run = deployment.engines.bind(point.backbones, point.thresholds, 1)
                renewed = None if run is None else plan.renewed(context, run)
            if current and self.plan is not None:
                self.plan = renewed if self._holds(context) else None
        return Renewal(context, renewed)

    def plan_next(self, context: DecisionContext, answer: Answer, work_ms: float, shape: tuple[int, ...]) -> None:
        """Let the next requests repeat one of one row, where its decision holds until something changes.

        Args:
            context: The decision of the request, and what it was made for.
            answer: The answer.
            work_ms: What it took.
            shape: Of its first input, without the batch.
        """
        deployment, budget, decision = context.deployment, context.budget, context.decision
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
        size, stages = context.snapshot.size, range(len(deployment.bundle.spec.stages))
        expected_ms = [frontier.path_ms(point, stage, rows=1, size=size) for stage in stages]
        with self.lock:  # drift and networks that do not load change under it
            certified = (
                deployment.certified(engine) and covered(point.operating_point, budget) and not deployment.watch.drifted
            )
            last, family = self.plan, object()
            if last is not None and last.latest is context.latest:
                family = last.family if last.runs_the_same_as(deployment, budget, decision) else family
            plan = RequestPlan(context, engine, run, certified, expected_ms, shape, family)
            if self._holds(context):
                self.plan = plan
        self.note_slow(work_ms > plan.slow_ms[answer.stages[0]])

    def note_slow(self, is_slow: bool) -> None:
        """Let the next request decide after two slow ones in a row.

        One alone finds cold caches, after a pause, as often as a device that has changed. It cost a decision each time.
        """
        self.due = self.due or (is_slow and self.was_slow)
        self.was_slow = is_slow

    def _holds(self, context: DecisionContext) -> bool:
        """Whether this is still what is at work. To be called under the lock."""
        deployment = context.deployment
        current = context.decision is deployment.decision and deployment is self.deployment
        return current and context.budget is self.budget and not self.closed

    def learn(self) -> Deployment | None:
        """Give the observations that wait to the drift test, the policy, the feedback log and the counters.

        To be called under the lock. A call inside another, by a signal handler, does nothing.

        Returns:
            The deployment whose inputs have just been found to drift, for `warn` once the lock is free.
        """
        if self._learns:
            return None
        self._learns = True
        try:
            batch = self.observations[:]  # other threads append meanwhile
            if not batch:
                return None
            labels = answers(np.concatenate([one.output.logits for one in batch]))[0].tolist()
            entries: list[Entry] = []
            alarmed, row = None, 0
            for shared, group in groupby(batch, attrgetter("conditions")):
                observations, deployment, point = tuple(group), shared.context.deployment, shared.context.decision.point
                drifts = deployment.drift(shared.engine, point, observations)
                if drifts.is_new:
                    alarmed = deployment
                if drifts.is_new or shared.learns:
                    self._feed(shared, observations, drift=drifts.by_request[-1])
                for one, drift in zip(observations, drifts.by_request, strict=True):
                    rows = len(one.stages)
                    self.feedback_log.enter(one.id, labels[row : row + rows], point.operating_point)
                    entries.append(one.entry(one.certified and (shared.repeated or not drift)))
                    row += rows
            self.answered += len(batch)
            self.counters.enter(entries, frozenset(one.id for one in batch))
            del self.observations[: len(batch)]
        finally:
            self._learns = False
        if alarmed is not None:
            self.plan, self.due = None, True
        return alarmed

    def _feed(self, shared: Conditions, observations: Sequence[Observation], drift: bool) -> None:
        """Let the policy learn from the requests of one decision."""
        context = shared.context
        feedback = Feedback(
            context.decision.point,
            [max(one.stages) for one in observations],
            [len(one.stages) for one in observations],
            [one.work_ms for one in observations],
            [one.expected_ms for one in observations],
            shared.engine.threads,
            context.snapshot,
            drift,
        )
        context.deployment.last_feedback = feedback
        context.deployment.guard.observe(feedback)

    def warn(self, alarmed: Deployment | None) -> None:
        """Log what was found under the lock, now that it is free: drift of a deployment, and faults of the policy."""
        self.deployment.guard.report()
        if alarmed is not None:
            alarmed.watch.warn(self.budget.on_drift)
