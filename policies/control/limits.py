"""What each limit leaves of a frontier: one function a limit, in the names of `Budget.priority`.

Each narrows a `CandidateFilter`. None knows the others, nor the order they come in.
"""

from collections.abc import Callable, Sequence

from dynamic.policies.budget import Budget
from dynamic.policies.control.device_state import DeviceState, resident_mb
from dynamic.policies.control.feasibility import NO_SENSOR
from dynamic.policies.control.reasons import Note, formatted
from dynamic.policies.control.reasons import worded as worded
from dynamic.policies.control.thermal import AHEAD_S
from dynamic.policies.fast_paths import Rank, members
from dynamic.policies.frontier import Frontier

TO_SPARE = 0.9  # of a limit: a dearer point than the current one must fit with this much
RESERVE_MB = 32.0  # of available memory, that is left to others
TELLS_MB = 0.5  # of resident memory: a process's own varies by as much between two readings
_ROUNDING_MB = 1e-3  # in which sums of the same networks may differ
TELLS = 0.01  # of a figure beyond its limit: less is no reason for another point
LEAST = 1e-9  # of a figure that another is divided by
_PRESSED = 0.1  # share of the time that something waits for memory, from which on memory is short
_PACE_SPARE = 0.98  # of what an inference may take from the battery: that follows no single request
_SURE = 0.95  # of the time asked for: who expects less says that a battery cannot last
_WORTH = "points of up to {} stay, since less would cost more accuracy than it gains"


class CandidateFilter:
    """Points that are `left` (bits, see `Rank`), while one limit after another is applied; and what was said of it.

    `current`: the point that runs (None: none yet). Where a limit fits no point that is left, it gives way: the points
    that come closest to it stay, accuracy considered.
    """

    __slots__ = ("current", "frontier", "left", "lost_to", "notes", "spared", "violated_limits")

    def __init__(self, frontier: Frontier, current: int | None) -> None:
        self.frontier, self.current = frontier, current
        self.left = (1 << len(frontier.points)) - 1
        self.violated_limits: list[str] = []
        self.notes: list[Note] = []
        self.spared: list[tuple[int, float]] = []  # see `worded`
        self.lost_to: Limit | None = None  # what has ruled the current point out

    def apply(self, limit: "Limit", budget: Budget, seen: DeviceState, wait: bool) -> None:
        """Apply a limit; `wait`: count the time that this request has waited."""
        limit(self, budget, seen, wait)
        if self.lost_to is None and self.current is not None and not self.left >> self.current & 1:
            self.lost_to = limit

    def keep(
        self,
        field: str | None,
        rank: Rank,
        most: float,
        note: Note,
        missed: Note | None = None,
        spare: float = 1.0,
        beside: float | None = 0.0,
    ) -> bool:
        """Keep the points whose figure is at most `most`; dearer ones than the current at most `spare` of that.

        Where none is, the points of the least figure stay, and those of more that are worth it; see `nearest`.

        `note` says what was kept where others were not, `missed` that nothing fitted, with the least figure for its
        first value; `field` of the budget has given way then. Whether anything fitted.
        """
        fitting = rank.at_most(most)
        if spare < 1.0 and self.current is not None:
            fitting &= rank.at_most(most * spare) | rank.at_most(rank.figures[self.current])
        narrowed = self.left & fitting
        if narrowed:
            if narrowed != self.left:
                if spare < 1.0 and self.left & rank.at_most(most) != narrowed:
                    self.spared.append((len(self.notes), spare))
                self.left = narrowed
                self.notes.append(note)
            return True
        worth = self.nearest(rank, beside)
        if field is not None:
            self.violated_limits.append(field)
        if missed is not None:
            self.notes.append((missed[0], rank.figures[rank.first(self.left)], *missed[1:]))
            self.notes += [] if worth is None else [(_WORTH, worth)]
        return False

    def nearest(self, rank: Rank, beside: float | None) -> float | None:
        """Keep the points that come closest to a limit that none meets: up to which figure more was worth it, or None.

        One percent more of the figure must bring one point of accuracy. `beside`: what a figure comes on top of (None:
        accuracy itself is limited). Figures within one percent of the least count as the least.
        """
        if beside is None:
            self.closest(rank)
            return None
        least = rank.figures[rank.first(self.left)]
        whole, inaccuracy = max(beside + least, LEAST), self.frontier.accuracy.figures
        best = min(members(self.left), key=lambda i: (beside + rank.figures[i]) / whole + inaccuracy[i])
        self.left &= rank.at_most(max(rank.figures[best], least + TELLS * whole))
        return rank.figures[best] if rank.figures[best] > least else None

    def prefer(self, rank: Rank, most: float, note: Note) -> bool:
        """Keep the points whose figure is at most `most` where there are any; whether there are."""
        narrowed = self.left & rank.at_most(most)
        if narrowed and narrowed != self.left:
            self.left = narrowed
            self.notes.append(note)
        return bool(narrowed)

    def closest(self, rank: Rank) -> None:
        """Keep the points of the least figure."""
        self.left = rank.least(self.left)


