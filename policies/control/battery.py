"""Pacing a battery: what an inference may take so that the charge lasts as long as was asked.

The drain is taken as `idle + per_effort * effort a second`, in battery fractions a second. Where costs and sensors know
energies and the charge in mWh both are known from the start; where not they are fitted by least squares to what the
battery lost between its own steps (a charge is often told in whole points: between two of its changes what was lost is
exact). What may be spent is worked out anew all the time from what is left of charge and time, so that errors do not
add up: a horizon that recedes, as in model predictive control.
"""

import math
from dataclasses import dataclass, replace

_STEP = 0.01  # of the charge: what a battery must lose before that says something
_AIM = 0.02  # of the time asked for, that is aimed at beyond it
_FORGET = 0.9  # weight of what was learned before, with each step of the battery
_GIVEN = 3.0  # steps of the battery that a given idle power counts for at first
_RATE_S = 1800.0  # horizon over which the rate of requests is averaged
_EVERY_S = 2.0  # how often it is worked out
_GAP_S, _GAP = 30.0, 0.2  # without a reading, and as a share of the step: then nobody knows when the charge fell
_LOOKS_S = 0.5  # between two looks at a battery that says what it said before


@dataclass(frozen=True)
class DrainModel:
    """What is known of the drain: `idle` and `per_effort` where they are given, and weighted sums of what was seen.

    Of steps of the battery: their weight, the sums of effort a second (e), of the drain (d), and of their products.
    """

    idle: float | None = None
    per_effort: float | None = None
    weight: float = 0.0
    e: float = 0.0
    d: float = 0.0
    ee: float = 0.0
    ed: float = 0.0

    def learn(self, effort_per_s: float, drain_per_s: float) -> "DrainModel":
        """Take one more step of the battery in."""
        e, d, old = effort_per_s, drain_per_s, _FORGET
        return DrainModel(
            self.idle,
            self.per_effort,
            old * self.weight + 1.0,
            old * self.e + e,
            old * self.d + d,
            old * self.ee + e * e,
            old * self.ed + e * d,
        )

    @property
    def line(self) -> tuple[float, float] | None:
        """(idle, per effort), in battery fractions a second; None where nothing is known yet.

        A given idle power counts as some steps without inference, and is forgotten as steps are. Where all that was
        seen was as busy, the two cannot be told apart, and all is put down to inference: then what saving saves is
        overrated at first, and what spending costs never underrated.
        """
        given = 0.0 if self.idle is None else _GIVEN * (1 - (1 - _FORGET) * self.weight)
        weight = self.weight + given
        if not weight:
            return None
        mean_e, mean_d = self.e / weight, (self.d + given * (self.idle or 0.0)) / weight
        per_effort = self.per_effort
        if per_effort is None:
            apart = self.ee / weight - mean_e * mean_e
            slope = (self.ed / weight - mean_e * mean_d) / apart if apart > 0.01 * mean_e * mean_e else 0.0
            steepest = mean_d / mean_e if mean_e > 0 else 0.0
            per_effort = slope if 0 < slope < steepest else steepest
        return max(mean_d - per_effort * mean_e, 0.0), per_effort


