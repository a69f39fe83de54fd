"""Requests at the times of a Poisson process, from a process of their own. `arrivals.py` starts it, nobody else.

It reads lines of JSON, each a `Load`, and answers each with a line: for every request the seconds at which it was due,
the milliseconds from then until its answer, and the status of HTTP. 0: there was no answer.
"""

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

_CONNECTIONS = 512
_LIMIT_S = 120.0  # of a request: what takes longer has no answer


async def asked(
    session: aiohttp.ClientSession, url: str, body: bytes, headers: dict[str, str], due: float
) -> tuple[float, int]:
    """Milliseconds since a request was due, and the status."""
    try:
        async with session.post(url, data=body, headers=headers) as reply:
            await reply.read()
            status = reply.status
    except (aiohttp.ClientError, OSError, TimeoutError):
        status = 0
    return (time.perf_counter() - due) * 1e3, status


async def run(url: str, bodies: list[tuple[bytes, dict[str, str]]], load: dict[str, Any]) -> list[list[float]]:
    """Send requests when they are due, whether or not earlier ones are answered."""
    generator = np.random.default_rng(load["seed"])
    count = max(int(load["rate"] * load["seconds"]), 1)
    offsets = np.cumsum(generator.exponential(1.0 / load["rate"], count))
    chosen = generator.choice(load["items"], count)
    connector = aiohttp.TCPConnector(limit=_CONNECTIONS)
    timeout = aiohttp.ClientTimeout(total=_LIMIT_S)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        began, tasks = time.perf_counter() + 0.1, []
        for offset, item in zip(offsets.tolist(), chosen.tolist(), strict=True):
            due = began + offset
            await asyncio.sleep(max(due - time.perf_counter(), 0.0))
            body, headers = bodies[item]
            if load["deadline_ms"] is not None:
                left_s = load["deadline_ms"] / 1e3 - (time.perf_counter() - due)
                headers = headers | {"Deadline-Unix-Ms": str((time.time() + left_s) * 1e3)}
            tasks.append(asyncio.ensure_future(asked(session, url, body, headers, due)))
        ended = await asyncio.gather(*tasks)
    return [[offset, *one] for offset, one in zip(offsets.tolist(), ended, strict=True)]


def main() -> None:
    """Answer lines until there are no more."""
    url, folder = sys.argv[1], Path(sys.argv[2])
    kind = {"Content-Type": "application/octet-stream"}
    heads = json.loads((folder / "heads.json").read_text())
    bodies = [((folder / f"{number}.bin").read_bytes(), kind | headers) for number, headers in enumerate(heads)]
    for line in sys.stdin:
        print(json.dumps(asyncio.run(run(url, bodies, json.loads(line)))), flush=True)


if __name__ == "__main__":
    main()
