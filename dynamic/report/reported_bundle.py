"""What a report needs of a bundle."""

from collections.abc import Iterable
from typing import Any, Protocol

from dynamic.bundle.contract import DescribedBundle
from dynamic.policies.records import Records


class ReportedBundle(DescribedBundle, Protocol):
    """A bundle as a report sees it. `dynamic.Bundle` says what each member means."""

    def calibrate(
        self,
        loader: Iterable[Any],
        *,
        engine: str | None = None,
        precision: str | None = None,
        seed: int = 0,
        progress: bool | None = None,
    ) -> Records: ...
