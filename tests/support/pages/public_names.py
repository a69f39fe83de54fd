"""Every public function, class and method of the library, by its public name."""

import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

PACKAGES = (
    "dynamic",
    "dynamic.policies",
    "dynamic.simulate",
    "dynamic.data",
    "dynamic.serve",
    "dynamic.models",
    "dynamic.models.compress",
)


@dataclass(frozen=True)
class Public:
    """One public function, class or method. `owner` is the class of a method."""

    name: str
    value: Any
    owner: type | None = None

    @property
    def doc(self) -> str:
        """Its own docstring, or that of the method that it implements."""
        return inspect.getdoc(self.value) or ""

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of its parameters, `self` aside. Those of a class are its constructor's."""
        if isinstance(self.value, type) and issubclass(self.value, Exception | Warning):
            return ()
        if getattr(self.value, "_is_protocol", False):  # nobody calls a protocol
            return ()
        try:
            signature = inspect.signature(self.value)
        except (TypeError, ValueError):
            return ()
        hidden = {"self", "cls"} if self.owner is not None else set()
        return tuple(name for name in signature.parameters if name not in hidden and not name.startswith("_"))


def public() -> Iterator[Public]:
    """All of them, each once."""
    seen: set[int] = set()
    for package in PACKAGES:
        module = importlib.import_module(package)
        names = getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]
        for name in sorted(names):
            value = getattr(module, name)
            own = getattr(value, "__module__", "").startswith("dynamic")
            if not own or id(value) in seen or not (inspect.isfunction(value) or inspect.isclass(value)):
                continue
            seen.add(id(value))
            yield Public(f"{package}.{name}", value)
            if inspect.isclass(value):
                yield from _methods(f"{package}.{name}", value)


def _methods(name: str, owner: type) -> Iterator[Public]:
    for method, value in vars(owner).items():
        if method.startswith("_") and method != "__call__":
            continue
        function = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if inspect.isfunction(function) and function.__module__.startswith("dynamic"):
            yield Public(f"{name}.{method}", function, owner)
