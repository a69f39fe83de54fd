"""Kernel files as devices in the field show them: short reads, bad members, counters that fall, impossible values.

Addresses of the public reports stand in the tests.
"""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sensor_cases import V2_MOUNT, Clock, Tree

from dynamic.sensors.contract import AbsentError, Reading
from dynamic.sensors.cpu import OtherLoad
from dynamic.sensors.files import KernelFile
from dynamic.sensors.frequency import Frequency
from dynamic.sensors.limits import CpuLimit, MemoryLimit
from dynamic.sensors.memory import Available
from dynamic.sensors.power import Power, Rapl
from dynamic.sensors.pressure import Pressure
from dynamic.sensors.supply import BatteryLevel
from dynamic.sensors.temperature import Temperature
from dynamic.sensors.throttling import Throttling

PAGE = 4096
GROUP = "sys/fs/cgroup/box"
SUPPLY, HWMON, ZONE = "sys/class/power_supply", "sys/class/hwmon/hwmon", "sys/class/thermal/thermal_zone"
POLICY = "sys/devices/system/cpu/cpufreq/policy"
RAPL = "sys/class/powercap/intel-rapl:"
COUNTER = "sys/devices/system/cpu/cpu{}/thermal_throttle/core_throttle_count"


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def supply(name: str, kind: str, **attributes: str | int) -> dict[str, str | int]:
    files = {"type": f"{kind}\n"} | attributes
    return {f"{SUPPLY}/{name}/{key}": f"{value}\n" for key, value in files.items()}


def chip(number: int, name: str, **files: str | int) -> dict[str, str | int]:
    return {f"{HWMON}{number}/name": f"{name}\n"} | {f"{HWMON}{number}/{key}": value for key, value in files.items()}


def zone(number: int, kind: str, value: int) -> dict[str, str | int]:
    return {f"{ZONE}{number}/type": f"{kind}\n", f"{ZONE}{number}/temp": value}


def reasons(reading: Reading) -> str:
    return "\n".join(str(item) for item in reading.left_out)


def refuse(monkeypatch: pytest.MonkeyPatch, code: int, *paths: Path) -> None:
    """Opening these files fails with this error, for root as well."""
    real = os.open

    def guarded(path: Any, *more: Any, **named: Any) -> int:
        if Path(path) in paths:
            raise OSError(code, os.strerror(code), str(path))
        return real(path, *more, **named)

    monkeypatch.setattr("dynamic.sensors.files.os.open", guarded)


# 1. Kernel files give at most a page for each read.


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pread
    monkeypatch.setattr("dynamic.sensors.files.os.pread", lambda handle, size, at: real(handle, min(size, PAGE), at))


def mountinfo(size: int) -> str:
    """So many bytes, the cgroup line last."""
    lines = ""
    number = 100
    while size - len(lines) - len(V2_MOUNT) > 200:
        lines += (
            f"{number} 23 0:40 / /var/lib/containers/{number} rw,nosuid shared:4 - overlay overlay rw,lowerdir=/l\n"
        )
        number += 1
    rest = size - len(lines) - len(V2_MOUNT)
    line = "99 23 0:40 / /x rw - tmpfs tmpfs rw,"
    return lines + line + "a" * (rest - len(line) - 1) + "\n" + V2_MOUNT


@pytest.mark.parametrize("size", [4272, PAGE, PAGE + 1, 3 * PAGE, 300_000])
def test_a_mountinfo_longer_than_a_page(tree: Tree, pages: None, size: int) -> None:
    # libhugetlbfs#43, criu#3129
    text = mountinfo(size)
    assert len(text) == size
    tree(
        {
            "proc/self/cgroup": "0::/box\n",
            "proc/self/mountinfo": text,
            f"{GROUP}/memory.max": 300_000_000,
            f"{GROUP}/memory.current": 100_000_000,
            f"{GROUP}/cpu.max": "50000 100000\n",
        }
    )
    assert MemoryLimit(tree.root)().fields == {"memory_available_mb": 200}
    assert CpuLimit(tree.root)().fields["quota_cores"] == 0.5


