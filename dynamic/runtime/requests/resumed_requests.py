"""Requests whose first stages ran elsewhere: no decision is made for them, and no input is tested."""

import threading
from collections.abc import Callable

from dynamic.engines.contract import Expected
from dynamic.engines.parts.rest import Rest
from dynamic.policies.errors import BundleError
from dynamic.policies.fast_paths import fast_replace
from dynamic.runtime.decisions.controller import Controller
from dynamic.runtime.deployment import Deployment
from dynamic.runtime.parts import again_ms, first_stage, rest_ms
from dynamic.runtime.request_handler import RequestHandler, nearest_ms, result_of
from dynamic.runtime.request_plan import DecisionContext
from dynamic.runtime.result import BatchResult


class ResumedRequests:
    """Answers rows that the runtime of another `Part` has begun, on the deployment at work when they come.

    The operating point is that of the head. The policy here says how slow the device is, and learns from what they
    take.

    Args:
        controller: Decides, and learns from what requests show.
        handler: Of requests that begin here.
        clock: Seconds.
    """

    def __init__(self, controller: Controller, handler: RequestHandler, clock: Callable[[], float]) -> None:
        self._controller, self._handler, self._clock = controller, handler, clock

    def __call__(self, rest: Rest, point: str, came: float, behind: int, deadline_ms: float | None) -> BatchResult:
        """Answer rows that came at `came`. See `Runtime.resume`."""
        began, controller, thread = self._clock(), self._controller, threading.get_ident()
        controller.inside.append(thread)
        try:
            controller.check_open()
            deployment = controller.entered(thread)
            try:
                _check_version(deployment, rest)
                ends_s = None if deadline_ms is None else came + nearest_ms(deadline_ms) / 1e3
                return self._answer(
                    self._context(deployment, rest, point, began - came, behind), rest, came, began, ends_s
                )
            finally:
                deployment.leave(thread)
        finally:
            controller.inside.remove(thread)

    def _context(self, deployment: Deployment, rest: Rest, point: str, waited_s: float, behind: int) -> DecisionContext:
        """The head's decision, with what the policy says of this device."""
        controller, budget, latest = self._controller, self._controller.budget, self._controller.read.latest
        length = controller.waiting() + behind
        snapshot = controller.read.of_request(latest, len(rest.rows), waited_s * 1e3, length, 1, rest.size)
        own = controller.decide_alone(deployment, budget, snapshot)
        return DecisionContext(deployment, budget, latest, snapshot, fast_replace(own, point=deployment.point(point)))

    def _answer(
        self, context: DecisionContext, rest: Rest, came: float, began: float, ends_s: float | None
    ) -> BatchResult:
        deployment, decision = context.deployment, context.decision
        costs, plan = deployment.frontier.costs_at(rest.size), decision.point.plan
        first = first_stage(deployment.bundle.ladder.backbone, plan, rest.stage, rest.arrays)
        expected_s = None if ends_s is None else self._expected_s(context, rest, first)
        starts = self._clock()
        answer = self._handler.answer(
            context, rest.arrays, stagewise=True, ends_s=ends_s, expected_s=expected_s, whole=True
        )
        ended = self._clock()
        observation = self._handler.observed(
            context,
            answer,
            expected_ms=lambda: rest_ms(costs, plan, first, answer.stages),
            capture=lambda engine: None,  # the head tests inputs for drift
            covers=lambda: True,  # and looks whether they are finite
            work_ms=(ended - starts) * 1e3,
            latency_ms=(ended - came) * 1e3,
            waited_ms=(began - came) * 1e3,
        )
        return result_of(BatchResult, context, observation)

    def _expected_s(self, context: DecisionContext, rest: Rest, first: int) -> Expected:
        """Seconds to the next answer as of `Deployment.expected_s`, with the stages before the cut that run again."""
        decision, rows = context.decision, len(rest.rows)
        expected = list(context.deployment.expected_s(decision, rows, rest.size))
        if first < rest.stage:
            costs, again = context.deployment.frontier.costs_at(rest.size), range(first, rest.stage)
            times = (again_ms(costs, decision.point.plan, again, count) * decision.slowdown for count in (1, rows))
            one, every = (sum(pair) for pair in zip(expected[rest.stage], (ms / 1e3 for ms in times), strict=True))
            expected[rest.stage] = one, every
        return expected


def _check_version(deployment: Deployment, rest: Rest) -> None:
    """Raises BundleError where another bundle began with these rows."""
    if rest.version != getattr(deployment.engines.first, "version", None):
        raise BundleError(
            f"these rows began with bundle {rest.version!r}, and {deployment.bundle.folder} is at work here: deploy "
            "the same bundle to both parts"
        )
