"""Pressure, throttling, temperature, frequency, load and memory, from files as the kernel writes them."""

import errno
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from support.sensor_cases import V2_MOUNT, Clock, Tree, forbid

from dynamic.monitoring.contract import AbsentError, Battery, checked
from dynamic.monitoring.kernel.kernel_files import CachedSearch, KernelFile
from dynamic.monitoring.sources.cpu import OtherLoad
from dynamic.monitoring.sources.frequency import Frequency
from dynamic.monitoring.sources.memory import Available, ProcessMemory
from dynamic.monitoring.sources.pressure import Pressure
from dynamic.monitoring.sources.system import REPLACEABLE, sources
from dynamic.monitoring.sources.temperature import Temperature
from dynamic.monitoring.sources.throttling import Growth, Throttling

THROTTLE = "sys/devices/system/cpu/cpu{}/thermal_throttle/{}_throttle_count"
FIRMWARE = "sys/devices/platform/soc/soc:firmware/get_throttled"


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def psi(some: float) -> str:
    return f"some avg10={some:.2f} avg60=77.00 avg300=0.00 total=1\nfull avg10=55.00 avg60=0.00 avg300=0.00 total=0\n"


def test_files_are_read_anew_and_opened_again(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    tree({"a": "1\n"})
    file = KernelFile(tree.root / "a")
    assert file.number() == 1
    tree({"a": "23\n"})
    assert file.number() == 23

    def gone(*_: Any) -> bytes:
        raise OSError(errno.ENODEV, "No such device")

    with monkeypatch.context() as patch:
        patch.setattr("dynamic.monitoring.kernel.kernel_files.os.pread", gone)
        with pytest.raises(OSError, match="No such device"):
            file.number()
    (tree.root / "a").unlink()  # what it was is gone, another has its name
    tree({"a": "4\n"})
    assert file.number() == 4
    file.close()
    file.close()


def test_searches_are_repeated_and_a_failed_one_is_not_kept() -> None:
    given: list[ValueError | int] = [ValueError("first"), 1, 2]
    clock, results = Clock(), iter(given)

    def search() -> int:
        result = next(results)
        if isinstance(result, ValueError):
            raise result
        return result

    found = CachedSearch(search, 5.0, clock)
    with pytest.raises(ValueError, match="first"):
        found()
    assert [found(), found()] == [1, 1]
    clock.now += 5
    assert found() == 2


def test_pressure_is_the_larger_of_system_and_group(tree: Tree) -> None:
    own = "sys/fs/cgroup/box/cpu.pressure"
    tree(
        {
            "proc/self/cgroup": "0::/box\n",
            "proc/self/mountinfo": V2_MOUNT,
            "proc/pressure/cpu": psi(12.5),
            "proc/pressure/memory": psi(3.0),
            own: psi(40.0),
        }
    )
    cpu = Pressure("cpu", tree.root)
    assert (cpu().fields, cpu().origin) == ({"cpu_pressure": 0.4}, str(tree.root / own))
    tree({own: psi(1.0)})
    assert cpu().fields == {"cpu_pressure": 0.125}
    assert Pressure("memory", tree.root)().fields == {"memory_pressure": 0.03}


def test_pressure_that_is_not_counted_is_absent(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AbsentError, match="psi=1"):
        Pressure("cpu", tree.root)()
    tree({"proc/pressure/cpu": psi(1)})

    def off(*_: Any) -> bytes:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr("dynamic.monitoring.kernel.kernel_files.os.pread", off)
    with pytest.raises(AbsentError):
        Pressure("cpu", tree.root)()


@pytest.mark.parametrize("garbage", ["", "some\n", "full avg10=1.00\n", "some avg10=much\n"])
def test_pressure_of_garbage_is_an_error(tree: Tree, garbage: str) -> None:
    tree({"proc/pressure/cpu": garbage})
    with pytest.raises(ValueError):
        Pressure("cpu", tree.root)()


def test_forbidden_pressure_raises(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    tree({"proc/pressure/memory": psi(1)})
    forbid(monkeypatch, tree.root / "proc/pressure/memory")
    with pytest.raises(PermissionError):
        Pressure("memory", tree.root)()


def test_growth_of_a_counter() -> None:
    clock = Clock()
    grown = Growth(clock)
    found = []
    for seconds, count in [(0, 7), (0.5, 7), (0.5, 8), (0.5, 8), (0.6, 8), (0.5, 2), (0.5, 3)]:
        clock.now += seconds
        found.append(grown(count))
    # 0.5 s after it grew it still goes on, 1.1 s after it does not; a smaller count starts anew
    assert found == [None, False, True, True, False, False, True]
    clock.now -= 1000  # a clock that steps backwards: not throttled for another 1000 s
    assert grown(3) is False


def test_thermal_counters(tree: Tree) -> None:
    tree({THROTTLE.format(0, "core"): 3, THROTTLE.format(1, "core"): 0, THROTTLE.format(0, "package"): 9})
    clock = Clock()
    throttling = Throttling(tree.root, clock=clock)
    assert throttling().fields == {"throttled": None}
    assert throttling().fields == {"throttled": False}
    tree({THROTTLE.format(1, "core"): 1})
    assert throttling().fields == {"throttled": True}
    clock.now += 2
    assert throttling().fields == {"throttled": False}
    tree({THROTTLE.format(1, "core"): "x"})
    (left_out,) = throttling().left_out
    assert "cpu1" in left_out.name
    tree({THROTTLE.format(0, "core"): "x", THROTTLE.format(0, "package"): "x"})
    with pytest.raises(ValueError, match="cpu0"):
        throttling()


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0\n", False), ("50000\n", False), ("50005\n", True), ("8\n", True), ("0x1\n", True), ("2", True)],
)
def test_firmware_of_a_pi(tree: Tree, text: str, expected: bool) -> None:
    tree({FIRMWARE: text})  # bits from 16 on tell what has been, those below 4 what is
    assert Throttling(tree.root)().fields == {"throttled": expected}


def test_command_of_a_pi_is_asked_every_ten_seconds(tree: Tree) -> None:
    script, asked = tree.root / "vcgencmd", tree.root / "asked"
    tree({"vcgencmd": f'#!/bin/sh\n[ "$1" = get_throttled ] || exit 1\necho >> {asked}\necho throttled=0x50004\n'})
    script.chmod(0o755)
    clock = Clock()
    throttling = Throttling(tree.root, str(script), clock)
    assert [throttling().fields["throttled"], throttling().fields["throttled"]] == [True, True]
    assert asked.read_text() == "\n"
    clock.now += 10
    tree({"vcgencmd": "#!/bin/sh\necho VCHI initialization failed\n"})
    with pytest.raises(ValueError, match="VCHI"):
        throttling()


def test_no_throttling_to_read(tree: Tree) -> None:
    with pytest.raises(AbsentError, match="throttled=function"):
        Throttling(tree.root)()


def chip(number: int, name: str, **inputs: int) -> dict[str, str | int]:
    folder = f"sys/class/hwmon/hwmon{number}"
    return {f"{folder}/name": f"{name}\n", **{f"{folder}/{key}": value for key, value in inputs.items()}}


def zone(number: int, kind: str, value: int | str) -> dict[str, str | int]:
    folder = f"sys/class/thermal/thermal_zone{number}"
    return {f"{folder}/type": f"{kind}\n", f"{folder}/temp": value}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (chip(0, "nvme", temp1_input=90_000) | chip(1, "coretemp", temp1_input=41_000, temp2_input=47_500), 47.5),
        (chip(0, "nvme", temp1_input=90_000) | zone(0, "acpitz", 30_000) | zone(1, "x86_pkg_temp", 52_000), 52.0),
        (zone(0, "cpu-thermal", 48_312) | zone(1, "gpu-thermal", 60_000), 48.312),
        (chip(0, "cpu_thermal", temp1_input=-5_000), -5.0),
        (zone(0, "acpitz", 33_000) | zone(1, "iwlwifi_1", 80_000), 33.0),  # nothing is named like a processor
        (chip(0, "k10temp", temp1_input=-274_000, temp2_input=39_000), 39.0),  # a sensor that is not connected
        (zone(0, "cpu0", "what") | zone(1, "cpu1", 55_000), 55.0),
    ],
)
def test_temperature_of_the_processor(tree: Tree, files: dict[str, str | int], expected: float) -> None:
    tree(files)
    assert Temperature(tree.root)().fields == {"temperature_c": expected}


