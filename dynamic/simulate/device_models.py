"""Devices that are simulated, with where each of their figures comes from."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from dynamic.policies.costs import Costs, Table
from dynamic.policies.errors import SettingError
from dynamic.policies.snapshot import Snapshot

_NEEDED = ("relative_speed", "cores", "memory_mb", "battery_mwh", "idle_mw", "active_mw")
_POSITIVE = (*_NEEDED, "resistance_c_per_w", "capacity_j_per_c")
_STEPS = ("battery_step", "temperature_step_c")
_NOT_NEGATIVE = ("screen_mw", "charging_mw", "hysteresis_c", "load_ms_per_mb", "overhead_ms", "wake_ms", *_STEPS)
_MAY_BE_NONE = ("battery_mwh", "resistance_c_per_w", "capacity_j_per_c", "throttle_c")


@dataclass(frozen=True)
class Device:
    """A device in the figures that a simulation needs.

    `relative_speed` to the machine that the costs were measured on; `memory_mb` free for applications before anything
    is loaded; `battery_mwh` of a full battery (None: it has none). Power: `idle_mw` drawn all the time, `screen_mw` on
    top of that where a screen is on, `active_mw` on top while inference runs at full clock, `charging_mw` into the
    battery on the mains. `frequency_steps`: ratios to the maximum, falling from 1. Heat: `resistance_c_per_w` (degrees
    that a watt ends above `ambient_c`) and `capacity_j_per_c`; from `throttle_c` on the clock goes down a step at a
    time, and up again below that less `hysteresis_c` (None: it never gets too warm). `load_ms_per_mb` to load a
    backbone; `overhead_ms` that a request takes beside its stages as they were profiled: preprocessing, caches that
    grew cold; `wake_ms` from a request's arrival until a worker that sleeps begins with it. Sensors: charge in steps of
    `battery_step` (0.01 whole percents, 0 exact), temperature in steps of `temperature_step_c`; fields of a Snapshot
    that are `absent` for good. `source`: for every figure that is given a public source, or "assumption".

    Raises SettingError on a figure out of range, or one without a source.
    """

    name: str
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
        if without := [figure for figure in self._given() if not self.source.get(figure)]:
            raise SettingError(
                f"device {self.name!r} names no source for {without}; give a public one, or 'assumption'"
            )

    def _given(self) -> list[str]:
        """Figures that somebody gave, and that therefore need a source."""
        defaults = {f.name: f.default for f in fields(self)}
        known = [name for name in defaults if name not in ("name", "source")]
        return [n for n in known if getattr(self, n) != defaults[n] and getattr(self, n) is not None]

    def costs(self, costs: Costs) -> Costs:
        """What profiling would give on this device: times divided by its speed, energy by the model.

        Energy of a stage, and of the overhead of a call, is its time times `active_mw`.
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
        )
        return here.powered(self.active_mw, self.idle_mw + self.screen_mw)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(replace(self, source=dict(self.source)))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Device":
        """What `to_json` gave; raises SettingError on fields that are missing or unknown."""
        try:
            return cls(**data)
        except TypeError as error:
            raise SettingError(f"{dict(data)!r} is no device ({error}); it needs name, source, {_NEEDED}") from error


def devices() -> dict[str, Device]:
    """The devices that come with the library, by short name."""
    text = Path(__file__).with_name("devices.json").read_text(encoding="utf-8")
    return {name: Device.from_json(data) for name, data in json.loads(text).items()}


def device(name: str) -> Device:
    """One of `devices()`; raises SettingError where there is none of that name."""
    known = devices()
    if name not in known:
        raise SettingError(f"no device {name!r}; there are {sorted(known)}, or make a Device")
    return known[name]
