"""Batteries in the field: sources that contradict each other, bad members, and what is no battery."""

import errno
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.device_trees import reasons, refuse_with, supply
from support.sensor_cases import Clock, Tree

from dynamic.monitoring.contract import AbsentError
from dynamic.monitoring.sources.supply import BatteryLevel

SUPPLY = "sys/class/power_supply"


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


@pytest.mark.parametrize(
    ("batteries", "mains", "expected"),
    [
        (["Charging"], {"AC": ("Mains", 0)}, True),  # by a pad, or by USB-C that the kernel does not show
        (["Discharging"], {"ucsi0": ("USB", 1)}, False),  # stale: AsahiLinux/linux#626
        (["Discharging"], {"AC": ("Mains", 1), "ucsi0": ("USB_PD", 1)}, False),
        (["Full"], {"AC": ("Mains", 0)}, False),  # just pulled out
        (["Full"], {"usb": ("USB", 0), "wireless": ("Wireless", 1)}, True),
        (["Not charging"], {"usb": ("USB", 0)}, False),  # so some phones call it without a charger
        (["Not charging"], {"AC": ("Mains", 1)}, True),  # held at 80%
        (["Not charging"], {}, True),
        (["Unknown"], {"AC": ("Mains", 1)}, True),
        ([""], {"AC": ("Mains", 1)}, True),
        (["Unknown"], {"AC": ("Mains", 0)}, False),
        (["Unknown"], {"wireless": ("Wireless", 1), "usb": ("USB", 0)}, True),
        (["Unknown"], {"apple": ("BrickID", 1)}, True),
        (["Unknown"], {"AC": ("Mains", "broken"), "usb": ("USB", 1)}, True),
        (["Discharging", "Not charging"], {}, False),  # two batteries, of which one rests
        (["Discharging", "Full"], {"AC": ("Mains", 1)}, False),
        (["Charging", "Unknown"], {"AC": ("Mains", 0)}, True),
        (["Charging", "Discharging"], {"AC": ("Mains", 1)}, True),  # one is being emptied on purpose
        (["Charging", "Discharging"], {"AC": ("Mains", 0)}, False),  # one charges the other
        (["Charging", "Discharging"], {}, False),
    ],
)
def test_the_battery_s_own_status_decides(
    tree: Tree, batteries: list[str], mains: dict[str, tuple[str, Any]], expected: bool
) -> None:
    for number, status in enumerate(batteries):
        tree(supply(f"BAT{number}", "Battery", status=status, capacity=9))
    for name, (kind, online) in mains.items():
        tree(supply(name, kind, online=online))
    fields = BatteryLevel(tree.root)().fields
    assert (fields["battery"], fields["plugged"]) == (0.09, expected)


def test_a_battery_that_is_taken_out_rules_no_longer(tree: Tree) -> None:
    clock = Clock()
    tree(supply("BAT0", "Battery", status="Discharging", capacity=9))
    source = BatteryLevel(tree.root, clock)
    assert source().fields["plugged"] is False
    shutil.rmtree(tree.root / SUPPLY / "BAT0")
    clock.now += 11
    # whatever runs without a battery runs on the mains: a floor no longer applies
    assert source().fields == {"battery": None, "battery_mwh": None, "plugged": True}


@pytest.mark.parametrize("status", ["Discharging", "Unknown"])
@pytest.mark.parametrize(("level", "still_s"), [(50, 7200), (0, 900)])
def test_a_battery_that_never_changes_is_none(tree: Tree, level: int, still_s: int, status: str) -> None:
    # BOINC#1284, BOINC#5305: boxes without a battery whose kernel shows one
    clock = Clock()
    tree(supply("battery", "Battery", status=status, capacity=level, present=1))
    source = BatteryLevel(tree.root, clock)
    plugged = False if status == "Discharging" else None
    assert source().fields == {"battery": level / 100, "battery_mwh": None, "plugged": plugged}
    clock.now += still_s - 1
    assert source().fields["battery"] == level / 100
    clock.now += 2
    reading = source()
    assert reading.fields == {"battery": None, "battery_mwh": None, "plugged": True}
    assert "battery: its figures have not changed" in reasons(reading)
    tree(supply("battery", "Battery", status="Discharging", capacity=40))
    assert source().fields == {"battery": 0.4, "battery_mwh": None, "plugged": False}  # it is one after all


def test_a_battery_that_changes_is_one_however_slowly(tree: Tree) -> None:
    clock = Clock()
    source = BatteryLevel(tree.root, clock)
    for voltage in range(3_800_000, 3_799_990, -1):
        tree(supply("BAT0", "Battery", status="Discharging", capacity=50, voltage_now=voltage))
        assert source().fields["plugged"] is False
        clock.now += 7000


@pytest.mark.parametrize("status", ["Charging", "Full", "Not charging"])
def test_a_battery_on_the_mains_may_rest(tree: Tree, status: str) -> None:
    clock = Clock()
    tree(supply("BAT0", "Battery", status=status, capacity=80))
    source = BatteryLevel(tree.root, clock)
    for _ in range(5):
        assert source().fields == {"battery": 0.8, "battery_mwh": None, "plugged": True}
        clock.now += 7000


def test_one_of_two_batteries_may_rest(tree: Tree) -> None:
    clock = Clock()
    tree(supply("BAT1", "Battery", status="Unknown", capacity=100))
    source = BatteryLevel(tree.root, clock)
    for level in range(90, 80, -2):
        tree(supply("BAT0", "Battery", status="Discharging", capacity=level))
        assert source().fields["battery"] == pytest.approx((1 + level / 100) / 2)
        clock.now += 7000


