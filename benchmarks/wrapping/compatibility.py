"""Which networks of timm and transformers work: wrapped, exact, trained, exported, run on ONNX Runtime, in int8.

    pip install timm transformers
    python -m benchmarks.wrapping.compatibility [NAME ...]

300 names of timm (the smallest network of each family below 150 M parameters) and 20 classifiers of transformers (text,
image and audio, small random configurations). All have random weights. For each network, in a process of its own:

- number: `wrap(network, x, exits=3)`
- name: `wrap(network, x, exits=[the name of the first of these])`
- exact: the last logits are those of the network, bit for bit
- heads: every parameter of every head gets a gradient that is finite
- export: `dynamic.export` writes one graph, and ONNX Runtime runs it for a batch of another size
- parity: its logits are torch's within 1e-3 of their spread, at full depth and at the first exit
- size: with `dynamic_shapes=`, the graph runs at another length or image size and gives the network's logits. Networks
  that refuse another size themselves count as passing, and say so
- int8: `quantize` gives a network whose logits correlate with those in float32 by 0.9 or more

What is done is kept in the results file and an interrupted run continues. `--again` measures failures again.
"""

import argparse
import json
import multiprocessing
import re
import time
from collections import Counter
from typing import Any

from benchmarks.harness.common import RESULTS, ROOT, progress, save
from benchmarks.wrapping import compatibility_networks, compatibility_worker

RESULT = RESULTS / "wrapping" / "compatibility.json"
TIMM_COUNT, MOST_PARAMETERS = 300, 150e6
TIMEOUT_S = 420
CHECKS = ("number", "name", "exact", "heads", "export", "parity", "size", "int8")


def names() -> list[str]:
    """The networks, chosen once and kept in out/: counting parameters takes minutes."""
    kept = ROOT / "out" / "compatibility_names.json"
    if not kept.is_file():
        chosen = compatibility_networks.timm_names(TIMM_COUNT, MOST_PARAMETERS)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps([*chosen, *compatibility_networks.transformers_names()]))
    listed: list[str] = json.loads(kept.read_text())
    return listed


def checked(name: str, timeout_s: float) -> dict[str, Any]:
    """The row of one network, from a process that may die or hang."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    worker = context.Process(target=compatibility_worker.main, args=(name, sender), daemon=True)
    began = time.perf_counter()
    worker.start()
    sender.close()
    row: dict[str, Any] = {}
    try:
        while receiver.poll(max(0.0, timeout_s - (time.perf_counter() - began))):
            row |= receiver.recv()  # a check each, so that a crash keeps those before
        row.setdefault("reason", f"took more than {timeout_s:g} s")
    except EOFError:
        worker.join()
        if worker.exitcode:
            row["reason"] = f"the process ended with {worker.exitcode}"
    finally:
        worker.kill()
        worker.join()
    passed = {check: row.get(check) is True for check in CHECKS}
    row["reasons"] = {check: row[check] for check in CHECKS if isinstance(row.get(check), str)}
    return {"network": name, **row, **passed, "seconds": round(time.perf_counter() - began, 1)}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Passing networks by source and check, and the commonest reasons."""
    parts: dict[str, Any] = {}
    for source in ("timm", "transformers"):
        some = [row for row in rows if row["network"].startswith(source)]
        parts[source] = {
            "networks": len(some),
            "pass all": sum(all(row[check] for check in CHECKS) for row in some),
            **{check: sum(row[check] for row in some) for check in CHECKS},
        }
    reasons = [reason for row in rows for reason in (row.get("reason"), *row["reasons"].values()) if reason]
    short = (re.sub(r"[\d.e+-]+|'[^']*'", "N", reason)[:90] for reason in reasons)
    return parts | {"reasons": dict(Counter(short).most_common(30))}


def main() -> None:
    """Check networks and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help='names such as "timm:resnet18" (default: all)')
    parser.add_argument("--again", action="store_true", help="measure networks again that failed")
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S, help="seconds for a network")
    options = parser.parse_args()
    wanted = options.networks or names()
    rows = {row["network"]: row for row in json.loads(RESULT.read_text())["rows"]} if RESULT.is_file() else {}
    for number, name in enumerate(wanted):
        row = rows.get(name)
        if row is None or options.networks or (options.again and not all(row[check] for check in CHECKS)):
            row = rows[name] = checked(name, options.timeout)
            ordered = [rows[known] for known in sorted(rows)]
            save("wrapping/compatibility", summary(ordered) | {"checks": CHECKS, "rows": ordered})
        failed = ", ".join(check for check in CHECKS if not row[check]) or "passes"
        progress(
            f"{number + 1} of {len(wanted)} {name:45} {row['seconds']:5.0f} s  {failed}  {row.get('reason', '')[:150]}"
        )
    print(json.dumps(summary(list(rows.values())), indent=1))


if __name__ == "__main__":
    main()
