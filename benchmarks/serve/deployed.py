"""A bundle on a Ray Serve of this machine, and results that are kept. It has no command of its own."""

import json
import os
import socket
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dynamic
from benchmarks.harness.common import ROOT

OUT = ROOT / "out" / "serve"  # not in git
NAME = "cascade"
_LIMIT_S = 300.0


@contextmanager
def local_serve(cpus: int) -> Iterator[int]:
    """Ray and its Serve with so many CPUs. The port of HTTP."""
    import ray
    from ray import serve

    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DISABLE_IMPORT_WARNING": "1", "OMP_NUM_THREADS": "1"}
    os.environ |= {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": str(_LIMIT_S)}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False, object_store_memory=200 * 10**6)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        yield port
    finally:
        serve.shutdown()
        ray.shutdown()


def deployed(bundle: dynamic.Bundle, budget: dynamic.Budget, port: int, **how: Any) -> tuple[Any, str]:
    """The handle of an application that is ready, and the address of its `infer`."""
    from ray import serve

    handle = serve.run(dynamic.serve.application(bundle, budget, **how), name=NAME)
    model = f"http://127.0.0.1:{port}/v2/models/{bundle.folder.name}"
    ends = time.monotonic() + _LIMIT_S
    while True:
        try:
            with urllib.request.urlopen(f"{model}/ready", timeout=10) as reply:
                json.load(reply)
            return handle, f"{model}/infer"
        except OSError:
            if time.monotonic() > ends:
                raise
            time.sleep(0.2)


class Kept:
    """Results of a benchmark, written after each part, so that a run that is interrupted goes on where it was.

    Args:
        name: Of the file in `out/serve`.
        fresh: Begin anew.
    """

    def __init__(self, name: str, fresh: bool) -> None:
        self._file: Path = OUT / f"{name}.json"
        if fresh:
            self._file.unlink(missing_ok=True)
        self.parts: dict[str, Any] = json.loads(self._file.read_text()) if self._file.is_file() else {}

    def __contains__(self, part: str) -> bool:
        return part in self.parts

    def keep(self, part: str, figures: Any) -> None:
        """Write a part."""
        self.parts[part] = figures
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text(json.dumps(self.parts), encoding="utf-8")
