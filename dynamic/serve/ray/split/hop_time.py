"""How long it takes to hand rows from one deployment of Ray Serve to another, measured."""

import time
from collections.abc import Mapping
from statistics import median
from typing import Any

import numpy as np
from ray import serve

from dynamic.engines.contract import Array

_NAME = "dynamic-hop"
_WARM, _COUNT = 10, 40
_LIMIT_S = 60.0


class _Echo:
    """Answers at once."""

    async def run(self, arrays: Mapping[str, Array]) -> int:
        """How many rows there are."""
        return len(next(iter(arrays.values())))


def hop_ms(payloads: Mapping[int, int]) -> dict[int, float]:
    """The median time of a call from one process of Ray Serve to another.

    An application is deployed for it and deleted again. Ray and Serve are started where they do not run.

    Args:
        payloads: Bytes of a row by cut.

    Returns:
        Milliseconds by cut.

    Raises:
        Exception: Of any kind, where Ray Serve does not start or does not answer.
    """
    echo: Any = serve.deployment(_Echo, name="echo", ray_actor_options={"num_cpus": 0}, num_replicas=1)
    handle = serve.run(echo.bind(), name=_NAME, route_prefix=None)
    try:
        return {cut: _median_ms(handle, size) for cut, size in payloads.items()}
    finally:
        serve.delete(_NAME)


def _median_ms(handle: Any, size: int) -> float:
    arrays = {"row": np.zeros((1, max(size, 1)), np.uint8)}
    times = []
    for _ in range(_WARM + _COUNT):
        began = time.perf_counter()
        handle.run.remote(arrays).result(timeout_s=_LIMIT_S)
        times.append((time.perf_counter() - began) * 1e3)
    return median(times[_WARM:])
