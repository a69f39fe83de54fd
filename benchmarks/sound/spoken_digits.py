"""Spoken digits of a speaker whom no network has heard: every operating point of a bundle, through `run(x)`.

    python examples/classify_sound.py
    python -m benchmarks.sound.spoken_digits

The first command trains both networks on three speakers, calibrates on two others (groups are speakers, so nothing can
be certified) and leaves a bundle. Here its operating points take turns on the 500 recordings of the sixth speaker:
waveform in, answer out, features included, and once more on features that were computed before. The point that the
example finds is the small network alone, so this compares two networks, not a cascade.

The goal: accuracy within 0.5 points of the large network at no more than half of its time (medians).
"""

import argparse
import re
import statistics
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

import dynamic
from benchmarks.harness.common import ROOT, add_data_option, data_folder, save, spread
from dynamic.data import load_sound
from dynamic.policies import FixedPolicy

SPEAKER = "yweweler"
GOALS = {"points": 0.5, "time": 0.5}
BLOCK, WARM = 25, 3


def recordings(archive: Path) -> tuple[list[Any], np.ndarray[Any, Any]]:
    """The speaker's recordings in a random order, and the digits `[N]`."""
    samples, labels = [], []
    with zipfile.ZipFile(archive) as files:
        for name in sorted(files.namelist()):
            match = re.search(rf"(\d)_{SPEAKER}_\d+\.wav$", name)
            if match:
                samples.append(load_sound(files.read(name)).samples)
                labels.append(int(match[1]))
    order = np.random.default_rng(0).permutation(len(labels))
    return [samples[i] for i in order], np.array(labels)[order]


def main() -> None:
    """A table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--bundle", type=Path, default=ROOT / "out" / "sound", help="what the example left")
    parser.add_argument("--repeats", type=int, default=4, help="of all recordings")
    options = parser.parse_args()
    bundle = dynamic.load(options.bundle)
    assert isinstance(bundle.preprocess, dynamic.data.SoundPreprocess)
    samples, labels = recordings(data_folder(options.data) / "spoken_digits.zip")
    points = [point.name for point in bundle.ladder.points]
    runs = {name: bundle.runtime(dynamic.Budget(on_drift="report"), policy=FixedPolicy(name)) for name in points}
    rows = {name: {"sound": [], "features": [], "cpu": [], "right": []} for name in points}  # type: ignore[var-annotated]
    for repeat in range(options.repeats):
        for number, start in enumerate(range(0, len(samples), BLOCK)):
            block = samples[start : start + BLOCK]
            shift = (repeat + number) % len(points)
            for name in (*points[shift:], *points[:shift]):
                run, own = runs[name], rows[name]
                for one in block[:WARM]:
                    run(one)
                began_cpu = time.process_time()
                for i, one in enumerate(block, start):
                    began = time.perf_counter()
                    answer = run(one)
                    own["sound"].append((time.perf_counter() - began) * 1e3)
                    own["right"].append(answer.label == labels[i])
                own["cpu"].append((time.process_time() - began_cpu) * 1e3 / len(block))
                for ready in [bundle.preprocess(one) for one in block]:
                    began = time.perf_counter()
                    run({bundle.spec.inputs[0].name: ready})
                    own["features"].append((time.perf_counter() - began) * 1e3)
    found: dict[str, Any] = {"speaker": SPEAKER, "recordings": len(samples), "goals": GOALS}
    for name, own in rows.items():
        found[name] = {
            "accuracy": round(float(np.mean(own["right"])), 4),
            "ms": spread(own["sound"]) | {"p99": round(float(np.percentile(own["sound"], 99)), 3)},
            "ms_without_features": spread(own["features"]),
            "cpu_ms": round(statistics.fmean(own["cpu"]), 3),
            "shares": [round(share, 3) for share in runs[name].stats().stage_shares],
        }
        print(name, found[name])
    cheapest, full = (found[name] for name in (points[-1], "reference"))
    one, other = (np.reshape(rows[name]["right"], (options.repeats, -1))[0] for name in (points[-1], "reference"))
    lost = 100 * (other.astype(float) - one)
    found["against_reference"] = {
        "median": round(cheapest["ms"]["median"] / full["ms"]["median"], 3),
        "mean": round(cheapest["ms"]["mean"] / full["ms"]["mean"], 3),
        "p95": round(cheapest["ms"]["p95"] / full["ms"]["p95"], 3),
        "median_without_features": round(
            cheapest["ms_without_features"]["median"] / full["ms_without_features"]["median"], 3
        ),
        "points_lost": round(float(lost.mean()), 2),
        "standard_error": round(float(lost.std() / np.sqrt(len(lost))), 2),
    }
    print(found["against_reference"])
    for run in runs.values():
        run.close()
    print(save("sound/spoken_digits", found))


if __name__ == "__main__":
    main()
