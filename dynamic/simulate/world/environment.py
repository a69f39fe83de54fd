"""Time passes: the world is moved on and the monitor reads its sensors, at fixed rates whatever requests do."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dynamic.policies.budget import Budget
from dynamic.policies.errors import SettingError
from dynamic.simulate.world.device_world import World
from dynamic.simulate.world.processes import Value, pieces
from dynamic.simulate.world.virtual_sensors import Sensors

LONGEST_STEP_S = 0.2  # temperature, ambient, mains, memory and budget are looked at no less often

Budgets = Budget | Callable[[float], Budget]  # one, or a function of the time in seconds
SAMPLED = ("time_s", "background_load", "temperature_c", "ambient_c", "frequency_ratio", "battery", "power_mw", "queue")


@dataclass(frozen=True)
class Surroundings:
    """What happens to the device, each a number or a function of time (see `dynamic.simulate.world.processes`).

    `background_load`: cores that others want, as a share of those there are (1: all are wanted; above: they queue too);
    `ambient_c`; `plugged`: not 0 on the mains; `memory_mb` for applications, this process included.
    """

    background_load: Value = 0.0
    ambient_c: Value = 25.0
    plugged: Value = 0.0
    memory_mb: Value = math.inf


class Environment:
    """The world and what is known of it: `reading`, fields of a Snapshot, and the `budget`, as of the last tick.

    The loop calls `advance` where `next_s`, the next tick, has come, and adds what inference uses to `spent_mj`
    itself where it has not. `fresh`: there was a reading since the loop last said otherwise. `monitor_hz` None: the
    loop calls `read` itself, for every request.
    """

    def __init__(
        self,
        world: World,
        sensors: Sensors,
        around: Surroundings,
        budget: Budgets,
        monitor_hz: float | None,
        sample_s: float,
    ) -> None:
        if monitor_hz is not None and not 0 < monitor_hz < math.inf:
            raise SettingError(f"monitor_hz={monitor_hz} must be a positive number, or None to read for every request")
        self.world, self._sensors = world, sensors
        self.load = _checked(pieces(around.background_load))
        self._ambient, self._plugged, self._memory = map(pieces, (around.ambient_c, around.plugged, around.memory_mb))
        self._budget: Callable[[float], Budget] | None = None if isinstance(budget, Budget) else budget
        self.budget = budget if isinstance(budget, Budget) else budget(0.0)
        self.budgets: list[tuple[float, Budget]] = [(0.0, self.budget)]
        self._every = max(1, math.ceil(1 / (monitor_hz * LONGEST_STEP_S))) if monitor_hz else 0
        self._hz = monitor_hz * self._every if monitor_hz else 1 / LONGEST_STEP_S
        self._ticks, self.next_s = 0, 0.0
        self.spent_mj, self.process_mb, self.free_mb, self.queue = 0.0, 0.0, math.inf, 0
        self.reading: Mapping[str, Any] = {}
        self.fresh = self.careful = False
        self.ticks_over_memory = 0
        self._sample_s, self._next_sample_s = sample_s, 0.0
        self.samples: list[tuple[float | None, ...]] = []

    @property
    def ticks(self) -> int:
        """How many there were."""
        return self._ticks

    def advance(self, to_s: float, since_s: float, power_mw: float) -> None:
        """All ticks up to `to_s`, inference drawing `power_mw` from `since_s` on; stops where the battery is empty."""
        world = self.world
        while self.next_s <= to_s:
            tick_s = self.next_s
            world.settle(tick_s, self.spent_mj + power_mw * (tick_s - since_s))
            self.spent_mj, since_s = 0.0, tick_s
            if world.empty:
                return
            self._tick(tick_s)
        self.spent_mj += power_mw * (to_s - since_s)

    def settle(self, now_s: float) -> None:
        """Move the world on between ticks."""
        self.world.settle(now_s, self.spent_mj)
        self.spent_mj = 0.0

    def read(self, now_s: float) -> None:
        """A new reading of all sensors."""
        self.reading = self._sensors.read(now_s, self.load(now_s)[0], self.free_mb, self.process_mb)
        self.fresh = True

    def _tick(self, now_s: float) -> None:
        world = self.world
        world.ambient_c, world.plugged = self._ambient(now_s)[0], bool(self._plugged(now_s)[0])
        self.free_mb = self._memory(now_s)[0]
        world.govern()
        self.careful = world.nearly_empty
        if self._budget is not None:
            budget = self._budget(now_s)
            if budget != self.budget:
                self.budget = budget
                self.budgets.append((now_s, budget))
        if self._every and self._ticks % self._every == 0:
            self.read(now_s)
        limit_mb = self.budget.memory_mb
        self.ticks_over_memory += self.process_mb > (self.free_mb if limit_mb is None else min(limit_mb, self.free_mb))
        if now_s >= self._next_sample_s:
            self._next_sample_s += self._sample_s
            seen = (world.temperature_c, world.ambient_c, world.frequency, world.battery, world.power_mw, self.queue)
            self.samples.append((now_s, self.load(now_s)[0], *seen))
        self._ticks += 1
        self.next_s = self._ticks / self._hz


def _checked(load: Callable[[float], tuple[float, float]]) -> Callable[[float], tuple[float, float]]:
    def piece(time_s: float) -> tuple[float, float]:
        found = load(time_s)
        if not 0 <= found[0] < math.inf:
            raise SettingError(
                f"background_load={found[0]} at {time_s:.3g} s must not be negative: a share of the cores"
            )
        return found

    return piece
