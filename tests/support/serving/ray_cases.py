"""A local Ray of two CPUs for the tests of a module, which leaves no process behind, and a bundle that is quick."""

import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

import dynamic

ray = pytest.importorskip("ray", reason='needs Ray: pip install "dynamic-inference[ray]"')

LIMIT_S = 120
CLASSES = tuple("abcd")
CENTERS = 1.2 * np.random.default_rng(7).standard_normal((4, 12)).astype(np.float32)


def blobs(count: int, seed: int) -> NDArray[np.float32]:
    """Inputs `[count, 12]` of the classes in turn."""
    noise = np.random.default_rng(seed).standard_normal((count, 12)).astype(np.float32)
    return CENTERS[np.arange(count) % 4] + noise


ROWS = blobs(64, seed=1)
# of Ray's own threads and sockets in this process
QUIET = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning:ray"
)


def small_bundle(folder: Path, seed: int = 0) -> dynamic.Bundle:
    """A small and a larger network on blobs that the larger one separates better."""
    torch.manual_seed(seed)
    label, inputs = torch.arange(1600) % 4, torch.from_numpy(blobs(1600, seed=2))
    small = nn.Sequential(nn.Linear(12, 2), nn.Linear(2, 4))
    large = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 4))
    for network in (small, large):
        optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
        for _ in range(80):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(inputs[:600]), label[:600]).backward()
            optimizer.step()
    built = dynamic.build([small, large], [(inputs[600:], label[600:])], classes=CLASSES, progress=False)
    return built.save(folder).profile(batch=(1, 8), seconds=0.02, threads=1)


@contextmanager
def local_ray(**options: Any) -> Iterator[None]:
    """A cluster on this machine. At its end no process of it is left."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_DISABLE_IMPORT_WARNING": "1",
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
            "RAY_memory_monitor_refresh_ms": "0",
            "OMP_NUM_THREADS": "1",
            # a busy machine is slow to start processes, and that is no failure
            "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": str(LIMIT_S),
            "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": str(LIMIT_S),
            "RAY_health_check_timeout_ms": str(1000 * LIMIT_S),
            "RAY_worker_register_timeout_seconds": str(LIMIT_S),
        }.items():
            patch.setenv(name, value)
        try:
            ray.init(
                num_cpus=2,
                include_dashboard=False,
                log_to_driver=False,
                configure_logging=False,
                object_store_memory=100 * 10**6,
                **options,
            )
            yield
        finally:
            started = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
            ray.shutdown()
            for number, handler in handlers.items():
                signal.signal(number, handler)
            _, alive = psutil.wait_procs(started, timeout=LIMIT_S)
            for process in alive:
                process.kill()
    assert not alive, f"Ray left processes behind: {alive}"


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def until_is(read: Any, expected: Any, what: str) -> None:
    """Wait until `read()` gives what is expected."""
    ends = time.monotonic() + LIMIT_S
    while (value := read()) != expected:
        if time.monotonic() > ends:
            pytest.fail(f"{what}: {value!r}, expected {expected!r}, not within {LIMIT_S} s")
        time.sleep(0.05)
