"""Simulated devices, each figure with its source."""

import json
import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, asdict, dataclass, field, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from dynamic.policies.costing.size_costs import SizeCosts
from dynamic.policies.costs import Costs, Table
from dynamic.policies.errors import SettingError
from dynamic.policies.snapshot import Snapshot
from dynamic.policies.words.short_repr import short_repr

_NEEDED = ("relative_speed", "cores", "memory_mb", "battery_mwh", "idle_mw", "active_mw")
_POSITIVE = (*_NEEDED, "resistance_c_per_w", "capacity_j_per_c")
_STEPS = ("battery_step", "temperature_step_c")
_NOT_NEGATIVE = (
    "screen_mw",
    "charging_mw",
    "hysteresis_c",
    "load_ms_per_mb",
    "overhead_ms",
    "wake_ms",
    "handover_ms",
    "contention_share",
    *_STEPS,
)
_MAY_BE_NONE = ("battery_mwh", "resistance_c_per_w", "capacity_j_per_c", "throttle_c")


@dataclass(frozen=True)
class Device:
    """The figures of a device that a simulation needs.

    Args:
        name: Name for reports.
        relative_speed: Speed over that of the machine on which costs were measured, above 0.
        cores: Number of cores.
        memory_mb: Memory in 10^6 bytes that is free for applications before anything is loaded.
        battery_mwh: Energy of a full battery in milliwatt hours. None: no battery.
        idle_mw: Power drawn all the time, in milliwatts.
        active_mw: Additional power while inference runs at the full clock.
        source: For every figure that is given, a public source or "assumption".
        screen_mw: Additional power of a screen that is on.
        charging_mw: Power into the battery on the mains.
        frequency_steps: Clock over the maximum, falling from 1.
        resistance_c_per_w: Degrees above `ambient_c` that a watt leads to in the end. None: no model of heat.
        capacity_j_per_c: Heat capacity in joules per degree. None: no model of heat.
        throttle_c: Temperature from which on the clock falls by a step at a time. None: it never does.
        hysteresis_c: Degrees below `throttle_c` at which the clock rises again.
        ambient_c: Ambient temperature in degrees Celsius.
        load_ms_per_mb: Time to load a backbone, for each 10^6 bytes.
        overhead_ms: Time of a request beside its stages as profiled: preprocessing, cold caches.
        wake_ms: Time from the arrival of a request until a worker that sleeps begins with it.
        handover_ms: Time from the end of a request until the worker begins with one that waits.
        contention_share: How much of the delay by others' load a request feels. 1: cores are divided evenly. A short
            request behind a pause feels less, since schedulers prefer it. Fit it to requests under a known load.
        battery_step: Resolution of the charge. 0.01 is whole percents, 0 is exact.
        temperature_step_c: Resolution of the temperature. 0 is exact.
        absent: Fields of `Snapshot` that this device never has.

    Raises:
        SettingError: A figure is out of range or has no source, or `absent` names a field that no snapshot has.

    Example:
        >>> from dataclasses import replace
        >>> phone = dynamic.simulate.device("mid-range-phone")
        >>> replace(phone, ambient_c=38.0).ambient_c
        38.0
    """

    name: str
    _: KW_ONLY
    relative_speed: float
    cores: int
    memory_mb: float
    battery_mwh: float | None
    idle_mw: float
    active_mw: float
    source: Mapping[str, str] = field(hash=False)
    screen_mw: float = 0.0
    charging_mw: float = 0.0
    frequency_steps: tuple[float, ...] = (1.0,)
    resistance_c_per_w: float | None = None
    capacity_j_per_c: float | None = None
    throttle_c: float | None = None
    hysteresis_c: float = 5.0
    ambient_c: float = 25.0
    load_ms_per_mb: float = 0.0
    overhead_ms: float = 0.0
    wake_ms: float = 0.0
    handover_ms: float = 0.0
    contention_share: float = 1.0
    battery_step: float = 0.0
    temperature_step_c: float = 0.0
    absent: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "frequency_steps", tuple(self.frequency_steps))
        object.__setattr__(self, "absent", tuple(self.absent))
        for figure in (*_POSITIVE, *_NOT_NEGATIVE, "throttle_c", "ambient_c"):
            value = getattr(self, figure)
            if value is None and figure in _MAY_BE_NONE:
                continue
            least = 0.0 if figure in (*_POSITIVE, *_NOT_NEGATIVE) else -math.inf
            number = isinstance(value, (int, float)) and least <= value < math.inf
            if not number or (value == 0 and figure in _POSITIVE):
                wanted = "a positive number" if figure in _POSITIVE else "a number, not negative"
                raise SettingError(f"{figure}={value!r} of device {self.name!r} must be {wanted}")
        steps = self.frequency_steps
        if not steps or steps[0] != 1 or steps[-1] <= 0 or any(a <= b for a, b in pairwise(steps)):
            raise SettingError(f"frequency_steps={steps} of device {self.name!r} must fall from 1, above 0")
        if (self.resistance_c_per_w is None) != (self.capacity_j_per_c is None):
            raise SettingError(f"device {self.name!r} needs both resistance_c_per_w and capacity_j_per_c, or neither")
        if self.throttle_c is not None and self.resistance_c_per_w is None:
            raise SettingError(f"throttle_c of device {self.name!r} needs resistance_c_per_w and capacity_j_per_c")
        if unknown := sorted(set(self.absent) - set(Snapshot.__dataclass_fields__)):
            raise SettingError(f"device {self.name!r} lacks a sensor {unknown[0]!r}, which no snapshot has")
        if without := [figure for figure in self._changed_figures() if not self.source.get(figure)]:
            raise SettingError(
                f"device {self.name!r} names no source for {without}: give a public one, or 'assumption'"
            )

    def __repr__(self) -> str:
        battery = "no battery" if self.battery_mwh is None else f"{self.battery_mwh / 1e3:g} Wh"
        speed = f"{self.relative_speed:g} of the speed of the machine that was profiled"
        return short_repr("Device", [repr(self.name), f"{self.cores} cores", f"{self.memory_mb:g} MB", battery, speed])

    def _changed_figures(self) -> list[str]:
        """Figures that were given, and that therefore need a source."""
        defaults = {f.name: f.default for f in fields(self)}
        figures = [name for name in defaults if name not in ("name", "source")]
        return [n for n in figures if getattr(self, n) != defaults[n] and getattr(self, n) is not None]

    def costs(self, costs: Costs) -> Costs:
        """Compute what profiling would measure on this device: times by its speed, energy by its power.

        The energy of a stage, and of the overhead of a call, is its time times `active_mw`.

        Args:
            costs: Costs measured on another machine.

        Returns:
            The costs on this device.

        Raises:
            AttributeError: `costs` is None: profile the bundle first.

        Example:
            >>> vm = dynamic.simulate.device("cloud-vm")
            >>> there = vm.costs(costs)
            >>> there.machine
            'simulated cloud machine with 2 virtual CPUs'
            >>> round(there.latency_ms[0][0] / costs.latency_ms[0][0], 2)  # relative_speed is 0.8
            1.25
        """

        def slower(table: Table) -> Table:
            return tuple(tuple(value / self.relative_speed for value in row) for row in table)

        here = replace(
            costs,
            machine=f"simulated {self.name}",
            threads=min(costs.threads, self.cores),
            latency_ms=slower(costs.latency_ms),
            latency_p95_ms=slower(costs.latency_p95_ms),
            head_ms=slower(costs.head_ms),
            call_ms=slower((costs.call_ms,))[0],
            cpu_ms=slower(costs.cpu_ms),
            call_cpu_ms=slower((costs.call_cpu_ms,))[0],
            sizes=tuple(
                SizeCosts(
                    size=other.size,
                    latency_ms=slower(other.latency_ms),
                    latency_p95_ms=slower(other.latency_p95_ms),
                    head_ms=slower(other.head_ms),
                    cpu_ms=slower(other.cpu_ms),
                    call_ms=slower((other.call_ms,))[0],
                    call_cpu_ms=slower((other.call_cpu_ms,))[0],
                )
                for other in costs.sizes
            ),
        )
        return here.powered(self.active_mw, self.idle_mw + self.screen_mw)

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain JSON types."""
        return asdict(replace(self, source=dict(self.source)))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Device":
        """Read what `to_json` returned.

        Args:
            data: Figures by name.

        Returns:
            The device.

        Raises:
            SettingError: A figure is missing, unknown or out of range.

        Example:
            >>> laptop = dynamic.simulate.device("laptop")
            >>> dynamic.simulate.Device.from_json(laptop.to_json()) == laptop
            True
        """
        try:
            return cls(**data)
        except TypeError as error:
            raise SettingError(f"{dict(data)!r} is no device ({error}): it needs name, source, {_NEEDED}") from error


def devices() -> dict[str, Device]:
    """Return the devices that come with the library.

    Returns:
        Devices by short name.

    Raises:
        OSError: The file of the devices is missing: install the library again.

    Example:
        >>> sorted(dynamic.simulate.devices())
        ['cloud-vm', 'jetson-orin-nano', 'laptop', 'mid-range-phone', 'raspberry-pi-5-power-bank']
    """
    text = Path(__file__).with_name("devices.json").read_text(encoding="utf-8")
    return {name: Device.from_json(data) for name, data in json.loads(text).items()}


def device(name: str) -> Device:
    """Return one of the devices that come with the library.

    Args:
        name: Its short name, a key of `devices()`.

    Returns:
        The device.

    Raises:
        SettingError: There is no device of this name.

    Example:
        >>> dynamic.simulate.device("laptop").cores
        8
    """
    presets = devices()
    if name not in presets:
        raise SettingError(f"no device {name!r}: there are {sorted(presets)}, or make a Device")
    return presets[name]
