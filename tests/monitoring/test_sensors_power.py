"""Batteries and power, from files as the kernel writes them."""

from pathlib import Path

import pytest
from support.sensor_cases import Clock, Tree, forbid

from dynamic.monitoring.contract import AbsentError
from dynamic.monitoring.sources.power import Power, Rapl
from dynamic.monitoring.sources.supply import BatteryLevel

RAPL = "sys/class/powercap/intel-rapl:"
SUPPLY = "sys/class/power_supply"


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def supply(name: str, kind: str, **attributes: str | int) -> dict[str, str | int]:
    files: dict[str, str | int] = {f"{SUPPLY}/{name}/type": f"{kind}\n"}
    return files | {f"{SUPPLY}/{name}/{key}": value for key, value in attributes.items()}


def rapl(zone: str, energy: int, name: str = "package-0", most: int | str = 1_000_000) -> dict[str, str | int]:
    folder = f"{RAPL}{zone}"
    return {f"{folder}/name": f"{name}\n", f"{folder}/energy_uj": energy, f"{folder}/max_energy_range_uj": most}


LAPTOP = supply(
    "BAT0",
    "Battery",
    status="Discharging\n",
    capacity=63,
    energy_now=31_500_000,
    energy_full=50_000_000,
    power_now=8_250_000,
) | supply("AC", "Mains", online=0)


def test_a_laptop_on_its_battery(tree: Tree) -> None:
    tree(LAPTOP)
    assert BatteryLevel(tree.root)().fields == {"battery": 0.63, "battery_mwh": 31_500, "plugged": False}
    assert Power(tree.root)().fields == {"power_mw": 8250}
    assert Power(tree.root)().origin == "power_supply BAT0"


def test_a_phone_tells_charge_and_voltage(tree: Tree) -> None:
    tree(
        supply(
            "battery",
            "Battery",
            status="Discharging\n",
            charge_now=2_000_000,
            charge_full=4_000_000,
            voltage_now=3_800_000,
            current_now=-500_000,  # some drivers count what flows out below zero
        )
    )
    assert BatteryLevel(tree.root)().fields == {"battery": 0.5, "battery_mwh": 2000 * 3.8, "plugged": False}
    assert Power(tree.root)().fields == {"power_mw": 500 * 3.8}


@pytest.mark.parametrize(
    ("status", "online", "expected"),
    [
        ("Charging", None, True),
        ("Full", None, True),
        ("Not charging", None, True),
        ("Discharging", None, False),
        ("Unknown", None, None),
        ("Discharging", 1, False),  # a charger too weak, or a supply that is stale
        ("Charging", 0, True),  # by a pad, or by USB-C that the kernel does not show
        ("Full", 0, False),
        ("Unknown", 1, True),
    ],
)
def test_plugged(tree: Tree, status: str, online: int | None, expected: bool | None) -> None:
    tree(supply("BAT0", "Battery", status=f"{status}\n", capacity=50))
    if online is not None:
        tree(supply("ucsi", "USB", online=online))
    assert BatteryLevel(tree.root)().fields["plugged"] is expected


def test_two_batteries_count_by_their_size(tree: Tree) -> None:
    tree(supply("BAT0", "Battery", capacity=100, energy_now=10_000_000, energy_full=10_000_000))
    tree(supply("BAT1", "Battery", capacity=0, energy_now=0, energy_full=30_000_000))
    assert BatteryLevel(tree.root)().fields == {"battery": 0.25, "battery_mwh": 10_000, "plugged": None}
    for number in (0, 1):
        (tree.root / SUPPLY / f"BAT{number}/energy_full").unlink()
    assert BatteryLevel(tree.root)().fields["battery"] == 0.5


def test_what_is_no_battery_of_the_device(tree: Tree) -> None:
    tree(supply("mouse", "Battery", scope="Device\n", capacity=5) | supply("AC", "Mains", online=1))
    tree(supply("BAT1", "Battery", present=0, capacity=5))
    with pytest.raises(AbsentError, match="battery=function"):
        BatteryLevel(tree.root)()
    tree(supply("hat", "UPS", capacity=5))
    assert BatteryLevel(tree.root)().fields == {"battery": 0.05, "battery_mwh": None, "plugged": True}


def test_a_gauge_that_was_never_calibrated(tree: Tree) -> None:
    tree(supply("BAT0", "Battery", capacity=103))
    assert BatteryLevel(tree.root)().fields["battery"] == 1.0
    tree(supply("BAT0", "Battery", capacity=250))
    with pytest.raises(ValueError, match="250"):
        BatteryLevel(tree.root)()
    tree(supply("BAT0", "Battery", capacity="unknown\n"))
    with pytest.raises(ValueError, match="capacity"):
        BatteryLevel(tree.root)()