def memory(sieve: CandidateFilter, budget: Budget, seen: DeviceState, wait: bool) -> None:
    """The process's resident memory, and what the system has left for it."""
    rank = sieve.frontier.memory
    if budget.memory_mb is not None and seen.base_mb is None:
        sieve.notes.append(_unmeasured("memory_mb", budget.memory_mb))
    elif budget.memory_mb is not None and seen.base_mb is not None:
        other = seen.base_mb + seen.excess_mb
        sieve.keep(
            "memory_mb",
            rank,
            budget.memory_mb - other + TELLS_MB,
            ("memory_mb at most {} MB, {} of which are not networks'", budget.memory_mb, other),
            ("memory_mb: {} MB on top of {} is over {} MB and gave way", other, budget.memory_mb),
            beside=other,
        )
    if seen.memory_available_mb is None:
        return
    here = resident_mb(sieve.frontier, seen.resident)
    room = seen.memory_available_mb - RESERVE_MB + here
    short = (seen.memory_pressure or 0.0) > _PRESSED
    if short:  # no more than there is now
        room = min(room, here + _ROUNDING_MB)
    gives_way = None if "memory_mb" in sieve.violated_limits else "memory_mb"
    sieve.keep(
        gives_way,
        rank,
        room,
        (_free, seen, here, short),
        (_too_little, seen, here, short),
        spare=TO_SPARE,
        beside=(seen.base_mb or 0.0) + seen.excess_mb,
    )


def _free(seen: DeviceState, here: float, short: bool) -> str:
    """The memory that is free, in words; `here`: what loaded networks hold."""
    words = formatted("{} MB of memory are free, {} MB of which are for others", seen.memory_available_mb, RESERVE_MB)
    if here:
        words += formatted(", networks of {} MB are loaded", here)
    if short:
        words += ", others wait for memory and no more is loaded"
    return words


def _too_little(least_mb: float, seen: DeviceState, here: float, short: bool) -> str:
    return formatted("{} MB of memory are needed, and {}: too little for any point", least_mb, _free(seen, here, short))


def deadline(sieve: CandidateFilter, budget: Budget, seen: DeviceState, wait: bool) -> None:
    """An answer before the deadline; and of points that have one, those that are not cut where there are any."""
    if budget.deadline_ms is None:
        return
    waited_ms, rows = (seen.waited_ms if wait else 0.0), seen.rows
    left_ms = budget.deadline_ms - waited_ms
    slowdown = seen.slowdown
    waited, waits = (", {} of which it has waited", (waited_ms,)) if waited_ms else ("", ())
    late = (", times {}" if slowdown != 1.0 else "") + (", after {} ms of waiting," if waited_ms else "")
    fits = sieve.keep(
        "deadline_ms",
        sieve.frontier.first_answer(rows),
        left_ms / slowdown,
        ("first answer within deadline_ms {} ms" + waited, budget.deadline_ms, *waits),
        (
            "deadline_ms: {} ms as profiled to a first answer" + late + " is over {} ms and gave way",
            *((slowdown,) if slowdown != 1.0 else ()),
            *waits,
            budget.deadline_ms,
        ),
        spare=TO_SPARE,
    )
    if fits:
        whole = sieve.frontier.latency(budget.percentile, rows, seen.spread)
        sieve.prefer(whole, left_ms / slowdown, ("not cut by deadline_ms {} ms", budget.deadline_ms))


