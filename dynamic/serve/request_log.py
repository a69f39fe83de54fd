"""What is known of a request once it has ended, and one line of JSON for it."""

import json
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from queue import Full, Queue
from typing import TextIO

from dynamic.serve.request_errors import Outcome

_MOST_LINES = 10_000  # that wait to be written


@dataclass
class RequestRecord:
    """A request. It is filled in while the request runs.

    Args:
        protocol: "http" or "grpc".
        id: The sender's own identifier.
        outcome: How it ended.
        error: Why there is no answer.
        rows: Its inputs.
        latency_ms: From its arrival until its answer was ready to be sent.
        waited_ms: The part of that before the runtime began, in the queue and to decode inputs.
        stages: How many rows exited at each stage, by number.
        point: The operating point.
        certified: Whether a certificate holds for the answer.
        violated_limits: Limits of the budget that the point does not meet.
        complete: Whether each row has the answer of its own exit. False: it ended at an earlier one.
    """

    protocol: str
    id: str = ""
    outcome: Outcome = "failed"
    error: str | None = None
    rows: int = 0
    latency_ms: float = 0.0
    waited_ms: float = 0.0
    stages: dict[int, int] | None = None
    point: str | None = None
    certified: bool | None = None
    violated_limits: tuple[str, ...] = ()
    complete: bool | None = None


class RequestLog:
    """Writes one line of JSON for each request. It holds no inputs, answers or tokens.

    A thread writes, so that nobody waits for a slow reader. Lines that the file does not take are lost, as are those
    beyond 10,000 that wait. Their number stands in `lost`.

    Args:
        file: Where the lines go. None: stderr.
    """

    def __init__(self, file: TextIO | None = None) -> None:
        self._file = file
        self._lines: Queue[str | None] = Queue(_MOST_LINES)
        self.lost = 0
        self._thread: threading.Thread | None = None

    def write(self, record: RequestRecord) -> None:
        """Write the line of a request, soon."""
        line = {"time": datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds")} | asdict(record)
        for name in ("latency_ms", "waited_ms"):
            line[name] = round(line[name], 3)
        if self._thread is None:
            self._thread = threading.Thread(target=self._write_all, name="dynamic-log", daemon=True)
            self._thread.start()
        try:
            self._lines.put_nowait(json.dumps(line))
        except Full:
            self.lost += 1

    def close(self, timeout_s: float = 5.0) -> None:
        """Write what waits, for so many seconds at most, and end the thread."""
        if self._thread is not None:
            with suppress(Full):
                self._lines.put(None, timeout=timeout_s)
            self._thread.join(timeout_s)

    def _write_all(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                print(line, file=self._file or sys.stderr, flush=True)
            except (OSError, ValueError):  # its reader has gone, or it is closed
                self.lost += 1
