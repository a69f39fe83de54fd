"""Certifies draws of records with whichever `dynamic` is imported: `few_labels_before.py` starts it for two of them.

Each line of stdin is a request in JSON, and each line of stdout its reply. It imports nothing of the benchmarks, so
that it runs with an earlier library.
"""

import json
import sys
from dataclasses import replace
from typing import Any

import numpy as np

import dynamic
from dynamic.policies.records import split


def records_of(path: str) -> dynamic.Records:
    """The records of a file, as `save_records` of `few_labels_before.py` writes it."""
    arrays = np.load(path)
    return dynamic.Records(
        logits=arrays["logits"],
        label=arrays["label"],
        group=None,
        part=np.ones(len(arrays["label"]), np.int8),
        backbone=tuple(arrays["backbone"].tolist()),
        macs=tuple(arrays["macs"].tolist()),
        head_macs=tuple(arrays["head_macs"].tolist()),
        stage_names=tuple(arrays["stage_names"].tolist()),
        fingerprint="draws",
    )


def certified(records: dynamic.Records, request: dict[str, Any]) -> dict[str, Any]:
    """Temperatures and points of the ladder of one draw. No points: nothing is certified."""
    count, seed = request["count"], request["seed"]
    rows = np.random.default_rng([count, seed]).integers(len(records), size=count)
    sample = replace(records.select(rows), part=split(None, count, search_share=0.25, seed=seed))
    ladder = dynamic.certify(sample, request["targets"], risk=request["risk"], combine=request["combine"])
    points = [
        {"target": point.target, "bound": point.bound, "thresholds": [float(t) for t in point.thresholds]}
        for point in ladder.points
        if ladder.certified
    ]
    return {"temperature": list(ladder.temperature), "points": points}


def main() -> None:
    """Reply to each request."""
    opened: dict[str, dynamic.Records] = {}
    for line in sys.stdin:
        request = json.loads(line)
        path = request["records"]
        if path not in opened:
            opened[path] = records_of(path)
        print(json.dumps(certified(opened[path], request)), flush=True)


if __name__ == "__main__":
    main()
