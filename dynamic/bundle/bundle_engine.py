"""The engine of a bundle: which one, in which precision, on how many threads, and by which route."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dynamic.bundle.contract import DeployedBundle
from dynamic.bundle.version_files import VersionFiles
from dynamic.engines.contract import CascadeSpec
from dynamic.engines.engine_factory import open_engine
from dynamic.engines.route_choice import CascadeEngine
from dynamic.policies.errors import EngineError
from dynamic.profiling.engine_choice import AUTO, chosen
from dynamic.profiling.machine import quota_threads

logger = logging.getLogger("dynamic")


def open_bundle_engine(
    bundle: DeployedBundle,
    files: VersionFiles,
    engine: str | None,
    precision: str | None,
    options: Mapping[str, Any],
) -> CascadeEngine:
    """Open an engine for a bundle. Its canaries do not run.

    Args:
        bundle: The bundle.
        files: Its files.
        engine: Its name, or "auto" for the fastest here. None: the one that was calibrated.
        precision: "f32" or "bf16". None: the calibrated one on the calibrated engine, "f32" on others.
        options: Options of the engine by name. Without `threads`, a quota of the container gives their number.

    Returns:
        The engine. It takes the routes that are faster in costs of this machine, where there are any.

    Raises:
        EngineError: The engine is unknown, not installed, or does not load, or the bundle has no graphs for it.
        SettingError: An option is out of range, or the engine has no such option.
    """

    def precision_on(name: str) -> str:
        return precision or bundle.precision_on(name)

    name = engine or bundle.engine
    if name != "torch":
        _check_graphs(bundle, name)
        options = _within_quota(options)
    if name == AUTO:
        name = _fastest(bundle, files, precision_on, options)
    engine_precision = precision_on(name)
    opened = open_engine(
        name,
        bundle.folder,
        bundle.spec,
        bundle.combiner(),
        bundle.modules,
        engine_precision,
        hashes=bundle.hashes,
        held=files.open_files,
        **options,
    )
    costs = bundle.costs_on(name, engine_precision, opened.threads)
    if costs is not None and costs.route:
        opened.follow(costs.batch, costs.route)
    return opened


def has_graphs(folder: Path, spec: CascadeSpec) -> bool:
    """Whether engines other than torch can run the cascade: its stages were exported."""
    return (folder / spec.stages[0].graph).is_file()


def _check_graphs(bundle: DeployedBundle, name: str) -> None:
    if bundle.spec.stages[0].graph not in bundle.hashes and not has_graphs(bundle.folder, bundle.spec):
        raise EngineError(
            f"engine {name!r} needs graphs and this bundle has none, since torch could not export its networks: "
            "use engine='torch' and dynamic.load(path, modules=cascade)"
        )


def _within_quota(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options, with the threads that a quota of the container leaves where no number is given."""
    if options.get("threads") is None and (quota := quota_threads()) is not None:
        return {**options, "threads": quota}
    return options


def _fastest(
    bundle: DeployedBundle, files: VersionFiles, precision_on: Callable[[str], str], options: Mapping[str, Any]
) -> str:
    """The name of the engine that "auto" is on this machine. A warning says where its results are not certified."""
    keep = not bundle.is_temporary and bundle.place is not None
    with files.whole_folder() as folder:
        name = chosen(
            folder,
            bundle.spec,
            bundle.combiner(),
            precision_on,
            keep,
            bundle.cascade,
            hashes=bundle.hashes,
            **options,
        ).engine
    if name != bundle.engine:
        logger.warning(
            "engine %s is the fastest here, the bundle was calibrated on %s: results will not be certified",
            name,
            bundle.engine,
        )
    return name
