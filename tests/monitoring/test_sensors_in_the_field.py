"""Sensors in the field: short reads, bad members, counters that fall, and values that no device has."""

import errno
import os
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.device_trees import chip, reasons, refuse_with, supply, zone
from support.sensor_cases import Clock, Tree

from dynamic.monitoring.kernel.kernel_files import KernelFile
from dynamic.monitoring.sources.cpu import OtherLoad
from dynamic.monitoring.sources.frequency import Frequency
from dynamic.monitoring.sources.memory import Available
from dynamic.monitoring.sources.power import Power, Rapl
from dynamic.monitoring.sources.temperature import Temperature
from dynamic.monitoring.sources.throttling import Throttling

PAGE = 4096
HWMON = "sys/class/hwmon/hwmon"
ZONE = "sys/class/thermal/thermal_zone"
POLICY = "sys/devices/system/cpu/cpufreq/policy"
RAPL = "sys/class/powercap/intel-rapl:"
COUNTER = "sys/devices/system/cpu/cpu{}/thermal_throttle/core_throttle_count"


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pread
    monkeypatch.setattr(
        "dynamic.monitoring.kernel.kernel_files.os.pread", lambda handle, size, at: real(handle, min(size, PAGE), at)
    )


def two_cores(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> tuple[OtherLoad, Callable[[str, str], None]]:
    monkeypatch.setattr("dynamic.monitoring.sources.cpu._TICKS", 100)
    monkeypatch.setattr("dynamic.monitoring.sources.cpu.usable_cores", lambda: (0, 1))
    monkeypatch.setattr("dynamic.monitoring.sources.cpu.time.process_time", lambda: 1.0)

    def step(first: str, second: str) -> None:
        tree({"proc/stat": f"cpu 1 1 1 1 1 1 1 1 1 1\ncpu0 {first} 0 0\ncpu1 {second} 0 0\nintr 5\n"})

    step("0 0 0 0 0 0 0 0", "0 0 0 0 0 0 0 0")
    return OtherLoad(tree.root), step


def test_a_stat_of_thousands_of_cores(tree: Tree, pages: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynamic.monitoring.sources.cpu._TICKS", 100)
    monkeypatch.setattr("dynamic.monitoring.sources.cpu.usable_cores", lambda: (4095,))
    monkeypatch.setattr("dynamic.monitoring.sources.cpu.time.process_time", lambda: 1.0)
    cores = "".join(f"cpu{i} 100000 0 500000 9000000 0 0 0 0 0 0\n" for i in range(4095))
    assert len(cores) > 1 << 16
    tree({"proc/stat": "cpu 1 1 1 1 1 1 1 1 1 1\n" + cores + "cpu4095 0 0 0 1000 0 0 0 0 0 0\nintr 5\n"})
    load = OtherLoad(tree.root)
    load()
    tree({"proc/stat": "cpu 1 1 1 1 1 1 1 1 1 1\n" + cores + "cpu4095 25 0 0 1075 0 0 0 0 0 0\nintr 5\n"})
    assert load().fields["host_load"] == pytest.approx(0.25)


def test_a_text_that_a_page_cuts_within_a_letter(tree: Tree, pages: None) -> None:
    text = "a" * (PAGE - 1) + "\N{LATIN SMALL LETTER E WITH ACUTE}" * 10
    (tree.root / "file").write_text(text, encoding="utf-8")
    assert KernelFile(tree.root / "file").text() == text


def test_one_busy_group_of_cores_does_not_take_frequency_away(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, now in ((0, 500_000), (4, 1_000_000), (7, 1_500_000)):
        tree({f"{POLICY}{number}/scaling_cur_freq": now, f"{POLICY}{number}/cpuinfo_max_freq": 2_000_000})
    refuse_with(monkeypatch, errno.EBUSY, tree.root / f"{POLICY}4/scaling_cur_freq")
    reading = Frequency(tree.root)()
    assert reading.fields == {"frequency_ratio": pytest.approx(0.5)}
    assert "policy4" in reasons(reading)
    assert "2 of " in reading.origin


@pytest.mark.parametrize(
    ("name", "content"), [("scaling_cur_freq", "<unknown>\n"), ("cpuinfo_max_freq", "?"), ("scaling_cur_freq", 0)]
)
def test_a_group_of_cores_that_talks_nonsense(tree: Tree, name: str, content: str | int) -> None:
    for number in (0, 4):
        tree({f"{POLICY}{number}/scaling_cur_freq": 1_000_000, f"{POLICY}{number}/cpuinfo_max_freq": 2_000_000})
    tree({f"{POLICY}4/{name}": content})
    reading = Frequency(tree.root)()
    assert reading.fields == {"frequency_ratio": 0.5}
    assert "policy4" in reasons(reading)
    tree({f"{POLICY}0/{name}": content})
    with pytest.raises(ValueError):
        Frequency(tree.root)()


def test_one_throttle_counter_that_does_not_answer(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    tree({COUNTER.format(0): 3, COUNTER.format(1): 5})
    refuse_with(monkeypatch, errno.EIO, tree.root / COUNTER.format(1))
    throttling = Throttling(tree.root, clock=Clock())
    throttling()
    tree({COUNTER.format(0): 4})
    reading = throttling()
    assert reading.fields == {"throttled": True}
    assert "cpu1" in reasons(reading)


def test_one_power_meter_that_does_not_answer(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(chip(0, "ina219", power1_input=5_000_000) | chip(1, "ina219", power1_input=9_000_000))
    refuse_with(monkeypatch, errno.EREMOTEIO, tree.root / f"{HWMON}1/power1_input")
    reading = Power(tree.root)()
    assert reading.fields == {"power_mw": 5000}
    assert "hwmon1" in reasons(reading)


def test_one_energy_zone_that_does_not_answer(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (0, 1):
        tree({f"{RAPL}{number}/name": f"package-{number}\n", f"{RAPL}{number}/energy_uj": 100_000})
    refuse_with(monkeypatch, errno.EIO, tree.root / f"{RAPL}1/energy_uj")
    clock = Clock()
    source = Rapl(tree.root, clock)
    source()
    clock.now += 1
    tree({f"{RAPL}0/energy_uj": 150_000})
    reading = source()
    assert reading.fields == {"power_mw": pytest.approx(50)}
    assert "intel-rapl:1" in reasons(reading)


def test_a_total_that_is_garbage_leaves_what_is_available(tree: Tree) -> None:
    tree({"proc/meminfo": "MemTotal: lots\nMemAvailable: 2000000 kB\n"})
    assert Available(tree.root)().fields == {"memory_available_mb": 2048}


def test_a_flag_that_cannot_be_read_is_not_set(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(chip(0, "coretemp", temp1_input=50_000, temp1_fault=1, temp1_label="Core 0\n", temp1_crit="?"))
    flags = [tree.root / f"{HWMON}0/temp1_{name}" for name in ("fault", "label", "crit")]
    refuse_with(monkeypatch, errno.EIO, *flags)
    assert Temperature(tree.root)().fields == {"temperature_c": 50}


@pytest.mark.parametrize("source", [Frequency, Temperature])
def test_an_error_while_searching_is_not_kept(tree: Tree, monkeypatch: pytest.MonkeyPatch, source: Any) -> None:
    tree({f"{POLICY}0/scaling_cur_freq": 1, f"{POLICY}0/cpuinfo_max_freq": 2} | zone(0, "cpu", 40_000))
    reading = source(tree.root)
    with monkeypatch.context() as patch:
        refuse_with(patch, errno.EBUSY, tree.root / f"{POLICY}0/cpuinfo_max_freq", tree.root / f"{ZONE}0/type")
        with pytest.raises(OSError, match="busy"):
            reading()
    assert set(reading().fields.values()) <= {0.5, 40}


def test_one_core_whose_line_is_garbage(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynamic.monitoring.sources.cpu.usable_cores", lambda: (0, 1))
    load, step = two_cores(tree, monkeypatch)
    step("0 0 0 1000 0 0 0 0", "x y z")
    load()
    step("50 0 0 1050 0 0 0 0", "x y z")
    assert load().fields["host_load"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("0 0 0 0 0 0 0 0", "0 0 0 0 0 0 0 0"),  # live migration: telegraf#2871
        ("90100 0 0 900100 0 0 0 0", "3 0 0 5 0 0 0 0"),  # a core that comes back
        ("90000 0 0 900000 0 0 0 0", "90000 0 0 900100 0 0 0 2000"),  # time stolen by other guests, counted anew
    ],
)
def test_a_load_whose_counters_fall_starts_a_new_baseline(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, first: str, second: str
) -> None:
    load, step = two_cores(tree, monkeypatch)
    busy = "90000 0 0 900000 0 0 0 9000"
    step("89900 0 0 900000 0 0 0 0", busy)
    load()
    step("90000 0 0 900000 0 0 0 0", busy.replace("900000", "900100"))
    assert load().fields["host_load"] == pytest.approx(0.5)
    step(first, second)
    assert load().fields["host_load"] is None, "the last value is of before"

    def later(line: str, user: int, idle: int) -> str:
        ticks = [int(tick) for tick in line.split()]
        return " ".join(str(tick) for tick in (ticks[0] + user, *ticks[1:3], ticks[3] + idle, *ticks[4:]))

    step(later(first, 10, 90), later(second, 30, 70))
    assert load().fields["host_load"] == pytest.approx(0.2)


def test_psutil_s_counters_that_fall(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    times = namedtuple("times", "user system idle iowait")
    readings = iter([times(900, 5, 9000, 1), times(900.5, 5, 9000.5, 1), times(0, 0, 1, 0), times(0.25, 0, 1.75, 0)])
    monkeypatch.setattr("dynamic.monitoring.sources.cpu.usable_cores", lambda: (0,))
    monkeypatch.setattr("dynamic.monitoring.sources.cpu.time.process_time", lambda: 1.0)
    monkeypatch.setattr("dynamic.monitoring.sources.cpu.psutil.cpu_times", lambda percpu: [next(readings)])
    load = OtherLoad(tree.root)  # where there is no proc/stat
    assert [load().fields["host_load"] for _ in range(4)] == [None, pytest.approx(0.5), None, pytest.approx(0.25)]


@pytest.mark.parametrize("most", [262_143_328_850, None])
def test_an_energy_counter_that_starts_again(tree: Tree, most: int | None) -> None:
    folder = f"{RAPL}0"
    tree({f"{folder}/name": "package-0\n", f"{folder}/energy_uj": 100_000_000_000})
    if most is not None:
        tree({f"{folder}/max_energy_range_uj": most})
    clock = Clock()
    source = Rapl(tree.root, clock)
    source()
    clock.now += 1
    tree({f"{folder}/energy_uj": 2_000_000})  # 100 kJ before: to have wrapped around it had to draw 162 kW
    assert source().fields == {"power_mw": None}
    clock.now += 1
    tree({f"{folder}/energy_uj": 12_000_000})
    assert source().fields == {"power_mw": pytest.approx(10_000)}


def test_a_throttle_counter_that_falls_hides_no_other(tree: Tree) -> None:
    tree({COUNTER.format(0): 3, COUNTER.format(1): 500})
    clock = Clock()
    throttling = Throttling(tree.root, clock=clock)
    throttling()
    clock.now += 10
    tree({COUNTER.format(0): 4, COUNTER.format(1): 0})  # core 1 went off and came back, core 0 was throttled
    assert throttling().fields == {"throttled": True}
    clock.now += 10
    assert throttling().fields == {"throttled": False}
    tree({COUNTER.format(1): 1})
    assert throttling().fields == {"throttled": True}


@pytest.mark.parametrize(
    ("files", "expected", "left_out"),
    [
        # it87#59: a diode that nobody connected
        (chip(0, "it8665", temp1_input=51_000, temp2_input=127_000, temp3_input=31_000), 51.0, "temp2"),
        (chip(0, "coretemp", temp1_input=127_000, temp2_input=48_000), 48.0, "temp1"),
        (chip(0, "coretemp", temp1_input=-128_000, temp2_input=48_000), 48.0, "temp1"),
        (chip(0, "coretemp", temp1_input=95_000, temp1_fault=1, temp2_input=48_000, temp2_fault=0), 48.0, "temp1"),
        # CPU-X#159: Tctl is 20 or 27 degrees above the die on some
        (
            chip(0, "k10temp", temp1_input=75_000, temp1_label="Tctl\n", temp2_input=55_000, temp2_label="Tdie\n"),
            55.0,
            "Tctl",
        ),
        # by what the chip itself calls critical, no device could run
        (chip(0, "coretemp", temp1_input=124_000, temp1_crit=90_000, temp2_input=48_000), 48.0, "temp1"),
        (zone(0, "cpu-0-0", 127_000) | zone(1, "cpu-0-1", 44_000), 44.0, "thermal_zone0"),
        # a phone's zone in whole degrees, or of the state of charge
        (zone(0, "soc", 87) | zone(1, "cpu-0-1", 44_000), 44.0, "thermal_zone0"),
        # all of the processor's chip is nonsense: a zone of the same processor is not
        (chip(0, "k10temp", temp1_input=127_000) | zone(0, "cpu-thermal", 47_000), 47.0, "temp1"),
        # of a board's chip what is labelled as the processor's
        (
            chip(
                0, "nct6779", temp1_input=110_000, temp1_label="AUXTIN0\n", temp2_input=42_000, temp2_label="CPUTIN\n"
            ),
            42.0,
            "",
        ),
    ],
)
def test_temperatures_that_no_device_has(
    tree: Tree, files: dict[str, str | int], expected: float, left_out: str
) -> None:
    tree(files)
    reading = Temperature(tree.root)()
    assert reading.fields == {"temperature_c": expected}
    assert left_out in reasons(reading)


@pytest.mark.parametrize("value", [0, 45, 127_000, 128_000, -128_000, -40_000, 255_000])
def test_the_only_sensor_says_what_cannot_be(tree: Tree, value: int) -> None:
    tree(zone(0, "cpu-thermal", value))
    with pytest.raises(ValueError, match=f"{value / 1e3:g} degrees"):
        Temperature(tree.root)()


@pytest.mark.parametrize("value", [-12_000, 800, 45_000, 105_000, 125_000])
def test_what_is_extreme_and_yet_possible(tree: Tree, value: int) -> None:
    tree(zone(0, "cpu-thermal", value))
    assert Temperature(tree.root)().fields == {"temperature_c": value / 1e3}


def test_tctl_alone_is_taken(tree: Tree) -> None:
    tree(chip(0, "k10temp", temp1_input=61_000, temp1_label="Tctl\n", temp3_input=58_000, temp3_label="Tccd1\n"))
    assert Temperature(tree.root)().fields == {"temperature_c": 61}


def test_a_sensor_recovers_from_its_fault(tree: Tree) -> None:
    tree(chip(0, "coretemp", temp1_input=95_000, temp1_fault=1))
    source = Temperature(tree.root)
    with pytest.raises(ValueError, match="fault"):
        source()
    tree(chip(0, "coretemp", temp1_fault=0))
    assert source().fields == {"temperature_c": 95}


def test_a_meter_that_flags_a_fault_or_measures_nothing(tree: Tree) -> None:
    tree(chip(0, "ina219", power1_input=90_000_000, power1_fault=1) | chip(1, "ina219", power1_input=5_000_000))
    reading = Power(tree.root)()
    assert reading.fields == {"power_mw": 5000}
    assert "power1" in reasons(reading)
    # no battery gives nothing while it discharges
    for power_uw in (0, 65_535_000_000):
        tree(supply("BAT0", "Battery", status="Discharging", capacity=50, power_now=power_uw))
        reading = Power(tree.root)()
        assert reading.fields == {"power_mw": 5000}
        assert "BAT0" in reasons(reading)


def test_more_memory_available_than_there_is(tree: Tree) -> None:
    tree({"proc/meminfo": "MemTotal: 1000000 kB\nMemAvailable: 18446744073709000000 kB\n"})
    with pytest.raises(ValueError, match="MemAvailable"):
        Available(tree.root)()
