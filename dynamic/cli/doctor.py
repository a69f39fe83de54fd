"""A report on this machine: engines, sensors and limits, and remedies for what is missing."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from dynamic.bundle.bundle import read
from dynamic.bundle.requirements import unmet_needs
from dynamic.bundle.tables import table
from dynamic.engines.engine_factory import ENGINES, PRECISIONS
from dynamic.extras import remedy
from dynamic.monitoring.contract import SensorField, SourceReport
from dynamic.monitoring.monitor import Monitor
from dynamic.monitoring.sources.cpu import usable_cores
from dynamic.monitoring.sources.limits import CpuLimit, Limit, MemoryLimit
from dynamic.policies.control.limits import RESERVE_MB
from dynamic.policies.errors import DynamicError
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

_INSTALL = {
    "onnxruntime": "pip install dynamic-inference",
    "openvino": "pip install 'dynamic-inference[openvino]'",
    "torch": "pip install 'dynamic-inference[build]', to build bundles, or to run one with its modules",
}
_PACKAGES = {  # beside engines, and the feature that needs them
    "typer": "the shell, apart from doctor,",
    "PIL": "reading pictures, and preprocessing that resizes,",
}
_FIRST_S, _PATIENCE_S = 0.1, 2.5  # power and throttling need two readings a second apart
_SILENT_FOR_NOW = ("plugged", "battery_mwh")  # which a battery may lack


@dataclass(frozen=True)
class EngineState:
    """The state of an engine.

    Args:
        name: The engine.
        installed: Whether its library is installed.
        version: Version of the library.
        precisions: Precisions that it has here.
        problem: What is wrong, with the remedy. None: nothing.
    """

    name: str
    installed: bool
    version: str | None
    precisions: tuple[str, ...]
    problem: str | None


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
    engines = tuple(_engine(name) for name in ENGINES)
    snapshot, reports = _read(root, _PATIENCE_S if patience_s is None else patience_s)
    sensors = tuple(_sensor(field, snapshot, reports) for field in UNITS)
    limits = _limits(root)
    missing = [f"engine {engine.name}: {engine.problem}" for engine in engines if engine.problem]
    missing += [line for module, what in _PACKAGES.items() if not _is_there(module) and (line := remedy(module, what))]
    problems = dict.fromkeys(report.problem for report in reports if report.problem)
    # several may lack for one reason
    missing += [f"{', '.join(r.name for r in reports if r.problem == problem)}: {problem}" for problem in problems]
    left_out = [f"{r.name}: {item}" for r in reports if r.reading is not None for item in r.reading.left_out]
    return Diagnosis(
        machine=machine_name(),
        version=_version("dynamic-inference"),
        engines=engines,
        sensors=sensors,
        limits=limits,
        missing=tuple(missing),
        not_believed=tuple(left_out),
    )


@dataclass(frozen=True)
class ShelfState:
    """The state of a bundle on this machine.

    Args:
        folder: The bundle's folder.
        problems: Reasons why it cannot answer every input, with the remedy.
        hints: What else is worth doing.
        agrees: Whether it answers as in calibration, by its canaries. None where there are none.
        canaries: Report of the canaries.
    """

    folder: str
    problems: tuple[str, ...]
    hints: tuple[str, ...]
    agrees: bool | None = None
    canaries: str | None = None


def check_shelf(folder: Path) -> ShelfState:
    """Check a bundle: its files, the packages that any input may need, its engine, and costs of this machine.

    Args:
        folder: The bundle's folder.

    Returns:
        The state. A folder that holds no valid bundle is a problem.
    """
    try:
        bundle = read(folder, verify=True)
    except DynamicError as error:
        return ShelfState(str(folder), (str(error),), ())
    hints = []
    if bundle.costs is None:
        hints.append(f"no costs were measured on this machine: python -m dynamic profile {folder}")
    problems = unmet_needs(bundle)
    try:
        report = None if problems else bundle.check()
    except DynamicError as error:
        return ShelfState(str(folder), (str(error),), tuple(hints))
    if report is None:
        return ShelfState(str(folder), problems, tuple(hints))
    if not report.agrees:
        hints.append(f"its answers are not certified on this machine: {report.remedy}")
    return ShelfState(str(folder), problems, tuple(hints), report.agrees, str(report))


def examine(shelf: Path | None, as_json: bool, root: Path = Path("/")) -> tuple[str, int]:
    """The output of `python -m dynamic doctor`, and its exit code.

    Args:
        shelf: The folder of a bundle to check too, or None.
        as_json: Whether to return JSON.
        root: The file tree that kernel files are read from.

    Returns:
        The text, and 1 where the bundle cannot answer every input here, else 0.
    """
    diagnosis, state = diagnose(root), None if shelf is None else check_shelf(shelf)
    code = 1 if state is not None and state.problems else 0
    if as_json:
        beside = {} if state is None else {"shelf": asdict(state)}
        return json.dumps(asdict(diagnosis) | beside, indent=1), code
    return diagnosis_text(diagnosis) + ("" if state is None else f"\n\n{_shelf_text(state)}"), code


def _shelf_text(state: ShelfState) -> str:
    lines = (*state.problems, *([] if state.canaries is None else [state.canaries]), *state.hints)
    verdict = "it answers every input here" if not state.problems else "it does not answer every input here:"
    return "\n".join([f"bundle {state.folder}: {verdict}", *(f"  {line}" for line in lines)])


def diagnosis_text(diagnosis: Diagnosis) -> str:
    """The report as text."""
    engines = [
        (e.name, e.version or "-", ", ".join(e.precisions) or "-", "installed" if e.installed else "not installed")
        for e in diagnosis.engines
    ]
    sensors = [
        (s.field, _value(s), s.unit if s.value is not None else "", s.origin or "see below") for s in diagnosis.sensors
    ]
    limits = diagnosis.limits
    read = "" if limits.problem is None else " that can be read"
    quota = f"no quota{read}" if limits.quota_cores is None else f"quota {limits.quota_cores:g} ({limits.quota_origin})"
    memory = (
        f"no limit{read}" if limits.memory_mb is None else f"limit {limits.memory_mb:.0f} MB ({limits.memory_origin})"
    )
    return "\n".join(
        [
            f"{diagnosis.machine}, dynamic-inference {diagnosis.version or 'not installed'}",
            "",
            _columns(("engine", "version", "precisions", ""), engines),
            "",
            _columns(("sensor", "now", "", "from"), sensors),
            "",
            f"cores: {limits.cores} by affinity, {quota}",
            f"memory: {memory}. Of that, {limits.reserve_mb:g} MB are reserved for others",
            *([] if limits.problem is None else [f"limits that could not be read: {limits.problem}"]),
            "",
            *_listed("missing", diagnosis.missing, "nothing is missing"),
            *_listed("not believed", diagnosis.not_believed, "every reading is believed"),
        ]
    )


def _listed(title: str, lines: Sequence[str], none: str) -> list[str]:
    return [f"{title}:", *(f"  {line}" for line in lines)] if lines else [none]


def _columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """As `table`, but the last column and all words are aligned to the left."""
    widest = max(len(row[-1]) for row in (head, *rows))
    return table((*head[:-1], head[-1].ljust(widest)), [(*row[:-1], row[-1].ljust(widest)) for row in rows])


def _value(sensor: SensorState) -> str:
    if sensor.value is None:
        return "-"
    if isinstance(sensor.value, bool):
        return "yes" if sensor.value else "no"
    return f"{sensor.value:.1f}" if abs(sensor.value) >= 100 else f"{sensor.value:.3g}"


def _engine(name: str) -> EngineState:
    if not _is_there(name):
        return EngineState(name, False, None, (), f"not installed: {_INSTALL[name]}")
    precisions: tuple[str, ...] = PRECISIONS[name]
    problem = None
    try:
        if name in _CHECKS:
            precisions, problem = _CHECKS[name](precisions)
    except Exception as error:  # a broken installation raises any exception
        precisions, problem = (), f"installed, but does not load ({error}): {_INSTALL[name]}"
    return EngineState(name, True, _version(name), precisions, problem)


def _check_onnxruntime(precisions: tuple[str, ...]) -> tuple[tuple[str, ...], str | None]:
    import onnxruntime

    if "CPUExecutionProvider" not in onnxruntime.get_available_providers():
        return (), f"has no CPU provider: {_INSTALL['onnxruntime']}"
    return precisions, None


def _check_openvino(precisions: tuple[str, ...]) -> tuple[tuple[str, ...], str | None]:
    from dynamic.engines.openvino import computes_bf16

    bf16 = computes_bf16()
    return tuple(p for p in precisions if p != "bf16" or bf16), None


_CHECKS: dict[str, Callable[[tuple[str, ...]], tuple[tuple[str, ...], str | None]]] = {
    "onnxruntime": _check_onnxruntime,
    "openvino": _check_openvino,
}


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # its import is forbidden
        return False


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


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
