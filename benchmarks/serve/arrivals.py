"""An open loop: requests come when they are due, however slow the server is. It has no command of its own.

A closed loop waits for an answer before it asks again. It then asks a slow server less, and never sees its queue. Here
a request's time begins when it was due.
"""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness.common import module_command, module_path

PERCENTILES = (50, 95, 99)


@dataclass(frozen=True)
class Load:
    """What the clients ask.

    Args:
        rate: Requests a second.
        seconds: For how long.
        items: Numbers of the inputs to draw from.
        deadline_ms: Of each request, from when it is due. None: it has none.
        seed: Of the arrival times and the draw.
    """

    rate: float
    seconds: float
    items: tuple[int, ...]
    deadline_ms: float | None = None
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What came of requests `[N]`: when they were due, in seconds, their milliseconds, and the status of HTTP."""

    due_s: NDArray[np.float64]
    ms: NDArray[np.float64]
    status: NDArray[np.int64]

    def figures(self, seconds: float, within_ms: float) -> dict[str, Any]:
        """Percentiles of answers, goodput within a deadline, and how many requests had no answer."""
        answered = self.status == 200
        ms = self.ms[answered]
        tails = {f"p{p}": round(float(np.percentile(ms, p)), 2) if len(ms) else None for p in PERCENTILES}
        in_time = int((ms <= within_ms).sum())
        return tails | {
            "requests": len(self.ms),
            "answered": int(answered.sum()),
            "shed": int((self.status == 503).sum()),
            "failed": int((~answered & (self.status != 503)).sum()),
            "goodput_per_s": round(in_time / seconds, 2),
            "in_time": round(in_time / len(self.ms), 4),
        }

    def recovery_s(self, after_s: float, usual_ms: float, window_s: float = 1.0) -> float | None:
        """Seconds from a moment until the p95 of a window is at most twice the usual, for good. None: never."""
        last = float(self.due_s[-1])
        for start in np.arange(after_s, last - window_s, window_s / 2):
            later = self.due_s >= start
            windows = np.arange(start, last, window_s)
            inside = [later & (self.due_s >= w) & (self.due_s < w + window_s) for w in windows]
            if all(not mask.any() or np.percentile(self.ms[mask], 95) <= 2 * usual_ms for mask in inside):
                return round(float(start - after_s), 2)
        return None


class Clients:
    """A process that sends requests.

    Args:
        url: Where to.
        folder: Of its own, for the bodies.
        inputs: Inputs `[N, ...]` as the network takes them.
        name: Of the input.
    """

    def __init__(self, url: str, folder: Path, inputs: NDArray[np.float32], name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        heads = []
        for number, row in enumerate(inputs):
            size = {"binary_data_size": row.nbytes}
            tensor = {"name": name, "datatype": "FP32", "shape": [1, *row.shape], "parameters": size}
            outputs = [{"name": one, "parameters": {"binary_data": True}} for one in ("label", "stage", "certified")]
            head = json.dumps({"inputs": [tensor], "outputs": outputs}).encode()
            (folder / f"{number}.bin").write_bytes(head + row.tobytes())
            heads.append({"Inference-Header-Content-Length": str(len(head))})
        (folder / "heads.json").write_text(json.dumps(heads))
        self._process = subprocess.Popen(
            module_command("serve.arrivals_client", url, str(folder)),
            env=module_path(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def begin(self, load: Load) -> None:
        """Send requests. What came of them is read by `end`."""
        assert self._process.stdin is not None
        print(json.dumps(asdict(load)), file=self._process.stdin, flush=True)

    def end(self) -> Outcomes:
        """What came of the requests of the last `begin`."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the clients ended with {self._process.wait()}")
        due_s, ms, status = np.array(json.loads(line)).T
        return Outcomes(due_s, ms, status.astype(np.int64))

    def run(self, load: Load) -> Outcomes:
        """Send requests, and return what came of them."""
        self.begin(load)
        return self.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()


def joined(parts: Sequence[Outcomes]) -> Outcomes:
    """Several runs as one."""
    columns = zip(*((one.due_s, one.ms, one.status) for one in parts), strict=True)
    due_s, ms, status = (np.concatenate(column) for column in columns)
    return Outcomes(due_s, ms, status)
