"""What each limit leaves of a frontier: one function a limit, in the names of `Budget.priority`.

Each narrows a `Sieve`. None knows the others, nor the order they come in.
"""

from collections.abc import Callable, Sequence
from typing import Any

from dynamic.policies.budget import Budget
from dynamic.policies.frontier import Frontier
from dynamic.policies.rank import Rank, members
from dynamic.policies.situation import Situation, resident_mb

TO_SPARE = 0.9  # of a limit: a dearer point than the current one must fit with this much
RESERVE_MB = 32.0  # of available memory, that is left to others
_ROUNDING_MB = 1e-3  # in which sums of the same networks may differ
_PRESSED = 0.1  # share of the time that something waits for memory, from which on memory is short
_PACE_SPARE = 0.98  # of what an inference may take from the battery: that follows no single request
_SURE = 0.95  # of the time asked for: who expects less says that a battery cannot last

Note = tuple[Any, ...]  # a template with what goes into it: words are made when somebody reads them


class Sieve:
    """Points that are `left` (bits, see `Rank`), while one limit after another is applied; and what was said of it.

    `current`: the point that runs (None: none yet). Where a limit fits no point that is left, it gives way: the points
    that come closest to it stay.
    """

    __slots__ = ("current", "frontier", "gave_way", "left", "lost_to", "notes")

    def __init__(self, frontier: Frontier, current: int | None) -> None:
        self.frontier, self.current = frontier, current
        self.left = (1 << len(frontier.points)) - 1
        self.gave_way: list[str] = []
        self.notes: list[Note] = []
        self.lost_to: Limit | None = None  # what has ruled the current point out

    def apply(self, limit: "Limit", budget: Budget, seen: Situation, wait: bool) -> None:
        """Apply a limit; `wait`: count the time that this request has waited."""
        limit(self, budget, seen, wait)
        if self.lost_to is None and self.current is not None and not self.left >> self.current & 1:
            self.lost_to = limit

    def keep(
        self, field: str | None, rank: Rank, most: float, note: Note, missed: Note | None = None, spare: float = 1.0
    ) -> bool:
        """Keep the points whose figure is at most `most`; dearer ones than the current at most `spare` of that.

        `note` says what was kept where others were not, `missed` that nothing fitted, with the least figure for its
        first value; `field` of the budget has given way then. Whether anything fitted.
        """
        fitting = rank.at_most(most)
        if spare < 1.0 and self.current is not None:
            fitting &= rank.at_most(most * spare) | rank.at_most(rank.figures[self.current])
        narrowed = self.left & fitting
        if narrowed:
            if narrowed != self.left:
                self.left = narrowed
                self.notes.append(note)
            return True
        self.closest(rank)
        if field is not None:
            self.gave_way.append(field)
        if missed is not None:
            self.notes.append((missed[0], rank.figures[rank.first(self.left)], *missed[1:]))
        return False

    def prefer(self, rank: Rank, most: float, note: Note) -> bool:
        """Keep the points whose figure is at most `most` where there are any; whether there are."""
        narrowed = self.left & rank.at_most(most)
        if narrowed and narrowed != self.left:
            self.left = narrowed
            self.notes.append(note)
        return bool(narrowed)

    def closest(self, rank: Rank) -> None:
        """Keep the points of the least figure."""
        self.left &= rank.at_most(rank.figures[rank.first(self.left)])


def memory(sieve: Sieve, budget: Budget, seen: Situation, wait: bool) -> None:
    """The process's resident memory, and what the system has left for it."""
    rank = sieve.frontier.memory
    if budget.memory_mb is not None and seen.base_mb is not None:
        other = seen.base_mb + seen.excess_mb
        sieve.keep(
            "memory_mb",
            rank,
            budget.memory_mb - other,
            ("memory_mb at most {:.4g} MB, {:.4g} of which are not networks'", budget.memory_mb, other),
            ("memory_mb: {:.4g} MB on top of {:.4g} is over {:.4g} MB and gave way", other, budget.memory_mb),
        )
    if seen.memory_available_mb is None:
        return
    here = resident_mb(sieve.frontier, seen.resident)
    room = seen.memory_available_mb - RESERVE_MB + here
    short = (seen.memory_pressure or 0.0) > _PRESSED
    if short:  # no more than there is now
        room = min(room, here + _ROUNDING_MB)
    words = "{:.0f} MB of memory are free" + (", and others wait for memory" if short else "")
    gives_way = None if "memory_mb" in sieve.gave_way else "memory_mb"
    sieve.keep(
        gives_way,
        rank,
        room,
        (words, max(room, 0.0)),
        ("{:.0f} MB of memory are needed, {:.0f} MB are free, too little for any point", max(room, 0.0)),
        spare=TO_SPARE,
    )


