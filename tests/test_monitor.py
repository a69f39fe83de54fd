"""The monitor: what it reads, that it never blocks, and that a broken sensor is left out."""

import logging
import os
import subprocess
import sys
import threading
import time
import timeit
from collections import namedtuple
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from dynamic.monitor import Battery, FixedMonitor, Monitor, OtherLoad, usable_cores
from dynamic.policies.errors import BudgetError
from dynamic.policies.snapshot import Snapshot

INTERVAL_S = 0.02


def wait_until(condition: Callable[[], bool], limit_s: float = 10.0) -> bool:
    end = time.monotonic() + limit_s
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()


def watchers() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "dynamic-monitor"]


@pytest.fixture(autouse=True)
def no_thread_is_left_behind() -> Iterator[None]:
    yield
    assert wait_until(lambda: not watchers())


def test_reads_this_machine() -> None:
    with Monitor(INTERVAL_S) as monitor:
        assert wait_until(lambda: monitor.latest.cpu_load is not None)
        seen = monitor.latest
    assert 0 <= seen.cpu_load <= 1  # type: ignore[operator]
    assert seen.cpu_cores == len(usable_cores())
    own_mb = psutil.Process().memory_info().rss / 1e6
    assert seen.memory_process_mb == pytest.approx(own_mb, rel=0.2)
    assert seen.memory_available_mb == pytest.approx(psutil.virtual_memory().available / 1e6, rel=0.3)
    assert abs(seen.time_s - time.monotonic()) < 10
    # what this machine lacks is named, and nothing that it has
    for source, field in (("battery", "battery"), ("frequency", "frequency_ratio"), ("memory", "memory_available_mb")):
        assert (getattr(seen, field) is None) == (source in seen.missing)


def test_first_reading_is_there_after_start() -> None:
    monitor = Monitor(5.0, battery=lambda: 0.5)
    assert monitor.latest.memory_available_mb is None
    try:
        assert monitor.start().latest.memory_available_mb is not None
        assert monitor.latest.battery == 0.5
    finally:
        began = time.monotonic()
        monitor.close()
    assert time.monotonic() - began < 2  # closing does not wait out the interval


def test_functions_of_the_user_replace_sources() -> None:
    charge = [0.83]
    with Monitor(
        INTERVAL_S, cpu=lambda: 0.25, memory=lambda: 512, battery=lambda: Battery(charge[0], plugged=False)
    ) as monitor:
        assert wait_until(lambda: monitor.latest.battery is not None)
        seen = monitor.latest
        assert (seen.cpu_load, seen.memory_available_mb, seen.battery, seen.plugged) == (0.25, 512.0, 0.83, False)
        charge[0] = 0.82
        assert wait_until(lambda: monitor.latest.battery == 0.82)
    with Monitor(INTERVAL_S, battery=lambda: 1) as monitor:
        assert wait_until(lambda: monitor.latest.battery == 1.0)
        assert monitor.latest.plugged is None


def raises() -> float:
    raise PermissionError("no access to /dev/i2c-1")


@pytest.mark.parametrize(
    "battery", [raises, lambda: 7.0, lambda: -0.1, lambda: float("nan"), lambda: "full", lambda: None]
)
def test_a_broken_source_is_reported_once_and_left_out(battery: Any, caplog: pytest.LogCaptureFixture) -> None:
    calls = 0

    def counted() -> Any:
        nonlocal calls
        calls += 1
        return battery()

    with caplog.at_level(logging.WARNING, "dynamic"), Monitor(INTERVAL_S, battery=counted) as monitor:
        assert wait_until(lambda: calls >= 3)
        seen = monitor.latest
    assert seen.battery is None
    assert "battery" in seen.missing
    assert seen.memory_available_mb is not None  # the others go on
    told = [r.getMessage() for r in caplog.records if r.name == "dynamic" and "battery" in r.getMessage()]
    assert len(told) == 1


def test_a_source_that_recovers_is_back() -> None:
    broken = [True]

    def battery() -> float:
        return raises() if broken[0] else 0.4

    with Monitor(INTERVAL_S, battery=battery) as monitor:
        assert wait_until(lambda: "battery" in monitor.latest.missing)
        broken[0] = False
        assert wait_until(lambda: monitor.latest.battery == 0.4)
        assert "battery" not in monitor.latest.missing
        broken[0] = True
        assert wait_until(lambda: monitor.latest.battery is None)


def test_a_source_that_hangs_holds_up_nobody() -> None:
    release = threading.Event()

    def battery() -> float:
        release.wait(30)
        return 0.5

    monitor = Monitor(INTERVAL_S, battery=battery)
    began = time.monotonic()
    monitor.start()
    try:
        first = monitor.latest
        assert time.monotonic() - began < 5
        assert wait_until(lambda: monitor.latest.time_s > first.time_s + 3 * INTERVAL_S)  # others refresh
        assert monitor.latest.memory_available_mb is not None
        assert "battery" in monitor.latest.missing
        closing = time.monotonic()
        monitor.close()
        assert time.monotonic() - closing < 5
        last = monitor.latest
    finally:
        release.set()
    assert wait_until(lambda: not watchers())
    assert monitor.latest is last  # it came back too late to be heard


