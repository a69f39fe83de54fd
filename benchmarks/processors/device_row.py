"""Add your own device to the table of devices: short runs of `full_depth.py` and `headline.py`, and a row.

    python -m benchmarks.processors.device_row --name "Raspberry Pi 5"

Runs on the engines that are installed, needs the [build] extra and some 3 GB of free memory, and takes a quarter of an
hour on two cores. Leave the machine alone meanwhile. Without CIFAR-10 and the weights (see CONTRIBUTING.md) only the
cost of full depth is measured, with random weights; the row says what was left out. A row of the same name is replaced.
"""

import argparse
import json
import platform
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.cascades import full_depth, headline
from benchmarks.harness.alternating import ENGINES, circumstances
from benchmarks.harness.common import RESULTS, add_data_option, save
from dynamic.engines.engine_factory import installed
from dynamic.profiling.machine import machine_name

KEPT = RESULTS / "processors" / "devices.json"


def measure(data: Path | None, calls: tuple[int, int], requests: int, rate_requests: int) -> dict[str, Any]:
    """A row: ratios by engine, what they were measured with, and what was left out."""
    depth = full_depth.measure_all(data, list(ENGINES), calls)
    left_out = [f"{engine}: {why}" for engine, why in depth["skipped"].items()]
    left_out += [case.name for case in full_depth.CASES if case.name not in depth["networks"]]
    engines: dict[str, dict[str, Any]] = {}
    for network, found in depth["networks"].items():
        for engine, figures in found["engines"].items():
            engines.setdefault(engine, {})[network] = {
                "weights": found["weights"],
                "unsplit_ms": figures["rows"]["unsplit"]["latency_ms"],
                "full_depth": figures["rows"][figures["route"]]["ratio"],
                "route": figures["route"],
            }
    if data is None:
        left_out.append("accuracy and latency on CIFAR-10: no data folder")
    else:
        for engine, figures in headline.measure_all(data, list(ENGINES), requests, rate_requests, splits=2)[
            "engines"
        ].items():
            rows = figures["rows"]
            engines.setdefault(engine, {})["headline"] = {
                "cascade_ms": rows[figures["route"]]["latency_ms"],
                "resnet56_ms": rows[headline.REFERENCE]["latency_ms"],
                "ratio": figures["ratio"],
                "gain": figures["gain"],
                "settings": rows[figures["route"]]["settings"],
                "fastest_static": figures["fastest_static"],
                "use_the_static_network": figures["use_the_static_network"],
                "rate": figures["rate"],
            }
        if not rate_requests:
            left_out.append("CPU time at 5 requests a second")
    return {
        "machine": machine_name(),
        "system": platform.platform(),
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {"python": sys.version.split()[0], "dynamic-inference": version("dynamic-inference")}
        | {name: version(name) for name in installed() if name != "torch"},
        "calls": list(calls),
        "requests": requests if data is not None else 0,
        "engines": engines,
        "left_out": left_out,
    }


def show(devices: Mapping[str, Any]) -> None:
    """Print every device."""
    print("\nbatch 1, mean ms; full depth: every exit evaluated and none taken, to the network unsplit")
    print("cascade: CIFAR-10, mean latency to ResNet-56's, and accuracy minus ResNet-56's\n")
    networks = [case.name for case in full_depth.CASES]
    depths = "".join(f"{network:>18}{'full depth':>12}" for network in networks)
    print(f"{'device':24}{'engine':18}{depths}{'ResNet-56':>12}{'cascade':>9}{'ratio':>8}{'gain':>9}")
    for name, device in devices.items():
        for engine, found in device["engines"].items():
            depth = "".join(
                f"{found[n]['unsplit_ms']['mean']:18.2f}{found[n]['full_depth']['ratio']:12.3f}"
                if n in found
                else f"{'-':>18}{'-':>12}"
                for n in networks
            )
            print(f"{name[:23]:24}{engine:18}{depth}{_headline(found.get('headline'))}")
        print(f"{'':24}{device['machine']}, {device['date']}")
        for what in device["left_out"]:
            print(f"{'':24}left out: {what}")


def _headline(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return f"{'-':>12}{'-':>9}{'-':>8}{'-':>9}"
    static = "  use the static network" if found["use_the_static_network"] else ""
    return (
        f"{found['resnet56_ms']['mean']:12.2f}{found['cascade_ms']['mean']:9.2f}{found['ratio']:8.3f}"
        f"{found['gain']:+9.2%}{static}"
    )


def main() -> None:
    """Measure this device, put its row into the table, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--name", help="of this device; without one the table is only printed")
    parser.add_argument(
        "--calls", type=int, nargs=2, default=(60, 300), help="of full depth, by network (0: leave out)"
    )
    parser.add_argument("--requests", type=int, default=600, help="of the cascade and every static network")
    parser.add_argument("--rate-requests", type=int, default=50, help="at 5 a second (0: leave that out)")
    options = parser.parse_args()
    devices = json.loads(KEPT.read_text(encoding="utf-8"))["devices"] if KEPT.is_file() else {}
    if options.name:
        data = full_depth.data_or_none(options.data)
        devices[options.name] = measure(data, tuple(options.calls), options.requests, options.rate_requests)
        path = save("processors/devices", {"devices": devices})
    show(devices)
    if options.name:
        print(f"\n{options.name}: {circumstances()}\n{path}")


if __name__ == "__main__":
    main()