def test_a_stat_of_thousands_of_cores(tree: Tree, pages: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynamic.sensors.cpu._TICKS", 100)
    monkeypatch.setattr("dynamic.sensors.cpu.usable_cores", lambda: (4095,))
    monkeypatch.setattr("dynamic.sensors.cpu.time.process_time", lambda: 1.0)
    cores = "".join(f"cpu{i} 100000 0 500000 9000000 0 0 0 0 0 0\n" for i in range(4095))
    assert len(cores) > 1 << 16
    tree({"proc/stat": "cpu 1 1 1 1 1 1 1 1 1 1\n" + cores + "cpu4095 0 0 0 1000 0 0 0 0 0 0\nintr 5\n"})
    load = OtherLoad(tree.root)
    load()
    tree({"proc/stat": "cpu 1 1 1 1 1 1 1 1 1 1\n" + cores + "cpu4095 25 0 0 1075 0 0 0 0 0 0\nintr 5\n"})
    assert load().fields["host_load"] == pytest.approx(0.25)


def test_entries_behind_the_first_page(tree: Tree, pages: None) -> None:
    filler = "".join(f"entry_{i} 1\n" for i in range(1000))
    tree(
        {
            "proc/self/cgroup": "0::/box\n",
            "proc/self/mountinfo": V2_MOUNT,
            f"{GROUP}/memory.max": 300_000_000,
            f"{GROUP}/memory.current": 200_000_000,
            f"{GROUP}/memory.stat": filler + "inactive_file 50000000\n",
            "proc/meminfo": filler + "MemAvailable: 1000000 kB\n",
        }
    )
    assert MemoryLimit(tree.root)().fields == {"memory_available_mb": 150}
    assert Available(tree.root)().fields == {"memory_available_mb": 1024}


def test_a_text_that_a_page_cuts_within_a_letter(tree: Tree, pages: None) -> None:
    text = "a" * (PAGE - 1) + "\N{LATIN SMALL LETTER E WITH ACUTE}" * 10
    (tree.root / "file").write_text(text, encoding="utf-8")
    assert KernelFile(tree.root / "file").text() == text


@pytest.mark.skipif(sys.platform != "linux", reason="mount namespaces are Linux's")
def test_the_kernel_s_own_mountinfo_of_many_mounts(tmp_path: Path) -> None:
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-m", "true"], capture_output=True).returncode:
        pytest.skip("a mount namespace is not permitted here (unshare -m)")
    code = """
import os, sys
from pathlib import Path
from dynamic.sensors.files import KernelFile
whole = Path("/proc/self/mountinfo").read_bytes()
handle = os.open("/proc/self/mountinfo", os.O_RDONLY)
print(len(whole), len(os.pread(handle, 1 << 20, 0)))
print(KernelFile(Path("/proc/self/mountinfo")).text().encode() == whole)
"""
    mounts = 'for i in $(seq 80); do mkdir "$0/$i" && mount -t tmpfs none "$0/$i" || exit 77; done'
    script = f'{mounts}; {sys.executable} -c "$1"'
    done = subprocess.run([unshare, "-m", "sh", "-c", script, str(tmp_path), code], capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip():.200}")
    assert done.returncode == 0, done.stderr
    sizes, same = done.stdout.split("\n")[:2]
    assert int(sizes.split()[0]) > PAGE
    assert same == "True"


def box(tree: Tree, more: dict[str, str | int] | None = None) -> None:
    tree({"proc/self/cgroup": "0::/box\n", "proc/self/mountinfo": V2_MOUNT, f"{GROUP}/cgroup.procs": "1\n"})
    tree(more or {})


@pytest.mark.parametrize(
    "files",
    [
        {"proc/self/cgroup": "0::/box\n", "proc/self/mountinfo": "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"},
        {"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": "22 1 8:1 / / rw - ext4 /dev/x rw\n", ".dockerenv": ""},
        {"run/.containerenv": "engine=podman\n"},  # no file of /proc
        {"proc/self/cgroup": "0::/box\n"},  # no mountinfo, and no group in the usual places
        # the group lies outside what is mounted, and what is mounted has no limit: LXC, a namespace inside another
        {"proc/self/cgroup": "0::/../../other\n", "proc/self/mountinfo": V2_MOUNT, "sys/fs/cgroup/cgroup.procs": ""},
        {
            "proc/self/cgroup": "0::/\n",
            "proc/self/mountinfo": V2_MOUNT.replace("0:28 / /", "0:28 /../../.. /"),
            "sys/fs/cgroup/cgroup.procs": "",
        },
    ],
)
def test_limits_that_cannot_be_determined_are_an_error(tree: Tree, files: dict[str, str | int]) -> None:
    tree(files)
    for limit in (MemoryLimit(tree.root), CpuLimit(tree.root)):
        with pytest.raises(ValueError, match="cannot be determined"):
            limit()


def test_a_machine_without_groups_has_no_limits(tree: Tree) -> None:
    assert MemoryLimit(tree.root)().fields == {}
    tree({"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"})
    assert MemoryLimit(tree.root)().fields == CpuLimit(tree.root)().fields == {}


def test_pressure_does_not_need_the_group(tree: Tree) -> None:
    tree({"proc/self/cgroup": "0::/box\n", "proc/self/mountinfo": "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"})
    tree({"proc/pressure/cpu": "some avg10=20.00 avg60=0.00 avg300=0.00 total=1\n"})
    assert Pressure("cpu", tree.root)().fields == {"cpu_pressure": 0.2}


# 3. Power sources that contradict each other.


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
    assert "battery: nothing that it shows has changed" in reasons(reading)
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


# 4. Memory that a container leaves.


def test_clean_file_pages_of_a_container_are_free(tree: Tree) -> None:
    # kubernetes#43916, ComfyUI#15788: a limit of 512 MB, 505 MB used of which 375 MB are clean file pages
    box(
        tree,
        {
            f"{GROUP}/memory.max": 512_000_000,
            f"{GROUP}/memory.current": 505_000_000,
            f"{GROUP}/memory.stat": "anon 130000000\nfile 375000000\nfile_dirty 0\nfile_writeback 0\n"
            "inactive_anon 0\nactive_anon 130000000\ninactive_file 5000000\nactive_file 370000000\n"
            "unevictable 0\nslab_reclaimable 0\nslab_unreclaimable 0\n",
        },
    )
    assert MemoryLimit(tree.root)().fields == {"memory_available_mb": 512 - (505 - 375)}


@pytest.mark.parametrize(
    ("stat", "reclaimable_mb"),
    [
        ("inactive_file 100000000\nactive_file 50000000\n", 150),
        # what must be written first is not free yet
        ("inactive_file 100000000\nactive_file 50000000\nfile_dirty 20000000\nfile_writeback 10000000\n", 120),
        ("inactive_file 100000000\nactive_file 0\nslab_reclaimable 30000000\n", 130),
        # shared memory is counted in "file" and cannot be dropped
        ("file 100000000\nshmem 40000000\n", 60),
        ("file 100000000\nshmem 40000000\ninactive_file 30000000\nactive_file 20000000\n", 50),
        ("file 100000000\nshmem 40000000\ninactive_file 30000000\n", 60),
        ("file_dirty 20000000\n", 0),
        ("inactive_file 900000000\n", 400),  # older than what is used: never more than the limit
    ],
)
def test_what_of_a_group_can_be_dropped(tree: Tree, stat: str, reclaimable_mb: int) -> None:
    box(
        tree,
        {f"{GROUP}/memory.max": 500_000_000, f"{GROUP}/memory.current": 400_000_000, f"{GROUP}/memory.stat": stat},
    )
    assert MemoryLimit(tree.root)().fields == {"memory_available_mb": 100 + reclaimable_mb}


# 7. One bad member spoils the rest.


def test_one_busy_group_of_cores_does_not_take_frequency_away(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, now in ((0, 500_000), (4, 1_000_000), (7, 1_500_000)):
        tree({f"{POLICY}{number}/scaling_cur_freq": now, f"{POLICY}{number}/cpuinfo_max_freq": 2_000_000})
    refuse(monkeypatch, errno.EBUSY, tree.root / f"{POLICY}4/scaling_cur_freq")
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
    refuse(monkeypatch, errno.EIO, tree.root / SUPPLY / "BAT0" / wrong)
    fields = BatteryLevel(tree.root)().fields
    assert (fields["battery"], fields["plugged"]) == (pytest.approx(0.4), False)


def test_garbage_in_one_battery_s_energy_costs_the_energy_alone(tree: Tree) -> None:
    tree(supply("BAT0", "Battery", capacity=40, energy_now="what"))
    reading = BatteryLevel(tree.root)()
    assert reading.fields == {"battery": 0.4, "battery_mwh": None, "plugged": None}
    assert "energy_now" in reasons(reading)


def test_one_throttle_counter_that_does_not_answer(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    tree({COUNTER.format(0): 3, COUNTER.format(1): 5})
    refuse(monkeypatch, errno.EIO, tree.root / COUNTER.format(1))
    throttling = Throttling(tree.root, clock=Clock())
    throttling()
    tree({COUNTER.format(0): 4})
    reading = throttling()
    assert reading.fields == {"throttled": True}
    assert "cpu1" in reasons(reading)


def test_one_power_meter_that_does_not_answer(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(chip(0, "ina219", power1_input=5_000_000) | chip(1, "ina219", power1_input=9_000_000))
    refuse(monkeypatch, errno.EREMOTEIO, tree.root / f"{HWMON}1/power1_input")
    reading = Power(tree.root)()
    assert reading.fields == {"power_mw": 5000}
    assert "hwmon1" in reasons(reading)


def test_one_energy_zone_that_does_not_answer(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (0, 1):
        tree({f"{RAPL}{number}/name": f"package-{number}\n", f"{RAPL}{number}/energy_uj": 100_000})
    refuse(monkeypatch, errno.EIO, tree.root / f"{RAPL}1/energy_uj")
    clock = Clock()
    source = Rapl(tree.root, clock)
    source()
    clock.now += 1
    tree({f"{RAPL}0/energy_uj": 150_000})
    reading = source()
    assert reading.fields == {"power_mw": pytest.approx(50)}
    assert "intel-rapl:1" in reasons(reading)


def test_one_group_s_pressure_that_does_not_answer(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    box(tree, {f"{GROUP}/cpu.pressure": "some avg10=9.00 avg60=0.00 avg300=0.00 total=1\n"})
    tree({"proc/pressure/cpu": "some avg10=4.00 avg60=0.00 avg300=0.00 total=1\n"})
    refuse(monkeypatch, errno.EACCES, tree.root / f"{GROUP}/cpu.pressure")
    reading = Pressure("cpu", tree.root)()
    assert reading.fields == {"cpu_pressure": 0.04}
    assert "cpu.pressure" in reasons(reading)


def test_one_group_s_pressure_that_cannot_be(tree: Tree) -> None:
    box(tree, {f"{GROUP}/cpu.pressure": "some avg10=4000.00 avg60=0.00 avg300=0.00 total=1\n"})
    tree({"proc/pressure/cpu": "some avg10=4.00 avg60=0.00 avg300=0.00 total=1\n"})
    assert Pressure("cpu", tree.root)().fields == {"cpu_pressure": 0.04}
    tree({f"{GROUP}/cpu.pressure": "some avg10=nan avg60=0.00 avg300=0.00 total=1\n"})
    assert Pressure("cpu", tree.root)().fields == {"cpu_pressure": 0.04}


def test_a_quota_that_cannot_be_leaves_the_others(tree: Tree) -> None:
    box(tree, {f"{GROUP}/cpu.max": "9223372036854775807 100\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"})
    assert CpuLimit(tree.root)().fields["quota_cores"] == 0.5


def test_a_total_that_is_garbage_leaves_what_is_available(tree: Tree) -> None:
    tree({"proc/meminfo": "MemTotal: lots\nMemAvailable: 2000000 kB\n"})
    assert Available(tree.root)().fields == {"memory_available_mb": 2048}


def test_a_flag_that_cannot_be_read_is_not_set(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(chip(0, "coretemp", temp1_input=50_000, temp1_fault=1, temp1_label="Core 0\n", temp1_crit="?"))
    flags = [tree.root / f"{HWMON}0/temp1_{name}" for name in ("fault", "label", "crit")]
    refuse(monkeypatch, errno.EIO, *flags)
    assert Temperature(tree.root)().fields == {"temperature_c": 50}


def test_one_level_of_a_container_that_does_not_answer(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    box(tree, {f"{GROUP}/memory.max": 500_000_000, f"{GROUP}/memory.current": 100_000_000})
    top = "sys/fs/cgroup"
    tree({f"{top}/memory.max": "lots\n", f"{top}/cpu.max": "200000 100000\n", f"{GROUP}/cpu.max": "50000 100000\n"})
    refuse(monkeypatch, errno.EACCES, tree.root / top / "cpu.max")
    memory, cpu = MemoryLimit(tree.root)(), CpuLimit(tree.root)()
    assert (memory.fields, cpu.fields["quota_cores"]) == ({"memory_available_mb": 400}, 0.5)
    assert "memory.max" in reasons(memory)
    assert "cpu.max" in reasons(cpu)


def test_a_quota_whose_time_is_counted_elsewhere_and_not_shown(tree: Tree) -> None:
    group = "sys/fs/cgroup/cpu/docker/abc"
    tree(
        {
            "proc/self/cgroup": "4:cpu:/docker/abc\n3:cpuacct:/docker/abc\n",
            "proc/self/mountinfo": "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n",
            f"{group}/cpu.cfs_quota_us": 50_000,
            f"{group}/cpu.cfs_period_us": 100_000,
        }
    )
    assert CpuLimit(tree.root)().fields == {"quota_cores": 0.5, "quota_load": None}


def test_a_second_mount_that_does_not_show_the_group(tree: Tree) -> None:
    other = "29 23 0:27 / /run/other rw - cgroup2 cgroup2 rw\n"
    box(tree, {"proc/self/mountinfo": other + V2_MOUNT, f"{GROUP}/cpu.max": "50000 100000\n"})
    assert CpuLimit(tree.root)().fields["quota_cores"] == 0.5


@pytest.mark.parametrize("source", [Frequency, Temperature])
def test_an_error_while_searching_is_not_kept(tree: Tree, monkeypatch: pytest.MonkeyPatch, source: Any) -> None:
    tree({f"{POLICY}0/scaling_cur_freq": 1, f"{POLICY}0/cpuinfo_max_freq": 2} | zone(0, "cpu", 40_000))
    reading = source(tree.root)
    with monkeypatch.context() as patch:
        refuse(patch, errno.EBUSY, tree.root / f"{POLICY}0/cpuinfo_max_freq", tree.root / f"{ZONE}0/type")
        with pytest.raises(OSError, match="busy"):
            reading()
    assert set(reading().fields.values()) <= {0.5, 40}


def test_a_quota_whose_counter_is_garbage_is_a_quota(tree: Tree) -> None:
    box(tree, {f"{GROUP}/cpu.max": "50000 100000\n", f"{GROUP}/cpu.stat": "usage_usec many\n"})
    reading = CpuLimit(tree.root)()
    assert reading.fields == {"quota_cores": 0.5, "quota_load": None}
    assert "cpu.stat" in reasons(reading)


def test_one_core_whose_line_is_garbage(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynamic.sensors.cpu.usable_cores", lambda: (0, 1))
    load, step = two_cores(tree, monkeypatch)
    step("0 0 0 1000 0 0 0 0", "x y z")
    load()
    step("50 0 0 1050 0 0 0 0", "x y z")
    assert load().fields["host_load"] == pytest.approx(0.5)


# 8. Counters that fall.


def two_cores(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> tuple[OtherLoad, Callable[[str, str], None]]:
    monkeypatch.setattr("dynamic.sensors.cpu._TICKS", 100)
    monkeypatch.setattr("dynamic.sensors.cpu.usable_cores", lambda: (0, 1))
    monkeypatch.setattr("dynamic.sensors.cpu.time.process_time", lambda: 1.0)

    def step(first: str, second: str) -> None:
        tree({"proc/stat": f"cpu 1 1 1 1 1 1 1 1 1 1\ncpu0 {first} 0 0\ncpu1 {second} 0 0\nintr 5\n"})

    step("0 0 0 0 0 0 0 0", "0 0 0 0 0 0 0 0")
    return OtherLoad(tree.root), step


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
    fallen = load().fields["host_load"]
    assert fallen is None or fallen <= 1

    def later(line: str, user: int, idle: int) -> str:
        ticks = [int(tick) for tick in line.split()]
        return " ".join(str(tick) for tick in (ticks[0] + user, *ticks[1:3], ticks[3] + idle, *ticks[4:]))

    step(later(first, 10, 90), later(second, 30, 70))
    assert load().fields["host_load"] == pytest.approx(0.2)


def test_a_group_s_cpu_time_that_falls(tree: Tree) -> None:
    box(tree, {f"{GROUP}/cpu.max": "100000 100000\n", f"{GROUP}/cpu.stat": "usage_usec 900000000\n"})
    clock, own_s = Clock(), Clock()
    limit = CpuLimit(tree.root, clock, own_s)
    limit()
    clock.now += 1
    tree({f"{GROUP}/cpu.stat": "usage_usec 5000\n"})
    assert limit().fields["quota_load"] is None  # not 0: nothing is known of that second
    clock.now += 1
    tree({f"{GROUP}/cpu.stat": "usage_usec 405000\n"})
    assert limit().fields["quota_load"] == pytest.approx(0.4)
    clock.now -= 5000  # a clock that steps backwards
    tree({f"{GROUP}/cpu.stat": "usage_usec 505000\n"})
    assert limit().fields["quota_load"] is None
    clock.now += 1
    tree({f"{GROUP}/cpu.stat": "usage_usec 755000\n"})
    assert limit().fields["quota_load"] == pytest.approx(0.25)


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


# 9. In range, yet impossible.


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
