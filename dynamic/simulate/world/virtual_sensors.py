"""What the sensors of a simulated device say: the truth, rounded, with noise, and with fields that go missing."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from dynamic.policies.errors import SettingError
from dynamic.policies.snapshot import Snapshot
from dynamic.simulate.device_models import Device
from dynamic.simulate.world.device_world import World

_BLOCK = 1024  # random numbers drawn at a time


@dataclass(frozen=True)
class Outage:
    """Fields of the snapshot that are missing from `start_s` to `end_s`; a function of time, as Faults takes one."""

    start_s: float
    end_s: float
    names: tuple[str, ...]

    def __call__(self, time_s: float) -> tuple[str, ...]:
        """The names that are missing at a time."""
        return self.names if self.start_s <= time_s < self.end_s else ()


@dataclass(frozen=True)
class Faults:
    """What is wrong with the sensors.

    `missing(time_s)`: names of snapshot fields that have failed then. `temperature_sd_c` and `cpu_load_sd`: standard
    deviations of normal noise on these readings. Raises SettingError on one that is negative.
    """

    missing: Callable[[float], Collection[str]] | None = None
    temperature_sd_c: float = 0.0
    cpu_load_sd: float = 0.0

    def __post_init__(self) -> None:
        if not (self.temperature_sd_c >= 0 and self.cpu_load_sd >= 0):
            raise SettingError(
                f"temperature_sd_c={self.temperature_sd_c}, cpu_load_sd={self.cpu_load_sd}: give no negative deviation"
            )


class Sensors:
    """Reads the fields of a Snapshot off a World; those of the request itself are left for the simulator.

    `cpu_load` is that of the moment, at most 1 however much more wants to run; `cpu_pressure` how far what is wanted,
    inference included, exceeds the cores; `memory_pressure` how much of the process lies beyond the memory there is.
    """

    def __init__(
        self, device: Device, world: World, threads: int, faults: Faults | None, random: np.random.Generator
    ) -> None:
        self._device, self._world, self._faults = device, world, faults or Faults()
        self._share = threads / device.cores
        self._random, self._noise = random, list[float]()
        self._absent = tuple(device.absent)

    def read(self, time_s: float, load: float, free_mb: float, process_mb: float) -> dict[str, Any]:
        """Fields by name. `free_mb`: for applications, this process included."""
        device, world, faults = self._device, self._world, self._faults
        charge, temperature_c = world.battery, world.temperature_c
        cpu_load = min(load, 1.0)
        if faults.cpu_load_sd:
            cpu_load = min(1.0, max(0.0, cpu_load + faults.cpu_load_sd * self._normal()))
        if temperature_c is not None:
            if faults.temperature_sd_c:
                temperature_c += faults.temperature_sd_c * self._normal()
            temperature_c = _to_step(temperature_c, device.temperature_step_c)
        if charge is not None:
            charge = min(1.0, _to_step(charge, device.battery_step))
        found: dict[str, Any] = {
            "time_s": time_s,
            "cpu_load": cpu_load,
            "cpu_cores": float(device.cores),
            "cpu_pressure": min(1.0, max(0.0, load + self._share - 1.0)),
            "memory_pressure": max(0.0, 1.0 - free_mb / process_mb) if process_mb > 0 else 0.0,
            "frequency_ratio": world.frequency,
            "memory_available_mb": max(0.0, free_mb - process_mb),
            "memory_process_mb": process_mb,
            "battery": charge,
            "battery_mwh": None if world.left_mj is None else world.left_mj / 3600,
            "plugged": None if charge is None else world.plugged,
            "power_mw": world.power_mw,
            "temperature_c": temperature_c,
            "throttled": world.frequency < 1.0,
            "missing": (),
        }
        for name in self._absent:
            found[name] = None
        if faults.missing is not None:
            names = tuple(sorted(faults.missing(time_s)))
            for name in names:
                if name not in Snapshot.__dataclass_fields__:
                    raise SettingError(f"a sensor {name!r} is missing at {time_s:.3g} s, which no snapshot has")
                found[name] = None
            found["missing"] = names
        return found

    def _normal(self) -> float:
        if not self._noise:
            self._noise = self._random.standard_normal(_BLOCK).tolist()
        return self._noise.pop()


def _to_step(value: float, step: float) -> float:
    return round(value / step) * step if step else value
