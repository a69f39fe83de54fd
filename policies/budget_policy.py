"""The default policy: what memory, battery, CPU load and the budget leave of the frontier, and the best of that."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

from dynamic.policies.budget import Budget
from dynamic.policies.decision import Decision, Feedback
from dynamic.policies.frontier import Frontier, FrontierPoint
from dynamic.policies.slowdown import Slowdown
from dynamic.policies.snapshot import Snapshot

T = TypeVar("T")

_TO_SPARE = 0.9  # of the latency limit: a dearer point than the current one must fit with this much


@dataclass(frozen=True)
class BudgetState:
    """Last known readings (a sensor that falls silent changes nothing), the slowdown, and what is in memory."""

    slowdown: Slowdown = field(default_factory=Slowdown)
    cpu_load: float | None = None
    cpu_cores: float | None = None
    battery: float | None = None
    plugged: bool | None = None
    memory_available_mb: float | None = None
    base_mb: float | None = None
    resident: frozenset[int] = frozenset()
    current: str | None = None


class BudgetPolicy:
    """Limits are applied from the strongest to the weakest: memory, battery, latency, drop.

    A limit that nothing left can meet gives way: what comes closest to it stays, and the decision names it.
    With `max_drop` given, the cheapest point that is left runs (the user has said what accuracy savings may cost);
    without it the most accurate.

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
        state = _remember(state, snapshot)
        slowdown = state.slowdown.ratio * _fair_share(state, frontier.costs.threads)
        latency = dict(
            zip(
                map(id, frontier.points),
                frontier.latency_ms(budget.percentile, snapshot.queue_length or 1),
                strict=True,
            )
        )

        def predicted_ms(p: FrontierPoint) -> float:
            return latency[id(p)] * slowdown

        left = list(frontier.points)
        gave_way: list[str] = []
        why: list[str] = []

        def limit(
            name: str,
            figure: Callable[[FrontierPoint], float],
            most: float,
            unit: str,
            share: Callable[[FrontierPoint], float] = lambda _: 1.0,
        ) -> None:
            nonlocal left
            fitting = [p for p in left if figure(p) <= most * share(p)]
            if fitting:
                if len(fitting) < len(left):
                    why.append(f"{name} at most {most:.4g}{unit}")
                left = fitting
                return
            least = min(map(figure, left))
            why.append(f"{name} {least:.4g}{unit} is over {most:.4g}{unit} and gave way")
            gave_way.append(name)
            left = [p for p in left if figure(p) == least]

        if budget.memory_mb is not None and state.base_mb is not None:
            base = state.base_mb
            limit("memory_mb", lambda p: base + p.memory_mb, budget.memory_mb, " MB")
        if state.memory_available_mb is not None:
            room = state.memory_available_mb + _memory(frontier, state.resident)
            fitting = [p for p in left if p.memory_mb <= room]
            if len(fitting) < len(left):
                why.append(f"{room:.0f} MB of memory are free" + ("" if fitting else ", too little for any point"))
            left = fitting or [min(left, key=lambda p: p.memory_mb)]
        if _battery_low(budget, state):
            left = [min(left, key=lambda p: p.cpu_ms[0])]
            why.append(f"battery {state.battery:.0%} is at or below the floor {budget.battery_floor:.0%}")
        if budget.latency_ms is not None:
            now = next((latency[id(p)] for p in left if p.point.name == state.current), 0.0)
            limit(
                "latency_ms",
                predicted_ms,
                budget.latency_ms,
                " ms",
                lambda p: _TO_SPARE if state.current and latency[id(p)] > now > 0 else 1.0,
            )
        if budget.max_drop is not None:
            limit("max_drop", lambda p: p.point.promised_drop, budget.max_drop, "")

        cheap = budget.max_drop is not None
        best = (
            min(left, key=lambda p: p.mean_ms[0])
            if cheap
            else max(left, key=lambda p: (p.point.accuracy[1], -p.mean_ms[0]))
        )
        kind = "cheapest" if cheap else "most accurate"
        because = f": {'; '.join(why)}" if why else ": nothing rules it out"
        reason = (
            f"{best.point.name!r} is the {kind} of {len(left)} of {len(frontier.points)} points{because} "
            f"(predicted {predicted_ms(best):.3g} ms, slowdown {slowdown:.2f})"
        )
        needed = frozenset(best.point.backbones)
        resident = needed if budget.memory_mb is not None else state.resident | needed
        decision = Decision(best, not gave_way, tuple(gave_way), reason)
        return decision, replace(state, resident=resident, current=best.point.name)

    def observe(self, state: BudgetState, feedback: Feedback) -> BudgetState:
        """Take in what a request took, beyond what the load it ran under explains."""
        cores = feedback.snapshot.cpu_cores if feedback.snapshot.cpu_cores is not None else state.cpu_cores
        load = feedback.snapshot.cpu_load if feedback.snapshot.cpu_load is not None else state.cpu_load
        share = _fair_share(replace(state, cpu_load=load, cpu_cores=cores), feedback.threads)
        expected_ms = feedback.expected_ms * share
        return replace(state, slowdown=state.slowdown.observe(feedback.latency_ms, expected_ms))


def _remember(state: BudgetState, snapshot: Snapshot) -> BudgetState:
    return BudgetState(
        slowdown=state.slowdown,
        cpu_load=_known(snapshot.cpu_load, state.cpu_load),
        cpu_cores=_known(snapshot.cpu_cores, state.cpu_cores),
        battery=_known(snapshot.battery, state.battery),
        plugged=_known(snapshot.plugged, state.plugged),
        memory_available_mb=_known(snapshot.memory_available_mb, state.memory_available_mb),
        # the first reading comes before any model was loaded
        base_mb=_known(state.base_mb, snapshot.memory_process_mb),
        resident=state.resident,
        current=state.current,
    )


def _known(new: T | None, old: T | None) -> T | None:
    return old if new is None else new


def _fair_share(state: BudgetState, threads: int) -> float:
    if state.cpu_load is None or not state.cpu_cores:
        return 1.0
    return max(1.0, (state.cpu_load * state.cpu_cores + threads) / state.cpu_cores)


def _battery_low(budget: Budget, state: BudgetState) -> bool:
    if budget.battery_floor is None or state.battery is None or state.plugged:
        return False
    return state.battery <= budget.battery_floor


def _memory(frontier: Frontier, backbones: frozenset[int]) -> float:
    return sum(frontier.costs.memory_mb[b] for b in backbones)
