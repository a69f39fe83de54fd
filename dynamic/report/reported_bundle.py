"""What a report needs of a bundle."""

from collections.abc import Iterable
from typing import Any, Protocol

from dynamic.bundle.contract import Preprocessing
from dynamic.engines.contract import CascadeSpec
from dynamic.policies.costs import Costs
from dynamic.policies.frontier import Frontier
from dynamic.policies.ladder import Ladder
from dynamic.policies.records import Records


class ReportedBundle(Protocol):
    """A bundle as a report sees it. `dynamic.Bundle` says what each member means."""

    @property
    def spec(self) -> CascadeSpec: ...
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
    def calibrate(
        self,
        loader: Iterable[Any],
        *,
        engine: str | None = None,
        precision: str | None = None,
        seed: int = 0,
        progress: bool | None = None,
    ) -> Records: ...
