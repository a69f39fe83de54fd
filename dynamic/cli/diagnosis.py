"""A report on this machine: engines, sensors and limits, and remedies for what is missing."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dynamic.cli.engine_state import EngineState, engine_state, installed_version
from dynamic.engines.engine_factory import ENGINES, is_there
from dynamic.extras import remedy
from dynamic.monitoring.contract import SensorField, SourceReport
from dynamic.monitoring.monitor import Monitor
from dynamic.monitoring.sources.cpu import usable_cores
from dynamic.monitoring.sources.limits import CpuLimit, Limit, MemoryLimit
from dynamic.policies.control.limits import RESERVE_MB
from dynamic.policies.snapshot import Snapshot
from dynamic.profiling.machine import machine_name

# fields of a Snapshot that sensors read, with their units
UNITS: Mapping[SensorField, str] = {
    "cpu_load": "of the cores, by others",
    "cpu_cores": "cores",
    "cpu_pressure": "of the time",
    "memory_pressure": "of the time",
    "frequency_ratio": "of the maximum",
    "memory_available_mb": "MB",
    "memory_process_mb": "MB",
    "battery": "of the charge",
    "battery_mwh": "mWh",
    "plugged": "",
    "power_mw": "mW",
    "temperature_c": "degrees C",
    "throttled": "",
}
_PACKAGES = {  # beside engines, and the feature that needs them
    "typer": "the shell, apart from doctor,",
    "PIL": "reading pictures, and preprocessing that resizes,",
    "tokenizers": "preprocessing of texts",
}
_FIRST_S, _PATIENCE_S = 0.1, 2.5  # power and throttling need two readings a second apart
_SILENT_FOR_NOW = ("plugged", "battery_mwh")  # which a battery may lack


@dataclass(frozen=True)
class SensorState:
    """One field of the snapshot.

    Args:
        field: The field.
        value: Its value. None: there is none.
        unit: Its unit.
        origin: Where the value comes from.
        problem: Why there is no value, with the remedy.
    """

    field: SensorField
    value: float | bool | None
    unit: str
    origin: str | None
    problem: str | None


@dataclass(frozen=True)
class Limits:
    """Cores and memory that this process may use. None: unlimited.

    Args:
        cores: Cores by affinity.
        quota_cores: Cores by the quota of a container.
        quota_origin: The file of the quota.
        memory_mb: Memory limit of a container in 10^6 bytes.
        memory_origin: The file of the limit.
        reserve_mb: Available memory that is left to others.
        problem: Why limits could not be read.
    """

    cores: int
    quota_cores: float | None
    quota_origin: str | None
    memory_mb: float | None
    memory_origin: str | None
    reserve_mb: float
    problem: str | None


@dataclass(frozen=True)
class Diagnosis:
    """The report on one machine.

    Args:
        machine: The machine.
        version: Version of this library.
        engines: The engines.
        sensors: The sensors.
        limits: Cores and memory.
        missing: A sentence for each thing that is missing, with the remedy.
        not_believed: A sentence for each reading, battery, counter or level of a container that is excluded, and why.
    """

    machine: str
    version: str | None
    engines: tuple[EngineState, ...]
    sensors: tuple[SensorState, ...]
    limits: Limits
    missing: tuple[str, ...]
    not_believed: tuple[str, ...] = ()


def diagnose(root: Path = Path("/"), patience_s: float | None = None) -> Diagnosis:
    """Examine this machine. torch is located and not loaded.

    Args:
        root: The file tree that kernel files are read from.
        patience_s: Longest time to wait for sensors. None: 2.5 s.

    Returns:
        The report.
    """
    engines = tuple(engine_state(name) for name in ENGINES)
    snapshot, reports = _read(root, _PATIENCE_S if patience_s is None else patience_s)
    sensors = tuple(_sensor(field, snapshot, reports) for field in UNITS)
    limits = _limits(root)
    missing = [f"engine {engine.name}: {engine.problem}" for engine in engines if engine.problem]
    missing += [line for module, what in _PACKAGES.items() if not is_there(module) and (line := remedy(module, what))]
    problems = dict.fromkeys(report.problem for report in reports if report.problem)
    # several may lack for one reason
    missing += [f"{', '.join(r.name for r in reports if r.problem == problem)}: {problem}" for problem in problems]
    left_out = [f"{r.name}: {item}" for r in reports if r.reading is not None for item in r.reading.left_out]
    return Diagnosis(
        machine=machine_name(),
        version=installed_version("dynamic-inference"),
        engines=engines,
        sensors=sensors,
        limits=limits,
        missing=tuple(missing),
        not_believed=tuple(left_out),
    )


def _read(root: Path, patience_s: float) -> tuple[Snapshot, tuple[SourceReport, ...]]:
    end = time.monotonic() + patience_s
    with Monitor(_FIRST_S, root=root) as monitor:
        while time.monotonic() < end and not all(map(_settled, monitor.sources())):
            time.sleep(min(_FIRST_S, patience_s))
        return monitor.latest, monitor.sources()


def _settled(report: SourceReport) -> bool:
    """Whether a source has answered or failed."""
    if report.reading is None:
        return report.failures > 0
    return all(value is not None for name, value in report.reading.fields.items() if name not in _SILENT_FOR_NOW)


def _sensor(field: SensorField, snapshot: Snapshot, reports: Sequence[SourceReport]) -> SensorState:
    value = getattr(snapshot, field)
    telling = [report for report in reports if field in report.fields]
    if value is not None:
        origins = [r.reading.origin for r in telling if r.reading is not None and r.reading.fields]
        return SensorState(field, value, UNITS[field], ", ".join(origins), None)
    problems = [report.problem for report in telling if report.problem]
    return SensorState(field, None, UNITS[field], None, ", ".join(problems) or "its source has no value")


def _limits(root: Path) -> Limits:
    problems: list[str] = []

    def tightest(find: Callable[[], Limit | None]) -> Limit | None:
        try:
            return find()
        except (OSError, ValueError) as error:
            problems.append(str(error))
            return None

    quota, memory = tightest(CpuLimit(root).tightest), tightest(MemoryLimit(root).tightest)
    return Limits(
        cores=len(usable_cores()),
        quota_cores=None if quota is None else quota.amount,
        quota_origin=None if quota is None else str(quota.path),
        memory_mb=None if memory is None else memory.amount / 1e6,
        memory_origin=None if memory is None else str(memory.path),
        reserve_mb=RESERVE_MB,
        problem=", ".join(dict.fromkeys(problems)) or None,
    )
