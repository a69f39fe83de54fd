"""What the canaries of a bundle say of an engine: run once on each machine, then read."""

import hashlib
import json
import logging
import threading
from pathlib import Path

from dynamic.bundle.canaries.canary_set import CANARIES
from dynamic.bundle.canaries.check import CanaryReport, check_canaries, keep_report, kept_report, labels_limit
from dynamic.bundle.contract import DeployedBundle
from dynamic.bundle.fingerprint import EngineIdentity
from dynamic.engines.route_choice import CascadeEngine
from dynamic.monitoring.sources.limits import MemoryLimit
from dynamic.monitoring.sources.memory import Available

_SCHEMA = 1  # of what is checked: another number, and canaries run again
_GRAPH_MEMORY = 6  # bytes that the single graph takes for each byte of weights, loading included (ONNX Runtime: 4.3)

logger = logging.getLogger("dynamic")

# by folder and file name: what a folder that cannot be written to would forget
_reports: dict[tuple[Path, str], CanaryReport] = {}
_lock = threading.RLock()


def canary_report(
    bundle: DeployedBundle, engine: CascadeEngine, *, again: bool = False, progress: bool | None = None
) -> CanaryReport | None:
    """The report of an open engine: as kept, or made now.

    Args:
        bundle: whose canaries, records and ladder are compared.
        engine: open. What is loaded for the canaries is unloaded again.
        again: run the canaries although there is a report.
        progress: a progress bar on stderr. None: where that is a terminal.

    Returns:
        The report, or None in a bundle without canaries.

    Raises:
        CorruptError: the canaries or the records do not read.
    """
    if CANARIES not in bundle.hashes:
        return None
    identity, limit = EngineIdentity.of(engine), labels_limit(bundle.ladder)
    content = hashlib.sha256(json.dumps([_SCHEMA, *sorted(bundle.hashes.items())]).encode()).hexdigest()[:16]
    name = f"{identity.key}-{content}.json"
    place = (bundle.folder.resolve(), name)
    temporary = bundle.is_temporary
    report = None if again else _reports.get(place) or (None if temporary else kept_report(*place, identity, limit))
    if report is not None:
        _reports[place] = report
        return report
    with _lock:  # one thread runs them, the others read
        report = None if again else _reports.get(place)
        if report is None:
            canaries = bundle.canaries
            assert canaries is not None, "they are among its files"
            room = _has_room(bundle)
            report = check_canaries(
                engine, canaries, bundle.records, bundle.ladder, room_for_graph=room, progress=progress
            )
            if report.problem is not None:  # an engine that failed is tried again
                return report
            if not temporary and bundle.place is not None:
                keep_report(bundle.folder, name, report)
            _reports[place] = report
    return report


def engine_agrees(bundle: DeployedBundle, engine: CascadeEngine) -> bool:
    """Whether an open engine answers as in calibration. Where it does not, a warning says why and what to do.

    Args:
        bundle: whose ladder was measured on such an engine.
        engine: open.

    Raises:
        CorruptError: the canaries or the records do not read.
    """
    report = canary_report(bundle, engine)
    if report is None:
        return _same_machine(bundle, engine)
    if report.agrees:
        return True
    if report.problem is not None:
        logger.warning(
            "engine %s fails on the canaries of %s: %s. Nothing is certified. Requests go to the next engine while it "
            "fails",
            engine.name,
            bundle.folder,
            report.problem,
        )
        return False
    logger.warning(
        "%s is not certified on this machine: %s. To certify it: %s. It was calibrated on %s",
        bundle.folder,
        report,
        report.remedy,
        bundle.calibrated_on or "an unknown machine",
    )
    return False


def _same_machine(bundle: DeployedBundle, engine: CascadeEngine) -> bool:
    """Whether a bundle without canaries runs where it was calibrated: elsewhere nothing could be noticed."""
    if bundle.calibrated_on == EngineIdentity.of(engine):
        return True
    if bundle.ladder.certified:
        logger.warning(
            "%s has no canaries and was calibrated on %s: nothing is certified here. Build it again",
            bundle.folder,
            bundle.calibrated_on or "an unknown machine",
        )
    return False


def _has_room(bundle: DeployedBundle) -> bool:
    """Whether memory is free for the single graph, which holds every backbone at once."""
    needed_mb = (
        _GRAPH_MEMORY * sum(bundle.size_of(name) for name in bundle.hashes if name.startswith("backbones/")) / 1e6
    )
    for source in (Available, MemoryLimit):
        try:
            free_mb = source()().fields.get("memory_available_mb")
        except (OSError, ValueError):  # the monitor says so
            continue
        if free_mb is not None and free_mb < needed_mb:
            return False
    return True