def test_latest_is_a_plain_read() -> None:
    with Monitor(INTERVAL_S) as monitor:
        best_s = min(timeit.repeat(lambda: monitor.latest, number=10_000, repeat=5)) / 10_000
    assert best_s < 1e-6


def test_start_and_close_may_come_twice() -> None:
    monitor = Monitor(INTERVAL_S)
    monitor.close()
    monitor.start()
    count = len(watchers())
    monitor.start()
    assert len(watchers()) == count > 0
    monitor.close()
    monitor.close()
    assert not watchers()
    stopped = monitor.latest
    time.sleep(3 * INTERVAL_S)
    assert monitor.latest is stopped
    with monitor:
        assert wait_until(lambda: monitor.latest is not stopped)


@pytest.mark.parametrize("interval_s", [0, -1.0, float("nan"), float("inf")])
def test_interval_is_positive(interval_s: float) -> None:
    with pytest.raises(BudgetError, match="interval_s"):
        Monitor(interval_s)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_starts_again_after_a_fork() -> None:
    code = """
import os, sys, time
from dynamic.monitor import Monitor
monitor = Monitor(0.02).start()
if os.fork() == 0:
    old = monitor.latest
    monitor.start()
    end = time.monotonic() + 10
    while monitor.latest is old and time.monotonic() < end:
        time.sleep(0.01)
    fresh = monitor.latest is not old
    monitor.close()
    os._exit(0 if fresh else 3)
status = os.waitstatus_to_exitcode(os.wait()[1])
before = monitor.latest
time.sleep(0.2)
sys.exit(status or (monitor.latest is before))  # the parent's goes on
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], timeout=60)
    assert done.returncode == 0


def test_load_of_others_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    times = namedtuple("times", "user system idle iowait steal guest")
    readings = [
        [times(10, 5, 100, 1, 0, 3), times(20, 5, 200, 0, 0, 0), times(0, 0, 0, 0, 0, 0)],
        # 1 s on each of two cores: 0.8 busy on the first (0.1 of it stolen), 0.2 on the second; the third is not ours
        [times(10.6, 5.1, 100.1, 1.1, 0.1, 3.5), times(20.2, 5, 200.8, 0, 0, 0), times(9, 9, 9, 9, 9, 9)],
        [times(10.61, 5.1, 100.1, 1.1, 0.1, 3.5), times(20.2, 5, 200.8, 0, 0, 0), times(9, 9, 9, 9, 9, 9)],
    ]
    own = iter([1.0, 1.3, 1.3])  # this process took 0.3 s of the 1.0 s that were busy
    monkeypatch.setattr("dynamic.monitor.usable_cores", lambda: (0, 1))
    monkeypatch.setattr("dynamic.monitor.time.process_time", lambda: next(own))
    feed = iter(readings)
    monkeypatch.setattr("dynamic.monitor.psutil.cpu_times", lambda percpu: next(feed))
    load = OtherLoad()
    assert load() == {"cpu_load": None, "cpu_cores": 2.0}
    assert load()["cpu_load"] == pytest.approx((1.0 - 0.3) / 2)
    assert load()["cpu_load"] == pytest.approx((1.0 - 0.3) / 2)  # 10 ms more is one tick: too little to tell


@pytest.fixture
def one_core() -> Iterator[int]:
    if sys.platform != "linux":
        pytest.skip("needs an affinity mask")
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    yield min(cores)
    os.sched_setaffinity(0, cores)


def test_a_busy_subprocess_is_load(one_core: int) -> None:
    load = OtherLoad()
    code = "import time; print(flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as busy:
        try:
            assert busy.stdout is not None
            busy.stdout.readline()
            load()
            time.sleep(0.6)
            found = load()
        finally:
            busy.kill()
    assert found["cpu_cores"] == 1
    assert found["cpu_load"] > 0.7


def test_own_work_is_not_load(one_core: int) -> None:
    load = OtherLoad()
    load()
    began, cpu_began = time.perf_counter(), time.process_time()
    while time.process_time() - cpu_began < 0.4 and time.perf_counter() - began < 5:
        pass
    wall_s, own_s = time.perf_counter() - began, time.process_time() - cpu_began
    found = load()["cpu_load"]
    if own_s / wall_s < 0.3:
        pytest.skip("other processes keep this core too busy to tell")
    assert found <= 1 - own_s / wall_s + 0.15


def test_fixed_monitor_says_what_it_is_told() -> None:
    monitor = FixedMonitor(Snapshot(time_s=1.0, battery=0.9))
    monitor.set(battery=0.1, plugged=False)
    assert monitor.start().latest == Snapshot(time_s=1.0, battery=0.1, plugged=False)
    monitor.latest = Snapshot(time_s=2.0)
    assert monitor.latest.battery is None
    monitor.close()
    assert FixedMonitor().latest == Snapshot(time_s=0.0)
