"""The monitor: what it reads, that it never blocks, and that a broken sensor is left out."""

import logging
import os
import subprocess
import sys
import threading
import time
from collections import defaultdict, namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.sensor_cases import V2_MOUNT, Clock, Tree, forbid, wait_until

from dynamic.monitoring.contract import AbsentError, Reading, Source
from dynamic.monitoring.monitor import Battery, FixedMonitor, Monitor
from dynamic.monitoring.sensor_loop import Watch
from dynamic.monitoring.sources.cpu import OtherLoad, usable_cores
from dynamic.policies.errors import SettingError
from dynamic.policies.snapshot import Snapshot

INTERVAL_S = 0.02


def watchers() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "dynamic-monitor"]


@pytest.fixture(autouse=True)
def no_thread_is_left_behind() -> Iterator[None]:
    before = set(watchers())  # of other tests
    yield
    assert wait_until(lambda: set(watchers()) <= before)


def test_reads_this_machine() -> None:
    began_s = time.monotonic()
    with Monitor(INTERVAL_S) as monitor:
        assert wait_until(lambda: monitor.latest.cpu_load is not None)
        seen = monitor.latest
    assert 0 <= seen.cpu_load <= 1  # type: ignore[operator]
    assert seen.cpu_cores is not None
    assert 0 < seen.cpu_cores <= len(usable_cores())  # fewer under a quota
    own_mb = psutil.Process().memory_info().rss / 1e6
    assert seen.memory_process_mb == pytest.approx(own_mb, rel=0.2)
    host_mb = psutil.virtual_memory().available / 1e6
    assert seen.memory_available_mb is not None
    assert 0 < seen.memory_available_mb < host_mb * 1.3  # less under a limit
    assert began_s <= seen.time_s <= time.monotonic()
    # what this machine lacks is named, and nothing that it has
    for source, field in (("battery", "battery"), ("frequency", "frequency_ratio"), ("memory", "memory_available_mb")):
        assert (getattr(seen, field) is None) == (source in seen.missing)


def test_first_reading_is_there_after_start() -> None:
    monitor = Monitor(120.0, battery=lambda: 0.5)
    assert monitor.latest.memory_available_mb is None
    try:
        assert monitor.start().latest.memory_available_mb is not None
        assert monitor.latest.battery == 0.5
    finally:
        began = time.monotonic()
        monitor.close()
    assert time.monotonic() - began < 60  # closing does not wait out the interval


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
        release.wait(300)
        return 0.5

    monitor = Monitor(INTERVAL_S, battery=battery)
    began = time.monotonic()
    monitor.start()
    try:
        first = monitor.latest
        assert time.monotonic() - began < 100
        assert wait_until(lambda: monitor.latest.time_s > first.time_s + 3 * INTERVAL_S)  # others refresh
        assert monitor.latest.memory_available_mb is not None
        assert "battery" in monitor.latest.missing
        closing = time.monotonic()
        monitor.close()
        assert time.monotonic() - closing < 100
        last = monitor.latest
    finally:
        release.set()
    assert wait_until(lambda: not watchers())
    assert monitor.latest is last  # it came back too late to be heard


