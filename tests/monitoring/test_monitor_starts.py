"""A sensor, or a thread, that cannot start is a missing sensor: never a monitor or a runtime that does not open."""

import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.sensor_cases import V2_MOUNT, Tree, forbid, wait_until

from dynamic.engines.memory import available_cores
from dynamic.monitoring.monitor import Battery, Monitor
from dynamic.monitoring.sources.cpu import usable_cores
from dynamic.monitoring.sources.temperature import Temperature

INTERVAL_S = 0.02
MEMORY = {"proc/meminfo": "MemTotal: 4000000 kB\nMemAvailable: 2000000 kB\n", "proc/self/statm": "999 1000 5 5\n"}


@pytest.fixture(autouse=True)
def no_thread_is_left_behind() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert wait_until(lambda: not [t for t in threading.enumerate() if t.name == "dynamic-monitor" and t not in before])


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    tree = Tree(tmp_path)
    tree(MEMORY)
    return tree


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def refuse_stat(monkeypatch: pytest.MonkeyPatch, *paths: Path) -> None:
    """Looking at these files is refused, as on a phone or under a folder of another user. Opening them too."""
    real = Path.stat

    def guarded(self: Path, **options: Any) -> Any:
        if self in paths:
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, **options)

    monkeypatch.setattr(Path, "stat", guarded)
    forbid(monkeypatch, *paths)


@pytest.mark.parametrize(
    ("name", "source", "field"),
    [
        ("proc/stat", "cpu", "cpu_load"),
        ("proc/meminfo", "memory", "memory_available_mb"),
        ("proc/self/statm", "process", "memory_process_mb"),
        ("proc/pressure/cpu", "cpu_pressure", "cpu_pressure"),
        ("proc/self/cgroup", "memory_limit", None),
    ],
)
def test_a_file_that_may_not_be_looked_at(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, name: str, source: str, field: str | None
) -> None:
    tree({name: "1\n"})
    refuse_stat(monkeypatch, tree.root / name)
    with Monitor(INTERVAL_S, battery=lambda: 0.5, root=tree.root) as monitor:
        assert wait_until(lambda: monitor.latest.battery == 0.5)
        assert source in monitor.latest.missing
        assert field is None or getattr(monitor.latest, field) is None
        problem = next(report.problem for report in monitor.sources() if report.name == source)
    assert problem is not None
    assert "Permission denied" in problem


def test_a_library_that_does_not_find_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: Any) -> Any:
        raise psutil.NoSuchProcess(1)

    monkeypatch.setattr("dynamic.monitoring.sources.memory.psutil.Process", gone)
    with Monitor(INTERVAL_S, battery=lambda: 0.5, root=tmp_path) as monitor:
        assert wait_until(lambda: monitor.latest.battery == 0.5)
        assert "process" in monitor.latest.missing