def battery(sieve: CandidateFilter, budget: Budget, seen: DeviceState, wait: bool) -> None:
    """The floor, below which the cheapest point runs, and the charge that must last."""
    if seen.plugged:
        return
    if seen.battery is None:
        limits = (("battery_floor", budget.battery_floor), ("battery_duration_s", budget.battery_duration_s))
        sieve.notes += [_unmeasured(name, value) for name, value in limits if value is not None]
        return
    rank = sieve.frontier.effort
    if budget.battery_floor is not None and seen.battery <= budget.battery_floor:
        sieve.closest(rank)
        words = "battery {:share} is at or below the floor {:share}"
        sieve.notes.append((words, seen.battery, budget.battery_floor))
    pace, floor = seen.pace, budget.battery_floor or 0.0
    if budget.battery_duration_s is None or pace is None:
        return
    passed_s = seen.time_s - pace.edge_s  # since the charge last fell a step: what lasts is counted from there
    hours = (pace.start_s + pace.battery_duration_s - seen.time_s) / 3600
    lasting = "battery {:share} must last {:3} h more"
    most = pace.ceiling(floor)
    if sieve.keep(
        None,
        rank,
        most,
        (lasting, seen.battery, hours),
        spare=_PACE_SPARE,
    ):
        return
    least = rank.figures[rank.first(sieve.left)]
    without_s, with_s = pace.lasts_s(floor, 0.0), pace.lasts_s(floor, least)
    if without_s < _SURE * pace.left_s():
        sieve.violated_limits.append("battery_duration_s")
        words = (
            "battery_duration_s: battery can last {:.1f} h even without inference, not {:.1f} h: lower the frame rate "
            "or the screen"
        )
        sieve.notes.append((words, max(without_s - passed_s, 0.0) / 3600, hours))
    elif with_s < _SURE * pace.left_s():
        sieve.violated_limits.append("battery_duration_s")
        words = (
            "battery_duration_s: battery lasts {:.1f} h at the cheapest point, not {:.1f} h: lower the frame rate "
            "or the screen"
        )
        sieve.notes.append((words, max(with_s - passed_s, 0.0) / 3600, hours))
    else:
        sieve.notes.append((lasting, seen.battery, hours))


def temperature(sieve: CandidateFilter, budget: Budget, seen: DeviceState, wait: bool) -> None:
    """Less effort the closer the temperature is to its limit, the least at the limit."""
    if budget.temperature_c is None:
        return
    if seen.cooling is None:
        sieve.notes.append(_unmeasured("temperature_c", budget.temperature_c))
        return
    over = seen.temperature_c is not None and seen.temperature_c > budget.temperature_c  # now, whatever the mean says
    share = 0.0 if seen.throttled or over else seen.cooling.share(budget.temperature_c)
    if share >= 1.0:
        return
    rank = sieve.frontier.effort
    low, high = min(rank.figures), max(rank.figures)
    now_c, limit_c = seen.cooling.temperature_c, budget.temperature_c
    note = (_heat, seen, limit_c)
    if share > 0.0:
        sieve.keep(None, rank, low + share * (high - low), note, spare=TO_SPARE)
        return
    sieve.closest(rank)
    sieve.notes.append(note)
    if over or now_c > limit_c:
        sieve.violated_limits.append("temperature_c")
        mean_c = (now_c, " on average") if now_c > limit_c else (seen.temperature_c, "")
        words = "temperature_c: {:.1f} C{} is over {:.1f} C and gave way, this is the least effort there is"
        sieve.notes.append((words, *mean_c, limit_c))


def _heat(seen: DeviceState, limit_c: float) -> str:
    """What was measured, what is predicted, and which of them decides, in words."""
    assert seen.cooling is not None
    predicted_c = seen.cooling.ahead_c
    measured_c = seen.temperature_c if seen.temperature_c is not None else seen.cooling.temperature_c
    if seen.throttled:
        return formatted("the hardware slows this process down, at {:.1f} C", measured_c)
    if measured_c > limit_c:
        return formatted("{:.1f} C are measured: that is over the limit of {:.1f} C", measured_c, limit_c)
    side = "over" if predicted_c >= limit_c else "close to"
    words = (
        "{:.1f} C are measured and {:.1f} C are predicted in {} s: the prediction is " + side + " the limit of {:.1f} C"
    )
    return formatted(words, measured_c, predicted_c, AHEAD_S, limit_c)


