"""From the name of an engine to a running engine. A library is imported only for the engine that uses it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

from dynamic.engines.contract import GRAPH, CascadeSpec, Executor, Graph
from dynamic.engines.model_files.graph_files import Held
from dynamic.engines.options import (
    EngineName,
    EngineOptions,
    OnnxRuntimeOptions,
    OpenVinoOptions,
    Precision,
    TorchOptions,
    check_options,
    engine_options,
)
from dynamic.engines.route_choice import CascadeEngine
from dynamic.engines.stage_loop import StageEngine
from dynamic.policies.errors import EngineError, SettingError
from dynamic.policies.scores import Combiner


@dataclass(frozen=True)
class _Parts:
    """The parts of an engine: single stages, and the whole cascade where it has that."""

    executor: Executor
    graph: Callable[[], Graph] | None = None


@dataclass(frozen=True)
class _Request:
    """What an engine is opened for. See `open_engine`."""

    folder: Path
    spec: CascadeSpec
    stages: Sequence[Any] | None
    precision: str
    options: EngineOptions
    hashes: Mapping[str, str] | None
    held: Held | None


def _onnxruntime(request: _Request) -> _Parts:
    from dynamic.engines.onnxruntime import OnnxRuntimeExecutor, OnnxRuntimeGraph

    assert isinstance(request.options, OnnxRuntimeOptions)
    arguments = (
        request.folder,
        request.spec,
        request.options.threads,
        request.options.idle,
        request.hashes,
        request.held,
    )
    return _Parts(OnnxRuntimeExecutor(*arguments), lambda: OnnxRuntimeGraph(*arguments))


def _openvino(request: _Request) -> _Parts:
    from dynamic.engines.openvino import OpenVinoExecutor, OpenVinoGraph

    assert isinstance(request.options, OpenVinoOptions)
    arguments = (request.folder, request.spec, request.options.threads, request.precision, request.hashes, request.held)
    return _Parts(OpenVinoExecutor(*arguments), lambda: OpenVinoGraph(*arguments))


def _torch(request: _Request) -> _Parts:
    if request.stages is None:
        raise EngineError(
            "a bundle holds no torch modules: load it with them, dynamic.load(path, modules=cascade), "
            "or use engine='onnxruntime'"
        )
    from dynamic.engines.pytorch import TorchExecutor

    options = request.options
    assert isinstance(options, TorchOptions)
    executor = TorchExecutor(request.stages, request.spec, options.device or "cpu", options.compile, options.threads)
    return _Parts(executor)


@dataclass(frozen=True)
class _Engine:
    make: Callable[[_Request], _Parts]
    precisions: tuple[Precision, ...]
    package: str
    extra: str  # what pip installs it with


_ENGINES: Mapping[str, _Engine] = {
    "onnxruntime": _Engine(_onnxruntime, ("f32",), "onnxruntime", "dynamic-inference"),
    "openvino": _Engine(_openvino, ("f32", "bf16"), "openvino", "dynamic-inference[openvino]"),
    "torch": _Engine(_torch, ("f32",), "torch", "dynamic-inference[build]"),
}
ENGINES: tuple[EngineName, ...] = get_args(EngineName)
PRECISIONS = {name: engine.precisions for name, engine in _ENGINES.items()}


def check_engine(name: str, precision: str) -> None:
    """Check an engine and a precision.

    Args:
        name: The engine.
        precision: The precision.

    Raises:
        EngineError: The engine does not exist, or does not have this precision.
    """
    _check_name(name)
    if precision not in PRECISIONS[name]:
        raise EngineError(f"precision {precision!r} is not available on engine {name!r}: use one of {PRECISIONS[name]}")


def engine_version(name: str) -> str:
    """The version of an engine's library, which is imported for it. "unknown" where the import fails."""
    try:
        return str(import_module(_ENGINES[name].package).__version__)
    except ImportError:
        return "unknown"


def check_installed_engine(name: str) -> None:
    """Check that the library of an engine is installed.

    Args:
        name: The engine.

    Raises:
        EngineError: It is unknown or not installed. The message names the command that installs it.
    """
    _check_name(name)
    if not is_there(_ENGINES[name].package):
        raise EngineError(f"engine {name!r} is not installed: pip install '{_ENGINES[name].extra}'")


def _check_name(name: str) -> None:
    if name not in ENGINES:
        raise EngineError(f"engine {name!r} is not known: use one of {sorted(ENGINES)}")


def is_there(package: str) -> bool:
    """Whether a package is installed. It is not loaded.

    Args:
        package: Its name as it is imported.

    Returns:
        Whether Python finds it.
    """
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):  # its import is forbidden
        return False


def installed() -> tuple[str, ...]:
    """The engines whose library is installed."""
    return tuple(name for name, engine in _ENGINES.items() if is_there(engine.package))


def open_engine(
    name: str,
    folder: Path,
    spec: CascadeSpec,
    combiner: Combiner,
    stages: Sequence[Any] | None = None,
    precision: str = "f32",
    *,
    options: EngineOptions | None = None,
    hashes: Mapping[str, str] | None = None,
    held: Held | None = None,
    **keywords: Any,
) -> CascadeEngine:
    """Open an engine.

    No library is imported and no file opened before the first request, but for engine "torch", whose modules are
    there already, and precision "bf16".

    Args:
        name: The engine, one of `EngineName`.
        folder: The folder with the graphs of the cascade.
        spec: The cascade.
        combiner: The rule by which stages make scores and answers.
        stages: The torch modules of the stages, for engine "torch".
        precision: One of `Precision`.
        options: Options of the engine. None: those in `keywords`.
        hashes: SHA-256 of the files in `folder` by name, checked whenever one is loaded. None: nothing is checked.
        held: The same files, open, for when another bundle lies in `folder`.
        keywords: Options of the engine by name, in place of `options`.

    Returns:
        The engine.

    Raises:
        EngineError: The engine or precision is unknown, or the engine is not installed or does not start.
        SettingError: The engine has no such option, or an option is out of range.
    """
    check_engine(name, precision)
    if options is None:
        options = engine_options(name, **keywords)
    elif keywords:
        raise SettingError(f"options={options!r:.200} and {sorted(keywords)} are given: give one or the other")
    check_options(name, options)
    check_installed_engine(name)
    parts = _ENGINES[name].make(_Request(folder, spec, stages, precision, options, hashes, held))
    moved = held is not None and held.place() != folder and GRAPH in (hashes or ())
    graph = parts.graph() if parts.graph is not None and (moved or (folder / GRAPH).is_file()) else None
    stage_engine = StageEngine(parts.executor, spec, combiner)
    stage_engine.options = options.arithmetic
    return CascadeEngine(stage_engine, graph, options.route)
