"""One request from arrival to result.

The short way comes first: a request checks its input, calls the engine, appends one observation and returns. What it
runs is in the plan (see `RequestPlan`), which the controller makes again when something has changed. Requests that no
plan covers go the long way, under the lock where they change something.
"""

import threading
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from dynamic.bundle.input_conversion import named_inputs
from dynamic.engines.contract import Array, Engine, Expected
from dynamic.engines.memory import own_buffers
from dynamic.policies.control.feasibility import covered
from dynamic.policies.control.repetition import MOST_OBSERVATIONS
from dynamic.runtime.batch_splitting import most_rows, run_split
from dynamic.runtime.decisions.controller import Controller, Renewal
from dynamic.runtime.deployment import Deployment
from dynamic.runtime.drift.drift_watch import Captured
from dynamic.runtime.fallback import Answer, SubModelError
from dynamic.runtime.parts import rest_ms
from dynamic.runtime.request_plan import Conditions, DecisionContext, Observation, RequestPlan
from dynamic.runtime.result import BatchResult, Prediction, Result

_CONVERSION_MS = 1.0  # conversion of inputs that takes less is no wait for the policy: such requests share one snapshot
_LEAST_MS = 1e-6  # of a deadline, which is positive
R = TypeVar("R")


class RequestHandler:
    """Answers requests, from several threads at once, on the deployment at work when they begin.

    Args:
        controller: Decides, and learns from what requests show.
        servers: How many requests that were submitted are answered at once.
        clock: Seconds.
    """

    def __init__(self, controller: Controller, servers: int, clock: Callable[[], float]) -> None:
        self._controller, self._servers, self._clock = controller, servers, clock

    def __call__(self, x: Any, came: float | None = None, behind: int = 0, deadline_ms: float | None = None) -> Result:
        """Answer an input that came at `came` and has waited for its turn since. None: it comes now.

        `behind`: how many wait behind it in a queue that is not the runtime's. `deadline_ms`: its own, from `came`. It
        counts where it is nearer than the budget's.
        """
        began = self._clock()
        controller, thread = self._controller, threading.get_ident()
        controller.inside.append(thread)
        try:
            alone = controller.inside.count(thread) == 1  # else a signal handler interrupts a request of its thread
            plan = controller.plan
            short = alone and came is None and not controller.closed
            if short and plan is not None and plan.budget is controller.budget:
                result = self._repeat(plan, x, began, thread)
                if result is not None:
                    return result
            if came is None:
                controller.check_open()
            deployment = controller.entered(thread)
            try:
                with nullcontext() if alone else own_buffers():
                    return self._answer(deployment, x, came, began, behind=behind, deadline_ms=deadline_ms)
            finally:
                deployment.leave(thread)
        finally:
            if controller.deciding_thread == thread:
                controller.deciding_thread = None
            controller.inside.remove(thread)  # in a child that was forked meanwhile it is another list

    def _repeat(self, plan: RequestPlan, x: Any, began: float, thread: int) -> Result | None:
        """The answer under the plan, renewed where something changed. None: the request has to go the long way."""
        controller, deployment = self._controller, plan.deployment
        try:
            if not deployment.enter(thread):
                return None
            ready = plan.inputs(x)
            inputs, single = ready or named_inputs(deployment.bundle, x)
            starts = self._clock()
            if ready is None and ((starts - began) * 1e3 > _CONVERSION_MS or len(next(iter(inputs.values()))) != 1):
                return None
            if ready is None and plan.size is not None:
                size = deployment.bundle.spec.size_of(inputs)
                sized = plan if size == plan.size else controller.plan_at(plan, size)
                if sized is None:
                    return None
                plan = sized
            due = (  # here and not in the controller: a call less for each request
                controller.due
                or len(controller.observations) + controller.answered >= MOST_OBSERVATIONS
                or controller.read.latest is not plan.latest
            )
            renewal = None
            if due and controller.take_turn(thread):
                renewal = controller.renew(plan)
                if renewal is None:
                    return None
                if renewal.plan is None:
                    return self._answer(deployment, x, None, began, renewal)
                plan, starts = renewal.plan, self._clock()
            try:
                output = plan.run(inputs)
                ended = self._clock()
                stage = plan.stage(output)
            except Exception:  # the long way tries again, and has other ways to answer
                controller.plan = None
                return None if renewal is None else self._answer(deployment, x, None, began, renewal)
            work_ms, latency_ms = (ended - starts) * 1e3, (ended - began) * 1e3
            certified = plan.certified and deployment.covers(inputs)
            number = next(controller.ids)
            captured = deployment.watch.capture(inputs) if plan.watches else None
            controller.observations.append(
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
            if work_ms > plan.slow_ms[stage] or controller.was_slow:
                controller.note_slow(work_ms > plan.slow_ms[stage])
            kind = Prediction if single else BatchResult
            return kind(number, output, plan.names, latency_ms, plan.decision, certified)
        finally:
            deployment.leave(thread)

    def _answer(
        self,
        deployment: Deployment,
        x: Any,
        came: float | None,
        began: float,
        renewal: Renewal | None = None,
        behind: int = 0,
        deadline_ms: float | None = None,
    ) -> Result:
        """The answer of a request that goes the long way, by the decision of a `renewal` where there was one."""
        controller = self._controller
        inputs, single = named_inputs(deployment.bundle, x)
        rows = len(next(iter(inputs.values())))
        deployment.rows[rows > 1] = rows  # what a swap loads before the exchange
        budget = controller.budget if renewal is None else renewal.context.budget
        arrival = began if came is None else came
        waited_ms, conversion_ms = (began - arrival) * 1e3, (self._clock() - began) * 1e3
        if conversion_ms > _CONVERSION_MS:  # preprocessing is no work of the engine, but time that has passed
            waited_ms += conversion_ms
        if renewal is None:
            latest, servers = controller.read.latest, None if came is None else self._servers
            size = deployment.bundle.spec.size_of(inputs)
            queue_length = controller.waiting() + behind
            snapshot = controller.read.of_request(latest, rows, waited_ms, queue_length, servers, size)
        else:
            latest, snapshot, waited_ms = renewal.context.latest, renewal.context.snapshot, 0.0
        if deployment.unchecked is not None:  # after the first reading, which is of memory without networks
            deployment.check()
        decide = controller.decide
        if deadline_ms is not None and (budget.deadline_ms is None or deadline_ms < budget.deadline_ms):
            budget, decide = replace(budget, deadline_ms=nearest_ms(deadline_ms)), controller.decide_alone
        ends_s = None if budget.deadline_ms is None else arrival + budget.deadline_ms / 1e3
        whole = False
        while True:
            if renewal is None:
                decision = decide(deployment, budget, snapshot)
            else:
                decision, renewal = renewal.context.decision, None
            stagewise = deployment.stagewise(decision, ends_s is not None, snapshot, rows)
            expected_s = None if ends_s is None else deployment.expected_s(decision, rows, snapshot.size)
            starts = self._clock()  # what comes before is the same however slow the engine is
            try:
                context = DecisionContext(deployment, budget, latest, snapshot, decision)
                answer = self.answer(
                    context, inputs, stagewise=stagewise, ends_s=ends_s, expected_s=expected_s, whole=whole
                )
                break
            except SubModelError as error:
                with controller.lock:
                    whole = not deployment.exclude_backbones(error.backbones)
                    controller.plan = None
        ended = self._clock()
        pixels = deployment.bundle.preprocess is not None and not isinstance(x, Mapping)  # which are finite
        scored = all(rest.is_answered for rest in answer.output.rests)  # else their first exit is elsewhere
        observation = self.observed(
            context,
            answer,
            expected_ms=partial(self._expected_ms, context, answer),
            capture=lambda engine: deployment.capture(engine, inputs, x) if scored else None,
            covers=lambda: pixels or deployment.covers(inputs),
            work_ms=(ended - starts) * 1e3,
            latency_ms=(ended - arrival) * 1e3,
            waited_ms=(began - arrival) * 1e3,
        )
        if deployment.lost or deployment.engines.has_failures:
            controller.plan = None
        elif rows == 1 and waited_ms == 0.0 and ends_s is None and not stagewise:
            shape = inputs[deployment.bundle.spec.inputs[0].name].shape[1:]
            controller.plan_next(context, answer, observation.work_ms, shape)
        return result_of(Prediction, context, observation) if single else result_of(BatchResult, context, observation)

    def _expected_ms(self, context: DecisionContext, answer: Answer) -> float:
        """What a request should have taken that went the usual way."""
        frontier, point, size = context.deployment.frontier, context.decision.point, context.snapshot.size
        rows, rests = len(answer.stages), answer.output.rests
        if not rests:
            return frontier.path_ms(point, max(answer.stages), rows=rows, size=size)
        last_stages = np.array(answer.stages)
        for rest in rests:  # their rows have run all stages before the cut, wherever they were answered
            last_stages[rest.rows] = rest.stage - 1
        costs = frontier.costs_at(size)
        return rest_ms(costs, point.plan, 0, last_stages.tolist()) + costs.at(costs.call_ms, rows)

    def answer(
        self,
        context: DecisionContext,
        arrays: Mapping[str, Array],
        *,
        stagewise: bool,
        ends_s: float | None,
        expected_s: Expected | None,
        whole: bool,
    ) -> Answer:
        """Run the rows of a request under a decision, in as many parts as the memory needs.

        Args:
            context: The decision, and what it was made for.
            arrays: By name, each `[B, ...]`.
            stagewise: As for `FallbackEngines.run`, and so are the others.
            ends_s: When the deadline ends.
            expected_s: Seconds to the next answer.
            whole: Whether all backbones have to load.

        Returns:
            The answer.
        """
        deployment, decision = context.deployment, context.decision
        run = partial(
            deployment.engines.run,
            point=decision.point,
            resident=decision.keep_loaded,
            stagewise=stagewise,
            ends_s=ends_s,
            expected_s=expected_s,
            whole=whole,
        )
        rows = len(next(iter(arrays.values())))
        most = rows if rows == 1 else self._most_rows(context)
        return run(arrays, rows) if rows <= most else run_split(run, arrays, rows, most)

    def _most_rows(self, context: DecisionContext) -> int:
        """How many rows may run at once at the point of a decision."""
        snapshot, point, first = context.snapshot, context.decision.point, self._controller.read.first
        costs = context.deployment.frontier.costs_at(snapshot.size)
        before_mb = None if first is None else first.memory_process_mb  # without networks
        return most_rows(costs, point.operating_point.backbones, context.budget, snapshot, before_mb)

    def observed(
        self,
        context: DecisionContext,
        answer: Answer,
        expected_ms: Callable[[], float],
        capture: Callable[[Engine], Captured | None],
        covers: Callable[[], bool],
        work_ms: float,
        latency_ms: float,
        waited_ms: float,
    ) -> Observation:
        """What a request showed, once everybody who learns from it has.

        Args:
            context: The decision, and what it was made for.
            answer: The answer.
            expected_ms: What it should have taken. It is asked where the request went the usual way.
            capture: What the drift test needs of the inputs, on an engine. None: they are not tested.
            covers: Whether the certificates are about such inputs.
            work_ms: What it took.
            latency_ms: From arrival to answer.
            waited_ms: The part of that in a queue.

        Returns:
            The observation. It is not certified where inputs have drifted.
        """
        controller = self._controller
        deployment, budget, decision = context.deployment, context.budget, context.decision
        output, point, stages = answer.output, decision.point, answer.stages
        # of several engines, one that was not calibrated decides
        engine = next((engine for engine in answer.engines if not deployment.calibrated(engine)), answer.engine)
        # loading, and the first run after it, happen once and say nothing about how slow the device is. Nor does an
        # engine or a way that was not profiled
        with controller.lock:
            captured = capture(engine)
            certified = (
                output.complete
                and answer.is_answered
                and not answer.ignores_deadline
                and deployment.certified(engine)
                and covered(point.operating_point, budget)
                and covers()
            )
            observation = Observation(
                id=next(controller.ids),
                conditions=Conditions(context, engine, learns=not answer.moved, repeated=False),
                stages=stages,
                output=output,
                captured=captured,
                work_ms=work_ms,
                expected_ms=expected_ms() if answer.usual and not answer.moved else 0.0,
                certified=certified,
                latency_ms=latency_ms,
                waited_ms=waited_ms,
            )
            controller.observations.append(observation)
            alarmed = controller.learn()
            drifted = bool(deployment.watch.drifted)
        controller.warn(alarmed)
        return observation._replace(certified=False) if drifted else observation


def nearest_ms(deadline_ms: float) -> float:
    """A deadline of a request that may be over already, as the positive number that limits are."""
    return max(deadline_ms, _LEAST_MS)


def result_of(kind: Callable[..., R], context: DecisionContext, observation: Observation) -> R:
    """The result of a request, from what it showed."""
    return kind(
        observation.id,
        observation.output,
        context.deployment.bundle.classes,
        observation.latency_ms,
        context.decision,
        observation.certified,
        observation.waited_ms,
    )
