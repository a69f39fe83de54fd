"""Options of engines: frozen dataclasses that check themselves, and the words that they may hold."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, Literal, get_args

from dynamic.policies.errors import EngineError, SettingError
from dynamic.policies.validation.numbers import plain

EngineName = Literal["onnxruntime", "openvino", "torch"]
Precision = Literal["f32", "bf16"]
Idle = Literal["sleep", "spin"]
Route = Literal["graph", "stages"]


@dataclass(frozen=True, kw_only=True)
class CommonOptions:
    """The options that every engine has.

    Args:
        threads: Threads of each operator, at least 1. None: one for each core that this process may use.
        route: "graph" or "stages" for every request that may take it. None: whichever was measured faster.

    Raises:
        SettingError: An option is out of range.
    """

    threads: int | None = None
    route: Route | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            object.__setattr__(self, name, plain(value))  # numbers of numpy become Python's own
        if self.threads is not None and (not isinstance(self.threads, int) or self.threads < 1):
            raise SettingError(f"threads={self.threads!r} must be at least 1, a whole number, or None for all cores")
        if self.route is not None and self.route not in get_args(Route):
            raise SettingError(
                f"route={self.route!r} is not known: use one of {get_args(Route)}, or None for the faster"
            )

    @property
    def arithmetic(self) -> dict[str, str]:
        """The options that were given and under which other kernels run."""
        return {}


@dataclass(frozen=True, kw_only=True)
class OnnxRuntimeOptions(CommonOptions):
    """The options of engine "onnxruntime".

    Args:
        threads: Threads of each operator, at least 1. None: one for each core that this process may use.
        route: "graph" or "stages" for every request that may take it. None: whichever was measured faster.
        idle: "sleep": worker threads sleep as soon as they have no work. "spin": they spin for a while first, which
            is faster where requests follow each other on free cores, and takes CPU time.

    Raises:
        SettingError: An option is out of range.

    Example:
        >>> options = dynamic.OnnxRuntimeOptions(threads=2, idle="spin")
        >>> options.idle
        'spin'
    """

    idle: Idle = "sleep"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.idle not in get_args(Idle):
            raise SettingError(f"idle={self.idle!r} is not known: use one of {get_args(Idle)}")


@dataclass(frozen=True, kw_only=True)
class OpenVinoOptions(CommonOptions):
    """The options of engine "openvino".

    Args:
        threads: Threads of each inference, at least 1. None: one for each core that this process may use.
        route: "graph" or "stages" for every request that may take it. None: whichever was measured faster.

    Raises:
        SettingError: An option is out of range.

    Example:
        >>> dynamic.OpenVinoOptions(threads=2).threads
        2
    """


@dataclass(frozen=True, kw_only=True)
class TorchOptions(CommonOptions):
    """The options of engine "torch".

    Args:
        threads: Threads of the whole process, at least 1: torch has one number. None: as torch has been set.
        route: "stages" or None. Engine "torch" has no single graph.
        device: "cpu", or "cuda" where there is one. The modules must be there. None: the CPU.
        compile: Whether stages run through torch.compile. On the CPU it needs a C++ compiler. The first requests of
            one row and of several take seconds to minutes.

    Raises:
        SettingError: An option is out of range.

    Example:
        >>> dynamic.TorchOptions(device="cpu", compile=False).route is None
        True
    """

    device: str | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.compile, bool):
            raise SettingError(f"compile={self.compile!r} must be True or False")

    @property
    def arithmetic(self) -> dict[str, str]:
        """The options that were given and under which other kernels run."""
        return {name: str(value) for name in ("compile", "device") if (value := getattr(self, name))}


EngineOptions = OnnxRuntimeOptions | OpenVinoOptions | TorchOptions

OPTIONS: Mapping[EngineName, type[EngineOptions]] = MappingProxyType(
    {"onnxruntime": OnnxRuntimeOptions, "openvino": OpenVinoOptions, "torch": TorchOptions}
)


def keywords_of(
    options: EngineOptions | None, threads: int | None = None, route: Route | None = None
) -> dict[str, Any]:
    """What was given of the options of an engine, by name.

    Args:
        options: The options of one engine. None: `threads` and `route` alone.
        threads: Threads of the engine. None: not given.
        route: "graph" or "stages". None: not given.

    Returns:
        The options that differ from their defaults.

    Raises:
        SettingError: Options are no dataclass of this file, or say something else than `threads` or `route` do.
    """
    changed: dict[str, Any] = {
        name: value for name, value in (("threads", threads), ("route", route)) if value is not None
    }
    if options is None:
        return changed
    if not isinstance(options, CommonOptions):
        raise SettingError(
            f"options={options!r:.100} must be dynamic.OnnxRuntimeOptions(...), OpenVinoOptions(...) or "
            "TorchOptions(...)"
        )
    for field in fields(options):
        value = getattr(options, field.name)
        if value == field.default:
            continue
        if changed.setdefault(field.name, value) != value:
            raise SettingError(
                f"{field.name}={changed[field.name]!r} and options.{field.name}={value!r}: give one of them"
            )
    return changed


def engine_options(name: str, **keywords: Any) -> EngineOptions:
    """The options of an engine from keywords.

    Args:
        name: The engine.
        keywords: Its options by name.

    Returns:
        The options.

    Raises:
        EngineError: There is no such engine.
        SettingError: The engine has no such option, or a value is out of range.
    """
    kind = next((kind for engine, kind in OPTIONS.items() if engine == name), None)
    if kind is None:
        raise EngineError(f"engine {name!r} is not known: use one of {sorted(OPTIONS)}")
    names = sorted(field.name for field in fields(kind))
    for keyword in keywords:
        if keyword not in names:
            raise SettingError(f"engine {name!r} has no option {keyword!r}: its options are {names}")
    return kind(**keywords)


def check_options(name: str, options: EngineOptions) -> None:
    """Check that options are of an engine.

    Args:
        name: The engine.
        options: The options.

    Raises:
        SettingError: They are of another engine, or are no options.
    """
    kind = type(engine_options(name))
    if type(options) is not kind:
        raise SettingError(f"options={options!r:.200} are not of engine {name!r}: give a {kind.__name__}")
