"""What a request repeats while nothing has changed since the last decision."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dynamic.engines.contract import Array, Engine, Output
from dynamic.engines.outputs import is_finite
from dynamic.policies.budget import Budget
from dynamic.policies.control.repetition import slow_ms
from dynamic.policies.decision import Decision
from dynamic.policies.errors import EngineError
from dynamic.policies.snapshot import Snapshot
from dynamic.runtime.counters import Entry
from dynamic.runtime.deployment import Deployment
from dynamic.runtime.drift.drift_watch import Captured


class DecisionContext(NamedTuple):
    """A decision, and what it was made for."""

    deployment: Deployment
    budget: Budget
    latest: Snapshot  # of the monitor
    snapshot: Snapshot  # the same with what was asked, as the policy saw it
    decision: Decision


class Conditions(NamedTuple):
    """What the requests of one decision share."""

    context: DecisionContext
    engine: Engine
    learns: bool  # False: something was loaded
    repeated: bool  # it went by a plan


class Observation(NamedTuple):
    """What one request showed. The policy, the drift test, the counters and the feedback log take it later."""

    id: int
    conditions: Conditions
    stages: Sequence[int]  # [B]
    output: Output
    captured: Captured | None
    work_ms: float
    expected_ms: float  # 0: what it took says nothing of the device
    certified: bool
    latency_ms: float
    waited_ms: float

    def entry(self, certified: bool) -> Entry:
        """What counters take of it."""
        context = self.conditions.context
        return Entry(
            context.decision.point.name,
            self.stages,
            len(context.deployment.bundle.spec.stages),
            certified,
            self.output.complete,
            self.latency_ms,
            self.waited_ms,
        )


class RequestPlan:
    """A decision that holds until something changes, with all that requests of one row and one size need of it.

    It holds for one budget and one deployment. It is renewed with another snapshot of the monitor, after
    `MOST_OBSERVATIONS` requests, and after two in a row that take more than `slow_ms [S]` of their stage. Another
    point, a failure, or an answer that is not finite end it.

    Args:
        context: The decision, and what it was made for.
        engine: The engine that runs it.
        run: What the engine gave for this operating point (`Engine.bind`).
        certified: Whether answers to finite inputs are certified.
        expected_ms: `[S]`, what a request that exits at each stage should take.
        shape: Of the first input without the batch. A plan is for requests of one size.
        family: What it shares with plans for other sizes that were made for the same readings and run the same point.
    """

    __slots__ = (
        "answer_shape",
        "batch_shape",
        "budget",
        "certified",
        "conditions",
        "decision",
        "deployment",
        "dtype",
        "expected_ms",
        "family",
        "latest",
        "name",
        "names",
        "run",
        "shape",
        "size",
        "slow_ms",
        "watches",
    )

    def __init__(
        self,
        context: DecisionContext,
        engine: Engine,
        run: Callable[[Mapping[str, Array]], Output],
        certified: bool,
        expected_ms: Sequence[float],
        shape: tuple[int, ...],
        family: object,
    ) -> None:
        deployment, decision = context.deployment, context.decision
        self.deployment, self.decision = deployment, decision  # a request reads these four
        self.budget, self.latest = context.budget, context.latest
        self.conditions = Conditions(context, engine, learns=True, repeated=True)
        self.run = run
        self.certified, self.expected_ms = certified, tuple(expected_ms)
        self.slow_ms = slow_ms(expected_ms, decision.slowdown)
        self.watches = deployment.watches(engine)
        spec = deployment.bundle.spec
        self.answer_shape = (1, spec.classes)
        self.names = deployment.bundle.classes
        # arrays as the network takes them need no conversion
        first = spec.inputs[0]
        self.name, self.dtype = first.name, np.dtype(first.dtype)
        takes_arrays = deployment.bundle.preprocess is None and len(spec.inputs) == 1 and first.ids is None
        self.size, self.family = context.snapshot.size, family
        self.shape = shape if takes_arrays else None
        preprocess = deployment.bundle.preprocess
        # token ids have limits
        is_checked = first.ids is not None or (preprocess is not None and preprocess.limits_values)
        self.batch_shape = (1, *shape) if len(spec.inputs) == 1 and not is_checked else None

    def renewed(self, context: DecisionContext, run: Callable[[Mapping[str, Array]], Output]) -> "RequestPlan":
        """The plan under another decision for the same point. `run`: what the engine gave for it."""
        plan = object.__new__(RequestPlan)
        for name in RequestPlan.__slots__:
            setattr(plan, name, getattr(self, name))
        plan.latest, plan.decision, plan.run, plan.family = context.latest, context.decision, run, object()
        plan.conditions = self.conditions._replace(context=context)
        plan.slow_ms = slow_ms(self.expected_ms, context.decision.slowdown)
        return plan

    def runs_the_same_as(self, deployment: Deployment, budget: Budget, decision: Decision) -> bool:
        """Whether a new decision runs the same: then other threads may repeat this plan until there is another."""
        same = decision.point is self.decision.point and decision.keep_loaded == self.decision.keep_loaded
        return same and deployment is self.deployment and budget is self.budget and not decision.one_request_only

    def inputs(self, x: Any) -> tuple[Mapping[str, Array], bool] | None:
        """The inputs of one row and whether `x` had no batch dimension, without conversion. None: it needs one."""
        by_name = type(x) is dict
        array = x.get(self.name) if by_name and len(x) == 1 else x
        if type(array) is not np.ndarray or array.dtype != self.dtype:
            return None
        flags = array.flags
        if not flags.c_contiguous or not flags.aligned:
            return None
        if by_name:
            return (x, False) if array.shape == self.batch_shape else None
        if array.shape == self.shape:
            return {self.name: array[None]}, True
        return ({self.name: array}, False) if self.shape is not None and array.shape == self.batch_shape else None

    def stage(self, output: Output) -> int:
        """The stage of an answer of one row. Raises an exception of any kind where it is none, or is not finite.

        With cold caches this takes 13 us less than `left_at` and `is_whole`, which say what is wrong.
        """
        stage, score, logits = output.stage.item(), output.score.item(), output.logits
        is_answer = type(stage) is int and 0 <= stage < len(self.expected_ms) and logits.shape == self.answer_shape
        if not is_answer or score != score or not is_finite(logits):
            raise EngineError("it is no finite answer of one row")
        return stage
