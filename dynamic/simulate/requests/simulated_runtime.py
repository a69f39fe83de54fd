"""The loop: requests in turn through the queue, the policy and the recorded answers. Plain floats only.

Everything that does not depend on the policy is drawn before, request by request. Two policies under the same seed
therefore meet the same requests with the same random numbers.
"""

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from dynamic.policies.budget import Budget
from dynamic.policies.control.repetition import MOST_OBSERVATIONS, slow_ms
from dynamic.policies.costs import Costs
from dynamic.policies.decision import Decision, Feedback, Policy
from dynamic.policies.frontier import CostedPoint, Frontier
from dynamic.policies.snapshot import Snapshot
from dynamic.simulate.requests.outcomes import Check, Outcome
from dynamic.simulate.world.environment import Environment

Decide = Literal["request", "change", "monitor"]  # when the policy decides


@dataclass(frozen=True, eq=False)
class Requests:
    """M requests: arrivals, records and random numbers.

    Args:
        arrival_s: Arrival times `[M]` in seconds.
        record: Record of each request `[M]`.
        normal: Standard normal numbers `[M]`. Empty: no noise.
        stall_ms: Length of a stall `[M]`. Empty: no stalls.
        stall_at: Uniform numbers `[M]`: a stall happens where its chance is higher. Empty: no stalls.
        size: Size of each request `[M]`, where dimensions are dynamic. Empty: all are of the example's size.
    """

    arrival_s: list[float]
    record: list[int]
    normal: list[float]
    stall_ms: list[float]
    stall_at: list[float]
    size: list[int] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Rules:
    """Rules by which requests are served. See `simulate`."""

    decide: Decide
    reads_itself: bool  # a reading for every request
    queue_limit: int | None
    cores: int
    stall_chance: float
    load_ms_per_mb: float
    process_mb: float
    overhead_ms: float
    wake_ms: float
    handover_ms: float
    contention_share: float


@dataclass(eq=False)
class Log:
    """Events of a run: lists with one entry for every answer, in order. `served` is the index of the request."""

    served: list[int] = field(default_factory=list)
    start_s: list[float] = field(default_factory=list)
    end_s: list[float] = field(default_factory=list)
    stage: list[int] = field(default_factory=list)
    point: list[int] = field(default_factory=list)
    cut: list[int] = field(default_factory=list)  # places in the lists above of answers that a deadline cut short
    shed: int = 0
    longest: int = 0
    infeasible: int = 0
    violated_limits: Counter[str] = field(default_factory=Counter)
    changes: list[tuple[float, str, str]] = field(default_factory=list)
    loads: int = 0


