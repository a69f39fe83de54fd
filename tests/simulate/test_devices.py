"""Devices that come along, and what a device checks."""

from dataclasses import replace

import pytest
from support.simulation_cases import COSTS, PLAIN, WARM

from dynamic.policies.errors import SettingError
from dynamic.simulate import devices


def test_the_five_that_come_along_are_plausible() -> None:
    found = devices()
    assert list(found) == ["raspberry-pi-5-power-bank", "jetson-orin-nano", "mid-range-phone", "laptop", "cloud-vm"]
    assert [name for name, one in found.items() if one.battery_mwh is None] == ["cloud-vm"]
    for name, one in found.items():
        assert set(one.source) <= set(vars(one)), name
        if one.throttle_c is None:
            continue
        assert one.resistance_c_per_w is not None
        idle_c = one.ambient_c + one.resistance_c_per_w * (one.idle_mw + one.screen_mw) / 1e3
        assert idle_c < one.throttle_c - one.hysteresis_c, name  # it is not throttled while it does nothing


def test_energies_and_idle_power_are_the_model_s() -> None:
    slow = replace(PLAIN, relative_speed=0.5, screen_mw=300)
    found = slow.costs(replace(COSTS, not_measured=("energy", "idle power", "more")))
    assert found.latency_ms == ((40.0,), (80.0,))
    assert found.energy_mj == ((40.0,), (80.0,))  # at 1 W
    assert (found.energy_source, found.idle_mw, found.not_measured) == ("model", 400, ("more",))


def test_what_is_given_needs_a_source() -> None:
    for name, value in (("screen_mw", 5.0), ("load_ms_per_mb", 1.0), ("absent", ("battery",)), ("battery_step", 0.01)):
        sources = {k: v for k, v in PLAIN.source.items() if k != name}
        with pytest.raises(SettingError, match=f"no source for \\['{name}'\\]"):
            replace(PLAIN, source=sources, **{name: value})
        replace(PLAIN, source=sources)


def test_figures_are_checked() -> None:
    for fields, match in (
        ({"frequency_steps": (1.0, 1.0)}, "must fall from 1"),
        ({"frequency_steps": (0.9, 0.5)}, "must fall from 1"),
        ({"frequency_steps": ()}, "must fall from 1"),
        ({"screen_mw": -1}, "not negative"),
        ({"battery_mwh": 0}, "positive"),
        ({"relative_speed": float("nan")}, "positive"),
        ({"capacity_j_per_c": None}, "both"),
        ({"absent": ("nose",)}, "'nose', which no snapshot has"),
        ({"resistance_c_per_w": None, "capacity_j_per_c": None, "throttle_c": 50.0}, "throttle_c"),
    ):
        with pytest.raises(SettingError, match=match):
            replace(WARM, **fields)  # type: ignore[arg-type]
