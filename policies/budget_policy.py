"""The default policy: what memory, battery, CPU load and the budget leave of the frontier, and the best of that."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

from dynamic.policies.budget import Budget
from dynamic.policies.decision import Decision, Feedback
from dynamic.policies.frontier import Frontier, FrontierPoint
from dynamic.policies.slowdown import Slowdown
from dynamic.policies.snapshot import Snapshot

T = TypeVar("T")

_TO_SPARE = 0.9  # of the latency limit: a dearer point than the current one must fit with this much


@dataclass(frozen=True, eq=False)
class _Choice:
    """What was chosen, of what, and why: `left` of `points` remained, the others for the reasons in `notes`."""

    point: FrontierPoint
    kind: str
    left: int
    points: int
    notes: tuple[tuple[Any, ...], ...]  # each a template with what goes into it
    gave_way: tuple[str, ...]
    latency_ms: float  # as profiled
    fair_share: float

    def decision(self, ratio: float) -> Decision:
        """The decision while requests take `ratio` of what the load explains."""
        return Decision(self.point, not self.gave_way, self.gave_way, _Reason(self, ratio * self.fair_share))


@dataclass(frozen=True, eq=False)
class _Reason:
    """A choice in words, which are made when somebody reads them."""

    choice: _Choice
    slowdown: float

    def __str__(self) -> str:
        best = self.choice
        why = "; ".join(template.format(*values) for template, *values in best.notes) or "nothing rules it out"
        certified = "not certified, " if best.point.point.bound is None else ""
        return (
            f"{best.point.point.name!r} is the {best.kind} of {best.left} of {best.points} points: {why} "
            f"({certified}predicted {best.latency_ms * self.slowdown:.3g} ms, slowdown {self.slowdown:.2f})"
        )


@dataclass(frozen=True, eq=False)
class _Kept:
    """A choice with all that it hangs on: between two readings of the sensors requests differ in the slowdown alone.

    Predictions rise with the slowdown's ratio. So where `lowest` and `highest` leave the same points `in_time`, all
    between leave them too, and the choice stands.
    """

    choice: _Choice
    frontier: Frontier
    budget: Budget
    snapshot: Snapshot
    drift: bool
    in_time: tuple[int, ...]
    lowest: float
    highest: float

    def under(
        self, frontier: Frontier, budget: Budget, snapshot: Snapshot, drift: bool, ratio: float
    ) -> _Choice | None:
        """The choice where it still stands."""
        same = snapshot is self.snapshot and budget is self.budget and frontier is self.frontier
        return self.choice if same and drift == self.drift and self.lowest <= ratio <= self.highest else None

    def wider(self, before: "_Kept | None") -> "_Kept":
        """The same over the range that it and the one before span, where that was the same choice."""
        if before is None:
            return self
        if before.under(self.frontier, self.budget, self.snapshot, self.drift, before.lowest) is None:
            return self
        if before.in_time != self.in_time:
            return self
        low, high = min(self.lowest, before.lowest), max(self.highest, before.highest)
        return _Kept(self.choice, self.frontier, self.budget, self.snapshot, self.drift, self.in_time, low, high)


@dataclass(frozen=True)
class BudgetState:
    """Last known readings (a sensor that falls silent changes nothing), the slowdown, what is in memory, and drift."""

    slowdown: Slowdown = field(default_factory=Slowdown)
    cpu_load: float | None = None
    cpu_cores: float | None = None
    battery: float | None = None
    plugged: bool | None = None
    memory_available_mb: float | None = None
    base_mb: float | None = None
    resident: frozenset[int] = frozenset()
    current: str | None = None
    drift: bool = False
    # follows from the others and saves time; not of __init__, so that a copy with other values does not have it
    _kept: _Kept | None = field(default=None, init=False, repr=False, compare=False)

    def _but(self, **changes: Any) -> Self:
        """This state with other values: `dataclasses.replace` for every request, at a sixth of the time."""
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__, **changes)
        return made


class BudgetPolicy:
    """Limits are applied from the strongest to the weakest: memory, battery, latency, drop.

    A limit that nothing left can meet gives way: what comes closest to it stays, and the decision names it.
    With `max_drop` given, the cheapest point that is left runs (the user has said what accuracy savings may cost);
    without it the most accurate.

    Where inputs have drifted from those of the calibration, what a point loses on them is not known: unless the budget
    says `on_drift="report"`, the point of the least promised drop runs. Of equals it is the first: the reference, whose
    drop is 0 whatever the inputs are, where the other limits allow it.

    Latency is the profiled one times a slowdown: the fair share that other processes' load leaves
    (busy cores b of c, t threads wanted: (b + t) / c where above 1), times what requests took beyond that.
    Memory is that of the process before any model was loaded plus the backbones of a point.
    """

    def initial(self) -> BudgetState:
        """Nothing seen."""
        return BudgetState()

    def decide(
        self, frontier: Frontier, budget: Budget, snapshot: Snapshot, state: BudgetState
    ) -> tuple[Decision, BudgetState]:
        """The point for the next request, with the reason; see the class."""
        ratio = state.slowdown.ratio
        kept = state._kept
        choice = None if kept is None else kept.under(frontier, budget, snapshot, state.drift, ratio)
        if choice is None:
            choice, state = _choose(frontier, budget, snapshot, _remember(state, snapshot))
        return choice.decision(ratio), state

    def observe(self, state: BudgetState, feedback: Feedback) -> BudgetState:
        """Take in what a request took, beyond what the load it ran under explains, and whether inputs have drifted."""
        load = _known(feedback.snapshot.cpu_load, state.cpu_load)
        cores = _known(feedback.snapshot.cpu_cores, state.cpu_cores)
        expected_ms = feedback.expected_ms * _fair_share(load, cores, feedback.threads)
        return state._but(slowdown=state.slowdown.observe(feedback.latency_ms, expected_ms), drift=feedback.drift)


def _choose(frontier: Frontier, budget: Budget, snapshot: Snapshot, state: BudgetState) -> tuple[_Choice, BudgetState]:
    points = frontier.points
    ratio, fair_share = state.slowdown.ratio, _fair_share(state.cpu_load, state.cpu_cores, frontier.costs.threads)
    latency = frontier.latency_ms(budget.percentile, snapshot.rows or 1)
    left = list(range(len(points)))  # places in `points`
    gave_way: list[str] = []
    notes: list[tuple[Any, ...]] = []

    def limit(name: str, figure: Sequence[float], most: float, unit: str, fitting: list[int]) -> None:
        nonlocal left
        if fitting:
            if len(fitting) < len(left):
                notes.append(("{} at most {:.4g}{}", name, most, unit))
            left = fitting
            return
        least = min(figure[i] for i in left)
        notes.append(("{} {:.4g}{} is over {:.4g}{} and gave way", name, least, unit, most, unit))
        gave_way.append(name)
        left = [i for i in left if figure[i] == least]

    if budget.memory_mb is not None and state.base_mb is not None:
        whole, most = [state.base_mb + p.memory_mb for p in points], budget.memory_mb
        limit("memory_mb", whole, most, " MB", [i for i in left if whole[i] <= most])
    if state.memory_available_mb is not None:
        room = state.memory_available_mb + _memory(frontier, state.resident)
        fitting = [i for i in left if points[i].memory_mb <= room]
        if len(fitting) < len(left):
            notes.append(("{:.0f} MB of memory are free{}", room, "" if fitting else ", too little for any point"))
        left = fitting or [min(left, key=lambda i: points[i].memory_mb)]
    if _battery_low(budget, state):
        left = [min(left, key=lambda i: points[i].cpu_ms[0])]
        notes.append(("battery {:.0%} is at or below the floor {:.0%}", state.battery, budget.battery_floor))
    if budget.latency_ms is not None:
        now = next((latency[i] for i in left if points[i].point.name == state.current), 0.0)
        slowdown = ratio * fair_share
        predicted, most = [ms * slowdown for ms in latency], budget.latency_ms
        fitting = [i for i in left if predicted[i] <= most * (_TO_SPARE if latency[i] > now > 0 else 1.0)]
        limit("latency_ms", predicted, most, " ms", fitting)
    in_time = tuple(left)
    if budget.max_drop is not None:
        drop, most = [p.point.promised_drop for p in points], budget.max_drop
        limit("max_drop", drop, most, "", [i for i in left if drop[i] <= most])

    if state.drift and budget.on_drift == "safest":
        kind, best = "safest", min(left, key=lambda i: points[i].point.promised_drop)
        notes.append(("inputs have drifted from those of the calibration: what savings would lose is not known",))
    elif budget.max_drop is not None:
        kind, best = "cheapest", min(left, key=lambda i: points[i].mean_ms[0])
    else:
        kind, best = "most accurate", max(left, key=lambda i: (points[i].point.accuracy[1], -points[i].mean_ms[0]))
    choice = _Choice(
        points[best],
        kind,
        len(left),
        len(points),
        tuple(notes),
        tuple(gave_way),
        latency[best],
        fair_share,
    )
    needed, name = frozenset(points[best].point.backbones), points[best].point.name
    resident = needed if budget.memory_mb is not None else state.resident | needed
    kept = None
    # the next choice must start from where this one did; and where latency gave way, the notes say by how much
    if (name, resident) == (state.current, state.resident) and "latency_ms" not in gave_way:
        lowest, highest = (0.0, math.inf) if budget.latency_ms is None else (ratio, ratio)
        kept = _Kept(choice, frontier, budget, snapshot, state.drift, in_time, lowest, highest).wider(state._kept)
    return choice, state._but(resident=resident, current=name, _kept=kept)


def _remember(state: BudgetState, snapshot: Snapshot) -> BudgetState:
    return state._but(
        cpu_load=_known(snapshot.cpu_load, state.cpu_load),
        cpu_cores=_known(snapshot.cpu_cores, state.cpu_cores),
        battery=_known(snapshot.battery, state.battery),
        plugged=_known(snapshot.plugged, state.plugged),
        memory_available_mb=_known(snapshot.memory_available_mb, state.memory_available_mb),
        # the first reading comes before any model was loaded
        base_mb=_known(state.base_mb, snapshot.memory_process_mb),
    )


def _known(new: T | None, old: T | None) -> T | None:
    return old if new is None else new


def _fair_share(cpu_load: float | None, cpu_cores: float | None, threads: int) -> float:
    if cpu_load is None or not cpu_cores:
        return 1.0
    return max(1.0, (cpu_load * cpu_cores + threads) / cpu_cores)


def _battery_low(budget: Budget, state: BudgetState) -> bool:
    if budget.battery_floor is None or state.battery is None or state.plugged:
        return False
    return state.battery <= budget.battery_floor


def _memory(frontier: Frontier, backbones: frozenset[int]) -> float:
    return sum(frontier.costs.memory_mb[b] for b in backbones)