def serve(
    here: Frontier,
    outcomes: dict[CostedPoint, Outcome],
    requests: Requests,
    policy: Policy,
    env: Environment,
    rules: Rules,
) -> Log:
    """Serve all requests, or those until the battery is empty.

    Args:
        here: Operating points with the costs of the device.
        outcomes: Outcomes by point.
        requests: The requests.
        policy: The policy.
        env: The device and its sensors.
        rules: Rules by which requests are served.

    Returns:
        The events.
    """
    arrival_s, record_of, normal = requests.arrival_s, requests.record, requests.normal
    changes = rules.decide == "change"
    each = rules.decide == "request" or (changes and rules.reads_itself)
    sizes, size, planned_size = requests.size, None, None
    stall_ms, stall_at, queue_limit = requests.stall_ms, requests.stall_at, rules.queue_limit
    decide, observe, state = policy.decide, policy.observe, policy.initial()
    costs, threads, cores = here.costs, here.costs.threads, rules.cores
    world, load_piece, exp, blank = env.world, env.load, math.exp, object.__new__
    graph, every, whole_mb = _way(costs) == "graph", frozenset(range(len(costs.memory_mb))), sum(costs.memory_mb)
    overhead_ms, contention_share = rules.overhead_ms, rules.contention_share
    wake_s, handover_s = rules.wake_ms * 1e-3, rules.handover_ms * 1e-3
    log = Log()
    served, starts, ends, stages, points = log.served, log.start_s, log.end_s, log.stage, log.point
    took: list[float] = []  # of the requests of the last decision, which the policy has not seen yet
    took_stages: list[int] = []
    expected: list[float] = []
    count, number, behind = len(arrival_s), 0, 0
    free_s = 0.0
    load, contention, resident, loading_ms = 0.0, 1.0, frozenset[int](), 0.0
    last: Decision | None = None
    standing: CostedPoint | None = None
    decision: Any = None
    outcome: Any = None
    snapshot: Any = None
    holds = False  # whether the next request may repeat the last decision
    due = False  # whether it does not because requests were slow or many
    was_slow = False  # the last request
    limits_ms: Sequence[float] = ()  # beyond which a request was slow
    load_until_s = -math.inf
    while number < count:
        arrived_s = arrival_s[number]
        start_s = arrived_s + wake_s if arrived_s > free_s or number == 0 else free_s + handover_s
        while behind < count and arrival_s[behind] <= start_s:
            behind += 1
        waiting = behind - number - 1
        if queue_limit is not None:
            # of the requests that arrived while the server was busy, the latest remain
            over = waiting + (arrived_s <= free_s and number > 0) - queue_limit
            if over > 0:
                log.shed += over
                number += over
                arrived_s = arrival_s[number]
                waiting -= over
        if waiting > log.longest:
            log.longest = waiting
        # the world up to the start
        if env.next_s <= start_s:
            env.queue = waiting
            env.advance(start_s, free_s, power_mw=0.0)
        if env.careful:
            env.settle(start_s)
        if world.empty:
            break
        # the decision
        if sizes:
            size = sizes[number]
            due = due or size != planned_size  # a plan is for one size
        queued = waiting > 0 or (arrived_s <= free_s and number > 0)
        if each or env.fresh or decision is None or (changes and (due or queued or not holds)):
            if took:
                state = observe(state, _feedback(decision.point, took_stages, took, expected, threads, snapshot))
                took, took_stages, expected, due = [], [], [], False
            if rules.reads_itself:
                env.settle(start_s)
                env.read(start_s)
            env.fresh = False
            snapshot = blank(Snapshot)
            waited_ms = (start_s - arrived_s) * 1e3
            snapshot.__dict__.update(env.reading, rows=1, waited_ms=waited_ms, queue_length=waiting, size=size)
            planned_size = size
            decision, state = decide(here, env.budget, snapshot, state)
            fills = graph and decision.keep_loaded is None and resident != every
            fills = fills and _takes_graph(env.budget, snapshot, whole_mb)
            if (
                fills
                or last is None
                or decision.point is not last.point
                or decision.keep_loaded is not last.keep_loaded
            ):
                if last is None or decision.point is not last.point:
                    outcome = outcomes[decision.point]
                needed = every if fills else outcome.point.backbones
                missing = needed - resident
                # backbones of the first decision were loaded before
                loading_ms = 0.0
                if missing and last is not None:
                    loading_ms = rules.load_ms_per_mb * sum(costs.memory_mb[b] for b in missing)
                    log.loads += len(missing)
                resident = resident | needed
                if decision.keep_loaded is not None:
                    resident = resident & (decision.keep_loaded | needed)
                env.process_mb = rules.process_mb + sum(costs.memory_mb[b] for b in resident)
            last = decision
            if sizes:
                outcome = outcome.at(size)
            if decision.point is not standing and not decision.one_request_only:
                standing = decision.point
                log.changes.append((start_s, outcome.name, decision.reason))
            if changes:  # as in `dynamic.runtime.decisions.controller`
                holds = not queued and not decision.one_request_only and decision.keep_loaded is None
                holds = holds and env.budget.deadline_ms is None and not loading_ms
                holds = holds and (not graph or resident == every)
                limits_ms = slow_ms(outcome.path_ms, decision.slowdown)
        if not decision.feasible:
            log.infeasible += 1
            log.violated_limits.update(decision.violated_limits)
        # the work
        if start_s >= load_until_s:
            load, load_until_s = load_piece(start_s)
            excess = (load * cores + threads) / cores - 1.0
            contention = 1.0 + contention_share * excess if excess > 0.0 else 1.0
        if sizes:  # where not every request decides
            outcome = outcome.at(size)
        stage = outcome.stage[record_of[number]]
        if normal:
            spread = exp(outcome.sigma[stage] * normal[number])
            work_ms = outcome.median_ms[stage] * spread / world.frequency
        else:
            spread, work_ms = 1.0, outcome.path_ms[stage] / world.frequency
        beside_ms = overhead_ms / world.frequency  # before the stages: what is late already when the first begins
        deadline_ms = env.budget.deadline_ms
        if deadline_ms is not None:
            waited_ms = (start_s - arrived_s) * 1e3 + (loading_ms / world.frequency + beside_ms) * contention
            slowdown = decision.slowdown
            # no check is later than the end, none looks further ahead than the longest
            if waited_ms + work_ms * contention + slowdown * outcome.longest_ahead_ms[stage] >= deadline_ms:
                path_ms = outcome.path_ms[stage]
                unit = work_ms / path_ms * contention if path_ms else 0.0
                at = _cut(outcome.checks[stage], waited_ms, unit, slowdown, deadline_ms)
                if at is not None:
                    work_ms = at.begins_ms * unit / contention
                    stage = at.answered
                    log.cut.append(len(served))
        work_ms += beside_ms
        expected_ms = outcome.path_ms[stage]
        if loading_ms:
            work_ms += loading_ms / world.frequency
            expected_ms, loading_ms = 0.0, 0.0
        took_ms = work_ms * contention
        power_mw = world.active_mw / contention
        if stall_ms and stall_at[number] < rules.stall_chance * (load if load < 1.0 else 1.0):
            power_mw *= took_ms / (took_ms + stall_ms[number])
            took_ms += stall_ms[number]
        free_s = start_s + took_ms * 1e-3
        # the world up to the end
        if env.next_s <= free_s:
            env.queue = waiting
            env.advance(free_s, start_s, power_mw=power_mw)
        else:
            env.spent_mj += power_mw * (free_s - start_s)
        if env.careful:
            env.settle(free_s)
        if world.empty:
            break
        served.append(number)
        starts.append(start_s)
        ends.append(free_s)
        stages.append(stage)
        points.append(outcome.number)
        took.append(took_ms)
        took_stages.append(stage)
        expected.append(expected_ms)
        if changes:
            is_slow = took_ms > limits_ms[stage]
            due = due or (is_slow and was_slow) or len(took) >= MOST_OBSERVATIONS
            was_slow = is_slow
        number += 1
    if took:
        observe(state, _feedback(decision.point, took_stages, took, expected, threads, snapshot))
    return log


