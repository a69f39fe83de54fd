"""What simulated sensors say: rounded, noisy, absent, failing."""

from dataclasses import replace

import numpy as np
import pytest
from support.simulation_cases import PLAIN, WARM

from dynamic.policies.errors import SettingError
from dynamic.simulate import Device, Faults, Outage, Sensors
from dynamic.simulate.world.device_world import World


def sensors(device: Device, battery: float = 0.637, faults: Faults | None = None) -> Sensors:
    world = World(device, battery, 25.0, None, True)
    return Sensors(device, world, threads=1, faults=faults, random=np.random.default_rng(0))


def test_the_truth() -> None:
    found = sensors(WARM).read(3.0, 0.25, free_mb=1000.0, process_mb=110.0)
    assert found["time_s"] == 3.0
    assert (found["cpu_load"], found["cpu_cores"], found["cpu_pressure"]) == (0.25, 2.0, 0.0)
    assert (found["memory_process_mb"], found["memory_available_mb"], found["memory_pressure"]) == (110, 890, 0)
    assert found["battery"] == 0.637
    assert found["battery_mwh"] == pytest.approx(637)
    assert (found["plugged"], found["throttled"], found["frequency_ratio"]) == (False, False, 1.0)
    assert (found["temperature_c"], found["power_mw"]) == (35, 1000)
    assert found["missing"] == ()


def test_more_is_wanted_than_there_is() -> None:
    found = sensors(PLAIN).read(0.0, 3.5, free_mb=100.0, process_mb=160.0)
    assert (found["cpu_load"], found["cpu_pressure"]) == (1.0, 1.0)
    assert (found["memory_available_mb"], found["memory_pressure"]) == (0.0, pytest.approx(0.375))
    assert sensors(PLAIN).read(0.0, 0.75, free_mb=100.0, process_mb=60.0)["cpu_pressure"] == pytest.approx(0.25)


def test_readings_come_in_steps() -> None:
    device = replace(WARM, battery_step=0.01, temperature_step_c=2.0)
    found = sensors(device).read(0.0, 0.0, free_mb=100.0, process_mb=60.0)
    assert (found["battery"], found["temperature_c"]) == (pytest.approx(0.64), 36)


def test_sensors_that_are_absent_or_fail() -> None:
    device = replace(WARM, absent=("power_mw", "battery"))
    mixed = sensors(device, faults=Faults(Outage(5.0, 10.0, names=("temperature_c", "cpu_load"))))
    before, during, after = (mixed.read(t, 0.5, free_mb=100.0, process_mb=60.0) for t in (4.9, 5.0, 10.0))
    for found in (before, during, after):
        assert (found["power_mw"], found["battery"]) == (None, None)
    assert (before["missing"], after["missing"]) == ((), ())
    assert during["missing"] == ("cpu_load", "temperature_c")
    assert (during["cpu_load"], during["temperature_c"]) == (None, None)
    assert before["temperature_c"] is not None
    nothing = sensors(replace(PLAIN, battery_mwh=None)).read(0.0, 0.0, free_mb=100.0, process_mb=60.0)
    assert (nothing["battery"], nothing["battery_mwh"], nothing["plugged"], nothing["temperature_c"]) == (None,) * 4
    with pytest.raises(SettingError, match="sensor 'nose'"):
        sensors(PLAIN, faults=Faults(lambda t: ("nose",))).read(0.0, 0.0, free_mb=100.0, process_mb=60.0)


def test_noise_has_the_deviation_it_says() -> None:
    noisy = sensors(WARM, faults=Faults(temperature_sd_c=2.0, cpu_load_sd=0.05))
    found = [noisy.read(0.0, 0.5, free_mb=100.0, process_mb=60.0) for _ in range(4000)]
    temperature, load = (np.array([f[name] for f in found]) for name in ("temperature_c", "cpu_load"))
    assert temperature.mean() == pytest.approx(35, abs=0.15)
    assert temperature.std() == pytest.approx(2, rel=0.05)
    assert load.std() == pytest.approx(0.05, rel=0.05)
    assert all(0 <= noisy.read(0.0, 0.01, free_mb=100.0, process_mb=60.0)["cpu_load"] <= 1 for _ in range(100))
    with pytest.raises(SettingError):
        Faults(cpu_load_sd=-1)