def deadline(sieve: Sieve, budget: Budget, seen: Situation, wait: bool) -> None:
    """An answer before the deadline; and of points that have one, those that are not cut where there are any."""
    if budget.deadline_ms is None:
        return
    waited_ms, rows = (seen.waited_ms if wait else 0.0), seen.rows
    left_ms = budget.deadline_ms - waited_ms
    slowdown = seen.slowdown
    fits = sieve.keep(
        "deadline_ms",
        sieve.frontier.first_answer(rows),
        left_ms / slowdown,
        ("first answer within deadline_ms {:.4g} ms", budget.deadline_ms),
        ("deadline_ms: {:.4g} ms as profiled to a first answer is over {:.4g} ms and gave way", left_ms / slowdown),
        spare=TO_SPARE,
    )
    if fits:
        whole = sieve.frontier.latency(budget.percentile, rows, seen.spread)
        sieve.prefer(whole, left_ms / slowdown, ("not cut by deadline_ms {:.4g} ms", budget.deadline_ms))


def battery(sieve: Sieve, budget: Budget, seen: Situation, wait: bool) -> None:
    """The floor, below which the cheapest point runs, and the charge that must last."""
    if seen.battery is None or seen.plugged:
        return
    rank = sieve.frontier.effort
    if budget.battery_floor is not None and seen.battery <= budget.battery_floor:
        sieve.closest(rank)
        sieve.notes.append(("battery {:.0%} is at or below the floor {:.0%}", seen.battery, budget.battery_floor))
    pace, floor = seen.pace, budget.battery_floor or 0.0
    if budget.last_s is None or pace is None:
        return
    hours = pace.left_s() / 3600
    most = pace.ceiling(floor)
    if sieve.keep(
        None,
        rank,
        most,
        ("battery {:.0%} must last {:.3g} h more", seen.battery, hours),
        spare=_PACE_SPARE,
    ):
        return
    least = rank.figures[rank.first(sieve.left)]
    without_s, with_s = pace.lasts_s(floor, 0.0), pace.lasts_s(floor, least)
    if without_s < _SURE * pace.left_s():
        sieve.gave_way.append("last_s")
        words = "battery can last {:.1f} h even without inference, not {:.1f} h: lower the frame rate or the screen"
        sieve.notes.append((words, without_s / 3600, hours))
    elif with_s < _SURE * pace.left_s():
        sieve.gave_way.append("last_s")
        words = "battery lasts {:.1f} h at the cheapest point, not {:.1f} h: lower the frame rate or the screen"
        sieve.notes.append((words, with_s / 3600, hours))
    else:
        sieve.notes.append(("battery {:.0%} must last {:.3g} h more", seen.battery, hours))


def temperature(sieve: Sieve, budget: Budget, seen: Situation, wait: bool) -> None:
    """Less effort the closer the temperature is to its limit, the least at the limit."""
    if budget.temperature_c is None or seen.cooling is None:
        return
    over = seen.temperature_c is not None and seen.temperature_c > budget.temperature_c  # now, whatever the mean says
    share = 0.0 if seen.throttled or over else seen.cooling.share(budget.temperature_c)
    if share >= 1.0:
        return
    rank = sieve.frontier.effort
    low, high = min(rank.figures), max(rank.figures)
    now_c, limit_c = seen.cooling.temperature_c, budget.temperature_c
    if over and seen.temperature_c is not None:
        now_c = max(now_c, seen.temperature_c)
    words = "{:.1f} C is close to {:.1f} C" if now_c <= limit_c else "{:.1f} C is over {:.1f} C"
    if seen.throttled:
        words = "the hardware slows this process down, at {:.1f} C"
    if share > 0.0:
        sieve.keep(None, rank, low + share * (high - low), (words, now_c, limit_c), spare=TO_SPARE)
        return
    sieve.closest(rank)
    sieve.notes.append((words, now_c, limit_c))
    if now_c > limit_c:
        sieve.gave_way.append("temperature_c")
        sieve.notes.append(("temperature_c gave way: this is the least effort there is",))


def latency(sieve: Sieve, budget: Budget, seen: Situation, wait: bool) -> None:
    """Of a request from arrival to answer, and so that those behind it are answered in time too."""
    most = budget.latency_ms
    if most is None:
        return
    slowdown = seen.slowdown
    rank = sieve.frontier.latency(budget.percentile, seen.rows, seen.spread)
    waited_ms, behind = (seen.waited_ms, seen.queue_length) if wait else (0.0, 0)
    words = "latency_ms at most {:.4g} ms" + (", {:.4g} of which it has waited" if waited_ms else "")
    after = f", after {waited_ms:.4g} ms of waiting," if waited_ms else ","
    over = "latency_ms {:.4g} ms as profiled, times {:.3g}" + after + " is over {:.4g} ms and gave way"
    fits = sieve.keep(
        "latency_ms",
        rank,
        (most - waited_ms) / slowdown,
        (words, most, waited_ms),
        (over, slowdown, most),
        spare=TO_SPARE,
    )
    if behind and fits:  # served one after the other, the last of them waits for all
        mean, turns = sieve.frontier.latency(None, seen.rows), behind / seen.servers + 1
        if not sieve.prefer(mean, most / slowdown / turns, ("{} wait behind it", behind)):
            sieve.left = 1 << mean.first(sieve.left)
            sieve.notes.append(("{} wait behind it", behind))


