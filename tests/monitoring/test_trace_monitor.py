"""Recorded snapshots: what is written is read, and told at its time."""

import io
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from support.sensor_cases import Clock

from dynamic.errors import CorruptError, SchemaError, SettingError
from dynamic.monitoring.monitor import TraceMonitor
from dynamic.monitoring.traces import TraceWriter, read_trace
from dynamic.policies.snapshot import Snapshot

SNAPSHOTS = (
    Snapshot(500.0, cpu_load=0.25, cpu_cores=1.5, battery=0.9, plugged=False, missing=("power",)),
    Snapshot(500.5, cpu_load=0.5, temperature_c=61.5, throttled=True),
    Snapshot(502.0, battery=0.89, power_mw=2300.0, rows=4),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with (tmp_path / "day.jsonl").open("w") as file:
        writer = TraceWriter(
            file, "aarch64 Pi", "2026-05-01T12:00:00+00:00", {"battery": "/sys/x", "cpu": "/proc/stat"}
        )
        for snapshot in SNAPSHOTS:
            writer.add(snapshot)
    return tmp_path / "day.jsonl"


def test_what_is_written_is_read(path: Path) -> None:
    trace = read_trace(path)
    assert trace.snapshots == SNAPSHOTS
    assert (trace.machine, trace.date) == ("aarch64 Pi", "2026-05-01T12:00:00+00:00")
    assert trace.sources == {"battery": "/sys/x", "cpu": "/proc/stat"}


def test_lines_are_plain_json_without_what_is_unknown(path: Path) -> None:
    header, first, *_ = map(json.loads, path.read_text().splitlines())
    assert (header["kind"], header["schema"]) == ("dynamic trace", 1)
    assert first == {
        **{"time_s": 500.0, "cpu_load": 0.25, "cpu_cores": 1.5, "battery": 0.9, "plugged": False},
        "missing": ["power"],
    }


def test_every_line_is_flushed() -> None:
    class Counted(io.StringIO):
        flushed = ""

        def flush(self) -> None:
            self.flushed = self.getvalue()

    file = Counted()
    writer = TraceWriter(file, "m", "d", {})
    assert file.flushed.count("\n") == 1
    writer.add(SNAPSHOTS[0])
    assert file.flushed.count("\n") == 2


def test_a_last_line_cut_short_is_left_out(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.write_text(path.read_text()[:-10])  # the battery was empty
    with caplog.at_level(logging.WARNING, "dynamic"):
        assert read_trace(path).snapshots == SNAPSHOTS[:2]
    assert "line 4 was cut short" in caplog.text


def lines(path: Path, *, header: Any = None, more: str = "") -> None:
    text = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(header) if header is not None else text[0], *text[1:]]) + "\n" + more)


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[1]",
        "{}",
        '{"time_s": "now"}',
        '{"time_s": 600, "cpu_load": "high"}',
        '{"time_s": 600, "plugged": 1}',
        '{"time_s": 600, "colour": 3}',
        '{"time_s": 600, "missing": "power"}',
        '{"time_s": 400}',
    ],
)
def test_lines_that_are_no_snapshots(path: Path, line: str) -> None:
    lines(path, more=line + "\n")
    with pytest.raises(CorruptError, match="line 5"):
        read_trace(path)


@pytest.mark.parametrize("header", [{}, [], {"kind": "other"}, {"kind": "dynamic trace", "schema": 1, "sources": []}])
def test_headers_that_are_none(path: Path, header: Any) -> None:
    lines(path, header=header)
    with pytest.raises(CorruptError, match="no recorded trace"):
        read_trace(path)


def test_a_newer_version_and_files_that_are_something_else(path: Path) -> None:
    lines(path, header={"kind": "dynamic trace", "schema": 2, "machine": "", "date": "", "sources": {}})
    with pytest.raises(SchemaError, match="schema 2"):
        TraceMonitor(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CorruptError):
        TraceMonitor(str(path))
    path.write_text("")
    with pytest.raises(CorruptError):
        TraceMonitor(path)
    with pytest.raises(FileNotFoundError):
        TraceMonitor(path.with_name("none"))


def test_a_header_alone_is_no_trace(path: Path) -> None:
    path.write_text(path.read_text().splitlines()[0] + "\n")
    with pytest.raises(CorruptError, match="no snapshot"):
        read_trace(path)


def test_the_snapshot_for_the_time_since_start(path: Path) -> None:
    clock = Clock()
    monitor = TraceMonitor(path, clock=clock)
    assert monitor.latest is monitor.snapshots[0]
    clock.now += 50  # not started: no time passes
    assert monitor.latest == SNAPSHOTS[0]
    assert monitor.start() is monitor
    found = []
    for seconds in (0.4, 0.1, 1.4, 0.1, 1000):
        clock.now += seconds
        found.append(monitor.latest)
    assert found == [SNAPSHOTS[i] for i in (0, 1, 1, 2, 2)]  # the last one stays
    clock.now -= 10_000  # a clock that steps backwards
    assert monitor.latest == SNAPSHOTS[0]


def test_twice_as_fast() -> None:
    clock = Clock()
    monitor = TraceMonitor(SNAPSHOTS, speed=2.0, clock=clock).start()
    clock.now += 0.26
    assert monitor.latest is SNAPSHOTS[1]
    clock.now += 0.75
    assert monitor.latest is SNAPSHOTS[2]


def test_a_loop_begins_again_and_its_time_goes_on() -> None:
    clock = Clock()
    monitor = TraceMonitor(SNAPSHOTS, clock=clock, loop=True).start()
    clock.now += 2.5  # 2 s between 3 snapshots: the last holds for 1 s, a round is 3 s
    assert monitor.latest is SNAPSHOTS[2]
    clock.now += 1.1
    again = monitor.latest
    assert (again.time_s, again.cpu_load) == (503.5, 0.5)
    assert monitor.latest is again
    clock.now += 2.5
    assert monitor.latest.time_s == 506.0


def test_a_single_snapshot_loops_as_it_stays() -> None:
    monitor = TraceMonitor(SNAPSHOTS[:1], loop=True).start()
    assert monitor.latest is SNAPSHOTS[0]


def test_close_keeps_and_start_begins_anew() -> None:
    clock = Clock()
    monitor = TraceMonitor(SNAPSHOTS, clock=clock)
    monitor.close()
    monitor.start()
    clock.now += 1
    assert monitor.start().latest is SNAPSHOTS[1]  # a second start changes nothing
    monitor.close()
    clock.now += 5
    assert monitor.latest is SNAPSHOTS[1]
    assert monitor.start().latest is SNAPSHOTS[0]


@pytest.mark.parametrize("speed", [0, -1, float("nan"), float("inf")])
def test_speed_is_positive(speed: float) -> None:
    with pytest.raises(SettingError, match="speed"):
        TraceMonitor(SNAPSHOTS, speed=speed)


def test_snapshots_are_needed_in_order() -> None:
    with pytest.raises(SettingError, match="at least one"):
        TraceMonitor([])
    with pytest.raises(SettingError, match="order"):
        TraceMonitor(SNAPSHOTS[::-1])
