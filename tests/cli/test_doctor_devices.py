"""`python -m dynamic doctor` on five devices: what is there, what is missing, and what was not believed."""

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.device_trees import Files, laptop, lxc, phone, pod, raspberry_pi, refuse_on_phone
from support.sensor_cases import Tree

from dynamic.__main__ import main


@pytest.fixture
def doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Files], tuple[dict[str, Any], str]]:
    """Runs the command on a tree: (JSON, text)."""
    monkeypatch.setattr("dynamic.cli.diagnosis._PATIENCE_S", 0.3)
    monkeypatch.setattr("dynamic.monitoring.sources.cpu.usable_cores", lambda: tuple(range(4)))
    monkeypatch.setattr("dynamic.cli.diagnosis.usable_cores", lambda: tuple(range(4)))

    def run(files: Files) -> tuple[dict[str, Any], str]:
        Tree(tmp_path)(files)
        texts = []
        for more in (["--json"], []):
            out = io.StringIO()
            with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as exited:
                main(["doctor", "--root", str(tmp_path), *more])
            assert not exited.value.code
            texts.append(out.getvalue())
        diagnosis = json.loads(texts[0])
        for line in (*diagnosis["missing"], *diagnosis["not_believed"]):
            assert f"  {line}" in texts[1].splitlines()
        return diagnosis, texts[1]

    return run


Doctor = Callable[[Files], tuple[dict[str, Any], str]]


def values(diagnosis: dict[str, Any]) -> dict[str, Any]:
    return {sensor["field"]: sensor["value"] for sensor in diagnosis["sensors"] if sensor["value"] is not None}


def absent(diagnosis: dict[str, Any]) -> set[str]:
    """Names of the sources that are missing."""
    lines = [line for line in diagnosis["missing"] if not line.startswith("engine ")]
    return {name for line in lines for name in line.partition(":")[0].split(", ")}


def doubted(diagnosis: dict[str, Any]) -> str:
    return "\n".join(diagnosis["not_believed"])


def test_a_raspberry_pi(doctor: Doctor, tmp_path: Path) -> None:
    diagnosis, text = doctor(raspberry_pi())
    readings = values(diagnosis)
    assert (readings["temperature_c"], readings["throttled"]) == (61.322, True)
    assert readings["frequency_ratio"] == pytest.approx(1500 / 1800)
    assert readings["memory_available_mb"] == 3072
    assert absent(diagnosis) == {"battery", "power", "cpu_pressure", "memory_pressure"}
    assert "no valid battery (hat: has no charge and no voltage: an empty slot)" in text
    assert "psi=1" in text
    assert diagnosis["not_believed"] == []
    assert "every reading is believed" in text
    assert "memory: no limit" in text


def test_a_laptop_with_two_batteries(doctor: Doctor) -> None:
    diagnosis, text = doctor(laptop())
    readings = values(diagnosis)
    assert (readings["battery"], readings["battery_mwh"], readings["plugged"]) == (0.6, 30_000, False)
    assert (readings["power_mw"], readings["temperature_c"]) == (8250, 55)
    assert readings["frequency_ratio"] == pytest.approx(0.625)
    assert readings["cpu_pressure"] == pytest.approx(0.015)
    assert absent(diagnosis) == set()
    assert "nothing is missing" in text or "missing:\n  engine" in text
    for words in (
        "battery: BAT0: capacity -1% is impossible",
        "battery: ucsi-source-psy-USBC000:001: online=1, while the battery says Discharging",
        "frequency: policy2:",
        "Tctl",
    ):
        assert words in doubted(diagnosis)
    assert "from" in text
    assert "power_supply BAT1" in text


def test_an_lxc_container(doctor: Doctor) -> None:
    diagnosis, text = doctor(lxc())
    readings = values(diagnosis)
    assert (readings["cpu_pressure"], readings["temperature_c"]) == (0.2, 45)
    assert {"cpu_limit", "memory_limit", "memory_pressure", "battery"} <= absent(diagnosis)
    assert "limits of a container cannot be determined" in diagnosis["limits"]["problem"]
    assert "limits that could not be read: limits of a container cannot be determined" in text
    assert "memory: no limit that can be read" in text
    assert text.count("/../..") == 2  # once among the limits, once among what is missing
    assert "memory_pressure: " in text
    (line,) = diagnosis["not_believed"]
    assert line.startswith("temperature: ")
    assert "thermal_zone1/temp: 0 degrees" in line


def test_a_kubernetes_pod(doctor: Doctor) -> None:
    diagnosis, text = doctor(pod())
    readings = values(diagnosis)
    assert readings["memory_available_mb"] == 382  # 512 - (505 - 375)
    assert (readings["cpu_cores"], readings["cpu_pressure"]) == (0.5, 0.37)
    limits = diagnosis["limits"]
    assert (limits["memory_mb"], limits["quota_cores"], limits["problem"]) == (512, 0.5, None)
    assert "memory: limit 512 MB" in text
    assert "quota 0.5" in text
    assert {"battery", "temperature", "frequency", "power"} <= absent(diagnosis)
    (line,) = diagnosis["not_believed"]
    assert line.startswith("memory_limit: ")
    assert "memory.high" in line
    assert "'what'" in line


def test_an_android_phone(doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_on_phone(monkeypatch, tmp_path)
    diagnosis, text = doctor(phone())
    readings = values(diagnosis)
    assert (readings["battery"], readings["plugged"]) == (1.0, True)
    assert readings["battery_mwh"] == pytest.approx(4000 * 4.3)
    assert (readings["temperature_c"], readings["frequency_ratio"]) == (45.1, 0.5)
    assert {"cpu", "power", "throttled"} <= absent(diagnosis)
    assert "cpu_load" not in readings
    assert any("Permission denied" in line and "proc/stat" in line for line in diagnosis["missing"])
    for words in (
        "frequency: policy7: Device or resource busy",
        "0.099 degrees",
        "127 degrees",
        "battery: usb: online=0, while the battery says Charging",
    ):
        assert words in doubted(diagnosis)
    assert diagnosis["limits"]["problem"] is None
    assert "not believed:" in text


def test_a_root_that_is_no_folder(tmp_path: Path) -> None:
    err = io.StringIO()
    with contextlib.redirect_stderr(err), pytest.raises(SystemExit) as exited:
        main(["doctor", "--root", str(tmp_path / "nothing")])
    assert exited.value.code == 1
    assert err.getvalue().startswith("error: --root ")
