"""`engine="auto"`: the installed engines run the cascade itself for a moment, and the fastest is chosen."""

import json
import logging
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dynamic.engines.contract import CascadeSpec
from dynamic.engines.engine_factory import PRECISIONS, installed, open_engine
from dynamic.policies.errors import EngineError, SettingError
from dynamic.policies.scores import Combiner
from dynamic.policies.validation.fields import mapping, maybe, number, short, text, texts, whole
from dynamic.profiling.example_inputs import example_arrays
from dynamic.profiling.graph_profile import measure_graph
from dynamic.profiling.machine import machine_key, machine_name
from dynamic.storage.atomic_write import make_room, replace_text
from dynamic.storage.json_files import MEASURED_BYTES, read_json, seal, unseal

AUTO = "auto"
CHOICES = "choices"  # of a bundle's folder: one file a machine, number of threads and precision

_SECONDS = 1.0  # for all engines together
_OPTIONS = ("route", "threads")  # that every engine takes

logger = logging.getLogger("dynamic")


@dataclass(frozen=True)
class Choice:
    """The engine that was chosen on a machine.

    Args:
        machine: The machine.
        threads: The requested number of threads. None: all cores.
        precision: Precision of each engine.
        engine: The chosen engine.
        latency_ms: Time of each engine for one input, the mean over the exit stages.
        failed: Engines that could not run the cascade, with the reason.
    """

    machine: str
    threads: int | None
    precision: Mapping[str, str]
    engine: str
    latency_ms: Mapping[str, float]
    failed: Mapping[str, str]

    @classmethod
    def from_json(cls, data: Any) -> "Choice":
        """Read the result of `asdict`. Raises ValueError on anything else."""
        fields = mapping(data, "choice", cls.__dataclass_fields__)
        latencies = mapping(fields["latency_ms"], "latency_ms")
        choice = cls(
            machine=text(fields["machine"], "machine"),
            threads=maybe(fields["threads"], "threads", lambda value, name: whole(value, name, 1, 2**20)),
            precision=texts(fields["precision"], "precision"),
            engine=text(fields["engine"], "engine"),
            latency_ms={name: number(value, f"latency_ms.{name:.80}", 0.0) for name, value in latencies.items()},
            failed=texts(fields["failed"], "failed"),
        )
        if choice.latency_ms.get(choice.engine) != min(choice.latency_ms.values(), default=None):
            raise ValueError(f"engine {choice.engine:.80} is not the fastest of {short(dict(choice.latency_ms))}")
        return choice


def check_precision(precision: str) -> None:
    """Raise EngineError where no installed engine that "auto" may choose has this precision."""
    available = {name: PRECISIONS[name] for name in _candidates()}
    if not any(precision in precisions for precisions in available.values()):
        raise EngineError(f"precision {precision!r} is on no engine that engine='auto' can take here: {available}")


def choose(
    folder: Path,
    spec: CascadeSpec,
    combiner: Combiner,
    precision_on: Callable[[str], str],
    threads: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
    hashes: Mapping[str, str] | None = None,
) -> Choice:
    """Measure the installed engines that run without torch on the single graph in a folder.

    Args:
        folder: The folder of the graph.
        spec: The cascade.
        combiner: The rule by which stages make scores and answers.
        precision_on: The precision of an engine, by its name.
        threads: Threads of each engine. None: all cores.
        clock: Time in seconds.
        hashes: As for `open_engine`.

    Returns:
        The choice.

    Raises:
        EngineError: No engine can run the cascade.
    """
    inputs, names = example_arrays(spec, 1), _candidates()
    precision = {name: precision_on(name) for name in names}
    latency_ms: dict[str, float] = {}
    failed: dict[str, str] = {}
    for name in names:
        try:
            engine = open_engine(
                name, folder, spec, combiner, precision=precision[name], route="graph", threads=threads, hashes=hashes
            )
            try:
                assert engine.graph is not None
                column = measure_graph(engine.graph, spec, inputs, _SECONDS / len(names), clock)
            finally:
                engine.close()
        except (EngineError, ImportError, OSError) as error:  # the last two: an installation that is broken
            failed[name] = str(error)
            continue
        latency_ms[name] = statistics.fmean(statistics.median(times) for times in column.leaving)
    if not latency_ms:
        raise EngineError(f"no installed engine runs this cascade: {failed or 'none is installed'}")
    best = min(latency_ms, key=lambda name: latency_ms[name])
    logger.info("engine %s of %s", best, {name: round(ms, 3) for name, ms in latency_ms.items()})
    return Choice(machine_name(), threads, precision, best, latency_ms, failed)


def chosen(
    folder: Path,
    spec: CascadeSpec,
    combiner: Combiner,
    precision_on: Callable[[str], str],
    keep: bool,
    cascade: str,
    hashes: Mapping[str, str] | None = None,
    **options: Any,
) -> Choice:
    """The choice that was made on this machine earlier, or now.

    Args:
        folder: The folder of the bundle.
        spec: The cascade.
        combiner: The rule by which stages make scores and answers.
        precision_on: The precision of an engine, by its name.
        keep: Whether to store a new choice in the folder, where it can be written.
        cascade: The fingerprint of the cascade in the folder. A choice that was made for another one does not count.
        hashes: As for `open_engine`.
        options: `threads`, and `route`, which has no effect since the single graph is measured.

    Returns:
        The choice.

    Raises:
        SettingError: There is another option.
        EngineError: No engine can run the cascade.
    """
    for name in options:
        if name not in _OPTIONS:
            raise SettingError(
                f"option {name!r} is not one of {_OPTIONS}, which engine='auto' takes: give it with a named engine"
            )
    threads = options.get("threads")
    precision = {name: precision_on(name) for name in _candidates()}
    path = folder / CHOICES / _file(threads, precision)
    try:
        choice = Choice.from_json(unseal(read_json(path, folder, most_bytes=MEASURED_BYTES), _subject(path, cascade)))
        if choice.threads != threads:
            raise ValueError(f"it is of {choice.threads} threads")
        if choice.engine not in precision:  # it may be one that was installed then
            logger.info("%s has chosen engine %s, which is not installed: measuring again", path, choice.engine)
        elif choice.precision.get(choice.engine) == precision[choice.engine]:
            return choice
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        logger.warning("%s does not read (%s): measuring again", path, error)
    choice = choose(folder, spec, combiner, precision_on, threads, hashes=hashes)
    if keep:
        _keep(choice, path, cascade)
    return choice


def _subject(path: Path, cascade: str) -> str:
    """What a file of a choice is about: another bundle's does not fit."""
    return f"{CHOICES}/{path.name} of {cascade}"


def _candidates() -> tuple[str, ...]:
    return tuple(name for name in installed() if name != "torch")  # a bundle holds no modules for torch


def _file(threads: int | None, precision: Mapping[str, str]) -> str:
    return f"{machine_key()}-{threads or 'all'}-{'-'.join(sorted(set(precision.values())))}.json"


def _keep(choice: Choice, path: Path, cascade: str) -> None:
    try:
        content = seal(asdict(choice), _subject(path, cascade))
        replace_text(make_room(path.parent.parent, CHOICES) / path.name, json.dumps(content, indent=1))
    except OSError as error:
        logger.warning("the choice of engine could not be kept in %s: %s", path.parent, error)