def test_latest_is_a_plain_read() -> None:
    """An attribute of the object: no property, no lock, nothing that runs. `benchmarks/runtime/monitor.py` times it."""
    with Monitor(INTERVAL_S) as monitor:
        assert "latest" in vars(monitor)
    assert not hasattr(Monitor, "latest")
    assert not {"__getattr__", "__getattribute__"} & {name for kind in Monitor.__mro__[:-1] for name in vars(kind)}


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
    with pytest.raises(SettingError, match="interval_s"):
        Monitor(interval_s)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_starts_again_after_a_fork() -> None:
    code = """
import os, signal, sys, time
from dynamic.monitoring.monitor import Monitor
monitor, other = Monitor(0.02).start(), Monitor(0.02).start()
# locks that threads of the parent may hold when it forks
with monitor._watch._lock, monitor._watch._stop._cond, other._watch._lock, other._watch._stop._cond:
    if os.fork() == 0:
        signal.alarm(100)
        old = monitor.latest
        monitor.start()
        end = time.monotonic() + 60
        while monitor.latest is old and time.monotonic() < end:
            time.sleep(0.01)
        fresh = monitor.latest is not old
        monitor.close(), other.close()
        os._exit(0 if fresh else 3)
status = os.waitstatus_to_exitcode(os.wait()[1])
before = monitor.latest
end = time.monotonic() + 60
while monitor.latest is before and time.monotonic() < end:
    time.sleep(0.01)
sys.exit(status or (monitor.latest is before))  # the parent's goes on
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], timeout=300)
    assert done.returncode == 0


def test_load_of_others_by_psutil_by_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    times = namedtuple("times", "user system idle iowait steal guest")
    readings = [
        [times(10, 5, 100, 1, 0, 3), times(20, 5, 200, 0, 0, 0), times(0, 0, 0, 0, 0, 0)],
        # 1 s on each of two cores: 0.8 busy on the first (0.1 of it stolen), 0.2 on the second; the third is not ours
        [times(10.6, 5.1, 100.1, 1.1, 0.1, 3.5), times(20.2, 5, 200.8, 0, 0, 0), times(9, 9, 9, 9, 9, 9)],
        [times(10.61, 5.1, 100.1, 1.1, 0.1, 3.5), times(20.2, 5, 200.8, 0, 0, 0), times(9, 9, 9, 9, 9, 9)],
    ]
    own = iter([1.0, 1.3, 1.3])  # this process took 0.3 s of the 1.0 s that were busy
    monkeypatch.setattr("dynamic.monitoring.sources.cpu.usable_cores", lambda: (0, 1))
    monkeypatch.setattr("dynamic.monitoring.sources.cpu.time.process_time", lambda: next(own))
    feed = iter(readings)
    monkeypatch.setattr("dynamic.monitoring.sources.cpu.psutil.cpu_times", lambda percpu: next(feed))
    load = OtherLoad(tmp_path)  # where there is no proc/stat
    assert load().fields == {"host_load": None}
    assert load().fields["host_load"] == pytest.approx((1.0 - 0.3) / 2)
    assert load().fields["host_load"] == pytest.approx((1.0 - 0.3) / 2)  # 10 ms more is one tick: too little to tell


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
            found = load().fields
        finally:
            busy.kill()
    assert len(usable_cores()) == 1
    assert found["host_load"] > 0.7


def test_own_work_is_not_load(one_core: int) -> None:
    load = OtherLoad()
    load()
    began, cpu_began = time.perf_counter(), time.process_time()
    while time.process_time() - cpu_began < 0.4 and time.perf_counter() - began < 5:
        pass
    wall_s, own_s = time.perf_counter() - began, time.process_time() - cpu_began
    found = load().fields["host_load"]
    assert found <= 1 - own_s / wall_s + 0.15


def test_fixed_monitor_says_what_it_is_told() -> None:
    monitor = FixedMonitor(Snapshot(time_s=1.0, battery=0.9))
    monitor.set(battery=0.1, plugged=False)
    assert monitor.start().latest == Snapshot(time_s=1.0, battery=0.1, plugged=False)
    monitor.latest = Snapshot(time_s=2.0)
    assert monitor.latest.battery is None
    monitor.close()
    assert FixedMonitor().latest == Snapshot(time_s=0.0)


def test_every_function_of_the_user_is_asked() -> None:
    with Monitor(
        INTERVAL_S,
        process=lambda: 70,
        temperature=lambda: 41.5,
        power=lambda: 2300,
        frequency=lambda: 0.5,
        throttled=lambda: True,
        cpu_pressure=lambda: 0.2,
        memory_pressure=lambda: 0.1,
        battery=lambda: Battery(0.5, energy_mwh=9000),
    ) as monitor:
        assert wait_until(lambda: not {"power", "temperature", "battery", "throttled"} & set(monitor.latest.missing))
        seen = monitor.latest
    assert (seen.memory_process_mb, seen.temperature_c, seen.power_mw, seen.frequency_ratio) == (70, 41.5, 2300, 0.5)
    assert (seen.throttled, seen.cpu_pressure, seen.memory_pressure, seen.battery_mwh) == (True, 0.2, 0.1, 9000)


def test_a_source_must_be_a_function() -> None:
    with pytest.raises(SettingError, match=r"power=2300"):
        Monitor(power=2300)  # type: ignore[arg-type]


@pytest.fixture
def container(tmp_path: Path) -> Tree:
    """A container with half a core and 300 MB, of which 100 are taken, on a Pi that has been hot and is not."""
    tree, group = Tree(tmp_path), "sys/fs/cgroup/box"
    tree(
        {
            "proc/self/cgroup": "0::/box\n",
            "proc/self/mountinfo": V2_MOUNT,
            "proc/meminfo": "MemAvailable: 4000000 kB\n",
            f"{group}/memory.max": 300_000_000,
            f"{group}/memory.current": 100_000_000,
            f"{group}/cpu.max": "50000 100000\n",
            f"{group}/cpu.stat": "usage_usec 5\nnr_throttled 0\n",
            f"{group}/memory.pressure": "some avg10=25.00 avg60=0.00 avg300=0.00 total=1\n",
            "sys/devices/platform/soc/soc:firmware/get_throttled": "50000\n",
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
            "sys/class/thermal/thermal_zone0/temp": 48_312,
            "sys/class/power_supply/BAT0/type": "Battery\n",
            "sys/class/power_supply/BAT0/capacity": 42,
        }
    )
    return tree


def test_a_container_s_limits_count(container: Tree) -> None:
    with Monitor(INTERVAL_S, root=container.root) as monitor:
        assert wait_until(lambda: monitor.latest.throttled is False)
        seen = monitor.latest
        origins = {report.name: report.reading.origin for report in monitor.sources() if report.reading is not None}
    assert (seen.memory_available_mb, seen.cpu_cores, seen.memory_pressure) == (200, 0.5, 0.25)
    assert (seen.temperature_c, seen.battery, seen.throttled) == (48.312, 0.42, False)
    assert seen.missing == ("cpu_pressure", "frequency", "power")
    assert origins["memory_limit"] == str(container.root / "sys/fs/cgroup/box/memory.max")
    assert monitor.sources() == ()  # nobody reads any more


def test_what_is_forbidden_is_left_out(
    container: Tree, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    forbid(monkeypatch, container.root / "sys/fs/cgroup/box/memory.max")
    with caplog.at_level(logging.WARNING, "dynamic"), Monitor(INTERVAL_S, root=container.root) as monitor:
        assert wait_until(lambda: "memory_limit" in monitor.latest.missing)
        assert monitor.latest.memory_available_mb == 4_096  # the machine's
        assert monitor.latest.battery == 0.42
        assert wait_until(lambda: next(r for r in monitor.sources() if r.name == "memory_limit").failures >= 3)
    assert [record.getMessage() for record in caplog.records].count(
        "the monitor continues without memory_limit: [Errno 13] Permission denied: "
        f"'{container.root / 'sys/fs/cgroup/box/memory.max'}'"
    ) == 1
    assert len(caplog.records) == 1


def test_a_machine_without_anything(tmp_path: Path) -> None:
    with Monitor(INTERVAL_S, root=tmp_path) as monitor:
        assert wait_until(lambda: monitor.latest.cpu_load is not None)  # by psutil
        assert monitor.latest.missing == (
            *("battery", "cpu_pressure", "frequency", "memory_pressure", "power", "temperature", "throttled"),
        )
        problems = {report.name: report.problem for report in monitor.sources()}
    assert problems["battery"] == "no battery on this system: give Monitor(battery=function)"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_kernel_file_that_hangs_holds_up_nobody(container: Tree) -> None:
    pipe = container.root / "proc/pressure/cpu"
    pipe.parent.mkdir()
    os.mkfifo(pipe)  # to open it waits for a writer
    monitor = Monitor(INTERVAL_S, root=container.root).start()
    try:
        # the sources behind it in the row come
        assert wait_until(lambda: monitor.latest.battery == 0.42)
        assert "cpu_pressure" in monitor.latest.missing
        first = monitor.latest
        assert wait_until(lambda: monitor.latest.time_s > first.time_s + 3 * INTERVAL_S)
        monitor.close()
    finally:
        os.close(os.open(pipe, os.O_WRONLY))


Read = Callable[[], float]


def source(name: str, field: str, read: Read, apart: bool = False) -> Source:
    return Source(name, lambda: Reading({field: read()}, "test"), (field,), apart=apart)


class Desk:
    """A watch over made-up sources, and what it published last."""

    def __init__(self, *sources: Source, clock: Callable[[], float] = time.monotonic) -> None:
        self.latest = Snapshot(time_s=0.0)
        self.watch = Watch(sources, INTERVAL_S, self.publish, set(), clock)

    def publish(self, snapshot: Snapshot) -> None:
        self.latest = snapshot

    def __enter__(self) -> "Desk":
        self.watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.watch.stop()

    def problem(self, name: str) -> str | None:
        return next(report.problem for report in self.watch.reports() if report.name == name)


def test_quick_sources_share_a_thread_and_a_slow_one_gets_its_own() -> None:
    clock, threads = Clock(real=True), defaultdict[str, set[int]](set)
    slow = [True]

    def read(name: str) -> float:
        threads[name].add(threading.get_ident())
        if name == "power" and slow[0]:
            slow[0] = False
            clock.now += 2.0  # it took 2 s
        return 1.0

    sources = [
        source(name, field, lambda name=name: read(name))  # type: ignore[misc]
        for name, field in (("cpu", "cpu_load"), ("power", "power_mw"), ("frequency", "frequency_ratio"))
    ]
    with Desk(*sources, clock=clock) as desk:
        # read by one that never read the slow one
        assert wait_until(lambda: bool(threads["frequency"]) and threads["power"].isdisjoint(threads["frequency"]))
        assert wait_until(lambda: desk.latest.missing == ())
        count = len(watchers())
    assert count == 3  # one looks after the others
    assert len(threads["power"]) == 1  # it keeps its thread, the others got a new one
    assert len(threads["cpu"]) == 2


def test_a_source_that_takes_too_long_is_missing_once_its_reading_is_stale(caplog: pytest.LogCaptureFixture) -> None:
    clock, release, hangs = Clock(real=True), threading.Event(), threading.Event()

    def power() -> float:
        if hangs.is_set():
            release.wait(300)
        return 5.0

    with caplog.at_level(logging.WARNING, "dynamic"):
        desk = Desk(source("power", "power_mw", power), source("cpu", "cpu_load", lambda: 0.5), clock=clock)
        with desk:
            try:
                assert wait_until(lambda: desk.latest.power_mw == 5.0)
                hangs.set()
                clock.now += 1.5  # not stale yet, but so slow that the other goes on without it
                assert wait_until(lambda: len(watchers()) == 3)
                assert (desk.latest.power_mw, desk.latest.missing) == (5.0, ())
                clock.now += 1.5
                assert wait_until(lambda: desk.latest.missing == ("power",) and desk.latest.cpu_load == 0.5)
                assert desk.latest.power_mw is None
                assert wait_until(lambda: desk.problem("power") == "no answer for 2 s")
                hangs.clear()
                release.set()
                assert wait_until(lambda: desk.latest.power_mw == 5.0)
            finally:
                release.set()
    assert [r.getMessage() for r in caplog.records] == ["the monitor continues without power: no answer for 2 s"]


def test_nonsense_counts_as_failures_and_absence_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    def absent() -> float:
        raise AbsentError("no fan")

    with caplog.at_level(logging.INFO, "dynamic"):
        desk = Desk(source("power", "power_mw", lambda: -5), source("frequency", "frequency_ratio", absent))
        with desk:
            assert wait_until(lambda: {r.name: r.failures for r in desk.watch.reports()}["power"] >= 3)
            reports = {report.name: report for report in desk.watch.reports()}
    assert reports["power"].problem == "power_mw=-5 is not between 0 and 1e+09"
    assert (reports["frequency"].problem, reports["frequency"].failures) == ("no fan", 1)  # asked again after 10 s
    assert desk.latest.missing == ("frequency", "power")
    told = sorted((record.levelname, record.getMessage()) for record in caplog.records)
    assert told == [
        ("INFO", "the monitor continues without frequency: no fan"),
        ("WARNING", "the monitor continues without power: power_mw=-5 is not between 0 and 1e+09"),
    ]


def test_two_sources_that_fail_in_the_same_words_are_both_logged(caplog: pytest.LogCaptureFixture) -> None:
    def fails() -> float:
        raise OSError("cannot read")

    desk = Desk(source("power", "power_mw", fails), source("frequency", "frequency_ratio", fails))
    with caplog.at_level(logging.WARNING, "dynamic"), desk:
        assert wait_until(lambda: all(r.failures >= 3 for r in desk.watch.reports()))
    told = sorted(record.getMessage() for record in caplog.records)
    assert told == [f"the monitor continues without {name}: cannot read" for name in ("frequency", "power")]


def test_a_jump_of_the_battery_is_believed_the_third_time() -> None:
    given, seen = iter([0.8, 0.1, 0.8, 0.3, 0.3, 0.3]), list[float | None]()
    done = threading.Event()

    def battery() -> float:
        value = next(given, None)
        if value is None:
            done.set()
            return 0.3
        return value

    class Kept(Desk):
        def publish(self, snapshot: Snapshot) -> None:
            seen.append(snapshot.battery)

    with Kept(source("battery", "battery", battery, apart=True)):
        assert done.wait(60)
    assert seen[:6] == [0.8, 0.8, 0.8, 0.8, 0.8, 0.3]


def test_a_wall_clock_that_steps_backwards_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 0.0)
    with Monitor(INTERVAL_S, battery=lambda: 0.5) as monitor:
        assert wait_until(lambda: monitor.latest.battery == 0.5)
        first = monitor.latest
        assert wait_until(lambda: monitor.latest.time_s > first.time_s + INTERVAL_S)
        assert monitor.latest.battery == 0.5


def test_a_clock_that_steps_backwards_does_no_harm() -> None:
    clock = Clock(real=True)
    with Desk(source("cpu", "cpu_load", lambda: 0.5), clock=clock) as desk:
        assert wait_until(lambda: desk.latest.cpu_load == 0.5)
        clock.now -= 1000
        assert wait_until(lambda: desk.latest.time_s < clock.now + time.monotonic() + 1 and desk.latest.cpu_load == 0.5)


def test_the_time_of_a_snapshot_is_that_of_its_newest_reading() -> None:
    clock = Clock()  # stands still
    with Desk(source("cpu", "cpu_load", lambda: 0.5), clock=clock) as desk:
        assert wait_until(lambda: desk.latest.cpu_load == 0.5)
        assert desk.latest.time_s == 100.0
