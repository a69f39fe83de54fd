"""The report of `python -m dynamic doctor`: this machine, and a bundle on it."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dynamic.bundle.bundle_reader import read
from dynamic.bundle.requirements import unmet_needs
from dynamic.cli.diagnosis import Diagnosis, SensorState, diagnose
from dynamic.policies.errors import DynamicError
from dynamic.policies.words.tables import table


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
