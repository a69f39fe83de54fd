"""How the requests of a batch are read, timed and answered."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from dynamic.bundle.contract import DeployedBundle
from dynamic.bundle.input_conversion import named_inputs
from dynamic.engines.contract import Array
from dynamic.runtime.result import Result
from dynamic.runtime.runtime import Runtime


@dataclass(frozen=True, eq=False)
class RequestArrays:
    """A request, read.

    Args:
        arrays: By name, each `[B, ...]`. Those of a batch are concatenated.
        is_single: Whether it had no batch dimension.
        kind: What requests of one batch share, beside the shapes of a row. It can be hashed.
    """

    arrays: Mapping[str, Array]
    is_single: bool = False
    kind: Any = None


class Answering(Protocol):
    """What a batch needs of a runtime. `run` is that runtime."""

    run: Runtime

    @property
    def elsewhere(self) -> int:
        """Rows that have begun here and have not ended elsewhere."""

    def read(self, bundle: DeployedBundle, x: Any) -> RequestArrays:
        """The arrays of a request.

        Args:
            bundle: The bundle at work.
            x: The request.

        Returns:
            Its arrays.

        Raises:
            InputError: It does not fit.
            BundleError: Another bundle has begun with it.
        """

    def expected_ms(self, one: RequestArrays, rows: int) -> float:
        """What rows should take now, where all of them run all stages.

        Args:
            one: A request of their kind.
            rows: How many there are.

        Returns:
            The time in milliseconds. It raises nothing, since requests of other kinds wait for it.
        """

    def __call__(self, one: RequestArrays, arrays: Mapping[str, Array], **limits: Any) -> Result:
        """The answer to requests of a kind.

        Args:
            one: One of them.
            arrays: The arrays of all, concatenated.
            **limits: As for `Runtime.__call__`.

        Returns:
            The answer.
        """


class WholeRequests:
    """Inputs of the cascade, answered as `run(x)` does.

    Args:
        run: The runtime.
        elsewhere: Counts the rows that have begun here and have not ended elsewhere.
    """

    def __init__(self, run: Runtime, elsewhere: Callable[[], int] = lambda: 0) -> None:
        self.run, self._elsewhere = run, elsewhere

    @property
    def elsewhere(self) -> int:
        """See `Answering`."""
        return self._elsewhere()

    def read(self, bundle: DeployedBundle, x: Any) -> RequestArrays:
        """See `Answering`."""
        arrays, is_single = named_inputs(bundle, x)
        return RequestArrays(arrays, is_single)

    def expected_ms(self, one: RequestArrays, rows: int) -> float:
        """See `Answering`."""
        deployment = self.run.deployment
        decision, frontier, spec = deployment.decision, deployment.frontier, deployment.bundle.spec
        point, slowdown = frontier.points[0], 1.0
        if decision is not None and any(decision.point is one for one in frontier.points):  # else before a swap
            point, slowdown = decision.point, decision.slowdown
        return frontier.path_ms(point, len(spec.stages) - 1, rows=rows, size=spec.size_of(one.arrays)) * slowdown

    def __call__(self, one: RequestArrays, arrays: Mapping[str, Array], **limits: Any) -> Result:
        """See `Answering`."""
        return self.run(arrays, **limits)