def test_a_gauge_that_does_not_answer_leaves_its_value_out(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(supply("BAT0", "Battery", capacity=40, energy_now=20_000_000))
    source = BatteryLevel(tree.root)
    assert source().fields["battery_mwh"] == 20_000
    tree(supply("BAT0", "Battery", energy_now=""))
    assert source().fields == {"battery": 0.4, "battery_mwh": None, "plugged": None}
    forbid(monkeypatch, tree.root / SUPPLY / "BAT0/capacity")
    with pytest.raises(PermissionError, match="capacity"):
        BatteryLevel(tree.root)()


def test_rapl_is_energy_over_time(tree: Tree) -> None:
    tree(rapl("0", 100_000) | rapl("1", 500_000, "package-1") | rapl("0:0", 5, "core"))
    clock = Clock()
    source = Rapl(tree.root, clock)
    assert source().fields == {"power_mw": None}
    clock.now += 0.5
    tree(rapl("0", 150_000) | rapl("1", 520_000, "package-1") | rapl("0:0", 900_000, "core"))
    assert source().fields == {"power_mw": pytest.approx(140)}  # 70,000 uJ in 0.5 s; a core is part of its package
    clock.now += 0.01
    assert source().fields == {"power_mw": pytest.approx(140)}  # too soon for another
    clock.now += 0.99
    tree(rapl("0", 50_000))  # wrapped around at 1,000,000: grew by 900,000 in 1 s
    assert source().fields == {"power_mw": pytest.approx(900)}


def test_rapl_when_the_clock_steps_backwards(tree: Tree) -> None:
    tree(rapl("0", 100))
    clock = Clock()
    source = Rapl(tree.root, clock)
    source()
    clock.now -= 50
    assert source().fields == {"power_mw": None}
    clock.now += 1
    tree(rapl("0", 3_100))
    assert source().fields == {"power_mw": pytest.approx(3)}


def test_a_platform_zone_holds_all_packages(tree: Tree) -> None:
    tree(rapl("0", 0) | rapl("1", 0, "psys"))
    clock = Clock()
    source = Rapl(tree.root, clock)
    source()
    clock.now += 1
    tree(rapl("0", 4_000) | rapl("1", 9_000, "psys"))
    assert source().fields == {"power_mw": pytest.approx(9)}


def test_rapl_that_is_absent_forbidden_or_garbage(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AbsentError, match="power=function"):
        Power(tree.root)()
    tree(rapl("0", 9, most="unlimited\n"))
    clock = Clock()
    source = Rapl(tree.root, clock)
    source()
    clock.now += 1
    tree(rapl("0", 8, most="unlimited\n"))
    assert source().fields == {"power_mw": None}  # it does not say where it wraps around, so it starts again
    tree({f"{RAPL}0/energy_uj": "many"})
    with pytest.raises(ValueError, match="energy_uj"):
        Rapl(tree.root)()
    forbid(monkeypatch, tree.root / f"{RAPL}0/energy_uj")
    with pytest.raises(AbsentError, match="root's alone"):  # as on most systems: not worth a warning
        Rapl(tree.root)()


def test_meter_chips_and_the_order_of_sources(tree: Tree) -> None:
    hwmon = "sys/class/hwmon/hwmon"
    tree(rapl("0", 1))
    tree({f"{hwmon}0/name": "amdgpu\n", f"{hwmon}0/power1_average": 90_000_000})  # not the device
    assert Power(tree.root)().fields == {"power_mw": None}  # RAPL, for the first time
    tree({f"{hwmon}1/name": "ina219\n", f"{hwmon}1/power1_input": 5_100_000})
    assert Power(tree.root)().fields == {"power_mw": 5100}
    channels = {"in1_input": 5000, "curr1_input": 2000, "in2_input": 3300, "curr2_input": 400, "curr3_input": 9999}
    tree({f"{hwmon}2/name": "ina3221\n", **{f"{hwmon}2/{name}": value for name, value in channels.items()}})
    assert Power(tree.root)().fields == {"power_mw": 10_000}  # 5 V x 2 A is the largest; channel 3 has no voltage
    tree(LAPTOP)
    assert Power(tree.root)().fields == {"power_mw": 8250}
    tree({f"{SUPPLY}/AC/online": 1, f"{SUPPLY}/BAT0/status": "Charging\n"})  # what flows charges the battery
    assert Power(tree.root)().fields == {"power_mw": 10_000}
