"""Limits that no sensor of the device can follow: said when the budget is set, in the reason, and in `stats()`."""

import logging
import threading
from pathlib import Path
from typing import Any

import pytest
from support.runtime_cases import X, faked, monitor, shared_blobs
from support.sensor_cases import V2_MOUNT, Tree, wait_until

import dynamic
from dynamic.monitoring.contract import AbsentError
from dynamic.monitoring.monitor import Monitor
from dynamic.policies.control.feasibility import unmeasured
from dynamic.policies.snapshot import Snapshot
from dynamic.report.run_tables import run_text

LIMITS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"battery_floor": 0.2}, {"battery": 0.8}),
    ({"battery_duration_s": 3600.0}, {"battery": 0.8}),
    ({"temperature_c": 70.0}, {"temperature_c": 40.0}),
    ({"memory_mb": 500.0}, {"memory_process_mb": 100.0}),
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> dynamic.Bundle:
    return shared_blobs(tmp_path_factory)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.mark.parametrize(("limit", "sensor"), LIMITS)
def test_a_limit_without_its_sensor_is_said(
    bundle: dynamic.Bundle, caplog: pytest.LogCaptureFixture, limit: dict[str, Any], sensor: dict[str, Any]
) -> None:
    (name,) = limit
    watch = monitor()
    with faked(bundle, budget=dynamic.Budget(**limit), monitor=watch) as run:
        (message,) = warnings(caplog)
        assert f"{name}={limit[name]:g}" in message
        assert "cannot be kept" in message
        answer = run(X)
        assert name in answer.decision.reason
        assert "no sensor" in answer.decision.reason
        assert "No limit excludes a point" not in answer.decision.reason
        (line,) = run.stats().limits_without_sensor
        assert name in line
        run.budget = dynamic.Budget(**limit, max_drop=0.5)  # the same again is no news
        run(X)
        assert len(warnings(caplog)) == 1
        watch.set(time_s=1.0, **sensor)  # a sensor that answers later
        assert "no sensor" not in run(X).decision.reason
        assert run.stats().limits_without_sensor == ()


@pytest.mark.parametrize(("limit", "sensor"), LIMITS)
def test_a_limit_with_its_sensor_is_not_said(
    bundle: dynamic.Bundle, caplog: pytest.LogCaptureFixture, limit: dict[str, Any], sensor: dict[str, Any]
) -> None:
    with faked(bundle, budget=dynamic.Budget(**limit), monitor=monitor(**sensor)) as run:
        assert "no sensor" not in run(X).decision.reason
        assert run.stats().limits_without_sensor == ()
        assert warnings(caplog) == []


def test_several_limits_are_one_warning(bundle: dynamic.Bundle, caplog: pytest.LogCaptureFixture) -> None:
    with faked(bundle) as run:
        assert warnings(caplog) == []
        run.budget = dynamic.Budget(battery_floor=0.2, battery_duration_s=60, temperature_c=70, latency_ms=5)
        (message,) = warnings(caplog)
        assert all(name in message for name in ("battery_floor=0.2", "battery_duration_s=60", "temperature_c=70"))
        assert "latency_ms" not in message
        assert len(run.stats().limits_without_sensor) == 3
        reason = run(X).decision.reason
        assert all(name in reason for name in ("battery_floor", "battery_duration_s", "temperature_c"))


def test_on_the_mains_a_floor_needs_no_battery() -> None:
    budget = dynamic.Budget(battery_floor=0.2, battery_duration_s=60)
    assert unmeasured(budget, Snapshot(time_s=0.0, plugged=True)) == ()
    assert len(unmeasured(budget, Snapshot(time_s=0.0))) == 2
    assert len(unmeasured(budget, Snapshot(time_s=0.0, battery=float("nan")))) == 2