def latency(sieve: CandidateFilter, budget: Budget, seen: DeviceState, wait: bool) -> None:
    """Of a request from arrival to answer, and so that those behind it are answered in time too."""
    most = budget.latency_ms
    if most is None:
        return
    slowdown = seen.slowdown
    rank = sieve.frontier.latency(budget.percentile, seen.rows, seen.spread)
    waited_ms, behind = (seen.waited_ms, seen.queue_length) if wait else (0.0, 0)
    words = "latency_ms at most {} ms" + (", {} of which it has waited" if waited_ms else "")
    after = ", after {} ms of waiting," if waited_ms else ","
    over = "latency_ms {} ms as profiled, times {}" + after + " is over {} ms and gave way"
    fits = sieve.keep(
        "latency_ms",
        rank,
        (most - waited_ms) / slowdown,
        (words, most, waited_ms),
        (over, slowdown, *((waited_ms,) if waited_ms else ()), most),
        spare=TO_SPARE,
    )
    if behind and fits:  # served one after the other, the last of them waits for all
        mean, turns = sieve.frontier.latency(None, seen.rows), behind / seen.servers + 1
        if not sieve.prefer(mean, most / slowdown / turns, ("{} wait behind it", behind)):
            sieve.left = 1 << mean.first(sieve.left)
            sieve.notes.append(("{} wait behind it", behind))


def energy(sieve: CandidateFilter, budget: Budget, seen: DeviceState, wait: bool) -> None:
    """Energy, and CPU time, of an inference on average."""
    metered = sieve.frontier.costs.energy_mj is not None
    if budget.energy_mj is not None and metered:
        sieve.keep(
            "energy_mj",
            sieve.frontier.effort,
            budget.energy_mj,
            ("energy_mj at most {} mJ", budget.energy_mj),
            ("energy_mj {} mJ is over {} mJ and gave way", budget.energy_mj),
        )
    if budget.cpu_ms is not None:
        sieve.keep(
            "cpu_ms",
            sieve.frontier.processor if metered else sieve.frontier.effort,
            budget.cpu_ms,
            ("cpu_ms at most {} CPU-ms", budget.cpu_ms),
            ("cpu_ms {} CPU-ms is over {} CPU-ms and gave way", budget.cpu_ms),
        )


def drop(sieve: CandidateFilter, budget: Budget, seen: DeviceState, wait: bool) -> None:
    """Accuracy: what may be given up, what must stay, and where inputs have drifted no savings at all."""
    if budget.max_drop is not None:
        sieve.keep(
            "max_drop",
            sieve.frontier.drop,
            budget.max_drop,
            ("max_drop at most {}", budget.max_drop),
            ("max_drop {} is over {} and gave way", budget.max_drop),
            beside=None,
        )
    if budget.min_accuracy is not None:
        best = -min(sieve.frontier.accuracy.figures[i] for i in members(sieve.left))
        if not sieve.keep(
            "min_accuracy",
            sieve.frontier.accuracy,
            -budget.min_accuracy,
            ("accuracy at least {}", budget.min_accuracy),
            beside=None,
        ):
            words = "min_accuracy {} is under {} and gave way"
            sieve.notes.append((words, best, budget.min_accuracy))
    if seen.drift and budget.on_drift == "safest":
        sieve.closest(sieve.frontier.drop)
        sieve.left &= -sieve.left  # the first: what others promise, they do not promise on these inputs
        words = "inputs have drifted from those of the calibration: what savings would lose is not known"
        sieve.notes.append((words,))


def stay(frontier: Frontier, budget: Budget, seen: DeviceState, needed: frozenset[int]) -> frozenset[int] | None:
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


def _unmeasured(name: str, value: float) -> Note:
    """What a limit says that no sensor follows."""
    return NO_SENSOR[name], value


Limit = Callable[[CandidateFilter, Budget, DeviceState, bool], None]
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
    "battery": ("battery_floor", "battery_duration_s"),
    "temperature": ("temperature_c",),
    "latency": ("latency_ms",),
    "energy": ("energy_mj", "cpu_ms"),
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
