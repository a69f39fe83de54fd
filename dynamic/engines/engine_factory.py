"""From an engine's name to a running engine. Libraries are imported only for the engine asked for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dynamic.engines.contract import GRAPH, CascadeSpec, Executor, Graph
from dynamic.engines.model_files.graph_files import Held
from dynamic.engines.route_choice import CascadeEngine
from dynamic.engines.stage_loop import StageEngine
from dynamic.policies.errors import EngineError
from dynamic.policies.scores import Combiner
from dynamic.policies.validation.numbers import plain


@dataclass(frozen=True)
class _Made:
    """What an engine consists of: stages one by one, and the whole cascade where it has that."""

    executor: Executor
    graph: Callable[[], Graph] | None = None


def _onnxruntime(folder: Path, spec: CascadeSpec, stages: Sequence[Any] | None, **options: Any) -> _Made:
    from dynamic.engines.onnxruntime import OnnxRuntimeExecutor, OnnxRuntimeGraph

    return _Made(OnnxRuntimeExecutor(folder, spec, **options), lambda: OnnxRuntimeGraph(folder, spec, **options))


def _torch(folder: Path, spec: CascadeSpec, stages: Sequence[Any] | None, **options: Any) -> _Made:
    if stages is None:
        raise EngineError(
            "a bundle holds no torch modules; load it with them, dynamic.load(path, modules=cascade), "
            "or use engine='onnxruntime'"
        )
    from dynamic.engines.pytorch import TorchExecutor

    return _Made(TorchExecutor(stages, spec, **options))


def _openvino(folder: Path, spec: CascadeSpec, stages: Sequence[Any] | None, **options: Any) -> _Made:
    from dynamic.engines.openvino import OpenVinoExecutor, OpenVinoGraph

    return _Made(OpenVinoExecutor(folder, spec, **options), lambda: OpenVinoGraph(folder, spec, **options))


@dataclass(frozen=True)
class _Engine:
    make: Callable[..., _Made]
    precisions: tuple[str, ...]
    package: str
    extra: str  # what pip installs it with


_ENGINES = {
    "onnxruntime": _Engine(_onnxruntime, ("f32",), "onnxruntime", "dynamic-inference"),
    "openvino": _Engine(_openvino, ("f32", "bf16"), "openvino", "dynamic-inference[openvino]"),
    "torch": _Engine(_torch, ("f32",), "torch", "dynamic-inference[build]"),
}
ENGINES = tuple(_ENGINES)
_ARITHMETIC = ("compile", "device")  # options of engine "torch" under which other kernels run
PRECISIONS = {name: engine.precisions for name, engine in _ENGINES.items()}


def check_engine(name: str, precision: str) -> None:
    """Raises EngineError on an engine or precision that does not exist."""
    if name not in _ENGINES:
        raise EngineError(f"engine {name!r} is not known; use one of {sorted(_ENGINES)}")
    if precision not in PRECISIONS[name]:
        raise EngineError(f"precision {precision!r} is not available on engine {name!r}; use one of {PRECISIONS[name]}")


def engine_version(name: str) -> str:
    """The version of an engine's library, which is imported for it. "unknown" where that fails, as the engine will."""
    try:
        return str(import_module(_ENGINES[name].package).__version__)
    except ImportError:
        return "unknown"


def check_installed_engine(name: str) -> None:
    """Check that the library of an engine is there.

    Args:
        name: The engine.

    Raises:
        EngineError: It is unknown or not installed; the message says how to install it.
    """
    if name not in _ENGINES:
        raise EngineError(f"engine {name!r} is not known; use one of {sorted(_ENGINES)}")
    if not is_there(_ENGINES[name].package):
        raise _not_installed(name)


def is_there(package: str) -> bool:
    """Whether a package can be found.

    Args:
        package: Its name as it is imported.

    Returns:
        Whether it is installed; it is not loaded.
    """
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):  # its import is forbidden
        return False


def _not_installed(name: str) -> EngineError:
    return EngineError(f"engine {name!r} is not installed: pip install '{_ENGINES[name].extra}'")


def installed() -> tuple[str, ...]:
    """The engines whose library is there."""
    return tuple(name for name, engine in _ENGINES.items() if is_there(engine.package))


def open_engine(
    name: str,
    folder: Path,
    spec: CascadeSpec,
    combiner: Combiner,
    stages: Sequence[Any] | None = None,
    precision: str = "f32",
    *,
    route: str | None = None,
    hashes: Mapping[str, str] | None = None,
    held: Held | None = None,
    **options: Any,
) -> CascadeEngine:
    """The engine `name` for the graphs under `folder`, or for the torch `stages`.

    `route`: see `CascadeEngine`. `hashes`: SHA-256 of the files in `folder` by name, checked whenever one is loaded
    (None: not checked). `held`: the same files, kept open for when another bundle lies in `folder`. `options` are the
    engine's own: `threads` and `idle` for "onnxruntime", `threads` for "openvino", `device` and `compile` for "torch".
    No library is imported and no file opened before the first request, but for engine "torch", whose modules are there
    already, and precision "bf16". Raises EngineError on
    an unknown engine, precision or option, or an engine that is not installed.
    """
    check_engine(name, precision)
    options = {option: plain(value) for option, value in options.items()}
    engine = _ENGINES[name]
    check_installed_engine(name)
    if len(engine.precisions) > 1:
        options["precision"] = precision
    if name != "torch":  # its modules are in memory
        options["hashes"], options["held"] = hashes, held
    try:
        made = engine.make(folder, spec, stages, **options)
    except TypeError as error:
        raise EngineError(f"engine {name!r}: {error}") from error
    moved = held is not None and held.place() != folder and GRAPH in (hashes or ())
    graph = made.graph() if made.graph is not None and (moved or (folder / GRAPH).is_file()) else None
    stages_engine = StageEngine(made.executor, spec, combiner)
    stages_engine.options = {name: str(options[name]) for name in _ARITHMETIC if options.get(name)}
    return CascadeEngine(stages_engine, graph, route)
