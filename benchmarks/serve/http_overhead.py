"""What HTTP costs beyond `run(x)`: latency by 1 and by 32 clients, binary tensors and JPEG.

    python -m benchmarks.serve.http_overhead

A bundle of ResNet-20 and 56 is built on the spot, and served by `dynamic.serve.Server` with one engine thread. Clients
are threads of another process (`http_client.py`), each with one connection that stays open, and send CIFAR-10 images
one at a time: as a binary tensor that is preprocessed already, or as a JPEG. What they are compared with is `run(x)` in
the process of the server, by as many threads. For a JPEG it is decoding and `run(x)`.

The two take turns, a block of requests each, so that drift of the machine falls on both alike. The overhead is the
difference of two percentiles, not a percentile of differences: no request is answered both ways.

The bundle is built once, in `out/serve/http_overhead`: that takes 2 minutes, and 8 on a busy machine. Each kind and
number of clients is written to `out/serve/http_overhead.json`, and a run that was interrupted goes on there. All of it
takes 4 minutes, `--smoke` half a minute once the bundle is built.
"""

import argparse
import io
import json
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import dynamic
from benchmarks.harness.common import add_data_option, data_folder, module_command, module_path, progress, save
from benchmarks.runtime.overhead import build
from benchmarks.serve.deployed import OUT, Kept
from dynamic.data.picture_decoding import read_picture

CLIENTS = (1, 32)
KINDS = ("binary", "jpeg")
REQUESTS, BLOCK = 2000, 200  # of each way, kind and number of clients
IMAGES = 64
GOAL_MS = 1.5  # at the median of one client
PERCENTILES = (50, 95, 99)
NEVER = 1e-30  # drift_alpha: images come again and again


class Client:
    """The process of the clients. It sends requests when it is asked to."""

    def __init__(self, port: int, folder: Path) -> None:
        self._process = subprocess.Popen(
            module_command("serve.http_client", str(port), str(folder)),
            env=module_path(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def latencies(self, kind: str, clients: int, count: int) -> list[float]:
        """Milliseconds of so many requests."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([kind, clients, count]), file=self._process.stdin, flush=True)
        latencies: list[float] = json.loads(self._process.stdout.readline())
        return latencies

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=60)


def direct(call: Callable[[int], Any], clients: int, count: int) -> list[float]:
    """Milliseconds of so many calls, by so many threads."""

    def timed(number: int) -> float:
        began = time.perf_counter()
        call(number % IMAGES)
        return (time.perf_counter() - began) * 1e3

    if clients == 1:
        return [timed(number) for number in range(count)]
    with ThreadPoolExecutor(clients) as threads:
        return list(threads.map(timed, range(count)))


def percentiles(values: list[float]) -> dict[str, float]:
    """The percentiles of a sample, in milliseconds."""
    return {f"p{p}": round(float(np.percentile(values, p)), 3) for p in PERCENTILES}


def measure(run: dynamic.Runtime, port: int, folder: Path, requests: int, kept: Kept) -> None:
    """Percentiles of both ways, for each kind and number of clients."""
    arrays, files = np.load(folder / "arrays.npy"), [file.read_bytes() for file in sorted(folder.glob("*.jpg"))]
    (name,) = (i.name for i in run.bundle.spec.inputs)
    calls: dict[str, Callable[[int], Any]] = {
        "binary": lambda i: run({name: arrays[i : i + 1]}),
        "jpeg": lambda i: run(read_picture(files[i], "it", 3)),
    }
    client = Client(port, folder)
    for clients in CLIENTS:
        for kind in KINDS:
            part = f"{kind}, {clients} clients"
            if part in kept:
                continue
            http: list[float] = []
            here: list[float] = []
            direct(calls[kind], clients, BLOCK)  # warm
            client.latencies(kind, clients, BLOCK)
            while len(http) < requests:
                here += direct(calls[kind], clients, BLOCK)
                http += client.latencies(kind, clients, BLOCK)
            both = {"run": percentiles(here), "http": percentiles(http)}
            added = {p: round(both["http"][p] - both["run"][p], 3) for p in both["run"]}
            kept.keep(part, both | {"added_ms": added})
            print(f"{part}: {both}, added {added}", flush=True)
    client.close()


def prepare(data: Path, folder: Path) -> dynamic.Bundle:
    """The bundle, and images as arrays and as files, made once."""
    if not (folder / "arrays.npy").is_file():
        progress("building the bundle")
        _, images = build(data, folder / "shelf")
        pixels = images.images[:IMAGES]
        preprocess = dynamic.load(folder / "shelf").preprocess
        assert preprocess is not None
        for number, image in enumerate(pixels):
            file = io.BytesIO()
            Image.fromarray(image).save(file, "JPEG", quality=90)
            (folder / f"{number:03}.jpg").write_bytes(file.getvalue())
        np.save(folder / "arrays.npy", preprocess(pixels))
    return dynamic.load(folder / "shelf").profile(threads=1)


def main() -> None:
    """Measure, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--requests", type=int, default=REQUESTS, help="of each way, kind and number of clients")
    parser.add_argument("--fresh", action="store_true", help="begin anew")
    parser.add_argument("--smoke", action="store_true", help="200 requests, no figures written")
    options = parser.parse_args()
    requests = BLOCK if options.smoke else options.requests
    kept = Kept("http_overhead-smoke" if options.smoke else "http_overhead", options.fresh or options.smoke)
    folder = OUT / "http_overhead"
    bundle = prepare(data_folder(options.data), folder)
    serve = dynamic.serve.ServeOptions(port=0, name="model", queue=256)
    budget = dynamic.Budget(latency_ms=1e5, max_drop=0.01)
    with (
        bundle.runtime(budget, threads=1, workers=serve.workers, drift_alpha=NEVER) as run,
        dynamic.serve.Server(run, serve) as server,
    ):
        measure(run, server.port, folder, requests, kept)
    figures = kept.parts
    median = figures["binary, 1 clients"]["added_ms"]["p50"]
    print(f"{median} ms added at the median by one client, goal {GOAL_MS}")
    if not options.smoke:
        save("serve/http_overhead", {"goal_ms": GOAL_MS, "latency_ms": figures})


if __name__ == "__main__":
    main()
