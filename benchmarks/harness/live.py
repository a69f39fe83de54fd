"""What benchmarks of a live machine share: load that comes and goes, and runtimes in processes of their own."""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import dynamic
from benchmarks.harness.common import module_command, module_path
from benchmarks.harness.live_worker import Answer, Job

SOON_S = 0.3  # from telling workers to the first request
# spins at normal priority, and ends when its parent has
_SPIN = """
import os
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""


class Busy:
    """So many processes that do nothing but spin, each on a core if it gets one; all end with the block."""

    def __init__(self) -> None:
        self._running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.set(0)

    def set(self, count: int) -> None:
        """Stop those that run and start `count` others."""
        stopped, self._running = self._running, []
        for process in stopped:
            process.kill()
        for process in stopped:
            process.wait()
        for _ in range(count):
            self._running.append(subprocess.Popen([sys.executable, "-S", "-c", _SPIN], stderr=subprocess.DEVNULL))


class Worker:
    """A runtime in a process of its own; see `live_worker.Job`."""

    def __init__(self, job: Job) -> None:
        command = module_command("harness.live_worker", job.to_json())
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=module_path(), bufsize=1
        )
        self.facts = self._read()

    def start(self, budget: dynamic.Budget, start_s: float, times_s: Sequence[float], items: Sequence[int]) -> None:
        """Tell it what to do from `start_s` on; `answers` waits for the end of it."""
        asked = {"budget": budget.to_json(), "start_s": start_s, "times_s": list(times_s), "items": list(items)}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()

    def answers(self) -> list[Answer]:
        """What came of the run that was started last."""
        return [Answer(**entry) for entry in self._read()["answers"]]

    def run(self, budget: dynamic.Budget, times_s: Sequence[float], items: Sequence[int]) -> list[Answer]:
        """One run from beginning to end."""
        self.start(budget, time.perf_counter() + SOON_S, times_s, items)
        return self.answers()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        with self._process:
            self._process.wait(30)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._process.kill()
        self.close()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"a worker ended with {self._process.wait()}")
        return json.loads(line)


def follow(busy: Busy, start_s: float, levels: Sequence[tuple[float, int]]) -> None:
    """Keep `levels`, (seconds after the start, how many processes), until the last of them."""
    for at_s, count in levels:
        time.sleep(max(0.0, start_s + at_s - time.perf_counter()))
        busy.set(count)
