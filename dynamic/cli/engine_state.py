"""The state of each engine on this machine."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from dynamic.engines.engine_factory import PRECISIONS, is_there

_INSTALL = {
    "onnxruntime": "pip install dynamic-inference",
    "openvino": "pip install 'dynamic-inference[openvino]'",
    "torch": "pip install 'dynamic-inference[build]', to build bundles, or to run one with its modules",
}


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


def engine_state(name: str) -> EngineState:
    if not is_there(name):
        return EngineState(name, False, None, (), f"not installed: {_INSTALL[name]}")
    precisions: tuple[str, ...] = PRECISIONS[name]
    problem = None
    try:
        if name in _CHECKS:
            precisions, problem = _CHECKS[name](precisions)
    except Exception as error:  # a broken installation raises any exception
        precisions, problem = (), f"installed, but does not load ({error}): {_INSTALL[name]}"
    return EngineState(name, True, installed_version(name), precisions, problem)


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


def installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
