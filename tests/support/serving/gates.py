"""Requests that wait inside the engine until a test lets them go on."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from support.runtime_cases import Fake, faked
from support.serving.serve_cases import LIMIT_S, ask

import dynamic
from dynamic.serve import ServeOptions, Server


class Gate:
    """Every request stops in the engine until the gate is opened. `entered` counts those that came so far."""

    def __init__(self) -> None:
        self.open, self.entered = threading.Event(), 0

    def __call__(self, engine: Any, backbones: Any, stagewise: bool) -> None:
        if backbones is None:  # the engine runs. Otherwise it loads
            self.entered += 1
            assert self.open.wait(LIMIT_S)


@contextmanager
def gated(bundle: dynamic.Bundle, *, policy: Any = None, **options: Any) -> Iterator[tuple[Server, Gate, Fake]]:
    """A server of one worker on an engine behind a gate. The gate is open at the end."""
    gate = Gate()
    engine = Fake(gate)
    options = {"port": 0, "name": "model", "workers": 1} | options
    with faked(bundle, engine, policy=policy) as run:
        server = Server(run, ServeOptions(**options))
        try:
            yield server, gate, engine
        finally:
            gate.open.set()
            server.close()


def until(is_so: Callable[[], Any], what: str) -> None:
    """Wait for a condition."""
    ends = time.monotonic() + LIMIT_S
    while not is_so():
        if time.monotonic() > ends:
            pytest.fail(f"{what}: not within {LIMIT_S} s")
        time.sleep(0.01)


def metric(port: int, name: str, **labels: str) -> float:
    """The value of a metric. 0 where it has none yet."""
    text = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
    start = f"{name}{{{text}}} " if labels else f"{name} "
    values = [line for line in ask(port, "/metrics").body.decode().splitlines() if line.startswith(start)]
    return float(values[0].rpartition(" ")[2]) if values else 0.0
