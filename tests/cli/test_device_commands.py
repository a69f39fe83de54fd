"""`record` and `doctor`, from the shell."""

import contextlib
import io
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.sensor_cases import V2_MOUNT, Tree, forbid

from dynamic.__main__ import main
from dynamic.cli.diagnosis import UNITS, Diagnosis, diagnose
from dynamic.cli.doctor import diagnosis_text
from dynamic.engines.engine_factory import ENGINES, installed
from dynamic.monitoring.monitor import TraceMonitor
from dynamic.monitoring.traces import read_trace
from dynamic.policies.control.limits import RESERVE_MB


def shell(*arguments: str | Path) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as exited:
        main([str(argument) for argument in arguments])
    return int(exited.value.code or 0), out.getvalue(), err.getvalue()


def test_record_writes_what_a_trace_monitor_reads(tmp_path: Path) -> None:
    path = tmp_path / "day.jsonl"
    path.write_text("something else")
    code, out, err = shell("record", path, "--seconds", "0.4", "--hz", "20")
    assert (code, err) == (0, "")
    trace = read_trace(path)
    assert out.startswith(f"{len(trace.snapshots)} snapshots of 0.")
    assert out.endswith(f" s: {path}\n")
    assert 2 <= len(trace.snapshots) <= 8
    times = [snapshot.time_s for snapshot in trace.snapshots]
    assert times == sorted(set(times))
    assert trace.snapshots[-1].memory_available_mb is not None
    assert set(trace.sources) >= {"cpu", "memory", "battery", "power"}
    assert TraceMonitor(path).start().latest == trace.snapshots[0]


@pytest.mark.parametrize("option", ["--seconds", "--hz"])
@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf"])
def test_record_wants_positive_numbers(tmp_path: Path, option: str, value: str) -> None:
    code, _, err = shell("record", tmp_path / "x", f"{option}={value}")
    assert (code, err.count("\n")) == (2, 1)
    assert option in err
    assert not (tmp_path / "x").exists()


def test_record_where_nothing_can_be_written(tmp_path: Path) -> None:
    code, _, err = shell("record", tmp_path / "no folder" / "x")
    assert (code, err.count("\n")) == (1, 1)


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal")
def test_an_interrupt_ends_a_recording_with_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "day.jsonl"
    command = [sys.executable, "-m", "dynamic", "record", str(path), "--seconds", "600", "--hz", "50"]
    # a shell that runs this in the background has interrupts ignored, and children inherit that
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heard
    ) as process:
        try:
            while process.poll() is None and (not path.exists() or path.read_text().count("\n") < 4):
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=120)
        finally:
            process.kill()
    assert (process.returncode, err) == (0, "")
    assert path.read_text().endswith("}\n")
    assert out.startswith(f"{len(read_trace(path).snapshots)} snapshots")


@pytest.fixture(scope="module")
def found() -> Diagnosis:
    return diagnose()


def test_doctor_of_this_machine(found: Diagnosis) -> None:
    assert [engine.name for engine in found.engines] == list(ENGINES)
    assert tuple(engine.name for engine in found.engines if engine.installed) == installed()
    for engine in found.engines:
        if engine.problem is None:
            assert engine.version
            assert "f32" in engine.precisions
    sensors = {sensor.field: sensor for sensor in found.sensors}
    assert list(sensors) == list(UNITS)
    for sensor in found.sensors:
        assert (sensor.value is None) == (sensor.origin is None) == (sensor.problem is not None)
    assert sensors["memory_available_mb"].value is not None
    assert found.limits.reserve_mb == RESERVE_MB


def test_doctor_prints_every_line(found: Diagnosis) -> None:
    text = diagnosis_text(found)
    for name in (*ENGINES, *UNITS, found.machine):
        assert name in text
    for line in found.missing:
        assert f"  {line}" in text.splitlines()
    assert "nothing is missing" in diagnosis_text(replace(found, missing=()))


def test_doctor_as_json_without_torch() -> None:
    code = (
        "import sys\nfrom dynamic.__main__ import main\n"
        "try: main(['doctor', '--json'])\nexcept SystemExit: print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "False\n"
    assert set(json.loads(done.stdout)) == {
        *("machine", "version", "engines", "sensors", "limits", "missing", "not_believed")
    }


def test_doctor_in_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree, group = Tree(tmp_path), "sys/fs/cgroup/box"
    tree(
        {
            "proc/self/cgroup": "0::/box\n",
            "proc/self/mountinfo": V2_MOUNT,
            "proc/meminfo": "MemAvailable: 4000000 kB\n",
            f"{group}/memory.max": 300_000_000,
            f"{group}/memory.current": 100_000_000,
            f"{group}/cpu.max": "50000 100000\n",
            "sys/class/power_supply/BAT0/type": "Battery\n",
            "sys/class/power_supply/BAT0/capacity": 42,
            "sys/class/power_supply/BAT0/status": "Discharging\n",
        }
    )
    found = diagnose(tmp_path, patience_s=0.3)
    sensors = {sensor.field: sensor for sensor in found.sensors}
    assert (sensors["battery"].value, sensors["battery"].origin) == (0.42, "power_supply BAT0")
    assert sensors["memory_available_mb"].value == 200
    assert sensors["memory_available_mb"].origin == f"{tmp_path}/proc/meminfo, {tmp_path}/{group}/memory.max"
    assert sensors["battery_mwh"].problem == "its source has no value"
    assert sensors["temperature_c"].problem is not None
    assert (found.limits.quota_cores, found.limits.memory_mb, found.limits.problem) == (0.5, 300, None)
    assert any(line.startswith("temperature: ") and "Monitor(temperature=function)" in line for line in found.missing)
    text = diagnosis_text(found)
    assert "quota 0.5 (" in text
    assert "memory: limit 300 MB (" in text
    assert any(line.split()[:2] == ["plugged", "no"] for line in text.splitlines())

    forbid(monkeypatch, tmp_path / group / "memory.max")
    forbidden = diagnose(tmp_path, patience_s=0.3)
    assert forbidden.limits.problem is not None
    assert "Permission denied" in forbidden.limits.problem
    assert any(line.startswith("memory_limit: ") for line in forbidden.missing)
    assert "limits that could not be read: " in diagnosis_text(forbidden)


def test_doctor_of_engines_that_are_not_there_or_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(precisions: Any) -> Any:
        raise ImportError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr(
        "dynamic.engines.engine_factory.find_spec", lambda name: None if name == "openvino" else object()
    )
    monkeypatch.setattr("dynamic.cli.engine_state._CHECKS", {"onnxruntime": broken})
    found = diagnose(tmp_path, patience_s=0.0)
    engines = {engine.name: engine for engine in found.engines}
    assert (engines["openvino"].installed, engines["openvino"].precisions) == (False, ())
    assert "engine openvino: not installed: pip install 'dynamic-inference[openvino]'" in found.missing
    assert engines["onnxruntime"].installed
    assert engines["onnxruntime"].problem is not None
    assert "libgomp" in engines["onnxruntime"].problem
