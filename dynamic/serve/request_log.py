"""What is known of a request once it has ended, and one line of JSON for it."""

import json
import sys
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TextIO

from dynamic.serve.request_errors import Outcome


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


class RequestLog:
    """Writes one line of JSON for each request. It holds no inputs, answers or tokens.

    Args:
        file: Where the lines go. None: stderr.
    """

    def __init__(self, file: TextIO | None = None) -> None:
        self._file = file

    def write(self, record: RequestRecord) -> None:
        """Write the line of a request."""
        line = {"time": datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds")} | asdict(record)
        for name in ("latency_ms", "waited_ms"):
            line[name] = round(line[name], 3)
        print(json.dumps(line), file=self._file or sys.stderr, flush=True)
