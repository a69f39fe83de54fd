"""`python -m dynamic record|doctor`: the sensors of this device, over time and now. Neither imports torch."""

import math
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from dynamic.cli.doctor import examine
from dynamic.cli.project.commands import add
from dynamic.monitoring.monitor import Monitor
from dynamic.monitoring.traces import TraceWriter
from dynamic.policies.errors import InputError, SettingError
from dynamic.profiling.machine import machine_name
from dynamic.progress import track


def record(
    out: Annotated[Path, typer.Argument(help="File to write. An existing one is replaced.", show_default=False)],
    seconds: Annotated[float, typer.Option(help="How long. Ctrl-C ends it earlier.")] = 60.0,
    hz: Annotated[float, typer.Option(help="Snapshots a second.")] = 5.0,
) -> None:
    """Record the sensors of this device, a line for every new snapshot, for `TraceMonitor` to replay."""
    for name, value in (("--seconds", seconds), ("--hz", hz)):
        if not 0 < value < math.inf:
            raise SettingError(f"{name} {value} must be a positive number")
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
    shelf: Annotated[Path | None, typer.Argument(help="A bundle's folder, to be checked too.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    root: Annotated[
        Path, typer.Option(help="Folder whose proc and sys are read in place of this machine's, copied from another.")
    ] = Path("/"),
) -> None:
    """Report what this machine has: engines, sensors and limits, what is missing and the remedy, what is not believed.

    With a bundle's folder, also report whether that bundle answers every input here, and as in calibration. The exit
    code is 1 where it does not answer.
    """
    if not root.is_dir():
        raise InputError(f"--root {root} is no folder: give one that holds proc and sys of a device")
    text, code = examine(shelf, as_json, root)
    print(text)
    if code:
        raise typer.Exit(code)


def register(app: typer.Typer) -> None:
    """Add both commands."""
    add(app, record, example="dynamic record trace.jsonl --seconds 600")
    add(app, doctor, example="dynamic doctor shelf")