def test_any_source_that_cannot_be_set_up(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = [True]
    real = Temperature

    def temperature(root: Path) -> Any:
        if broken[0]:
            raise OSError(5, "Input/output error")
        return real(root)

    tree({"sys/class/thermal/thermal_zone0/type": "cpu-thermal\n", "sys/class/thermal/thermal_zone0/temp": 48_000})
    monkeypatch.setattr("dynamic.monitoring.sources.system.Temperature", temperature)
    with Monitor(INTERVAL_S, root=tree.root) as monitor:
        assert wait_until(lambda: monitor.latest.memory_available_mb == 2048)
        assert "temperature" in monitor.latest.missing
        broken[0] = False
        assert wait_until(lambda: monitor.latest.temperature_c == 48)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no affinity mask")
def test_a_sandbox_that_refuses_the_affinity_mask(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: int) -> set[int]:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_getaffinity", refused)
    assert usable_cores() == tuple(range(os.cpu_count() or 1))
    assert available_cores() == os.cpu_count()
    with Monitor(INTERVAL_S, root=tree.root) as monitor:
        assert wait_until(lambda: monitor.latest.cpu_cores == os.cpu_count())


class NoThreads:
    """`count` threads may start, the others are refused, as under a limit of the system."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
        self.left = count
        real = threading.Thread.start

        def start(thread: threading.Thread) -> None:
            if thread.name == "dynamic-monitor":
                if self.left <= 0:
                    raise RuntimeError("can't start new thread")
                self.left -= 1
            real(thread)

        monkeypatch.setattr(threading.Thread, "start", start)


def test_without_a_thread_every_sensor_is_missing(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    threads = NoThreads(monkeypatch, 0)
    monitor = Monitor(INTERVAL_S, battery=lambda: 0.5, root=tree.root).start()
    try:
        names = {report.name for report in monitor.sources()}
        assert set(monitor.latest.missing) == names >= {"battery", "cpu", "memory"}
        problems = {report.problem for report in monitor.sources()}
        assert all(problem is not None and "can't start new thread" in problem for problem in problems)
        (message,) = said(caplog)
        assert "ulimit -u" in message
        threads.left = 99
        monitor.start()  # tries again
        assert wait_until(lambda: monitor.latest.battery == 0.5 and monitor.latest.memory_available_mb == 2048)
    finally:
        monitor.close()


@pytest.mark.parametrize("count", [1, 2])
def test_with_too_few_threads_the_others_are_read(tree: Tree, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr("dynamic.monitoring.sensor_loop._THREADS_S", 0.1)
    threads = NoThreads(monkeypatch, count)  # for the quick sources, and for one of two functions
    with Monitor(INTERVAL_S, battery=lambda: 0.5, temperature=lambda: 40.0, root=tree.root) as monitor:
        assert wait_until(lambda: monitor.latest.memory_available_mb == 2048)
        assert "temperature" in monitor.latest.missing
        assert (monitor.latest.battery is None) == (count == 1)
        first = monitor.latest
        assert wait_until(lambda: monitor.latest is not first)  # it goes on
        threads.left = 99
        assert wait_until(lambda: (monitor.latest.battery, monitor.latest.temperature_c) == (0.5, 40.0))
        assert not {"temperature", "battery"} & set(monitor.latest.missing)


def test_limits_that_cannot_be_determined_are_said_once(tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    tree({"proc/self/cgroup": "0::/kubepods/pod1/c1\n", "proc/self/mountinfo": "22 1 8:1 / / rw - ext4 /dev/x rw\n"})
    with Monitor(INTERVAL_S, root=tree.root) as monitor:
        assert wait_until(lambda: {"cpu_limit", "memory_limit"} <= set(monitor.latest.missing))
        assert wait_until(lambda: monitor.latest.memory_available_mb == 2048)  # the machine's
        time.sleep(5 * INTERVAL_S)
        failures = {report.name: report.failures for report in monitor.sources()}
    (message,) = said(caplog)
    assert "limits of a container cannot be determined" in message
    assert "/kubepods/pod1/c1" in message
    assert failures["memory_limit"] == 1  # to look again five times a second would be dear


def test_what_is_left_out_is_said_once(tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    supply = "sys/class/power_supply"
    for number, level in ((0, -1), (1, 60)):
        tree({f"{supply}/BAT{number}/type": "Battery\n", f"{supply}/BAT{number}/capacity": level})
    tree({f"{supply}/BAT1/energy_now": "many\n"})
    with Monitor(INTERVAL_S, root=tree.root) as monitor:
        assert wait_until(lambda: monitor.latest.battery == 0.6)
        (reading,) = [report.reading for report in monitor.sources() if report.name == "battery"]
    assert [item.name for item in reading.left_out] == ["BAT0", "BAT1 energy"]  # type: ignore[union-attr]
    assert len([message for message in said(caplog) if "BAT0" in message]) == 1
    assert any("-1" in message for message in said(caplog))


def test_one_field_of_a_function_that_cannot_be_leaves_the_others(caplog: pytest.LogCaptureFixture) -> None:
    with Monitor(INTERVAL_S, battery=lambda: Battery(0.5, plugged=False, energy_mwh=-3)) as monitor:
        assert wait_until(lambda: monitor.latest.battery == 0.5)
        assert (monitor.latest.plugged, monitor.latest.battery_mwh) == (False, None)
    assert any("battery_mwh=-3" in message for message in said(caplog))


def test_pressure_of_the_machine_stands_beside_an_unknown_limit(tree: Tree) -> None:
    tree({"proc/self/cgroup": "0::/x\n", "proc/self/mountinfo": V2_MOUNT.replace("cgroup2", "tmpfs")})
    tree({"proc/pressure/cpu": "some avg10=50.00 avg60=0.00 avg300=0.00 total=1\n"})
    with Monitor(INTERVAL_S, root=tree.root) as monitor:
        assert wait_until(lambda: monitor.latest.cpu_pressure == 0.5)
