"""From an engine's name to a running engine. Libraries are imported only for the engine asked for."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dynamic.engines.contract import CascadeSpec, Executor
from dynamic.engines.loop import StageEngine
from dynamic.policies.errors import EngineError
from dynamic.policies.scores import Combiner


def _onnxruntime(folder: Path, spec: CascadeSpec, stages: Sequence[Any] | None, **options: Any) -> Executor:
    from dynamic.engines.onnxruntime import OnnxRuntimeExecutor

    return OnnxRuntimeExecutor(folder, spec, **options)


def _torch(folder: Path, spec: CascadeSpec, stages: Sequence[Any] | None, **options: Any) -> Executor:
    if stages is None:
        raise EngineError(
            "a bundle holds no torch modules; load it with them, dynamic.load(path, modules=cascade), "
            "or use engine='onnxruntime'"
        )
    try:
        from dynamic.engines.pytorch import TorchExecutor
    except ModuleNotFoundError as error:
        raise EngineError("engine 'torch' needs torch: pip install 'dynamic-inference[build]'") from error

    return TorchExecutor(stages, spec, **options)


def _openvino(folder: Path, spec: CascadeSpec, stages: Sequence[Any] | None, **options: Any) -> Executor:
    from dynamic.engines.openvino import OpenVinoExecutor

    try:
        return OpenVinoExecutor(folder, spec, **options)
    except ModuleNotFoundError as error:
        raise EngineError("engine 'openvino' needs OpenVINO: pip install 'dynamic-inference[openvino]'") from error


ENGINES: dict[str, Callable[..., Executor]] = {"onnxruntime": _onnxruntime, "openvino": _openvino, "torch": _torch}
PRECISIONS = {"onnxruntime": ("f32",), "openvino": ("f32", "bf16"), "torch": ("f32",)}


def check_engine(name: str, precision: str) -> None:
    """Raises EngineError on an engine or precision that does not exist."""
    if name not in ENGINES:
        raise EngineError(f"engine {name!r} is not known; use one of {sorted(ENGINES)}")
    if precision not in PRECISIONS[name]:
        raise EngineError(f"precision {precision!r} is not available on engine {name!r}; use one of {PRECISIONS[name]}")


def open_engine(
    name: str,
    folder: Path,
    spec: CascadeSpec,
    combiner: Combiner,
    stages: Sequence[Any] | None = None,
    precision: str = "f32",
    **options: Any,
) -> StageEngine:
    """The engine `name` for the graphs under `folder`, or for the torch `stages`.

    `options` are the engine's own: `threads` and `idle` for "onnxruntime", `threads` for "openvino", `device` for
    "torch". Raises EngineError on an unknown engine, precision or option, or an engine that is not installed.
    """
    check_engine(name, precision)
    if len(PRECISIONS[name]) > 1:
        options["precision"] = precision
    try:
        executor = ENGINES[name](folder, spec, stages, **options)
    except TypeError as error:
        raise EngineError(f"engine {name!r}: {error}") from error
    return StageEngine(executor, spec, combiner)
