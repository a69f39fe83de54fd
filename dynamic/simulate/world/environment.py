"""The passing of time: world and sensors are updated at fixed rates, whatever requests do."""

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
    """What acts on the device. Each is a number or a function of time (see `dynamic.simulate.world.processes`).

    Args:
        background_load: Cores that others demand, as a share of the cores of the device. Above 1 they queue too.
        ambient_c: Ambient temperature in degrees Celsius.
        plugged: 0 on battery, anything else on the mains.
        memory_mb: Memory for applications in 10^6 bytes, this process included.
    """

    background_load: Value = 0.0
    ambient_c: Value = 25.0
    plugged: Value = 0.0
    memory_mb: Value = math.inf


class Environment:
    """A simulated device with its sensors, as of the last tick.

    The loop calls `advance` once the time of the next tick, `next_s`, has come. Before that it adds the energy of
    inference to `spent_mj`. `reading` holds the last values by field of `Snapshot`, `budget` the budget in force.
    `fresh` is True after a reading, until the loop sets it to False.

    Args:
        world: Battery, temperature and clock.
        sensors: The sensors of the device.
        around: What acts on the device.
        budget: The budget, or a function of the time in seconds to one.
        monitor_hz: Readings a second, above 0. None: the loop calls `read` for every request.
        sample_s: Seconds between samples of the report's series.

    Raises:
        SettingError: `monitor_hz` is not a positive number, or the background load is negative.

    Example:
        >>> from dynamic.simulate.world.device_world import World
        >>> from dynamic.simulate.world.environment import Surroundings
        >>> phone = dynamic.simulate.device("mid-range-phone")
        >>> world = World(phone, battery=0.5, ambient_c=25.0, temperature_c=None, screen=True)
        >>> sensors = dynamic.simulate.Sensors(
        ...     phone, world, threads=1, faults=None, random=np.random.default_rng(0)
        ... )
        >>> environment = dynamic.simulate.Environment(
        ...     world, sensors, around=Surroundings(), budget=dynamic.Budget(), monitor_hz=5.0, sample_s=60.0
        ... )
        >>> environment.advance(10.0, 0.0, power_mw=0.0)
        >>> environment.ticks
        51
    """

    def __init__(
        self,
        world: World,
        sensors: Sensors,
        *,
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
        """Number of ticks so far."""
        return self._ticks

    def advance(self, to_s: float, since_s: float, *, power_mw: float) -> None:
        """Run all ticks up to a time. Stop where the battery is empty.

        Args:
            to_s: End in seconds.
            since_s: Time in seconds from which on inference draws power.
            power_mw: Power of inference in milliwatts.

        Raises:
            SettingError: The background load at a tick is negative.

        Example:
            >>> from dynamic.simulate.world.device_world import World
            >>> from dynamic.simulate.world.environment import Surroundings
            >>> vm = dynamic.simulate.device("cloud-vm")
            >>> world = World(vm, battery=1.0, ambient_c=25.0, temperature_c=None, screen=False)
            >>> sensors = dynamic.simulate.Sensors(vm, world, threads=1, faults=None, random=np.random.default_rng(0))
            >>> environment = dynamic.simulate.Environment(
            ...     world, sensors, around=Surroundings(), budget=dynamic.Budget(), monitor_hz=5.0, sample_s=60.0
            ... )
            >>> environment.advance(1.0, 0.0, power_mw=500.0)
            >>> round(world.inference_mj)
            500
        """
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
        """Update the world between two ticks.

        Args:
            now_s: Time in seconds.

        Raises:
            TypeError: `now_s` is no number.

        Example:
            >>> from dynamic.simulate.world.device_world import World
            >>> from dynamic.simulate.world.environment import Surroundings
            >>> vm = dynamic.simulate.device("cloud-vm")
            >>> world = World(vm, battery=1.0, ambient_c=25.0, temperature_c=None, screen=False)
            >>> sensors = dynamic.simulate.Sensors(vm, world, threads=1, faults=None, random=np.random.default_rng(0))
            >>> environment = dynamic.simulate.Environment(
            ...     world, sensors, around=Surroundings(), budget=dynamic.Budget(), monitor_hz=None, sample_s=60.0
            ... )
            >>> environment.settle(2.5)
            >>> world.time_s
            2.5
        """
        self.world.settle(now_s, self.spent_mj)
        self.spent_mj = 0.0

    def read(self, now_s: float) -> None:
        """Read all sensors into `reading`.

        Args:
            now_s: Time in seconds.

        Raises:
            SettingError: The background load is negative, or `Faults.missing` names a field that no snapshot has.

        Example:
            >>> from dynamic.simulate.world.device_world import World
            >>> from dynamic.simulate.world.environment import Surroundings
            >>> vm = dynamic.simulate.device("cloud-vm")
            >>> world = World(vm, battery=1.0, ambient_c=25.0, temperature_c=None, screen=False)
            >>> sensors = dynamic.simulate.Sensors(vm, world, threads=1, faults=None, random=np.random.default_rng(0))
            >>> environment = dynamic.simulate.Environment(
            ...     world, sensors, around=Surroundings(0.3), budget=dynamic.Budget(), monitor_hz=None, sample_s=60.0
            ... )
            >>> environment.read(0.0)
            >>> environment.reading["cpu_load"]
            0.3
        """
        self.reading = self._sensors.read(now_s, self.load(now_s)[0], free_mb=self.free_mb, process_mb=self.process_mb)
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
            state = (world.temperature_c, world.ambient_c, world.frequency, world.battery, world.power_mw, self.queue)
            self.samples.append((now_s, self.load(now_s)[0], *state))
        self._ticks += 1
        self.next_s = self._ticks / self._hz


def _checked(load: Callable[[float], tuple[float, float]]) -> Callable[[float], tuple[float, float]]:
    def piece(time_s: float) -> tuple[float, float]:
        value = load(time_s)
        if not 0 <= value[0] < math.inf:
            raise SettingError(
                f"background_load={value[0]} at {time_s:.3g} s must not be negative: a share of the cores"
            )
        return value

    return piece