def test_temperatures_that_cannot_be(tree: Tree) -> None:
    with pytest.raises(AbsentError, match="temperature=function"):
        Temperature(tree.root)()
    tree(zone(0, "cpu", 999_000))
    with pytest.raises(ValueError, match="999 degrees"):
        Temperature(tree.root)()


def test_frequency_is_the_mean_of_the_groups(tree: Tree) -> None:
    folder = "sys/devices/system/cpu/cpufreq/policy"
    tree(
        {
            f"{folder}0/scaling_cur_freq": 600_000,
            f"{folder}0/cpuinfo_max_freq": 1_800_000,
            f"{folder}4/scaling_cur_freq": 2_400_000,
            f"{folder}4/cpuinfo_max_freq": 2_400_000,
            f"{folder}5/scaling_cur_freq": 5,  # does not know its maximum
        }
    )
    assert Frequency(tree.root)().fields == {"frequency_ratio": pytest.approx((1 / 3 + 1) / 2)}
    for number in range(100):
        tree({f"{folder}{number}/scaling_cur_freq": 1, f"{folder}{number}/cpuinfo_max_freq": 2})
    assert Frequency(tree.root)().origin == "8 of cpufreq/policy*"  # of a hundred


def test_no_frequency(tree: Tree) -> None:
    with pytest.raises(AbsentError, match="frequency=function"):
        Frequency(tree.root)()


def stat(*cores: str) -> str:
    lines = ["cpu  1 1 1 1 1 1 1 1 1 1", *(f"cpu{i} {ticks}" for i, ticks in enumerate(cores)), "intr 5 5 5"]
    return "\n".join(lines)


