"""Battery, heat and clock against their formulas."""

import math
from dataclasses import replace

import pytest
from support.simulation_cases import PLAIN, WARM

from dynamic.simulate.world.device_world import World


def test_a_battery_lasts_capacity_over_power() -> None:
    # 1 mWh at 100 mW: 36 s
    world = World(PLAIN, 1.0, 25.0, None, True)
    world.settle(35.9, 0.0)
    assert not world.empty
    assert world.battery == pytest.approx(0.1 / 36)
    world.settle(40.0, 0.0)
    assert world.empty
    assert world.time_s == pytest.approx(36)
    assert world.used_mj == pytest.approx(3600)


def test_energy_is_split() -> None:
    device = replace(PLAIN, screen_mw=50)
    world = World(device, 1.0, 25.0, None, True)
    world.settle(2.0, 300.0)
    assert (world.idle_mj, world.screen_mj, world.inference_mj) == (200, 100, 300)
    assert world.power_mw == 300
    dark = World(device, 1.0, 25.0, None, False)
    dark.settle(2.0, 0.0)
    assert dark.used_mj == 200


def test_charging_stops_when_full_and_costs_no_battery() -> None:
    world = World(replace(PLAIN, charging_mw=360), 0.5, 25.0, None, True)
    world.plugged = True
    world.settle(1.0, 500.0)
    assert world.battery == pytest.approx(0.5 + 360 / 3600)
    world.settle(100.0, 0.0)
    assert world.battery == 1.0
    assert world.used_mj == pytest.approx(100 * 100 + 500)


def test_no_battery_never_ends() -> None:
    world = World(replace(PLAIN, battery_mwh=None), 1.0, 25.0, None, True)
    world.settle(1e6, 0.0)
    assert not world.empty
    assert (world.battery, world.left_mj) == (None, None)


def test_temperature_follows_its_time_constant() -> None:
    # idle at 1 W and 10 C/W: 35 C. With 2 W more it ends at 55 C, with R C = 10 s
    world = World(WARM, 1.0, 25.0, None, True)
    assert world.temperature_c == pytest.approx(35)
    world.settle(10.0, 2000 * 10.0)
    assert world.temperature_c == pytest.approx(55 - 20 / math.e)
    for second in range(11, 200):
        world.settle(float(second), 2000.0)
    assert world.temperature_c == pytest.approx(55)
    world.ambient_c = 30.0
    world.settle(400.0, 0.0)
    assert world.temperature_c == pytest.approx(40)
    assert world.hottest_c == pytest.approx(55)
    assert World(WARM, 1.0, 25.0, 50.0, True).temperature_c == 50


def test_the_clock_goes_down_and_up_one_step_at_a_time() -> None:
    device = replace(WARM, frequency_steps=(1.0, 0.8, 0.5), throttle_c=50.0, hysteresis_c=4.0)
    world = World(device, 1.0, 25.0, 49.0, True)
    seen = []
    for second in range(1, 8):
        world.settle(float(second), 4000.0)  # ends at 75 C
        world.govern()
        seen.append(world.frequency)
    assert seen[:3] == [0.8, 0.5, 0.5]
    assert world.active_mw == pytest.approx(2000 * 0.5**2)
    assert world.throttled_s == pytest.approx(6)
    held = []
    while world.frequency < 1:
        world.settle(world.time_s + 1.0, 0.0)
        held.append((world.temperature_c, world.frequency))
        world.govern()
    # it waits for 46 C, not for 50, and takes two looks for two steps
    assert world.temperature_c is not None
    assert all(c >= 46 for c, _ in held[:-2])
    assert [f for _, f in held[-2:]] == [0.5, 0.8]
    # looked at more often it does not change faster
    world.settle(world.time_s + 0.1, 0.0)
    world.temperature_c = 60.0
    world.govern()
    assert world.frequency == 1.0
