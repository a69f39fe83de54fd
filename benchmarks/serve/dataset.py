"""100,000 images through Ray Data by two actors, one of which is killed, against two processes without Ray.

    python -m benchmarks.serve.dataset

A bundle of ResNet-20 and 56 is built on the spot. The images are those of CIFAR-10's test split, again and again, as
files of numpy arrays. `dynamic.map_dataset` answers them with two actors of one thread in batches of 64. Once half of
the rows have come out, the process of one actor gets SIGKILL. Beside that, two processes of this machine answer half of
the files each with `run(x)`, in the same batches. Images per second count from the first answer to the last, so that
the start of Ray and of the processes is left out. Each way is written to `out/serve/dataset.json`, and a run that was
interrupted goes on with the other. It takes 6 minutes, `--smoke` 1 with 4,000 images.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

import dynamic
from benchmarks.harness.common import add_data_option, data_folder, module_command, module_path, progress, save
from benchmarks.runtime.overhead import build
from benchmarks.serve.deployed import OUT, Kept

COUNT, FILE_ROWS, BATCH = 100_000, 1000, 64
BUDGET = dynamic.Budget(max_drop=0.01, on_drift="report")
GOAL = 0.9  # of two processes' throughput


def prepare(data: Path, count: int) -> tuple[Path, Path]:
    """The bundle, and the folder of the images."""
    shelf, folder = OUT / "dataset" / "shelf", OUT / "dataset" / f"images-{count}"
    if not (shelf / "bundle.json").is_file() or not folder.is_dir():
        progress("preparing")
        _, images = build(data, shelf)
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(count // FILE_ROWS):
            rows = (np.arange(FILE_ROWS) + number * FILE_ROWS) % len(images.images)
            np.save(folder / f"{number:04}.npy", images.images[rows])
    dynamic.load(shelf).profile(batch=(1, BATCH), threads=1)
    return shelf, folder


def with_ray(shelf: Path, folder: Path, count: int) -> dict[str, Any]:
    """Ray Data, with an actor that is killed."""
    import ray

    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        read = ray.data.read_numpy(
            str(folder), override_num_blocks=count // FILE_ROWS, ray_remote_args={"num_cpus": 0.25}
        )
        numbered = read.rename_columns({"data": "image"})
        answered = dynamic.map_dataset(numbered, shelf, BUDGET, batch=BATCH, actors=2, threads=1, cpus=0.75)
        rows, labels, killed = 0, np.zeros(10, np.int64), False
        began = first = 0.0
        for part in answered.iter_batches(batch_size=None, batch_format="numpy"):
            if not rows:
                began, first = time.perf_counter(), len(part["answer_label"])
            rows += len(part["answer_label"])
            labels += np.bincount(part["answer_label"], minlength=10)
            if not killed and rows >= count // 2:
                actors = [
                    child
                    for child in psutil.Process().children(recursive=True)
                    if any("Answers" in word for word in child.cmdline())
                ]
                actors[0].send_signal(signal.SIGKILL)
                killed = True
        took_s = time.perf_counter() - began
    finally:
        ray.shutdown()
    return {"rows": rows, "killed": killed, "labels": labels.tolist(), "per_s": round((rows - first) / took_s, 1)}


def local(shelf: Path, folder: Path, count: int) -> dict[str, Any]:
    """Two processes, each with half of the files."""
    workers = [
        subprocess.Popen(
            module_command("serve.dataset", "--worker", str(number), str(shelf), str(folder)),
            env=module_path() | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in (0, 1)
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    began = time.perf_counter()
    outputs = []
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    for worker in workers:
        text, _ = worker.communicate()
        outputs.append([int(word) for word in text.split()])
    took_s = time.perf_counter() - began
    labels = np.sum(outputs, axis=0)
    return {"rows": int(labels.sum()), "labels": labels.tolist(), "per_s": round(count / took_s, 1)}


def work(number: int, shelf: Path, folder: Path) -> None:
    """One of the two processes: every other file."""
    with dynamic.load(shelf).runtime(BUDGET, threads=1) as run:
        run(np.zeros((BATCH, 32, 32, 3), np.uint8))
        print("ready", flush=True)
        sys.stdin.readline()
        labels = np.zeros(10, np.int64)
        for file in sorted(folder.glob("*.npy"))[number::2]:
            images = np.load(file)
            for start in range(0, len(images), BATCH):
                labels += np.bincount(run(images[start : start + BATCH]).label, minlength=10)
    print(*labels.tolist(), flush=True)


def main() -> None:
    """Measure, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--count", type=int, default=COUNT, help="images")
    parser.add_argument("--fresh", action="store_true", help="begin anew")
    parser.add_argument("--smoke", action="store_true", help="4,000 images, no figures written")
    parser.add_argument("--worker", nargs=3, metavar=("NUMBER", "SHELF", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(int(options.worker[0]), Path(options.worker[1]), Path(options.worker[2]))
        return
    count = 4000 if options.smoke else options.count
    kept = Kept("dataset-smoke" if options.smoke else "dataset", options.fresh or options.smoke)
    shelf, folder = prepare(data_folder(options.data), count)
    for name, way in (("local", local), ("ray", with_ray)):
        if name not in kept:
            kept.keep(name, way(shelf, folder, count))
        progress(f"{name}: {kept.parts[name]}")
    ray_way, here = kept.parts["ray"], kept.parts["local"]
    share = round(ray_way["per_s"] / here["per_s"], 3)
    same = ray_way["labels"] == here["labels"]
    print(f"{ray_way['rows']} of {count} answered, the same labels: {same}, {share} of two processes, goal {GOAL}")
    if not options.smoke:
        print(save("serve/dataset", {"count": count, "share": share, "same_labels": same} | kept.parts))


if __name__ == "__main__":
    main()