def energy(sieve: Sieve, budget: Budget, seen: Situation, wait: bool) -> None:
    """Of an inference on average."""
    most = budget.energy_mj
    if most is None or sieve.frontier.costs.energy_mj is None:
        return
    sieve.keep(
        "energy_mj",
        sieve.frontier.effort,
        most,
        ("energy_mj at most {:.4g} mJ", most),
        ("energy_mj {:.4g} mJ is over {:.4g} mJ and gave way", most),
    )


def drop(sieve: Sieve, budget: Budget, seen: Situation, wait: bool) -> None:
    """Accuracy: what may be given up, what must stay, and where inputs have drifted no savings at all."""
    if budget.max_drop is not None:
        sieve.keep(
            "max_drop",
            sieve.frontier.drop,
            budget.max_drop,
            ("max_drop at most {:.4g}", budget.max_drop),
            ("max_drop {:.4g} is over {:.4g} and gave way", budget.max_drop),
        )
    if budget.min_accuracy is not None:
        best = -min(sieve.frontier.accuracy.figures[i] for i in members(sieve.left))
        if not sieve.keep(
            "min_accuracy", sieve.frontier.accuracy, -budget.min_accuracy, ("accuracy at least {}", budget.min_accuracy)
        ):
            words = "min_accuracy {:.4g} is under {:.4g} and gave way"
            sieve.notes.append((words, best, budget.min_accuracy))
    if seen.drift and budget.on_drift == "safest":
        sieve.closest(sieve.frontier.drop)
        sieve.left &= -sieve.left  # the first: what others promise, they do not promise on these inputs
        words = "inputs have drifted from those of the calibration: what savings would lose is not known"
        sieve.notes.append((words,))


def stay(frontier: Frontier, budget: Budget, seen: Situation, needed: frozenset[int]) -> frozenset[int] | None:
    """The backbones that may stay in memory beside those that are needed; None: all.

    Under `memory_mb` as many as fit, the smallest first; where the system is short of memory none.
    """
    if seen.memory_available_mb is not None and (
        seen.memory_available_mb < RESERVE_MB or (seen.memory_pressure or 0.0) > _PRESSED
    ):
        return needed
    if budget.memory_mb is None:
        if seen.everything or seen.memory_available_mb is None:
            return None
        # all that is there may stay only once there is room for all there is: the cascade's graph holds every network
        room = seen.memory_available_mb - RESERVE_MB + resident_mb(frontier, seen.resident)
        return None if sum(frontier.costs.memory_mb) <= TO_SPARE * room else needed | seen.resident
    if seen.base_mb is None:
        return needed
    memory_mb = frontier.costs.memory_mb
    room = budget.memory_mb - seen.base_mb - seen.excess_mb - resident_mb(frontier, needed)
    kept = set(needed)
    for b in sorted(seen.resident - needed, key=memory_mb.__getitem__):
        room -= memory_mb[b]
        if room < 0:
            break
        kept.add(b)
    return frozenset(kept)


Limit = Callable[[Sieve, Budget, Situation, bool], None]
SLOW = frozenset({battery, temperature})  # control a store of charge or heat, and follow it down and up
LIMITS: dict[str, Limit] = {
    "memory": memory,
    "deadline": deadline,
    "battery": battery,
    "temperature": temperature,
    "latency": latency,
    "energy": energy,
    "drop": drop,
}


_ASKED = {
    "deadline": ("deadline_ms",),
    "battery": ("battery_floor", "last_s"),
    "temperature": ("temperature_c",),
    "latency": ("latency_ms",),
    "energy": ("energy_mj",),
}


def active(budget: Budget, names: Sequence[str]) -> tuple[Limit, ...]:
    """Those of the limits of these names that can bind under a budget, in the order of its priority.

    Memory may always be short, and inputs may always drift.
    """
    return tuple(
        LIMITS[name]
        for name in budget.priority
        if name in names and (name not in _ASKED or any(getattr(budget, field) is not None for field in _ASKED[name]))
    )


def worded(notes: Sequence[Note]) -> str:
    """What limits have said, as text."""
    return "; ".join(template.format(*values) for template, *values in notes)
