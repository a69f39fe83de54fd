"""The clients of `http_overhead.py`, in a process of their own, so that they share no interpreter with the server.

It reads lines of JSON, `[kind, clients, count]`, and answers each with the milliseconds of so many requests.
"""

import itertools
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from threading import local

import numpy as np

PATH = "/v2/models/model/infer"
_connections = local()


def binary_bodies(folder: Path, name: str) -> list[tuple[bytes, dict[str, str]]]:
    """A request for each image as a binary tensor, and its headers. All outputs come back as bytes."""
    bodies = []
    for array in np.load(folder / "arrays.npy"):
        size = {"binary_data_size": array.nbytes}
        tensor = {"name": name, "datatype": "FP32", "shape": [1, *array.shape], "parameters": size}
        head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
        bodies.append((head + array.tobytes(), {"Inference-Header-Content-Length": str(len(head))}))
    return bodies


def jpeg_bodies(folder: Path) -> list[tuple[bytes, dict[str, str]]]:
    """A request for each image as a file."""
    return [(file.read_bytes(), {"Content-Type": "image/jpeg"}) for file in sorted(folder.glob("*.jpg"))]


def main() -> None:
    """Answer lines until there are no more."""
    port, folder = int(sys.argv[1]), Path(sys.argv[2])
    (name,) = (one["name"] for one in json.loads((folder / "shelf" / "bundle.json").read_text())["spec"]["inputs"])
    bodies = {"binary": binary_bodies(folder, name), "jpeg": jpeg_bodies(folder)}
    pools: dict[int, ThreadPoolExecutor] = {}
    for line in sys.stdin:
        kind, clients, count = json.loads(line)
        pool = pools.setdefault(clients, ThreadPoolExecutor(clients))

        def timed(body: tuple[bytes, dict[str, str]]) -> float:
            connection = getattr(_connections, "one", None)
            if connection is None:
                connection = _connections.one = HTTPConnection("127.0.0.1", port, timeout=60)
            began = time.perf_counter()
            connection.request("POST", PATH, *body)
            reply = connection.getresponse()
            content = reply.read()
            latency_ms = (time.perf_counter() - began) * 1e3
            if reply.status != 200:
                sys.exit(content.decode())
            return latency_ms

        requests = list(itertools.islice(itertools.cycle(bodies[kind]), count))
        print(json.dumps(list(pool.map(timed, requests))), flush=True)


if __name__ == "__main__":
    main()
