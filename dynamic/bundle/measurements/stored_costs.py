"""What stages cost, as files of a bundle: one for each machine, engine, precision and number of threads."""

import json
import logging
from pathlib import Path

from dynamic.bundle.contract import DeployedBundle
from dynamic.bundle.golden_vectors.figures import figures
from dynamic.bundle.version_files import VersionFiles
from dynamic.policies.costs import Costs
from dynamic.policies.errors import DynamicError
from dynamic.policies.frontier import Frontier
from dynamic.profiling.machine import machine_key, machine_name
from dynamic.storage.atomic_write import keep_text
from dynamic.storage.json_files import MEASURED_BYTES, read_json, seal, unseal

COSTS = "costs"  # the folder

logger = logging.getLogger("dynamic")


def costs_name(engine: str, precision: str, threads: int | str) -> str:
    """The file of the costs of an engine on this machine."""
    return f"{machine_key()}-{engine}-{precision}-{threads}.json"


def is_of_route(costs: Costs, route: str | None) -> bool:
    """Whether costs are of this route at every batch size. None: of any."""
    return route is None or set(costs.route or ("stages",)) == {route}


def subject_of(bundle: DeployedBundle, name: str) -> str:
    """What a file of costs is about: another bundle's, or of another machine, does not fit."""
    return f"{COSTS}/{name} of {bundle.cascade}"


def newest_costs(bundle: DeployedBundle) -> Costs | None:
    """What was measured last on this machine with the bundle's own engine and precision."""
    folder = bundle.folder / COSTS
    ours = folder.glob(costs_name(bundle.engine, bundle.precision, "*"))
    for path in sorted(ours, key=_written_at, reverse=True):
        return stored_costs(bundle, path.name)
    if any(not other.name.startswith(machine_key()) for other in folder.glob("*.json")):
        logger.warning(
            "%s holds costs of other machines, none of this one, %s: call profile()", bundle.folder, machine_name()
        )
    return None


def _written_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # a link that leads nowhere
        return 0.0


def stored_costs(bundle: DeployedBundle, name: str) -> Costs | None:
    place = bundle.place
    if place is None:  # costs of another version lie there
        return None
    path = place / COSTS / name
    try:
        data = read_json(path, place, most_bytes=MEASURED_BYTES)
        if isinstance(data, dict) and "schema" in data and "route" not in data:
            logger.warning("the costs in %s were measured by an earlier version: call profile() again", path)
            return None
        if isinstance(data, dict):
            data.pop("frontier", None)  # derived, so neither sealed nor read
        costs = Costs.from_json(unseal(data, subject_of(bundle, name)))
        if costs_name(costs.engine, costs.precision, costs.threads) != name:
            raise ValueError(f"they are of engine {costs.engine} {costs.precision}, {costs.threads} threads")
        if (len(costs.latency_ms), len(costs.memory_mb)) != (len(bundle.spec.stages), len(bundle.spec.backbones)):
            raise ValueError("they are of another number of stages or networks")
    except FileNotFoundError:
        if path.is_symlink():
            logger.warning("%s is a link that leads nowhere: call profile() again", path)
        return None
    except (DynamicError, ValueError, OSError) as error:
        logger.warning("%s does not read (%s): call profile() again", path, error)
        return None
    return costs


def keep_costs(bundle: DeployedBundle, files: VersionFiles, costs: Costs) -> None:
    """Write costs into the folder of a bundle. Where that fails, a warning says why.

    Args:
        bundle: The bundle.
        files: Its files. Nothing is written where another version lies in their folder.
        costs: The costs.
    """
    try:
        with files.open_place() as place:
            if place is not None:
                write_costs(bundle, place, costs)
                return
        logger.warning("costs are not kept: another bundle lies in %s since this one was loaded", bundle.folder)
    except OSError as error:  # a read-only shelf still runs, it only measures again next time
        logger.warning("costs could not be kept in %s: %s", bundle.folder, error)


def write_costs(bundle: DeployedBundle, folder: Path, costs: Costs) -> None:
    """Write the file of costs.

    Args:
        bundle: The bundle that they are of.
        folder: Its folder, or one that takes its place.
        costs: The costs.

    Raises:
        OSError: The file could not be written.
    """
    # the frontier is for ports of the policy, which then need no statistics. It is never read back here
    frontier = figures(Frontier.of(bundle.ladder, costs))
    name = costs_name(costs.engine, costs.precision, costs.threads)
    content = seal(costs.to_json(), subject_of(bundle, name)) | {"frontier": frontier}
    keep_text(folder, COSTS, name, json.dumps(content, indent=1))