@dataclass(frozen=True)
class BatteryPacer:
    """How a battery that must last `battery_duration_s` is doing.

    It started at `start_s` and is looked at now, at `time_s`, after it was last read at `read_s`.

    `edge_s`, `edge`, `edge_effort`: when the charge last fell a step, to what, and the effort spent until then;
    `whole`: whether that was a step, not the first reading. `rate_s`, `rate_count`: since when requests are counted for
    their rate `rate_hz`, and how many were answered by then.
    """

    battery_duration_s: float
    start_s: float
    time_s: float
    read_s: float
    edge_s: float
    edge: float
    edge_effort: float
    rate_s: float
    rate_count: int
    whole: bool = False
    rate_hz: float | None = None
    drain: DrainModel = DrainModel()

    @classmethod
    def start(
        cls,
        battery_duration_s: float,
        time_s: float,
        battery: float,
        effort: float,
        count: int,
        drain: DrainModel = DrainModel(),
    ) -> "BatteryPacer":
        """The battery, seen for the first time, at `battery` (0..1); `drain` holds what is given."""
        return cls(battery_duration_s, time_s, time_s, time_s, time_s, battery, effort, time_s, count, drain=drain)

    def with_reading(
        self, time_s: float, battery: float, effort: float, count: int, drain: DrainModel, fresh: bool = True
    ) -> "BatteryPacer":
        """The battery at `battery` (0..1) after `effort` and `count` requests in all; `drain` holds what is given.

        `fresh`: this was read, not remembered. Nothing is learned from a step that fell while nothing was read.
        """
        if time_s < self.time_s:  # a clock that was set back: all that was timed by it moves with it
            back = time_s - self.time_s
            moved = {name: getattr(self, name) + back for name in ("start_s", "edge_s", "rate_s", "time_s", "read_s")}
            return replace(self, **moved)
        if time_s - self.time_s < _LOOKS_S and battery == self.edge:
            return self
        known = replace(self.drain, idle=drain.idle, per_effort=drain.per_effort)
        edge_s, edge, edge_effort, whole = self.edge_s, self.edge, self.edge_effort, self.whole
        if battery > edge + _STEP / 2:  # charged in between
            edge_s, edge, edge_effort, whole = time_s, battery, effort, False
        elif battery <= edge - _STEP + 1e-9:
            passed_s = time_s - edge_s
            # a clock that stands says nothing of the drain, and the charge has fallen all the same
            exact = passed_s > 0 and time_s - self.read_s <= max(_GAP_S, _GAP * passed_s)
            if whole and exact:
                known = known.learn((effort - edge_effort) / passed_s, (edge - battery) / passed_s)
            edge_s, edge, edge_effort, whole = time_s, battery, effort, exact
        rate_s, rate_count, rate_hz = self.rate_s, self.rate_count, self.rate_hz
        passed_s = time_s - rate_s
        if passed_s >= _EVERY_S:
            now_hz = (count - rate_count) / passed_s
            weight = max(1 - math.exp(-passed_s / _RATE_S), passed_s / (time_s - self.start_s))
            rate_hz = now_hz if rate_hz is None else rate_hz + weight * (now_hz - rate_hz)
            rate_s, rate_count = time_s, count
        return BatteryPacer(
            self.battery_duration_s,
            self.start_s,
            time_s,
            time_s if fresh else self.read_s,
            edge_s,
            edge,
            edge_effort,
            rate_s,
            rate_count,
            whole,
            rate_hz,
            known,
        )

    def charging(self, time_s: float, battery: float, effort: float) -> "BatteryPacer":
        """On the mains: the end that was asked for stays, and what was learned; nothing is drained."""
        back = min(time_s - self.time_s, 0.0)  # of a clock that was set back
        return replace(
            self,
            start_s=self.start_s + back,
            rate_s=self.rate_s + back,
            time_s=time_s,
            read_s=time_s,
            edge_s=time_s,
            edge=battery,
            edge_effort=effort,
            whole=False,
        )

    def left_s(self, aim: float = 0.0) -> float:
        """Seconds that the battery must still last, from its latest step on; `aim`: share of the time to add."""
        return max(self.start_s + self.battery_duration_s * (1 + aim) - self.edge_s, 1.0)

    def ceiling(self, floor: float) -> float:
        """What an inference may take on average so that the charge stays above `floor` in time; inf: unknown."""
        line = self.drain.line
        if line is None or self.time_s >= self.start_s + self.battery_duration_s:
            return math.inf
        idle, per_effort = line
        spare = (self.edge - floor) / self.left_s(_AIM) - idle
        if spare <= 0:
            return 0.0
        per_unit = per_effort * (self.rate_hz or 0.0)
        return spare / per_unit if per_unit > 0 else math.inf

    def lasts_s(self, floor: float, effort: float) -> float:
        """How long the charge lasts from its latest step on where inferences take so much; inf: unknown."""
        line = self.drain.line
        if line is None:
            return math.inf
        per_s = line[0] + line[1] * effort * (self.rate_hz or 0.0)
        return max(self.edge - floor, 0.0) / per_s if per_s > 0 else math.inf