def test_an_empty_slot_that_says_it_is_a_battery(tree: Tree) -> None:
    tree(supply("BAT0", "Battery", status="Discharging", capacity=0, voltage_now=0))
    with pytest.raises(AbsentError):
        BatteryLevel(tree.root)()
    tree(supply("BAT1", "Battery", status="Charging", capacity=70, voltage_now=12_000_000))
    reading = BatteryLevel(tree.root)()
    assert (reading.fields["battery"], reading.fields["plugged"]) == (0.7, True)
    assert "BAT0" in reasons(reading)


@pytest.mark.parametrize(
    "name", ["hidpp_battery_0", "wacom_battery_3", "ps-controller-battery-00:1f:e2", "hid-00:1f-battery"]
)
def test_the_battery_of_a_peripheral_is_none_of_the_device(tree: Tree, name: str) -> None:
    tree(supply(name, "Battery", status="Discharging", capacity=5))
    with pytest.raises(AbsentError):
        BatteryLevel(tree.root)()
    tree(supply("BAT0", "Battery", status="Charging", capacity=70))
    assert BatteryLevel(tree.root)().fields == {"battery": 0.7, "battery_mwh": None, "plugged": True}


def test_a_peripheral_by_the_bus_it_is_on(tree: Tree) -> None:
    device = "sys/devices/pci0/usb1/0003:046D:C52B.0003/power_supply/mouse"
    tree({f"{device}/type": "Battery\n", f"{device}/capacity": 5, f"{SUPPLY}/AC/type": "Mains\n"})
    (tree.root / SUPPLY / "mouse").symlink_to(tree.root / device)
    with pytest.raises(AbsentError):
        BatteryLevel(tree.root)()


def test_a_battery_of_minus_one_beside_a_good_one(tree: Tree) -> None:
    tree(supply("BAT0", "Battery", status="Unknown", capacity=-1))
    tree(supply("BAT1", "Battery", status="Discharging", capacity=60))
    reading = BatteryLevel(tree.root)()
    assert (reading.fields["battery"], reading.fields["plugged"]) == (0.6, False)
    assert "BAT0" in reasons(reading)
    assert "-1" in reasons(reading)
    assert reading.origin == "power_supply BAT1"


@pytest.mark.parametrize(("percent", "level"), [(101, 1.0), (107, 1.0), (117, 1.0), (120, 1.0), (99, 0.99)])
def test_a_little_over_full_is_full(tree: Tree, percent: int, level: float) -> None:
    tree(supply("BAT0", "Battery", status="Full", capacity=percent))  # psutil#1785
    assert BatteryLevel(tree.root)().fields["battery"] == level


def test_more_energy_than_the_gauge_calls_full_is_full(tree: Tree) -> None:
    tree(supply("BAT0", "Battery", energy_now=58_500_000, energy_full=50_000_000))
    tree(supply("BAT1", "Battery", energy_now=25_000_000, energy_full=50_000_000))
    assert BatteryLevel(tree.root)().fields["battery"] == 0.75


@pytest.mark.parametrize("percent", [-1, 200, 255, 65535])
def test_nonsense_of_the_only_battery_is_an_error(tree: Tree, percent: int) -> None:
    tree(supply("BAT0", "Battery", capacity=percent))
    with pytest.raises(ValueError, match=str(percent)):
        BatteryLevel(tree.root)()
    # unless it knows its energy
    tree(supply("BAT0", "Battery", energy_now=30_000_000, energy_full=60_000_000))
    reading = BatteryLevel(tree.root)()
    assert reading.fields["battery"] == 0.5
    assert str(percent) in reasons(reading)


@pytest.mark.parametrize("wrong", ["energy_now", "energy_full", "capacity", "status", "type", "scope", "present"])
def test_a_battery_whose_files_do_not_answer(tree: Tree, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    for number in (0, 1):
        tree(
            supply(
                f"BAT{number}",
                "Battery",
                **{"status": "Discharging", "capacity": 40, "scope": "System", "present": 1},
                **{"energy_now": 20_000_000, "energy_full": 50_000_000},
            )
        )
    refuse_with(monkeypatch, errno.EIO, tree.root / SUPPLY / "BAT0" / wrong)
    fields = BatteryLevel(tree.root)().fields
    assert (fields["battery"], fields["plugged"]) == (pytest.approx(0.4), False)


def test_garbage_in_one_battery_s_energy_costs_the_energy_alone(tree: Tree) -> None:
    tree(supply("BAT0", "Battery", capacity=40, energy_now="what"))
    reading = BatteryLevel(tree.root)()
    assert reading.fields == {"battery": 0.4, "battery_mwh": None, "plugged": None}
    assert "energy_now" in reasons(reading)


@pytest.mark.parametrize(
    ("attributes", "mwh"),
    [
        ({"energy_now": -5}, None),
        ({"energy_now": 0}, None),  # at 60%
        ({"charge_now": 2_000_000, "voltage_now": 0}, None),
        ({"energy_now": 4_294_967_295_000_000}, None),
        ({"energy_now": 30_000_000}, 30_000),
    ],
)
def test_an_energy_that_cannot_be(tree: Tree, attributes: dict[str, int], mwh: float | None) -> None:
    tree(supply("BAT0", "Battery", status="Discharging", capacity=60, **attributes))
    fields = BatteryLevel(tree.root)().fields
    assert fields == {"battery": 0.6, "battery_mwh": mwh, "plugged": False}
