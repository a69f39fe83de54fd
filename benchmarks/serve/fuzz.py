"""Ten minutes of requests that are wrong in every way that we could think of, against `python -m dynamic serve`.

    python -m benchmarks.serve.fuzz

The server is a process of its own with a bundle of ResNet-20 and 56, and small limits. Eight threads send it JSON with
other values anywhere, binary tensors with other bytes and lengths, damaged and truncated JPEGs, headers of 10 MB,
bodies that are never sent, bodies that come a byte at a time, connections that are cut, and paths and methods that do
not exist. Between them are valid requests, which have to be answered. What it must not do: answer 5xx beside 503 and
504, end, or grow. Memory is that of the first and of the last minute, each the median of readings.

It takes 10 minutes, `--minutes 0.3` a try.
"""

import argparse
import copy
import io
import json
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import psutil
from PIL import Image

from benchmarks.harness.common import add_data_option, data_folder, module_path, progress, save
from benchmarks.runtime.overhead import build

MINUTES, THREADS = 10.0, 8
GROWTH_MB = 30.0  # that caches may take
ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1e308,
    2**70,
    "",
    "FP32",
    "x" * 5000,
    [],
    {},
    [[]],
    [None],
    {"a": {}},
    "\ud800",
    1.5,
)
STATED = (503, 504)