def test_load_of_others_by_hand(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    # user nice system idle iowait irq softirq steal guest guest_nice, in hundredths of a second; core 2 is not ours
    tree({"proc/stat": stat("1000 0 500 10000 100 0 0 0 300 0", "2000 0 500 20000 0 0 0 0 0 0", "0 0 0 0 0 0 0 0 0 0")})
    own = iter([1.0, 1.3, 1.3])  # this process took 0.3 s of the 1.0 s that were busy
    monkeypatch.setattr("dynamic.monitoring.sources.cpu._TICKS", 100)
    monkeypatch.setattr("dynamic.monitoring.sources.cpu.usable_cores", lambda: (0, 1))
    monkeypatch.setattr("dynamic.monitoring.sources.cpu.time.process_time", lambda: next(own))
    load = OtherLoad(tree.root)
    assert load().fields == {"host_load": None}
    # 1 s on each of two cores: 0.8 busy on the first (0.1 of it stolen), 0.2 on the second
    first, second = "1060 0 510 10010 110 0 0 10 350 0", "2020 0 500 20080 0 0 0 0 0 0"
    tree({"proc/stat": stat(first, second, "9 9 9 9 9 9 9 9 9 9")})
    assert load().fields["host_load"] == pytest.approx((1.0 - 0.3) / 2)
    tree({"proc/stat": stat("1061 0 510 10010 110 0 0 10 350 0", second, "9 9 9 9 9 9 9 9 9 9")})
    assert load().fields["host_load"] == pytest.approx((1.0 - 0.3) / 2)  # 10 ms more is too little to tell


def test_load_where_the_cores_are_not_listed(tree: Tree) -> None:
    tree({"proc/stat": "intr 5\n"})
    with pytest.raises(ValueError, match="has no line for cores"):
        OtherLoad(tree.root)()


def test_memory_from_the_kernel_and_from_psutil(tree: Tree) -> None:
    assert Available(tree.root)().origin == ProcessMemory(tree.root)().origin == "psutil"
    available_mb = Available(tree.root)().fields["memory_available_mb"]
    assert available_mb == pytest.approx(psutil.virtual_memory().available / 1e6, rel=0.3)
    tree({"proc/meminfo": "MemTotal: 4000000 kB\nMemAvailable:    2000000 kB\n", "proc/self/statm": "999 1000 5 5\n"})
    assert Available(tree.root)().fields == {"memory_available_mb": 2048}
    page = 4096 if sys.platform != "linux" else __import__("resource").getpagesize()
    assert ProcessMemory(tree.root)().fields == {"memory_process_mb": page / 1e3}
    tree({"proc/self/statm": "nothing"})
    with pytest.raises(ValueError, match="statm"):
        ProcessMemory(tree.root)()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_kernel_and_psutil_agree_on_this_machine(tmp_path: Path) -> None:
    kernel, other = Available()(), Available(tmp_path)()
    assert (kernel.origin, other.origin) == ("/proc/meminfo", "psutil")
    assert kernel.fields["memory_available_mb"] == pytest.approx(other.fields["memory_available_mb"], rel=0.2)
    kernel, other = ProcessMemory()(), ProcessMemory(tmp_path)()
    assert kernel.fields["memory_process_mb"] == pytest.approx(other.fields["memory_process_mb"], rel=0.1)


@pytest.mark.parametrize(
    "fields",
    [
        {"battery": 1.01},
        {"battery": float("nan")},
        {"power_mw": -1.0},
        {"temperature_c": 400.0},
        {"cpu_pressure": 12.0},
        {"plugged": "yes"},
        {"throttled": 0.5},
        {"memory_available_mb": "much"},
    ],
)
def test_nonsense_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        checked(fields)


def test_what_is_checked_comes_out_plain() -> None:
    found = checked({"battery": 1, "plugged": 1, "power_mw": None})
    assert found == {"battery": 1.0, "plugged": True, "power_mw": None}
    assert (type(found["battery"]), type(found["plugged"])) == (float, bool)


def test_every_function_of_the_user_takes_a_source_s_place(tree: Tree) -> None:
    functions = {name: lambda: 0.5 for name in REPLACEABLE}
    plain = {source.name for source in sources(tree.root, {})}
    given = {source.name: source for source in sources(tree.root, functions)}
    assert set(given) == plain - {"memory_limit"}  # what the user says of memory is final
    for name, field in REPLACEABLE.items():
        assert given[name].apart
        assert given[name].read().fields[field] == 0.5
    assert not given["cores"].apart


def test_a_battery_function_may_know_more(tree: Tree) -> None:
    def read(value: Any) -> dict[str, Any]:
        source = next(s for s in sources(tree.root, {"battery": lambda: value}) if s.name == "battery")
        return dict(source.read().fields)

    assert read(0.5) == {"battery": 0.5, "battery_mwh": None, "plugged": None}
    assert read(Battery(0.5, True, energy_mwh=9000.0)) == {"battery": 0.5, "battery_mwh": 9000.0, "plugged": True}
    for wrong in (None, "full", SimpleNamespace(level=1)):
        with pytest.raises((TypeError, ValueError)):
            read(wrong)
