"""Sensor readings of a simulated device: true values, rounded, with noise, and with fields missing at times."""

from collections.abc import Callable, Collection
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np

from dynamic.policies.errors import SettingError
from dynamic.policies.snapshot import Snapshot
from dynamic.simulate.device_models import Device
from dynamic.simulate.world.device_world import World

_BLOCK = 1024  # random numbers drawn at a time


@dataclass(frozen=True)
class Outage:
    """A function for `Faults` by which some fields of the snapshot are missing for a while.

    Args:
        start_s: Start of the outage in seconds.
        end_s: End of the outage in seconds.
        names: Fields of `Snapshot` that are missing meanwhile.

    Example:
        >>> outage = dynamic.simulate.Outage(60.0, 120.0, names=("temperature_c",))
        >>> outage(90.0)
        ('temperature_c',)
    """

    start_s: float
    end_s: float
    _: KW_ONLY
    names: tuple[str, ...]

    def __call__(self, time_s: float) -> tuple[str, ...]:
        """Return the fields that are missing at a time.

        Args:
            time_s: Seconds from the start of the simulation.

        Returns:
            Fields of `Snapshot`.

        Raises:
            TypeError: `time_s` is no number.

        Example:
            >>> dynamic.simulate.Outage(60.0, 120.0, names=("battery",))(30.0)
            ()
        """
        return self.names if self.start_s <= time_s < self.end_s else ()


@dataclass(frozen=True)
class Faults:
    """The faults of simulated sensors.

    Args:
        missing: Function of the time in seconds to the fields of `Snapshot` that are missing then. None: no field is.
        temperature_sd_c: Standard deviation of normal noise on the temperature, in degrees, not negative.
        cpu_load_sd: Standard deviation of normal noise on the load of the processor, a fraction, not negative.

    Raises:
        SettingError: A standard deviation is negative.

    Example:
        >>> faults = dynamic.simulate.Faults(lambda time_s: ("battery",) if time_s > 60 else ())
        >>> faults.missing(90.0)
        ('battery',)
    """

    missing: Callable[[float], Collection[str]] | None = None
    _: KW_ONLY
    temperature_sd_c: float = 0.0
    cpu_load_sd: float = 0.0

    def __post_init__(self) -> None:
        if not (self.temperature_sd_c >= 0 and self.cpu_load_sd >= 0):
            raise SettingError(
                f"temperature_sd_c={self.temperature_sd_c}, cpu_load_sd={self.cpu_load_sd}: give no negative deviation"
            )


class Sensors:
    """Simulated sensors: they read the fields of a `Snapshot` from a simulated device.

    `cpu_load` is the load at this moment, at most 1. `cpu_pressure` is the share by which demand exceeds the cores,
    inference included. `memory_pressure` is the share of the process for which there is no memory. The simulator adds
    the fields of the request itself.

    Args:
        device: The device, for its cores and the steps of its sensors.
        world: Its battery, temperature and clock.
        threads: Threads of inference.
        faults: What is wrong with the sensors. None: nothing.
        random: Generator of the noise.

    Example:
        >>> from dynamic.simulate.world.device_world import World
        >>> phone = dynamic.simulate.device("mid-range-phone")
        >>> world = World(phone, battery=0.5, ambient_c=25.0, temperature_c=None, screen=True)
        >>> sensors = dynamic.simulate.Sensors(
        ...     phone, world, threads=1, faults=None, random=np.random.default_rng(0)
        ... )
        >>> sensors.read(0.0, 0.25, free_mb=1000.0, process_mb=100.0)["battery"]
        0.5
    """

    def __init__(
        self, device: Device, world: World, *, threads: int, faults: Faults | None, random: np.random.Generator
    ) -> None:
        self._device, self._world, self._faults = device, world, faults or Faults()
        self._share = threads / device.cores
        self._random, self._noise = random, list[float]()
        self._absent = tuple(device.absent)

    def read(self, time_s: float, load: float, *, free_mb: float, process_mb: float) -> dict[str, Any]:
        """Read all sensors.

        Args:
            time_s: Seconds from the start of the simulation.
            load: Cores that others demand, as a share of the cores of the device.
            free_mb: Memory for applications in 10^6 bytes, this process included.
            process_mb: Resident memory of this process in 10^6 bytes.

        Returns:
            Values by field of `Snapshot`. None: no sensor, or one that fails.

        Raises:
            SettingError: `Faults.missing` names a field that no snapshot has.

        Example:
            >>> from dynamic.simulate.world.device_world import World
            >>> vm = dynamic.simulate.device("cloud-vm")
            >>> world = World(vm, battery=1.0, ambient_c=25.0, temperature_c=None, screen=False)
            >>> sensors = dynamic.simulate.Sensors(vm, world, threads=1, faults=None, random=np.random.default_rng(0))
            >>> sensors.read(0.0, 1.5, free_mb=1000.0, process_mb=100.0)["cpu_load"]
            1.0
        """
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
        reading: dict[str, Any] = {
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
            reading[name] = None
        if faults.missing is not None:
            names = tuple(sorted(faults.missing(time_s)))
            for name in names:
                if name not in Snapshot.__dataclass_fields__:
                    raise SettingError(f"a sensor {name!r} is missing at {time_s:.3g} s, which no snapshot has")
                reading[name] = None
            reading["missing"] = names
        return reading

    def _normal(self) -> float:
        if not self._noise:
            self._noise = self._random.standard_normal(_BLOCK).tolist()
        return self._noise.pop()


def _to_step(value: float, step: float) -> float:
    return round(value / step) * step if step else value
