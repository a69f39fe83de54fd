"""What the other rooms need of a bundle."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from dynamic.bundle.canaries.canary_set import Canaries
from dynamic.bundle.fingerprint import EngineIdentity
from dynamic.bundle.sharing.slim_facts import SlimFacts
from dynamic.data.arrays import Side
from dynamic.engines.contract import Array, CascadeSpec, InputSpec
from dynamic.engines.options import EngineOptions, Route
from dynamic.engines.route_choice import CascadeEngine
from dynamic.policies.costs import Costs
from dynamic.policies.frontier import Frontier
from dynamic.policies.ladder import Ladder
from dynamic.policies.records import Records
from dynamic.policies.scores import Combiner


class Preprocessing(Protocol):
    """What makes the input of a network from what a user has. It is data, and travels in the manifest.

    `dynamic.Preprocess` takes images, `dynamic.data.SoundPreprocess` sounds, `dynamic.TextPreprocess` texts.
    """

    for_images: ClassVar[bool]  # whether a stream of inputs may be a camera's
    limits_values: ClassVar[bool]  # whether `check_arrays` refuses any

    def __call__(self, x: Any, /) -> Any:
        """The input of a network whose sizes are not checked."""
        ...

    @property
    def files(self) -> Mapping[str, bytes]:
        """What it holds beside its plain data, by the name of the file in a bundle."""
        ...

    def arrays(self, x: Any, inputs: Sequence[InputSpec], /) -> Mapping[str, Array]:
        """The inputs of a network by name, `[B, ...]` of one or several. InputError: they do not fit."""
        ...

    def check(self, x: Any, shape: Sequence[Side], /) -> None:
        """Raises InputError where a call would for a shape or a type, in little time."""
        ...

    def check_arrays(self, named: Mapping[str, Array], /) -> None:
        """Raises InputError where inputs that a user gives by name hold what this preprocessing never makes."""
        ...

    def is_single(self, x: Any, /) -> bool:
        """Whether `x` is one, and not a batch of one."""
        ...

    def check_packages(self) -> None:
        """Raises DynamicError where a package is missing without which some input has no answer."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        ...


class DescribedBundle(Protocol):
    """What a bundle says of itself. `dynamic.Bundle` says what each member means."""

    @property
    def spec(self) -> CascadeSpec: ...
    @property
    def slim(self) -> SlimFacts | None: ...
    @property
    def ladder(self) -> Ladder: ...
    @property
    def engine(self) -> str: ...
    @property
    def precision(self) -> str: ...
    @property
    def classes(self) -> tuple[str, ...] | None: ...
    @property
    def preprocess(self) -> Preprocessing | None: ...
    @property
    def costs(self) -> Costs | None: ...
    @property
    def records(self) -> Records: ...
    @property
    def frontier(self) -> Frontier: ...


class DeployedBundle(DescribedBundle, Protocol):
    """A bundle as a runtime sees it. `dynamic.Bundle` says what each member means."""

    @property
    def folder(self) -> Path: ...
    @property
    def place(self) -> Path | None: ...
    @property
    def hashes(self) -> Mapping[str, str]: ...
    @property
    def cascade(self) -> str: ...
    @property
    def modules(self) -> tuple[Any, ...] | None: ...
    @property
    def calibrated_on(self) -> EngineIdentity | None: ...
    @property
    def preload(self) -> bool: ...
    @property
    def is_temporary(self) -> bool: ...
    @property
    def canaries(self) -> Canaries | None: ...
    def combiner(self) -> Combiner: ...
    def size_of(self, name: str) -> int: ...
    def precision_on(self, engine: str) -> str: ...
    def costs_on(self, engine: str, precision: str, threads: int, route: str | None = None) -> Costs | None: ...
    def fingerprint(self, engine: str, precision: str) -> str: ...
    def open(
        self,
        engine: str | None = None,
        precision: str | None = None,
        *,
        threads: int | None = None,
        route: Route | None = None,
        options: EngineOptions | None = None,
    ) -> CascadeEngine: ...
    def open_unchecked(self, engine: str | None = None, precision: str | None = None) -> CascadeEngine: ...
    def agrees(self, opened: CascadeEngine) -> bool: ...
    def profile(
        self,
        batch: Any = ...,
        seconds: float = ...,
        engine: str | None = None,
        *,
        keep: bool = True,
        threads: int | None = None,
        route: Route | None = None,
        options: EngineOptions | None = None,
    ) -> "DeployedBundle": ...
    def with_costs(self, costs: Costs, forced: str | None) -> "DeployedBundle": ...
    def preloaded(self) -> "DeployedBundle": ...
