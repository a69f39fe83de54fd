"""`python -m dynamic record|doctor`: what this device's sensors say, over time and now. Neither imports torch."""

import json
import math
import time
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from dynamic.doctor import diagnose, diagnosis_text
from dynamic.machine import machine_name
from dynamic.monitor import Monitor
from dynamic.policies.errors import BudgetError, InputError
from dynamic.progress import track
from dynamic.traces import TraceWriter


def record(
    out: Annotated[Path, typer.Argument(help="File to write; one that is there is replaced.", show_default=False)],
    seconds: Annotated[float, typer.Option(help="How long; Ctrl-C ends it earlier.")] = 60.0,
    hz: Annotated[float, typer.Option(help="Snapshots a second.")] = 5.0,
) -> None:
    """Record what the sensors of this device say, a line whenever it is new, for `TraceMonitor` to replay."""
    for name, value in (("--seconds", seconds), ("--hz", hz)):
        if not 0 < value < math.inf:
            raise BudgetError(f"{name} {value} must be a positive number")
    # the monitor refreshes twice as often: rounds of the same length would now and then fall between each other
    count, interval_s = max(1, round(seconds * hz)), 1 / hz
    written, last, began = 0, None, time.monotonic()
    with out.open("w", encoding="utf-8") as file, Monitor(interval_s / 2) as monitor:
        reports = monitor.sources()
        origins = {r.name: str(r.problem) if r.reading is None else r.reading.origin for r in reports}
        writer = TraceWriter(file, machine_name(), datetime.now(UTC).isoformat(timespec="seconds"), origins)
        try:
            with closing(track(range(count), "recording", count)) as ticks:
                for number in ticks:
                    time.sleep(max(0.0, began + number * interval_s - time.monotonic()))
                    snapshot = monitor.latest
                    if snapshot is not last:  # nothing new where every source hangs
                        writer.add(snapshot)
                        written, last = written + 1, snapshot
        except KeyboardInterrupt:
            pass  # every line so far is whole
    print(f"{written} snapshots of {time.monotonic() - began:.1f} s: {out}")


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    root: Annotated[
        Path, typer.Option(help="Folder whose proc and sys are read in place of this machine's, copied from another.")
    ] = Path("/"),
) -> None:
    """Say what this machine offers: engines, sensors, limits, what is missing and what to do, what was not believed."""
    if not root.is_dir():
        raise InputError(f"--root {root} is no folder: give one that holds proc and sys of a device")
    found = diagnose(root)
    print(json.dumps(asdict(found), indent=1) if as_json else diagnosis_text(found))


def register(app: typer.Typer) -> None:
    """Add both commands."""
    app.command()(record)
    app.command()(doctor)