def _feedback(
    point: CostedPoint,
    stages: list[int],
    latency_ms: list[float],
    expected_ms: list[float],
    threads: int,
    snapshot: Snapshot,
) -> Feedback:
    """What the requests of one decision took."""
    return Feedback(point, stages, [1] * len(stages), latency_ms, expected_ms, threads, snapshot)


def _cut(checks: Sequence[Check], waited_ms: float, unit: float, slowdown: float, deadline_ms: float) -> Check | None:
    """The check at which the deadline ends a request, by the rule of `engines.stage_loop`. None: it does not.

    Args:
        checks: The checks of the request.
        waited_ms: Time from arrival to the first stage.
        unit: Real time of a profiled millisecond.
        slowdown: Slowdown of the decision.
        deadline_ms: The deadline.
    """
    for check in checks:
        now_ms = waited_ms + check.begins_ms * unit
        if now_ms >= deadline_ms or now_ms + slowdown * check.ahead_ms > deadline_ms:
            return check
    return None


def _way(costs: Costs) -> str:
    """The route of the engine for one row: "graph", which holds every backbone, or "stages"."""
    return costs.route[max(bisect_right(costs.batch, 1) - 1, 0)] if costs.route else "stages"


def _takes_graph(budget: Budget, snapshot: Snapshot, whole_mb: float) -> bool:
    """Whether the runtime would load the single graph where it is not loaded (see `dynamic.runtime.deployment`)."""
    free_mb = snapshot.memory_available_mb
    return budget.deadline_ms is None and (free_mb is None or free_mb >= whole_mb)
