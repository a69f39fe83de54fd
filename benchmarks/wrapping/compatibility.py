"""Which networks of timm and transformers work: wrapped, exact, trained, exported, run on ONNX Runtime, in int8.

    pip install timm transformers
    nice -n 19 python -m benchmarks.wrapping.compatibility [NAME ...]

300 names of timm (the smallest network of each family below 150 M parameters) and 20 classifiers of transformers (text,
image and audio, small random configurations). All have random weights. For each network, in a process of its own:

- number: `wrap(network, x, exits=3)`
- exact: the last logits are those of the network, bit for bit. Where only torch.export captures it, within 1e-5
- heads: every parameter of every head gets a gradient that is finite
- name: `wrap(network, x, exits=[the name of the first of these])`
- size: with `dynamic_shapes=`, the graph runs at another length or image size and gives the network's logits. Sides of
  images come in steps of 32 pixels, else of 64. Networks that refuse another size themselves count as passing, and
  say so
- export: `dynamic.export` writes one graph, that of any size where there is one, and ONNX Runtime loads it
- parity: its logits for another batch are torch's within 1e-3 of their spread, at full depth and at the first exit
- int8, with `--int8` alone: `quantize` gives a network whose logits correlate with those in float32 by 0.9 or more

A network works where all but int8 pass. What is done is kept in the results file and an interrupted run continues:
networks of all families come first. `--again failed` measures those again that failed. `docs/compatibility.md` is
written by `python -m benchmarks.wrapping.compatibility_page`.
"""

import argparse
import json
import signal
import sys
from collections import Counter
from datetime import UTC, datetime
from functools import partial
from typing import Any

from benchmarks.harness.common import RESULTS, progress, save
from benchmarks.wrapping import compatibility_networks

NAME = "wrapping/compatibility"
RESULT = RESULTS / f"{NAME}.json"
TIMM_COUNT, MOST_PARAMETERS = 300, 150e6
LIMIT_S = 240  # of CPU time for a network
CHECKS = ("number", "exact", "heads", "name", "size", "export", "parity", "int8")
NEEDED = CHECKS[:-1]


def chosen(result: dict[str, Any]) -> list[str]:
    """The networks in their order, chosen once: counting parameters takes minutes."""
    if "networks" not in result:
        timm = compatibility_networks.timm_names(TIMM_COUNT, MOST_PARAMETERS)
        result["networks"] = [*compatibility_networks.transformers_names(), *timm]
    networks: list[str] = result["networks"]
    return networks


def row_of(name: str, facts: dict[str, Any]) -> dict[str, Any]:
    """What the checks found: True, False, or None where an earlier one ended all. `reasons` of those that failed."""
    passed = {check: None if check not in facts else facts[check] is True for check in CHECKS}
    reasons = {check: facts[check] for check in CHECKS if isinstance(facts.get(check), str)}
    if facts["reason"]:
        reasons[next((check for check in NEEDED if check not in facts), "end")] = facts["reason"]
    others = {key: value for key, value in facts.items() if key not in (*CHECKS, "reason")}
    date = datetime.now(UTC).date().isoformat()
    return {
        "network": name,
        "family": compatibility_networks.family(name),
        **passed,
        "reasons": reasons,
        **others,
        "date": date,
    }


def works(row: dict[str, Any]) -> bool:
    """Whether every check but int8 passed."""
    return all(row[check] for check in NEEDED)


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Networks by source: how many were tried, work, pass each check, and refuse another size themselves."""
    parts: dict[str, Any] = {}
    for source in ("timm", "transformers"):
        some = [row for row in rows if row["network"].startswith(source)]
        parts[source] = {
            "tried": len(some),
            "work": sum(works(row) for row in some),
            **{check: sum(row[check] is True for row in some) for check in CHECKS},
            "own size alone": sum("own size alone" in row for row in some),
            "traced by": dict(Counter(row["tracer"] for row in some if "tracer" in row)),
        }
    return parts


def main() -> None:
    """Check networks and print a table."""
    from benchmarks.wrapping import compatibility_processes, compatibility_worker  # torch: the page does without

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help='names such as "timm:resnet18" (default: all)')
    parser.add_argument("--again", choices=("failed",), help="measure those networks again that failed")
    parser.add_argument("--processes", type=int, default=2, help="how many networks at a time, one thread each")
    parser.add_argument("--int8", action="store_true", help="check int8 too")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds of CPU time for a network")
    options = parser.parse_args()
    result: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    listed = chosen(result)
    rows = {row["network"]: row for row in result.get("rows", ())}
    left = [name for name in listed if name not in rows]
    again = [name for name in listed if name in rows and not works(rows[name])]
    wanted = options.networks or (again if options.again else left)
    compatibility_processes.load_libraries()
    work = partial(compatibility_worker.main, int8=options.int8)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended: what is done is kept"))
    for name, facts in compatibility_processes.checked(wanted, work, options.processes, options.limit):
        row = rows[name] = row_of(name, facts)
        ordered = [rows[known] for known in (*listed, *(n for n in rows if n not in listed)) if known in rows]
        save(NAME, {"networks": listed, "checks": CHECKS, **summary(ordered), "rows": ordered})
        failed = ", ".join(check for check in NEEDED if not row[check]) or "works"
        progress(f"{len(rows)} {name:45} {row.get('cpu_s', 0):5.0f} s  {failed}  {str(row['reasons'] or '')[:300]}")
    print(json.dumps(summary(list(rows.values())), indent=1))


if __name__ == "__main__":
    main()
