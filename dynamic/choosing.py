"""`engine="auto"`: the installed engines run the cascade itself for a moment, and the fastest is taken."""

import json
import logging
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dynamic.engines.contract import CascadeSpec
from dynamic.engines.opening import installed, open_engine
from dynamic.machine import machine_key, machine_name
from dynamic.policies.errors import EngineError
from dynamic.policies.scores import Combiner
from dynamic.profiling import example_arrays
from dynamic.profiling_graph import measure_graph

AUTO = "auto"

_CHOICES = "choices"  # of a bundle's folder: one file a machine
_SECONDS = 1.0  # for all engines together

logger = logging.getLogger("dynamic")


@dataclass(frozen=True)
class Choice:
    """The engine taken on one machine, and what each took for one input, in ms: the mean over the stages to leave at.

    `failed`: engines that could not run the cascade, with the reason.
    """

    machine: str
    engine: str
    latency_ms: Mapping[str, float]
    failed: Mapping[str, str]


def choose(
    folder: Path,
    spec: CascadeSpec,
    combiner: Combiner,
    clock: Callable[[], float] = time.perf_counter,
    **options: Any,
) -> Choice:
    """Measure the installed engines that run without torch on the single graph in `folder`, in f32.

    Raises EngineError where none of them can run it.
    """
    inputs, latency_ms, failed = example_arrays(spec, 1), {}, {}
    names = [name for name in installed() if name != "torch"]  # a bundle holds no modules for torch
    for name in names:
        try:
            engine = open_engine(name, folder, spec, combiner, route="graph", **options)
            assert engine.graph is not None
            column = measure_graph(engine.graph, spec, inputs, _SECONDS / len(names), clock)
            engine.close()
        except EngineError as error:
            failed[name] = str(error)
            continue
        latency_ms[name] = statistics.fmean(statistics.median(times) for times in column.leaving)
    if not latency_ms:
        raise EngineError(f"no installed engine runs this cascade: {failed or 'none is installed'}")
    best = min(latency_ms, key=lambda name: latency_ms[name])
    logger.info("engine %s of %s", best, {name: round(ms, 3) for name, ms in latency_ms.items()})
    return Choice(machine_name(), best, latency_ms, failed)


def chosen(folder: Path, spec: CascadeSpec, combiner: Combiner, keep: bool, **options: Any) -> Choice:
    """The choice that was made on this machine earlier, or now; `keep` it in the folder where that can be written."""
    path = folder / _CHOICES / f"{machine_key()}.json"
    try:
        found = Choice(**json.loads(path.read_text(encoding="utf-8")))
        if found.engine in installed():
            return found
    except FileNotFoundError:
        pass
    except (OSError, ValueError, TypeError) as error:
        logger.warning("%s does not read (%s): measuring again", path, error)
    found = choose(folder, spec, combiner, **options)
    if keep:
        try:
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(asdict(found), indent=1), encoding="utf-8")
        except OSError as error:
            logger.warning("the choice of engine could not be kept in %s: %s", folder, error)
    return found
