"""How the tail reads, times and answers rows that the head has passed on."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dynamic.bundle.contract import DeployedBundle
from dynamic.engines.contract import Array
from dynamic.engines.parts.rest import Rest
from dynamic.policies.errors import BundleError, InputError
from dynamic.runtime.parts import first_stage, rest_ms, version_of
from dynamic.runtime.result import BatchResult
from dynamic.runtime.runtime import Runtime
from dynamic.serve.answering import RequestArrays
from dynamic.serve.ray.split.hops import HopRequest

_WEIGHT = 0.1  # of one batch in the mean time of a row


class ContinuedRequests:
    """Rows that continue. It is an `Answering`.

    Args:
        run: A runtime of the stages from the cut on.
        row_ms: What a row is expected to take, until some have run.
    """

    elsewhere = 0

    def __init__(self, run: Runtime, row_ms: float) -> None:
        self.run = run
        self.row_ms = row_ms  # of the engine's time, mean of the latest batches
        self._slowdown = 1.0  # as of the last batch
        self._version: tuple[DeployedBundle, str] | None = None  # of the bundle that was asked for last

    def read(self, bundle: DeployedBundle, x: Any) -> RequestArrays:
        """See `Answering`."""
        if not isinstance(x, HopRequest):
            raise InputError(f"a {type(x).__name__} is no row that has begun: ask the head, which is the ingress")
        if self._version is None or self._version[0] is not bundle:
            self._version = bundle, version_of(bundle)
        if x.rest.version != self._version[1]:
            raise BundleError(
                f"these rows began with bundle {x.rest.version!r}, and {bundle.folder} is at work here: deploy the "
                "same bundle to both parts"
            )
        if all(point.name != x.point for point in bundle.ladder.points):
            raise InputError(f"{bundle.folder} has no operating point {x.point!r:.80}: ask the head, which chooses it")
        return RequestArrays(x.rest.arrays, kind=x.kind)

    def expected_ms(self, one: RequestArrays, rows: int) -> float:
        """See `Answering`."""
        deployment, kind = self.run.deployment, one.kind
        try:
            point = deployment.point(kind.point)
        except InputError:  # another bundle since it was read, so it is read again, which raises for it alone
            return 0.0
        costs, exits = deployment.frontier.costs_at(kind.size), [point.plan.deepest] * rows
        stage = first_stage(deployment.bundle.ladder.backbone, point.plan, kind.stage, one.arrays)
        return rest_ms(costs, point.plan, stage, exits) * self._slowdown

    def __call__(self, one: RequestArrays, arrays: Mapping[str, Array], **limits: Any) -> BatchResult:
        """See `Answering`."""
        kind = one.kind
        rows = np.arange(len(next(iter(arrays.values()))))
        rest = Rest(kind.stage, rows, arrays, kind.size, kind.version)
        result = self.run.resume(rest, kind.point, **limits)
        self._slowdown = result.decision.slowdown
        self.row_ms += _WEIGHT * ((result.latency_ms - result.waited_ms) / len(rows) - self.row_ms)
        return result