class Fuzz:
    """Sends requests, and counts what came back."""

    def __init__(self, port: int, jpeg: bytes, name: str) -> None:
        self.port, self.jpeg = port, jpeg
        self.statuses: Counter[str] = Counter()
        self.refused: list[str] = []  # what must not be
        self.ended = threading.Event()
        self.path = "/v2/models/shelf/infer"
        tensor = {"name": name, "datatype": "UINT8", "shape": [1, 32, 32, 3], "data": [0] * 3072, "parameters": {}}
        self.valid: dict[str, Any] = {
            "id": "mine",
            "inputs": [tensor],
            "outputs": [{"name": "label"}],
            "parameters": {},
        }
        self.ways: tuple[Callable[[random.Random], str], ...] = (
            *(self.good, self.other_value, self.other_value, self.other_bytes, self.other_bytes),
            *(self.damaged_file, self.damaged_file, self.other_path, self.long_header, self.slow, self.cut),
        )

    def work(self, seed: int) -> None:
        """One thread."""
        chance = random.Random(seed)
        while not self.ended.is_set():
            way = chance.choice(self.ways)
            try:
                status = way(chance)
            except (OSError, HTTPException) as error:
                status = f"none ({type(error).__name__})"
            self.statuses[f"{way.__name__}: {status}"] += 1
            is_wrong = status[:1] == "5" and int(status) not in STATED
            is_lost = way == self.good and status not in ("200", *map(str, STATED))
            if is_wrong or is_lost:
                self.refused.append(f"{way.__name__}: {status}")

    def send(self, body: bytes, headers: dict[str, str], method: str = "POST", path: str | None = None) -> str:
        """The status of a request."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path or self.path, body, headers)
            reply = connection.getresponse()
            reply.read()
            return str(reply.status)
        finally:
            connection.close()

    def good(self, chance: random.Random) -> str:
        """A request that is right."""
        return self.send(self.jpeg, {"Content-Type": "image/jpeg"})

    def other_value(self, chance: random.Random) -> str:
        """JSON with another value somewhere, or without one."""
        content = copy.deepcopy(self.valid)
        for _ in range(chance.randint(1, 3)):
            holder: Any = content
            while True:
                keys = list(holder) if isinstance(holder, dict) else list(range(min(len(holder), 5)))
                if not keys:
                    break
                key = chance.choice(keys)
                if isinstance(holder[key], (dict, list)) and holder[key] and chance.random() < 0.7:
                    holder = holder[key]
                    continue
                if isinstance(holder, dict) and chance.random() < 0.2:
                    del holder[key]
                else:
                    holder[key] = chance.choice(ODD)
                break
        return self.send(json.dumps(content).encode("utf-8", "surrogatepass"), {"Content-Type": "application/json"})

    def other_bytes(self, chance: random.Random) -> str:
        """A binary tensor with other bytes and lengths."""
        content = copy.deepcopy(self.valid)
        del content["inputs"][0]["data"]
        content["inputs"][0]["parameters"] = {"binary_data_size": chance.choice((3072, 3071, 0, 10**12, -1))}
        content["inputs"][0]["datatype"] = chance.choice(("UINT8", "FP32", "BYTES", "BOOL", "FP16", "INT64"))
        head = json.dumps(content).encode()
        body = bytearray(head + bytes(3072))
        for _ in range(chance.randint(0, 4)):
            body[chance.randrange(len(body))] = chance.randrange(256)
        length = chance.choice((len(head), len(head) + 7, 0, -1, 10**30, "x"))
        return self.send(bytes(body[: chance.randrange(len(body))]), {"Inference-Header-Content-Length": str(length)})

    def damaged_file(self, chance: random.Random) -> str:
        """A JPEG with other bytes, or its beginning alone."""
        file = bytearray(self.jpeg)
        for _ in range(chance.randint(0, 8)):
            file[chance.randrange(len(file))] = chance.randrange(256)
        kind = chance.choice(("image/jpeg", "image/png", "image/", "text/plain", ""))
        return self.send(bytes(file[: chance.randrange(len(file))]), {"Content-Type": kind})

    def other_path(self, chance: random.Random) -> str:
        """Another address, or another method."""
        path = chance.choice(("/", "/v2/models/%2e%2e/infer", "/v2/models/other/infer", self.path, "/metrics", "/%00"))
        return self.send(b"", {}, chance.choice(("GET", "PUT", "DELETE", "PATCH", "POST", "BREW")), path)

    def long_header(self, chance: random.Random) -> str:
        """A header of 10 MB."""
        return self.send(b"{}", {"X-Long": "a" * 10_000_000})

    def slow(self, chance: random.Random) -> str:
        """A body that comes a byte at a time, and is not sent to its end."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            head = f"POST {self.path} HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: 1000\r\n\r\n"
            connection.sendall(head.encode())
            for byte in self.jpeg[: chance.randint(1, 20)]:
                if self.ended.is_set():
                    break
                connection.sendall(bytes([byte]))
                time.sleep(0.1)
        return "cut"

    def cut(self, chance: random.Random) -> str:
        """A request that ends in its head."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            text = f"POST {self.path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\nxx"
            connection.sendall(text.encode()[: chance.randint(1, len(text))])
        return "cut"


def run(port: int, process: psutil.Process, jpeg: bytes, name: str, minutes: float) -> dict[str, Any]:
    """Send requests for so long. What came of it."""
    fuzz = Fuzz(port, jpeg, name)
    threads = [threading.Thread(target=fuzz.work, args=(seed,)) for seed in range(THREADS)]
    for thread in threads:
        thread.start()
    began, readings = time.monotonic(), list[tuple[float, float]]()
    while (passed_s := time.monotonic() - began) < 60 * minutes and process.is_running():
        readings.append((passed_s, process.memory_info().rss / 1e6))
        time.sleep(1.0)
    fuzz.ended.set()
    for thread in threads:
        thread.join()
    window_s = min(60.0, 60 * minutes / 4)
    warm_s = window_s / 2  # the first requests load the networks
    first = [mb for at, mb in readings if warm_s <= at < warm_s + window_s]
    last = [mb for at, mb in readings if at >= passed_s - window_s]
    return {
        "requests": sum(fuzz.statuses.values()),
        "statuses": dict(sorted(fuzz.statuses.items())),
        "must_not_be": dict(Counter(fuzz.refused)),
        "is_running": process.is_running() and process.status() != psutil.STATUS_ZOMBIE,
        "first_mb": round(statistics.median(first), 1),
        "last_mb": round(statistics.median(last), 1),
    }


def main() -> None:
    """Run, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--minutes", type=float, default=MINUTES)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        shelf = Path(temporary) / "shelf"
        _, images = build(data_folder(options.data), shelf)
        file = io.BytesIO()
        Image.fromarray(images.images[0]).save(file, "JPEG", quality=90)
        limits = ["--max-request-mb", "1", "--max-batch", "4", "--queue", "32", "--max-drop", "0.01"]
        command = [sys.executable, "-m", "dynamic", "serve", str(shelf), "--port", "0", *limits]
        server = subprocess.Popen(command, env=module_path(), stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            found = re.search(r"http://127\.0\.0\.1:(\d+)/", server.stdout.readline())
            assert found is not None, "the server did not start"
            progress(f"{options.minutes:g} minutes")
            figures = run(int(found[1]), psutil.Process(server.pid), file.getvalue(), "image", options.minutes)
        finally:
            server.terminate()
            ended = server.wait(timeout=60)
    figures["grown_mb"] = round(figures["last_mb"] - figures["first_mb"], 1)
    print(json.dumps(figures, indent=1))
    is_fine = figures["is_running"] and not figures["must_not_be"] and figures["grown_mb"] <= GROWTH_MB and ended == 0
    print("nothing that must not be" if is_fine else "SOMETHING THAT MUST NOT BE")
    if options.minutes >= MINUTES:
        print(save("serve/fuzz", {"minutes": options.minutes, "ended_with": ended} | figures))


if __name__ == "__main__":
    main()
