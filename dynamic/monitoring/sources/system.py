"""The sources of a machine, and those of a user."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dynamic.monitoring.contract import Battery, Reading, Source
from dynamic.monitoring.sources.cpu import OtherLoad, cores
from dynamic.monitoring.sources.frequency import Frequency
from dynamic.monitoring.sources.limits import CpuLimit, MemoryLimit
from dynamic.monitoring.sources.memory import Available, ProcessMemory
from dynamic.monitoring.sources.power import Power
from dynamic.monitoring.sources.pressure import Pressure
from dynamic.monitoring.sources.supply import BatteryLevel
from dynamic.monitoring.sources.temperature import Temperature
from dynamic.monitoring.sources.throttling import Throttling, pi_command

# the name of a user's function, and the field that it reads
REPLACEABLE = {
    "cpu": "cpu_load",
    "memory": "memory_available_mb",
    "process": "memory_process_mb",
    "battery": "battery",
    "temperature": "temperature_c",
    "power": "power_mw",
    "frequency": "frequency_ratio",
    "throttled": "throttled",
    "cpu_pressure": "cpu_pressure",
    "memory_pressure": "memory_pressure",
}


def sources(root: Path, functions: Mapping[str, Callable[[], Any]]) -> tuple[Source, ...]:
    """Every source, with the user's functions in place of the machine's.

    Args:
        root: The file tree that kernel files are read from.
        functions: The user's functions by name. See `REPLACEABLE`.

    Returns:
        The sources.
    """
    machine = {source.name: source for source in _machine(root)}
    if "memory" in functions:
        del machine["memory_limit"]  # the user's function has precedence
    users = {name: _users(name, function) for name, function in functions.items()}
    return tuple((machine | users).values())


def _machine(root: Path) -> list[Source]:
    # Periods: what a policy reacts to within a request or two every time, the rest as seldom as it changes. The kernel
    # averages pressure every 2 s, fuel gauges update every few seconds.
    return [
        Source("cpu", _Later(lambda: OtherLoad(root)), ("cpu_load",)),
        Source("cores", cores, ("cpu_cores",)),
        Source("cpu_limit", _Later(lambda: CpuLimit(root)), ("cpu_cores",)),
        Source("memory", _Later(lambda: Available(root)), ("memory_available_mb",)),
        Source("memory_limit", _Later(lambda: MemoryLimit(root)), ("memory_available_mb",)),
        Source("process", _Later(lambda: ProcessMemory(root)), ("memory_process_mb",)),
        Source("cpu_pressure", _Later(lambda: Pressure("cpu", root)), ("cpu_pressure",), 1.0),
        Source("memory_pressure", _Later(lambda: Pressure("memory", root)), ("memory_pressure",), 1.0),
        Source("frequency", _Later(lambda: Frequency(root)), ("frequency_ratio",), 1.0),
        Source("battery", _Later(lambda: BatteryLevel(root)), ("battery", "battery_mwh", "plugged"), 2.0),
        Source("power", _Later(lambda: Power(root)), ("power_mw",), 1.0),
        Source("temperature", _Later(lambda: Temperature(root)), ("temperature_c",), 1.0),
        Source("throttled", _Later(lambda: Throttling(root, pi_command(root))), ("throttled",), 1.0),
    ]


class _Later:
    """A reader that `make` sets up at the first reading. A set-up that fails is a sensor that fails, and is retried.

    So a file that may not be read never prevents a monitor from starting.
    """

    def __init__(self, make: Callable[[], Callable[[], Reading]]) -> None:
        self._make = make
        self._read: Callable[[], Reading] | None = None

    def __call__(self) -> Reading:
        if self._read is None:
            self._read = self._make()
        return self._read()


def _users(name: str, function: Callable[[], Any]) -> Source:
    if name == "battery":
        return Source(name, lambda: _battery(function()), ("battery", "battery_mwh", "plugged"), apart=True)
    field = REPLACEABLE[name]

    def read() -> Reading:
        value = function()
        if value is None:
            raise ValueError(f"the function given for {name} returned None")
        return Reading({field: value}, "the user's function")

    return Source(name, read, (field,), apart=True)


def _battery(level: float | Battery) -> Reading:
    battery = level if isinstance(level, Battery) else Battery(float(level))
    fields = {"battery": float(battery.level), "battery_mwh": battery.energy_mwh, "plugged": battery.plugged}
    return Reading(fields, "the user's function")
