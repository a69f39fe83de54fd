"""Pacing of a battery: the effort that an inference may take so that the charge lasts for a given time.

The drain is modelled as `idle + per_effort * effort a second`, in battery fractions a second. Where costs have energies
and the sensors report the charge in mWh, both terms are given from the start. Otherwise least squares fits them to what
the battery lost between its own steps. A charge is often reported in whole percents, and the loss between two of its
changes is exact. The allowed effort is computed again and again from the remaining charge and time, so that errors do
not add up. This is a receding horizon, as in model predictive control.
"""

import math
from dataclasses import dataclass, replace

_STEP = 0.01  # loss of charge that is large enough to learn from
_AIM = 0.02  # share of the time asked for that is added as a margin
_FORGET = 0.9  # weight of earlier steps with each step of the battery
_GIVEN = 3.0  # steps of the battery that a given idle power counts for at first
_RATE_S = 1800.0  # horizon over which the rate of requests is averaged
_EVERY_S = 2.0  # between two updates of the rate
_GAP_S, _GAP = 30.0, 0.2  # without a reading, and as a share of the step: longer, and the time of a step is unknown
_LEAST_S = 0.5  # between two readings of the same charge


@dataclass(frozen=True)
class DrainModel:
    """A linear model of the drain, from weighted sums over steps of the battery.

    Args:
        idle: Drain without inference, in battery fractions a second. None: it is fitted.
        per_effort: Drain of one unit of effort. None: it is fitted.
        weight: Sum of weights of the steps.
        e: Weighted sum of the effort a second.
        d: Weighted sum of the drain a second.
        ee: Weighted sum of e times e.
        ed: Weighted sum of e times d.
    """

    idle: float | None = None
    per_effort: float | None = None
    weight: float = 0.0
    e: float = 0.0
    d: float = 0.0
    ee: float = 0.0
    ed: float = 0.0

    def learn(self, effort_per_s: float, drain_per_s: float) -> "DrainModel":
        """The model after one more step of the battery."""
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
        """(idle, per effort), in battery fractions a second. None: there are no data yet.

        A given idle power counts as some steps without inference, and its weight decays as that of steps does. Where
        all steps were equally busy, the two terms cannot be separated, and inference gets the whole drain. Savings are
        then overestimated at first, and the cost of inference is never underestimated.
        """
        prior_weight = 0.0 if self.idle is None else _GIVEN * (1 - (1 - _FORGET) * self.weight)
        weight = self.weight + prior_weight
        if not weight:
            return None
        mean_e, mean_d = self.e / weight, (self.d + prior_weight * (self.idle or 0.0)) / weight
        per_effort = self.per_effort
        if per_effort is None:
            apart = self.ee / weight - mean_e * mean_e
            slope = (self.ed / weight - mean_e * mean_d) / apart if apart > 0.01 * mean_e * mean_e else 0.0
            steepest = mean_d / mean_e if mean_e > 0 else 0.0
            per_effort = slope if 0 < slope < steepest else steepest
        return max(mean_d - per_effort * mean_e, 0.0), per_effort


@dataclass(frozen=True)
class BatteryPacer:
    """A battery that must last for `battery_duration_s`.

    Args:
        battery_duration_s: How long it must last.
        start_s: When this time began.
        time_s: When the state was last updated.
        read_s: When the battery was last read.
        edge_s: When the charge last fell by a step.
        edge: The charge then.
        edge_effort: Effort of all requests until then.
        rate_s: When the current count of requests began.
        rate_count: Requests until then.
        whole: Whether the last edge ended a whole step. The first reading does not.
        rate_hz: Rate of requests.
        drain: Model of the drain.
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
        """The state after the first reading, with the charge `battery`. `drain` holds the terms that are given."""
        return cls(battery_duration_s, time_s, time_s, time_s, time_s, battery, effort, time_s, count, drain=drain)

    def with_reading(
        self, time_s: float, battery: float, effort: float, count: int, drain: DrainModel, fresh: bool = True
    ) -> "BatteryPacer":
        """The state after one more reading.

        Args:
            time_s: When it was read.
            battery: The charge, 0 to 1.
            effort: Effort of all requests so far.
            count: Inputs of all requests so far.
            drain: The terms of the drain that are given.
            fresh: Whether the sensor answered. A step during a gap without readings teaches nothing.

        Returns:
            The new state.
        """
        if time_s < self.time_s:  # a clock that was set back: all its times move with it
            back = time_s - self.time_s
            moved = {name: getattr(self, name) + back for name in ("start_s", "edge_s", "rate_s", "time_s", "read_s")}
            return replace(self, **moved)
        if time_s - self.time_s < _LEAST_S and battery == self.edge:
            return self
        model = replace(self.drain, idle=drain.idle, per_effort=drain.per_effort)
        edge_s, edge, edge_effort, whole = self.edge_s, self.edge, self.edge_effort, self.whole
        if battery > edge + _STEP / 2:  # charged in between
            edge_s, edge, edge_effort, whole = time_s, battery, effort, False
        elif battery <= edge - _STEP + 1e-9:
            passed_s = time_s - edge_s
            # where the clock stands still, the charge has fallen and the drain is unknown
            exact = passed_s > 0 and time_s - self.read_s <= max(_GAP_S, _GAP * passed_s)
            if whole and exact:
                model = model.learn((effort - edge_effort) / passed_s, (edge - battery) / passed_s)
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
            model,
        )

    def charging(self, time_s: float, battery: float, effort: float) -> "BatteryPacer":
        """The state while the device has mains power. The end of the time and the model of the drain do not change."""
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

    def remaining_s(self, aim: float = 0.0) -> float:
        """Seconds from its latest step that the battery must still last. `aim` is a share of the time to add."""
        return max(self.start_s + self.battery_duration_s * (1 + aim) - self.edge_s, 1.0)

    def effort_limit(self, floor: float) -> float:
        """Effort of an inference on average with which the charge remains above `floor`. Infinite: unknown."""
        line = self.drain.line
        if line is None or self.time_s >= self.start_s + self.battery_duration_s:
            return math.inf
        idle, per_effort = line
        spare = (self.edge - floor) / self.remaining_s(_AIM) - idle
        if spare <= 0:
            return 0.0
        per_unit = per_effort * (self.rate_hz or 0.0)
        return spare / per_unit if per_unit > 0 else math.inf

    def lasts_s(self, floor: float, effort: float) -> float:
        """How long the charge lasts from its latest step with inferences of this effort. Infinite: unknown."""
        line = self.drain.line
        if line is None:
            return math.inf
        per_s = line[0] + line[1] * effort * (self.rate_hz or 0.0)
        return max(self.edge - floor, 0.0) / per_s if per_s > 0 else math.inf