def test_the_warning_says_why_and_what_to_do(
    bundle: dynamic.Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tree = Tree(tmp_path)
    tree({"sys/class/thermal/thermal_zone0/type": "cpu-thermal\n", "sys/class/thermal/thermal_zone0/temp": 127_000})
    budget = dynamic.Budget(battery_floor=0.2, temperature_c=70)
    with Monitor(5.0, root=tmp_path) as watch, faked(bundle, budget=budget, monitor=watch) as run:
        message = warnings(caplog)[-1]
        assert "give Monitor(battery=function)" in message
        assert "127 degrees" in message
        assert len(run.stats().limits_without_sensor) == 2


def test_a_sensor_that_has_not_answered_yet_is_no_missing_one(
    bundle: dynamic.Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    release = threading.Event()

    def battery() -> float:
        release.wait(120)
        return 0.5

    with Monitor(0.02, battery=battery, root=tmp_path) as watch:
        try:
            with faked(bundle, budget=dynamic.Budget(battery_floor=0.2), monitor=watch) as run:
                assert not [message for message in warnings(caplog) if "cannot be kept" in message]
                assert "no sensor" in run(X).decision.reason
        finally:
            release.set()


def test_a_sensor_that_is_absent_after_all_is_warned_of_once(
    bundle: dynamic.Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    release = threading.Event()

    def battery() -> float:
        release.wait(120)
        raise AbsentError("no battery")

    def said() -> list[str]:
        return [message for message in warnings(caplog) if "cannot be kept" in message]

    budget, watch = dynamic.Budget(battery_floor=0.2), Monitor(0.02, battery=battery, root=tmp_path)
    with watch, faked(bundle, budget=budget, monitor=watch) as run:
        run(X)
        assert not said()
        release.set()
        assert wait_until(lambda: bool(run(X).id and said()))
        for _ in range(20):
            run(X)
        assert len(said()) == 1
        assert "no battery" in said()[0]


def test_a_run_s_summary_has_a_line_for_it(bundle: dynamic.Bundle) -> None:
    with faked(bundle, budget=dynamic.Budget(temperature_c=70)) as run:
        run(X)
        text = run_text(run.stats(), [1.0], [], ["a", "b"])
    assert any("temperature_c=70" in line for line in text.splitlines())


def supply(name: str, kind: str, **files: str | int) -> dict[str, str | int]:
    folder = f"sys/class/power_supply/{name}"
    return {f"{folder}/{key}": f"{value}\n" for key, value in ({"type": kind} | files).items()}


@pytest.mark.parametrize(
    ("files", "point"),
    [
        # a USB supply that is stale: the floor holds
        (supply("BAT0", "Battery", status="Discharging", capacity=9) | supply("usb", "USB", online=1), "small"),
        # a charging pad that no supply shows: there is no need to save
        (supply("BAT0", "Battery", status="Charging", capacity=9) | supply("AC", "Mains", online=0), "reference"),
        (supply("BAT0", "Battery", capacity=-1) | supply("BAT1", "Battery", capacity=60), "reference"),
    ],
)
def test_the_floor_follows_what_is_believed(
    bundle: dynamic.Bundle, tmp_path: Path, files: dict[str, str | int], point: str
) -> None:
    Tree(tmp_path)(files)
    budget = dynamic.Budget(battery_floor=0.5)
    with Monitor(5.0, root=tmp_path) as watch, faked(bundle, budget=budget, monitor=watch) as run:
        assert run(X).decision.point.name == point


def test_a_container_full_of_clean_file_pages_has_room(bundle: dynamic.Bundle, tmp_path: Path) -> None:
    group = "sys/fs/cgroup/box"
    Tree(tmp_path)(
        {
            "proc/meminfo": "MemTotal: 8000000 kB\nMemAvailable: 4000000 kB\n",
            "proc/self/statm": "999 1000 5 5\n",
            "proc/self/cgroup": "0::/box\n",
            "proc/self/mountinfo": V2_MOUNT,
            f"{group}/memory.max": 512_000_000,
            f"{group}/memory.current": 505_000_000,
            f"{group}/memory.stat": "anon 130000000\nfile 375000000\ninactive_file 0\nactive_file 375000000\n",
        }
    )
    with Monitor(5.0, root=tmp_path) as watch, faked(bundle, monitor=watch) as run:
        decision = run(X).decision
    assert (decision.feasible, decision.point.name) == (True, "reference")


def test_a_monitor_that_does_not_start_keeps_no_runtime_from_opening(
    bundle: dynamic.Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(dynamic.FixedMonitor):
        def start(self) -> Any:
            raise OSError(5, "Input/output error", "/dev/i2c-1")

    with bundle.runtime(dynamic.Budget(), monitor=Broken()) as run:
        assert len(run(X).label) == 1
    (message,) = warnings(caplog)
    assert "monitor Broken did not start" in message


def test_a_runtime_without_threads_for_its_sensors_answers(
    bundle: dynamic.Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if thread.name == "dynamic-monitor":
            raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    with Monitor(root=tmp_path) as watch, faked(bundle, monitor=watch, budget=dynamic.Budget(battery_floor=0.2)) as run:
        assert run(X).label.tolist() == [0]
        assert "battery" in run(X).decision.reason
